"""Deformable attention against loops over queries, heads, levels and points."""

import math

import pytest
import torch

from visionkit.ops.attention import DeformableAttention

SIZES = [(4, 6), (2, 3)]


def value_at(level, x, y, sampling):
    """Of a map (C, h, w) at x and y in 0..1."""
    _, h, w = level.shape
    if sampling == "nearest":
        column = min(max(int(x * w + 0.5), 0), w - 1)
        return level[:, min(max(int(y * h + 0.5), 0), h - 1), column]
    x, y = x * w - 0.5, y * h - 0.5
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros(len(level))
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < h and 0 <= column < w:
            total += level[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_against_loops(sampling):
    torch.manual_seed(0)
    points, heads = [3, 2], 2
    layer = DeformableAttention(8, heads, points, sampling)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, values = torch.randn(2, 5, 8), torch.randn(2, 24 + 6, 8)
    boxes = torch.rand(2, 5, 4)
    with torch.no_grad():
        found = layer(x, boxes, values, SIZES)
        offsets = layer.sampling_offsets(x).view(2, 5, heads, 5, 2)
        weights = layer.attention_weights(x).view(2, 5, heads, 5).softmax(-1)
        projected = layer.value_proj(values).view(2, 30, heads, 4)
        merged = torch.zeros(2, 5, heads, 4)
        for b in range(2):
            for q in range(5):
                for head in range(heads):
                    for p in range(5):
                        of_level, first, count = (0, 0, 3) if p < 3 else (1, 24, 2)
                        h, w = SIZES[of_level]
                        level = projected[b, first : first + h * w, head].T.reshape(4, h, w)
                        move = offsets[b, q, head, p] / count * boxes[b, q, 2:] * 0.5
                        place = boxes[b, q, :2] + move
                        read = value_at(level, *place.tolist(), sampling)
                        merged[b, q, head] += weights[b, q, head, p] * read
        expected = layer.output_proj(merged.flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_places_of_discrete_sampling_do_not_learn():
    layer = DeformableAttention(8, 2, [1], "nearest")
    assert not any(p.requires_grad for p in layer.sampling_offsets.parameters())
    assert all(p.requires_grad for p in layer.value_proj.parameters())
