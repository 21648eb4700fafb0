"""The records of a COCO file, decoded and checked one by one, and gathered into tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.columns import (
    CORE,
    LARGEST,
    UNMAPPED,
    NonObject,
    Record,
    areas,
    boxes,
    crowds,
    file_names,
    first_non_object,
    integers,
    place,
    report_repeats,
    rows_of,
    short,
)
from visionkit.data.coco.reader import elements
from visionkit.data.coco.segmentations import SegmentationTable, find_fault, pack
from visionkit.data.coco.tables import Gathered, ImageTable, ObjectTable, packed

try:
    from visionkit.data.coco import fast_json
except ImportError:  # the extra `fast` is not installed
    fast_json = None  # type: ignore[assignment]  # optional

Columns = dict[str, np.ndarray]

_IMAGE = {"id", "file_name", "height", "width"}
_IMAGE_COLUMNS = (*_IMAGE, "class_id", "identity", "semantic")


class RecordReader:
    """Reads records in chunks; faults of single records are added to `problems`."""

    def __init__(self, problems: Problems):
        self.problems = problems
        self.count = 0
        self.keys: set[str] = set()  # those in `extras` of some record
        self.non_object: NonObject | None = None  # the first element that is not an object
        self._columns = Gathered()

    def __call__(self, text: bytes) -> int | None:
        """Read the text of some records; see `reader.read_list`."""
        records, end = elements(text)
        self.add(records)
        return end

    def add(self, records: Sequence[Any]) -> None:
        """Read some records."""
        self.non_object = self.non_object or first_non_object(records, self.count)
        if self.non_object is None and records:
            self._columns.add(self._read(records))
            self.count += len(records)

    def _read(self, records: Sequence[Record]) -> Columns:
        raise NotImplementedError


class ImageReader(RecordReader):
    """Reads image records."""

    def table(self) -> ImageTable:
        """All records."""
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

    def _read(self, records: Sequence[Record]) -> Columns:
        problems, first = self.problems, self.count
        ids, valid = integers("images", records, "id", problems, first=first)
        heights, _ = integers("images", records, "height", problems, low=1, first=first)
        widths, _ = integers("images", records, "width", problems, low=1, first=first)
        optional: Any = {"required": False, "low": 0, "first": first}
        extras = [
            {
                key: value
                for key, value in record.items()
                if key not in _IMAGE_COLUMNS or value is None or type(value) is bool
            }
            if record.keys() != _IMAGE
            else {}
            for record in records
        ]
        self.keys.update(key for extra in extras for key in extra)
        names = file_names(records, "file_name", problems, required=True, first=first)
        semantic = file_names(records, "semantic", problems, required=False, first=first)
        return {
            "ids": np.where(valid, ids, UNMAPPED),
            "sizes": np.stack([heights, widths], 1),
            "class_ids": integers("images", records, "class_id", problems, **optional)[0],
            "identities": integers("images", records, "identity", problems, **optional)[0],
            **packed("names", names),
            **packed("semantic", semantic),
            **packed("extras", list(map(_json, extras))),
        }


class AnnotationReader(RecordReader):
    """Reads annotations, by msgspec where it is installed and they are plain.

    What depends on other records is checked later, by `index`.
    """

    def __init__(self, problems: Problems):
        super().__init__(problems)
        self.mask_faults: list[tuple[int, str]] = []  # places in the list, and what is wrong

    def __call__(self, text: bytes) -> int | None:
        """Read the text of some annotations; see `reader.read_list`."""
        plain = fast_json.decode(text) if fast_json else None
        columns = _plain_columns(plain) if plain else None
        if not plain or not columns:
            return super().__call__(text)
        self._columns.add(columns)
        self.count += len(plain)
        return None

    @property
    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """`reach` and `outline` of all annotations; see `segmentations.pack`."""
        return self._columns.column("reach", float), self._columns.column("outline", np.float32)

    def table(self, image_ids: np.ndarray) -> ObjectTable:
        """All annotations; `image_ids` are those of the image table."""
        columns = self._columns
        ids, polygons = columns.column("image_id", np.int64), columns.column("polygons", np.int32)
        masks = SegmentationTable(
            points=columns.column("points", np.float64, 2),
            polygon_ends=columns.offsets("polygon_lengths"),
            first=polygons.cumsum() - polygons,
            polygons=polygons,
            counts=columns.column("counts", np.uint8),
            count_ends=columns.offsets("count_lengths"),
            sizes=columns.column("sizes", np.int32, 2),
        )
        return ObjectTable(
            ids=columns.column("id", np.int64),
            image=rows_of(ids, image_ids),
            image_ids=ids,
            category=columns.column("category", np.int64),
            bbox=columns.column("bbox", np.float64, 4),
            area=columns.column("area", np.float64),
            iscrowd=columns.column("iscrowd", np.int8),
            segmented=columns.column("segmented", np.bool_),
            extras=columns.texts("extras"),
            masks=masks,
        )

    def _read(self, records: Sequence[Record]) -> Columns:
        problems, first = self.problems, self.count
        segmentations, faults = self._segmentations([r.get("segmentation") for r in records])
        extras = list(map(_extras, records, faults))
        self.keys.update(key for extra in extras for key in extra)
        image_ids, has_image = integers("annotations", records, "image_id", problems, first=first)
        category, known = integers("annotations", records, "category_id", problems, first=first)
        ids = [record.get("id") for record in records]
        return {
            "id": np.array([id_ if _is_id(id_) else UNMAPPED for id_ in ids], np.int64),
            "image_id": np.where(has_image, image_ids, UNMAPPED),
            "category": np.where(known, category, UNMAPPED),
            "bbox": boxes(records, problems, first),
            "area": areas(records, problems, first),
            "iscrowd": crowds(records, problems, first),
            "segmented": np.array([
                "segmentation" in r and "segmentation" not in e
                for r, e in zip(records, extras, strict=True)
            ], bool),
            **segmentations,
            **packed("extras", list(map(_json, extras))),
        }  # fmt: skip

    def _segmentations(self, found: list[Any]) -> tuple[Columns, list[str]]:
        """Their columns and faults; one with a fault counts as absent."""
        try:
            return pack(found), [""] * len(found)
        except (TypeError, ValueError, OverflowError):
            faults = list(map(find_fault, found))
        self.mask_faults += [(self.count + i, fault) for i, fault in enumerate(faults) if fault]
        sound = [None if fault else each for each, fault in zip(found, faults, strict=True)]
        return pack(sound), faults


def _plain_columns(found: list[Any]) -> Columns | None:
    """The columns of decoded annotations; None if a segmentation has a fault."""
    unset, count = fast_json.UNSET, len(found)
    masks = [None if a.segmentation is unset else a.segmentation for a in found]
    if not all(map(_is_rle, (mask for mask in masks if type(mask) is dict))):
        return None
    try:
        segmentations = pack(masks, typed=True)
    except (TypeError, ValueError, OverflowError):
        return None

    def column(values: list[Any], missing: Any, dtype: type) -> np.ndarray:
        return np.array([missing if value is unset else value for value in values], dtype)

    return {
        "id": column([a.id for a in found], UNMAPPED, np.int64),
        "image_id": np.array([a.image_id for a in found], np.int64),
        "category": np.array([a.category_id for a in found], np.int64),
        "bbox": np.array([a.bbox for a in found], np.float64),
        "area": column([a.area for a in found], np.nan, np.float64),
        "iscrowd": column([a.iscrowd for a in found], -1, np.int8),
        "segmented": np.array([mask is not None for mask in masks], bool),
        **segmentations,
        **packed("extras", [""] * count),
    }


def read_categories(
    records: Sequence[Record], problems: Problems
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids in the order of the ids."""
    ids, valid = integers("categories", records, "id", problems)
    report_repeats("categories", records.__getitem__, "id", ids.tolist(), valid, problems)
    names = [record.get("name") for record in records]
    named = [isinstance(name, str) and bool(name) for name in names]
    for i in np.flatnonzero(~np.array(named, bool)).tolist():
        problems.add(
            place("categories", i, records[i]),
            f"'name' is {short(names[i])}",
            "must be a string",
            key="name",
            value=short(names[i]),
        )
    report_repeats("categories", records.__getitem__, "name", names, named, problems)
    order = np.argsort(ids, kind="stable")
    return tuple(str(names[i]) for i in order), tuple(ids[order].tolist())


def _extras(record: Record, mask_fault: str) -> Record:
    """What no column holds: other keys, and values that a column cannot hold."""
    extras = {key: value for key, value in record.items() if key not in CORE}
    if "id" in record and not _is_id(record["id"]):
        extras["id"] = record["id"]
    for key in ("area", "iscrowd"):
        if key in record and type(record[key]) not in (int, float):
            extras[key] = record[key]
    mask = record.get("segmentation", [])
    if mask_fault or not (isinstance(mask, list) or _is_rle(mask)):
        extras["segmentation"] = mask
    return extras


def _is_rle(mask: Any) -> bool:
    return isinstance(mask, dict) and mask.keys() == {"size", "counts"}


def _json(extras: Record) -> str:
    return json.dumps(extras, default=str) if extras else ""


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST
