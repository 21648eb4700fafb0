"""The light residual network: shapes, the identity at the start, padding, what may be asked."""

import math

import pytest
import torch

from support.backbones import pixels
from visionkit.config.components import components
from visionkit.errors import ConfigError
from visionkit.models.backbones.plain import Block, LightResNet
from visionkit.types import Level


def small(**arguments):
    torch.manual_seed(0)
    return LightResNet(**{"widths": (8, 12, 16), "depths": (1, 2, 1), **arguments})


def test_it_is_found_by_name():
    assert components("backbones")["LightResNet"] is LightResNet


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 90)])
def test_levels_tell_channels_and_strides(height, width):
    backbone = small()
    assert backbone.levels == {"c2": Level(8, 4), "c3": Level(12, 8), "c4": Level(16, 16)}
    features = backbone(pixels(2, 3, height, width), [(height, width)] * 2)
    for name, (channels, stride) in backbone.levels.items():
        sides = (math.ceil(height / stride), math.ceil(width / stride))
        assert features[name].shape == (2, channels, *sides)


def test_the_default_is_as_small_as_it_says():
    assert sum(p.numel() for p in LightResNet().parameters()) == pytest.approx(2.8e6, rel=0.03)


def test_a_block_starts_as_its_shortcut():
    x = torch.randn(2, 6, 9, 7).relu()
    torch.testing.assert_close(Block(6, 6)(x), x)
    halved = torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True)
    torch.testing.assert_close(Block(6, 6, stride=2)(x), halved)


def test_what_lies_in_the_padding_has_no_effect():
    backbone, images = small().eval(), pixels(1, 3, 64, 64)
    other = images.clone()
    other[..., 50:], other[..., 50:, :] = 7, 9
    a, b = (backbone(x, [(50, 50)]) for x in (images, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_parameter_trains_and_channels_last_changes_nothing():
    backbone, images = small(), pixels(4, 3, 64, 64)
    for block in (m for m in backbone.modules() if isinstance(m, Block)):
        torch.nn.init.ones_(block.second[1].weight)
    first = backbone(images)
    (first["c4"] * torch.randn_like(first["c4"])).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in backbone.parameters())
    second = backbone.to(memory_format=torch.channels_last)(images)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"widths": (8, 16)}, {"widths": (), "depths": ()}])
def test_widths_and_depths_must_belong_together(arguments):
    with pytest.raises(ConfigError, match="one number for each stage"):
        small(**arguments)
