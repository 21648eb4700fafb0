"""What a COCO file could be used with, but hardly was meant to say; found on whole columns."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import (
    DONE,
    Finding,
    FindingCounts,
    Problems,
    class_findings,
    count_findings,
    finding,
)
from visionkit.data.checks.kinds import FINDING_KINDS, Action
from visionkit.data.coco.columns import UNMAPPED, Record, place, rows_of, short
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.tables import SegmentationTable
from visionkit.data.masks import Bitmap, Segmentation, paint
from visionkit.types import Classes

# --- Which objects of a COCO file are used: sorted by image, without those that are left out.

log = logging.getLogger("visionkit")
ALWAYS = ("empty-box", "outside-box", "other-class")  # told where there is none, too
LOOKS_WRONG = 0.05  # of all boxes far beyond their image: they are corners


@dataclass(frozen=True)
class SelectedObjects:
    """The objects that are used, and all that is remarkable about the others."""

    rows: np.ndarray  # (N,) int32, where each stands in the file
    starts: np.ndarray  # (I+1,) where those of each image begin among `rows`
    left: np.ndarray  # (M,) int32, those of wanted classes that are left out
    left_starts: np.ndarray  # (I+1,) where those of each image begin among `left`
    labels: np.ndarray  # (N,) int32
    label_counts: np.ndarray  # (K,) objects that are no crowd region, by label
    faulty: list[FaultyRows]  # of the wanted classes
    actions: Mapping[str, Action]  # by kind
    others: int  # objects of classes that are not wanted
    remarks: list[Finding]  # about the file as a whole

    @property
    def num_objects(self) -> int:
        """Those that are no crowd region."""
        return int(self.label_counts.sum())

    @property
    def dropped(self) -> dict[str, int]:
        """How many are left out, by reason in words."""
        counts = dict.fromkeys(ALWAYS, 0) | self.counts()["dropped"]
        return {FINDING_KINDS[kind].title: count for kind, count in counts.items()}

    def counts(self) -> FindingCounts:
        """How many records of each kind were left out, fixed and kept, remarks included."""
        counts = count_findings()
        for group in self.faulty:
            if self.actions[group.kind] != "error":
                counts[DONE[self.actions[group.kind]]][group.kind] = len(group)
        if self.others:
            counts["dropped"]["other-class"] = self.others
        for remark in self.remarks:
            counts["kept"][remark.kind] = counts["kept"].get(remark.kind, 0) + 1
        return counts

    def bad_masks(self) -> np.ndarray:
        """Objects whose malformed segmentation is not to be read."""
        rows = [f.rows for f in self.faulty if f.kind == "bad-mask"]
        return rows[0] if rows else np.zeros(0, np.int64)

    def findings(self, index: CocoIndex) -> Iterator[Finding]:
        """Every one of the faulty records, then the remarks."""
        for faulty in self.faulty:
            yield from tell(index, faulty, self.actions[faulty.kind])
        yield from self.remarks


def choose_objects(
    index: CocoIndex,
    names: list[str],
    classes: Classes,
    actions: Mapping[str, Action],
    problems: Problems,
    *,
    masks: bool,
) -> SelectedObjects:
    """Apply `actions` by kind to what `find_faulty` finds; what is an error goes to `problems`.

    `names` are those of the images; `masks` says whether segmentations are read.
    """
    objects = index.objects
    actions = {name: kind.default for name, kind in FINDING_KINDS.items()} | dict(actions)
    labels = rows_of(objects.category, np.array(classes.ids))
    wanted = labels >= 0
    faulty = []
    for kind, rows, key, where in find_faulty(index, names, masks=masks):
        rows = rows if where == "images" or kind == "unknown-image" else rows[wanted[rows]]
        if len(rows):
            faulty.append(FaultyRows(kind, rows, key, where))
    for group in faulty:
        if actions[group.kind] == "error":
            problems.findings += tell(index, group, "error")

    used = wanted & (objects.image >= 0)
    for group in faulty:
        if actions[group.kind] == "drop":
            used[group.rows] = False
    faulty = _of_used(faulty, actions, used)
    by_image, images = objects.rows_by_image(), np.arange(len(index.images.ids) + 1)
    left = by_image[(wanted & (objects.image >= 0) & ~used)[by_image]]
    order = by_image[used[by_image]]
    starts = np.searchsorted(objects.image[order], images)
    bare = np.flatnonzero(np.diff(starts) == 0)
    if len(bare) and len(order):
        faulty.append(FaultyRows("no-annotations", bare, "id", "images"))
    single = objects.iscrowd[order] != 1
    return SelectedObjects(
        rows=order.astype(np.int32),
        starts=starts,
        left=left.astype(np.int32),
        left_starts=np.searchsorted(objects.image[left], images),
        labels=labels[order].astype(np.int32),
        label_counts=np.bincount(labels[order][single], minlength=len(classes.names)),
        faulty=faulty,
        actions=actions,
        others=int((~wanted).sum()),
        remarks=_remarks(index, order, single, labels, classes, _far_over(index, used, faulty)),
    )


def _of_used(
    faulty: list[FaultyRows], actions: Mapping[str, Action], used: np.ndarray
) -> list[FaultyRows]:
    """Without remarks on objects that are left out for another reason."""
    found = []
    for group in faulty:
        if actions[group.kind] == "keep" and group.list == "annotations":
            group = FaultyRows(group.kind, group.rows[used[group.rows]], group.key)
        found += [group] if len(group) else []
    return found


def _far_over(index: CocoIndex, used: np.ndarray, faulty: list[FaultyRows]) -> int:
    """How many boxes end beyond their image by more than a twentieth of it."""
    rows = [group.rows for group in faulty if group.kind == "overhanging-box"]
    rows = rows[0][used[rows[0]]] if rows else np.zeros(0, np.int64)
    boxes, sizes = index.objects.bbox[rows], index.images.sizes[index.objects.image[rows]]
    return int((boxes[:, :2] + boxes[:, 2:] > 1.05 * sizes[:, ::-1]).any(1).sum())


def _remarks(
    index: CocoIndex,
    order: np.ndarray,
    single: np.ndarray,
    labels: np.ndarray,
    classes: Classes,
    overhang: int,
) -> list[Finding]:
    """What is remarkable about all objects together."""
    found, file = [], str(index.path)
    if overhang > LOOKS_WRONG * len(order):
        found.append(
            finding(
                "xyxy-boxes",
                f"{overhang} boxes reach far beyond their image; are they really "
                "[x, y, width, height]?",
                file=file,
                key="bbox",
            )
        )
    if len(order) and not single.any():
        found.append(finding("all-crowd", f"all {len(order)} objects are crowd regions", file=file))
    if len(order):
        counts = np.bincount(labels[order], minlength=len(classes.names))
        found += class_findings(classes.names, counts, "object", file)
    return found


LOUD = ("xyxy-boxes", "all-crowd")  # remarks that are worth a line at each opening


def warn(file: str, objects: SelectedObjects) -> None:
    """Log once what was left out, changed, or looks wrong."""
    notes = [f"{count} {what} left out" for what, count in objects.dropped.items() if count]
    remarks = {remark.kind for remark in objects.remarks}
    for done in ("fixed", "kept"):
        notes += [
            f"{count} {FINDING_KINDS[kind].title} {done}"
            for kind, count in objects.counts()[done].items()
            if FINDING_KINDS[kind].severity == "warning" and kind not in remarks
        ]
    notes += [remark.message for remark in objects.remarks if remark.kind in LOUD]
    if notes:
        log.warning("%s: %s", file, "; ".join(notes))


# --- Whether each segmentation of a COCO file agrees with its box and its area. It reads them
# all, so only `visionkit check` looks.

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
            yield _told(index, row, "empty-mask", "segmentation", "the outline covers no pixel")
        elif is_off and _is_off(said, area):
            what = f"'area' is {said:g}, but the mask has {area:g} pixels"
            yield _told(index, row, "wrong-area", "area", what)
        x, y, w, h = index.objects.bbox[row].tolist()
        box = np.array([x, y, x + w, y + h])
        if w > 0 and h > 0 and _is_elsewhere(outline.bounds, box):
            shown = short([round(side, 2) for side in outline.bounds.tolist()])
            what = f"'bbox' is {short([x, y, w, h])}, but the mask reaches over {shown} (xyxy)"
            yield _told(index, row, "mask-box-mismatch", "bbox", what)


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


TOLERANCE = 1.0  # pixels by which a box may reach out of its image: rounding
BLOCK = 1 << 13  # objects looked at together
MUCH = 1.1  # an area that is larger than its box by this factor is wrong


class FaultyRows(NamedTuple):
    """All records of one list that have one kind of fault."""

    kind: str
    rows: np.ndarray  # (N,) places in the list
    key: str  # that shows it
    list: str = "annotations"

    def __len__(self) -> int:
        return len(self.rows)


@np.errstate(over="ignore", invalid="ignore")  # absurd numbers are told elsewhere
def find_faulty(index: CocoIndex, names: list[str], *, masks: bool) -> list[FaultyRows]:
    """The kinds that occur, in the order of `FINDING_KINDS`; `names` are those of the images. Costs
    a few passes over the columns, nothing for each record."""
    objects = index.objects
    starts = range(0, len(objects.ids), BLOCK)
    boxes = np.concatenate([_NONE.astype(np.uint8), *(_box_faults(index, at) for at in starts)])
    known = objects.image >= 0
    unknown = ~known & (objects.image_ids != UNMAPPED)
    if (index.images.ids == UNMAPPED).any():  # they may be those of the images with a bad id
        unknown[:] = False
    found = [
        FaultyRows("unknown-image", np.flatnonzero(unknown), "image_id"),
        FaultyRows("negative-area", np.flatnonzero(objects.area < 0), "area"),
        FaultyRows("bad-mask", _bad_masks(index) if masks else _NONE, "segmentation"),
        FaultyRows("empty-box", np.flatnonzero(boxes & EMPTY), "bbox"),
        FaultyRows("outside-box", np.flatnonzero(boxes & OUTSIDE), "bbox"),
        FaultyRows("overhanging-box", np.flatnonzero(boxes & OVERHANGING), "bbox"),
        FaultyRows("crowd-value", _odd_crowds(index), "iscrowd"),
        FaultyRows("missing-area", np.flatnonzero(np.isnan(objects.area)), "area"),
        FaultyRows("missing-mask", _missing_masks(index) if masks else _NONE, "segmentation"),
        FaultyRows("duplicate-box", _duplicate_boxes(index), "bbox"),
        FaultyRows("duplicate-id", _repeats(objects.ids, objects.ids != UNMAPPED), "id"),
        FaultyRows("duplicate-name", _repeated_names(names), "file_name", "images"),
        FaultyRows("tiny-box", np.flatnonzero(boxes & TINY), "bbox"),
        FaultyRows("wrong-area", np.flatnonzero(boxes & WRONG_AREA), "area"),
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


def tell(index: CocoIndex, faulty: FaultyRows, action: str) -> Iterator[Finding]:
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
    if kind == "no-annotations":
        return f", the image {short(record['file_name'])}: no object is annotated"
    if kind in ("outside-box", "overhanging-box"):
        height, width = index.images.sizes[index.objects.image[row]].tolist()
        return f", the image {width}x{height}"
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
    """All but the first of those of one image, class and box."""
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
