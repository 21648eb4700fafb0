"""Faults of a data set, gathered so that the user sees them together, and class lists compared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from visionkit.data.checks.kinds import FINDING_KINDS, Severity
from visionkit.data.loading.cache import cache_folder, trim
from visionkit.errors import CheckpointError, ConfigError, DataError, VisionkitError
from visionkit.runs.files import to_json, write_text

# --- What the numbers of objects or images of each class tell.

FEW = 10  # objects or images of a class


def class_remarks(names: Sequence[str], counts: np.ndarray, what: str, file: str) -> list[Finding]:
    """Classes with none, with few, and of nearly one name. `what` is "objects" or "images"."""
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
            found.append(finding("class-name-case", text, file=file, value=alike[0]))
    return found


# --- A list of faults that is too long for the screen, in a file of the cache folder.

LIMIT = 100 * 2**20  # bytes of all such files


def keep_all(findings: Sequence[Finding]) -> str:
    """Write all of them; the sentence that says where, or why not."""
    content: dict[str, Any] = {"version": 1, "findings": [found.record() for found in findings]}
    text = to_json(content) + "\n"
    try:
        folder = cache_folder() / "faults"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        write_text(path, text)
        trim(folder, LIMIT, keep=path)
    except (OSError, RuntimeError) as error:  # a full disk, or no home folder
        return f"all {len(findings)} could not be written to the cache folder [{error}]"
    return f"all {len(findings)} are in {path}"


class Place(NamedTuple):
    """A record of a COCO file, for example `annotations[1532] (id 88121)`."""

    list: str
    index: int
    id: Any = None

    def __str__(self) -> str:
        known = "" if self.id is None else f" (id {self.id})"
        return f"{self.list}[{self.index}]{known}"


class Finding(NamedTuple):
    """One fault: what, where, what to do, and what visionkit does about it."""

    kind: str  # of `FINDING_KINDS`, or of an image
    message: str
    file: str = ""  # or a folder, or a part of the config
    place: Place | None = None
    key: str | None = None
    value: str | None = None  # as text, shortened
    remedy: str = ""
    action: str = "error"  # or drop, fix, keep
    severity: Severity = "error"

    def __str__(self) -> str:
        parts = (self.place, self.message, self.remedy)
        return ": ".join(str(part) for part in parts if part)

    def record(self) -> dict[str, Any]:
        """As `visionkit check --json` writes it."""
        where = self.place._asdict() if self.place else dict.fromkeys(("list", "index", "id"))
        said = {key: value for key, value in self._asdict().items() if key != "place"}
        return said | where


def finding(kind: str, message: str, action: str = "", **details: Any) -> Finding:
    """One whose remedy, severity and action are those of its kind, unless given."""
    known = FINDING_KINDS[kind]
    action = action or known.default
    severity = "error" if action == "error" else known.severity
    return Finding(
        kind, message, action=action, severity=severity, **{"remedy": known.remedy, **details}
    )


FindingCounts = dict[str, dict[str, int]]  # left_out, fixed and kept: how many of each kind
DONE = {"drop": "dropped", "fix": "fixed", "keep": "kept"}  # by action


def no_findings() -> FindingCounts:
    return {"dropped": {}, "fixed": {}, "kept": {}}


def count_findings(findings: Iterable[Finding]) -> FindingCounts:
    """How many of each kind there are, by what was done."""
    counts = no_findings()
    for found in findings:
        kinds = counts[DONE[found.action]]
        kinds[found.kind] = kinds.get(found.kind, 0) + 1
    return counts


class Problems:
    """The errors of one file. Tells the first `LIMIT`, keeps all."""

    LIMIT = 20

    def __init__(self, source: str, file: Any = None):
        self.source, self.file = source, str(source if file is None else file)
        self.findings: list[Finding] = []
        self.others: list[Finding] = []  # no errors, but to be found with those in one look

    @property
    def count(self) -> int:
        return len(self.findings)

    def add(
        self,
        where: Place | str,
        what: str,
        remedy: str = "",
        *,
        kind: str = "value",
        key: str | None = None,
        value: str | None = None,
    ) -> None:
        """One more; `where` is a record, or said in words."""
        place = where if isinstance(where, Place) else None
        message = what if place or not where else f"{where}: {what}"
        self.findings.append(Finding(kind, message, self.file, place, key, value, remedy))

    def extend(self, other: Problems) -> None:
        """Add those of another report about the same file."""
        self.findings += other.findings

    def raise_any(self) -> None:
        """`DataError` if anything was added."""
        if not self.count:
            return
        lines = [f"{self.source}: {self.count} problem{'s' * (self.count > 1)}"]
        lines += [f"  {self._located(found)}" for found in self.findings[: self.LIMIT]]
        if self.count > self.LIMIT:
            lines.append(f"  ... and {self.count - self.LIMIT} more")
        raise DataError("\n".join(lines), self.findings, self.others)

    def _located(self, found: Finding) -> str:
        """With the file in front, where it is not the one that all are about."""
        return str(found) if found.file in ("", self.file) else f"{found.file}: {found}"


def propagate_failures(errors: Sequence[VisionkitError]) -> VisionkitError:
    """All of them as one; a ConfigError if any is."""
    message = "\n".join(map(str, errors))
    if any(isinstance(error, ConfigError) for error in errors):
        return ConfigError(message)
    return DataError(message, [found for error in errors for found in findings_of(error)])


def findings_of(error: VisionkitError) -> list[Finding]:
    """What an error tells, as findings: of a config, one for each line that is not indented."""
    known = {ConfigError: "config", CheckpointError: "weights"}
    kind = next((kind for cls, kind in known.items() if isinstance(error, cls)), "file")
    texts = re.split(r"\n(?! )", str(error)) if kind == "config" else [str(error)]
    return getattr(error, "findings", None) or [finding(kind, text, remedy="") for text in texts]


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
