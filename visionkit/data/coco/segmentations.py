"""The segmentations of a whole dataset in a few flat arrays, which loader workers share."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import short
from visionkit.data.masks import Bitmap, Polygons, Segmentation

LARGEST = int(sys.float_info.max)
LONGEST = 2**22  # pixels around a polygon: pycocotools takes some 50 bytes for each
CHUNK = 2048  # masks decoded at once: their numbers stay in the cache
MORE = bytes(range(80, 256))  # the characters that another one of the same number follows
SIGNED = bytes(((code - 48 & 31 ^ 16) - 16) % 256 for code in range(256))  # the others, as int8


@dataclass(frozen=True)
class SegmentationTable:
    """`table[i]` is the segmentation of object i; see `pack`."""

    points: np.ndarray  # (P, 2) float64 x, y of all polygons
    polygon_ends: np.ndarray  # (K+1,) how many points there are before each polygon
    first: np.ndarray  # (N,) the first polygon of each object
    polygons: np.ndarray  # (N,) int32, how many it has
    counts: np.ndarray  # (C,) uint8, compressed run lengths of all bitmaps
    count_ends: np.ndarray  # (N+1,) how much of `counts` there is before each object
    sizes: np.ndarray  # (N, 2) int32 h, w of each bitmap; 0 for the others

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Segmentation:
        height, width = self.sizes[index].tolist()
        if height:
            start, end = self.count_ends[index : index + 2].tolist()
            return Bitmap(self.counts[start:end].tobytes(), (height, width))
        ends = self._ends(index)
        return Polygons(self.points[ends[0] : ends[-1]], ends[1:] - ends[0])

    def coco(self, rows: np.ndarray) -> list[Any]:
        """Those of some objects as COCO writes them: polygons, a compressed RLE, or None."""
        polygons, _ = self._polygons(rows)
        starts, ends = 2 * self.polygon_ends[polygons], 2 * self.polygon_ends[polygons + 1]
        numbers = self.points.reshape(-1)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        parts = iter([numbers[start:end].tolist() for start, end in spans])
        counts = self.polygons[rows].tolist()
        found: list[Any] = [list(islice(parts, count)) or None for count in counts]
        for i in np.flatnonzero(self.sizes[rows, 0]).tolist():
            bitmap = self[rows[i]]
            assert isinstance(bitmap, Bitmap)
            found[i] = {"size": list(bitmap.size), "counts": bitmap.counts.decode()}
        return found

    def area(self, index: int, size: Sequence[int]) -> float:
        """The pixels that a segmentation covers in an image of `size` (h, w)."""
        return mask_area(self.coco(np.array([index]))[0], size)

    def is_empty(self) -> np.ndarray:
        """(N,) bool: the objects without polygons or pixels."""
        return (self.polygons == 0) & (self.sizes[:, 0] == 0)

    def may_be_empty(self, sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(M,) bool: which of the objects in these rows, in images of `sizes` (M, 2), may cover no
        pixel. Their `area` shows whether they do; small and thin polygons are among them."""
        found, bitmap = self.polygons[rows] > 0, np.flatnonzero(self.sizes[rows, 0])
        codes = [self[row].counts for row in rows[bitmap].tolist()]  # type: ignore[union-attr]  # bitmaps
        found[bitmap] = rle_totals(codes)[1] == 0
        polygons, owner = self._polygons(rows)
        if not len(polygons):
            return found
        starts, (x, y) = self.polygon_ends[:-1], self.points.T
        after = np.arange(1, len(x) + 1)
        after[self.polygon_ends[1:] - 1] = starts
        area = np.abs(np.add.reduceat(x * y[after] - x[after] * y, starts))[polygons] / 2
        low, high = (f.reduceat(self.points, starts)[polygons] for f in (np.minimum, np.maximum))
        inside = (high > 0).all(1) & (low < sizes[owner, ::-1]).all(1)
        found[owner[inside & (area > 2 + (high - low).max(1))]] = False
        return found

    def _polygons(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The polygons of some objects, and for each the place of its object in `rows`."""
        first, counts = self.first[rows], self.polygons[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        return (first - (counts.cumsum() - counts))[owner] + np.arange(len(owner)), owner

    def without(self, rows: np.ndarray) -> SegmentationTable:
        """The same with nothing in those rows."""
        kept = np.ones(len(self), np.int32)
        kept[rows] = 0
        return replace(self, polygons=self.polygons * kept, sizes=self.sizes * kept[:, None])

    def outline(self, index: int) -> float:
        """The length in pixels of the longest polygon of an object, as pycocotools draws it."""
        parts = (self.points[a:b] for a, b in pairwise(self._ends(index).tolist()))
        return max(float(np.abs(p - np.roll(p, 1, 0)).max(1).sum()) for p in parts)

    def _ends(self, index: int) -> np.ndarray:
        first, count = int(self.first[index]), int(self.polygons[index])
        return self.polygon_ends[first : first + count + 1]


def to_rle(mask: list[list[float]] | dict[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """A sound segmentation in an image of `size` (h, w) as a compressed RLE."""
    return mask if isinstance(mask, dict) else coco_mask.merge(coco_mask.frPyObjects(mask, *size))


def mask_area(mask: list[list[float]] | dict[str, Any] | None, size: Sequence[int]) -> float:
    """The pixels that a sound segmentation covers in an image of `size` (h, w)."""
    return float(coco_mask.area(to_rle(mask, size))) if mask else 0.0


def mask_box(mask: Any) -> list[float]:
    """The box x, y, w, h of a segmentation; zeros if it is malformed, which has its own error."""
    try:
        fault = find_fault(mask)
    except (TypeError, ValueError, OverflowError):
        fault = "malformed"
    if fault:
        return [0.0] * 4
    if isinstance(mask, dict):
        return coco_mask.toBbox({"size": mask["size"], "counts": _compressed(mask)}).tolist()
    points = np.concatenate([np.array(part, np.float64).reshape(-1, 2) for part in mask])
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()] if np.isfinite(points).all() else [0.0] * 4


def plain_mask(mask: Any) -> Any:
    """The segmentation with None for one that is empty in some way, such as "" or [[]], and without
    its empty polygons."""
    if isinstance(mask, list) and [] in mask:
        mask = [part for part in mask if part != []]
    return None if mask in ("", [], {}) else mask


def pack(segmentations: Sequence[Any], *, typed: bool = False) -> dict[str, np.ndarray]:
    """Columns for N objects: polygons, an RLE, or None, [] or {} for nothing.

    They are those of `SegmentationTable`, with lengths instead of ends, and `reach` (N,), the
    largest |x| or |y|, and `outline` (N,), a bound of `SegmentationTable.outline`. Raises
    ValueError, TypeError or OverflowError if `find_fault` finds anything. `typed` says that all
    numbers of polygons are float.
    """
    if not {list, dict, type(None)}.issuperset(map(type, segmentations)):
        raise TypeError
    outlines = [found if type(found) is list else () for found in segmentations]
    polygons = list(chain.from_iterable(outlines))
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    if (lengths < 6).any() or (lengths % 2).any():
        raise ValueError
    if not typed and not {int, float}.issuperset(map(type, chain.from_iterable(polygons))):
        raise TypeError
    numbers = chain.from_iterable(polygons)
    points = np.fromiter(numbers, np.float64, int(lengths.sum())).reshape(-1, 2)
    counts = np.fromiter(map(len, outlines), np.int32, len(outlines))
    bitmaps, sizes = [b""] * len(outlines), np.zeros((len(outlines), 2), np.int32)
    coded = [(i, rle) for i, rle in enumerate(segmentations) if type(rle) is dict and rle]
    _check_codes([rle for _, rle in coded])
    for i, rle in coded:
        sizes[i], bitmaps[i] = rle["size"], _compressed(rle)
    return {
        "points": points,
        "polygon_lengths": (lengths // 2).astype(np.int32),
        "polygons": counts,
        "counts": np.frombuffer(b"".join(bitmaps), np.uint8),
        "count_lengths": np.fromiter(map(len, bitmaps), np.int32, len(bitmaps)),
        "sizes": sizes,
        **_extents(points, lengths // 2, counts),
    }


def find_fault(segmentation: Any) -> str:
    """What is wrong with a segmentation by itself; "" if nothing is."""
    if segmentation is None or segmentation == {}:
        return ""
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation)
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        return "must be a list of polygons [[x, y, x, y, ...], ...] or an RLE object"
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon has {len(polygon)} numbers: needs at least 6, an even count"
        for value in polygon:
            if type(value) not in (int, float) or (type(value) is int and abs(value) > LARGEST):
                return f"a polygon has {short(value)} where a number must be"
    return ""


def _extents(points: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """How far the polygons of each object reach, see `pack`; those of polygons first."""
    reach, outline = np.zeros(len(counts)), np.zeros(len(counts), np.float32)
    if len(points):
        starts = lengths.cumsum() - lengths
        low, high = (
            np.stack([f.reduceat(points[:, axis], starts) for axis in (0, 1)], 1)
            for f in (np.minimum, np.maximum)
        )
        known = np.flatnonzero(counts)
        first = (counts.cumsum() - counts)[known]
        with np.errstate(invalid="ignore", over="ignore"):  # of NaN and infinity
            around = (high - low).max(1) * lengths
        far = np.maximum(np.abs(low), np.abs(high)).max(1)
        reach[known] = np.maximum.reduceat(far, first)
        outline[known] = np.maximum.reduceat(around, first)
    return {"reach": reach, "outline": outline}


def _check_codes(rles: Sequence[dict[str, Any]]) -> None:
    """ValueError if `_rle_fault` finds anything."""
    codes = [rle["counts"] for rle in rles if isinstance(rle.get("counts"), str | bytes)]
    if len(codes) == len(rles) and all(map(_has_size, rles)):
        pixels = [rle["size"][0] * rle["size"][1] for rle in rles]
        wrong = pixels != rle_totals(codes)[0].tolist()
    else:
        wrong = any(map(_rle_fault, rles))
    if wrong:
        raise ValueError


def _has_size(rle: dict[str, Any]) -> bool:
    size: Any = rle.get("size")
    is_pair = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    return is_pair and all(0 < side < 2**31 for side in size)


def _rle_fault(rle: dict[str, Any]) -> str:
    size: Any = rle.get("size")
    counts: Any = rle.get("counts")
    if not _has_size(rle):
        return f"RLE size is {short(size)}: must be that of the image, [height, width]"
    if isinstance(counts, str | bytes):
        covered = int(rle_totals([counts])[0][0])
        if covered < 0:
            return "RLE counts are damaged: not a compressed run-length code"
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        covered = sum(counts)
        if min(counts, default=0) < 0 or max(counts, default=0) >= 2**32:
            return "RLE counts must be from 0 to 2^32"
    else:
        return "RLE counts must be a list of integers, the run lengths, or a compressed string"
    height, width = size
    if covered != height * width:
        return f"RLE counts add up to {covered}, but {height}x{width} pixels need {height * width}"
    return ""


def _compressed(rle: dict[str, Any]) -> bytes:
    """The compressed run lengths of a sound RLE."""
    counts = rle["counts"]
    if isinstance(counts, list):
        return coco_mask.frPyObjects(rle, *rle["size"])["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def rle_totals(codes: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each of N compressed run-length codes covers, and how many are set.

    Two (N,) int64; -1 in the first where a code is malformed or has a negative run length.
    TypeError if one is neither a str nor bytes.
    """
    parts = [_totals(codes[i : i + CHUNK]) for i in range(0, len(codes), CHUNK)]
    covered, filled = zip(*parts, strict=True) if parts else ((), ())
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *covered]), np.concatenate([none, *filled])


def _totals(codes: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """`rle_totals` of a few, without a loop over them.

    From its fourth number on a code stores differences to the number two places before. So sums
    over every second number of all codes together hold the run lengths, up to what the sums were
    before each code.
    """
    text = _joined(codes)
    chars = np.frombuffer(text, np.uint8)
    lengths = np.fromiter(map(len, codes), np.int64, len(codes))
    char_ends = (lengths + 1).cumsum() - 1
    followed = np.flatnonzero(chars >= 80)
    strange = np.flatnonzero(chars - np.uint8(48) > 63)
    numbers, too_long = _numbers(text, chars, followed)
    stops = char_ends - np.searchsorted(followed, char_ends)
    starts = np.concatenate([[0], stops[:-1] + 1])
    covered, filled, sound = _sums_of_every_second(numbers, starts, stops)
    sound &= (lengths > 0) & (chars[char_ends - 1] < 80)  # the last number has an end
    sound[np.searchsorted(char_ends, np.concatenate([strange, too_long]))] = False
    return np.where(sound, covered, -1), filled


def _joined(codes: Sequence[str | bytes]) -> bytes:
    """A byte for each character, ~ for those outside of ASCII; each code is followed by a zero,
    so that one that was cut short does not run into the next."""
    try:
        text = "0".join(codes)  # type: ignore[arg-type]  # tried first: mostly all are str
    except TypeError:  # some are bytes
        if set(map(type, codes)) - {str, bytes}:
            raise
        text = "0".join(c if isinstance(c, str) else c.decode("latin-1") for c in codes)
    return (text if text.isascii() else re.sub("[^\0-~]", "~", text)).encode() + b"0"


def _numbers(text: bytes, chars: np.ndarray, followed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The signed numbers that the characters (five bits each, low ones first) stand for, from
    place 2 on between zeros, and the characters where those of more than 35 bits begin.
    `followed` are the characters that another one follows."""
    last = np.frombuffer(text.translate(SIGNED, MORE), np.int8)  # mostly the only one
    owner = followed - np.arange(len(followed))
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    count = np.diff(first, append=len(followed))
    owner, place = owner[first], followed[first]
    too_long = place[count > 6]
    count = np.minimum(count, 6)
    longer = last[owner].astype(np.int64) << 5 * count
    for i in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > i)
        longer[rows] += (chars[place[rows] + i] & 31 ^ 16).astype(np.int64) << 5 * i
    numbers = np.zeros(2 * (len(last) // 2) + 6, np.int64)
    numbers[2 : 2 + len(last)] = last
    numbers[2 + owner] = longer
    return numbers, too_long


def _sums_of_every_second(
    numbers: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each code: the sum of all run lengths, the sum of every second, and whether all of them
    are from 0 to 2^32. Code i has the numbers from `starts[i]` to `stops[i]`, see `_numbers`."""
    total = np.where(stops > starts, numbers[2 + starts], 0)
    filled, sound = np.zeros_like(total), total >= 0
    for parity in (0, 1):  # the numbers at even and at odd places among all codes
        sums = numbers[parity::2].cumsum()
        place = 1 + (starts + 1 + parity) % 2  # in the code: from 1 the runs of ones, from 2 zeros
        begin = (starts + 2 + place) // 2
        count = np.maximum(stops - starts - place + 1, 0) // 2
        edges = np.stack([begin, begin + count], 1).ravel()
        base = sums[begin - 1]
        found = np.where(count, np.add.reduceat(sums, edges)[::2] - base * count, 0)
        total += found
        filled += np.where(place == 1, found, 0)
        sound &= (count == 0) | (np.minimum.reduceat(sums, edges)[::2] >= base)
        sound &= (count == 0) | (np.maximum.reduceat(sums, edges)[::2] <= base + 2**32)
    return total, filled, sound
