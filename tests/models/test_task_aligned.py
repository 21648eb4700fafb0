"""The task-aligned head: its assignment by hand and against a naive one, its losses, its parts."""

import math

import pytest
import torch

from support.losses import losses_of
from visionkit.models import heads
from visionkit.models.heads.dense import Locations, locations_of
from visionkit.models.heads.task_aligned import TaskAligned
from visionkit.ops.boxes import box_iou
from visionkit.types import Batch, Level

LEVELS = {"p3": Level(16, 8), "p4": Level(16, 16)}
CLASSES = ["circle", "square", "star"]
ARGUMENTS = {"radius": 1.5, "top_k": 10, "alpha": 0.5, "beta": 1.0}


def row_of_cells(count, size=8.0):
    """Cells in a row, their centers at y = 8."""
    x = torch.arange(1, count + 1) * size
    centers = torch.stack([x, torch.full_like(x, 8)], 1)
    return Locations(centers, torch.full((count,), size), [count], (64, 64))


def target(boxes, labels, **more):
    labels = torch.tensor(labels, dtype=torch.int64)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(len(labels), 4)
    size = {"size": (64, 64), "orig_size": (64, 64)}
    return {"image_id": 1, **size, "boxes": boxes, "labels": labels, **more}


def batch_of(*targets):
    return Batch(torch.zeros(len(targets), 3, 64, 64, dtype=torch.uint8), list(targets))


def features(count, **kwargs):
    return {
        name: torch.randn(count, level.channels, 64 // level.stride, 64 // level.stride, **kwargs)
        for name, level in LEVELS.items()
    }


def small_head(**arguments):
    torch.manual_seed(0)
    return TaskAligned(LEVELS, CLASSES, num_convs=1, **arguments)


def align(*predictions_and_objects, radius, **arguments):
    return small_head(center_radius=radius, **arguments).align(*predictions_and_objects)


# --- Which cell detects what ---------------------------------------------------------------------


@pytest.fixture
def worked():
    """An object over three cells of a row of five, whose boxes overlap it by 1/2, 1 and 3/4."""
    objects = torch.tensor([[4.0, 4, 28, 12]])
    boxes = torch.tensor(
        [[4.0, 4, 16, 12], [4, 4, 28, 12], [4, 4, 22, 12], [4, 4, 28, 12], [4, 4, 28, 12]]
    )
    scores = torch.tensor([[0.9, 0.25], [0.9, 0.25], [0.9, 1.0], [0.9, 1.0], [0.9, 1.0]])
    return scores, boxes, row_of_cells(5), objects, torch.tensor([1])


def test_the_best_aligned_cells_take_an_object_by_hand(worked):
    """Alignments sqrt(score) x IoU: 1/4, 1/2, 3/4; the last two cells are outside the object."""
    matched, quality = align(*worked, **{**ARGUMENTS, "top_k": 2})
    assert matched.tolist() == [-1, 0, 0, -1, -1]
    # The target of the best cell is the highest IoU of the chosen, 1; of the other its share.
    torch.testing.assert_close(quality, torch.tensor([0, 2 / 3, 1, 0, 0]))


def test_top_k_bounds_how_many(worked):
    for top_k, count in [(1, 1), (3, 3), (100, 3)]:
        matched, quality = align(*worked, **{**ARGUMENTS, "top_k": top_k})
        assert (matched >= 0).sum() == (quality > 0).sum() == count


def test_the_radius_is_in_cells_around_the_center(worked):
    matched, _ = align(*worked, **{**ARGUMENTS, "radius": 0.5})
    assert matched.tolist() == [-1, 0, -1, -1, -1]


def test_a_cell_that_two_objects_want_takes_the_one_it_overlaps_more():
    objects = torch.tensor([[0.0, 0, 16, 16], [0, 0, 12, 16]])
    boxes = torch.tensor([[0.0, 0, 12, 16]])
    matched, quality = align(
        torch.ones(1, 1), boxes, row_of_cells(1), objects, torch.tensor([0, 0]), **ARGUMENTS
    )
    assert matched.tolist() == [1] and quality.tolist() == [1.0]


def test_no_objects():
    matched, quality = align(
        torch.rand(4, 2),
        torch.rand(4, 4),
        row_of_cells(4),
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        **ARGUMENTS,
    )
    assert matched.tolist() == [-1] * 4 and not quality.any()


def naive(scores, boxes, points, objects, labels, *, radius, top_k, alpha, beta):
    """The definition, cell by cell."""
    overlaps = box_iou(objects, boxes)
    wanted, candidates = [], []
    for n, (x1, y1, x2, y2) in enumerate(objects.tolist()):
        alignment = {}
        for p, ((x, y), size) in enumerate(
            zip(points.centers.tolist(), points.strides, strict=True)
        ):
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * size
            if x1 < x < x2 and y1 < y < y2 and near:
                alignment[p] = float(scores[p, labels[n]] ** alpha * overlaps[n, p] ** beta)
        candidates.append(alignment)
    nearest = naive_nearest(candidates, points, objects)
    for alignment in candidates:
        alignment = {p: value for p, value in alignment.items() if p not in nearest}
        best = sorted(alignment, key=alignment.get, reverse=True)[:top_k]
        wanted.append({p: alignment[p] for p in best if alignment[p] > 0})
    matched, quality = [-1] * len(boxes), [0.0] * len(boxes)
    for p in range(len(boxes)):
        by = [n for n in range(len(objects)) if p in wanted[n]]
        if by:
            matched[p] = max(by, key=lambda n: float(overlaps[n, p]))
    for n in range(len(objects)):
        own = [p for p in wanted[n] if matched[p] == n]
        for p in own:
            scale = max(float(overlaps[n, q]) for q in own) / max(wanted[n][q] for q in own)
            quality[p] = wanted[n][p] * scale
    for p, n in nearest.items():
        matched[p], quality[p] = n, max(0.1, float(overlaps[n, p]))
    return matched, quality


def naive_nearest(candidates, points, objects):
    """For the cells nearest to objects without candidates, which object they take."""
    only = {p for own in candidates if len(own) == 1 for p in own}
    wanted = {}
    for n, own in enumerate(candidates):
        if not own:
            x, y = ((objects[n, :2] + objects[n, 2:]) / 2).tolist()
            distances = {
                p: (x - u) ** 2 + (y - v) ** 2
                for p, (u, v) in enumerate(points.centers.tolist())
                if p not in only
            }
            p = min(distances, key=distances.get)
            wanted.setdefault(p, []).append((distances[p], n))
    return {p: min(by)[1] for p, by in wanted.items()}


def test_an_object_smaller_than_a_cell_gets_the_nearest_cell():
    """By hand: 3 x 3 pixels around (19, 8); the cells are 8 pixels apart. Its target is the IoU,
    at least 0.1: a box elsewhere has none."""
    objects = torch.tensor([[17.5, 6.5, 20.5, 9.5]])
    for box, wanted in (([17.5, 6.5, 20.5, 12.5], 0.5), ([100.0, 0, 110, 9], 0.1)):
        boxes = torch.tensor([box]).expand(5, 4)
        arguments = (torch.full((5, 1), 0.5), boxes, row_of_cells(5), objects, torch.tensor([0]))
        matched, quality = align(*arguments, **ARGUMENTS)
        assert matched.tolist() == [-1, 0, -1, -1, -1]
        assert quality.tolist() == pytest.approx([0, wanted, 0, 0, 0])


@pytest.mark.parametrize("name", ["TaskAligned", "FCOS"])
def test_objects_smaller_than_a_cell_are_in_the_loss(name):
    """Of the head with one image with three objects of 3 pixels that hold no cell."""
    head = getattr(heads, name)(LEVELS, CLASSES, num_convs=1)
    assert head.cell == 8
    boxes = [[9.5, 9.5, 12.5, 12.5], [33.5, 9.5, 36.5, 12.5], [49.5, 49.5, 52.5, 52.5]]
    losses = head.loss(features(1), batch_of(target(boxes, [0, 1, 2])))
    assert losses["box_reg"].sum > 0
    assert losses["box_reg"].count >= (3 if name == "FCOS" else 0.3 - 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_a_naive_assignment_gives(seed):
    g = torch.Generator().manual_seed(seed)
    points = locations_of(LEVELS, features(1))
    corner = torch.rand(9, 2, generator=g) * 40
    objects = torch.cat([corner, corner + 6 + 30 * torch.rand(9, 2, generator=g)], 1)
    reach = 4 + 16 * torch.rand(len(points.centers), 4, generator=g)
    boxes = torch.cat([points.centers - reach[:, :2], points.centers + reach[:, 2:]], 1)
    scores = torch.rand(len(boxes), 3, generator=g)
    labels = torch.randint(0, 3, (9,), generator=g)
    arguments = {"radius": 2.5, "top_k": 4, "alpha": 0.5, "beta": 6.0}
    matched, quality = align(scores, boxes, points, objects, labels, **arguments)
    expected, expected_quality = naive(scores, boxes, points, objects, labels, **arguments)
    assert matched.tolist() == expected and (matched >= 0).sum() > 9
    torch.testing.assert_close(quality, torch.tensor(expected_quality), atol=1e-5, rtol=0)


# --- The head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"focal_beta": 1.0}])
def test_losses_by_hand(arguments):
    """From the assignment: the quality focal loss of all cells, and 1 - GIoU of those that
    detect, weighted by their target scores."""
    head = small_head(box_weight=3.0, **arguments).eval()
    maps, truth = features(1), target([[8, 8, 40, 48], [40, 20, 62, 60]], [1, 2])
    with torch.no_grad():
        losses, output = losses_of(head, maps, batch_of(truth)), head.outputs(maps)
    points = locations_of(LEVELS, maps)
    reach = output.distances[0] * points.strides[:, None]
    boxes = torch.cat([points.centers - reach[:, :2], points.centers + reach[:, 2:]], 1)
    probs = output.class_logits[0].sigmoid()
    matched, quality = align(
        probs, boxes, points, truth["boxes"], truth["labels"], **{**ARGUMENTS, "beta": 6.0}
    )
    classification = box_reg = 0.0
    for p, n in enumerate(matched.tolist()):
        for k in range(3):
            wanted = float(quality[p]) if n >= 0 and truth["labels"][n] == k else 0.0
            prob = float(probs[p, k])
            entropy = -wanted * math.log(prob) - (1 - wanted) * math.log(1 - prob)
            classification += abs(prob - wanted) ** arguments.get("focal_beta", 2.0) * entropy
        if n >= 0:
            (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[p].tolist(), truth["boxes"][n].tolist()
            hull = (max(x2, u2) - min(x1, u1)) * (max(y2, v2) - min(y1, v1))
            shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            giou = shared / union - (hull - union) / hull
            box_reg += float(quality[p]) * (1 - giou)
    total = max(1.0, float(quality.sum()))
    assert float(losses["classification"]) == pytest.approx(classification / total, rel=1e-4)
    assert float(losses["box_reg"]) == pytest.approx(3 * box_reg / total, rel=1e-4)


def test_crowds_are_neither_objects_nor_background():
    maps = features(1)
    crowd = {"iscrowd": torch.tensor([True])}
    cells = locations_of(LEVELS, maps).centers
    inside = ((cells > 0) & (cells < 40)).all(1)
    head = small_head()
    head.eval()
    logits = []
    head.classification.predict.register_forward_hook(
        lambda module, inputs, output: logits.append(output) or output.retain_grad()
    )
    losses = losses_of(head, maps, batch_of(target([[0, 0, 40, 40]], [0], **crowd)))
    sum(losses.values()).backward()
    pushed = torch.cat([x.grad.flatten(2)[0].T for x in logits]).abs().sum(1) > 0
    assert torch.equal(pushed, ~inside) and losses["box_reg"] == 0


def test_the_order_of_crowds_and_objects_does_not_matter():
    head = small_head().eval()
    maps = features(1)
    boxes = [[0, 0, 40, 40], [20, 20, 60, 60]]
    one = target(boxes, [0, 2], iscrowd=torch.tensor([True, False]))
    other = target(boxes[::-1], [2, 0], iscrowd=torch.tensor([False, True]))
    first, second = (losses_of(head, maps, batch_of(t)) for t in (one, other))
    assert first == second and first["box_reg"] > 0


def test_unlabeled_images_count_for_nothing():
    head = small_head().eval()
    maps = features(2)
    known = target([[5, 5, 40, 50]], [1])
    unknown = {key: known[key] for key in ("image_id", "size", "orig_size")}
    both = losses_of(head, maps, batch_of(known, unknown))
    alone = losses_of(head, {k: x[:1] for k, x in maps.items()}, batch_of(known))
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value)


def test_each_level_has_norms_of_its_own_and_shares_the_convolutions():
    head = small_head()
    assert len(head.classification.convs) == 1 and len(head.classification.norms) == 2
    head.train()
    maps = features(4)
    maps["p4"] = maps["p4"] * 10 + 5
    head(maps)
    means = [norms[0].running_mean for norms in head.regression.norms]
    assert not torch.allclose(*means, atol=0.1)


def test_predictions_are_clipped_to_the_image_and_scaled_back():
    head = small_head(score_threshold=0.0, nms_iou=1.0, max_detections=7).eval()
    head.regression.predict.bias.data.fill_(3.0)
    shown = {**target([], []), "size": (48, 64), "orig_size": (96, 128)}
    with torch.no_grad():
        (found,) = head.predict(features(1), batch_of(shown))
    assert len(found["boxes"]) == 7
    assert found["boxes"].min() == 0 and found["boxes"][:, 3].max() == 96
    assert found["boxes"][:, 2].max() == 128
    assert (found["scores"].diff() <= 0).all()


def test_huge_distances_stay_finite():
    head = small_head().eval()
    head.regression.predict.bias.data.fill_(1000.0)
    losses = losses_of(head, features(1), batch_of(target([[5, 5, 40, 50]], [1])))
    assert all(loss.isfinite() for loss in losses.values())
