"""The fast RoIAlign against torchvision's operators, and its weighted sums over table rows."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from visionkit.ops import roi_align as module
from visionkit.ops.roi_align import flatten_boxes, pyramid_level, roi_align, weighted_sums

STRIDES = [4, 8, 16, 32]


def pyramid(h=512, w=640, channels=5, batch=2, strides=STRIDES):
    torch.manual_seed(0)
    return [
        torch.randn(batch, channels, math.ceil(h / s), math.ceil(w / s), requires_grad=True)
        for s in strides
    ]


def random_boxes(count, h=512, w=640):
    center = torch.rand(count, 2) * torch.tensor([w, h])
    extent = torch.exp(1.2 * torch.randn(count, 2) + 4.7)
    return torch.cat([center - extent / 2, center + extent / 2], 1)  # many reach outside


def torchvision_align(features, boxes, output_size, sampling_ratio):
    names = [str(i) for i in range(len(features))]
    pool = MultiScaleRoIAlign(names, output_size, sampling_ratio)
    return pool(dict(zip(names, features, strict=True)), boxes, [(512, 640)] * len(features[0]))


@pytest.mark.parametrize(("output_size", "sampling_ratio"), [(7, 2), (14, 2), (3, 1), (4, 3)])
def test_equals_torchvision_forward_and_backward(output_size, sampling_ratio):
    features = pyramid()
    boxes = [random_boxes(60), random_boxes(30)]
    ours = roi_align(features, *flatten_boxes(boxes), STRIDES, output_size, sampling_ratio)
    theirs = torchvision_align(features, boxes, output_size, sampling_ratio)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    upstream = torch.randn_like(theirs)
    our_grads = torch.autograd.grad(ours, features, upstream)
    their_grads = torch.autograd.grad(theirs, features, upstream)
    torch.testing.assert_close(our_grads, their_grads, atol=1e-5, rtol=1e-5)
    assert len(set(pyramid_level(torch.cat(boxes), STRIDES).tolist())) == 4


def test_boxes_outside_the_image_and_without_extent():
    features = pyramid()
    boxes = torch.tensor(
        [
            [-300.0, -300, -200, -200],  # far outside: zeros
            [-30.0, -20, 900, 700],
            [20.0, 30, 20, 30],
            [639.0, 511, 640, 512],
            [0.0, 0, 640, 512],
        ]
    )
    ours = roi_align(features, *flatten_boxes([boxes, boxes[:0]]), STRIDES, 7)
    torch.testing.assert_close(
        ours, torchvision_align(features, [boxes, boxes[:0]], 7, 2), atol=1e-5, rtol=0
    )
    assert not ours[0].any()


def test_no_boxes_at_all_is_empty_and_keeps_the_graph():
    features = pyramid()
    pooled = roi_align(features, *flatten_boxes([torch.zeros(0, 4), torch.zeros(0, 4)]), STRIDES, 7)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert not features[0].grad.any()


def test_gpu_path_gives_the_same():
    features = pyramid()
    boxes, image = random_boxes(40), torch.arange(40) % 2
    rois = module.Rois(boxes, image, pyramid_level(boxes, STRIDES))
    arguments = (rois, STRIDES, 7, 2)
    torch.testing.assert_close(
        module._pool_by_level(features, *arguments),
        module._pool_bags(features, *arguments),
        atol=1e-5,
        rtol=0,
    )


def test_bfloat16_features_give_bfloat16_and_gradients_summed_in_float32():
    features = pyramid(channels=8)
    half = [f.detach().bfloat16().requires_grad_() for f in features]
    boxes = [random_boxes(300), random_boxes(300)]
    pooled = roi_align(half, *flatten_boxes(boxes), STRIDES, 7)
    assert pooled.dtype == torch.bfloat16
    exact = roi_align(features, *flatten_boxes(boxes), STRIDES, 7)
    torch.testing.assert_close(pooled.float(), exact, atol=0.05, rtol=0.02)
    with torch.no_grad():
        inferred = roi_align(half, *flatten_boxes(boxes), STRIDES, 7)
    assert inferred.dtype == torch.bfloat16
    torch.testing.assert_close(inferred.float(), exact, atol=0.05, rtol=0.02)
    half_grads = torch.autograd.grad(pooled.sum(), half)
    grads = torch.autograd.grad(exact.sum(), features)
    for ours, reference in zip(half_grads, grads, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), reference, atol=0.02, rtol=0.01)


def test_boxes_of_images_are_flattened_in_order():
    boxes = torch.rand(3, 2, 4)
    merged, image = flatten_boxes([boxes[0], boxes[1, :0], boxes[2]])
    assert merged.equal(boxes[[0, 2]].flatten(0, 1))
    assert image.tolist() == [0, 0, 2, 2]
    merged, image = flatten_boxes(boxes)
    assert merged.equal(boxes.flatten(0, 1))
    assert image.tolist() == [0, 0, 1, 1, 2, 2]


def squares(*sides):
    return torch.tensor([[0.0, 0, side, side] for side in sides])


def test_level_follows_the_size_of_the_box():
    sides = squares(10, 111.9, 112, 223.9, 224, 447.9, 448, 5000)
    assert pyramid_level(sides, STRIDES).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_of_equal_stride_and_missing_octaves():
    assert pyramid_level(squares(10, 224, 900), [32, 32]).tolist() == [0, 0, 0]
    assert pyramid_level(squares(50, 120, 230, 500), [4, 16]).tolist() == [0, 0, 1, 1]


def by_loop(table, rows, weights, counts):
    sums, at = [], 0
    for count in counts.tolist():
        picked = range(at, at + count)
        terms = [weights[i] * table[rows[i]] for i in picked]
        sums.append(sum(terms, torch.zeros(table.shape[1], dtype=table.dtype)))
        at += count
    return torch.stack(sums)


def some(num_rows, num_bags, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 5, (num_bags,), generator=generator)
    counts[0] = 0  # an empty bag
    rows = torch.randint(0, num_rows, (int(counts.sum()),), generator=generator)
    return rows, torch.rand(len(rows), generator=generator), counts


def test_sums_and_gradients_equal_a_loop():
    table = torch.randn(9, 3, requires_grad=True)
    rows, weights, counts = some(7, 20)  # rows 7 and 8 are in no bag
    ours, loop = weighted_sums(table, rows, weights, counts), by_loop(table, rows, weights, counts)
    torch.testing.assert_close(ours, loop)
    upstream = torch.randn_like(ours)
    (our_gradient,) = torch.autograd.grad(ours, table, upstream)
    (loop_gradient,) = torch.autograd.grad(loop, table, upstream)
    torch.testing.assert_close(our_gradient, loop_gradient)
    assert not our_gradient[7:].any()


def test_gradients_of_long_sums_in_bfloat16_are_rounded_once():
    counts = torch.ones(4096, dtype=torch.int64)
    table = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    sums = weighted_sums(table, torch.zeros(4096, dtype=torch.int64), torch.ones(4096), counts)
    sums.sum().backward()
    assert table.grad.tolist() == [[4096, 4096]]  # added up in bfloat16 it would stop at 256


@pytest.mark.parametrize("most", [10, 2**16 - 1, 2**16, 2**20])
def test_the_order_is_stable_for_tables_of_any_size(most):
    rows = torch.randint(0, most + 1, (500,))
    rows[:3] = torch.tensor([most, 0, most])
    rows = torch.cat([rows, rows])
    assert torch.equal(module._stable_order(rows), torch.argsort(rows, stable=True))


def test_no_bags_and_no_rows():
    table = torch.ones(4, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert weighted_sums(table, nothing, torch.zeros(0), nothing).shape == (0, 2)
    empty = weighted_sums(table, nothing, torch.zeros(0), torch.zeros(3, dtype=torch.int64))
    assert empty.tolist() == [[0, 0]] * 3
    empty.sum().backward()
    assert not table.grad.any()
