"""The text of some annotations of a COCO file, read into columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.columns import (
    CORE,
    LARGEST,
    LARGEST_AREA,
    UNMAPPED,
    NonObject,
    Record,
    areas,
    boxes,
    crowds,
    first_non_object,
    whole_numbers,
)
from visionkit.data.coco.decimals import read_numbers
from visionkit.data.coco.json_lists import elements
from visionkit.data.coco.tables import (
    COMPRESSED,
    OTHER,
    POLYGONS,
    UNCOMPRESSED,
    SegmentationTableWriter,
    packed,
)

# --- JSON records that differ in their numbers only, as most annotations do once polygons are
# cut.

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


# --- The polygons in the text of COCO annotations, cut out and checked: most of a large file.

MARK = b'"segmentation@": null'  # stands where polygons were cut out
KEY = "segmentation@"
WIDEST = 15  # digits before a point; a double holds whole numbers of so many exactly

_POLYGONS = re.compile(
    rb'("segmentation"[ \t\n\r]*:[ \t\n\r]*)'
    rb"(\[[ \t\n\r]*\[[^\]]*\](?:[ \t\n\r]*,[ \t\n\r]*\[[^\]]*\])*[ \t\n\r]*\])"
)
_ESCAPED = re.compile(rb"\\u00[0-7]")  # a letter of ASCII, which nobody has to escape

# What may follow which character, 0 for any digit; `]` and `[` of two records stand together.
_FOLLOWING = {"0": "0.,]", ".": "0", "-": "0", ",": " 0-[", " ": "0-[", "[": "0-[", "]": "],["}
_ORDER = "".join(_FOLLOWING)
_KIND = bytes(
    _ORDER.index("0" if c in b"0123456789" else chr(c)) if c in b"0123456789.-, []" else 15
    for c in range(256)
)
_PAIRS = {16 * _ORDER.index(a) + _ORDER.index(b): a + b for a in _ORDER for b in _FOLLOWING[a]}
# Points, numbers and polygons are counted by these; `!` stands for what is in no plain polygons.
_TOLD = {"0.": ".", "0,": ",", "[0": "[", "[-": "[", "0]": "]"}
_MARK = bytes(ord(_TOLD.get(_PAIRS.get(pair, ""), "!")) for pair in range(256))
_UNTOLD = bytes(pair for pair, text in _PAIRS.items() if text not in _TOLD)


class Cut(NamedTuple):
    """The text of some records without their polygons, and those of each that had any."""

    text: bytes
    codes: bytes  # the polygons of all of them, as JSON
    starts: np.ndarray  # (N,) where those of each record that has `KEY` now were in the text
    sizes: np.ndarray  # (N,) how many bytes of it they were
    reach: np.ndarray  # (N,) float64, all |x|, |y| are below

    def outlines(self) -> Iterator[tuple[bytes, float]]:
        """The text of the polygons of each record, and their reach."""
        spans = pairwise([0, *self.sizes.cumsum().tolist()])
        for (start, end), reach in zip(spans, self.reach.tolist(), strict=True):
            yield self.codes[start:end], reach


def cut_polygons(text: bytes) -> Cut | None:
    """Take the polygons out of the text of JSON records; None where that is not safe.

    What was cut was `"segmentation": [[x, y, ...], ...]` with plain decimal numbers, at least six
    and an even count in each polygon. It may have been anywhere in a record. So the text counts
    only if each of the N records has `KEY`, and none of them "segmentation" as well: then
    nothing was cut from an inner object, or where the key was there twice.
    """
    parts = _POLYGONS.split(text)
    rest, codes = MARK.join(parts[::3]), b"".join(parts[2::3])
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    starts, sizes = (lengths.cumsum() - lengths)[2::3], lengths[2::3]
    if rest.count(KEY.encode()) != len(sizes) or (b"\\" in rest and _ESCAPED.search(rest)):
        return None  # that key is in the file, or could be
    if not codes:
        return Cut(rest, codes, starts, sizes, np.empty(0))
    reach = _reach(codes, sizes.cumsum()) if _is_plain(codes) else None
    return None if reach is None else Cut(rest, codes, starts, sizes, reach)


def _is_plain(codes: bytes) -> bool:
    """Whether polygons, which match `_POLYGONS`, hold plain numbers, an even count of at least six
    each, one space or none behind each comma.

    Zeros before other digits are left to `_reach`.
    """
    chars = np.frombuffer(codes, np.uint8)
    kinds = np.frombuffer(codes.translate(_KIND), np.uint8)
    pairs = kinds[:-1] * np.uint8(16) | kinds[1:]
    marks = pairs.tobytes().translate(_MARK, _UNTOLD)
    if b"!" in marks or np.count_nonzero(chars == 91) != np.count_nonzero(chars == 93):
        return False  # with as many `[` as `]`, none is among the numbers
    points = np.frombuffer(marks, np.uint8) == 46
    if (points[:-1] & points[1:]).any():
        return False  # a number has two
    frame = np.frombuffer(marks.translate(None, b"."), np.uint8)
    brackets = np.flatnonzero(frame != 44)  # where a polygon begins, where it ends, and so on
    counts = np.diff(brackets)[::2]
    return bool(((counts >= 6) & (counts % 2 == 0)).all())


def _reach(codes: bytes, ends: np.ndarray) -> np.ndarray | None:
    """(N,) a power of ten that no coordinate reaches, for polygons that end at `ends` (N,) in the
    text; at least 1000, which is less than ten times the size of most images. None where a
    number has a zero before other digits or too many digits."""
    chars = np.frombuffer(codes, np.uint8)
    digit = (chars - np.uint8(48)) <= 9  # lower characters wrap around
    before = (chars - np.uint8(46)) > 11  # neither digit nor point: a number may follow
    first = before[:-2] & digit[1:-1]
    first &= digit[2:]  # and the second
    if (first & (chars[1:-1] == 48)).any():
        return None
    reach, digits = np.full(len(ends), 1000.0), 4
    at = np.flatnonzero(first[:-2] & digit[3:-1] & digit[4:])
    while len(at):
        if digits > WIDEST:
            return None
        reach[np.searchsorted(ends, at, "right")] = 10.0**digits
        digits += 1
        at = at[digit[at + digits]]
    return reach


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
    stranger: NonObject | None = None  # the first element that is no JSON object


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
    stranger = first_non_object(records, first)
    if not records or stranger is not None:
        return Piece(None, end=end, stranger=stranger)
    marked = cut is not None
    extras = [_extras(record, marked) for record in records]
    texts = [json.dumps(extra) if extra else "" for extra in extras]
    columns = {
        "id": np.array([r["id"] if _is_id(r.get("id")) else UNMAPPED for r in records], np.int64),
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
    return np.where(valid, ids, UNMAPPED)


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
        "id": np.full(count, UNMAPPED) if whole["id"] is None else whole["id"],
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
