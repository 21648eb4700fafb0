"""Attributes of the objects of a COCO file, `"attributes": {"color": "red", "covered": false}`, and
their identities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionkit.data.attributes import SEPARATORS, AttributeKind, groups
from visionkit.data.checks.findings import SHOWN, Place, Problems, check_classes, place, short
from visionkit.data.coco.tables import CORE, ObjectTable, Record
from visionkit.errors import ConfigError, DataError
from visionkit.types import Classes

MOST_VALUES = 1000  # more are hardly visible properties, but ids of tracks or people

_TYPES = {"one_of": "a string", "any_of": "a list", "yes_no": "true or false"}
_HINT = "correct it, or list the attributes to read in `attributes` of the dataset"


@dataclass(frozen=True)
class AttributeTable:
    """The attributes of all annotations, in the order of the file."""

    classes: Classes  # named as in `visionkit.data.attributes`
    values: np.ndarray  # (annotations, classes) float32: 1 yes, 0 no, NaN not known

    def classes_from(self, names: Sequence[str], source: str) -> AttributeTable:
        """The same with the classes `names`, for example those of the training data, in order.

        A class that this file lacks is 0 where an object has another value of the attribute, NaN
        where nothing is known. Raises DataError, about `source`, that lists the classes of this
        file that are not among `names`.
        """
        check_classes(source, self.classes.names, names, missing_ok=True, unknown_ok=False)
        column_of = {name: column for column, name in enumerate(self.classes.names)}
        own = groups(self.classes.names)
        values = np.full((len(self.values), len(names)), np.nan, np.float32)
        for attribute, group in groups(names).items():
            if attribute not in own:
                continue
            known = ~np.isnan(self.values[:, own[attribute].columns[0]])
            for column in group.columns:
                here = column_of.get(names[column])
                values[known, column] = 0 if here is None else self.values[known, here]
        return AttributeTable(Classes.numbered(names), values)


@dataclass
class _Answers:
    """The values of one attribute in a file: its kind, and for some rows the true classes."""

    kind: AttributeKind
    first: Place  # the annotation that fixed the kind
    rows: list[int] = field(default_factory=list)
    holding: list[list[str]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)


def read_attributes(
    records: list[Record],
    problems: Problems,
    *,
    faults: Problems | None = None,
    wanted: Collection[str] | None = None,
    listed: Sequence[str] = (),
) -> AttributeTable | None:
    """The `attributes` of the annotations; None if no annotation has any that can be classes.

    A value is true or false, a string (one of several) or a list of strings (any of several); an
    integer is read as a string. A name that is absent, or has the value null or "", is unknown.
    `wanted` are the names to read, by default all; the others may have any value. `listed` fixes
    the classes and their order; by default they are those that occur, sorted.

    Values that cannot be classes are `faults` with their attribute as key, by default problems, at
    most `SHOWN` of each attribute; the attribute is dropped.
    """
    faults = problems if faults is None else faults
    if wanted is not None and not wanted:
        return None
    found: dict[str, _Answers] = {}
    bad: Counter[str] = Counter()  # the number of faults by name
    for row, record in enumerate(records):
        values = record.get("attributes")
        if not values:
            continue
        here = place("annotations", row, record)
        if not isinstance(values, dict):
            what = f"'attributes' is {short(values)}: must be an object {{name: value}}"
            faults.add(here, what, key="attributes")
            continue
        for name, value in values.items():
            is_read = (wanted is None or name in wanted) and bad[name] < SHOWN
            if is_read and value is not None and value != "":
                fault = _note(found, row, here, name, value)
                if fault:
                    faults.add(here, f"attribute {short(name)}{fault}", _HINT, key=name)
                    bad[name] += 1
    for name in sorted(set(wanted or ()) - set(found) - set(bad)):
        problems.add("annotations", f"none has the attribute {short(name)} of `attributes`")
    for name, answers in found.items():
        if len(answers.classes) > MOST_VALUES:
            faults.add(
                answers.first,
                f"attribute {short(name)} has {len(answers.classes)} different values in the file, "
                f"more than {MOST_VALUES}",
                _HINT,
                key=name,
            )
            bad[name] += 1
    found = {name: answers for name, answers in found.items() if not bad[name]}
    if not any(answers.classes for answers in found.values()):
        return None
    table = _table(found, len(records))
    return table if not listed else _as_listed(table, listed, wanted, problems)


def read_identifiers(
    objects: ObjectTable, key: str, rows: Sequence[int], problems: Problems
) -> np.ndarray:
    """A number for each value of that key in those rows of the file; -1 where there is none.

    Equal numbers mean equal values. Raises DataError if a value is neither an integer nor a
    string, or no row has any.
    """
    record = objects.record if key in CORE else objects.extra
    values = [record(row).get(key) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is not None and type(value) not in (int, str):
            problems.add(
                place("annotations", row, objects.record(row)),
                f"{key!r} is {short(value)}: must be an integer or a string, or absent",
            )
    problems.raise_any()
    known = sorted({str(value) for value in values if value is not None})
    if not known:
        raise DataError(f"{problems.source}: no object has {key!r} (`identity`)")
    number_of = {value: number for number, value in enumerate(known)}
    numbers = [-1 if value is None else number_of[str(value)] for value in values]
    return np.array(numbers, np.int64)


def _as_listed(
    table: AttributeTable, listed: Sequence[str], wanted: Collection[str] | None, problems: Problems
) -> AttributeTable:
    """The table with the listed classes of the wanted attributes."""
    try:
        by_name = groups(listed)
    except ConfigError as error:
        problems.add("attribute_classes", str(error))
        return table
    columns = [c for n, g in by_name.items() if wanted is None or n in wanted for c in g.columns]
    return table.classes_from([listed[column] for column in sorted(columns)], problems.source)


def _note(found: dict[str, _Answers], row: int, here: Place, name: str, value: Any) -> str:
    """Add the value of one annotation to those of its attribute, or say what is wrong."""
    kind, texts = _read(value)
    if not name or "=" in name or ":" in name:
        return ": a name must not contain '=' or ':'"
    elif kind is None:
        return (
            f" is {short(value)}: must be true or false, a string, an integer, or a list of strings"
        )
    elif (answers := found.setdefault(name, _Answers(kind, here))).kind != kind:
        expected = f"but in {answers.first} it is {_TYPES[answers.kind]}"
        return f" is {short(value)}, {expected}: an attribute has one kind of value"
    classes = [f"{name}{SEPARATORS[kind]}{text}" for text in texts]
    answers.rows.append(row)
    answers.holding.append([] if value is False else classes)
    answers.classes.update(classes)
    return ""


def _read(value: Any) -> tuple[AttributeKind | None, list[str]]:
    """The kind of a JSON value and its strings; None for the kind if it is not valid."""
    if isinstance(value, bool):
        return "yes_no", [""]
    texts = [_text(item) for item in value] if isinstance(value, list) else [_text(value)]
    if not all(texts):
        return None, []
    return ("any_of" if isinstance(value, list) else "one_of"), texts


def _text(value: Any) -> str:
    """A string as it is, an integer as a string; "" for anything else."""
    if isinstance(value, str):
        return value
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if is_whole else ""


def _table(found: dict[str, _Answers], num_rows: int) -> AttributeTable:
    names = [name for attribute in sorted(found) for name in sorted(found[attribute].classes)]
    column_of = {name: column for column, name in enumerate(names)}
    values = np.full((num_rows, len(names)), np.nan, np.float32)
    for answers in found.values():
        values[np.ix_(answers.rows, [column_of[name] for name in answers.classes])] = 0
        rows_of = np.repeat(answers.rows, [len(holding) for holding in answers.holding])
        values[rows_of, [column_of[name] for holding in answers.holding for name in holding]] = 1
    return AttributeTable(Classes.numbered(names), values)
