"""Confidence intervals of metrics, and of the difference of two models, by resampling images.

The bootstrap of Efron (1979): a replicate is a sample, with replacement, of as many images as the
dataset has, so that each image has a weight of 0, 1, 2, ... Its percentiles are not the interval:
average precision is too high in any small set, and higher still in a replicate, whose images occur
repeatedly. The replicates give the bias and the standard error instead (Efron and Tibshirani 1993,
chapters 6, 10, 12 and 13): the interval is the corrected value plus and minus Student's t times
the error, with these choices, made by coverage in simulations (docs/guide/report.md):

- the bias is twice that of the replicates: so much it is for AP, and both are small for means;
- the error is that of the bootstrap, with n / (n - 1) as Hesterberg (2015) has it, or that of the
  jackknife, which is conservative (Efron and Stein 1981), if that is larger;
- metrics between 0 and 1 have their interval on the scale of the logit, so that it stays there.

Two models get the same replicates: the interval of their difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from visionkit.metrics.coco.matches import IOUS, Matches

REPLICATES = 1000
FEWEST = 20  # images; an interval from fewer says little
GROUPS = 20  # of images, each skipped once; of smaller ones the steps of COCO's recalls would show
BIAS = 2  # times that of the replicates: so much AP of a small set is too high, in simulations
FARTHEST = 3.0  # logits from the center, or a metric near 0 would have an interval up to 1
ROUNDING = 1e-12  # an error below comes from sums in another order
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


def weights_without(images: int) -> np.ndarray:
    """Each image once, but those of one group: (GROUPS, images) int32. Every 20th image is of the
    same group."""
    weights = np.ones((GROUPS, images), np.int32)
    weights[np.arange(images) % GROUPS, np.arange(images)] = 0
    return weights


class Samples(NamedTuple):
    """The values of a metric in samples of the images; NaN where it is not defined, as AP of a
    class without objects."""

    replicates: np.ndarray  # (R,)
    without: np.ndarray  # (GROUPS,), without each of the groups
    images: int

    def minus(self, other: Samples) -> Samples:
        """The difference of two models with the same weights."""
        replicates, without = self.replicates - other.replicates, self.without - other.without
        return Samples(replicates, without, self.images)

    def error(self) -> float:
        """The standard error: of the bootstrap, or of the jackknife if that is larger."""
        replicates, without = (v[~np.isnan(v)] for v in (self.replicates, self.without))
        error = replicates.std() * np.sqrt(self.images / (self.images - 1))
        if len(without) < 2:
            return float(error)
        return max(float(error), float(without.std() * np.sqrt(len(without) - 1)))


def interval(value: float, samples: Samples, *, bounded: bool = True) -> Interval:
    """The interval of a metric with its `value` on all images.

    `bounded`: the metric is between 0 and 1, if its values are. There is none of a metric that is
    0 or 1 in all samples, since these do not show how far it is from that on other images.
    """
    replicates = samples.replicates[~np.isnan(samples.replicates)]
    if not len(replicates) or value != value:
        return Interval(value, np.nan, np.nan)
    error, center = samples.error(), value - BIAS * (float(replicates.mean()) - value)
    share = bounded and min(value, replicates.min()) >= 0 and max(value, replicates.max()) <= 1
    if error < ROUNDING:
        edge = np.nan if share and value in (0, 1) else value
        return Interval(value, edge, edge)
    reach = _student_t(samples.images - 1) * error
    low, high = center - reach, center + reach
    if share and 0 < value < 1:
        center = min(max(center, value / 2), (1 + value) / 2)  # a large bias is not to leave (0, 1)
        logit = np.log(center / (1 - center))
        reach = min(reach / (center * (1 - center)), FARTHEST)
        low, high = ((1 + np.tanh((logit + side) / 2)) / 2 for side in (-reach, reach))
    if share:
        low, high = max(low, 0), min(high, 1)
    return Interval(value, min(float(low), value), max(float(high), value))


def _student_t(freedom: int) -> float:
    """The quantile of Student's t that `LEVEL` percent are within, from that of the normal
    distribution (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf((1 + LEVEL / 100) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


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
