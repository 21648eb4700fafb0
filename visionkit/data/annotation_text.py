"""The text of some annotations of a COCO file, read into columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visionkit.data.coco_columns import (
    ABSENT,
    CORE,
    LARGEST,
    LARGEST_AREA,
    Record,
    Stranger,
    areas,
    boxes,
    crowds,
    first_stranger,
    whole_numbers,
)
from visionkit.data.coco_tables import COMPRESSED, OTHER, POLYGONS, UNCOMPRESSED, packed
from visionkit.data.json_lists import elements
from visionkit.data.polygon_text import KEY, Cut, cut_polygons
from visionkit.data.problems import Problems
from visionkit.data.segmentation_table import SegmentationTableWriter
from visionkit.data.uniform_records import read_uniform

_NUMBERS = {"id", "image_id", "category_id", "area", "iscrowd"}
_EXACT = 2.0**53

Columns = dict[str, np.ndarray]


class Piece(NamedTuple):
    """What some annotations say. `columns` are those of `coco_annotations.AnnotationReader`."""

    columns: Columns | None  # None: no annotations, or not all of them are JSON objects
    codes: bytes = b""  # those of all segmentations, see `SegmentationTable`
    starts: np.ndarray | None = None  # of each segmentation in the text, instead of `codes`
    keys: frozenset[str] = frozenset()  # what the columns do not tell of some
    has_masks: bool = False  # whether any has a segmentation
    mask_faults: tuple[tuple[int, str], ...] = ()  # places in the list, and what is wrong
    end: int | None = None  # see `json_lists.read_members`
    stranger: Stranger | None = None  # the first element that is no JSON object


def read_piece(text: bytes, first: int, problems: Problems) -> Piece:
    """Read annotations, of which the first is at place `first` in its list.

    Most files hold nothing but numbers, and are read without a Python object for each. Raises
    ValueError if the text is no JSON.
    """
    cut = cut_polygons(text)
    columns = None if cut is None else _uniform(cut)
    if columns is not None:
        has_masks = len(cut.sizes) > 0
        return Piece(columns, starts=cut.starts if has_masks else None, has_masks=has_masks)
    records, end, cut = _records(text, cut)
    stranger = first_stranger(records, first)
    if not records or stranger is not None:
        return Piece(None, end=end, stranger=stranger)
    marked = cut is not None
    extras = [_extras(record, marked) for record in records]
    texts = [json.dumps(extra) if extra else "" for extra in extras]
    columns = {
        "id": np.array([r["id"] if _is_id(r.get("id")) else ABSENT for r in records], np.int64),
        "image_id": _ids(records, "image_id", first, problems),
        "category": _ids(records, "category_id", first, problems),
        "bbox": boxes(records, problems, first),
        "area": areas(records, problems, first),
        "iscrowd": crowds(records, problems, first),
        **packed("extras", texts),
    }
    masks, codes, faults = _segmentations(records, cut, first)
    return Piece(
        columns | masks,
        codes,
        None,
        frozenset(key for extra in extras for key in extra),
        any(record.get("segmentation") or (marked and KEY in record) for record in records),
        faults,
        end,
    )


def read_faultless(text: bytes) -> Piece | None:
    """The same for a process that does not know the place; None where that would matter."""
    problems = Problems("")
    try:
        piece = read_piece(text, 0, problems)
    except (ValueError, RecursionError):
        return None
    plain = piece.columns is not None and piece.end is None
    return piece if plain and not problems.count and not piece.mask_faults else None


def _ids(records: Sequence[Record], key: str, first: int, problems: Problems) -> np.ndarray:
    ids, valid = whole_numbers("annotations", records, key, problems, first=first)
    return np.where(valid, ids, ABSENT)


def _segmentations(
    records: Sequence[Record], cut: Cut | None, first: int
) -> tuple[Columns, bytes, tuple[tuple[int, str], ...]]:
    """Their columns, their codes, and what is wrong with them."""
    writer, faults, kinds = SegmentationTableWriter(), [], []
    outlines = iter(() if cut is None else cut.outlines())
    for i, record in enumerate(records):
        if cut is not None and KEY in record:
            kinds.append(POLYGONS)
            writer.append_code(*next(outlines))
            continue
        kinds.append(_kind(record.get("segmentation")))
        try:
            writer.append(record.get("segmentation"))
        except ValueError as error:
            faults.append((first + i, str(error)))
            kinds[i] = OTHER
    table = writer.table()
    columns = {
        "kind": np.array(kinds, np.uint8),
        "code_sizes": np.diff(table.code_ends),
        "reach": table.reach,
        "rle_sizes": table.sizes,
    }
    return columns, table.codes.tobytes(), tuple(faults)


def _records(text: bytes, cut: Cut | None) -> tuple[list[Any], int | None, Cut | None]:
    """The elements of a list, without what was cut if that was safe, and where the list ends."""
    if cut is not None:
        try:
            records, end = elements(cut.text)
        except ValueError:
            records, end = [], None
        if records and end is None and _is_safe(records, cut):
            return records, None, cut
    return *elements(text), None


def _is_safe(records: list[Any], cut: Cut) -> bool:
    """Whether each cut was from a record of its own, and all other masks are bitmaps or empty."""
    if not all(type(record) is dict for record in records):
        return False
    if sum(KEY in record for record in records) != len(cut.sizes):
        return False
    others = [record["segmentation"] for record in records if "segmentation" in record]
    both = sum(KEY in record and "segmentation" in record for record in records)
    return not both and all(not value or isinstance(value, dict) for value in others)


def _uniform(cut: Cut) -> Columns | None:
    """The columns of records that hold plain numbers under usual keys; None for any other."""
    found = read_uniform(cut.text)
    if found is None or not {"image_id", "category_id", "bbox"} <= set(found):
        return None
    has_masks = found.pop(KEY, None) is not None
    bbox = found.pop("bbox")
    if not set(found) <= _NUMBERS or bbox.shape[1:] != (4,):
        return None
    if any(column.ndim != 1 for column in found.values()):
        return None
    count = len(bbox)
    if has_masks != (len(cut.sizes) > 0) or len(cut.sizes) not in (0, count):
        return None
    area, crowd = found.get("area"), found.get("iscrowd")
    if area is not None and not (np.abs(area) < LARGEST_AREA).all():
        return None
    if crowd is not None and not ((crowd == 0) | (crowd == 1)).all():
        return None
    whole = {key: _whole(found.get(key)) for key in ("id", "image_id", "category_id")}
    if any(whole[key] is None and key in found for key in whole):
        return None
    return {
        "id": np.full(count, ABSENT) if whole["id"] is None else whole["id"],
        "image_id": whole["image_id"],
        "category": whole["category_id"],
        "bbox": bbox,
        "area": np.full(count, np.nan) if area is None else area,
        "iscrowd": np.full(count, -1, np.int8) if crowd is None else crowd.astype(np.int8),
        "kind": np.full(count, POLYGONS if has_masks else OTHER, np.uint8),
        "code_sizes": cut.sizes if has_masks else np.zeros(count, np.int64),
        "reach": cut.reach if has_masks else np.zeros(count),
        "rle_sizes": np.zeros((count, 2), np.int32),
        **packed("extras", [""] * count),
    }


def _whole(column: np.ndarray | None) -> np.ndarray | None:
    if column is None or not (np.abs(column) < _EXACT).all():
        return None
    whole = column.astype(np.int64)
    return whole if (whole == column).all() else None


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST


def _kind(segmentation: Any) -> int:
    """How the segmentation can be told from its columns; OTHER: not at all."""
    if isinstance(segmentation, list):
        return POLYGONS
    if isinstance(segmentation, dict) and set(segmentation) == {"size", "counts"}:
        return UNCOMPRESSED if isinstance(segmentation["counts"], list) else COMPRESSED
    return OTHER


def _extras(record: Record, marked: bool) -> Record:
    """What the columns do not hold: other keys, and values that a column cannot tell."""
    untold = {key: value for key, value in record.items() if key not in CORE}
    if marked:
        untold.pop(KEY, None)
    if "id" in record and not _is_id(record["id"]):
        untold["id"] = record["id"]
    for key in ("area", "iscrowd"):
        if key in record and type(record[key]) not in (int, float):
            untold[key] = record[key]
    if "segmentation" in record and _kind(record["segmentation"]) == OTHER:
        untold["segmentation"] = record["segmentation"]
    return untold
