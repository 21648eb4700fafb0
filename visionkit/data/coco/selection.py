"""Select the objects of a COCO file that are used: what `on_fault` does to faulty records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
from visionkit.data.coco.columns import rows_of
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.quality import FaultyRows, find_faulty, report

if TYPE_CHECKING:
    from visionkit.types import Classes

log = logging.getLogger("visionkit")
ALWAYS = ("empty-box", "outside-box", "other-class")  # in `dropped` even if there are none
LOOKS_WRONG = 0.05  # of all boxes far beyond their image: probably corners


@dataclass(frozen=True)
class SelectedObjects:
    """The objects that are used, and the findings about all."""

    rows: np.ndarray  # (N,) int32, the row of each in the file
    starts: np.ndarray  # (I+1,) where those of each image begin among `rows`
    skipped: np.ndarray  # (M,) int32, the rows of dropped objects of the wanted classes
    skipped_starts: np.ndarray  # (I+1,) where those of each image begin among `skipped`
    labels: np.ndarray  # (N,) int32
    label_counts: np.ndarray  # (K,) objects without crowd regions, by label
    faulty: list[FaultyRows]  # of the wanted classes
    actions: Mapping[str, Action]  # by kind
    others: int  # objects of classes that are not wanted
    remarks: list[Finding]  # about the file as a whole

    @property
    def num_objects(self) -> int:
        """Without crowd regions."""
        return int(self.label_counts.sum())

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
            counts["kept"][remark.kind] = counts["kept"].get(remark.kind, 0) + 1
        return counts

    def bad_masks(self) -> np.ndarray:
        """The rows of malformed segmentations."""
        rows = [f.rows for f in self.faulty if f.kind == "bad-mask"]
        return rows[0] if rows else np.zeros(0, np.int64)

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
) -> SelectedObjects:
    """Apply `actions` by kind to what `find_faulty` finds; errors go to `problems`.

    `names` are those of the images; `masks` says whether segmentations are used.
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
            problems.findings += report(index, group, "error")

    used = wanted & (objects.image >= 0)
    for group in faulty:
        if actions[group.kind] == "drop":
            used[group.rows] = False
    faulty = _of_used(faulty, actions, used)
    by_image, images = objects.rows_by_image(), np.arange(len(index.images.ids) + 1)
    skipped = by_image[(wanted & (objects.image >= 0) & ~used)[by_image]]
    order = by_image[used[by_image]]
    starts = np.searchsorted(objects.image[order], images)
    bare = np.flatnonzero(np.diff(starts) == 0)
    if len(bare) and len(order):
        faulty.append(FaultyRows("no-annotations", bare, "id", "images"))
    single = objects.iscrowd[order] != 1
    return SelectedObjects(
        rows=order.astype(np.int32),
        starts=starts,
        skipped=skipped.astype(np.int32),
        skipped_starts=np.searchsorted(objects.image[skipped], images),
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
    """Without remarks on objects that are dropped for another reason."""
    found = []
    for group in faulty:
        if actions[group.kind] == "keep" and group.list == "annotations":
            group = FaultyRows(group.kind, group.rows[used[group.rows]], group.key)
        found += [group] if len(group) else []
    return found


def _far_over(index: CocoIndex, used: np.ndarray, faulty: list[FaultyRows]) -> int:
    """How many boxes end more than a twentieth of their image beyond it."""
    over = [group.rows for group in faulty if group.kind == "overhanging-box"]
    rows = over[0][used[over[0]]] if over else np.zeros(0, np.int64)
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
    """Findings about all objects together."""
    found, file = [], str(index.path)
    if overhang > LOOKS_WRONG * len(order):
        found.append(
            finding(
                "xyxy-boxes",
                f"{overhang} boxes reach far beyond their image; are they [x, y, width, height]?",
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


LOUD = ("xyxy-boxes", "all-crowd")  # remarks that are logged at each opening


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
