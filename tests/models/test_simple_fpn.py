"""SimpleFPN against naive loops, its levels, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from visionkit.errors import ConfigError
from visionkit.models.necks import SimpleFPN
from visionkit.types import Level


def normed(x, weight, bias):
    """The channels of each cell, one cell at a time."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                cell = x[b, :, i, j]
                deviation = (cell.var(unbiased=False) + 1e-6).sqrt()
                out[b, :, i, j] = (cell - cell.mean()) / deviation * weight + bias
    return out


def doubled(x, weight, bias):
    """A transposed convolution of stride 2 with a 2x2 window: each cell becomes four."""
    b, _, h, w = x.shape
    out = torch.empty(b, weight.shape[1], 2 * h, 2 * w)
    for i in range(2 * h):
        for j in range(2 * w):
            out[:, :, i, j] = x[:, :, i // 2, j // 2] @ weight[:, :, i % 2, j % 2] + bias
    return out


def test_it_is_its_definition():
    torch.manual_seed(0)
    neck = SimpleFPN({"c4": Level(16, 16)}, channels=6, extra_levels="none")
    x, t = torch.randn(2, 16, 3, 5), neck.state_dict()
    for value in t.values():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5)  # norms are not the identity

    def pair(name):
        return t[f"{name}.weight"], t[f"{name}.bias"]

    def out(x, stage, first):
        x = F.conv2d(x, t[f"stages.{stage}.{first}.weight"])
        x = normed(x, *pair(f"stages.{stage}.{first + 1}"))
        x = F.conv2d(x, t[f"stages.{stage}.{first + 2}.weight"], padding=1)
        return normed(x, *pair(f"stages.{stage}.{first + 3}"))

    half = doubled(x, *pair("stages.0.0"))
    half = F.gelu(normed(half, *pair("stages.0.1")))
    pooled = torch.stack([x[..., :2, :2].amax((2, 3)), x[..., :2, 2:4].amax((2, 3))], -1)
    pooled = torch.stack(
        [pooled, torch.stack([x[..., 2:, :2].amax((2, 3)), x[..., 2:, 2:4].amax((2, 3))], -1)], -2
    )
    edge = torch.stack([x[..., :2, 4].amax(2), x[..., 2, 4]], -1)[..., None]
    want = [
        out(doubled(half, *pair("stages.0.3")), 0, 4),
        out(doubled(x, *pair("stages.1.0")), 1, 1),
        out(x, 2, 0),
        out(torch.cat([pooled, edge], -1), 3, 1),
    ]
    got = neck({"c4": x})
    assert list(got) == list(neck.levels) == ["p2", "p3", "p4", "p5"]
    for mine, other in zip(got.values(), want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "stride, extra, strides, names",
    [
        (16, "pool", [4, 8, 16, 32, 64], ["p2", "p3", "p4", "p5", "p6"]),
        (14, "p6p7", [7, 14, 28, 56, 112], ["s7", "s14", "s28", "s56", "s112"]),
        (32, "none", [8, 16, 32, 64], ["p3", "p4", "p5", "p6"]),
        (8, "p6", [4, 8, 16, 32], ["p2", "p3", "p4", "p5"]),
    ],
)
def test_levels_tell_the_truth_and_every_parameter_trains(stride, extra, strides, names):
    neck = SimpleFPN({"x": Level(16, stride)}, channels=8, extra_levels=extra)
    assert [level.stride for level in neck.levels.values()] == strides
    side = 16
    got = neck({"x": torch.randn(2, 16, side, side)})
    assert list(got) == list(neck.levels) == names
    for name, x in got.items():
        assert x.shape == (2, 8, *[max(1, side * stride // neck.levels[name].stride)] * 2)
    sum(x.square().mean() for x in got.values()).backward()
    assert not [name for name, p in neck.named_parameters() if p.grad is None]


def test_one_level_of_several_by_name():
    levels = {"c3": Level(4, 8), "c4": Level(16, 16), "c5": Level(8, 32)}
    assert [n.stride for n in SimpleFPN(levels, in_feature="c4").levels.values()][:3] == [4, 8, 16]
    assert [n.stride for n in SimpleFPN(levels).levels.values()][:3] == [8, 16, 32]
    with pytest.raises(ConfigError, match=r"in_feature: got 'c6'.*c3, c4, c5"):
        SimpleFPN(levels, in_feature="c6")


@pytest.mark.parametrize("norm", ["layer", "batch", "group"])
def test_channels_last_bfloat16_and_export(norm):
    torch.manual_seed(0)
    neck, x = (
        SimpleFPN({"c4": Level(16, 16)}, channels=16, norm=norm).eval(),
        torch.randn(2, 16, 4, 4),
    )
    with torch.no_grad():
        want = neck({"c4": x})
        exported = torch.export.export(neck, ({"c4": x},)).module()({"c4": x})
        neck = neck.to(memory_format=torch.channels_last)
        got = neck({"c4": x.contiguous(memory_format=torch.channels_last)})
        with torch.autocast("cpu", torch.bfloat16):
            rough = neck({"c4": x})
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported[name], want[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rough[name].float(), want[name], rtol=0.1, atol=0.1)
