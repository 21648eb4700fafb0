"""Every transform and random lists of them keep masks, boxes and maps on what the image shows.

The truth of a mask is the object where the pixels of its image went: `support.places`.
"""

import operator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from support.places import places
from visionkit.config.components import components
from visionkit.data import transforms as T
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import Source
from visionkit.data.transforms import mixing, policies
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
RESAMPLE = (*map(type, FIRST), T.Affine, T.Perspective, T.RandAugment, T.TrivialAugment)
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
    monkeypatch.setattr(mixing, "FAINT", 0.0)  # objects of both images stay objects


class Blend(T.MixUp):
    """It shows the image with bright pixels in the third channel alone: as `places` marks one."""

    def __call__(self, sample, rng, size, others):
        return super().__call__(
            sample, Shares(rng, float((sample.image[2] > 184).any())), size, others
        )


class Shares:
    """Random numbers, but for a share that is known."""

    def __init__(self, rng, share):
        self.rng, self.share = rng, share

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def beta(self, a, b):
        return self.share


SEVERAL = [T.Mosaic(), T.Mosaic(grid=9), Blend(), T.CopyPaste(share=0.7, min_visible=0.0)]


def moved(samples, transforms, seed):
    """The first of the samples; the others are those of the transforms that take some."""
    rng = np.random.default_rng(seed)
    ready = iter([resized_first(sample, transforms, SIZE) for sample in samples])
    whole = next(ready)
    for place, transform in enumerate(transforms):
        others = [next(ready) for _ in range(getattr(transform, "others", 0))]
        for before in transforms[:place]:
            if not getattr(before, "others", 0):
                others = [before(other, rng, SIZE) for other in others]
        whole = transform(whole, rng, SIZE, *([others] if others else ()))
    return whole


def bounds(mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def agree(mask, truth, least=0.97):
    """They differ in few pixels; those of a small object in more, but at its edge (two pixels)."""
    iou = float((mask & truth).sum() / (mask | truth).sum())
    assert iou >= least or truth.sum() < 1000
    if iou < 0.97:
        ends = [max_pool2d(s * truth[None].float(), 5, 1, 2) for s in (-1, 1)]
        assert not ((-ends[0] == ends[1]) & (mask != truth)).any()


def check(samples, transforms, seed):
    # What was dropped is found by numbers that the attributes carry along.
    starts = np.cumsum([0, *(len(sample.boxes) for sample in samples)])
    numbered = [
        replace(one, attributes=start + np.arange(len(one.boxes), dtype=np.float32)[:, None])
        for one, start in zip(samples, starts, strict=False)
    ]
    last = moved(numbered, transforms, seed)
    target = last.target()
    kept = target["attributes"][:, 0].long().tolist()
    resized = any(isinstance(one, T.ScaleJitter | T.RandomResizedCrop) for one in transforms)
    resized |= len(samples) > 1  # to the size of a tile or of the other image
    follows = np.zeros(starts[-1], bool)
    if last.cut is not None:
        follows[last.attributes[:, 0].astype(int)] = last.cut
    for which, sample in enumerate(samples):
        move = partial(moved, transforms=transforms, seed=seed)
        if (place := places(move, samples, which)) is None:
            continue
        for number, outline in enumerate(sample.segmentations, starts[which]):
            truth = place.mask(outline)
            if number not in kept:
                assert truth.sum() <= 2 * max(last.size)
                continue
            mask, box = (target[key][kept.index(number)] for key in ("masks", "boxes"))
            agree(mask, truth)
            if follows[number]:
                assert (bounds(mask) - box).abs().max() <= 1
                continue
            # A box that moved as numbers is the old one; a mask may lack a tip below a pixel.
            before = sample.boxes[number - starts[which]]
            assert np.abs(place.before(box.tolist()) - before).max() <= 0.5
            assert resized or (bounds(mask) - box).abs().max() <= 2
    if len(samples) == 1 and place is not None:
        check_map(sample, place, target["semantic"], transforms)


def check_map(sample, place, semantic, transforms):
    """Each transform that samples the map again may move its edges by half a pixel."""
    resampled = sum(
        isinstance(one, RESAMPLE) + isinstance(one, T.RandAugment) for one in transforms
    )
    x, y = np.floor(place.points()).astype(int).transpose(2, 0, 1)
    truth = sample.semantic[y.clip(0, sample.size[0] - 1), x.clip(0, sample.size[1] - 1)]
    known = (semantic != IGNORE) & torch.from_numpy(place.shown)
    for label in truth[known].unique():
        least = 0.97 if resampled < 2 else 0.93
        agree((semantic == label) & known, (truth == label) & known, least)


@few_or_many
@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_masks_boxes_and_maps_move_with_the_image(shapes, transform, without_colors):
    for index in range(len(shapes)):
        check([shapes[index]], [transform], seed=index)


def several(shapes, index, transforms):
    """As many images as the transforms take."""
    count = 1 + sum(getattr(one, "others", 0) for one in transforms)
    return [shapes[(index + i) % len(shapes)] for i in range(count)]


@few_or_many
@pytest.mark.parametrize("several_images", [False, True], ids=["one", "several"])
def test_random_lists_move_all_alike(shapes, several_images, without_colors):
    for index in range(len(shapes)):
        rng = np.random.default_rng(index)
        transforms = [OTHERS[i] for i in rng.integers(len(OTHERS), size=rng.integers(1, 4))]
        if rng.random() < 0.7:
            transforms.insert(0, FIRST[rng.integers(len(FIRST))])
        if several_images:
            place = rng.integers(len(transforms) + 1)
            transforms.insert(place, SEVERAL[index % len(SEVERAL)])
        check(several(shapes, index, transforms), transforms, seed=index)


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
