"""The records of a COCO file, decoded and checked one by one, and gathered into tables."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Problems, short
from visionkit.data.coco.reader import elements
from visionkit.data.coco.segmentations import (
    SegmentationTable,
    find_fault,
    mask_box,
    pack,
    plain_mask,
)
from visionkit.data.coco.tables import (
    CORE,
    LARGEST,
    LARGEST_AREA,
    UNMAPPED,
    Gathered,
    ImageTable,
    ObjectTable,
    Record,
    packed,
    rows_of,
)
from visionkit.errors import is_blank

try:
    from visionkit.data.coco import fast_json
except ImportError:  # the extra `fast` is not installed
    fast_json = None  # type: ignore[assignment]  # optional

Columns = dict[str, np.ndarray]

IDS = ("id", "image_id", "category_id")
# Of annotations in the style of Pascal VOC and Open Images: an ignore region, as `iscrowd` is.
IGNORE_KEYS = ("ignore", "isgroupof", "IsGroupOf")
_IMAGE = {"id", "file_name", "height", "width"}
_IMAGE_COLUMNS = (*_IMAGE, "class_id", "identity", "semantic")
_HARMLESS = re.compile(r"(?:[\w-]+[./ ])*[\w-]+")  # most names; `_file_name` takes them as they are


class RecordReader:
    """Reads the records of the list `name` in chunks; faults of single records are added to
    `problems`."""

    def __init__(self, name: str, problems: Problems):
        self.name, self.problems = name, problems
        self.count = 0
        self.keys: set[str] = set()  # those in `extras` of some record
        self.non_object = ""  # the first element that is not an object, with its place
        self._texts: dict[str, list[tuple[int, Record]]] = {}  # by key: records whose id is text
        self._columns = Gathered()

    def __call__(self, text: bytes) -> int | None:
        """Read the text of some records; see `reader.read_list`."""
        records, end = elements(text)
        self.add(records)
        return end

    def add(self, records: Sequence[Any]) -> None:
        """Read some records."""
        self.check_types(records)
        if not self.non_object and records:
            self._columns.add(self._read(records))
            self.count += len(records)

    def check_types(self, records: Sequence[Any]) -> None:
        """Note the first record that is not an object."""
        others = (i for i, record in enumerate(records) if type(record) is not dict)
        if not self.non_object and (other := next(others, None)) is not None:
            self.non_object = f"{self.name}[{self.count + other}] is {short(records[other])}"

    def _read(self, records: Sequence[Record]) -> Columns:
        raise NotImplementedError

    def integers(
        self,
        records: Sequence[Record],
        key: str,
        *,
        required: bool = True,
        low: int = -LARGEST,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One column as int64, and where it is valid; -1 where it is absent or bad."""

        def read(record: Record) -> int | None:
            value: Any = record.get(key)
            if value is None and not required:
                return None
            is_integer = isinstance(value, Integral) and not isinstance(value, bool)
            is_integer |= isinstance(value, float) and value.is_integer()
            if is_integer and low <= value <= LARGEST:
                return int(value)
            bound = f" of at least {low}" if low > -LARGEST else ""
            if is_integer and abs(value) > LARGEST:
                bound = f" from {low} to {LARGEST}"
            hint = " (without quotes)" if isinstance(value, str) else ""  # of other keys than ids
            raise ValueError(f"must be an integer{bound}{hint}")

        found = _plain([record.get(key) for record in records], int)
        if found is not None and low <= found.min() and found.max() <= LARGEST:
            return found, np.ones(len(records), bool)
        values = self.each(records, key, read, None)
        numbers = np.array([-1 if value is None else value for value in values], np.int64)
        return numbers, np.array([value is not None for value in values], bool)

    def file_names(self, records: Sequence[Record], key: str, *, required: bool) -> list[str]:
        """One column of paths below a folder, see `files.resolve`; "" where it is absent or bad, or
        where an image has a `coco_url` instead, as in LVIS."""
        values: list[Any] = [record.get(key) for record in records]
        if set(map(type, values)) == {str} and all(map(_HARMLESS.fullmatch, values)):
            return values

        def read(record: Record) -> str:
            is_optional = not required or isinstance(record.get("coco_url"), str)
            return _file_name(record.get(key), required=not is_optional)

        return self.each(records, key, read, "")

    def each(
        self, records: Sequence[Record], key: str, read: Callable[[Record], Any], bad: Any
    ) -> list[Any]:
        """`read` of each record, for the column `key`. A ValueError, with hint and kind, is a
        problem and gives `bad`."""
        found = []
        for i, record in enumerate(records):
            try:
                found.append(read(record))
            except ValueError as error:
                found.append(bad)
                if key in IDS and isinstance(record.get(key), str):
                    self._texts.setdefault(key, []).append((self.count + i, record))
                    continue
                shown = f"is {short(record[key])}" if key in record else "is missing"
                what = f"'{key}' {shown}"
                self.problems.add_value(self.name, self.count + i, record, key, what, *error.args)
        return found

    def report_texts(self) -> None:
        """Add one error for all ids of a key that are text."""
        for key, found in self._texts.items():
            (first, record), more = found[0], len(found) - 1
            others = f", and text in {more} more of the {self.name}" if more else ""
            what = f"'{key}' is {short(record[key])}{others}"
            hint = "must be an integer (without quotes)"
            self.problems.add_value(self.name, first, record, key, what, hint)


class ImageReader(RecordReader):
    """Reads image records."""

    def __init__(self, problems: Problems):
        super().__init__("images", problems)

    def table(self) -> ImageTable:
        """All records."""
        self.report_texts()
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
        ids, valid = self.integers(records, "id")
        heights, _ = self.integers(records, "height", low=1)
        widths, _ = self.integers(records, "width", low=1)
        # Lists of classes, of multi-label images, are among the extras.
        single = [{} if type(one.get("class_id")) is list else one for one in records]
        extras = [
            {
                key: value
                for key, value in record.items()
                if key not in _IMAGE_COLUMNS
                or value is None
                or type(value) is bool
                or (key == "class_id" and type(value) is list)
            }
            if record.keys() != _IMAGE
            else {}
            for record in records
        ]
        self.keys.update(key for extra in extras for key in extra)
        names = self.file_names(records, "file_name", required=True)
        semantic = self.file_names(records, "semantic", required=False)
        return {
            "ids": np.where(valid, ids, UNMAPPED),
            "sizes": np.stack([heights, widths], 1),
            "class_ids": self.integers(single, "class_id", required=False, low=0)[0],
            "identities": self.integers(records, "identity", required=False, low=0)[0],
            **packed("names", names),
            **packed("semantic", semantic),
            **packed("extras", list(map(_json, extras))),
        }


class AnnotationReader(RecordReader):
    """Reads annotations, by msgspec where it is installed and they are plain.

    What depends on other records is checked later, by `index`.
    """

    def __init__(self, problems: Problems):
        super().__init__("annotations", problems)
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
        self.report_texts()
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
        segmentations, faults = self._segmentations([r.get("segmentation") for r in records])
        extras = list(map(_extras, records, faults))
        self.keys.update(key for extra in extras for key in extra)
        image_ids, has_image = self.integers(records, "image_id")
        category, known = self.integers(records, "category_id")
        ids = [record.get("id") for record in records]
        return {
            "id": np.array([id_ if _is_id(id_) else UNMAPPED for id_ in ids], np.int64),
            "image_id": np.where(has_image, image_ids, UNMAPPED),
            "category": np.where(known, category, UNMAPPED),
            "bbox": self._boxes(records),
            "area": self._areas(records),
            "iscrowd": self._crowds(records),
            "segmented": np.array([
                "segmentation" in r and "segmentation" not in e
                for r, e in zip(records, extras, strict=True)
            ], bool),
            **segmentations,
            **packed("extras", list(map(_json, extras))),
        }  # fmt: skip

    def _boxes(self, records: Sequence[Record]) -> np.ndarray:
        """The column 'bbox' (N, 4) float64; zeros where it is bad."""
        values: list[Any] = [record.get("bbox") for record in records]
        if set(map(type, values)) == {list} and set(map(len, values)) == {4}:
            found = _plain(list(chain.from_iterable(values)), float)
            if found is not None:
                return found.reshape(-1, 4)
        return np.array(self.each(records, "bbox", _box, (0, 0, 0, 0)), np.float64)

    def _areas(self, records: Sequence[Record]) -> np.ndarray:
        """The column 'area' float64; NaN where it is absent or bad."""
        found = _plain([record.get("area") for record in records], float)
        if found is None or not (np.abs(found) < LARGEST_AREA).all():
            found = np.array(self.each(records, "area", _area, np.nan), np.float64)
        return found

    def _crowds(self, records: Sequence[Record]) -> np.ndarray:
        """The column 'iscrowd' int8, also 1 where one of `IGNORE_KEYS` is; -1 where it is absent or
        bad."""
        column = np.full(len(records), -1, np.int8)
        for key in ("iscrowd", *IGNORE_KEYS):
            if any(key in record for record in records):
                found = _plain([record.get(key) for record in records], int)
                if found is None or not ((found == 0) | (found == 1)).all():
                    found = np.array(self.each(records, key, partial(_crowd, key=key), -1))
                is_own = key == "iscrowd"
                column = np.where((found == 1) | is_own, found, column).astype(np.int8)
        return column

    def _segmentations(self, found: list[Any]) -> tuple[Columns, list[str]]:
        """Their columns and faults; one with a fault counts as absent."""
        found = list(map(plain_mask, found))
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
    """Names and ids in the order of the ids; UNMAPPED for a bad id."""
    reader = RecordReader("categories", problems)
    ids, valid = reader.integers(records, "id")
    reader.report_texts()
    report_repeats("categories", records.__getitem__, "id", ids.tolist(), valid, problems)
    ids = np.where(valid, ids, UNMAPPED)
    names = reader.each(records, "name", _name, "")
    report_repeats("categories", records.__getitem__, "name", names, map(bool, names), problems)
    order = np.argsort(ids, kind="stable")
    return tuple(names[i] for i in order), tuple(ids[order].tolist())


def _extras(record: Record, mask_fault: str) -> Record:
    """What no column holds: other keys, and values that a column cannot hold."""
    extras = {key: value for key, value in record.items() if key not in CORE}
    if "id" in record and not _is_id(record["id"]):
        extras["id"] = record["id"]
    for key in ("area", "iscrowd"):
        if key in record and type(record[key]) not in (int, float):
            extras[key] = record[key]
    mask = record.get("segmentation", [])
    is_usual = mask == [] or (
        (isinstance(mask, list) or _is_rle(mask)) and plain_mask(mask) == mask
    )
    if mask_fault or not is_usual:
        extras["segmentation"] = mask
    if not record.get("bbox"):
        extras["bbox"] = record.get("bbox")
    return extras


def _is_rle(mask: Any) -> bool:
    return isinstance(mask, dict) and mask.keys() == {"size", "counts"}


def _json(extras: Record) -> str:
    return json.dumps(extras, default=str) if extras else ""


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST


def report_repeats(
    kind: str,
    record: Callable[[int], Record],
    key: str,
    values: list[Any],
    valid: Iterable[bool],
    problems: Problems,
) -> None:
    """Values of a key must be unique."""
    first: dict[Any, int] = {}
    for i, (value, counts) in enumerate(zip(values, valid, strict=True)):
        if counts and first.setdefault(value, i) != i:
            what = f"'{key}' {value!r} is also that of {kind}[{first[value]}]"
            problems.add_value(kind, i, record(i), key, what, "must be unique", "repeated")


def _plain(values: list[Any], kind: type) -> np.ndarray | None:
    """The values as an array if all are plain numbers of that kind; integers are floats too."""
    kinds = {int} if kind is int else {int, float}
    if not values or not kinds.issuperset(map(type, values)):
        return None
    try:
        return np.array(values, np.int64 if kind is int else np.float64)
    except OverflowError:
        return None


def _box(record: Record) -> Sequence[float]:
    """The box of an annotation; without one, that of its mask."""
    value: Any = record.get("bbox")
    if not value and (mask := plain_mask(record.get("segmentation"))):
        return mask_box(mask)
    try:
        if isinstance(value, list | tuple) and len(value) == 4 and bool not in map(type, value):
            return array("d", value)
    except (TypeError, OverflowError):
        pass
    raise ValueError("must be four numbers [x, y, width, height]")


def _area(record: Record) -> float:
    value: Any = record.get("area")
    if value is None:
        return np.nan
    if type(value) not in (int, float) or not abs(value) < LARGEST_AREA:
        raise ValueError("must be a number of at least 0, or absent")
    return value


def _crowd(record: Record, key: str) -> int:
    """The texts "0" and "1", true and false count."""
    value: Any = record.get(key)
    if value is None:
        return -1
    if value not in (0, 1, "0", "1"):
        raise ValueError("must be 0 or 1, or absent")
    return int(value)


def _name(record: Record) -> str:
    value: Any = record.get("name")
    if not isinstance(value, str) or is_blank(value):
        raise ValueError("must be a string that is not blank")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain half of a character (a surrogate)") from None
    return value


def _file_name(name: Any, *, required: bool) -> str:
    """A name that cannot leave its folder by `..` or as a URL; "" for one that is absent."""
    if not name and not required:
        return ""
    if not isinstance(name, str) or not name:
        raise ValueError("must be a file name")
    for fault, found in (
        ("must not contain a zero byte", "\0" in name),
        ("must be relative to the image folder", re.match(r"~[^/]*/|\w\w+://", name)),
        ("must not leave the image folder", ".." in re.split(r"[/\\]", name)),
    ):
        if found:
            raise ValueError(fault, "path")
    return name
