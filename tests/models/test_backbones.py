"""Every backbone found in the package: its levels, its pixels, and the maps that one may choose."""

import inspect

import pytest
import torch
from torchvision import models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from support.backbones import (
    pixels,
)
from visionkit.config.components import components
from visionkit.errors import ConfigError
from visionkit.models.backbones.convnext import ConvNeXt
from visionkit.models.backbones.densenet import DenseNet
from visionkit.models.backbones.efficientnet import EfficientNet
from visionkit.models.backbones.mobilenet import MobileNetV2, MobileNetV3
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD
from visionkit.models.backbones.regnet import RegNet
from visionkit.models.backbones.resnet import ResNet, ResNeXt, WideResNet
from visionkit.models.backbones.shufflenet import ShuffleNetV2
from visionkit.models.backbones.squeezenet import SqueezeNet
from visionkit.models.backbones.trunk import Trunk
from visionkit.models.backbones.vgg import VGG

TRUNKS = {name: cls for name, cls in components("backbones").items() if issubclass(cls, Trunk)}
ROUNDED_DOWN = (ConvNeXt, DenseNet, VGG, SqueezeNet)
STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


# --- every family ---


def test_all_families_are_found():
    names = {"ResNet", "ResNeXt", "WideResNet", "MobileNetV2"}
    names |= {"MobileNetV3", "EfficientNet", "ConvNeXt"}
    names |= {"RegNet", "ShuffleNetV2", "SqueezeNet"}
    names |= {"DenseNet", "VGG"}
    assert names == set(TRUNKS)
    assert "Timm" in components("backbones")


@pytest.fixture(scope="module", params=sorted(TRUNKS))
def trunk(request):
    torch.manual_seed(0)
    return TRUNKS[request.param]()


@pytest.mark.parametrize("height, width", [(64, 96), (99, 135)])
def test_levels_tell_channels_and_strides(trunk, height, width):
    trunk.eval()
    with torch.no_grad():
        features = trunk(pixels(2, 3, height, width))
    last = "c4" if isinstance(trunk, SqueezeNet) else "c5"
    assert list(features) == list(trunk.levels) == [n for n in STRIDES if n <= last]
    for name, x in features.items():
        channels, stride = trunk.levels[name]
        assert stride == STRIDES[name]
        assert x.shape[:2] == (2, channels)
        full = [-(-height // stride), -(-width // stride)]
        most = 2 if isinstance(trunk, SqueezeNet) else int(isinstance(trunk, ROUNDED_DOWN))
        assert all(0 <= f - side <= most for f, side in zip(full, x.shape[2:], strict=True))


def test_every_parameter_gets_a_gradient_and_reaches_the_last_level(trunk):
    trunk.train()
    trunk.zero_grad(set_to_none=True)
    features = trunk(pixels(2, 3, 64, 64), [(64, 50), (40, 64)])
    sum(x.square().mean() for x in features.values()).backward()
    parameters = dict(trunk.named_parameters())
    assert not [name for name, p in parameters.items() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in parameters.values())
    assert next(iter(parameters.values())).grad.abs().sum() > 0
    trunk.zero_grad(set_to_none=True)


def test_parameter_names_and_count_are_those_of_torchvision(trunk):
    """All of the classifier but its last part, under `body`."""
    arches = {
        ResNet: "resnet18",
        ResNeXt: "resnext50_32x4d",
        WideResNet: "wide_resnet50_2",
        MobileNetV2: "mobilenet_v2",
        MobileNetV3: "mobilenet_v3_large",
        EfficientNet: "efficientnet_b0",
        ConvNeXt: "convnext_tiny",
        RegNet: "regnet_y_400mf",
        ShuffleNetV2: "shufflenet_v2_x1_0",
        SqueezeNet: "squeezenet1_1",
        DenseNet: "densenet121",
        VGG: "vgg11_bn",
    }
    state = models.get_model(arches[type(trunk)]).state_dict()
    theirs = {key.removeprefix("features."): value.shape for key, value in state.items()}
    theirs = {k: s for k, s in theirs.items() if not k.startswith(("fc.", "classifier."))}
    assert {k.removeprefix("body."): v.shape for k, v in trunk.state_dict().items()} == theirs


def test_signatures_are_uniform():
    shared = {"weights": None, "freeze_at": 0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    for cls in TRUNKS.values():
        defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items()}
        assert shared.items() <= defaults.items()
        if cls not in (ConvNeXt, SqueezeNet):
            assert {"norm": "auto", "norm_eps": None}.items() <= defaults.items()


# --- normalisation of the pixels ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_normalized_as_by_torchvision_and_padding_is_zero(layout):
    backbone = ResNet(depth=18).to(memory_format=layout)
    images = pixels(2, 3, 20, 30)
    before = images.clone()
    sizes = [(20, 17), (11, 30)]
    got = backbone.normalize(images, sizes, like=backbone.body)
    reference = GeneralizedRCNNTransform(1, 1, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)
    for x, image, (h, w) in zip(got, images, sizes, strict=True):
        want = reference.normalize(image.float() / 255)
        torch.testing.assert_close(x[:, :h, :w], want[:, :h, :w], rtol=0, atol=2e-6)
        assert not x[:, h:].any() and not x[:, :, w:].any()


def test_what_lies_in_the_padding_has_no_effect():
    backbone = MobileNetV3(size="small").eval()
    images = pixels(1, 3, 64, 64)
    other = images.clone()
    other[:, :, :, 40:] = 7
    with torch.no_grad():
        a, b = backbone(images, [(64, 40)]), backbone(other, [(64, 40)])
        assert not torch.equal(backbone(images)["c5"], backbone(other)["c5"])
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_mean_and_std_are_knobs():
    backbone = ResNet(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    got = backbone.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), None, backbone.body)
    torch.testing.assert_close(got[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
    with pytest.raises(ConfigError, match="std"):
        ResNet(std=(0.0, 1.0, 1.0))


def test_channels_last_gives_the_same_features():
    backbone = ResNet(depth=18).eval()
    images = pixels(2, 3, 64, 64)
    with torch.no_grad():
        want = backbone(images)
        got = backbone.to(memory_format=torch.channels_last)(images)
    assert got["c4"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# --- levels by choice ---


def test_taps_give_these_features_and_drop_the_rest():
    backbone = MobileNetV3(taps=[13, 6])
    assert list(backbone.levels) == ["f6", "f13"]
    assert backbone.levels["f6"] == (40, 8) and backbone.levels["f13"] == (160, 32)
    assert len(backbone.body) == 14
    assert backbone(pixels(2, 3, 64, 64))["f13"].shape == (2, 160, 2, 2)


@pytest.mark.parametrize("taps", [[], [17], [-1]])
def test_impossible_taps_are_an_error(taps):
    with pytest.raises(ConfigError, match="taps"):
        MobileNetV3(taps=taps)


def test_a_tapped_map_is_not_overwritten_by_the_next_module():
    backbone = VGG(batch_norm=False, taps=[0, 1]).eval()
    features = backbone(pixels(1, 3, 32, 32))
    assert (features["f0"] < 0).any()
    assert torch.equal(features["f0"].relu(), features["f1"])


def test_small_stem_for_tiny_images():
    backbone = ResNet(stem="small").eval()
    features = backbone(pixels(2, 3, 28, 28))
    assert {name: level.stride for name, level in backbone.levels.items()} == {
        "c0": 1,
        "c1": 2,
        "c2": 4,
        "c3": 8,
    }
    assert [x.shape[-1] for x in features.values()] == [28, 14, 7, 4]
