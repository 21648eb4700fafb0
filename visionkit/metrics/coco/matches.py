"""Which detection matches which object: what curves, thresholds and intervals are computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from visionkit.data.coco.tables import rows_of
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.engines import evaluated
from visionkit.metrics.coco.ground_truth import ScoredTruth

IOUS = np.linspace(0.5, 0.95, 10)  # COCO's thresholds, T = 10
RECORDS = 400_000  # of an image and a category, in memory at once
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

    @cached_property
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
    image = rows_of(found.image_ids, truth.image_ids)
    size = max(1, RECORDS // max(1, len(truth.names)))
    pieces = [
        _match_piece(truth, found, image, first, first + size, engine, most, ious)
        for first in range(0, max(1, len(truth.image_ids)), size)
    ]
    row, image, category, score, matched, ignored = (
        np.concatenate(column, -1) for column in zip(*pieces, strict=True)
    )
    order = np.lexsort((-score, category))  # stable, as COCO's
    return Matches(
        truth,
        row[order],
        image[order],
        category[order],
        score[order],
        matched[:, order],
        ignored[:, order],
    )


def _match_piece(
    truth: ScoredTruth,
    found: Detections,
    image: np.ndarray,
    first: int,
    last: int,
    engine: str,
    most: int,
    ious: int,
) -> tuple[np.ndarray, ...]:
    """The columns of `Matches` for the images from row `first` to before row `last`, by category;
    `image` (N,) are the rows of all detections. The engines have a record in memory for each image
    and category: with many images that is most of what a report needs."""
    objects = np.flatnonzero((truth.image >= first) & (truth.image < last))
    rows = np.flatnonzero((image >= first) & (image < last))
    evaluation = evaluated(_piece(truth, objects, first, last), found[rows], engine, [most], ious)
    parts = [record for record in evaluation.evalImgs if record and record["dtIds"]]
    parts.sort(key=lambda record: (record["category_id"], record["image_id"]))
    if not parts:
        none = np.zeros(0, np.int64)
        shape = (ious, 0)
        return none, none, none, np.zeros(0), np.zeros(shape, np.int64), np.zeros(shape, bool)
    counts = [len(part["dtIds"]) for part in parts]
    matched = np.concatenate([np.asarray(part["dtMatches"]) for part in parts], 1).astype(np.int64)
    of_all = np.append(objects, -1)  # the engine's 0 is none
    return (
        rows[np.concatenate([part["dtIds"] for part in parts]).astype(np.int64) - 1],
        np.repeat([part["image_id"] for part in parts], counts) - 1 + first,
        np.repeat([part["category_id"] for part in parts], counts) - 1,
        np.concatenate([part["dtScores"] for part in parts]).astype(float),
        of_all[matched - 1],
        np.concatenate([np.asarray(part["dtIgnore"], bool) for part in parts], 1),
    )


def _piece(truth: ScoredTruth, objects: np.ndarray, first: int, last: int) -> ScoredTruth:
    """The images from row `first` to before row `last`, with their objects."""
    masks = truth.masks
    return replace(
        truth,
        image_ids=truth.image_ids[first:last],
        sizes=truth.sizes[first:last],
        image=truth.image[objects] - first,
        category=truth.category[objects],
        boxes=truth.boxes[objects],
        areas=truth.areas[objects],
        iscrowd=truth.iscrowd[objects],
        masks=None if masks is None else [masks[i] for i in objects.tolist()],
    )
