"""Findings about records that can be used but are probably wrong, computed on whole columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import Finding, Progress, finding
from visionkit.data.checks.kinds import Action
from visionkit.data.coco.columns import UNMAPPED, Record, place, short
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.segmentations import SegmentationTable
from visionkit.data.masks import Bitmap, Segmentation

TOLERANCE = 1.0  # pixels by which a box may reach out of its image: rounding
BLOCK = 1 << 13  # objects checked together
MUCH = 1.1  # an area that is larger than its box by this factor is wrong
# Segmentations against boxes and areas:
LEAST_IOU = 0.5  # of the bounds of a mask with its box
CLOSE = 2.0  # pixels by which sides may differ all the same: of small objects it is much
SHARE = 0.1  # by which an area may be off
FEW_PIXELS = 5  # by which it may, too

EMPTY, OUTSIDE, OVERHANGING, WRONG_AREA, TINY = 1, 2, 4, 8, 16
_NONE = np.zeros(0, np.int64)
_MIXERS = np.random.default_rng(0).integers(1, 2**64, 6, np.uint64) | np.uint64(1)  # odd


class FaultyRows(NamedTuple):
    """All records of one list that have one kind of fault."""

    kind: str
    rows: np.ndarray  # (N,) places in the list
    key: str  # that shows it
    list: str = "annotations"

    def __len__(self) -> int:
        return len(self.rows)


@np.errstate(over="ignore", invalid="ignore")  # other checks report absurd numbers
def find_faulty(index: CocoIndex, names: list[str], *, masks: bool) -> list[FaultyRows]:
    """The kinds that occur, in the order of `FINDING_KINDS`; `names` are those of the images. Makes
    a few passes over the columns and no Python object per record."""
    objects = index.objects
    starts = range(0, len(objects.ids), BLOCK)
    boxes = np.concatenate([_NONE.astype(np.uint8), *(_box_faults(index, at) for at in starts)])
    found = [
        unknown_images(index),
        FaultyRows("negative-area", np.flatnonzero(objects.area < 0), "area"),
        FaultyRows("bad-mask", _bad_masks(index) if masks else _NONE, "segmentation"),
        FaultyRows("empty-box", np.flatnonzero(boxes & EMPTY), "bbox"),
        FaultyRows("outside-box", np.flatnonzero(boxes & OUTSIDE), "bbox"),
        FaultyRows("overhanging-box", np.flatnonzero(boxes & OVERHANGING), "bbox"),
        FaultyRows("crowd-value", odd_crowds(index), "iscrowd"),
        FaultyRows("missing-area", np.flatnonzero(np.isnan(objects.area)), "area"),
        FaultyRows("missing-mask", _missing_masks(index) if masks else _NONE, "segmentation"),
        FaultyRows("duplicate-box", _duplicate_boxes(index), "bbox"),
        FaultyRows("duplicate-id", _repeats(objects.ids, objects.ids != UNMAPPED), "id"),
        FaultyRows("duplicate-name", _repeated_names(names), "file_name", "images"),
        FaultyRows("tiny-box", np.flatnonzero(boxes & TINY), "bbox"),
        FaultyRows("wrong-area", np.flatnonzero(boxes & WRONG_AREA), "area"),
    ]
    return [faulty for faulty in found if len(faulty)]


def unknown_images(index: CocoIndex) -> FaultyRows:
    """The objects whose image is not in the file."""
    unknown = (index.objects.image < 0) & (index.objects.image_ids != UNMAPPED)
    if (index.images.ids == UNMAPPED).any():  # they may be those of the images with a bad id
        unknown[:] = False
    return FaultyRows("unknown-image", np.flatnonzero(unknown), "image_id")


def _box_faults(index: CocoIndex, start: int) -> np.ndarray:
    """(n,) uint8, those five faults of `BLOCK` objects: few, so that the CPU cache suffices.

    An area is wrong if it is zero or clearly larger than that of the box; NaN (absent) is not.
    """
    objects, part = index.objects, slice(start, start + BLOCK)
    x, y, w, h = np.ascontiguousarray(objects.bbox[part].T)
    height, width = np.ascontiguousarray(index.images.sizes.take(objects.image[part], 0).T)
    area, known = objects.area[part], objects.image[part] >= 0
    x2, y2 = x + w, y + h
    right, bottom = np.minimum(x2, width), np.minimum(y2, height)
    empty = ~(np.minimum(w, h) > 0)
    outside = ~empty & ((right <= x) | (right <= 0) | (bottom <= y) | (bottom <= 0))
    over = np.maximum(x2 - right, y2 - bottom) > TOLERANCE
    over |= np.minimum(x, y) < -TOLERANCE
    wrong = ~empty & ((area > MUCH * w * h + 1) | (area == 0))
    over &= ~(empty | outside)
    tiny = ~(empty | outside) & (np.minimum(w, h) < 1)
    faults = EMPTY * empty | OUTSIDE * outside | OVERHANGING * over
    faults |= WRONG_AREA * wrong | TINY * tiny
    return np.where(known, faults, 0).astype(np.uint8)


def report(index: CocoIndex, faulty: FaultyRows, action: Action) -> Iterator[Finding]:
    """A finding for each record, with its id and value."""
    if faulty.kind == "bad-mask":
        rows, severity = set(faulty.rows.tolist()), finding("bad-mask", "", action).severity
        for fault in index.mask_faults.findings:
            if fault.kind == "bad-mask" and fault.place and fault.place.index in rows:
                yield fault._replace(action=action, severity=severity)
        return
    table = index.images if faulty.list == "images" else index.objects
    for row in faulty.rows.tolist():
        record = table.record(row)
        value = short(record.get(faulty.key))
        what = f"'{faulty.key}' is {value}" if faulty.key in record else f"no '{faulty.key}'"
        yield finding(
            faulty.kind,
            f"{what}{_because(index, faulty.kind, row, record)}",
            action,
            file=str(index.path),
            place=place(faulty.list, row, record),
            key=faulty.key,
            value=value,
        )


def _because(index: CocoIndex, kind: str, row: int, record: Record) -> str:
    """What the value contradicts."""
    if kind == "unknown-image":
        return ", which is not in 'images'"
    if kind == "no-annotations":
        return f", the image {short(record['file_name'])}: no object is annotated"
    if kind in ("outside-box", "overhanging-box"):
        height, width = index.images.sizes[index.objects.image[row]].tolist()
        return f", the image {width}x{height}"
    if kind == "wrong-area":
        return f", the box {short(record['bbox'])}"
    return ""


def _bad_masks(index: CocoIndex) -> np.ndarray:
    found = index.mask_faults.findings
    rows = [f.place.index for f in found if f.kind == "bad-mask" and f.place]
    return np.unique(np.array(rows, np.int64))


def _missing_masks(index: CocoIndex) -> np.ndarray:
    """Objects without a segmentation; malformed ones are not among them."""
    if not index.has_masks:
        return _NONE
    bare = index.objects.masks.is_empty()
    bare[_bad_masks(index)] = False
    return np.flatnonzero(bare)


def odd_crowds(index: CocoIndex) -> np.ndarray:
    """The rows where 'iscrowd' is not a number; columns have it as 0 or 1."""
    if "iscrowd" not in index.object_keys:
        return _NONE
    texts = index.objects.extras.texts()
    return np.array(
        [i for i, t in enumerate(texts) if t and json.loads(t).get("iscrowd") is not None], np.int64
    )


def _duplicate_boxes(index: CocoIndex) -> np.ndarray:
    """The rows of objects with the image, class and box of an earlier one."""
    objects = index.objects
    bits = (objects.bbox + 0.0).view(np.uint64)  # of -0.0 those of 0.0
    mixed = bits @ _MIXERS[:4]
    mixed += objects.image_ids.view(np.uint64) * _MIXERS[4]
    mixed += objects.category.view(np.uint64) * _MIXERS[5]
    alike = _repeats(mixed, with_first=True)
    if not len(alike):
        return alike
    seen: set[tuple[float, ...]] = set()
    rows = []
    for row in alike.tolist():  # few; equal mixtures may have unequal parts
        key = (objects.image_ids[row], objects.category[row], *objects.bbox[row].tolist())
        if key in seen:
            rows.append(row)
        seen.add(key)
    return np.array(rows, np.int64)


def _repeats(
    values: np.ndarray, valid: np.ndarray | None = None, *, with_first: bool = False
) -> np.ndarray:
    """The rows with the value of an earlier row, or of any other row `with_first`."""
    ordered = np.sort(values if valid is None else values[valid])
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return _NONE
    rows = np.flatnonzero(np.isin(values, twice))
    if valid is not None:
        rows = rows[valid[rows]]
    if with_first:
        return rows
    _, first = np.unique(values[rows], return_index=True)
    return np.delete(rows, first)


def _repeated_names(names: list[str]) -> np.ndarray:
    if len(set(names)) == len(names):
        return _NONE
    first: dict[str, int] = {}
    return np.array([i for i, n in enumerate(names) if first.setdefault(n, i) != i], np.int64)


class Outline(NamedTuple):
    """The bounds and the area of a segmentation."""

    bounds: np.ndarray  # (4,) xyxy
    area: float  # of polygons by their corners: too small if one crosses itself, too large if
    # two overlap


def check_outlines(
    index: CocoIndex,
    masks: SegmentationTable,
    rows: np.ndarray,
    reported: set[int],
    progress: Progress,
) -> Iterator[Finding]:
    """Findings about segmentations that cover nothing, are not where their box is, or have another
    area than the file says. Reads each one of the `rows`, so only `visionkit check` calls it. The
    wrong areas of the rows `reported` are known already."""
    known = rows[~masks.is_empty()[rows]]
    for row in progress(known.tolist(), f"masks of {index.path.name}"):
        outline = _measure(masks[row])
        size = tuple(index.images.sizes[index.objects.image[row]].tolist())
        area = outline.area
        given = float(index.objects.area[row])
        is_off = given > 0 and row not in reported and _is_off(given, area)
        if area < 1 or is_off:  # by its corners: count the pixels
            area = masks.area(row, size)
        if area == 0:
            yield _finding(index, row, "empty-mask", "segmentation", "the mask covers no pixel")
        elif is_off and _is_off(given, area):
            what = f"'area' is {given:g}, but the mask has {area:g} pixels"
            yield _finding(index, row, "wrong-area", "area", what)
        x, y, w, h = index.objects.bbox[row].tolist()
        box = np.array([x, y, x + w, y + h])
        if w > 0 and h > 0 and _is_elsewhere(outline.bounds, box):
            shown = short([round(side, 2) for side in outline.bounds.tolist()])
            what = f"'bbox' is {short([x, y, w, h])}, but the mask extends over {shown} (xyxy)"
            yield _finding(index, row, "mask-box-mismatch", "bbox", what)


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


def _is_off(given: float, found: float) -> bool:
    """Whether an area differs by much; NaN (absent) does not."""
    return abs(given - found) > max(SHARE * max(given, found), FEW_PIXELS)


def _is_elsewhere(bounds: np.ndarray, box: np.ndarray) -> bool:
    if np.abs(bounds - box).max() <= CLOSE:
        return False
    low, high = np.maximum(bounds[:2], box[:2]), np.minimum(bounds[2:], box[2:])
    shared = float((high - low).clip(0).prod())
    both = float((bounds[2:] - bounds[:2]).prod() + (box[2:] - box[:2]).prod())
    return shared < LEAST_IOU * (both - shared)


def _finding(index: CocoIndex, row: int, kind: str, key: str, what: str) -> Finding:
    record = index.objects.record(row)
    where, value = place("annotations", row, record), short(record.get(key))
    return finding(kind, what, file=str(index.path), place=where, key=key, value=value)
