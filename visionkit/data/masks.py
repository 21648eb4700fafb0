"""The outline of one object, transformed as numbers and painted once, at the final size.

`Polygons` and `Bitmap` are the two kinds; both are exact under flips and crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask


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


def paint(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> np.ndarray:
    """The masks (N, h, w) bool of N objects in an image of `size` (h, w)."""
    canvas = np.zeros((len(segmentations), *size), np.uint8)
    for mask, segmentation in zip(canvas, segmentations, strict=True):
        segmentation.paint(mask)
    return canvas.view(bool)
