"""Checking one key of all records of a COCO file, with a place for every fault found."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from visionkit.data.problems import Problems

Record = dict[str, Any]


def whole_numbers(
    kind: str,
    records: list[Record],
    key: str,
    problems: Problems,
    *,
    required: bool = True,
    low: int = -(2**62),
) -> tuple[np.ndarray, np.ndarray]:
    """One column as int64, and where it is valid; -1 where it is absent or bad."""
    numbers, valid = [-1] * len(records), [False] * len(records)
    for i, record in enumerate(records):
        value = record.get(key)
        if value is None and not required:
            continue
        is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
        if is_whole and low <= value <= 2**62:
            numbers[i], valid[i] = int(value), True
        else:
            bound = f" of at least {low}" if low > -(2**62) else ""
            hint = " (without quotes)" if isinstance(value, str) else ""
            found = f"is {short(value)}" if key in record else "is missing"
            problems.add(
                place(kind, i, record), f"'{key}' {found}: must be a whole number{bound}{hint}"
            )
    return np.array(numbers, np.int64), np.array(valid, bool)


def file_names(records: list[Record], key: str, problems: Problems, *, required: bool) -> list[str]:
    """One column of relative paths; "" where it is absent or bad."""
    names = []
    for i, record in enumerate(records):
        name = record.get(key)
        if name is None and not required:
            fault = None
        elif not isinstance(name, str) or not name:
            fault = "must be the name of a file"
        else:
            fault = _unsafe(name)
        if fault:
            problems.add(place("images", i, record), f"'{key}' is {short(name)}: {fault}")
        names.append("" if fault or name is None else name)
    return names


def _unsafe(name: str) -> str | None:
    """Why a file name could leave its folder, or None."""
    if "\0" in name:
        return "must not hold a zero byte"
    if "\\" in name:
        return "must have / between folders"
    if name.startswith("/") or re.match(r"[A-Za-z]:|\w+://", name):
        return "must be relative to the folder of pictures"
    if ".." in name.split("/"):
        return "must not leave the folder of pictures"
    return None


def report_repeats(
    kind: str,
    records: list[Record],
    key: str,
    values: list[Any],
    valid: Iterable[bool],
    problems: Problems,
) -> None:
    first: dict[Any, int] = {}
    for i, (value, counts) in enumerate(zip(values, valid, strict=True)):
        if counts and first.setdefault(value, i) != i:
            problems.add(
                place(kind, i, records[i]),
                f"'{key}' {value!r} is already that of {kind}[{first[value]}]: must be unique",
            )


def place(kind: str, index: int, record: Record) -> str:
    """For example `annotations[1532] (id 88121)`."""
    return f"{kind}[{index}] (id {short(record['id'])})" if "id" in record else f"{kind}[{index}]"


def short(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
