"""Faults of a data set, gathered so that the user sees them together, and class lists compared."""

from __future__ import annotations

from collections.abc import Sequence

from visionkit.errors import DataError


class Problems:
    """What is wrong with one file. Counts all, keeps the first `LIMIT` for the report."""

    LIMIT = 20

    def __init__(self, source: str):
        self.source = source
        self.count = 0
        self._shown: list[str] = []

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if len(self._shown) < self.LIMIT:
            self._shown.append(f"  {where}: {what}")

    def extend(self, other: Problems) -> None:
        """Add those of another report about the same file."""
        self.count += other.count
        self._shown += other._shown[: self.LIMIT - len(self._shown)]

    def raise_any(self) -> None:
        """`DataError` if anything was added."""
        if not self.count:
            return
        lines = [f"{self.source}: {self.count} problem{'s' * (self.count > 1)}", *self._shown]
        if self.count > self.LIMIT:
            lines.append(f"  ... and {self.count - self.LIMIT} more")
        raise DataError("\n".join(lines))


def check_classes(
    source: str, found: Sequence[str], wanted: Sequence[str], *, missing_ok: bool, unknown_ok: bool
) -> None:
    """`DataError` with both lists if the classes of `source` are not the `wanted` ones."""
    if len(set(wanted)) < len(wanted):
        twice = sorted({name for name in wanted if list(wanted).count(name) > 1})
        raise DataError(f"{source}: classes lists {_listed(twice)} more than once: name each once")
    missing = [name for name in wanted if name not in set(found)]
    unknown = [name for name in found if name not in set(wanted)]
    if (missing and not missing_ok) or (unknown and not unknown_ok):
        raise DataError(
            f"{source}: other classes than expected; training and validation data must agree\n"
            f"  expected ({len(wanted)}): {_listed(wanted)}\n"
            f"  found ({len(found)}): {_listed(found)}\n"
            f"  missing here: {_listed(missing)}\n"
            f"  not expected: {_listed(unknown)}"
        )


def _listed(names: Sequence[str]) -> str:
    more = f", ... {len(names) - 100} more" if len(names) > 100 else ""
    return (", ".join(map(repr, names[:100])) or "none") + more
