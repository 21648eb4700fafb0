"""The outline of one object, moved as numbers and painted once, at the final size.

`Polygons` and `Bitmap` are the two kinds; both are exact under flips and crops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from visionkit.data.checks.findings import Finding, finding
from visionkit.data.image_io import read_label_map
from visionkit.errors import DataError, printable
from visionkit.types import IGNORE

# --- Class maps: read from files, or painted from the masks of objects.

BACKGROUND = 0
Progress = Callable[[Iterable[int], str], Iterable[int]]  # shows how far it is


def load_classes(path: Path, size: tuple[int, int], num_classes: int) -> Tensor:
    """The map (h, w) uint8 in that file; DataError if it has another size or unknown classes."""
    labels = read_label_map(path)
    if tuple(labels.shape) != size:
        raise DataError(
            f"semantic map {printable(path)} is {tuple(labels.shape)} (h, w), not {size}"
        )
    highest = int(labels.where(labels != IGNORE, 0).max())
    if highest >= num_classes:
        raise DataError(
            f"semantic map {printable(path)} has the value {highest}, but 'semantic_classes' has "
            f"{num_classes} names (255 = ignore)"
        )
    return labels


def paint_classes(
    segmentations: Sequence[Segmentation],
    labels: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
) -> Tensor:
    """(h, w) uint8: label + 1 where an object is, 0 elsewhere; smaller objects on top.

    `segmentations` and `boxes` (N, 4), xyxy in pixels, are those of the objects with `labels` (L,),
    and behind them of N - L that are left out: 255 (ignore), as are the boxes of those whose
    outline is not known, as far as nothing else covers them.
    """
    classes = np.full(size, BACKGROUND, np.uint8)
    masks = paint(segmentations, size).numpy()
    known = np.array([s.known for s in segmentations], bool)
    classes[masks[len(labels) :].any(0)] = IGNORE
    masks = masks[: len(labels)]
    for box in boxes[~known]:
        x1, y1 = np.floor(box[:2]).astype(int)
        x2, y2 = np.ceil(box[2:]).astype(int)
        classes[y1:y2, x1:x2] = IGNORE
    areas = masks.sum((1, 2))
    for i in np.argsort(-areas, kind="stable"):
        classes[masks[i]] = labels[i] + 1
    return torch.from_numpy(classes)


def look_at_maps(
    ids: Iterable[int], read: Callable[[int], Tensor | None], progress: Progress
) -> Iterator[Finding]:
    """What is wrong with class maps that `read` gives by id, and those that say nothing."""
    for id_ in progress(ids, "class maps"):
        try:
            labels = read(id_)
        except DataError as error:
            yield finding("class-map", str(error), value=str(id_), remedy="")
            continue
        if labels is not None and (labels == IGNORE).all():
            text = f"the class map of image {id_} has no labeled pixel"
            yield finding("unlabeled-map", text, value=str(id_))


@dataclass(frozen=True)
class Polygons:
    """One object as the union of polygons; none at all says that its outline is not known."""

    points: np.ndarray  # (P, 2) float64 (x, y), the polygons one after another
    ends: np.ndarray  # (K,) where each polygon ends in `points`

    @property
    def known(self) -> bool:
        return len(self.points) > 0

    def map(self, scale: np.ndarray, offset: np.ndarray) -> Polygons:
        """Each point goes to `scale * point + offset`; both are (x, y)."""
        return Polygons(self.points * scale + offset, self.ends)

    def paint(self, canvas: np.ndarray) -> None:
        """Set the object's pixels of `canvas` (h, w) uint8, which must be zero, to one.

        The same pixels as pycocotools', but only the window around the object is painted.
        """
        if not self.known:
            return
        (left, top), (right, bottom) = self.points.min(0).tolist(), self.points.max(0).tolist()
        left, top = max(math.floor(left) - 1, 0), max(math.floor(top) - 1, 0)
        width = min(math.ceil(right) + 1, canvas.shape[1]) - left
        height = min(math.ceil(bottom) + 1, canvas.shape[0]) - top
        if width <= 0 or height <= 0:
            return
        points = self.points
        if left or top:
            # pycocotools rounds to fifths of a pixel; doing so first makes the shift exact.
            low = np.array([left, top])
            points = np.where(low > 0, np.floor(5 * points + 0.5) / 5 - low, points)
        parts = np.split(points, self.ends[:-1]) if len(self.ends) > 1 else [points]
        rles = coco_mask.frPyObjects([part.ravel() for part in parts], height, width)
        rle = coco_mask.merge(rles) if len(rles) > 1 else rles[0]
        canvas[top : top + height, left : left + width] = coco_mask.decode(rle)


@dataclass(frozen=True)
class Bitmap:
    """One object as pixels (run-length coded) and where they have been moved to since."""

    counts: bytes  # COCO's compressed run lengths
    size: tuple[int, int]  # (h, w) of the coded pixels
    scale: np.ndarray | float = 1.0  # (x, y): a coded point lies at scale * point + offset now
    offset: np.ndarray | float = 0.0
    known: ClassVar[bool] = True

    def map(self, scale: np.ndarray, offset: np.ndarray) -> Bitmap:
        """Each point goes to `scale * point + offset`; both are (x, y)."""
        return replace(self, scale=self.scale * scale, offset=self.offset * scale + offset)

    def paint(self, canvas: np.ndarray) -> None:
        """Set the object's pixels of `canvas` (h, w) uint8, which must be zero, to one.

        Each pixel takes the value of the coded pixel that its center falls into.
        """
        coded = coco_mask.decode({"size": list(self.size), "counts": self.counts})
        scale, offset = np.broadcast_to(self.scale, 2), np.broadcast_to(self.offset, 2)
        rows, columns = (
            np.floor((np.arange(canvas.shape[axis]) + 0.5 - offset[1 - axis]) / scale[1 - axis])
            for axis in (0, 1)
        )
        inside_y = np.flatnonzero((rows >= 0) & (rows < self.size[0]))
        inside_x = np.flatnonzero((columns >= 0) & (columns < self.size[1]))
        source = np.ix_(rows[inside_y].astype(int), columns[inside_x].astype(int))
        canvas[np.ix_(inside_y, inside_x)] = coded[source]


Segmentation: TypeAlias = Polygons | Bitmap


def paint(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> Tensor:
    """The masks (N, h, w) bool of N objects in an image of `size` (h, w)."""
    canvas = np.zeros((len(segmentations), *size), np.uint8)
    for mask, segmentation in zip(canvas, segmentations, strict=True):
        segmentation.paint(mask)
    return torch.from_numpy(canvas).view(torch.bool)


def run_lengths(counts: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed form; `ValueError` if it is not in that form.

    Six bits per character: five of the number, low ones first, and one for "goes on"; from the
    fourth number on, the difference to the one two places before is stored.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0  # the last character of each number
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("not a compressed run-length code")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run length needs more than 32 bits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shift, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)  # sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
