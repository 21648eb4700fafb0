"""Detections as columns, and the check that refuses those that must not be scored."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral, Real
from operator import itemgetter
from typing import Any

import numpy as np

from visionkit.data.checks.findings import short
from visionkit.data.coco.segmentations import rle_totals
from visionkit.data.coco.tables import FARTHEST, rows_of
from visionkit.errors import DataError, listed
from visionkit.metrics.coco.ground_truth import IouType, ScoredTruth, sizes_of

LARGEST = sys.float_info.max
KEY = {"bbox": "bbox", "segm": "segmentation"}


@dataclass(frozen=True)
class Detections:
    """N detections in the order of their file, as its ids and numbers."""

    image_ids: np.ndarray  # (N,) int64
    category_ids: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float64
    boxes: np.ndarray | None = None  # (N, 4) float64 x, y, w, h
    masks: list[dict[str, Any]] | None = None  # (N,) compressed RLE
    areas: np.ndarray | None = None  # (N,) float64, of the box or the mask; set by the checker

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray) -> Detections:
        """Those rows, or those where a mask (N,) bool is true."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Detections(
            self.image_ids[rows],
            self.category_ids[rows],
            self.scores[rows],
            None if self.boxes is None else self.boxes[rows],
            None if self.masks is None else [self.masks[i] for i in rows.tolist()],
            None if self.areas is None else self.areas[rows],
        )

    def records(self) -> list[dict[str, Any]]:
        """COCO result records."""
        columns: dict[str, list[Any]] = {
            "image_id": self.image_ids.tolist(),
            "category_id": self.category_ids.tolist(),
        }
        if self.boxes is not None:
            columns["bbox"] = self.boxes.tolist()
        columns["score"] = self.scores.tolist()
        if self.masks is not None:
            columns["segmentation"] = self.masks
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def concatenate(parts: Sequence[Detections], iou_type: IouType) -> Detections:
    """All parts, with the boxes or the masks only."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Detections(none, none, np.zeros(0), np.zeros((0, 4)), [], np.zeros(0))
    for part in parts:
        if iou_type == "segm" and part.masks is None and len(part):
            raise DataError(f"detections of image_id {part.image_ids[0]} have no masks to score")
    areas = None if parts[0].areas is None else np.concatenate([p.areas for p in parts])
    return Detections(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]) if iou_type == "bbox" else None,
        [m for part in parts for m in part.masks or ()] if iou_type == "segm" else None,
        areas,
    )


class DetectionChecker:
    """Collects detections of one type in parts, and returns them if all of them are valid.

    The engines accept malformed input silently: a NaN box scores as perfect, an unknown category
    as wrong, a mask that is too short as anything. `source` begins the message. With `trust`, a
    score may be any finite number.
    """

    LIMIT = 20

    def __init__(self, truth: ScoredTruth, source: str = "", *, trust: bool = False) -> None:
        self.truth, self.iou_type, self.source = truth, truth.iou_type, source
        self.scores = (-LARGEST, LARGEST) if trust else (0.0, 1.0)
        self.parts: list[Detections] = []
        self.seen = self.refused = 0
        self.messages: list[str] = []  # of the first that were refused

    def add(self, results: Sequence[dict[str, Any]] | Detections) -> None:
        """Check some more; COCO result records or columns."""
        numbers = np.arange(self.seen, self.seen + len(results))
        self.seen += len(results)
        if isinstance(results, Detections):
            found, wrong = self._measured(results)
        else:
            try:
                found, wrong = self._measured(_columns(results, self.iou_type))
            except (KeyError, TypeError, ValueError, OverflowError):  # some are malformed; which?
                numbers, valid = self._one_by_one(numbers, results)
                found, wrong = self._measured(valid)
        rows = np.flatnonzero(wrong)
        self.refused += len(rows)
        for i in rows[: self.LIMIT - len(self.messages)]:
            record = found[np.array([i])].records()[0]
            self._report(numbers[i], record, _fault(record, self.truth, self.scores) or DAMAGED)
        self.parts.append(found)

    def detections(self) -> Detections:
        """All of them; `DataError` lists those that cannot be scored."""
        if self.refused:
            more = self.refused - len(self.messages)
            shown = [*self.messages, *([f"... and {more} more"] if more else [])]
            what = f"{self.refused} of {self.seen} detections cannot be scored"
            lines = [f"  {line}" for line in shown] + self._hints()
            raise DataError(f"{self.source}{what}:", *lines)
        return concatenate(self.parts, self.iou_type)

    def _hints(self) -> list[str]:
        """What all detections together look like."""
        hints = []
        for name, known in (
            ("category_id", self.truth.category_ids),
            ("image_id", self.truth.image_ids),
        ):
            ids = np.unique(np.concatenate([getattr(part, f"{name}s") for part in self.parts]))
            if len(known) and (rows_of(ids, known) < 0).any():
                hints.append(f"{name}: {_compared(ids, known)}")
        scores = np.concatenate([part.scores for part in self.parts])
        scores = scores[np.isfinite(scores)]
        low, high = (scores.min(), scores.max()) if len(scores) else self.scores
        if low < self.scores[0] or high > self.scores[1]:
            what = "logits" if low < 0 else "percent" if high <= 100 else "another unit"
            hints.append(
                f"scores reach from {low:g} to {high:g}: {what}? Convert them, or use --trust "
                "(trust=True): metrics depend on their order alone"
            )
        return hints

    def _report(self, number: int, record: Any, fault: str) -> None:
        if len(self.messages) < self.LIMIT:
            of = f" (image_id {short(record.get('image_id'))})" if isinstance(record, dict) else ""
            self.messages.append(f"result {number}{of}: {fault}")

    def _one_by_one(
        self, numbers: np.ndarray, records: Sequence[Any]
    ) -> tuple[np.ndarray, Detections]:
        sound = []
        for i, (number, record) in enumerate(zip(numbers, records, strict=True)):
            fault = _fault(record, self.truth, self.scores)
            if fault:
                self.refused += 1
                self._report(number, record, fault)
            else:
                ids = {key: int(record[key]) for key in ("image_id", "category_id")}
                sound.append((i, {**record, **ids}))
        rows = np.array([i for i, _ in sound], int)
        return numbers[rows], _columns([record for _, record in sound], self.iou_type)

    def _measured(self, found: Detections) -> tuple[Detections, np.ndarray]:
        """The same with areas, and (N,) bool: where `_fault` finds one or a mask is damaged."""
        image = rows_of(found.image_ids, self.truth.image_ids)
        wrong = (image < 0) | (rows_of(found.category_ids, self.truth.category_ids) < 0)
        wrong |= ~((found.scores >= self.scores[0]) & (found.scores <= self.scores[1]))
        if self.iou_type == "bbox":
            assert found.boxes is not None
            wrong |= ~(np.abs(found.boxes) <= FARTHEST).all(1) | (found.boxes[:, 2:] < 0).any(1)
            with np.errstate(over="ignore"):  # of what is wrong
                return replace(found, areas=found.boxes[:, 2] * found.boxes[:, 3]), wrong
        masks = found.masks or []
        sizes = _sizes(masks)
        wrong |= (sizes != sizes_of(image, self.truth.sizes)).any(1)
        covered, filled = rle_totals([mask["counts"] for mask in masks])
        return replace(found, areas=filled.astype(float)), wrong | (covered != sizes.prod(1))


DAMAGED = "segmentation: the RLE counts are damaged, or do not add up to the image's size"


def _columns(records: Sequence[dict[str, Any]], iou_type: IouType) -> Detections:
    """Records as columns, the fast way; raises if any number or box is malformed."""
    image_ids, category_ids, scores = (
        _column(kind, list(map(itemgetter(key), records)))
        for kind, key in (("q", "image_id"), ("q", "category_id"), ("d", "score"))
    )
    shapes = list(map(itemgetter(KEY[iou_type]), records))
    if iou_type == "segm":
        return Detections(image_ids, category_ids, scores, masks=shapes)
    if set(map(len, shapes)) - {4}:
        raise ValueError
    boxes = _column("d", list(chain.from_iterable(shapes))).reshape(-1, 4)
    return Detections(image_ids, category_ids, scores, boxes)


def _column(kind: str, values: list[Any]) -> np.ndarray:
    """As an array of that kind; raises if one is not a number. True and False are not."""
    column = np.array(array(kind, values))
    rows = np.flatnonzero((column == 0) | (column == 1))
    if bool in {type(values[i]) for i in rows.tolist()}:
        raise TypeError
    return column


def _sizes(masks: list[dict[str, Any]]) -> np.ndarray:
    """(N, 2) int64 h, w; raises if one is not two integers."""
    sizes = list(map(itemgetter("size"), masks))
    if set(map(len, sizes)) - {2} or bool in set(map(type, chain.from_iterable(sizes))):
        raise ValueError
    return np.array(array("q", chain.from_iterable(sizes)), np.int64).reshape(-1, 2)


def _compared(ids: np.ndarray, known: np.ndarray) -> str:
    """Ids of which some are unknown next to the known ones, and what they may be instead."""
    text = (
        f"the results have {len(ids)} from {ids.min()} to {ids.max()}, the annotations "
        f"{len(known)} from {known.min()} to {known.max()}"
    )
    for shift, word in ((1, "low"), (-1, "high")):
        if (rows_of(ids + shift, known) >= 0).all():
            return f"{text}: all are one too {word}"
    if ids.min() in (0, 1) and ids.max() - ids.min() < len(known):
        return f"{text}: are they places in the list, counted from {ids.min()}, instead of ids?"
    common = np.count_nonzero(rows_of(ids, known) >= 0)
    return f"{text}: {common} are in both; is it the right annotation file?"


def _fault(record: Any, truth: ScoredTruth, scores: tuple[float, float]) -> str | None:
    """What is wrong with one record, or None; the run lengths of a mask are not checked."""
    iou_type = truth.iou_type
    if not isinstance(record, dict):
        return f"{record!r:.60} is not an object"
    missing = [k for k in ("image_id", "category_id", "score", KEY[iou_type]) if k not in record]
    if missing:
        return f"lacks the key {missing[0]!r}; it has {listed(list(map(short, record)), 6)}"
    image, category = record["image_id"], record["category_id"]
    if not _is_number(image) or image not in truth.image_rows:
        return f"image_id {short(image)} is not in the annotations{_hint(image)}"
    if not _is_number(category) or category not in truth.category_rows:
        return f"category_id {short(category)} is not in the annotations{_hint(category)}"
    score = record["score"]
    if not _is_number(score) or not scores[0] <= score <= scores[1]:
        return f"score {short(score)} is not a number from 0 to 1"
    if iou_type == "segm":
        return _mask_fault(record["segmentation"], truth.sizes[truth.image_rows[image]].tolist())
    box = record["bbox"]
    is_box = isinstance(box, list | tuple | np.ndarray) and len(box) == 4
    is_box = is_box and all(_is_number(side) and abs(side) <= FARTHEST for side in box)
    if not is_box or box[2] < 0 or box[3] < 0:
        return f"bbox {short(box)} is not [x, y, width, height] with finite numbers"
    return None


def _hint(id_: Any) -> str:
    return ": must be an integer, without quotes" if isinstance(id_, str) else ""


def _mask_fault(mask: Any, expected: list[int]) -> str | None:
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        return "segmentation is not a run-length code {size: [h, w], counts: string}"
    size = mask["size"]
    is_plain = isinstance(size, list | tuple) and not any(isinstance(n, bool) for n in size)
    if not is_plain or not all(isinstance(n, Integral) for n in size) or list(size) != expected:
        return f"segmentation: mask of size {short(size)} on an image of {expected} (h, w)"
    if not isinstance(mask["counts"], str | bytes):
        return "segmentation: the counts of a detected mask must be a compressed string"
    return None


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and bool(-LARGEST <= value <= LARGEST)  # False for NaN
