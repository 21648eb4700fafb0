"""Which checkpoint is the best: by one metric, by a weighted sum of several, and within guards."""

from __future__ import annotations

import math
from collections.abc import Mapping

from visionkit.components import unknown
from visionkit.errors import ConfigError

LOWER_IS_BETTER = ("mse", "kl")  # beside all losses


class Best:
    """Scores a validation; the higher the better.

    `wanted` is a metric, or metrics with their weights; `guards` are values that metrics must
    reach for a checkpoint to be the best one. A metric that is a loss or an error counts
    negatively, and its guard is a value not to pass.
    """

    def __init__(self, wanted: str | Mapping[str, float] | None, guards: Mapping[str, float]):
        self.weights = {wanted: 1.0} if isinstance(wanted, str) else dict(wanted or {})
        self.guards = dict(guards)

    @property
    def names(self) -> list[str]:
        """All metrics that are looked at."""
        return list(dict.fromkeys([*self.weights, *self.guards]))

    def score(self, metrics: Mapping[str, float]) -> float:
        """NaN, which is never the best, where a metric is not defined or a guard is violated.
        Raises ConfigError if a metric was not computed at all."""
        for name in self.names:
            if name not in metrics:
                raise ConfigError(unknown(name, metrics, f"the validation gave no {name!r}"))
        if not self.weights or self.violated(metrics):
            return math.nan
        return sum(weight * sign(name) * metrics[name] for name, weight in self.weights.items())

    def violated(self, metrics: Mapping[str, float]) -> list[str]:
        """The guards that do not hold; a metric that is not defined holds none."""
        return [
            name
            for name, bound in self.guards.items()
            if not sign(name) * metrics[name] >= sign(name) * bound
        ]

    def describe(self, metrics: Mapping[str, float]) -> str:
        """For the log: `objects/bbox/AP 0.4123, scene/top1 0.8000`."""
        text = ", ".join(f"{name} {metrics[name]:.4f}" for name in self.names)
        violated = self.violated(metrics)
        return f"{text} (worse than allowed: {', '.join(violated)})" if violated else text


def sign(name: str) -> int:
    """1 for a metric that should rise, -1 for one that should fall."""
    falls = "/loss/" in name or name.rpartition("/")[2] in LOWER_IS_BETTER
    return -1 if falls else 1
