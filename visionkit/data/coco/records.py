"""The annotations of a COCO file, read in pieces and put together."""

from __future__ import annotations

import json
import mmap
import re
from contextlib import ExitStack
from io import BytesIO
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.annotation_text import Piece, read_faultless, read_piece
from visionkit.data.coco.columns import (
    UNMAPPED,
    NonObject,
    Record,
    file_names,
    first_non_object,
    place,
    report_repeats,
    rows_of,
    short,
    whole_numbers,
)
from visionkit.data.coco.json_lists import Data, elements, proposals
from visionkit.data.coco.read_ahead import ReadAhead, can_help
from visionkit.data.coco.tables import Gathered, ImageTable, ObjectTable, SegmentationTable, packed
from visionkit.data.image_io import MAX_PIXELS
from visionkit.data.loading.cache import contents
from visionkit.types import Classes

# --- The image and category records of a COCO file, read into columns.

_REQUIRED = {"id", "file_name", "height", "width"}
_TOLD = ("id", "file_name", "height", "width", "class_id", "identity", "semantic")


class ImageReader:
    """Takes parts of the list of image records, as `json_lists.read_members` hands it out."""

    def __init__(self, data: Data, problems: Problems):
        self.data, self.problems = data, problems
        self._columns = Gathered()
        self.count = 0
        self.keys: set[str] = set()  # those of which the columns do not tell all
        self.stranger: NonObject | None = None  # the first element that is no JSON object

    def __call__(self, start: int, stop: int) -> int | None:
        """Read some records; see `json_lists.read_members`."""
        records, end = elements(self.data[start:stop])
        self.stranger = self.stranger or first_non_object(records, self.count)
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
            "ids": np.where(valid, ids, UNMAPPED),
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


_LIST = re.compile(rb'"annotations"[ \t\n\r]*:[ \t\n\r]*\[[ \t\n\r]*')


class AnnotationReader:
    """Takes parts of the list of annotations, as `json_lists.read_members` names them.

    Other processes read ahead in a large file; use it with `with`, which ends them. Whatever is
    wrong with a record itself is added to `problems` or, about its segmentation, to
    `mask_faults`. What depends on other records is checked later, see `coco_checks`.
    Segmentations, most of a file, are written to `codes`, by default in memory.
    """

    def __init__(self, data: Data, piece: int, problems: Problems, codes: BinaryIO | None):
        self.data, self.piece, self.problems = data, piece, problems
        self._codes = BytesIO() if codes is None else codes
        self.mask_faults: list[tuple[int, str]] = []  # places in the list, and what is wrong
        self._columns = Gathered()
        self.count = 0
        self.keys: set[str] = set()  # what the columns do not tell of some annotation
        self.stranger: NonObject | None = None  # the first element that is no JSON object
        self.has_masks = False  # whether any has a segmentation
        self._ahead: ReadAhead | None = None
        self._begun = -1  # where the list begins that is read ahead
        self._stack = ExitStack()

    def __enter__(self) -> AnnotationReader:
        probable = _LIST.search(self.data)  # long before the images are read
        if probable:
            self._read_ahead(probable.end())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __call__(self, start: int, stop: int) -> int | None:
        """Read some annotations; see `json_lists.read_members`."""
        piece = self._ahead_of(start, stop)
        if piece is None:
            piece = read_piece(self.data[start:stop], self.count, self.problems)
        self.stranger = self.stranger or piece.stranger
        self.has_masks |= piece.has_masks
        self.keys |= piece.keys
        self.mask_faults += piece.mask_faults
        if piece.columns is not None:
            self._columns.add(piece.columns)
            if piece.starts is None:
                self._codes.write(piece.codes)
            else:
                self._copy_codes(start, stop, piece.starts, piece.columns["code_sizes"])
            self.count += len(piece.columns["id"])
        return piece.end

    def _copy_codes(self, start: int, stop: int, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Write segmentations as they stand in the data: other processes need not send them."""
        text = self.data[start:stop]
        spans = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
        self._codes.write(b"".join([text[begin:end] for begin, end in spans]))
        if hasattr(self.data, "madvise"):  # else all of a mapped file counts as memory in use
            first = start - start % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def _ahead_of(self, start: int, stop: int) -> Piece | None:
        """What another process read there, if it could."""
        if self.count == 0 and start != self._begun:
            self._read_ahead(start)
        return self._ahead and self._ahead.get(start, stop)

    def _read_ahead(self, start: int) -> None:
        """Have other processes read a list that begins at `start`, or may begin there: what they
        found is only used if it does."""
        self._stack.close()
        self._begun, self._ahead = start, None
        if can_help(len(self.data) - start):
            spans = proposals(self.data, start, self.piece)
            self._ahead = self._stack.enter_context(ReadAhead(self.data, read_faultless, spans))

    def table(self, image_ids: np.ndarray) -> ObjectTable:
        """All that was read; `image_ids` are those of the image table."""
        columns = self._columns
        ids = columns.column("image_id", np.int64)
        masks = SegmentationTable(
            codes=contents(self._codes),
            code_ends=columns.offsets("code_sizes"),
            reach=columns.column("reach", np.float64),
            sizes=columns.column("rle_sizes", np.int32, 2),
        )
        return ObjectTable(
            ids=columns.column("id", np.int64),
            image=rows_of(ids, image_ids),
            image_ids=ids,
            category=columns.column("category", np.int64),
            bbox=columns.column("bbox", np.float64, 4),
            area=columns.column("area", np.float64),
            iscrowd=columns.column("iscrowd", np.int8),
            kind=columns.column("kind", np.uint8),
            extras=columns.texts("extras"),
            masks=masks,
        )
