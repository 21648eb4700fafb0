"""One-stage masks: the dynamic convolutions by a naive loop, which locations learn a mask, what is
unknown, and masks in the pixels of the image."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import nn

from support.losses import losses_of
from visionkit.models.heads.aligned_mask import AlignedMask, dynamic_convs, layout, sample_boxes
from visionkit.models.heads.task_aligned import Assigned, TaskAligned
from visionkit.ops.losses import mask_loss
from visionkit.types import Batch, Level

LEVELS = {"p3": Level(16, 8), "p4": Level(16, 16)}
CLASSES = ["circle", "square", "star"]
SIZE = (64, 64)


def target(boxes, labels, masks=None, **more):
    """Objects whose masks fill their boxes, unless `masks` (N,) says that they are not known."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    filled = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for n, (x1, y1, x2, y2) in enumerate(boxes.long().tolist()):
        filled[n, y1:y2, x1:x2] = masks is None or masks[n]
    size = {"size": SIZE, "orig_size": SIZE}
    labels = torch.tensor(labels, dtype=torch.int64)
    return {"image_id": 1, **size, "boxes": boxes, "labels": labels, "masks": filled, **more}


def batch_of(*targets):
    return Batch(torch.zeros(len(targets), 3, *SIZE, dtype=torch.uint8), list(targets))


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, 16, 64 // stride, 64 // stride, generator=generator)
        for name, (_, stride) in LEVELS.items()
    }


def small_head(**arguments):
    torch.manual_seed(0)
    arguments = {"num_convs": 1, "mask_convs": 1, "mask_size": 7, **arguments}
    return AlignedMask(LEVELS, CLASSES, **arguments).eval()


# --- Dynamic convolutions -------------------------------------------------------------------------


def test_a_dynamic_convolution_by_hand():
    """Two channels to two to one: relu(1x + 2y + 1), relu(-x), then 3a + 5b - 2."""
    row = torch.tensor([[1.0, 2, -1, 0, 1, 0, 3, 5, -2]])
    points = torch.tensor([[[1.0, -4], [2, 1]]])  # (x, y) = (1, 2) and (-4, 1)
    assert dynamic_convs(points, row, (2, 2, 1)).tolist() == [[[3 * 6 - 2, 5 * 4 - 2]]]
    assert layout((2, 2, 1)) == [4, 2, 2, 1]


def test_dynamic_convolutions_are_convolutions_with_weights_of_their_own():
    """Against torch's layers, one object at a time."""
    torch.manual_seed(1)
    widths = (5, 4, 4, 1)
    points, rows = torch.randn(3, 5, 6), torch.randn(3, sum(layout(widths)))
    found = dynamic_convs(points, rows, widths)
    for one, row, result in zip(points, rows, found, strict=True):
        values, first = one.view(1, 5, 2, 3), 0
        for number, (before, after) in enumerate(((5, 4), (4, 4), (4, 1))):
            conv = nn.Conv2d(before, after, 1)
            weight, bias = row[first:].split([before * after, len(row[first:]) - before * after])
            conv.weight.data, conv.bias.data = weight.view(after, before, 1, 1), bias[:after]
            values = conv(values if number == 0 else values.relu())
            first += before * after + after
        torch.testing.assert_close(result.view(1, 1, 2, 3), values)


def test_a_grid_is_read_at_the_centers_of_its_cells():
    """From a map that holds the x and y of its cells' centers, in pixels."""
    centers = torch.arange(16) * 4.0 + 2
    maps = torch.stack([centers.expand(16, -1), centers[:, None].expand(-1, 16)])[None]
    boxes = torch.tensor([[[10.0, 20, 30, 52], [7, 3, 9, 5]]])
    found = sample_boxes(maps, boxes, 4, stride=4)
    assert found.shape == (1, 2, 2, 4, 4)
    xs, ys = [12.5, 17.5, 22.5, 27.5], [24.0, 32, 40, 48]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([xs] * 4))
    torch.testing.assert_close(found[0, 0, 1], torch.tensor([ys] * 4).T)
    assert found[0, 1, 0, 0].tolist() == pytest.approx([7.25, 7.75, 8.25, 8.75])


def test_a_grid_is_interpolated_as_torch_does_it():
    """Also beyond the centers of the outermost cells, for maps of any sides."""
    torch.manual_seed(2)
    maps, corners = torch.randn(2, 3, 8, 12), torch.rand(2, 5, 2) * 60
    boxes = torch.cat([corners, corners + torch.rand(2, 5, 2) * 40], 2).clamp(max=64)
    boxes[0, 0] = torch.tensor([0.0, 0, 96, 64])
    found = sample_boxes(maps, boxes, 6, stride=8)
    share = (torch.arange(6) + 0.5) / 6
    for image in range(2):
        for box, points in zip(boxes[image], found[image], strict=True):
            x, y = box[0] + share * (box[2] - box[0]), box[1] + share * (box[3] - box[1])
            grid = torch.stack([(x / 48 - 1).expand(6, 6), (y / 32 - 1)[:, None].expand(6, 6)], 2)
            wanted = nn.functional.grid_sample(
                maps[image, None], grid[None], padding_mode="border", align_corners=False
            )
            torch.testing.assert_close(points, wanted[0], atol=1e-5, rtol=1e-4)


def test_logits_are_those_of_a_loop_over_boxes_and_cells():
    head, maps = small_head(mask_channels=3, mask_size=4), torch.randn(2, 3, 16, 16)
    boxes = torch.tensor([[[4.0, 8, 40, 60]], [[20, 2, 62, 30]]])
    rows = torch.randn(2, 1, head.controller.out_features)
    found = head.mask_logits(maps, rows, boxes)
    points = sample_boxes(maps, boxes, 4, stride=4)
    for image in range(2):
        for i in range(4):
            for j in range(4):
                place = torch.tensor([(j + 0.5) / 2 - 1, (i + 0.5) / 2 - 1])  # -1..1 in the box
                values = torch.cat([points[image, 0, :, i, j], place])
                logit = dynamic_convs(values[None, :, None], rows[image], head.mask_widths)
                assert float(found[image, 0, i, j]) == pytest.approx(float(logit), abs=1e-5)


def test_the_map_is_finer_than_the_finest_level():
    maps = small_head(mask_channels=5).mask_features(features(2))
    assert maps.shape == (2, 5, 16, 16)
    assert small_head(mask_channels=5, mask_stride=8).mask_features(features(2)).shape[2] == 8
    assert small_head(mask_channels=5, mask_stride=64).mask_features(features(2)).shape[2] == 8


# --- What is learned ------------------------------------------------------------------------------


@dataclass
class Locations:
    """Objects and target scores of locations in a row, and which objects have a mask."""

    objects: list
    scores: list
    known: list

    def sampled(self, count):
        scores = torch.zeros(len(self.scores), 3)
        scores[:, 1] = torch.tensor(self.scores)
        assigned = Assigned(torch.tensor(self.objects), scores, scores > -1)
        masks = torch.tensor(self.known)[:, None, None].expand(-1, 4, 4)
        rows, weights = small_head(mask_samples=count).sampled(assigned, masks)
        assert weights.tolist() == pytest.approx([self.scores[row] for row in rows])
        return rows.tolist()


def test_the_best_location_of_each_object_comes_first_then_the_second():
    row = Locations([0, -1, 0, 1, 2, 0, 1, 2], [0.9, 0, 0.8, 0.3, 0.7, 0.95, 0.6, 0.2], [True] * 3)
    assert row.sampled(3) == [5, 4, 6]
    assert row.sampled(5) == [5, 4, 6, 0, 3]
    assert row.sampled(100) == [5, 4, 6, 0, 3, 7, 2]


def test_locations_of_an_unknown_mask_are_not_sampled():
    row = Locations([0, 0, 1, 2, -1], [0.9, 0.8, 0.7, 0.6, 0.0], [False, True, False])
    assert row.sampled(100) == [2]
    assert Locations([0, -1], [0.5, 0.0], [False]).sampled(100) == []


def test_mask_loss_by_hand():
    """Two cells with probabilities 1/2 and 3/4, of which the first is the object: the mean of
    -log(1/2) and -log(1/4), and 1 - (2 x 1/2 + 1) / (1/4 + 9/16 + 1 + 1)."""
    logits = torch.tensor([[[0.0, math.log(3)]]])
    entropy = (math.log(2) + math.log(4)) / 2
    found = mask_loss(logits, torch.tensor([[[1.0, 0.0]]]))
    assert found.tolist() == pytest.approx([entropy + 1 - 2 / (13 / 16 + 2)])


def test_the_loss_is_the_mean_over_the_sampled_locations_by_target_score(monkeypatch):
    """With a mask loss of 1 for each location it is the weight, whatever the scores are."""
    head = small_head(mask_weight=3.0)
    monkeypatch.setattr(
        "visionkit.models.heads.aligned_mask.mask_loss", lambda logits, wanted: wanted[:, 0, 0]
    )
    truth = target([[0, 0, 40, 48], [40, 20, 62, 60]], [1, 2])
    truth["masks"][:] = True
    assert losses_of(head, features(1), batch_of(truth))["mask"].item() == pytest.approx(3)


def test_targets_of_the_grid_are_shares_of_its_cells(monkeypatch):
    """A grid of 4 x 4 in a box of 16 x 16 whose left 6 columns are the object: 1.5 cells."""
    wanted = []
    monkeypatch.setattr(
        "visionkit.models.heads.aligned_mask.mask_loss",
        lambda logits, targets: wanted.append(targets) or logits.sum((1, 2)) * 0,
    )
    truth = target([[16, 16, 32, 32]], [0])
    truth["masks"][0, :, 22:] = False
    head = small_head(mask_size=4)
    head.regression.predict.bias.data.fill_(3.0)  # large boxes, which overlap too little
    head.loss(features(1), batch_of(truth))
    assert torch.equal(wanted[0][0], torch.tensor([[1.0, 0.5, 0, 0]] * 4))


def test_unknown_masks_give_a_zero_loss_on_the_graph():
    head, boxes = small_head(), [[0, 0, 40, 48], [40, 20, 62, 60]]
    nothing = head.loss(features(1), batch_of(target(boxes, [1, 2], masks=[False, False])))
    assert nothing["mask"].sum == 0 and nothing["mask"].count == 0
    nothing["mask"].sum.backward()
    assert all((p.grad == 0).all() for p in head.controller.parameters())
    assert all((p.grad == 0).all() for p in head.mask_branch.parameters())
    assert nothing["box_reg"].sum > 0
    one, both = (
        head.loss(features(1), batch_of(target(boxes, [1, 2], masks=known)))["mask"]
        for known in ([True, False], [True, True])
    )
    assert 0 < one.count < both.count and 0 < one.sum < both.sum


def test_the_mask_of_a_crowd_is_not_learned():
    boxes = [[0, 0, 40, 48], [40, 20, 62, 60]]
    crowd = target(boxes, [1, 2], iscrowd=torch.tensor([False, True]))
    other = target(boxes, [1, 2], iscrowd=torch.tensor([False, True]))
    other["masks"][1] = torch.rand(SIZE) < 0.5
    first, second = (losses_of(small_head(), features(1), batch_of(t)) for t in (crowd, other))
    assert first == second and first["mask"] > 0


def test_masks_of_partly_labeled_images_are_learned():
    """An object teaches its mask, whether all of its class are labeled or not."""
    whole = target([[0, 0, 40, 48]], [1])
    part = {**whole, "labeled": torch.tensor([True, False, False])}
    first, second = (losses_of(small_head(), features(1), batch_of(t)) for t in (whole, part))
    assert first["mask"] == second["mask"] > 0
    assert first["classification"] > second["classification"]


def test_boxes_learn_as_in_the_detector():
    head = small_head()
    plain = TaskAligned(LEVELS, CLASSES, num_convs=1).eval()
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if "mask" not in k}, False)
    truths = batch_of(target([[0, 0, 40, 48]], [1]), target([], []))
    with_masks, without = (losses_of(h, features(2), truths) for h in (head, plain))
    assert {k: v for k, v in with_masks.items() if k != "mask"} == without


def test_memory_is_bounded():
    """However many objects and however large the image: `mask_samples` grids for each image."""
    head = small_head(mask_samples=5)
    sizes = []
    convs = head.mask_logits
    head.mask_logits = lambda maps, rows, boxes: (
        sizes.append(rows.shape) or convs(maps, rows, boxes)
    )
    boxes = [[8 * i, 8 * j, 8 * i + 16, 8 * j + 16] for i in range(6) for j in range(6)]
    head.loss(features(2), batch_of(*[target(boxes, [0] * 36)] * 2))
    assert sizes == [(1, 5, head.controller.out_features)] * 2


# --- What is predicted ----------------------------------------------------------------------------


def outputs(head, boxes, scores, biases):
    """As of `forward`: masks that are the same everywhere, by the bias of the last convolution."""
    rows = torch.zeros(1, len(boxes), head.controller.out_features)
    rows[0, :, -1] = torch.tensor(biases)
    return {
        "boxes": torch.tensor([boxes], dtype=torch.float32),
        "scores": torch.tensor([scores]),
        "labels": torch.zeros(1, len(boxes), dtype=torch.int64),
        "parameters": rows,
        "maps": torch.zeros(1, 8, 16, 16),
    }


def test_a_mask_is_that_of_the_box_that_stays():
    """The second box suppresses the first; the last one scores too little."""
    boxes = [[0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 50, 60], [0, 40, 9, 60]]
    head = small_head(score_threshold=0.2)
    found = head.postprocess(outputs(head, boxes, [0.7, 0.9, 0.8, 0.1], [-9.0, 2, -3, 9]), SIZE)
    assert found["count"].tolist() == [2] and found["masks"].shape == (1, 4, 7, 7)
    assert "parameters" not in found
    for row, logit in enumerate([2.0, -3]):
        wanted = torch.tensor(logit).sigmoid().expand(7, 7)
        torch.testing.assert_close(found["masks"][0, row], wanted)
    assert not found["masks"][0, 2:].any()


def test_masks_are_in_original_pixels():
    head = small_head(score_threshold=0.2)
    raw = outputs(head, [[8, 16, 24, 40], [40, 8, 60, 16]], [0.9, 0.8], [9.0, -9])
    shown = {**target([], []), "orig_size": (128, 192)}
    found, empty = head.decode(raw, batch_of(shown))[0]["masks"]
    assert found["size"] == [128, 192] and coco_mask.area(empty) == 0
    mask = coco_mask.decode(found)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert abs(rows[[0, -1]] - [32, 79]).max() <= 1 and abs(columns[[0, -1]] - [24, 71]).max() <= 1
    assert mask.sum() == pytest.approx(48 * 48, rel=0.06)


def test_without_images_or_objects():
    head = small_head(score_threshold=1.0)
    assert head.predict(features(0), batch_of()) == []
    (found,) = head.predict(features(1), batch_of(target([], [])))
    assert found["masks"] == [] and len(found["boxes"]) == 0
