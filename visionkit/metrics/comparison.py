"""The metrics of one or several models with their intervals, and what differs between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from visionkit.errors import DataError
from visionkit.metrics.intervals import (
    FEWEST,
    LEVEL,
    Interval,
    Samples,
    interval,
    replicate_weights,
    weights_without,
)

BLOCK = 100_000_000  # weights at once, to bound memory
TOO_FEW = f"n/a: an interval from fewer than {FEWEST} images says little"


class Resampled(Protocol):
    """An evaluator whose metrics have intervals."""

    def image_ids(self) -> np.ndarray:
        """(I,) the images, in an order that depends on the dataset alone."""

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """By the name of a metric, its value (R,) in each replicate; `weights` (R, I) say how often
        each image is in it. With weights of one, the value of `compute`."""


def intervals(
    evaluator: Resampled, metrics: Mapping[str, float], replicates: int, seed: int = 0
) -> dict[str, Interval]:
    """The interval of each metric that can be resampled; none with too few images."""
    images = len(evaluator.image_ids())
    if images < FEWEST or not replicates:
        return {}
    found = _sampled(evaluator, images, replicates, seed)
    return {name: interval(metrics[name], samples) for name, samples in found.items()}


def _sampled(evaluator: Resampled, images: int, replicates: int, seed: int) -> dict[str, Samples]:
    """The metrics in samples, of many images from some replicates at a time."""
    rng, most = np.random.default_rng(seed), max(1, BLOCK // images)
    parts = [
        evaluator.resampled(replicate_weights(images, min(most, replicates - first), rng))
        for first in range(0, replicates, most)
    ]
    without = evaluator.resampled(weights_without(images))
    return {
        name: Samples(np.concatenate([part[name] for part in parts]), values, images)
        for name, values in without.items()
    }


@dataclass(frozen=True)
class Difference:
    """A metric of two models, A and B, on the same images."""

    name: str
    a: float
    b: float
    interval: Interval  # of B - A
    names: tuple[str, str] = ("A", "B")

    @property
    def verdict(self) -> str:
        """In words: which model is better, or that it may be chance."""
        delta, low, high = self.interval
        first, second = self.names
        if np.isnan(low):
            return "no interval"
        text = f"{delta:+.3f} {self.name}, {LEVEL} % interval {low:+.3f} to {high:+.3f}"
        if low == high == 0:
            return f"{first} and {second} are equal: {text}"
        if low > 0:
            return f"{second} is better: {text}"
        return f"{first} is better: {text}" if high < 0 else f"no clear difference: {text}"


def differences(
    a: Resampled,
    b: Resampled,
    metrics_a: Mapping[str, float],
    metrics_b: Mapping[str, float],
    replicates: int,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> list[Difference]:
    """The paired differences of all metrics that both have."""
    images = len(a.image_ids())
    if images < FEWEST or not replicates:
        return []
    # The same seed: the same replicates.
    in_a, in_b = (_sampled(one, images, replicates, seed) for one in (a, b))
    return [
        Difference(
            name,
            metrics_a[name],
            metrics_b[name],
            interval(
                metrics_b[name] - metrics_a[name], in_b[name].minus(in_a[name]), bounded=False
            ),
            names,
        )
        for name in in_a
        if name in in_b
    ]


@dataclass(frozen=True)
class Subject:
    """What was evaluated: two subjects must be equal for a comparison."""

    image_ids: np.ndarray  # (I,)
    classes: Sequence[str]
    truth: Mapping[str, Any] = field(default_factory=dict)  # by name, arrays (N, ...)
    image: np.ndarray | None = None  # (N,) rows of `image_ids`; None: one row for each image


def check_same(a: Subject, b: Subject, names: tuple[str, str] = ("A", "B")) -> None:
    """DataError with the first difference, since metrics on other data cannot be compared."""
    first, second = names
    if list(a.classes) != list(b.classes):
        only = [name for name in a.classes if name not in b.classes]
        extra = [name for name in b.classes if name not in a.classes]
        what = f"{first} has {only[0]!r}, {second} has not" if only else ""
        what = what or (f"{second} has {extra[0]!r}, {first} has not" if extra else "another order")
        raise DataError(f"{first} and {second} have other classes and cannot be compared: {what}")
    if not np.array_equal(a.image_ids, b.image_ids):
        other = np.setxor1d(a.image_ids, b.image_ids)
        what = f"image_id {other[0]} is in only one of them" if len(other) else "another order"
        raise DataError(
            f"{first} and {second} were evaluated on other images ({len(a.image_ids)} and "
            f"{len(b.image_ids)}) and cannot be compared: {what}"
        )
    for name, one in a.truth.items():
        if name in b.truth and (what := _first_difference(name, one, b.truth[name], a)):
            raise DataError(
                f"{first} and {second} have other ground truth and cannot be compared: {what}"
            )


def _first_difference(name: str, one: Any, other: Any, a: Subject) -> str:
    """Where two arrays of the ground truth differ; empty if they are equal."""
    if np.shape(one) != np.shape(other):
        return f"{len(one)} and {len(other)} objects"
    rows = np.flatnonzero(np.not_equal(one, other).reshape(len(one), -1).any(1))
    if not len(rows):
        return ""
    row = rows[0]
    image = a.image_ids[row if a.image is None else a.image[row]]
    values = (np.asarray(array)[row].tolist() for array in (one, other))
    return f"{name} of image_id {image}: {' and '.join(map(str, values))}"
