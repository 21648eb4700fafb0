"""What the numbers of objects or pictures of each class tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visionkit.data.problems import Finding, finding

FEW = 10  # objects or pictures of a class


def class_remarks(names: Sequence[str], counts: np.ndarray, what: str, file: str) -> list[Finding]:
    """Classes with none, with few, and of nearly one name. `what` is "objects" or "pictures"."""
    noun = what.removesuffix("s")
    found = []
    for name, count in zip(names, counts.tolist(), strict=True):
        if count < FEW:
            kind = "rare-class" if count else "unused-class"
            text = f"the class {name!r} has {count or 'no'} {noun}{'s' * (count != 1)}"
            found.append(finding(kind, text, file=file, value=name))
    by_folded: dict[str, list[str]] = {}
    for name in names:
        by_folded.setdefault(name.casefold().strip(), []).append(name)
    for alike in by_folded.values():
        if len(alike) > 1:
            text = f"the classes {', '.join(map(repr, alike))} differ in case alone"
            found.append(finding("class-case", text, file=file, value=alike[0]))
    return found
