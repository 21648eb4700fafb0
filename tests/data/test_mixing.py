"""Images made of several: all labels move with their pixels, and none becomes wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from visionkit.data.datasets.shapes import Shapes
from visionkit.data.masks import Bitmap, Polygons, extent
from visionkit.data.sample import FILL, Sample
from visionkit.data.transforms import CopyPaste, CutMix, MixUp, Mosaic
from visionkit.errors import ConfigError
from visionkit.types import IGNORE


class Middle:
    """Random numbers that are all in the middle of their range, and nothing is shuffled."""

    def uniform(self, low, high, size=None):
        return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    def beta(self, a, b):
        return 0.5

    def permutation(self, count):
        return np.arange(count)

    def integers(self, low, high=None):
        return (high or low) // 2

    def random(self, size=None):
        return 0.5 if size is None else np.zeros(size)


def box_of(x1, y1, x2, y2):
    return Polygons(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float), np.array([4]))


def scene(value, side=40, boxes=((10, 20, 30, 30),), **columns):
    """An image of one color whose objects are filled boxes of class `value`; the map has it too."""
    semantic = torch.zeros(side, side, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        semantic[y1:y2, x1:x2] = value
    made = Sample(
        torch.full((3, side, side), value, dtype=torch.uint8),
        image_id=value,
        orig_size=(side, side),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.full(len(boxes), value),
        iscrowd=np.zeros(len(boxes), bool),
        area=np.full(len(boxes), 200, np.float32),
        segmentations=[box_of(*box) for box in boxes],
        semantic=semantic,
    )
    return replace(made, **columns)


def mosaic_of(*scenes, grid=4, size=80):
    first, *others = scenes
    return Mosaic(grid=grid, scale=(1.0, 1.0))(first, Middle(), size, others)


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (9, 3)])
def test_a_mosaic_of_known_images(grid, side):
    """Images of the size of a tile: each is in its place as it was."""
    whole = mosaic_of(*map(scene, range(1, grid + 1)), grid=grid, size=40 * side)
    target = whole.target()
    assert whole.size == (40 * side, 40 * side)
    assert target["labels"].tolist() == list(range(1, grid + 1))
    for index in range(grid):
        top, left = 40 * (index // side), 40 * (index % side)
        tile = slice(top, top + 40), slice(left, left + 40)
        assert (whole.image[(slice(None), *tile)] == index + 1).all()
        assert target["boxes"][index].tolist() == [left + 10, top + 20, left + 30, top + 30]
        inside = torch.zeros(whole.size, dtype=torch.bool)
        inside[top + 20 : top + 30, left + 10 : left + 30] = True
        assert (target["masks"][index] == inside).all()
        assert ((target["semantic"] == index + 1) == inside).all()


def test_images_are_cropped_to_their_tiles_and_the_rest_is_gray():
    wide = scene(1, boxes=((0, 0, 40, 40),))  # at twice the size of a tile
    small = [scene(value, boxes=((0, 0, 40, 40),)) for value in (2, 3, 4)]
    whole = Mosaic(scale=(2.0, 2.0))(wide, Middle(), 80, small)
    assert [box.tolist() for box in whole.target()["boxes"]] == [
        [0, 0, 40, 40], [40, 0, 80, 40], [0, 40, 40, 80], [40, 40, 80, 80]
    ]  # fmt: skip
    assert whole.target()["masks"].sum((1, 2)).tolist() == [1600] * 4
    whole = Mosaic(scale=(0.5, 0.5))(wide, Middle(), 80, small)
    assert [box.tolist() for box in whole.target()["boxes"]] == [
        [20, 20, 40, 40], [40, 20, 60, 40], [20, 40, 40, 60], [40, 40, 60, 60]
    ]  # fmt: skip
    covered = whole.image[0] != FILL
    assert covered.sum() == 1600 and covered[20:60, 20:60].all()
    assert (whole.semantic[~covered] == IGNORE).all() and (whole.semantic[covered] < 5).all()


def test_what_a_part_does_not_label_is_not_labeled_in_the_whole():
    masks = [np.array(row) for row in ([True, True, False], [True, False, True])]
    parts = [scene(v) for v in (1, 2, 1, 2)]
    parts[1].labeled, parts[2].labeled = masks
    assert mosaic_of(*parts).target()["labeled"].tolist() == [True, False, False]
    assert "labeled" not in mosaic_of(*map(scene, (1, 2, 1, 2))).target()
    parts[3] = replace(parts[3], boxes=None, segmentations=None)
    assert "boxes" not in mosaic_of(*parts).target()  # an image without any labels

    parts = [scene(v) for v in (1, 2, 1, 2)]
    parts[0].semantic_labeled = np.array([True, True, False])
    parts[1] = replace(parts[1], semantic=None, segmentations=None)
    target = mosaic_of(*parts).target()
    assert (target["semantic"][:40, 40:] == IGNORE).all()
    assert (target["semantic"][:40, :40] < IGNORE).all()
    assert target["semantic_labeled"].tolist() == [True, True, False]
    assert target["masks"].any((1, 2)).tolist() == [True, False, True, True]  # unknown
    parts[2].attributes = np.ones((1, 2), np.float32)
    attributes = mosaic_of(*parts).target()["attributes"]
    assert attributes[2].tolist() == [1, 1] and attributes[[0, 1, 3]].isnan().all()
    given = replace(scene(1), class_id=(1.0, 0.0), identity=3)
    assert not {"class_id", "identity"} & mosaic_of(given, *parts[1:]).target().keys()


def test_mixup_blends_pixels_and_shares_classes():
    one, other = (replace(scene(v), class_id=c) for v, c in ((1, (1.0, 0.0)), (200, (0.0, 1.0))))
    rng = np.random.default_rng(0)
    share = np.random.default_rng(0).beta(0.2, 0.2)
    whole = MixUp()(one, rng, 40, [other])
    assert whole.class_id == pytest.approx((share, 1 - share))
    assert (whole.image == round(share + 200 * (1 - share))).all()
    assert whole.labels.tolist() == [1, 200] and whole.semantic is None
    rare = [bool(part < 0.2) for part in (share, 1 - share)]
    assert whole.iscrowd.tolist() == rare and any(rare)
    assert not MixUp()(one, Middle(), 40, [other]).iscrowd.any()
    unknown = replace(other, class_id=None)
    assert "class_id" not in MixUp()(one, Middle(), 40, [unknown]).target()
    several = replace(one, class_id=(1.0, float("nan"), 0.0)), replace(other, class_id=(0.0, 1, 0))
    mixed = MixUp()(several[0], Middle(), 40, [several[1]]).target()["class_id"]
    assert mixed.tolist() == pytest.approx([0.5, np.nan, 0], nan_ok=True)


def test_cutmix_shares_classes_by_pixels():
    one, other = (replace(scene(v), class_id=c) for v, c in ((1, (1.0, 0.0)), (200, (0.0, 1.0))))
    shares = []
    for seed in range(20):
        whole = CutMix()(one, np.random.default_rng(seed), 40, [other])
        kept = (whole.image[0] == 1).double().mean().item()
        assert whole.class_id == pytest.approx((kept, 1 - kept))
        assert ((whole.image == 1) | (whole.image == 200)).all() and whole.boxes is None
        shares.append(kept)
    assert min(shares) < 0.3 and max(shares) > 0.7
    assert (one.image == 1).all()


def paste(one, other, **options):
    """With the other image at its own size and place, neither flipped nor moved."""
    return CopyPaste(scale=(1.0, 1.0), share=1.0, **options)(one, Middle(), 40, [other])


def test_pasted_objects_cover_what_is_below():
    below = scene(1, boxes=((0, 0, 20, 10), (20, 20, 30, 30), (30, 30, 32, 32)))
    above = scene(2, boxes=((10, 0, 20, 20), (28, 28, 40, 40)))
    whole = paste(below, above)
    target = whole.target()
    assert target["labels"].tolist() == [1, 1, 2, 2]  # the third is covered
    assert target["boxes"].tolist() == [
        [0, 0, 10, 10], [20, 20, 30, 30], [10, 0, 20, 20], [28, 28, 40, 40]
    ]  # fmt: skip
    assert target["masks"].sum((1, 2)).tolist() == [100, 96, 200, 144]
    assert ((whole.image[0] == 2) == target["masks"][2:].any(0)).all()
    assert ((target["semantic"] == 2) == target["masks"][2:].any(0)).all()
    assert ((target["semantic"] == 1) == target["masks"][:2].any(0)).all()
    assert (below.image == 1).all() and len(below.boxes) == 3


def test_little_visible_objects_are_dropped_and_regions_stay():
    above = scene(2, boxes=((0, 0, 18, 10),))
    strip = scene(1, boxes=((0, 0, 20, 10),))  # of which a tenth is visible
    assert paste(strip, above).target()["boxes"].tolist() == [[18, 0, 20, 10], [0, 0, 18, 10]]
    assert paste(strip, above, min_visible=0.11).labels.tolist() == [2]
    region = replace(strip, iscrowd=np.array([True]))
    assert paste(region, above, min_visible=0.9).labels.tolist() == [1, 2]
    without = replace(strip, segmentations=[Polygons(np.zeros((0, 2)), np.zeros(0, np.int64))])
    assert paste(without, above).target()["boxes"][0].tolist() == [0, 0, 20, 10]
    assert paste(without, above, min_visible=0.11).labels.tolist() == [2]


def test_objects_of_classes_that_are_not_labeled_are_not_pasted():
    one = replace(scene(1, boxes=()), labeled=np.array([True, True, False]))
    other = scene(2)
    whole = paste(one, other)
    assert whole.not_pasted == whole.target()["not_pasted"] == 1 and not len(whole.boxes)
    assert (whole.image == 1).all()
    both = scene(2, boxes=((0, 0, 5, 5), (10, 10, 20, 20)))
    both.labels = np.array([1, 2])
    whole = paste(one, both)
    assert whole.labels.tolist() == [1] and whole.not_pasted == 1
    assert whole.labeled.tolist() == [True, True, False]
    crowd = replace(other, iscrowd=np.array([True]))
    unknown = replace(other, segmentations=[Polygons(np.zeros((0, 2)), np.zeros(0, np.int64))])
    assert not len(paste(scene(1, boxes=()), crowd).boxes)
    assert not len(paste(scene(1, boxes=()), unknown).boxes)


def test_semantic_maps_of_pasted_objects_hold_what_is_known():
    one, other = scene(1, boxes=()), scene(2)
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[20:30, 10:30] = True
    pasted = paste(one, replace(other, semantic=None)).semantic
    assert (pasted[inside] == IGNORE).all() and (pasted[~inside] == 0).all()
    partly = replace(other, semantic_labeled=np.array([True, True, False]))
    assert (paste(one, partly).semantic[inside] == IGNORE).all()
    labels = paste(replace(one, semantic_labeled=np.array([True, False, True])), other)
    assert labels.semantic_labeled.tolist() == [True, False, True]
    assert paste(replace(one, semantic=None), other).semantic is None


def test_ranges_are_checked():
    for cls in (Mosaic, CopyPaste):
        with pytest.raises(ConfigError, match=r"scale: got \[2.0, 1.0\]"):
            cls(scale=(2.0, 1.0))


def shown(sample, row):
    """The sample, its image being the mask of one object: what becomes of it is the truth."""
    mask = torch.zeros(sample.size, dtype=torch.uint8)
    if row is not None:
        sample.segmentations[row].paint(mask.numpy())
    return replace(sample, image=(255 * mask).expand(3, -1, -1))


def bounds_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def check_objects(transform, dataset, seed, count):
    """Each large object of the whole is where its pixels are. The number of compared ones. The tip
    of a star may lose its pixels, so that only round objects have boxes like their masks."""
    rng = np.random.default_rng(seed)
    samples = [dataset[i] for i in rng.integers(len(dataset), size=count)]
    for number, one in enumerate(samples):  # to find the objects again
        one.area = np.arange(len(one.boxes)) + 100.0 * number
        for row, mask in enumerate(one.target()["masks"].numpy()):
            if (number + row) % 3 == 0 or isinstance(one.segmentations[row], Bitmap):
                one.segmentations[row], one.boxes[row] = Bitmap.of(mask), bounds_of(mask)
            else:
                one.boxes[row] = extent(one.segmentations[row].points).clip(0, 320)
    compared = 0
    whole = transform(samples[0], np.random.default_rng(seed), 320, samples[1:])
    target = whole.target()
    for box, mask, key in zip(target["boxes"], target["masks"], target["area"], strict=True):
        label = samples[int(key) // 100].labels[int(key) % 100]
        if dataset.classes["labels"].names[label] in ("circle", "ring"):
            assert np.abs(box.numpy() - bounds_of(mask.numpy())).max() <= 1
        if mask.sum() < 1000:
            continue
        number, row = divmod(int(key), 100)
        marked = [shown(one, row if k == number else None) for k, one in enumerate(samples)]
        rng_again = np.random.default_rng(seed)
        truth = transform(marked[0], rng_again, 320, marked[1:]).image[0] > 127
        iou = (truth & mask).sum() / (truth | mask).sum()
        assert iou >= (0.97 if mask.sum() >= 5000 else 0.93)
        compared += 1
    return compared


@pytest.mark.parametrize(
    "times", [3, pytest.param(125, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_masks_and_boxes_are_where_the_pixels_are(times):
    dataset = Shapes(num_images=10, size=320)
    for transform, images in ((Mosaic(), 4), (Mosaic(grid=9), 9), (CopyPaste(share=0.7), 2)):
        compared = [check_objects(transform, dataset, seed, images) for seed in range(times)]
        assert sum(compared) > times
