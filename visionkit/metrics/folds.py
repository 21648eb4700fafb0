"""What the folds of a cross-validation have in common: mean, standard deviation and interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from visionkit.metrics.intervals import LEVEL

NOTE = (
    f"{LEVEL} % interval of the mean by Student's t over the folds: rough, and rather too narrow, "
    "since folds share training data."
)


class Spread(NamedTuple):
    """A metric over folds. NaN where it is not defined in a fold, and what fewer than two defined
    values do not give."""

    values: tuple[float, ...]  # of each fold
    mean: float
    std: float  # of the folds, with n - 1
    low: float  # of the interval of the mean
    high: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "values": list(self.values)}


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and interval of a metric of some folds."""
    defined = np.array([value for value in values if not math.isnan(value)])
    nan, count = math.nan, len(defined)
    mean = float(defined.mean()) if count else nan
    if count < 2:
        return Spread(tuple(values), mean, nan, nan, nan)
    std = float(defined.std(ddof=1))
    reach = student_t(count - 1) * std / math.sqrt(count)
    return Spread(tuple(values), mean, std, mean - reach, mean + reach)


def spreads(folds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """`spread` of each metric that any fold has, by its name."""
    names = dict.fromkeys(name for fold in folds for name in fold)
    return {name: spread([fold.get(name, math.nan) for fold in folds]) for name in names}


def student_t(freedom: int, level: float = LEVEL / 100) -> float:
    """The value that Student's t with so many degrees of freedom is within with probability
    `level`, from the finite sums for it (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < level else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """The probability of |t| < tan(angle) sqrt(freedom)."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(3 if odd else 2, freedom, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def fold_lines(found: Mapping[str, Spread], names: Sequence[str]) -> list[str]:
    """A table of the metrics: the value of each fold, mean, standard deviation and interval."""
    folds = max((len(found[name].values) for name in names), default=0)
    titles = ["metric", *(f"fold {i + 1}" for i in range(folds)), "mean", "std"]
    titles.append(f"{LEVEL} % interval")
    rows = [titles]
    for name in names:
        one = found[name]
        interval = "n/a" if math.isnan(one.low) else f"{one.low:.4f} to {one.high:.4f}"
        rows.append([name, *map(_text, (*one.values, one.mean, one.std)), interval])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _text(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"
