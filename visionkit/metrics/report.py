"""Metrics as text: over how many classes a mean is, and the worst and the best classes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from visionkit.errors import listed, plural, printable

SHOWN = 20  # classes of a metric on the screen
PER_CLASS = ("AP", "IoU", "accuracy")  # metrics followed by "/<class>" in names


class Coverage(NamedTuple):
    """Over how many classes a metric is."""

    scored: int
    total: int
    without: tuple[str, ...]  # the classes without ground truth

    @classmethod
    def of(
        cls, names: Sequence[str], occurs: Iterable[bool], scored: int | None = None
    ) -> Coverage:
        """`occurs` (K,): whether the ground truth has the class; `scored` is by default the number
        of those."""
        pairs = list(zip(names, occurs, strict=True))
        without = tuple(name for name, is_there in pairs if not is_there)
        return cls(len(pairs) - len(without) if scored is None else scored, len(pairs), without)

    def __str__(self) -> str:
        if not self.without and self.scored == self.total:
            return plural(self.total, "class", "classes")
        without = f"; no ground truth: {listed(self.without, 5)}" if self.without else ""
        return f"{self.scored} of {plural(self.total, 'class', 'classes')}{without}"

    def record(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "scored": self.scored,
            "total": self.total,
            "without_ground_truth": list(self.without),
        }


def to_record(metrics: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics and facts about them for a JSON file; `classes` of the facts has `Coverage`s."""
    classes = {name: over.record() for name, over in facts.get("classes", {}).items()}
    return {**metrics, **facts, **({"classes": classes} if classes else {})}


def metric_lines(
    metrics: Mapping[str, float],
    coverage: Mapping[str, Coverage] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> list[str]:
    """A line for each metric; of one with more than `SHOWN` classes the worst and best classes.

    A metric in `coverage` says over how many classes it is, one in `intervals` its 95 % interval.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for name in metrics:
        families[family_of(name, metrics)].append(name)
    shown: list[str] = []
    remarks: dict[str, str] = {}  # behind the line of that name
    for name in metrics:
        family = family_of(name, metrics)
        names = families[family]
        if not family or len(names) <= SHOWN:
            shown.append(name)
        elif name == names[0]:
            ends, undefined = _ends(names, metrics)
            shown += ends
            remarks[shown[-1]] = (
                f"{family}...: the {len(ends)} worst and best of {len(names)} classes"
                + (f", {undefined} n/a" if undefined else "")
                + "; JSON output and metrics.jsonl have all"
            )
    width = max((len(printable(name)) for name in shown), default=0)
    lines = []
    for name in shown:
        value = "n/a" if math.isnan(metrics[name]) else f"{metrics[name]:.4f}"
        over = f"  {coverage[name]}" if coverage and name in coverage else ""
        low, high = (intervals or {}).get(name, (math.nan, math.nan))
        around = f"  {low:.4f} to {high:.4f}" if low == low else ""
        lines.append(printable(f"{printable(name):<{width}}  {value}{around}{over}"))
        lines += [printable(remarks[name])] if name in remarks else []
    return lines


def family_of(name: str, metrics: Collection[str]) -> str:
    """The common start of the names of a metric's classes: `objects/bbox/AP/` of
    `objects/bbox/AP/cat`; "" if the metric is not that of a class."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1], start=1):
        prefix = "/".join(parts[:i])
        if prefix in metrics or part in PER_CLASS:
            return f"{prefix}/"
    return ""


def _ends(names: Sequence[str], metrics: Mapping[str, float]) -> tuple[list[str], int]:
    """The worst and the best of many, by value, and how many are not defined."""
    defined = sorted((n for n in names if not math.isnan(metrics[n])), key=metrics.__getitem__)
    best = max(SHOWN // 2, len(defined) - SHOWN // 2)
    return [*defined[: SHOWN // 2], *defined[best:]], len(names) - len(defined)
