"""What a COCO file could be used with, but hardly was meant to say; found on whole columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from visionkit.data.coco_columns import ABSENT, Record, place, short
from visionkit.data.coco_index import CocoIndex
from visionkit.data.problems import Finding, finding

TOLERANCE = 1.0  # pixels by which a box may reach out of its picture: rounding
BLOCK = 1 << 13  # objects looked at together
MUCH = 1.1  # an area that is larger than its box by this factor is wrong


class Faulty(NamedTuple):
    """All records of one list that have one kind of fault."""

    kind: str
    rows: np.ndarray  # (N,) places in the list
    key: str  # that shows it
    list: str = "annotations"

    def __len__(self) -> int:
        return len(self.rows)


@np.errstate(over="ignore", invalid="ignore")  # absurd numbers are told elsewhere
def find_faulty(index: CocoIndex, names: list[str], *, masks: bool) -> list[Faulty]:
    """The kinds that occur, in the order of `KINDS`; `names` are those of the pictures. Costs a
    few passes over the columns, nothing for each record."""
    objects = index.objects
    starts = range(0, len(objects.ids), BLOCK)
    boxes = np.concatenate([_NONE.astype(np.uint8), *(_box_faults(index, at) for at in starts)])
    known = objects.image >= 0
    unknown = ~known & (objects.image_ids != ABSENT)
    if (index.images.ids == ABSENT).any():  # they may be those of the images with a bad id
        unknown[:] = False
    found = [
        Faulty("unknown-image", np.flatnonzero(unknown), "image_id"),
        Faulty("negative-area", np.flatnonzero(objects.area < 0), "area"),
        Faulty("bad-mask", _bad_masks(index) if masks else _NONE, "segmentation"),
        Faulty("empty-box", np.flatnonzero(boxes & EMPTY), "bbox"),
        Faulty("outside-box", np.flatnonzero(boxes & OUTSIDE), "bbox"),
        Faulty("overhanging-box", np.flatnonzero(boxes & OVERHANGING), "bbox"),
        Faulty("crowd-value", _odd_crowds(index), "iscrowd"),
        Faulty("missing-area", np.flatnonzero(np.isnan(objects.area)), "area"),
        Faulty("missing-mask", _missing_masks(index) if masks else _NONE, "segmentation"),
        Faulty("duplicate-box", _duplicate_boxes(index), "bbox"),
        Faulty("duplicate-id", _repeats(objects.ids, objects.ids != ABSENT), "id"),
        Faulty("duplicate-name", _repeated_names(names), "file_name", "images"),
        Faulty("tiny-box", np.flatnonzero(boxes & TINY), "bbox"),
        Faulty("wrong-area", np.flatnonzero(boxes & WRONG_AREA), "area"),
    ]
    return [faulty for faulty in found if len(faulty)]


EMPTY, OUTSIDE, OVERHANGING, WRONG_AREA, TINY = 1, 2, 4, 8, 16


def _box_faults(index: CocoIndex, start: int) -> np.ndarray:
    """(n,) uint8, those five of `BLOCK` objects: few enough that temporaries stay in the cache.

    An area is wrong if it is zero, or larger than that of the box can be; NaN, absent, is not.
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


_NONE = np.zeros(0, np.int64)
_MIXERS = np.random.default_rng(0).integers(1, 2**64, 6, np.uint64) | np.uint64(1)  # odd


def tell(index: CocoIndex, faulty: Faulty, action: str) -> Iterator[Finding]:
    """A finding for each record, with its id and value."""
    if faulty.kind == "bad-mask":
        rows, severity = set(faulty.rows.tolist()), finding("bad-mask", "", action).severity
        for fault in index.mask_faults.findings:
            if fault.kind == "bad-mask" and fault.place.index in rows:
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
    """What the value is to be compared with."""
    if kind == "unknown-image":
        return ", which no image has"
    if kind == "bare-picture":
        return f", the picture {short(record['file_name'])}: no object is annotated"
    if kind in ("outside-box", "overhanging-box"):
        height, width = index.images.sizes[index.objects.image[row]].tolist()
        return f", the picture {width}x{height}"
    if kind == "wrong-area":
        return f", the box {short(record['bbox'])}"
    return ""


def _bad_masks(index: CocoIndex) -> np.ndarray:
    rows = [f.place.index for f in index.mask_faults.findings if f.kind == "bad-mask"]
    return np.unique(np.array(rows, np.int64))


def _missing_masks(index: CocoIndex) -> np.ndarray:
    """Objects that say nothing or nothing usable, malformed ones aside."""
    if not index.has_masks:
        return _NONE
    bare = index.objects.masks.is_empty()
    bare[_bad_masks(index)] = False
    return np.flatnonzero(bare)


def _odd_crowds(index: CocoIndex) -> np.ndarray:
    """Where 'iscrowd' is no number; columns hold what it was taken for."""
    if "iscrowd" not in index.object_keys:
        return _NONE
    texts = index.objects.extras.texts()
    return np.array(
        [i for i, t in enumerate(texts) if t and json.loads(t).get("iscrowd") is not None], np.int64
    )


def _duplicate_boxes(index: CocoIndex) -> np.ndarray:
    """All but the first of those of one picture, class and box."""
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
    for row in alike.tolist():  # few; alike in the mixture is not yet alike
        key = (objects.image_ids[row], objects.category[row], *objects.bbox[row].tolist())
        if key in seen:
            rows.append(row)
        seen.add(key)
    return np.array(rows, np.int64)


def _repeats(
    values: np.ndarray, valid: np.ndarray | None = None, *, with_first: bool = False
) -> np.ndarray:
    """Where a value stands that another row before has, or any other row `with_first`."""
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
    seen: set[str] = set()
    return np.array([i for i, n in enumerate(names) if n in seen or seen.add(n)], np.int64)
