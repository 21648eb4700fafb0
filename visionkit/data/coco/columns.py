"""Check one key of all records of a COCO file and report the place of every fault."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Place, Problems
from visionkit.errors import shorten

Record = dict[str, Any]
NonObject = tuple[int, str]  # place in a list of an element that is not an object, and its value

# The keys of an annotation that columns hold.
CORE = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
UNMAPPED = -(2**63)  # in a column of ids
LARGEST = 2**62
LARGEST_AREA = 1e15
FARTHEST = 1e9  # of a box, in pixels: products in scoring stay finite (inf / inf is a match)


def integers(
    kind: str,
    records: Sequence[Record],
    key: str,
    problems: Problems,
    *,
    required: bool = True,
    low: int = -LARGEST,
    first: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """One column as int64, and where it is valid; -1 where it is absent or bad.

    `first` is the place of the first record in its list, here and below.
    """
    values: list[Any] = [record.get(key) for record in records]
    found = _plain(values, int)
    if found is not None and low <= found.min() and found.max() <= LARGEST:
        return found, np.ones(len(records), bool)
    numbers, valid = [-1] * len(records), [False] * len(records)
    for i, value in enumerate(values):
        if value is None and not required:
            continue
        is_integer = isinstance(value, Integral) and not isinstance(value, bool)
        is_integer |= isinstance(value, float) and value.is_integer()
        if is_integer and low <= value <= LARGEST:
            numbers[i], valid[i] = int(value), True
        else:
            bound = f" of at least {low}" if low > -LARGEST else ""
            hint = " (without quotes)" if isinstance(value, str) else ""
            problems.add(
                place(kind, first + i, records[i]),
                f"'{key}' {found_in(records[i], key)}",
                f"must be an integer{bound}{hint}",
                key=key,
                value=short(value),
            )
    return np.array(numbers, np.int64), np.array(valid, bool)


def boxes(records: Sequence[Record], problems: Problems, first: int = 0) -> np.ndarray:
    """The column 'bbox' (N, 4) float64; zeros where it is bad."""
    values: list[Any] = [record.get("bbox") for record in records]
    if set(map(type, values)) == {list} and set(map(len, values)) == {4}:
        found = _plain(list(chain.from_iterable(values)), float)
        if found is not None:
            return found.reshape(-1, 4)
    numbers = array("d")
    for i, box in enumerate(values):
        try:
            if not isinstance(box, list | tuple) or len(box) != 4 or bool in map(type, box):
                raise TypeError
            numbers.extend(box)
        except (TypeError, OverflowError):
            problems.add(
                place("annotations", first + i, records[i]),
                f"'bbox' {found_in(records[i], 'bbox')}",
                "must be four numbers [x, y, width, height]",
                key="bbox",
                value=short(box),
            )
            del numbers[4 * i :]
            numbers.extend((0, 0, 0, 0))
    return np.array(numbers).reshape(-1, 4)


def areas(records: Sequence[Record], problems: Problems, first: int = 0) -> np.ndarray:
    """The column 'area' float64; NaN where it is absent or bad."""
    values = [record.get("area") for record in records]
    found = _plain(values, float)
    if found is not None and (np.abs(found) < LARGEST_AREA).all():
        return found
    column = np.full(len(records), np.nan)
    for i, area in enumerate(values):
        if area is None:
            continue
        if type(area) in (int, float) and abs(area) < LARGEST_AREA:
            column[i] = area
        else:
            problems.add(
                place("annotations", first + i, records[i]),
                f"'area' is {short(area)}",
                "must be a number of at least 0, or absent",
                key="area",
                value=short(area),
            )
    return column


def crowds(records: Sequence[Record], problems: Problems, first: int = 0) -> np.ndarray:
    """The column 'iscrowd' int8; -1 where it is absent or bad. "0", "1", true and false count."""
    values = [record.get("iscrowd") for record in records]
    found = _plain(values, int)
    if found is not None and ((found == 0) | (found == 1)).all():
        return found.astype(np.int8)
    column = np.full(len(records), -1, np.int8)
    for i, value in enumerate(values):
        if value in (0, 1, "0", "1"):
            column[i] = int(value)
        elif value is not None:
            problems.add(
                place("annotations", first + i, records[i]),
                f"'iscrowd' is {short(value)}",
                "must be 0 or 1, or absent",
                key="iscrowd",
                value=short(value),
            )
    return column


def _plain(values: list[Any], kind: type) -> np.ndarray | None:
    """The values as an array if all are plain numbers of that kind; integers are floats too."""
    kinds = {int} if kind is int else {int, float}
    if not values or not kinds.issuperset(map(type, values)):
        return None
    try:
        return np.array(values, np.int64 if kind is int else np.float64)
    except OverflowError:
        return None


def file_names(
    records: Sequence[Record], key: str, problems: Problems, *, required: bool, first: int = 0
) -> list[str]:
    """One column of relative paths; "" where it is absent or bad."""
    values: list[Any] = [record.get(key) for record in records]
    if set(map(type, values)) == {str} and all(map(_HARMLESS.fullmatch, values)):
        return values
    names = []
    for i, (record, name) in enumerate(zip(records, values, strict=True)):
        if name is None and not required:
            fault = None
        elif not isinstance(name, str) or not name:
            fault = "must be a file name"
        else:
            fault = _unsafe(name)
        if fault:
            problems.add(
                place("images", first + i, record),
                f"'{key}' is {short(name)}",
                fault,
                kind="path" if isinstance(name, str) and name else "value",
                key=key,
                value=short(name),
            )
        names.append("" if fault or name is None else name)
    return names


_HARMLESS = re.compile(r"(?:[\w-]+[./ ])*[\w-]+")  # most names; `_unsafe` finds nothing in them


def _unsafe(name: str) -> str | None:
    """Why a file name could leave its folder, or None."""
    if "\0" in name:
        return "must not contain a zero byte"
    if "\\" in name:
        return "must use / between folders"
    if re.match(r"/|~[^/]*/|[A-Za-z]:|\w+://", name):
        return "must be relative to the image folder"
    if ".." in name.split("/"):
        return "must not leave the image folder"
    return None


def rows_of(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The row of each id `among` others, the first one if they repeat; -1 where there is none."""
    if not len(among):
        return np.full(len(ids), -1)
    low, high = int(among.min()), int(among.max())
    if high - low < 8 * len(ids):  # as in most files: a table of all possible ids
        row_of = np.full(high - low + 1, -1)
        row_of[among[::-1] - low] = np.arange(len(among))[::-1]
        return np.where((ids >= low) & (ids <= high), row_of[np.clip(ids, low, high) - low], -1)
    order = np.argsort(among, kind="stable")
    place = np.searchsorted(among[order], ids).clip(max=len(among) - 1)
    rows = order[place]
    return np.where((among[rows] == ids) & (ids != UNMAPPED), rows, -1)


def report_repeats(
    kind: str,
    record: Callable[[int], Record],
    key: str,
    values: list[Any],
    valid: Iterable[bool],
    problems: Problems,
) -> None:
    first: dict[Any, int] = {}
    for i, (value, counts) in enumerate(zip(values, valid, strict=True)):
        if counts and first.setdefault(value, i) != i:
            problems.add(
                place(kind, i, record(i)),
                f"'{key}' {value!r} is also that of {kind}[{first[value]}]",
                "must be unique",
                kind="repeated",
                key=key,
                value=short(value),
            )


def place(kind: str, index: int, record: Record) -> Place:
    """The place of a record in the list `kind`."""
    id_ = record.get("id")
    return Place(kind, int(index), id_ if type(id_) is int or "id" not in record else short(id_))


def found_in(record: Record, key: str) -> str:
    """The value of a record for a message: "is 7", or "is missing"."""
    return f"is {short(record[key])}" if key in record else "is missing"


def first_non_object(records: Sequence[Any], first: int = 0) -> NonObject | None:
    """The first element that is not a JSON object; None if all are."""
    if all(type(record) is dict for record in records):
        return None
    found = next(i for i, record in enumerate(records) if type(record) is not dict)
    return first + found, short(records[found])


def json_type(value: Any) -> str:
    """The JSON type of a value, for a message."""
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return kinds.get(type(value), "true or false" if isinstance(value, bool) else "a number")


def list_error(key: str, members: Mapping[str, Any], other: NonObject | None) -> str:
    """What is wrong with a member that must be a list of objects; "" if nothing is."""
    if key not in members:
        return f"'{key}' is missing"
    if not isinstance(members[key], list):
        return f"'{key}' is {short(members[key])}, not a list of objects"
    if other is not None:
        return f"{key}[{other[0]}] is {other[1]}, not an object: remove it"
    return ""


def short(value: Any) -> str:
    """A value of a file for a message: strings have quotes."""
    is_plain = isinstance(value, float) and not math.isfinite(value)  # numpy's repr has its type
    return shorten(str(value) if is_plain else repr(value))
