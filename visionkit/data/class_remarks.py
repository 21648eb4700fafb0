"""What the numbers of objects or pictures of each class tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visionkit.data.problems import Finding, finding

FEW = 10  # objects or pictures of a class


def class_remarks(names: Sequence[str], counts: np.ndarray, what: str, file: str) -> list[Finding]:
    """Classes without any, with few, and of nearly one name. `what` is "objects" or "pictures"."""
    found = []
    none = [name for name, count in zip(names, counts, strict=True) if not count]
    if none:
        text = f"{len(none)} of {len(names)} classes have no {what}: {listed(none)}"
        found.append(finding("no-pictures-of-class", text, file=file))
    few = [f"{n} ({c})" for n, c in zip(names, counts.tolist(), strict=True) if 0 < c < FEW]
    if few:
        text = f"{len(few)} of {len(names)} classes have few {what}: {listed(few)}"
        found.append(finding("rare-class", text, file=file))
    by_folded: dict[str, list[str]] = {}
    for name in names:
        by_folded.setdefault(name.casefold().strip(), []).append(name)
    for alike in by_folded.values():
        if len(alike) > 1:
            text = f"the classes {listed(list(map(repr, alike)))} differ in case alone"
            found.append(finding("class-case", text, file=file))
    return found


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The first of them."""
    more = f", ... {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
