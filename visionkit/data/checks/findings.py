"""Findings about data, collected so that the user sees all of them at once."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from visionkit.data.checks.kinds import FINDING_KINDS, Action, Severity
from visionkit.data.loading.cache import cache_folder, evict
from visionkit.errors import (
    SHOWN_NAMES,
    CheckpointError,
    ConfigError,
    DataError,
    VisionkitError,
    listed,
    other_form,
    plural,
    printable,
    shorten,
)
from visionkit.runs.files import to_json, write_text

SHOWN = 20  # findings in the message of an error
RARE = 10  # objects or images of a class; fewer are a finding
FILES_LIMIT = 100 * 2**20  # bytes of all files of findings in the cache folder


class Place(NamedTuple):
    """A record of a COCO file, for example `annotations[1532] (id 88121)`."""

    list: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    id: Any = None

    def __str__(self) -> str:
        known = "" if self.id is None else f" (id {printable(self.id)})"
        return f"{self.list}[{self.index}]{known}"


def place(kind: str, index: int, record: Mapping[str, Any]) -> Place:
    """The place of a record in the list `kind`."""
    id_ = record.get("id")
    return Place(kind, int(index), id_ if type(id_) is int or "id" not in record else short(id_))


def short(value: Any) -> str:
    """A value of a file for a message: strings have quotes."""
    is_plain = isinstance(value, float) and not math.isfinite(value)  # numpy's repr has its type
    return shorten(str(value) if is_plain else repr(value))


class Finding(NamedTuple):
    """One finding: what, where, how to fix it, and what visionkit does about it."""

    kind: str  # of `FINDING_KINDS`, or `image-...`
    message: str
    file: str = ""  # or a folder, or a key of the config
    place: Place | None = None
    key: str | None = None
    value: str | None = None  # as text, shortened
    hint: str = ""
    action: Action = "error"
    severity: Severity = "error"

    def __str__(self) -> str:
        parts = (self.place, self.message, self.hint)
        return ": ".join(str(part) for part in parts if part)

    def record(self) -> dict[str, Any]:
        """The finding in the JSON file of `visionkit check`."""
        record = self._asdict()
        place = record.pop("place")
        return record | (place._asdict() if place else dict.fromkeys(Place._fields))


def finding(kind: str, message: object, action: Action | None = None, **details: Any) -> Finding:
    """A finding with the hint, severity and action of its kind, unless given. The message is a text
    or an error."""
    known = FINDING_KINDS[kind]
    action = action or known.default
    severity: Severity = "error" if action == "error" else known.severity
    details = {"hint": known.hint, **details}
    return Finding(kind, printable(message), action=action, severity=severity, **details)


Progress = Callable[[Iterable[int], str], Iterable[int]]  # shows the progress of a loop

FindingCounts = dict[str, dict[str, int]]  # for each value of `DONE`, the number of each kind
DONE = {"drop": "dropped", "fix": "fixed", "keep": "kept"}  # by action


def count_findings(findings: Iterable[Finding] = ()) -> FindingCounts:
    """The number of findings of each kind, by what was done; errors do not count."""
    counts = Counter((found.action, found.kind) for found in findings)
    return {
        done: {kind: n for (action, kind), n in counts.items() if DONE.get(action) == done}
        for done in DONE.values()
    }


class Problems:
    """Collects the errors about one file, to raise them as one DataError."""

    def __init__(self, source: str, file: Any = None):
        self.source, self.file = source, str(source if file is None else file)
        self.findings: list[Finding] = []
        self.others: list[Finding] = []  # warnings and notes of the same check

    @property
    def count(self) -> int:
        return len(self.findings)

    def add(
        self,
        where: Place | str,
        what: object,
        hint: str = "",
        *,
        kind: str = "value",
        key: str | None = None,
        value: str | None = None,
    ) -> None:
        """Add an error; `where` is a record, or a text, and `what` a text or a VisionkitError."""
        place = where if isinstance(where, Place) else None
        message = what if place or not where else f"{where}: {what}"
        texts = printable(message), self.file, place, key, value, printable(hint)
        self.findings.append(Finding(kind, *texts))

    def add_value(
        self,
        list_: str,
        index: int,
        record: Mapping[str, Any],
        key: str,
        what: str,
        hint: str = "",
        kind: str = "value",
    ) -> None:
        """Add an error that the value of a key of a record of `list_` shows."""
        here, value = place(list_, index, record), short(record.get(key))
        self.add(here, what, hint, kind=kind, key=key, value=value)

    def raise_any(self) -> None:
        """DataError if there are errors. It shows the first `SHOWN` and has all."""
        if self.findings:
            raise DataError(*self.lines(), findings=self.findings, others=self.others)

    def lines(self) -> list[str]:
        """How many errors there are, and the first `SHOWN`."""
        lines = [f"{self.source}: {plural(self.count, 'problem')}"]
        for found in self.findings[:SHOWN]:
            file = "" if found.file in ("", self.file) else f"{printable(found.file)}: "
            lines += f"  {file}{found}".split("\n")
        if self.count > SHOWN:
            lines.append(f"  ... and {self.count - SHOWN} more")
        return lines


def merge_errors(errors: Sequence[VisionkitError]) -> VisionkitError:
    """One error with all messages and findings; a ConfigError if one of them is."""
    lines = [line for error in errors for line in error.lines]
    if any(isinstance(error, ConfigError) for error in errors):
        return ConfigError(*lines)
    return DataError(*lines, findings=[found for error in errors for found in findings_of(error)])


def findings_of(error: VisionkitError) -> list[Finding]:
    """The findings of an error; for a ConfigError, one for each line that is not indented."""
    found = getattr(error, "findings", None)
    if found:
        return found
    if isinstance(error, ConfigError):
        texts = re.split(r"\n(?! )", str(error))
        return [finding("config", ConfigError(*text.split("\n")), hint="") for text in texts]
    kind = "weights" if isinstance(error, CheckpointError) else "file"
    return [finding(kind, error, hint="")]


def save_findings(findings: Sequence[Finding]) -> str:
    """Write all findings to a JSON file in the cache folder. Returns the sentence that names it, or
    says why there is none."""
    content: dict[str, Any] = {"version": 1, "findings": [found.record() for found in findings]}
    text = to_json(content) + "\n"
    try:
        folder = cache_folder() / "findings"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        write_text(path, text)
        evict(folder, FILES_LIMIT, keep=path)
    except (OSError, RuntimeError) as error:  # a full disk, or no home folder
        return f"all {len(findings)} could not be written to the cache folder [{error}]"
    return f"all {len(findings)} are in {path}"


def class_findings(counts: Mapping[str, int], noun: str, file: str) -> list[Finding]:
    """Unused, rare and single classes, and names that differ in case alone. `counts` by class of
    "object"s, "image"s or "map"s with its pixels."""
    found, names = [], [*counts]
    present = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])
    there = f"{noun}s by class: {listed([f'{name!r} ({counts[name]})' for name in present], 5)}"
    for name, count in counts.items():
        if not count:
            text = f"class {name!r} has no {'pixel' if noun == 'map' else noun}; {there}"
            found.append(finding("unused-class", text, file=file, value=name))
        elif count < RARE and noun != "map":
            text = f"class {name!r} has {plural(count, noun)}"
            found.append(finding("rare-class", text, file=file, value=name))
    if len(names) == 1 and noun != "object":
        text = f"{names[0]!r} is the only class"
        found.append(finding("single-class", text, file=file, value=names[0]))
    by_folded: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold().strip()
        by_folded.setdefault(folded, []).append(name)
    for alike in by_folded.values():
        if len(alike) > 1:
            text = f"classes {', '.join(map(repr, alike))} differ in case alone"
            found.append(finding("class-name-case", text, file=file, value=alike[0]))
    return found


def check_classes(
    source: str, found: Sequence[str], wanted: Sequence[str], *, missing_ok: bool, unknown_ok: bool
) -> None:
    """DataError with both lists if the classes of `source` are not the wanted ones."""
    repeated = sorted(name for name, count in Counter(wanted).items() if count > 1)
    if repeated:
        names = _quoted(repeated)
        raise DataError(f"{source}: classes names {names} more than once: name each class once")
    known, expected = set(found), set(wanted)
    missing = [name for name in wanted if name not in known]
    unknown = [name for name in found if name not in expected]
    if (missing and not missing_ok) or (unknown and not unknown_ok):
        raise DataError(
            f"{source}: other classes than expected; training and validation data must agree",
            f"  expected ({len(wanted)}): {_quoted(wanted)}",
            f"  found ({len(found)}): {_quoted(found)}",
            f"  missing here: {_quoted(missing)}",
            f"  not expected: {_quoted(unknown)}",
            *_forms(missing, unknown),
        )


def _forms(missing: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """A line about names that differ in their Unicode form alone, which nobody can see."""
    forms = {name: other_form(name, unknown) for name in missing}
    alike = [ascii(name) for name, clause in forms.items() if clause]
    text = "the same names are there in another Unicode form (NFC or NFD); write them in one form"
    return [f"  {text}: {', '.join(alike)}"] if alike else []


def _quoted(names: Sequence[str]) -> str:
    return listed([*map(repr, names)], SHOWN_NAMES)
