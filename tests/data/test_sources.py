"""Batches: a function of seed and step alone; padded; faults reach the user unwrapped."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.checks.findings import Problems
from visionkit.data.coco.records import read_categories
from visionkit.data.loading.samplers import InfiniteBatchSampler
from visionkit.data.loading.source import Source
from visionkit.data.sample import Sample
from visionkit.data.transforms import HorizontalFlip, ScaleJitter
from visionkit.engine.check import check
from visionkit.errors import ConfigError, DataError
from visionkit.types import Classes


class Images:
    """Images of different sizes whose pixels tell their index; one may be corrupt."""

    keys = ("class_id",)
    classes: ClassVar = {"class_id": Classes(("a", "b"), (0, 1))}

    def __init__(self, count, corrupt=None):
        self.count, self.corrupt = count, corrupt

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.corrupt:
            raise DataError(f"image {index} is corrupt")
        image = torch.full((3, 20 + index, 40), index, dtype=torch.uint8)
        image[:, :, :20] += 100
        return Sample(image, image_id=index, orig_size=(20 + index, 40), class_id=index % 2)


def source(count=10, corrupt=None, transforms=(), image_size=40):
    images = Images(count, corrupt)
    return Source("main", ["x"], images, images, 4, image_size, transforms)


def test_a_stream_passes_over_the_data_end_to_end():
    stream = iter(InfiniteBatchSampler(10, batch_size=4, seed=0))
    batches = [next(stream) for _ in range(5)]
    indices = [index for batch in batches for index, _ in batch]
    positions = [position for batch in batches for _, position in batch]
    assert positions == list(range(20))
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]


def test_a_stream_can_start_anywhere_and_fills_batches_from_few_images():
    stream = iter(InfiniteBatchSampler(3, batch_size=8, seed=1))
    batches = [next(stream) for _ in range(4)]
    assert next(iter(InfiniteBatchSampler(3, batch_size=8, seed=1, start=3))) == batches[3]
    assert [len(batch) for batch in batches] == [8] * 4
    assert next(iter(InfiniteBatchSampler(3, batch_size=8, seed=2))) != batches[0]


def shapes(count, seed=0):
    """Sizes of images that are wide, square or high."""
    choices = np.array([[24, 40], [32, 32], [40, 24]])
    return choices[np.random.default_rng(seed).integers(3, size=count)]


def grouped(length, batch_size, start=0):
    sizes = shapes(length)
    return iter(
        InfiniteBatchSampler(
            length, batch_size, seed=5, start=start, ratios=sizes[:, 0] / sizes[:, 1]
        )
    )


def test_grouped_batches_hold_the_same_images_with_the_same_positions():
    plain = iter(InfiniteBatchSampler(80, 4, seed=5))
    expected = [ticket for _ in range(40) for ticket in next(plain)]
    found = take(grouped(80, 4), 40)
    assert sorted(t for batch in found for t in batch) == sorted(expected)
    assert [t for batch in found for t in batch] != expected
    for pool in range(0, 40, 8):  # no image leaves the 8 batches that it came in
        together = {t for batch in found[pool : pool + 8] for t in batch}
        assert together == set(expected[pool * 4 : (pool + 8) * 4])
    assert next(grouped(80, 4, start=13)) == found[13]


def test_grouped_batches_are_of_few_shapes_in_no_order_of_shape():
    sizes = shapes(800)
    counts, first = [], []
    for batch in take(grouped(800, 8), 96):
        counts.append(len({tuple(sizes[index]) for index, _ in batch}))
        first.append(tuple(sizes[batch[0][0]]))
    assert np.mean(counts) < 1.5  # at most two of eight batches lie on a border
    assert len(set(first[::8])) == 3


def test_a_grouped_batch_repeats_an_image_only_where_two_passes_meet():
    for batch in take(grouped(8, 4), 40):  # several passes in each pool
        assert len({index for index, _ in batch}) == 4


def test_grouping_needs_the_sizes_of_the_images():
    ungroupable = source()
    ungroupable.group_by_aspect_ratio = True
    with pytest.raises(ConfigError, match=r"data.main.group_by_aspect_ratio: .*remove this key"):
        ungroupable.train_batches(seed=0, start=0, workers=0)
    ungroupable.train.sizes = np.array([(20 + i, 40) for i in range(10)])
    batches = take(ungroupable.train_batches(seed=0, start=0, workers=0), 8)
    seen = [t["image_id"] for batch in batches for t in batch.targets]
    counts = np.bincount(seen, minlength=10)
    assert counts.sum() == 32 and set(counts) <= {3, 4}  # three passes, and a part of the fourth


def test_known_sizes_are_grouped_unless_it_is_refused():
    known = source()
    known.train.sizes = np.array([(20, 40), (40, 20)] * 5)
    found = {}
    for choice in (None, True, False):
        known.group_by_aspect_ratio = choice
        batches = take(known.train_batches(seed=0, start=0, workers=0), 8)
        found[choice] = [[t["image_id"] for t in batch.targets] for batch in batches]
    assert found[None] == found[True] != found[False]


def take(batches, count):
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers):
    flipping = source(transforms=[HorizontalFlip(p=0.5)])
    alone = take(flipping.train_batches(seed=3, start=1, workers=0), 4)
    helped = take(flipping.train_batches(seed=3, start=1, workers=workers), 4)
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.images, two.images)
        assert [t["image_id"] for t in one.targets] == [t["image_id"] for t in two.targets]
    flipped = {bool(b.images[i, 0, 0, 0] < 100) for b in alone for i in range(len(b))}
    assert flipped == {True, False}


def test_batches_are_padded_with_zeros_to_a_multiple_of_32():
    batch = next(source().val_batches(workers=0))
    assert batch.images.shape == (4, 3, 32, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for i, (h, w) in enumerate(batch.sizes):
        assert (h, w) == (20 + i, 40)
        assert (batch.images[i, :, :h, 20:w] == i).all()
        assert not batch.images[i, :, h:].any() and not batch.images[i, :, :, w:].any()


def test_batches_of_a_fixed_size_have_that_size():
    """Images that a transform left smaller are padded up to it."""
    batch = next(source(image_size="50x30").val_batches(workers=1))
    assert batch.images.shape == (4, 3, 30, 50) and batch.sizes == [(30, 50)] * 4
    assert [t["orig_size"] for t in batch.targets] == [(20 + i, 40) for i in range(4)]
    small = source(image_size="50x30", transforms=[ScaleJitter(low=0.5, high=0.5)])
    batch = next(small.train_batches(seed=0, start=0, workers=0))
    assert batch.images.shape == (4, 3, 30, 50) and batch.sizes == [(15, 25)] * 4
    assert not batch.images[:, :, 15:].any() and not batch.images[:, :, :, 25:].any()
    grouped = source(image_size="50x30")
    grouped.train.sizes = np.array([(20, 40), (40, 20)] * 5)
    assert grouped._aspect_ratios() is None  # nothing to gain


def test_validation_sees_every_image_once():
    seen = [t["image_id"] for b in source(9).val_batches(workers=2) for t in b.targets]
    assert seen == list(range(9))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_an_error_of_the_users(workers):
    with pytest.raises(DataError, match=r"^image 5 is corrupt$"):
        list(source(corrupt=5).val_batches(workers=workers))


def test_images_are_resized_first():
    batch = next(source(image_size=80).val_batches(workers=0))
    assert batch.sizes[0] == (40, 80) and batch.targets[0]["orig_size"] == (20, 40)


def test_global_random_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(source(transforms=[HorizontalFlip(p=0.5)]).train_batches(seed=0, start=0, workers=0), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


SPLITS = ("train", "val")
BLANK = ["", " ", "\t", "\u200b\u202e"]


@pytest.mark.parametrize("name", BLANK)
def test_a_class_with_a_blank_name_is_an_error(name, tmp_path):
    """In class folders, a list in the config and the categories of a COCO file."""
    for split, names in (("train", ["cat", name or " "]), ("val", ["cat"])):
        for folder in names:
            (tmp_path / split / folder).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / folder / "a.png")
    config = {
        "task": "classification",
        "data": {split: {"type": "ImageFolder", "root": str(tmp_path / split)} for split in SPLITS},
    }
    with pytest.raises(DataError, match=r"data.train: class \d of 'class_id' has the blank name"):
        build_sources(load_config(config), SPLITS)
    config["data"]["train"]["root"] = str(tmp_path / "val")
    config["data"]["train"]["classes"] = ["cat", name]
    report = check(config)
    assert [found.key for found in report.findings if found.kind == "value"] == ["class_id"]

    problems = Problems("truth.json")
    read_categories([{"id": 1, "name": "cat"}, {"id": 2, "name": name}], problems)
    with pytest.raises(DataError, match=r"'name' is .*: must be a string that is not blank"):
        problems.raise_any()
