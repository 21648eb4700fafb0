"""Confidence intervals of metrics, and of the difference of two models, by resampling images.

The bootstrap of Efron (1979): a replicate is a sample, with replacement, of as many images as the
dataset has, so that each image has a weight of 0, 1, 2, ...; the interval lies between two
percentiles of the metric's values over the replicates. They are the bias-corrected ones (Efron
1981), since average precision is higher in a replicate, whose images occur repeatedly, than in the
dataset. Two models get the same replicates: the interval of their difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from visionkit.metrics.coco.matches import IOUS, Matches

REPLICATES = 1000
FEWEST = 20  # images; an interval from fewer says little
LEVEL = 95  # percent
RECALLS = np.linspace(0, 1, 101)  # COCO's
BLOCK = 4_000_000  # numbers computed at once, to bound memory


class Interval(NamedTuple):
    """A metric's value on all images, and the interval around it; NaN where it is not defined."""

    value: float
    low: float
    high: float


def replicate_weights(
    images: int, replicates: int = REPLICATES, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """How often each image is in each replicate: (replicates, images) int32."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), replicates).astype(np.int32)


def interval(value: float, replicates: np.ndarray) -> Interval:
    """The interval of a metric with its `value` and its values (R,) over replicates. Replicates in
    which it is not defined, as AP of a class without objects, do not count."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or value != value:
        return Interval(value, np.nan, np.nan)
    # Sums in another order round differently: such a replicate is not below the value.
    equal = np.isclose(defined, value, rtol=0, atol=1e-12)
    below = np.count_nonzero((defined < value) & ~equal) + np.count_nonzero(equal) / 2
    normal = NormalDist()
    # A bias beyond one standard deviation, as with many rare classes, cannot be corrected so.
    share = np.clip(below / len(defined), normal.cdf(-1), normal.cdf(1))
    shift, tail = 2 * normal.inv_cdf(share), normal.inv_cdf((1 - LEVEL / 100) / 2)
    low, high = np.quantile(defined, [normal.cdf(shift + tail), normal.cdf(shift - tail)])
    return Interval(value, min(float(low), value), max(float(high), value))


def mean_over(weights: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A mean over items, such as top-1, in each replicate: (R,). `sums` and `counts` (I,) are those
    of each image."""
    total = weights @ counts.astype(float)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, weights @ sums.astype(float) / np.maximum(total, 1e-300), np.nan)


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """COCO's AP of each category at each IoU threshold in each replicate.

    `weights` (R, I) are those of the images; ones give COCO's own values. Returns (R, C, T), NaN
    where a replicate has no object of the category.
    """
    truth = matches.truth
    found = np.full((len(weights), len(truth.names), len(IOUS)), np.nan)
    for category in range(len(truth.names)):
        objects = truth.image[(truth.category == category) & matches.counted]
        per_image = np.bincount(objects, minlength=weights.shape[1])
        part = matches.of_category(category)
        for rows in _blocks(len(weights), part.stop - part.start):
            total = weights[rows] @ per_image
            found[rows, category] = _of_category(matches, part, weights[rows], total)
    return found


def _blocks(replicates: int, detections: int) -> Iterator[slice]:
    size = max(1, BLOCK // max(1, detections))
    return (slice(start, start + size) for start in range(0, replicates, size))


def _of_category(
    matches: Matches, part: slice, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """AP (R, T) from the detections `part`, with the weighted numbers of `objects` (R,)."""
    of_detection = weights[:, matches.image[part]].astype(np.float32)  # (R, N)
    ap = np.zeros((len(weights), len(IOUS)))
    positives, before = matches.hit[:, part], None
    for number, ignored in enumerate(matches.ignored[:, part]):
        if before is None or not np.array_equal(ignored, before):
            counted = np.cumsum(np.where(ignored, 0, of_detection), 1, dtype=np.float64)
            before = ignored
        where = np.flatnonzero(positives[number])
        true = np.cumsum(of_detection[:, where], 1, dtype=np.float64)
        # Between two true positives precision only falls: those alone decide.
        precision = true / np.maximum(counted[:, where], 1e-9)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = true / objects[:, None]
        reached = np.searchsorted(RECALLS, recall, side="right")  # recalls up to here
        steps = np.diff(reached, axis=1, prepend=0)
        ap[:, number] = (steps * envelope).sum(1) / len(RECALLS)
    ap[objects == 0] = np.nan
    return ap
