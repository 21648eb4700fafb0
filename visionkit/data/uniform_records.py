"""JSON records that differ in their numbers only, as most annotations do once polygons are cut."""

from __future__ import annotations

import json
import re

import numpy as np

from visionkit.data.decimals import read_numbers

_COMMA = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*")
_NUMBER = b"0123456789.-"


def read_uniform(text: bytes) -> dict[str, np.ndarray] | None:
    """The columns of records `{"a": 1, "b": [2, 3]}, {"a": 4, "b": [5, 6]}, ...`: (N,) or (N, M).

    All numbers become float64. A key whose value is null in all records has (N, 0). None unless
    the records have the same keys in the same order, and nothing else than numbers, lists of
    numbers of one length, and nulls.

    That is certain although only the first record is parsed: the text around the numbers repeats
    with the length of one record and the comma behind it.
    """
    try:
        first, end = json.JSONDecoder().raw_decode(text.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    widths = _widths(first)
    numbers = read_numbers(text) if widths else None
    width = sum(widths.values()) if widths else 0
    if numbers is None or not width or len(numbers.values) % width:
        return None
    count = len(numbers.values) // width
    if np.searchsorted(numbers.starts, end + 1) != width:  # digits in a key, or a key twice
        return None
    gaps = numbers.starts[1:] - numbers.ends[:-1]
    frame = np.frombuffer(text.translate(None, _NUMBER), np.uint8)
    length = len(text[:end].translate(None, _NUMBER))
    period, rest = divmod(len(frame) - length, max(count - 1, 1))
    between = frame[length:period].tobytes()
    repeats = (
        not rest
        and gaps[:width].sum() == period
        and (gaps[width:] == gaps[:-width]).all()
        and (frame[period:] == frame[:-period]).all()
        and _COMMA.fullmatch(between)
        if count > 1
        else length == len(frame)
    )
    if not repeats:
        return None
    columns, at = {}, 0
    table = numbers.values.reshape(count, width)
    for key, size in widths.items():
        columns[key] = (
            table[:, at] if type(first[key]) in (int, float) else table[:, at : at + size]
        )
        at += size
    return columns


def _widths(record: object) -> dict[str, int]:
    """How many numbers each key has; empty if there is anything else than numbers."""
    widths: dict[str, int] = {}
    for key, value in record.items() if isinstance(record, dict) else ():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) in (int, float) for number in values):
            return {}
        widths[key] = len(values)
    return widths
