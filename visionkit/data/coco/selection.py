"""The objects of a COCO file that are used: faulty records, found on whole columns, and what
`on_fault` does to them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from visionkit.data.checks.findings import (
    DONE,
    Finding,
    FindingCounts,
    Problems,
    count_findings,
    finding,
    place,
    short,
)
from visionkit.data.checks.kinds import FINDING_KINDS, Action
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.records import IGNORE_KEYS
from visionkit.data.coco.tables import UNMAPPED, Record, rows_of
from visionkit.errors import plural

if TYPE_CHECKING:
    from visionkit.types import Classes

log = logging.getLogger("visionkit")

ALWAYS = ("empty-box", "outside-box", "other-class")  # in `dropped` even if there are none
LOOKS_WRONG = 0.05  # of all boxes far beyond their image: probably corners
LOUD = ("xyxy-boxes", "all-crowd")  # remarks that are logged at each opening
FAR = 1.05  # times the size of the image
TOLERANCE = 1.0  # pixels by which a box may reach out of its image: rounding
BLOCK = 1 << 13  # objects checked together
MUCH = 1.1  # an area that is larger than its box by this factor is wrong

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

    def among(self, kept: np.ndarray) -> FaultyRows:
        """The same without the rows where `kept` is false."""
        return FaultyRows(self.kind, self.rows[kept[self.rows]], self.key, self.list)


@dataclass(frozen=True)
class SelectedObjects:
    """The objects that are used, and the findings about all."""

    rows: np.ndarray  # (N,) int32, the row of each in the file
    starts: np.ndarray  # (I+1,) where those of each image begin among `rows`
    skipped: np.ndarray  # (M,) int32, the rows of dropped objects of the wanted classes
    skipped_starts: np.ndarray  # (I+1,) where those of each image begin among `skipped`
    labels: np.ndarray  # (N,) int32; -1: a crowd region of no class
    iscrowd: np.ndarray  # (N,) bool
    label_counts: np.ndarray  # (K,) objects without crowd regions, by label
    faulty: list[FaultyRows]  # of the wanted classes
    actions: Mapping[str, Action]  # by kind
    others: int  # objects of classes that are not wanted
    remarks: list[Finding]  # about the file as a whole

    @property
    def dropped(self) -> dict[str, int]:
        """How many are dropped, by reason in words."""
        counts = dict.fromkeys(ALWAYS, 0) | self.counts()["dropped"]
        return {FINDING_KINDS[kind].title: count for kind, count in counts.items()}

    def counts(self) -> FindingCounts:
        """How many records of each kind were dropped, fixed and kept, remarks included."""
        counts = count_findings()
        for group in self.faulty:
            if self.actions[group.kind] != "error":
                counts[DONE[self.actions[group.kind]]][group.kind] = len(group)
        if self.others:
            counts["dropped"]["other-class"] = self.others
        for remark in self.remarks:
            done = counts[DONE[remark.action]]
            done[remark.kind] = done.get(remark.kind, 0) + 1
        return counts

    def rows_with(self, kind: str) -> np.ndarray:
        """The rows of that kind of fault."""
        return next((group.rows for group in self.faulty if group.kind == kind), _NONE)

    def findings(self, index: CocoIndex) -> Iterator[Finding]:
        """One for each faulty record, then the remarks."""
        for faulty in self.faulty:
            yield from report(index, faulty, self.actions[faulty.kind])
        yield from self.remarks


def choose_objects(
    index: CocoIndex,
    names: list[str],
    classes: Classes,
    actions: Mapping[str, Action],
    problems: Problems,
    *,
    masks: bool,
    ignored_ids: Sequence[int] = (),
) -> SelectedObjects:
    """Apply `actions` by kind to what `find_faulty` finds; errors go to `problems`.

    `names` are those of the images; `masks` says whether segmentations are used. Objects of the
    categories `ignored_ids` become crowd regions without a class.
    """
    objects = index.objects
    actions = {name: kind.default for name, kind in FINDING_KINDS.items()} | dict(actions)
    labels = rows_of(objects.category, np.array(classes.ids))
    of_no_class = np.isin(objects.category, np.array(ignored_ids, np.int64))
    wanted = (labels >= 0) | of_no_class | bool(problems.count)  # with errors: of any class
    used = wanted & (objects.image >= 0)
    faulty = []
    for group in find_faulty(index, names, masks=masks):
        if group.list == "annotations" and group.kind != "unknown-image":
            group = group.among(wanted)
        faulty.append(group)
        if actions[group.kind] == "error":
            problems.findings += report(index, group, "error")
        elif actions[group.kind] == "drop":
            used[group.rows] = False
    faulty = [  # no remarks on objects that are dropped for another reason
        group.among(used)
        if actions[group.kind] == "keep" and group.list == "annotations"
        else group
        for group in faulty
    ]
    faulty = [group for group in faulty if len(group)]
    by_image, images = objects.rows_by_image(), np.arange(len(index.images.ids) + 1)
    skipped = by_image[(wanted & (objects.image >= 0) & ~used)[by_image]]
    order = by_image[used[by_image]]
    starts = np.searchsorted(objects.image[order], images)
    bare = np.flatnonzero(np.diff(starts) == 0)
    if len(bare) and len(order):
        faulty.append(FaultyRows("no-annotations", bare, "id", "images"))
    iscrowd = (objects.iscrowd[order] == 1) | (labels[order] < 0)
    over = next((group.rows for group in faulty if group.kind == "overhanging-box"), _NONE)
    return SelectedObjects(
        rows=order.astype(np.int32),
        starts=starts,
        skipped=skipped.astype(np.int32),
        skipped_starts=np.searchsorted(objects.image[skipped], images),
        labels=labels[order].astype(np.int32),
        iscrowd=iscrowd,
        label_counts=np.bincount(labels[order][~iscrowd], minlength=len(classes.names)),
        faulty=faulty,
        actions=actions,
        others=int((~wanted).sum()),
        remarks=_remarks(index, order, iscrowd, of_no_class, over[used[over]]),
    )


def _remarks(
    index: CocoIndex,
    order: np.ndarray,
    iscrowd: np.ndarray,
    of_no_class: np.ndarray,
    over: np.ndarray,
) -> list[Finding]:
    """Findings about all objects together; `over` are the rows of used overhanging boxes."""
    found, file = [], str(index.path)
    for name in index.spare:
        text = f"category {name!r} is there twice; the one without objects is dropped"
        found.append(finding("spare-category", text, file=file, value=name))
    regions = int((np.isin(order, ignored(index)) | of_no_class[order]).sum())
    if regions:
        text = f"{plural(regions, 'region')} to ignore: neither objects nor background"
        found.append(finding("ignore-region", text, file=file))
    boxes, sizes = index.objects.bbox[over], index.images.sizes[index.objects.image[over]]
    far = int((boxes[:, :2] + boxes[:, 2:] > FAR * sizes[:, ::-1]).any(1).sum())
    if far > LOOKS_WRONG * len(order):
        text = f"{far} boxes reach far beyond their image; are they [x, y, width, height]?"
        found.append(finding("xyxy-boxes", text, file=file, key="bbox"))
    if len(order) and iscrowd.all():
        found.append(finding("all-crowd", f"all {len(order)} objects are crowd regions", file=file))
    return found


def warn(file: str, objects: SelectedObjects) -> None:
    """Log once what was dropped, changed, or looks wrong."""
    notes = [f"{count} {what} dropped" for what, count in objects.dropped.items() if count]
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
        FaultyRows("missing-box", _rows_where(index, ("bbox",), lambda e: "bbox" in e), "bbox"),
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
    area = objects.area[part]
    known = (objects.image[part] >= 0) & (np.minimum(width, height) > 0)
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
        shown = short(record.get(faulty.key))
        what = f"'{faulty.key}' is {shown}" if faulty.key in record else f"no '{faulty.key}'"
        what += _because(index, faulty.kind, row, record)
        yield describe(index, faulty.kind, row, faulty.key, what, action, list_=faulty.list)


def describe(
    index: CocoIndex,
    kind: str,
    row: int,
    key: str,
    what: str,
    action: Action | None = None,
    *,
    list_: str = "annotations",
) -> Finding:
    """A finding about a key of the record in that row."""
    record = (index.images if list_ == "images" else index.objects).record(row)
    where, value = place(list_, row, record), short(record.get(key))
    return finding(kind, what, action, file=str(index.path), place=where, key=key, value=value)


def _because(index: CocoIndex, kind: str, row: int, record: Record) -> str:
    """What the value contradicts."""
    if kind == "unknown-image":
        return ", which is not in 'images'"
    if kind == "no-annotations":
        name = record.get("file_name") or record.get("coco_url")
        return f", the image {short(name)}: no object is annotated"
    if kind in ("outside-box", "overhanging-box"):
        height, width = index.images.sizes[index.objects.image[row]].tolist()
        return f", the image {width}x{height}"
    if kind == "wrong-area":
        return f", the box {short(index.objects.bbox[row].tolist())}"
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
    return _rows_where(index, ("iscrowd",), lambda extra: extra.get("iscrowd") is not None)


def ignored(index: CocoIndex) -> np.ndarray:
    """The rows of objects with one of `IGNORE_KEYS`; columns have them as crowd regions."""
    marked = _rows_where(index, IGNORE_KEYS, lambda extra: any(map(extra.get, IGNORE_KEYS)))
    return marked[index.objects.iscrowd[marked] == 1]


def _rows_where(
    index: CocoIndex, keys: Sequence[str], wanted: Callable[[Record], bool]
) -> np.ndarray:
    """The rows whose `extra`, with one of these keys, is wanted."""
    if not set(keys) & set(index.object_keys):
        return _NONE
    texts = enumerate(index.objects.extras.texts())
    return np.array([i for i, text in texts if text and wanted(json.loads(text))], np.int64)


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
