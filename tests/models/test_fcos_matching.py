import math

import pytest
import torch

from visionkit.models.heads.dense import Locations, locations_of
from visionkit.models.heads.fcos import Truth, match, side_ranges, true_centerness
from visionkit.types import Level

LEVELS = {"p3": Level(32, 8), "p4": Level(32, 16), "p5": Level(32, 32)}


def locations_over(size):
    """And their ranges."""
    features = {
        k: torch.zeros(1, 32, *(s // level.stride for s in size)) for k, level in LEVELS.items()
    }
    found = locations_of(LEVELS, features)
    return found, side_ranges(LEVELS, found)


def target(boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "iscrowd": torch.zeros(len(boxes)).bool()}


def random_target(count, generator, smallest=8):
    corner = torch.rand(count, 2, generator=generator) * 45
    extent = smallest + torch.rand(count, 2, generator=generator) * 26
    return target(torch.cat([corner, corner + extent], 1).tolist())


def naive_match(locations, ranges, boxes, iscrowd, radius):
    matched, ignored, seen = [], [], [0] * len(boxes)
    columns = (locations.centers, locations.strides, ranges)
    for (x, y), size, (low, high) in zip(*(c.tolist() for c in columns), strict=True):
        best, best_area, in_crowd = -1, math.inf, False
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = [x - x1, y - y1, x2 - x, y2 - y]
            if min(sides) <= 0:
                continue
            if iscrowd[i]:
                in_crowd = True
                continue
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * size
            box_area = (x2 - x1) * (y2 - y1)
            takes = near and low < max(sides) < high
            seen[i] += takes
            if takes and box_area < best_area:
                best, best_area = i, box_area
        matched.append(best)
        ignored.append(in_crowd)
    unseen = [i for i in range(len(boxes)) if not seen[i] and not iscrowd[i]]
    return naive_nearest(matched, seen, unseen, locations, ranges, boxes), ignored


def naive_nearest(matched, seen, unseen, locations, ranges, boxes):
    """With the objects that no location takes: each goes to the nearest one of its level."""
    wanted = {}
    for i in unseen:
        x1, y1, x2, y2 = boxes[i].tolist()
        half = max(x2 - x1, y2 - y1) / 2
        distances = {
            p: (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2
            for p, (x, y) in enumerate(locations.centers.tolist())
            if ranges[p, 0] <= half < ranges[p, 1] and (matched[p] < 0 or seen[matched[p]] > 1)
        }
        if distances:
            nearest = min(distances, key=distances.get)
            wanted.setdefault(nearest, []).append((distances[nearest], i))
    return [min(wanted[p])[1] if p in wanted else m for p, m in enumerate(matched)]


@pytest.mark.parametrize("smallest", [1, 8])
@pytest.mark.parametrize("radius", [0.7, 1.5, 3.0])
def test_matching_equals_a_naive_loop(radius, smallest):
    generator = torch.Generator().manual_seed(7)
    targets = [random_target(n, generator, smallest) for n in (9, 0, 4)]
    targets[0]["iscrowd"][:3] = True
    locations, ranges = locations_over((64, 64))
    matched, ignored = match(locations, ranges, Truth.of(targets, "cpu"), radius)
    assert (matched >= 0).any() and ignored.any()
    for i, one in enumerate(targets):
        expected = naive_match(locations, ranges, one["boxes"], one["iscrowd"], radius)
        assert (matched[i].tolist(), ignored[i].tolist()) == expected


def test_matching_in_chunks_is_the_same():
    generator = torch.Generator().manual_seed(7)
    some = random_target(40, generator, smallest=17)  # each holds a location
    some_locations, some_ranges = locations_over((64, 64))
    centers, strides = some_locations.centers, some_locations.strides
    # More pairs than one chunk.
    many = Locations(centers.repeat(1500, 1), strides.repeat(1500), [], (64, 64))
    ranges = some_ranges.repeat(1500, 1)
    truth = Truth.of([some], "cpu")
    assert len(many.strides) * truth.labels.numel() > 2**22
    once = match(some_locations, some_ranges, truth, 1.5)[0]
    repeated = match(many, ranges, truth, 1.5)[0]
    assert torch.equal(once.repeat(1, 1500), repeated)


def test_objects_go_to_the_level_of_their_size():
    locations, ranges = locations_over((256, 256))
    boxes = [[0, 0, 40, 40], [60, 60, 160, 160], [0, 0, 250, 250]]
    matched, _ = match(locations, ranges, Truth.of([target(boxes)], "cpu"), 1.5)
    sizes = [set(locations.strides[matched[0] == i].tolist()) for i in range(3)]
    # The farthest side is up to 64 pixels off on the first level, to 128 on the second.
    assert sizes == [{8.0}, {8.0, 16.0}, {32.0}]


def test_an_object_smaller_than_a_cell_gets_the_nearest_location():
    """By hand: 3 x 3 pixels around (11, 9), 3 off the cell at (8, 8) and 5 off (16, 8); and around
    (11, 10), whose nearest cell is the same, and is farther."""
    locations, ranges = locations_over((64, 64))
    boxes = [[9.5, 7.5, 12.5, 10.5], [9.5, 8.5, 12.5, 11.5], [24, 24, 56, 56]]
    matched, _ = match(locations, ranges, Truth.of([target(boxes)], "cpu"), 1.5)
    found = (matched[0] == 0).nonzero()[:, 0]
    assert locations.centers[found].tolist() == [[8, 8]] and locations.strides[found] == 8
    assert not (matched[0] == 1).any()
    assert (matched[0] == 2).sum() > 1  # as without the small ones


def test_a_cell_outside_of_its_object_is_trained_to_be_its_center():
    box = torch.tensor([[9.0, 9.0, 12.0, 12.0]])
    assert true_centerness(torch.tensor([[8.0, 8.0]]), box).tolist() == [1]
    assert true_centerness(torch.tensor([[8.0, 16.0]]), box).tolist() == [1]


def test_centerness_is_one_in_the_middle_and_falls_to_the_sides():
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]] * 3)
    points = torch.tensor([[50.0, 50.0], [20.0, 50.0], [20.0, 80.0]])
    # sqrt(20/80 * 50/50) = 1/2 ; sqrt(20/80 * 20/80) = 1/4
    assert true_centerness(points, box).tolist() == pytest.approx([1, 0.5, 0.25])
