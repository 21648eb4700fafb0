"""Whether each segmentation of a COCO file agrees with its box and its area. It reads them all, so
only `visionkit check` looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.coco_columns import place, short
from visionkit.data.coco_index import CocoIndex
from visionkit.data.masks import Bitmap, Segmentation, paint
from visionkit.data.problems import Finding, finding
from visionkit.data.segmentation_table import SegmentationTable

Progress = Callable[[Iterable[int], str], Iterable[int]]  # shows how far it is

LEAST_IOU = 0.5  # of the bounds of a mask with its box
CLOSE = 2.0  # pixels by which sides may differ all the same: of small objects it is much
SHARE = 0.1  # by which an area may be off
FEW_PIXELS = 5  # by which it may, too


class Outline(NamedTuple):
    """A segmentation in numbers."""

    bounds: np.ndarray  # (4,) xyxy
    area: float  # of polygons by their corners: too small if one crosses itself, too large if two
    # overlap


def look_at_outlines(
    index: CocoIndex,
    masks: SegmentationTable,
    rows: np.ndarray,
    told: set[int],
    progress: Progress,
) -> Iterator[Finding]:
    """Those that cover nothing, lie elsewhere than their box, or have another area, among the
    `rows` with a segmentation. Of the rows `told` a wrong area is known already."""
    known = rows[~masks.is_empty()[rows]]
    for row in progress(known.tolist(), f"outlines of {index.path.name}"):
        outline = _measure(masks[row])
        size = tuple(index.images.sizes[index.objects.image[row]].tolist())
        area = outline.area
        said = float(index.objects.area[row])
        is_off = said > 0 and row not in told and _is_off(said, area)
        if area < 1 or is_off:  # by its corners: the pixels have a word in it
            area = float(paint([masks[row]], size).sum())
        if area == 0:
            yield _told(index, row, "flat-mask", "segmentation", "the outline covers no pixel")
        elif is_off and _is_off(said, area):
            what = f"'area' is {said:g}, but the mask has {area:g} pixels"
            yield _told(index, row, "wrong-area", "area", what)
        x, y, w, h = index.objects.bbox[row].tolist()
        box = np.array([x, y, x + w, y + h])
        if w > 0 and h > 0 and _is_elsewhere(outline.bounds, box):
            shown = short([round(side, 2) for side in outline.bounds.tolist()])
            what = f"'bbox' is {short([x, y, w, h])}, but the mask reaches over {shown} (xyxy)"
            yield _told(index, row, "mask-off-box", "bbox", what)


def _measure(segmentation: Segmentation) -> Outline:
    if isinstance(segmentation, Bitmap):
        rle = {"size": list(segmentation.size), "counts": segmentation.counts}
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        return Outline(np.array([x, y, x + w, y + h]), float(coco_mask.area(rle)))
    points = segmentation.points
    area = 0.0
    for part in np.split(points, segmentation.ends[:-1]):
        (x, y), (u, v) = part.T, np.roll(part, -1, 0).T
        area += abs(float((x * v - u * y).sum())) / 2
    return Outline(np.concatenate([points.min(0), points.max(0)]), area)


def _is_off(said: float, found: float) -> bool:
    """Whether an area differs by much. NaN, which is absent, does not."""
    return abs(said - found) > max(SHARE * max(said, found), FEW_PIXELS)


def _is_elsewhere(bounds: np.ndarray, box: np.ndarray) -> bool:
    if np.abs(bounds - box).max() <= CLOSE:
        return False
    low, high = np.maximum(bounds[:2], box[:2]), np.minimum(bounds[2:], box[2:])
    shared = float((high - low).clip(0).prod())
    both = float((bounds[2:] - bounds[:2]).prod() + (box[2:] - box[:2]).prod())
    return shared < LEAST_IOU * (both - shared)


def _told(index: CocoIndex, row: int, kind: str, key: str, what: str) -> Finding:
    record = index.objects.record(row)
    where, value = place("annotations", row, record), short(record.get(key))
    return finding(kind, what, file=str(index.path), place=where, key=key, value=value)
