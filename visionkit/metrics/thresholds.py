"""The scores from which detections, or classes of an image, should count: found on labeled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from visionkit.metrics.coco.matches import Matches

FEWEST = 10  # objects of a class, or it has the common threshold
PRECISIONS = tuple(range(50, 100))  # percent


class Curve(NamedTuple):
    """What counts if scores from some value on do: at each of the S distinct scores, best first."""

    scores: np.ndarray  # (S,) float64
    hits: np.ndarray  # (S,) true positives of at least this score
    taken: np.ndarray  # (S,) of at least this score, right or wrong
    positives: int  # that there are to find

    @classmethod
    def of(cls, scores: np.ndarray, hit: np.ndarray, positives: int) -> Curve:
        """From N scores, in any order, and whether each is right, (N,) bool."""
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], np.cumsum(hit[order])
        last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of equal scores
        return cls(scores[last], hits[last], np.flatnonzero(last) + 1, positives)

    @property
    def precision(self) -> np.ndarray:
        return self.hits / self.taken

    @property
    def recall(self) -> np.ndarray:
        return self.hits / self.positives if self.positives else np.full(len(self.hits), np.nan)

    @property
    def f1(self) -> np.ndarray:
        return 2 * self.hits / (self.taken + self.positives)

    def best(self) -> float | None:
        """The score of the best F1, of equal ones the higher; None if nothing is right."""
        return float(self.scores[self.f1.argmax()]) if len(self.hits) and self.hits[-1] else None

    def at_precision(self, percent: int) -> float | None:
        """The lowest score with that precision; None if there is none."""
        enough = np.flatnonzero(self.hits * 100 >= self.taken * percent)
        return float(self.scores[enough[-1]]) if len(enough) else None


@dataclass(frozen=True)
class Thresholds:
    """The scores of the best F1, and of each precision, over all classes and by class name.

    A class with fewer than 10 objects, or of which nothing is found, has the common ones.
    """

    common: float
    classes: dict[str, float] = field(default_factory=dict)
    # By percent the lowest score with that precision, where one has it.
    precision: dict[str, dict[int, float]] = field(default_factory=dict)  # "" is over all classes

    @classmethod
    def of(cls, curves: Mapping[str, Curve], pooled: Curve) -> Thresholds | None:
        """From the curve of each class, and that over all; None if nothing is right."""
        common = pooled.best()
        if common is None:
            return None
        known = {name: one for name, one in curves.items() if one.positives >= FEWEST}
        best = {name: one.best() for name, one in known.items()}
        return cls(
            common,
            {name: score for name, score in best.items() if score is not None},
            {name: _by_precision(one) for name, one in {"": pooled, **known}.items()},
        )

    def best(self, names: Sequence[str]) -> list[float]:
        """The threshold of each class by F1."""
        return [self.classes.get(name, self.common) for name in names]

    def at_precision(self, percent: int, names: Sequence[str]) -> list[float | None]:
        """The threshold of each class by precision; None where no score has it."""
        tables = [self.precision.get(name, self.precision[""]) for name in names]
        return [table.get(percent) for table in tables]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, or for JSON, which makes strings of the percentages."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Thresholds:
        """From what `to_dict` returned, also by way of JSON."""
        precision = {
            name: {int(percent): score for percent, score in table.items()}
            for name, table in saved.get("precision", {}).items()
        }
        return cls(saved["common"], dict(saved.get("classes", {})), precision)


def _by_precision(curve: Curve) -> dict[int, float]:
    found = {percent: curve.at_precision(percent) for percent in PRECISIONS}
    return {percent: score for percent, score in found.items() if score is not None}


def draw_thresholds(
    heads: Mapping[str, tuple[str | None, float]],
    names: Mapping[str, Sequence[str]],
    known: Mapping[str, Thresholds],
) -> dict[str, float | tuple[float, ...]]:
    """For each head, the score from which its objects, or those it describes, are drawn: the same
    for all, or for each class that of the best F1.

    heads: the head whose boxes it describes, if any, and the score where none is known.
    names: the classes of the heads that have some.
    known: what a validation found.
    """
    found: dict[str, float | tuple[float, ...]] = {}
    for name, (on, _) in heads.items():
        base = on or name
        one = known.get(base)
        found[name] = heads[base][1] if one is None else one.common
        if one is not None and base == name and name in names:
            found[name] = tuple(one.best(names[name]))
    return found


def saved_thresholds(state: Mapping[str, Any]) -> dict[str, Thresholds]:
    """Those in a checkpoint, by head; none in one of an earlier version."""
    return {head: Thresholds.from_dict(one) for head, one in state.get("thresholds", {}).items()}


def detection_curves(matches: Matches, iou: int = 0) -> tuple[dict[str, Curve], Curve]:
    """The curve of each class at IoU threshold number `iou`, and that over all classes."""
    truth, counted = matches.truth, ~matches.ignored[iou]
    hit = matches.hit[iou]
    objects = np.bincount(truth.category[matches.counted], minlength=len(truth.names))
    curves = {}
    for row, name in enumerate(truth.names):
        part = matches.of_category(row)
        keep = counted[part]
        curves[name] = Curve.of(matches.score[part][keep], hit[part][keep], int(objects[row]))
    return curves, Curve.of(matches.score[counted], hit[counted], int(objects.sum()))


def at_score(curve: Curve, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of what has at least that score."""
    last = int(np.count_nonzero(curve.scores >= threshold)) - 1
    if last < 0:
        none = np.nan if not curve.positives else 0.0
        return np.nan, none, none
    return (
        float(curve.precision[last]),
        float(curve.recall[last]),
        float(curve.f1[last]) if curve.positives else np.nan,
    )
