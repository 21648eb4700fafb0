"""Which objects of a COCO file are used: sorted by picture, without those that are left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from visionkit.data.class_remarks import class_remarks
from visionkit.data.coco_columns import rows_of
from visionkit.data.coco_index import CocoIndex
from visionkit.data.coco_quality import Faulty, find_faulty, tell
from visionkit.data.fault_kinds import KINDS, Action
from visionkit.data.problems import DONE, Finding, Problems, Tally, empty_tally, finding
from visionkit.types import Classes

log = logging.getLogger("visionkit")
ALWAYS = ("empty-box", "outside-box", "other-class")  # told where there is none, too
LOOKS_WRONG = 0.05  # of all boxes far beyond their picture: they are corners


@dataclass(frozen=True)
class Objects:
    """The objects that are used, and all that is remarkable about the others."""

    rows: np.ndarray  # (N,) int32, where each stands in the file
    starts: np.ndarray  # (I+1,) where those of each picture begin among `rows`
    left: np.ndarray  # (M,) int32, those of wanted classes that are left out
    left_starts: np.ndarray  # (I+1,) where those of each picture begin among `left`
    labels: np.ndarray  # (N,) int32
    counts: np.ndarray  # (K,) objects that are no crowd region, by label
    faulty: list[Faulty]  # of the wanted classes
    actions: Mapping[str, Action]  # by kind
    others: int  # objects of classes that are not wanted
    remarks: list[Finding]  # about the file as a whole

    @property
    def num_objects(self) -> int:
        """Those that are no crowd region."""
        return int(self.counts.sum())

    @property
    def dropped(self) -> dict[str, int]:
        """How many are left out, by reason in words."""
        counts = dict.fromkeys(ALWAYS, 0) | self.tally()["left_out"]
        return {KINDS[kind].title: count for kind, count in counts.items()}

    def tally(self) -> Tally:
        """How many records of each kind were left out, fixed and kept, remarks included."""
        counts = empty_tally()
        for group in self.faulty:
            if self.actions[group.kind] != "error":
                counts[DONE[self.actions[group.kind]]][group.kind] = len(group)
        if self.others:
            counts["left_out"]["other-class"] = self.others
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
) -> Objects:
    """Apply `actions` by kind to what `find_faulty` finds; what is an error goes to `problems`.

    `names` are those of the pictures; `masks` says whether segmentations are read.
    """
    objects = index.objects
    actions = {name: kind.default for name, kind in KINDS.items()} | dict(actions)
    labels = rows_of(objects.category, np.array(classes.ids))
    wanted = labels >= 0
    faulty = []
    for kind, rows, key, where in find_faulty(index, names, masks=masks):
        rows = rows if where == "images" or kind == "unknown-image" else rows[wanted[rows]]
        if len(rows):
            faulty.append(Faulty(kind, rows, key, where))
    for group in faulty:
        if actions[group.kind] == "error":
            problems.findings += tell(index, group, "error")

    used = wanted & (objects.image >= 0)
    for group in faulty:
        if actions[group.kind] == "drop":
            used[group.rows] = False
    faulty = _of_used(faulty, actions, used)
    by_image, pictures = objects.rows_by_image(), np.arange(len(index.images.ids) + 1)
    left = by_image[(wanted & (objects.image >= 0) & ~used)[by_image]]
    order = by_image[used[by_image]]
    starts = np.searchsorted(objects.image[order], pictures)
    bare = np.flatnonzero(np.diff(starts) == 0)
    if len(bare) and len(order):
        faulty.append(Faulty("bare-picture", bare, "id", "images"))
    single = objects.iscrowd[order] != 1
    return Objects(
        rows=order.astype(np.int32),
        starts=starts,
        left=left.astype(np.int32),
        left_starts=np.searchsorted(objects.image[left], pictures),
        labels=labels[order].astype(np.int32),
        counts=np.bincount(labels[order][single], minlength=len(classes.names)),
        faulty=faulty,
        actions=actions,
        others=int((~wanted).sum()),
        remarks=_remarks(index, order, single, labels, classes, _far_over(index, used, faulty)),
    )


def _of_used(faulty: list[Faulty], actions: Mapping[str, Action], used: np.ndarray) -> list[Faulty]:
    """Without remarks on objects that are left out for another reason."""
    found = []
    for group in faulty:
        if actions[group.kind] == "keep" and group.list == "annotations":
            group = Faulty(group.kind, group.rows[used[group.rows]], group.key)
        found += [group] if len(group) else []
    return found


def _far_over(index: CocoIndex, used: np.ndarray, faulty: list[Faulty]) -> int:
    """How many boxes end beyond their picture by more than a twentieth of it."""
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
                f"{overhang} boxes reach far beyond their picture; are they really "
                "[x, y, width, height]?",
                file=file,
                key="bbox",
            )
        )
    if len(order) and not single.any():
        found.append(finding("all-crowd", f"all {len(order)} objects are crowd regions", file=file))
    if len(order):
        counts = np.bincount(labels[order], minlength=len(classes.names))
        found += class_remarks(classes.names, counts, "objects", file)
    return found


LOUD = ("xyxy-boxes", "all-crowd")  # remarks that are worth a line at each opening


def warn(file: str, objects: Objects) -> None:
    """Log once what was left out, changed, or looks wrong."""
    notes = [f"{count} {what} left out" for what, count in objects.dropped.items() if count]
    remarks = {remark.kind for remark in objects.remarks}
    for done in ("fixed", "kept"):
        notes += [
            f"{count} {KINDS[kind].title} {done}"
            for kind, count in objects.tally()[done].items()
            if KINDS[kind].severity == "warning" and kind not in remarks
        ]
    notes += [remark.message for remark in objects.remarks if remark.kind in LOUD]
    if notes:
        log.warning("%s: %s", file, "; ".join(notes))
