"""Who or what the objects of a COCO file are, by a key of their annotations such as "track_id"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visionkit.data.coco_columns import CORE, place, short
from visionkit.data.coco_tables import ObjectTable
from visionkit.data.problems import Problems
from visionkit.errors import DataError


def read_identifiers(
    objects: ObjectTable, key: str, rows: Sequence[int], problems: Problems
) -> np.ndarray:
    """A number for each value of that key in those rows of the file; -1 where there is none.

    The same number means the same value. Raises DataError if a value is neither a whole number
    nor a text, or no row has any.
    """
    record = objects.record if key in CORE else objects.extra
    values = [record(row).get(key) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is not None and type(value) not in (int, str):
            problems.add(
                place("annotations", row, objects.record(row)),
                f"{key!r} is {short(value)}: must be a whole number or a text, or left out",
            )
    problems.raise_any()
    known = sorted({str(value) for value in values if value is not None})
    if not known:
        raise DataError(f"{problems.source}: no object has {key!r} (`identity`)")
    number_of = {value: number for number, value in enumerate(known)}
    numbers = [-1 if value is None else number_of[str(value)] for value in values]
    return np.array(numbers, np.int64)
