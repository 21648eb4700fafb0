"""Polygons of masks, for formats that have polygons only, or one for each object.

pycocotools paints a polygon by parity: what it covers twice is not in it. So a bridge, a line that
is followed there and back, paints nothing, and one polygon can have several parts and holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.coco.segmentations import find_fault, plain_mask, to_rle
from visionkit.data.formats.base import Parts, Reader, Record
from visionkit.errors import plural

Polygon = list[float]  # x, y, x, y, ... in pixels
OTHER_PARTS = "parts of objects, all but the largest"


def polygons_of(annotation: Record, size: tuple[int, int]) -> list[Polygon]:
    """The polygons of a COCO annotation in an image of `size` (h, w): its own, or the outline of
    its RLE; none if it has no mask, or one with a fault, which its reader reports."""
    mask: Any = plain_mask(annotation.get("segmentation"))
    if mask is None or find_fault(mask):
        return []
    if isinstance(mask, dict):
        return outline(mask, size)
    return mask


def parts_of(
    annotation: Record, size: tuple[int, int], parts: Parts, reader: Reader, place: str
) -> Polygon | None:
    """The mask of a COCO annotation as one polygon; None if it has none.

    `parts` says what becomes of several polygons: "bridge" joins them, with the same pixels;
    "largest" keeps one and counts the others as lost; "error" adds the object to the problems of
    the reader, which are raised at the end of its records. `place` names the object.
    """
    polygons = polygons_of(annotation, size)
    if len(polygons) <= 1:
        return polygons[0] if polygons else None
    if parts == "error":
        hint = "the format has one for each object; use --parts bridge or --parts largest"
        reader.problems.add(place, f"has {plural(len(polygons), 'polygon')}", hint, kind="parts")
    if parts == "bridge":
        return bridged(_disjoint(polygons, size))
    reader.losses.add(OTHER_PARTS, place, len(polygons) - 1)
    return largest(polygons)


def largest(polygons: Sequence[Polygon]) -> Polygon:
    """The polygon with the largest area, the first of several."""
    return max(polygons, key=lambda polygon: abs(signed_area(polygon)))


def signed_area(polygon: Sequence[float]) -> float:
    """The area in square pixels (shoelace formula); above 0 if it runs clockwise on the screen."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def bridged(polygons: Sequence[Polygon]) -> Polygon:
    """One polygon of several that do not overlap, with the same pixels and the sum of the areas.

    Bridges of no width lead from each to the next, and back at the end.
    """
    turned = [_points(p) if signed_area(p) >= 0 else _points(p)[::-1] for p in polygons]
    return _chain(turned)


def _points(polygon: Sequence[float]) -> np.ndarray:
    return np.asarray(polygon, np.float64).reshape(-1, 2)


def _chain(loops: list[np.ndarray]) -> Polygon:
    """Closed lines (N, 2) joined by bridges, each from the point that is near the one before."""
    if len(loops) == 1:
        return loops[0].ravel().tolist()
    near, rotated = loops[1].mean(0), []
    for loop in loops:
        first = int(np.abs(loop - near).sum(1).argmin())
        rotated.append(np.roll(loop, -first, 0))
        near = rotated[-1][0]
    there = [np.append(loop, loop[:1], 0) for loop in rotated]
    back = [loop[:1] for loop in rotated[-2::-1]]
    return np.concatenate([*there, *back[:-1]]).ravel().tolist()  # the last one is the first point


def _disjoint(polygons: list[Polygon], size: tuple[int, int]) -> list[Polygon]:
    """The same polygons, or if they share pixels the outline of all together."""
    if max(map(max, polygons)) > 10 * max(size) or min(map(min, polygons)) < -10 * max(size):
        return polygons  # too far away to be painted, which the reader reports
    codes = coco_mask.frPyObjects(polygons, *size)
    union = coco_mask.merge(codes)
    return (
        polygons if coco_mask.area(codes).sum() == coco_mask.area(union) else outline(union, size)
    )


def outline(mask: dict[str, Any] | np.ndarray, size: tuple[int, int]) -> list[Polygon]:
    """The outlines of the parts of a mask, an RLE or an array (h, w), along the borders of pixels.

    A part is what hangs together, also over corners. Holes are joined to the outline around them by
    bridges. pycocotools paints exactly the pixels of the mask. Outlines run clockwise.
    """
    if isinstance(mask, np.ndarray):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return []
        left, top = int(columns[0]), int(rows[0])
        window = mask[top : rows[-1] + 1, left : columns[-1] + 1] > 0
    else:
        code = mask if isinstance(mask["counts"], (str, bytes)) else _encoded(mask)
        left, top, width, height = map(int, coco_mask.toBbox(to_rle(code, size)))
        if not width or not height:
            return []
        window = coco_mask.decode(code)[top : top + height, left : left + width] > 0
    parts = [_chain(loops) for loops in _loops(np.pad(window, 1).astype(np.uint8))]
    offset = [left, top]
    return [(_points(part) + offset).ravel().tolist() for part in parts]


def _encoded(mask: dict[str, Any]) -> dict[str, Any]:
    return coco_mask.frPyObjects(mask, *mask["size"])


def _loops(padded: np.ndarray) -> list[list[np.ndarray]]:
    """For each part of a bitmap (h+2, w+2) uint8 with an empty border: its outline (N, 2), in
    pixels of the inner window, and those of its holes, which run the other way.

    The corners of a line are joined two by two along each row, and two by two along each column.
    Where two pixels touch at a corner, it counts twice, and both lines pass around the empty
    pixels.
    """
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    total = a + b + c + d
    double = (total == 2) & (a == d)
    y, x = np.nonzero((total % 2 == 1) | double)
    twice = double[y, x]
    falling = twice & (a[y, x] == 1)  # from the upper left to the lower right
    count = np.where(twice, 2, 1)
    first = count.cumsum() - count
    y, x, falling = (np.repeat(values, count) for values in (y, x, falling))
    second = np.arange(len(y)) - np.repeat(first, count)
    order = np.lexsort((np.where(falling, 1 - second, second), y, x))
    below = np.empty(len(y), np.int64)
    below[order[::2]], below[order[1::2]] = order[1::2], order[::2]
    vertical, points = below.tolist(), np.stack([x, y], 1).astype(np.float64)
    keys = y * padded.shape[1] + x
    loop_of = [-1] * len(y)
    parts: list[list[np.ndarray]] = []
    part_of: list[int] = []  # by loop
    for start in range(len(y)):
        if loop_of[start] >= 0:
            continue
        path, corner = [], start  # the highest one of its loop, at the left
        while loop_of[corner] < 0:
            loop_of[corner] = loop_of[corner ^ 1] = len(part_of)
            path += [corner, corner ^ 1]
            corner = vertical[corner ^ 1]
        row, column = int(y[start]), int(x[start])
        if padded[row + 1, column + 1]:
            part_of.append(len(parts))
            parts.append([points[path]])
        else:  # a hole: of the part whose line is the next one above it
            above = int(np.flatnonzero(padded[:row, column + 1] == 0)[-1])
            left = int(np.searchsorted(keys, above * padded.shape[1] + column, "right")) - 1
            part_of.append(part_of[loop_of[left]])
            parts[part_of[-1]].append(points[path[::-1]])
    return parts


def clipped(polygon: Sequence[float], size: tuple[int, int]) -> Polygon:
    """The part of a polygon in an image of `size` (h, w), by Sutherland and Hodgman ("Reentrant
    polygon clipping", 1974); empty if it is outside. Separate parts are joined along the border."""
    points = _points(polygon)
    for axis, limit, inside in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
        depth = (points[:, axis] - limit) * inside
        if (depth >= 0).all():
            continue
        cut = []
        for i in range(len(points)):
            if (depth[i - 1] < 0) != (depth[i] < 0):
                share = depth[i - 1] / (depth[i - 1] - depth[i])
                point = points[i - 1] + share * (points[i] - points[i - 1])
                point[axis] = limit
                cut.append(point)
            if depth[i] >= 0:
                cut.append(points[i])
        if len(cut) < 3:
            return []
        points = np.array(cut)
    return points.ravel().tolist()
