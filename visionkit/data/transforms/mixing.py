"""Transforms that make one training image of several.

Such a transform has an attribute `others`, how many more images it takes, and is called as
`transform(sample, rng, image_size, others)` with the probability `p`. `unfit` says by target key
why a head that learns it cannot be trained on its images.

Labels stay honest: a class counts as labeled in the whole if it is in every part. What one part
does not label is not labeled in the whole, or ignored there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import Fraction, Positive
from visionkit.data.masks import Bitmap, Polygons, extent, paint
from visionkit.data.resize import ImageSize, fit
from visionkit.data.sample import FILL, Sample
from visionkit.data.transforms.geometry import _random_window, check_span, window
from visionkit.types import IGNORE

FAINT = 0.2  # share of an image below which its objects are hardly to be seen
NO_IDENTITY = "an image of several shows no single identity"


class Mosaic:
    """Puts `grid` images (2x2 or 3x3) into one, at random sizes, with borders at random places
    (Bochkovskiy et al., "YOLOv4", 2020).

    Each image fills its tile as far as it reaches; the rest is gray, and ignored in semantic maps.
    It is resized and cropped in one, so that small tiles are cheap.

    scale: range of an image's size, times an equal part of the network's: with a grid of 4, at
        1.0 the longest side is half of the network's size.
    """

    others: int = 3
    resizes: ClassVar[bool] = True
    unfit: ClassVar[Mapping[str, str]] = {
        "class_id": "an image of several has no class of its own; use MixUp or CutMix",
        "identity": NO_IDENTITY,
    }

    def __init__(
        self,
        *,
        grid: Literal[4, 9] = 4,
        scale: tuple[Positive, Positive] = (1.0, 2.0),
        p: Fraction = 1.0,
    ):
        check_span("scale", scale)
        self.side, self.scale, self.p = (2 if grid == 4 else 3), scale, p
        self.others = grid - 1

    def __call__(
        self, sample: Sample, rng: np.random.Generator, size: ImageSize, others: Sequence[Sample]
    ) -> Sample:
        height, width = window(sample.size, size)
        rows, columns = (_borders(rng, length, self.side) for length in (height, width))
        samples = [sample, *others]
        image = sample.image.new_full((height, width, 3), FILL).permute(2, 0, 1)
        placed: list[Sample] = []
        for place, which in enumerate(rng.permutation(len(samples)).tolist()):
            row, column = divmod(place, self.side)
            top, left = rows[row], columns[column]
            space = rows[row + 1] - top, columns[column + 1] - left
            part, factor = samples[which], rng.uniform(*self.scale) / self.side
            scaled = [side * factor for side in fit(part.size, size)]
            part = _scaled_window(part, rng, scaled, space)
            # At the corner of its tile that is nearest to the middle.
            top += (space[0] - part.size[0]) * (self.side - 1 - row) // (self.side - 1)
            left += (space[1] - part.size[1]) * (self.side - 1 - column) // (self.side - 1)
            placed.append(part.onto(top, left, image))
        maps = [one.semantic for one in placed if one.semantic is not None]
        # At most one map has another value than IGNORE, which is the largest, at a pixel.
        semantic = torch.stack(maps).amin(0) if maps else None
        return _whole(sample, placed, image, semantic)


class MixUp:
    """Blends the image with another, in a ratio of Beta(`alpha`, `alpha`) (Zhang et al. 2018).

    The class of the image becomes the shares of both. Objects of both are kept; those of an image
    whose share is below 0.2 are regions to ignore. Give `alpha: 8` for objects, which makes the
    shares about equal.
    """

    others: ClassVar[int] = 1
    mixes_classes: ClassVar[bool] = True
    unfit: ClassVar[Mapping[str, str]] = {
        "semantic": "a pixel of two images has no single class; use Mosaic or CopyPaste",
        "identity": NO_IDENTITY,
    }

    def __init__(self, *, alpha: Positive = 0.2, p: Fraction = 0.5):
        self.alpha, self.p = alpha, p

    def __call__(
        self, sample: Sample, rng: np.random.Generator, size: ImageSize, others: Sequence[Sample]
    ) -> Sample:
        share = float(rng.beta(self.alpha, self.alpha))
        other = _alike(others[0], rng, sample.size)
        mixed = torch.lerp(other.image.float(), sample.image.float(), share)
        parts = [_faded(sample, share), _faded(other, 1 - share)]
        whole = _whole(sample, parts, mixed.round_().to(torch.uint8), None)
        return replace(whole, class_id=_shared(sample.class_id, other.class_id, share))


class CutMix:
    """Replaces a random box of the image by that part of another (Yun et al. 2019), for classes of
    images: each gets its share of the pixels. The share is of Beta(`alpha`, `alpha`)."""

    others: ClassVar[int] = 1
    mixes_classes: ClassVar[bool] = True
    unfit: ClassVar[Mapping[str, str]] = {
        "boxes": "it would cut objects at random; use Mosaic or CopyPaste",
        "semantic": "it is for classes of images; use Mosaic or CopyPaste",
        "identity": NO_IDENTITY,
    }

    def __init__(self, *, alpha: Positive = 1.0, p: Fraction = 0.5):
        self.alpha, self.p = alpha, p

    def __call__(
        self, sample: Sample, rng: np.random.Generator, size: ImageSize, others: Sequence[Sample]
    ) -> Sample:
        side = np.sqrt(1 - rng.beta(self.alpha, self.alpha))
        other = _alike(others[0], rng, sample.size)
        spans = []
        for length in sample.size:
            center, reach = rng.integers(length), round(length * side / 2)
            spans.append(slice(max(0, center - reach), min(length, center + reach)))
        image = sample.image.clone()
        image[:, spans[0], spans[1]] = other.image[:, spans[0], spans[1]]
        cut = np.prod([span.stop - span.start for span in spans]) / np.prod(sample.size)
        return Sample(
            image,
            sample.image_id,
            sample.orig_size,
            class_id=_shared(sample.class_id, other.class_id, 1 - float(cut)),
        )


class CopyPaste:
    """Pastes objects of another image, by their masks (Ghiasi et al. 2021).

    The other image is flipped at random and gets a random size and place; each of its objects is
    pasted with probability `share`. What it covers is lost to the objects below: their masks and
    boxes are those of the visible part, and those with less than `min_visible` of it are dropped.
    Semantic maps get the pixels of the other's map; without one they are ignored there. Objects
    without a mask, and of classes that are not labeled in the image, are not pasted; the loader
    reports how many of the latter there were.

    scale: range of the other image's size, times that at which it fits into this one.
    """

    others: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    unfit: ClassVar[Mapping[str, str]] = {
        "class_id": "the objects that it pastes may change the class of the image",
        "identity": NO_IDENTITY,
    }

    def __init__(
        self,
        *,
        share: Fraction = 0.5,
        scale: tuple[Positive, Positive] = (0.5, 1.5),
        min_visible: Fraction = 0.1,
        p: Fraction = 0.5,
    ):
        check_span("scale", scale)
        self.share, self.scale, self.min_visible, self.p = share, scale, min_visible, p

    def __call__(
        self, sample: Sample, rng: np.random.Generator, size: ImageSize, others: Sequence[Sample]
    ) -> Sample:
        other = others[0].hflip() if rng.random() < 0.5 else others[0]
        fitting = min(mine / its for mine, its in zip(sample.size, other.size, strict=True))
        factor = fitting * rng.uniform(*self.scale)
        other = _scaled_window(other, rng, [side * factor for side in other.size], sample.size)
        top, left = (
            int(rng.integers(mine - its + 1))
            for mine, its in zip(sample.size, other.size, strict=True)
        )
        if sample.boxes is None or other.boxes is None or other.segmentations is None:
            return sample
        assert other.labels is not None and other.iscrowd is not None
        known = np.array([one.known for one in other.segmentations], bool)
        chosen = known & ~other.iscrowd & (rng.random(len(known)) < self.share)
        labeled = chosen if sample.labeled is None else chosen & sample.labeled[other.labels]
        refused = int((chosen & ~labeled).sum())
        rows = np.flatnonzero(labeled)
        masks = paint([other.segmentations[i] for i in rows], other.size)
        seen = masks.any((1, 2))
        if not seen.any():
            return replace(sample, not_pasted=sample.not_pasted + refused)
        covered = np.zeros(sample.size, bool)
        inside = slice(top, top + other.size[0]), slice(left, left + other.size[1])
        covered[inside] = masks.any(0)
        below = self._visible(sample, covered)
        parts = [below, _rows(other, rows[seen]).pad(top, left, sample.size)]
        image, semantic = _pasted(sample, other, inside, torch.from_numpy(masks.any(0)))
        return replace(
            _whole(sample, parts, image, semantic),
            labeled=sample.labeled,
            semantic_labeled=sample.semantic_labeled,
            not_pasted=sample.not_pasted + refused,
        )

    def _visible(self, sample: Sample, covered: np.ndarray) -> Sample:
        """The objects of which enough is visible, without the `covered` (h, w) pixels."""
        assert sample.boxes is not None and sample.iscrowd is not None
        boxes, kept = sample.boxes.copy(), np.ones(len(sample.boxes), bool)
        cut = np.zeros(len(boxes), bool) if sample.cut is None else sample.cut.copy()
        outlines = [*(sample.segmentations or ())]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            rows, columns = slice(int(y1), math.ceil(y2)), slice(int(x1), math.ceil(x2))
            if not covered[rows, columns].any():
                continue
            mask = np.zeros(sample.size, bool)
            if has_mask := bool(outlines) and outlines[i].known:
                mask = paint([outlines[i]], sample.size)[0]
            else:
                mask[rows, columns] = True
            rest = mask & ~covered
            least = 0 if sample.iscrowd[i] else self.min_visible * mask.sum()
            kept[i] = rest.any() and rest.sum() >= least
            if has_mask and kept[i] and (rest != mask).any():
                outlines[i], cut[i] = Bitmap.of(rest), True
                boxes[i] = extent(outlines[i].corners())
        changed = replace(sample, boxes=boxes, cut=cut)
        if sample.segmentations is not None:
            changed.segmentations = outlines
        return _rows(changed, np.flatnonzero(kept))


def _borders(rng: np.random.Generator, length: int, parts: int) -> list[int]:
    """Where so many parts of `length` pixels begin and end; the borders between are random."""
    reach = 0.5 if parts == 2 else 0.25
    inner = (np.arange(1, parts) + rng.uniform(-reach, reach, parts - 1)) / parts
    return [0, *(inner * length).round().astype(int).tolist(), length]


def _scaled_window(
    sample: Sample, rng: np.random.Generator, scaled: Sequence[float], limit: tuple[int, int]
) -> Sample:
    """The image at the size `scaled` (h, w), or a random window of it of the size `limit` where it
    is larger, with the objects in it. Cropped first: fewer pixels are resized."""
    height, width = (
        min(max(1, round(side)), most) for side, most in zip(scaled, limit, strict=True)
    )
    part_height, part_width = (
        min(old, max(1, round(old * new / max(side, 1))))
        for old, new, side in zip(sample.size, (height, width), scaled, strict=True)
    )
    part = _random_window(sample, rng, part_height, part_width)
    if part.boxes is not None:
        part = _rows(part, np.flatnonzero((part.boxes[:, 2:] > part.boxes[:, :2]).all(1)))
    return part.resize((height, width))


def _alike(sample: Sample, rng: np.random.Generator, size: tuple[int, int]) -> Sample:
    """The largest random window of the aspect ratio of `size` (h, w), at that size."""
    scale = max(mine / its for mine, its in zip(size, sample.size, strict=True))
    return _scaled_window(sample, rng, [side * scale for side in sample.size], size)


def _rows(sample: Sample, rows: np.ndarray) -> Sample:
    """The sample with these objects alone."""
    columns: dict[str, Any] = {
        name: None if (column := getattr(sample, name)) is None else column[rows]
        for name in ("boxes", "labels", "iscrowd", "area", "attributes", "cut")
    }
    outlines = sample.segmentations
    return replace(
        sample,
        **columns,
        segmentations=None if outlines is None else [outlines[i] for i in rows],
    )


def _faded(sample: Sample, share: float) -> Sample:
    """The objects; where too little of them is to be seen, as regions to ignore."""
    if sample.iscrowd is None or share >= FAINT:
        return sample
    return replace(sample, iscrowd=np.ones_like(sample.iscrowd))


def _pasted(
    sample: Sample, other: Sample, inside: tuple[slice, slice], mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Image and semantic map with the pixels of `mask` (h, w) of another image, which lies
    `inside`. A pixel of a class that the other does not label is ignored."""
    image, semantic = sample.image.clone(), sample.semantic
    window = image[(slice(None), *inside)]
    window.copy_(torch.where(mask, other.image, window))
    if semantic is not None:
        values = torch.full(other.size, IGNORE, dtype=torch.uint8)
        if other.semantic is not None:
            values = other.semantic
        if other.semantic_labeled is not None:
            labeled = torch.zeros(IGNORE + 1, dtype=torch.bool)
            labeled[: len(other.semantic_labeled)] = torch.from_numpy(other.semantic_labeled)
            values = values.where(labeled[values.long()], IGNORE)
        semantic = semantic.clone()
        semantic[inside] = torch.where(mask, values, semantic[inside])
    return image, semantic


def _shared(
    one: int | Sequence[float] | None, other: int | Sequence[float] | None, share: float
) -> tuple[float, ...] | None:
    """The shares of the classes of two images that are mixed; None if one is not known."""
    if not isinstance(one, Sequence) or not isinstance(other, Sequence):
        return None
    return tuple(share * a + (1 - share) * b for a, b in zip(one, other, strict=True))


def _whole(
    sample: Sample, parts: Sequence[Sample], image: Tensor, semantic: Tensor | None
) -> Sample:
    """The image of several, with the objects of its parts. What describes an image as a whole, its
    class or identity, is not known."""
    found = Sample(image, sample.image_id, sample.orig_size, semantic=semantic)
    found.not_pasted = sample.not_pasted
    maps = [one.semantic_labeled for one in parts if one.semantic is not None]
    found.semantic_labeled = _in_all(maps) if semantic is not None else None
    if any(one.boxes is None for one in parts):
        return found
    for name in ("boxes", "labels", "iscrowd", "area"):
        columns = [getattr(one, name) for one in parts]
        if all(column is not None for column in columns):
            setattr(found, name, np.concatenate(columns))
    found.labeled = _in_all([one.labeled for one in parts])
    counts = [len(one.boxes) for one in parts if one.boxes is not None]
    if any(one.cut is not None for one in parts):
        found.cut = _filled([one.cut for one in parts], counts, False)
    if any(one.attributes is not None for one in parts):
        found.attributes = _filled([one.attributes for one in parts], counts, np.nan)
    if any(one.segmentations is not None for one in parts):
        unknown = Polygons(np.zeros((0, 2)), np.zeros(0, np.int64))
        pairs = zip(parts, counts, strict=True)
        outlines = [
            [unknown] * n if one.segmentations is None else one.segmentations for one, n in pairs
        ]
        found.segmentations = [outline for several in outlines for outline in several]
    return found


def _in_all(masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The classes (K,) that are labeled in all parts; None: all classes are."""
    known = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(known) if known else None


def _filled(
    columns: Sequence[np.ndarray | None], counts: Sequence[int], value: float
) -> np.ndarray:
    """The columns (N, ...) one after another; `value` for parts without."""
    like = next(column for column in columns if column is not None)
    return np.concatenate(
        [
            np.full((count, *like.shape[1:]), value, like.dtype) if column is None else column
            for column, count in zip(columns, counts, strict=True)
        ]
    )
