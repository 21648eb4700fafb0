"""PAN against its definition written as plain operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionkit.errors import ConfigError
from visionkit.models.necks import PAN
from visionkit.types import Level

LEVELS = {"c2": Level(6, 4), "c3": Level(8, 8), "c4": Level(10, 16)}


def maps(levels=LEVELS, side=96):
    return {
        name: torch.randn(2, level.channels, -(-side // level.stride), -(-side // level.stride))
        for name, level in levels.items()
    }


def test_it_is_its_definition():
    """Section 3.1 of the paper, on top of the pyramid of section 3 of Lin et al."""
    torch.manual_seed(0)
    neck, features = PAN(LEVELS, channels=12, extra_levels="p6p7"), maps()
    tensors = neck.state_dict()

    def conv(x, name, **settings):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **settings)

    inner = [conv(x, f"fpn.inner_blocks.{i}.0") for i, x in enumerate(features.values())]
    for i in (1, 0):
        inner[i] = inner[i] + inner[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    pyramid = [conv(x, f"fpn.layer_blocks.{i}.0", padding=1) for i, x in enumerate(inner)]
    want = [pyramid[0]]
    for i in (0, 1):
        down = conv(want[-1], f"halve.{i}.0", stride=2, padding=1).relu()
        want.append(conv(down + pyramid[i + 1], f"out.{i}.0", padding=1).relu())
    want.append(conv(want[-1], "extra.p6", stride=2, padding=1))
    want.append(conv(want[-1].relu(), "extra.p7", stride=2, padding=1))

    got = neck(features)
    assert list(got) == list(neck.levels) == ["p2", "p3", "p4", "p5", "p6"]
    assert [level.stride for level in neck.levels.values()] == [4, 8, 16, 32, 64]
    for mine, other in zip(got.values(), want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_what_a_fine_map_shows_reaches_the_coarsest():
    neck, features = PAN(LEVELS, channels=12, extra_levels="pool"), maps()
    features["c2"].requires_grad_()
    neck(features)["p5"].sum().backward()
    assert features["c2"].grad.abs().sum() > 0


@pytest.mark.parametrize("norm, kind", [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_norms_follow_each_convolution_and_all_parameters_train(norm, kind):
    neck = PAN(LEVELS, channels=64, norm=norm)
    assert sum(isinstance(m, kind) for m in neck.modules()) == 2 * 3 + 2 * 2
    sum(x.square().mean() for x in neck(maps()).values()).backward()
    assert not [name for name, p in neck.named_parameters() if p.grad is None]


def test_strides_that_do_not_double():
    levels = {"c2": Level(4, 4), "c4": Level(8, 16), "f9": Level(8, 16)}  # dilated, and one missing
    got = PAN(levels, channels=8, extra_levels="none")(maps(levels))
    assert [x.shape[-1] for x in got.values()] == [24, 6, 6]
    with pytest.raises(
        ConfigError,
        match=r"stride 17 of s17 is not a multiple of 12, .* choose others with in_features",
    ):
        PAN({"s12": Level(4, 12), "s17": Level(4, 17)})


def test_maps_that_are_rounded_down():
    features = maps(side=104)  # 26, 13 and 7 cells
    features["c4"] = features["c4"][..., :6, :6]
    assert [x.shape[-1] for x in PAN(LEVELS, channels=8)(features).values()] == [26, 13, 6, 3]


def test_channels_last_and_export_give_the_same():
    neck, features = PAN(LEVELS, channels=12, extra_levels="p6").eval(), maps(side=64)
    with torch.no_grad():
        want = neck(features)
        exported = torch.export.export(neck, (features,)).module()(features)
        neck = neck.to(memory_format=torch.channels_last)
        last = {n: x.contiguous(memory_format=torch.channels_last) for n, x in features.items()}
        got = neck(last)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported[name], want[name], rtol=1e-4, atol=1e-5)
    assert got["p3"].is_contiguous(memory_format=torch.channels_last)
