"""The parts of a report on boxes or masks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from visionkit.data.coco.segmentations import to_rle
from visionkit.errors import listed, plural
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.engines import evaluated
from visionkit.metrics.coco.ground_truth import ScoredTruth
from visionkit.metrics.coco.matches import IOUS, Matches, match_objects
from visionkit.metrics.coco.mistakes import Mistakes, find_mistakes
from visionkit.metrics.comparison import Subject
from visionkit.metrics.intervals import average_precision
from visionkit.metrics.parts import (
    Bars,
    Chart,
    Gallery,
    Mark,
    Matrix,
    Part,
    Row,
    Series,
    Shown,
    Table,
    calibration_chart,
    confusion_part,
    most_confused,
    weakest,
)
from visionkit.metrics.thresholds import Thresholds, at_score, detection_curves

SHOWN_CLASSES = 12  # of a chart
ERRORS = {  # TIDE (Bolya et al. 2020)
    "Cls": "class: right box, wrong class",
    "Loc": "location: right class, IoU 0.1 to 0.5",
    "Both": "both wrong",
    "Dupe": "duplicate of a detection with a higher score",
    "Bkg": "background",
    "Miss": "missed object",
}
DEFAULT = 0.5  # threshold without one that was found


class DetectionReport:
    """Everything that a report says about the checked detections of one type.

    `thresholds` are those that the model uses; without them the ones found here are. With
    `engine` hotcoco there are more parts; `without` says what else would be. The worst images are
    the first `images`, or those in `only`.
    """

    def __init__(
        self,
        truth: ScoredTruth,
        found: Detections,
        metrics: Mapping[str, float],
        engine: str,
        thresholds: Thresholds | None = None,
        *,
        default: float = DEFAULT,
        images: int = 24,
        iou: float = 0.5,
        only: frozenset[int] | None = None,
    ) -> None:
        self.truth, self.found, self.metrics, self.engine = truth, found, metrics, engine
        self.images, self.iou, self.only = images, iou, only
        self.matches: Matches = match_objects(truth, found, engine)
        self.level = int(np.abs(IOUS - iou).argmin())
        self.curves, self.pooled = detection_curves(self.matches, self.level)
        used = thresholds or Thresholds.of(self.curves, self.pooled) or Thresholds(default)
        self.thresholds = used
        self.mistakes: Mistakes = find_mistakes(truth, found, used.best(truth.names), iou)

    def parts(self) -> list[Part]:
        """All parts, the most useful first."""
        return [*self._parts()]

    def image_ids(self) -> np.ndarray:
        """(I,) the images that are resampled for an interval."""
        return self.truth.image_ids

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """AP, AP50, AP75 and AP by class (R,) in replicates with these weights (R, I)."""
        return resampled(self.matches, weights)

    def sentences(self) -> list[str]:
        """What stands out: the weakest classes, the most frequent confusion, the main error."""
        names = self.truth.names
        found = weakest(names, [self.metrics.get(f"AP/{name}", np.nan) for name in names], "AP")
        never = [
            f"{name} ({plural(one.positives, 'object')})"
            for name, one in self.curves.items()
            if one.positives and not one.hits.any()
        ]
        if never:
            found.insert(0, f"Never found: {listed(never, 5)}.")
        counts = self.mistakes.confusion()
        pairs, totals = counts[:-1, :-1], counts[:-1].sum(1)
        found += most_confused(names, pairs, totals, "detected as", "objects")
        if self.engine == "hotcoco" and not never:  # TIDE leaves classes without a hit as they are
            gains = self.errors.values
            text, gain = max(gains.items(), key=lambda one: one[1])
            found.append(f"The error that costs most: {text} ({gain:.3f} AP50).")
        missed, wrong = int(counts[:-1, -1].sum()), int(counts[-1, :-1].sum())
        objects = int(counts[:-1].sum())
        found.append(
            f"At the thresholds, {missed} of {objects} objects are missed and {wrong} detections "
            "are of background."
        )
        return found

    def _parts(self) -> Iterator[Part]:
        yield self.by_class()
        yield from self.precision_recall()
        yield from self.by_score()
        yield self.confusion()
        if self.engine == "hotcoco":
            yield self.errors
        yield self.by_size()
        yield self.calibration()
        yield self.worst(self.only)
        if self.engine == "hotcoco":
            yield self.suspects()

    @cached_property
    def evaluation(self) -> Any:
        """hotcoco's, which finds types of errors and suspected labels."""
        return evaluated(self.truth, self.found, self.engine, [1, 10, 100])

    @cached_property
    def errors(self) -> Bars:
        return tide(self.evaluation)

    @property
    def without(self) -> str:
        """What is not in the report, and why."""
        missing = "error types (TIDE) and suspected label errors"
        return "" if self.engine == "hotcoco" else missing

    def at_threshold(self, name: str) -> tuple[float, float, float, float]:
        """Threshold of a class, and precision, recall and F1 with it; NaN where undefined."""
        (threshold,) = self.thresholds.best([name])
        return threshold, *at_score(self.curves[name], threshold)

    def by_class(self) -> Table:
        rows: list[Row] = []
        for name in self.truth.names:
            objects = self.curves[name].positives
            threshold, precision, recall, f1 = self.at_threshold(name)
            ap = self.metrics.get(f"AP/{name}", np.nan)
            rows.append([name, objects, ap, threshold, precision, recall, f1])
        columns = ["class", "objects", "AP", "threshold", "precision", "recall", "F1"]
        return Table(
            "By class",
            columns,
            rows,
            f"Precision, recall and F1 count detections with at least the threshold, at IoU "
            f"{self.iou:g}.",
        )

    def _shown(self) -> list[int]:
        """The classes of charts: those with the most objects."""
        counts = [-self.curves[name].positives for name in self.truth.names]
        order = np.argsort(counts, kind="stable")[:SHOWN_CLASSES].tolist()
        return [row for row in order if counts[row]]

    def precision_recall(self) -> Iterator[Chart]:
        """Precision against recall: over all classes at three IoUs, and by class at the first."""
        shown = self._shown()
        overall = [
            Series(f"IoU {IOUS[level]:.2f}", *_mean_envelope(self.matches, level))
            for level in (0, 5)
        ]
        curves = [_mean_envelope(self.matches, level) for level in range(len(IOUS))]
        recalls, precisions = curves[0][0], np.mean([p for _, p in curves], 0)
        overall.append(Series("mean of 0.50 to 0.95", recalls, precisions))
        yield Chart(
            "Precision and recall",
            "recall",
            "precision",
            overall,
            (0, 1),
            note="Mean over the classes; precision is the best at this recall or a higher one.",
        )
        by_class = [
            Series(self.truth.names[row], recalls, _envelope(self.matches, row, self.level))
            for row in shown
        ]
        title = f"Precision and recall by class, IoU {self.iou:g}"
        yield Chart(title, "recall", "precision", by_class, (0, 1), note=self._note(shown))

    def by_score(self) -> Iterator[Chart]:
        """Precision, recall and F1 against the score, with the threshold marked."""
        mark = self.thresholds.common
        pooled = self.pooled
        lines = [
            Series("precision", pooled.scores, pooled.precision),
            Series("recall", pooled.scores, pooled.recall),
            Series("F1", pooled.scores, pooled.f1, mark),
        ]
        yield Chart("By score, all classes", "score", "", lines, (0, 1))
        shown = self._shown()
        lines = []
        for row in shown:
            name = self.truth.names[row]
            curve = self.curves[name]
            lines.append(Series(name, curve.scores, curve.f1, self.thresholds.best([name])[0]))
        yield Chart("F1 by score and class", "score", "F1", lines, (0, 1), note=self._note(shown))

    def _note(self, shown: list[int]) -> str:
        total = len(self.truth.names)
        return f"The {len(shown)} classes with the most objects." if len(shown) < total else ""

    def confusion(self) -> Matrix:
        """Objects by class and what they are detected as; of many classes the most confused."""
        note = (
            f"Rows: objects. Columns: what they are detected as, with at least the threshold of "
            f"the class and IoU {self.iou:g}. The last row: detections where no object is."
        )
        mistakes = self.mistakes
        counts, images = mistakes.confusion(), mistakes.images_by_cell()
        others = ("background", "missed")
        return confusion_part("Confusion", self.truth.names, counts, images, note, others=others)

    def calibration(self) -> Chart:
        counted = ~self.matches.ignored[self.level]
        scores, right = self.matches.score[counted], self.matches.hit[self.level][counted]
        return calibration_chart(scores.clip(0, 1), right, "detections")

    def by_size(self) -> Bars:
        names = {"APs": "small (< 32²)", "APm": "medium", "APl": "large (> 96²)"}
        values = {text: self.metrics.get(name, np.nan) for name, text in names.items()}
        return Bars("AP by size of the objects", values, note="In pixels of the original image.")

    def worst(self, only: frozenset[int] | None = None) -> Gallery:
        """The images with the most mistakes for their objects: by F1, then by their number. With
        `only`, those images."""
        right, wrong, missed = self.mistakes.by_image().T
        mistakes = wrong + missed
        f1 = 2 * right / np.maximum(2 * right + mistakes, 1)
        order = np.lexsort((-mistakes, f1))
        if only is not None:
            order = order[np.isin(self.truth.image_ids[order], [*only])]
        else:
            order = order[mistakes[order] > 0][: self.images]
        shown = [
            Shown(
                int(self.truth.image_ids[row]),
                f"F1 {f1[row]:.2f}: {right[row]} right, {wrong[row]} wrong, {missed[row]} missed",
                self._marks(int(row)),
            )
            for row in order.tolist()
        ]
        return Gallery("Worst images", shown, "Right, wrong and missed, at the thresholds.")

    def _marks(self, image: int) -> list[Mark]:
        truth, mistakes = self.truth, self.mistakes
        right, marks, hit = mistakes.right, [], set()
        for i in np.flatnonzero(mistakes.image == image).tolist():
            kind = "right" if right[i] else "wrong"
            if right[i]:
                hit.add(int(mistakes.matched[i]))
            text = f"{truth.names[mistakes.category[i]]} {mistakes.found.scores[i]:.2f}"
            marks.append(_mark(kind, mistakes.found, i, text))
        for i in mistakes.objects[truth.image[mistakes.objects] == image].tolist():
            if i not in hit:
                marks.append(_object_mark("missed", truth, i))
        return marks

    def suspects(self) -> Gallery:
        """Detections with high scores that contradict the labels: check these labels first."""
        found = self.evaluation.image_diagnostics(iou_thr=self.iou)["label_errors"]
        found = sorted(found, key=lambda one: -one["dt_score"])[: self.images]
        shown = []
        for one in found:
            row = one["dt_id"] - 1
            name = self.truth.names[one["dt_category_id"] - 1]
            marks = [_mark("found", self.found, row, f"{name} {one['dt_score']:.2f}")]
            what = f"{name}, {one['dt_score']:.2f}: not labeled"
            if one["gt_id"]:
                i = one["gt_id"] - 1
                marks.append(_object_mark("truth", self.truth, i))
                what = f"{name}, {one['dt_score']:.2f}: labeled as {marks[-1].text}"
            id_ = int(self.truth.image_ids[one["image_id"] - 1])
            shown.append(Shown(id_, what, marks))
        return Gallery("Suspected label errors", shown, "The detection, and the label if any.")


def subject_of(truth: ScoredTruth) -> Subject:
    """What is scored, to compare it with another."""
    columns = {"image": "the number of objects", "category": "the class"}
    columns |= {"boxes": "a box", "iscrowd": "iscrowd"}
    arrays = {text: getattr(truth, name) for name, text in columns.items()}
    return Subject(truth.image_ids, truth.names, arrays, truth.image)


def resampled(matches: Matches, weights: np.ndarray) -> dict[str, np.ndarray]:
    """COCO's AP metrics (R,) of the matches in replicates with these weights (R, I)."""
    ap = average_precision(matches, weights)  # (R, C, T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no class is NaN
        found = {
            "AP": np.nanmean(ap, (1, 2)),
            "AP50": np.nanmean(ap[..., 0], 1),
            "AP75": np.nanmean(ap[..., 5], 1),
        }
        by_class = ap.mean(2)
    return found | {f"AP/{name}": by_class[:, i] for i, name in enumerate(matches.truth.names)}


def tide(evaluation: Any) -> Bars:
    """What AP50 would gain if errors of one type were fixed, as hotcoco computes it."""
    found = evaluation.tide_errors()
    values = {text: found["delta_ap"][name] for name, text in ERRORS.items()}
    counts = ", ".join(f"{name} {found['counts'][name]}" for name in ERRORS)
    return Bars("Error types", values, " AP50", f"AP50 gained if fixed (TIDE). Counts: {counts}.")


def _envelope(matches: Matches, category: int, level: int) -> np.ndarray:
    """The best precision (101,) at each recall of COCO's or a higher one."""
    part, truth = matches.of_category(category), matches.truth
    objects = np.count_nonzero((truth.category == category) & matches.counted)
    hit, counted = matches.hit[level, part], ~matches.ignored[level, part]
    found = np.zeros(101)
    if objects and len(hit):
        true, taken = np.cumsum(hit), np.cumsum(counted)
        best = np.maximum.accumulate((true / np.maximum(taken, 1))[::-1])[::-1]
        first = np.searchsorted(true / objects, np.linspace(0, 1, 101))
        reached = first < len(best)
        found[reached] = best[first[reached]]
    return found


def _mean_envelope(matches: Matches, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Recalls (101,) and the mean precision (101,) over the classes with objects."""
    classes = np.unique(matches.truth.category[matches.counted])
    curves = [_envelope(matches, int(row), level) for row in classes]
    return np.linspace(0, 1, 101), np.mean(curves, 0) if curves else np.full(101, np.nan)


def _mark(kind: Any, found: Detections, row: int, text: str) -> Mark:
    if found.masks is not None:
        return Mark(kind, None, text, found.masks[row])
    assert found.boxes is not None
    return Mark(kind, _xyxy(found.boxes[row]), text)


def _object_mark(kind: Any, truth: ScoredTruth, row: int) -> Mark:
    text = truth.names[truth.category[row]]
    if truth.masks is not None:  # then the boxes are not known
        size = truth.sizes[truth.image[row]].tolist()
        return Mark(kind, None, text, to_rle(truth.masks[row], size))
    return Mark(kind, _xyxy(truth.boxes[row]), text)


def _xyxy(box: np.ndarray) -> list[float]:
    x, y, w, h = box.tolist()
    return [x, y, x + w, y + h]
