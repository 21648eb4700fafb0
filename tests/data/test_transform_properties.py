"""Every transform and random lists of them keep masks, boxes and maps on what the image shows.

The truth of a mask is the mask itself, moved as an image: three objects are the three channels.
"""

import operator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from visionkit.config.components import components
from visionkit.data import transforms as T
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import Source
from visionkit.data.transforms import policies
from visionkit.data.transforms.compose import resized_first
from visionkit.types import IGNORE

SIZE = 320
COLORS = ("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize")
FIRST = [T.ScaleJitter(low=0.6), T.RandomResizedCrop(), T.Letterbox()]
OTHERS = [
    T.HorizontalFlip(p=1),
    T.VerticalFlip(p=1),
    T.RandomCrop(low=0.4, p=1),
    T.Rotate90(p=1),
    T.Affine(degrees=45, shear=15),
    T.Affine(degrees=180, translate=0.3),
    T.Perspective(distortion=0.5, p=1),
    T.RandAugment(num_ops=3, magnitude=20),
    T.TrivialAugment(),
]
GEOMETRIC = [*FIRST, *OTHERS]
PIXELS = [
    T.ColorJitter(),
    T.Equalize(p=1),
    T.GaussianBlur(sigma=(0.5, 2.0), p=1),  # weaker ones may round to no change
    T.Grayscale(p=1),
    T.Jpeg(p=1),
    T.Noise(std=(2.0, 12.0), p=1),
]


@pytest.fixture(scope="module")
def shapes(request):
    return Shapes(num_images=request.param, size=SIZE)


few_or_many = pytest.mark.parametrize(
    "shapes", [4, pytest.param(500, marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def without_colors(monkeypatch):
    """Policies that move the image only, so that the pixels of a mask stay what they are."""
    for name in (*COLORS, "AutoContrast", "Equalize"):
        monkeypatch.setitem(policies.OPERATIONS, name, lambda sample, strength, fill: sample)


def moved(sample, transforms, seed):
    rng = np.random.default_rng(seed)
    sample = resized_first(sample, transforms, SIZE)
    for transform in transforms:
        sample = transform(sample, rng, SIZE)
    return sample


def truths(sample, transforms, seed):
    """The masks (N, h, w) of all objects, also those that are dropped, moved as images."""
    masks = sample.target()["masks"]
    found = []
    for start in range(0, len(masks), 3):
        image = torch.zeros(3, *sample.size, dtype=torch.uint8)
        image[: len(masks) - start] = masks[start : start + 3] * 255
        found.append(moved(replace(sample, image=image), transforms, seed).image > 127)
    return torch.cat(found)[: len(masks)]


def bounds(mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def agree(mask, truth):
    """They differ in few pixels, or in more at the edge (two pixels), as of a small star."""
    if truth.sum() >= 1000:
        iou = float((mask & truth).sum() / (mask | truth).sum())
        assert iou >= 0.93
        ends = [max_pool2d(s * truth[None].float(), 5, 1, 2) for s in (-1, 1)]
        inside = -ends[0] == ends[1]
        assert iou >= 0.97 or not (inside & (mask != truth)).any()


def check(sample, transforms, seed):
    truth = truths(sample, transforms, seed)
    # What was dropped is found by numbers that the attributes carry along.
    numbered = replace(sample, attributes=np.arange(len(truth), dtype=np.float32)[:, None])
    last = moved(numbered, transforms, seed)
    target = last.target()
    kept = target["attributes"][:, 0].long()
    height, width = target["size"]
    resized = any(isinstance(one, T.ScaleJitter | T.RandomResizedCrop) for one in transforms)
    follows = np.zeros(len(truth), bool) if last.cut is None else last.cut
    for number, mask, box in zip(kept, target["masks"], target["boxes"], strict=True):
        # Boxes that move as numbers alone are of the old mask, whose tips the new one may lack.
        if follows[number] or not resized:
            assert (bounds(mask) - box).abs().max() <= (1 if follows[number] else 2)
        agree(mask, truth[number])
    dropped = [n for n in range(len(truth)) if n not in kept]
    assert all(truth[n].sum() <= 2 * max(height, width) for n in dropped)
    known = target["semantic"] != IGNORE
    for label in target["labels"].unique():
        of_class = target["masks"][target["labels"] == label].any(0) & known
        agree(of_class, target["semantic"] == label + 1)


@few_or_many
@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_masks_boxes_and_maps_move_with_the_image(shapes, transform, without_colors):
    for index in range(len(shapes)):
        check(shapes[index], [transform], seed=index)


@few_or_many
def test_random_lists_move_all_alike(shapes, without_colors):
    for index in range(len(shapes)):
        rng = np.random.default_rng(index)
        transforms = [OTHERS[i] for i in rng.integers(len(OTHERS), size=rng.integers(1, 4))]
        if rng.random() < 0.7:
            transforms.insert(0, FIRST[rng.integers(len(FIRST))])
        check(shapes[index], transforms, seed=index)


@few_or_many
@pytest.mark.parametrize("transform", PIXELS, ids=lambda t: type(t).__name__)
def test_labels_stay_where_only_pixels_change(shapes, transform):
    for index in range(len(shapes)):
        sample = shapes[index]
        changed = transform(sample, np.random.default_rng(index), SIZE)
        assert changed.image.dtype == torch.uint8 and changed.size == sample.size
        assert not torch.equal(changed.image, sample.image)
        assert replace(changed, image=sample.image) == sample


def test_every_transform_is_here():
    tested = {type(one) for one in [*GEOMETRIC, *PIXELS]} | {T.RandomErasing}
    alone = {one for one in components("transforms").values() if not getattr(one, "others", 0)}
    assert alone <= tested  # those of several images: test_mixing.py


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_workers_and_after_a_resume(workers):
    dataset = Shapes(num_images=6, size=64)
    erasing = T.RandomErasing(p=1)
    for transforms in ([FIRST[2], *OTHERS, *PIXELS, erasing], [T.Affine(), FIRST[0], T.Rotate90()]):
        source = Source("main", ["x"], dataset, None, 3, 64, transforms)
        whole = source.train_batches(seed=5, start=0, workers=0)
        resumed = source.train_batches(seed=5, start=2, workers=workers)
        expected = [next(whole) for _ in range(4)][2:]
        for one, other in zip(expected, (next(resumed) for _ in range(2)), strict=True):
            assert torch.equal(one.images, other.images)
            for mine, theirs in zip(one.targets, other.targets, strict=True):
                assert mine.keys() == theirs.keys()
                for key, value in mine.items():
                    same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
                    assert same(value, theirs[key]), key
