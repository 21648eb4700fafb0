"""FPN against torchvision's, its level names, and one upsampling worked by hand."""

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from visionkit.errors import ConfigError
from visionkit.models.necks.fpn import FPN
from visionkit.types import Level

LEVELS = {"c2": Level(8, 4), "c3": Level(16, 8), "c4": Level(24, 16), "c5": Level(32, 32)}


def maps(levels=LEVELS, side=100):
    return {
        name: torch.randn(2, level.channels, -(-side // level.stride), -(-side // level.stride))
        for name, level in levels.items()
    }


@pytest.mark.parametrize(
    "extra, block, names",
    [
        ("none", None, []),
        ("pool", LastLevelMaxPool(), ["p6"]),
        ("p6p7", LastLevelP6P7(12, 12), ["p6", "p7"]),
    ],
)
def test_it_is_that_of_torchvision(extra, block, names):
    ours = FPN(LEVELS, channels=12, extra_levels=extra)
    theirs = FeaturePyramidNetwork([level.channels for level in LEVELS.values()], 12, block)
    theirs.load_state_dict(ours.state_dict())
    features = maps()
    got, want = ours(features), theirs(features)
    assert list(got) == list(ours.levels) == ["p2", "p3", "p4", "p5", *names]
    for mine, other in zip(got.values(), want.values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    assert all(bias.count_nonzero() == 0 for n, bias in ours.state_dict().items() if "bias" in n)


@pytest.mark.parametrize("extra", ["none", "pool", "p6", "p6p7"])
def test_levels_tell_the_truth_and_every_parameter_trains(extra):
    neck = FPN(LEVELS, channels=12, extra_levels=extra)
    got = neck(maps(side=128))
    assert list(got) == list(neck.levels)
    for name, x in got.items():
        assert x.shape == (2, *neck.levels[name][:1], *[128 // neck.levels[name].stride] * 2)
        assert name == f"p{neck.levels[name].stride.bit_length() - 1}"
    sum(x.square().mean() for x in got.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())


def test_extra_levels_come_from_the_backbone_if_asked_for():
    theirs = LastLevelP6P7(32, 12)
    ours = FPN(LEVELS, channels=12, extra_levels="p6p7", extra_from="backbone")
    ours.extra_blocks.load_state_dict(theirs.state_dict())
    features = maps(side=128)
    found = ours(features)
    want, _ = theirs([found["p5"]], [features["c5"]], ["p5"])
    assert torch.equal(found["p6"], want[1]) and torch.equal(found["p7"], want[2])
    one = FPN(LEVELS, channels=12, extra_levels="p6", extra_from="backbone")
    assert one.extra_blocks.p6.in_channels == 32 and list(one(features))[-1] == "p6"
    for extra in ("none", "pool"):
        with pytest.raises(ConfigError, match="extra_from: got 'backbone' with extra_levels="):
            FPN(LEVELS, extra_levels=extra, extra_from="backbone")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_of_a_single_cell(norm):
    """One image of one cell has no statistics, which torch's own batch norm refuses."""
    neck = FPN({"c5": Level(8, 32)}, channels=8, norm=norm, extra_levels="none")
    assert neck({"c5": torch.randn(1, 8, 1, 1)})["p5"].isfinite().all()


def test_p6_is_a_convolution_of_the_coarsest_output():
    neck = FPN(LEVELS, channels=12, extra_levels="p6")
    got = neck(maps())
    torch.testing.assert_close(got["p6"], neck.extra_blocks.p6(got["p5"]))
    assert neck.extra_blocks.p6.stride == (2, 2)


def test_the_coarse_map_is_added_to_the_fine_one():
    neck = FPN({"c2": Level(1, 4), "c3": Level(1, 8)}, channels=1, extra_levels="none")
    for inner, layer in zip(neck.inner_blocks, neck.layer_blocks, strict=True):
        nn.init.ones_(inner[0].weight)
        nn.init.dirac_(layer[0].weight)
    fine = torch.arange(9.0).view(1, 1, 3, 3)
    got = neck({"c2": fine, "c3": torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])})
    upsampled = torch.tensor([[10.0, 10, 20], [10, 10, 20], [30, 30, 40]])
    torch.testing.assert_close(got["p2"], fine + upsampled)


def test_in_features_pick_levels():
    neck = FPN(LEVELS, channels=12, in_features=["c5", "c3", "c4"], extra_levels="p6p7")
    assert list(neck(maps())) == list(neck.levels) == ["p3", "p4", "p5", "p6", "p7"]
    for wrong in (["c9"], []):
        with pytest.raises(ConfigError, match="c2, c3, c4, c5"):
            FPN(LEVELS, in_features=wrong)


def test_levels_of_one_stride_keep_their_names():
    levels = {"f13": Level(8, 32), "f16": Level(16, 32)}
    neck = FPN(levels, channels=12)
    assert list(neck(maps(levels))) == list(neck.levels) == ["f13", "f16", "p6"]
    assert [level.stride for level in neck.levels.values()] == [32, 32, 64]


@pytest.mark.parametrize("norm, kind", [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_norms_follow_each_convolution(norm, kind):
    neck = FPN(LEVELS, channels=48, norm=norm)
    found = [m for m in neck.modules() if isinstance(m, kind)]
    assert len(found) == 2 * len(LEVELS)
    assert list(neck(maps())) == list(neck.levels)


def test_gradients_of_a_level_of_one_cell_are_whole_in_bfloat16():
    """torch's own bfloat16 convolution leaves garbage in them on a CPU."""
    torch.manual_seed(0)
    fpn = FPN({"c5": Level(96, 32)}, channels=96, extra_levels="p6p7")
    x = torch.randn(4, 96, 2, 2)
    gradients = []
    for enabled in (True, False):
        junk = [torch.full((96 * 96 * 9,), 1e30) for _ in range(4)]
        del junk  # memory that a careless kernel would hand out as it is
        fpn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            fpn({"c5": x})["p7"].float().square().sum().backward()
        gradients.append(fpn.extra_blocks.p7.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=0.05)
