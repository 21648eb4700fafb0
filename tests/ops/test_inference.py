"""Folded norms and rounded weights: fewer modules and conversions, the same outputs."""

import pytest
import torch
from torch import nn

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.engine.torch_model import Predictor
from visionkit.models.backbones.plain import LightResNet
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.ops.inference import LAYERS, NORMS, cast_weights, fold_norms
from visionkit.types import Batch, Classes, Level

CONFIGS = ROOT / "configs"
NAMES = ["detection", "detection_small", "instance_segmentation", "localization", "vae"]
NAMES += ["classification", "semantic_segmentation", "embedding"]
# Their coarsest map of the test has a single cell, from a single cell.
NAMES += ["detection_fcos", "detection_ssd"]


def with_norms(backbone, neck=None):
    """A model whose norms change their inputs."""
    torch.manual_seed(0)
    model = VisionModel(backbone, neck, {}, {})
    for norm in model.modules():
        if isinstance(norm, NORMS):
            for tensor in (norm.weight, norm.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                tensor.data.normal_()
    return model.eval()


def batch():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    return Batch(images, [{"size": (64, 96)}, {"size": (50, 70)}])


def norms_in(model):
    return sum(isinstance(m, NORMS) for m in model.modules())


@pytest.mark.parametrize(
    ("backbone", "norms"),
    [
        (lambda: Torchvision(name="resnet18"), 20),
        (lambda: Torchvision(name="resnet18", norm="frozen"), 20),
        (lambda: LightResNet(), 19),
        (lambda: Torchvision(name="mobilenet_v3_small"), 34),
        (lambda: Torchvision(name="vgg11_bn"), 8),
        (lambda: Torchvision(name="squeezenet1_1"), 0),
        (lambda: Torchvision(name="resnet18", norm="group"), 0),
    ],
)
@torch.inference_mode()
def test_features_stay_the_same(backbone, norms):
    model, images = with_norms(backbone()), batch()
    expected = model.features(images)
    assert norms_in(model) == norms
    assert fold_norms(model) == norms
    assert norms_in(model) == 0
    found = model.features(images)
    assert found.keys() == expected.keys()
    for name, level in expected.items():
        torch.testing.assert_close(found[name], level, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "norms"), [("mobilenetv3_small_050", 34), ("efficientnet_lite0", 48)]
)
@torch.inference_mode()
def test_activations_inside_norms_stay(name, norms):
    """Those of timm have one."""
    pytest.importorskip("timm")
    model, images = with_norms(Timm(name=name)), batch()
    expected = model.features(images)
    assert fold_norms(model) == norms
    for name, level in model.features(images).items():
        torch.testing.assert_close(level, expected[name], atol=1e-3, rtol=1e-3)


class Doubling(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@torch.inference_mode()
def test_a_norm_that_does_more_is_not_folded():
    backbone = LightResNet(widths=(8, 8), depths=(1, 1))
    layers = backbone.stages[0][0].first
    layers[1] = Doubling(8)
    model, images = with_norms(backbone), batch()
    expected, norms = model.features(images), norms_in(model)
    assert fold_norms(model) == norms - 1
    assert isinstance(layers[1], Doubling)
    for name, level in model.features(images).items():
        torch.testing.assert_close(level, expected[name], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_neck_is_folded_too():
    backbone = Torchvision(name="resnet18")
    model, images = with_norms(backbone, FPN(backbone.levels, channels=16, norm="batch")), batch()
    expected = model.features(images)
    fold_norms(model)
    for name, level in model.features(images).items():
        torch.testing.assert_close(level, expected[name], atol=1e-3, rtol=1e-3)


class Shared(nn.Module):
    """A backbone in which one convolution serves two norms, and one is a level itself."""

    def __init__(self):
        super().__init__()
        self.levels = dict.fromkeys(("before", "sum", "after"), Level(3, 1))
        self.twice = nn.Conv2d(3, 3, 1)
        self.level = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images, sizes=None):
        x = images / 255
        before = self.level(x)
        one, two = (norm(self.twice(x)) for norm in self.norms[:2])
        return {"before": before, "sum": one + two, "after": self.norms[2](before)}


@torch.inference_mode()
def test_convolutions_with_two_uses_are_not_folded():
    model, images = with_norms(Shared()), batch()
    expected = model.features(images)
    assert fold_norms(model) == 0
    for name, level in model.features(images).items():
        assert torch.equal(level, expected[name])


def test_a_predictor_folds_norms():
    config = load_config(ROOT / "configs/detection_small.yaml")
    classes = {"detection": Classes(("cell",), (1,))}
    model = build_model(config, classes)
    assert norms_in(model.backbone) > 0
    predictor = Predictor(model, config, classes)
    assert norms_in(predictor.model.backbone) == 0
    assert norms_in(predictor.model.heads) > 0  # each serves one of several levels
    assert predictor.model.draw_threshold == {"detection": 0.4}


def configured(name, precision="bf16"):
    config = load_config(CONFIGS / f"{name}.yaml", {"train.precision": precision})
    classes = {head: Classes(("one", "two"), (1, 2)) for head in config.heads}
    torch.manual_seed(0)
    return build_model(config, classes, pretrained=False).eval(), config, classes


@torch.inference_mode()
def predictions_of(model):
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    batch = Batch(images.to(torch.uint8), [{"size": (64, 64), "orig_size": (64, 64)}] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        return model.predictions(model.features(batch), batch, [*model.heads])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "instance_segmentation")) for n in NAMES],
)
def test_cast_weights_leave_predictions_equal(name):
    model, _, _ = configured(name)
    fold_norms(model)
    before = predictions_of(model)
    cast_weights(model, torch.bfloat16)
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())
    for head, expected in before.items():
        for one, other in zip(predictions_of(model)[head], expected, strict=True):
            assert one.keys() == other.keys()
            for key, value in other.items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(one[key], value), (head, key)


def test_a_predictor_casts_a_bf16_model_and_no_other():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model, config, classes = configured("detection_small", precision)
        layers = [m for m in Predictor(model, config, classes).model.modules() if type(m) in LAYERS]
        assert layers and {layer.weight.dtype for layer in layers} == {dtype}
