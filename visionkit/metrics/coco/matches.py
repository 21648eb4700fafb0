"""Which detection matches which object: what curves, thresholds and intervals are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.engines import evaluated
from visionkit.metrics.coco.ground_truth import ScoredTruth

IOUS = np.linspace(0.5, 0.95, 10)  # COCO's thresholds, T = 10
ALL_SIZES = 1e10  # COCO's largest area; it ignores objects beyond


@dataclass(frozen=True)
class Matches:
    """COCO's matches of N detections, of all sizes, at each of the T IoU thresholds.

    Detections are in the order in which COCO counts them: by category, then best score first.
    Images, categories and objects are rows of `truth`.
    """

    truth: ScoredTruth
    row: np.ndarray  # (N,) place among the detections given
    image: np.ndarray  # (N,)
    category: np.ndarray  # (N,)
    score: np.ndarray  # (N,) float64
    matched: np.ndarray  # (T, N) the object that it matches, -1 where none
    ignored: np.ndarray  # (T, N) bool: neither right nor wrong, as those on crowds

    def __len__(self) -> int:
        return len(self.score)

    @property
    def hit(self) -> np.ndarray:
        """(T, N) bool: true positives."""
        return (self.matched >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """(T, N) bool: false positives."""
        return (self.matched < 0) & ~self.ignored

    @property
    def counted(self) -> np.ndarray:
        """(A,) bool: the objects that have to be found."""
        return ~self.truth.iscrowd & (self.truth.areas <= ALL_SIZES)

    def of_category(self, category: int) -> slice:
        """The detections of a category."""
        first, last = np.searchsorted(self.category, [category, category + 1])
        return slice(int(first), int(last))


def match_objects(
    truth: ScoredTruth, found: Detections, engine: str, most: int = 100, *, ious: int = len(IOUS)
) -> Matches:
    """The matches of checked detections of labeled classes at the first `ious` of `IOUS`, at most
    the `most` best of a category in an image."""
    evaluation = evaluated(truth, found, engine, [most], ious)
    parts = [record for record in evaluation.evalImgs if record and record["dtIds"]]
    parts.sort(key=lambda record: (record["category_id"], record["image_id"]))
    if not parts:
        none = np.zeros(0, np.int64)
        shape = (ious, 0)
        return Matches(
            truth, none, none, none, np.zeros(0), np.zeros(shape, np.int64), np.zeros(shape, bool)
        )
    counts = [len(part["dtIds"]) for part in parts]
    row = np.concatenate([part["dtIds"] for part in parts]).astype(np.int64) - 1
    category = np.repeat([part["category_id"] for part in parts], counts) - 1
    score = np.concatenate([part["dtScores"] for part in parts]).astype(float)
    order = np.lexsort((-score, category))  # stable, as COCO's
    matched = np.concatenate([np.asarray(part["dtMatches"]) for part in parts], 1)
    return Matches(
        truth,
        row[order],
        np.repeat([part["image_id"] for part in parts], counts)[order] - 1,
        category[order],
        score[order],
        matched.astype(np.int64)[:, order] - 1,
        np.concatenate([np.asarray(part["dtIgnore"], bool) for part in parts], 1)[:, order],
    )
