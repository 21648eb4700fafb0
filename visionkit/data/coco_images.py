"""The image and category records of a COCO file, read into columns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from visionkit.data.coco_columns import (
    ABSENT,
    Record,
    Stranger,
    file_names,
    first_stranger,
    place,
    report_repeats,
    short,
    whole_numbers,
)
from visionkit.data.coco_tables import Gathered, ImageTable, packed
from visionkit.data.images import MAX_PIXELS
from visionkit.data.json_lists import Data, elements
from visionkit.data.problems import Problems
from visionkit.types import Classes

_REQUIRED = {"id", "file_name", "height", "width"}
_TOLD = ("id", "file_name", "height", "width", "class_id", "identity", "semantic")


class ImageReader:
    """Takes parts of the list of image records, as `json_lists.read_members` hands it out."""

    def __init__(self, data: Data, problems: Problems):
        self.data, self.problems = data, problems
        self._columns = Gathered()
        self.count = 0
        self.keys: set[str] = set()  # those of which the columns do not tell all
        self.stranger: Stranger | None = None  # the first element that is no JSON object

    def __call__(self, start: int, stop: int) -> int | None:
        """Read some records; see `json_lists.read_members`."""
        records, end = elements(self.data[start:stop])
        self.stranger = self.stranger or first_stranger(records, self.count)
        if self.stranger is None and records:
            self._columns.add(self._read(records))
            self.count += len(records)
        return end

    def table(self) -> ImageTable:
        """All that was read."""
        columns = self._columns
        return ImageTable(
            ids=columns.column("ids", np.int64),
            sizes=columns.column("sizes", np.int64, 2),
            class_ids=columns.column("class_ids", np.int64),
            identities=columns.column("identities", np.int64),
            names=columns.texts("names"),
            semantic=columns.texts("semantic"),
            extras=columns.texts("extras"),
        )

    def _read(self, records: list[Record]) -> dict[str, np.ndarray]:
        problems, first = self.problems, self.count
        ids, valid = whole_numbers("images", records, "id", problems, first=first)
        heights, _ = whole_numbers("images", records, "height", problems, low=1, first=first)
        widths, _ = whole_numbers("images", records, "width", problems, low=1, first=first)
        for i in np.flatnonzero(heights * widths.astype(float) > MAX_PIXELS):
            problems.add(
                place("images", first + i, records[i]),
                f"{widths[i]}x{heights[i]} is more than the limit of {MAX_PIXELS} pixels",
                key="width",
                value=short(int(widths[i])),
            )
        optional: Any = {"required": False, "low": 0, "first": first}
        extras = [_extras(record) for record in records]
        self.keys.update(key for extra in extras for key in extra)
        texts = {
            "names": file_names(records, "file_name", problems, required=True, first=first),
            "semantic": file_names(records, "semantic", problems, required=False, first=first),
            "extras": [json.dumps(extra) if extra else "" for extra in extras],
        }
        columns = {
            "ids": np.where(valid, ids, ABSENT),
            "sizes": np.stack([heights, widths], 1),
            "class_ids": whole_numbers("images", records, "class_id", problems, **optional)[0],
            "identities": whole_numbers("images", records, "identity", problems, **optional)[0],
        }
        for name, values in texts.items():
            columns |= packed(name, values)
        return columns


def read_categories(records: list[Record], problems: Problems) -> Classes:
    """Names and ids in the order of the ids."""
    ids, valid = whole_numbers("categories", records, "id", problems)
    report_repeats("categories", records.__getitem__, "id", ids.tolist(), valid, problems)
    names = [record.get("name") for record in records]
    named = [isinstance(name, str) and bool(name) for name in names]
    for i in np.flatnonzero(~np.array(named)):
        problems.add(
            place("categories", i, records[i]),
            f"'name' is {short(names[i])}",
            "must be a text",
            key="name",
            value=short(names[i]),
        )
    report_repeats("categories", records.__getitem__, "name", names, named, problems)
    order = np.argsort(ids, kind="stable")
    return Classes(tuple(str(names[i]) for i in order), tuple(ids[order].tolist()))


def _extras(record: Record) -> Record:
    """What the columns do not hold: other keys, and values that a column cannot tell."""
    if record.keys() == _REQUIRED:
        return {}
    return {
        key: value
        for key, value in record.items()
        if key not in _TOLD or value is None or type(value) is bool
    }
