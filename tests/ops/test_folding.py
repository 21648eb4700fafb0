"""Batch norms taken into convolutions: fewer modules, the same features."""

import pytest
import torch
from torch import nn

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.engine.predict import Predictor
from visionkit.models.backbones.light import LightResNet
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.ops.inference import NORMS, fold_norms
from visionkit.types import Batch, Classes


def model_of(backbone, neck=None):
    """With norms that do something."""
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
    model, images = model_of(backbone()), batch()
    expected = model.features(images)
    assert norms_in(model) == norms
    assert fold_norms(model) == norms
    assert norms_in(model) == 0
    found = model.features(images)
    assert found.keys() == expected.keys()
    for name, level in expected.items():
        torch.testing.assert_close(found[name], level, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_neck_is_folded_too():
    backbone = Torchvision(name="resnet18")
    model, images = model_of(backbone, FPN(backbone.levels, channels=16, norm="batch")), batch()
    expected = model.features(images)
    fold_norms(model)
    for name, level in model.features(images).items():
        torch.testing.assert_close(level, expected[name], atol=1e-3, rtol=1e-3)


class Shared(nn.Module):
    """A backbone in which one convolution serves two norms, and one is a level itself."""

    levels = {}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.level = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images, sizes=None):
        x = images / 255
        before = self.level(x)
        one, two = (norm(self.twice(x)) for norm in self.norms[:2])
        return {"before": before, "sum": one + two, "after": self.norms[2](before)}


@torch.inference_mode()
def test_what_is_used_twice_is_left_alone():
    model, images = model_of(Shared()), batch()
    expected = model.features(images)
    assert fold_norms(model) == 0
    for name, level in model.features(images).items():
        assert torch.equal(level, expected[name])


def test_a_model_to_predict_with_is_folded():
    config = load_config(ROOT / "configs/detection_small.yaml")
    classes = {"detection": Classes(("cell",), (1,))}
    model = build_model(config, classes)
    assert norms_in(model.backbone) > 0
    predictor = Predictor.of(model, config, classes)
    assert norms_in(predictor.model.backbone) == 0
    assert norms_in(predictor.model.heads) > 0  # each of theirs serves one of several levels
    assert predictor.model.draw_threshold == {"detection": 0.4}
