"""Box arithmetic, against hand-worked values and torchvision's coder."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from visionkit.ops.boxes import (
    area,
    box_ioa,
    box_iou,
    clip,
    decode,
    encode,
    pairwise_intersection,
    rescale_boxes,
)


def random_boxes(*shape):
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + torch.rand(*shape, 2) * 60 + 1], -1)


def test_encode_by_hand():
    anchor = torch.tensor([10.0, 20, 20, 40])  # center (15, 30), 10 x 20
    box = torch.tensor([15.0, 20, 35, 40])  # center (25, 30), 20 x 20
    expected = torch.tensor([1.0, 0.0, math.log(2), 0.0])
    torch.testing.assert_close(encode(box, anchor), expected)
    weighted = encode(box, anchor, (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(weighted, expected * torch.tensor([10.0, 10, 5, 5]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_encode_and_decode_equal_torchvision_and_undo_each_other(weights):
    boxes, anchors = random_boxes(40), random_boxes(40)
    coder = BoxCoder(weights)
    offsets = encode(boxes, anchors, weights)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode(offsets, anchors, weights), boxes, atol=1e-3, rtol=1e-5)
    several = torch.randn(40, 3, 4) * 3
    expected = coder.decode_single(several.flatten(1), anchors).view(40, 3, 4)
    torch.testing.assert_close(decode(several, anchors[:, None], weights), expected)


def test_decode_bounds_the_growth():
    huge = decode(torch.tensor([0.0, 0, 1e4, 1e4]), torch.tensor([0.0, 0, 16, 16]))
    assert (huge[2:] - huge[:2]).tolist() == pytest.approx([1000, 1000], rel=1e-4)


def test_clip_to_height_and_width():
    boxes = torch.tensor([[-5.0, -6, 300, 400], [10, 20, 30, 40]])
    assert clip(boxes, (100, 200)).tolist() == [[0, 0, 200, 100], [10, 20, 30, 40]]
    sizes = torch.tensor([[100, 200], [30, 25]])
    assert clip(boxes.repeat(2, 1, 1), sizes).tolist() == [
        [[0, 0, 200, 100], [10, 20, 30, 40]],
        [[0, 0, 25, 30], [10, 20, 25, 30]],
    ]


def test_rescaling_scales_each_axis_by_itself():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    assert rescale_boxes(boxes, (100, 50), (200, 150)).tolist() == [[30, 40, 90, 80]]
    assert rescale_boxes(boxes[:0], (100, 50), (200, 150)).shape == (0, 4)


def test_overlaps_by_hand():
    one = torch.tensor([[0.0, 0, 10, 10]])
    others = torch.tensor([[5.0, 0, 15, 20], [10, 10, 20, 20], [2, 2, 4, 4]])
    assert area(others).tolist() == [200, 100, 4]
    assert pairwise_intersection(one, others).tolist() == [[50, 0, 4]]
    torch.testing.assert_close(box_iou(one, others), torch.tensor([[0.2, 0, 0.04]]))
    torch.testing.assert_close(box_ioa(one, others), torch.tensor([[0.5, 0, 0.04]]))
    torch.testing.assert_close(box_ioa(others, one), torch.tensor([[0.25], [0.0], [1.0]]))


def test_iou_equals_torchvision_and_is_defined_for_empty_boxes():
    boxes, others = random_boxes(30), random_boxes(20)
    torch.testing.assert_close(box_iou(boxes, others), box_iou(boxes, others))
    empty = torch.tensor([[3.0, 3, 3, 3]])
    assert box_iou(empty, empty).tolist() == [[0.0]]
    assert box_ioa(empty, empty).tolist() == [[0.0]]
    assert box_iou(boxes[:0], others).shape == (0, 20)
