"""The outline of one object, transformed as numbers and painted once, at the final size.

`Polygons` and `Bitmap` are the two kinds; both are exact under flips, crops and quarter turns.
A point (x, y) is at (0, 0) in the upper left corner of the image, and at (w, h) in the lower right
one. A (3, 3) matrix moves it: (x', y') = (u / t, v / t), where (u, v, t) = matrix @ (x, y, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

Pair: TypeAlias = Sequence[float]


def scaling(scale: np.ndarray | Pair, offset: np.ndarray | Pair = (0, 0)) -> np.ndarray:
    """The matrix that moves a point to `scale * point + offset`; both are (x, y)."""
    return np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]], [0, 0, 1]], float)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) where a (3, 3) matrix moves them."""
    places = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2].tolist() == [0, 0, 1]:
        return places
    return places / (points @ matrix[2, :2] + matrix[2, 2])[..., None]


def extent(points: np.ndarray) -> np.ndarray:
    """The bounds (..., 4) xyxy of points (..., P, 2)."""
    return np.concatenate([points.min(-2), points.max(-2)], -1)


@dataclass(frozen=True)
class Polygons:
    """One object as the union of polygons; none at all says that its outline is not known."""

    points: np.ndarray  # (P, 2) float64 (x, y), the polygons one after another
    ends: np.ndarray  # (K,) where each polygon ends in `points`

    @property
    def known(self) -> bool:
        return len(self.points) > 0

    def map(self, matrix: np.ndarray) -> Polygons:
        """The outline where a (3, 3) matrix moves it."""
        return Polygons(moved(self.points, matrix), self.ends)

    def corners(self) -> np.ndarray:
        """Points (P, 2) with the bounds of the outline; none if it is not known."""
        return self.points

    def clip(self, size: tuple[int, int]) -> Polygons:
        """The part of the outline inside an image of `size` (h, w)."""
        limit = np.array([size[1], size[0]])
        if (self.points >= 0).all() and (self.points <= limit).all():
            return self
        parts = []
        for part in np.split(self.points, self.ends[:-1]):
            for axis in (0, 1):
                part = _half(part, part[:, axis])
                part = _half(part, limit[axis] - part[:, axis])
            if len(part) > 2:
                parts.append(part.clip(0, limit))  # what crosses an edge is on it up to rounding
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return Polygons(np.concatenate([np.zeros((0, 2)), *parts]), ends)

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
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))  # coded points go there
    known: ClassVar[bool] = True

    @classmethod
    def of(cls, mask: np.ndarray) -> Bitmap:
        """The bitmap of a mask (h, w) of true and false or of 0 and 1."""
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return cls(code["counts"], (mask.shape[0], mask.shape[1]))

    def map(self, matrix: np.ndarray) -> Bitmap:
        """The pixels where a (3, 3) matrix moves them."""
        return replace(self, matrix=matrix @ self.matrix)

    def corners(self) -> np.ndarray:
        """Points (P, 2) with the bounds of the pixels; none if there is no pixel."""
        return self._corners(self._coded())

    def clip(self, size: tuple[int, int]) -> Bitmap:
        """The coded pixels whose centers are inside an image of `size` (h, w), moved as before:
        nothing is sampled twice."""
        coded, limit = self._coded(), [size[1], size[0]]
        corners = self._corners(coded)
        if (corners >= 0).all() and (corners <= limit).all():
            return self
        rows, columns = np.nonzero(coded)
        centers = moved(np.stack([columns, rows], 1) + 0.5, self.matrix)
        gone = ((centers < 0) | (centers >= limit)).any(1)
        coded[rows[gone], columns[gone]] = 0
        return replace(self, counts=coco_mask.encode(coded)["counts"])

    def paint(self, canvas: np.ndarray) -> None:
        """Set the object's pixels of `canvas` (h, w) uint8, which must be zero, to one.

        Each pixel takes the value of the coded pixel that its center falls into.
        """
        coded, matrix = self._coded(), self.matrix
        if not matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any():  # it only scales and moves
            rows, columns = (
                np.floor((np.arange(length) + 0.5 - offset) / scale)
                for length, offset, scale in zip(
                    canvas.shape, matrix[1::-1, 2], np.diag(matrix)[1::-1], strict=True
                )
            )
            inside_y = np.flatnonzero((rows >= 0) & (rows < self.size[0]))
            inside_x = np.flatnonzero((columns >= 0) & (columns < self.size[1]))
            source = np.ix_(rows[inside_y].astype(int), columns[inside_x].astype(int))
            canvas[np.ix_(inside_y, inside_x)] = coded[source]
            return
        if not coded.any():
            return
        bounds = extent(self._corners(coded)).clip(0, canvas.shape[::-1] * 2)
        (left, top), (right, bottom) = np.floor(bounds[:2]), np.ceil(bounds[2:])
        y, x = np.mgrid[int(top) : int(bottom), int(left) : int(right)]
        found = moved(np.stack([x, y], -1) + 0.5, np.linalg.inv(matrix))
        column, row = np.moveaxis(np.floor(found).astype(int), -1, 0)
        inside = (row >= 0) & (row < self.size[0]) & (column >= 0) & (column < self.size[1])
        canvas[y[inside], x[inside]] = coded[row[inside], column[inside]]

    def _coded(self) -> np.ndarray:
        return coco_mask.decode({"size": list(self.size), "counts": self.counts})

    def _corners(self, coded: np.ndarray) -> np.ndarray:
        """The ends of the rows of pixels (h, w) where they have been moved to."""
        rows = np.flatnonzero(coded.any(1))
        left = coded[rows].argmax(1)
        right = self.size[1] - coded[rows, ::-1].argmax(1)
        points = [np.stack([x, y], 1) for x in (left, right) for y in (rows, rows + 1)]
        return moved(np.concatenate(points), self.matrix)


Segmentation: TypeAlias = Polygons | Bitmap


def paint(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> np.ndarray:
    """The masks (N, h, w) bool of N objects in an image of `size` (h, w)."""
    canvas = np.zeros((len(segmentations), *size), np.uint8)
    for mask, segmentation in zip(canvas, segmentations, strict=True):
        segmentation.paint(mask)
    return canvas.view(bool)


def map_all(segmentations: Sequence[Segmentation], matrix: np.ndarray) -> list[Segmentation]:
    """All outlines where a (3, 3) matrix moves them; the points of all polygons at once."""
    lengths, points = _all_points(segmentations)
    parts = np.split(moved(points, matrix), np.cumsum(lengths)[:-1]) if lengths else []
    return [
        Polygons(part, one.ends) if isinstance(one, Polygons) else one.map(matrix)
        for one, part in zip(segmentations, parts, strict=True)
    ]


def clip_all(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> list[Segmentation]:
    """The part of each outline inside an image of `size` (h, w); itself if all of it is."""
    lengths, points = _all_points(segmentations)
    outside = np.flatnonzero(((points < 0) | (points > [size[1], size[0]])).any(1))
    leaving = {*np.searchsorted(np.cumsum(lengths), outside, side="right").tolist()}
    return [
        one.clip(size) if i in leaving or isinstance(one, Bitmap) else one
        for i, one in enumerate(segmentations)
    ]


def _all_points(segmentations: Sequence[Segmentation]) -> tuple[list[int], np.ndarray]:
    """How many points each object's polygons have, and all of them (P, 2)."""
    points = [one.points for one in segmentations if isinstance(one, Polygons)]
    lengths = [len(one.points) if isinstance(one, Polygons) else 0 for one in segmentations]
    return lengths, np.concatenate([np.zeros((0, 2)), *points])


def _half(polygon: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The part of a polygon (P, 2) on one side of a line; `inside` (P,) is the distance of each
    point from it, negative on the other side (Sutherland and Hodgman, 1974)."""
    keep = inside >= 0
    if keep.all():
        return polygon
    order = np.arange(1, len(polygon) + 1) % len(polygon)
    after, inside_after = polygon[order], inside[order]
    crosses = keep != (inside_after >= 0)
    share = inside[crosses] / (inside[crosses] - inside_after[crosses])
    both = np.stack([polygon, after], 1)  # each point, then where its edge crosses the line
    both[crosses, 1] = polygon[crosses] + share[:, None] * (after - polygon)[crosses]
    return both[np.stack([keep, crosses], 1)]
