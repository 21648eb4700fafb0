"""The segmentations of a whole data set in a few flat arrays, which loader workers share."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.masks import Bitmap, Polygons, Segmentation, run_lengths


@dataclass(frozen=True)
class SegmentationTable:
    """`table[i]` is the segmentation of object i; see `SegmentationTableWriter`."""

    points: np.ndarray  # (P, 2) of all polygons, float64, or int32 as `compact` makes them
    polygon_ends: np.ndarray  # (K,) where each polygon ends in `points`
    polygon_counts: np.ndarray  # (N+1,) how many polygons there are before each object
    codes: np.ndarray  # (C,) uint8, the run-length codes of all bitmaps
    code_ends: np.ndarray  # (N+1,) how much of `codes` there is before each object
    reach: np.ndarray  # (N, 2) float64, the largest |x|, |y| of each object's polygons
    sizes: np.ndarray  # (N, 2) h, w of each bitmap; 0 for polygons

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Segmentation:
        start, end = self.code_ends[index : index + 2].tolist()
        if start < end:
            return Bitmap(self.codes[start:end].tobytes(), tuple(self.sizes[index].tolist()))
        first, last = self.polygon_counts[index : index + 2].tolist()
        begin = int(self.polygon_ends[first - 1]) if first else 0
        ends = np.array(self.polygon_ends[first:last])
        stop = int(ends[-1]) if len(ends) else begin
        return Polygons(expanded(self.points[begin:stop]), ends - begin)

    def is_empty(self) -> np.ndarray:
        """(N,) bool: the objects without polygons or pixels."""
        return (np.diff(self.polygon_counts) == 0) & (np.diff(self.code_ends) == 0)

    def unpaintable(self, sizes: np.ndarray) -> np.ndarray:
        """The objects with a coordinate that is not finite, or farther away than ten times the
        size (N, 2) h, w of their picture. Painting one could take all memory.
        """
        return np.flatnonzero(~(self.reach <= 10 * sizes[:, ::-1]).all(1))  # also where it is NaN


def compact(points: np.ndarray) -> np.ndarray:
    """Float64 coordinates as int32 hundredths where that loses nothing, else as they are.

    A decimal with two places is read as the double nearest to it, and so is the quotient of two
    whole numbers: `expanded` gives back the same double.
    """
    hundredths = np.rint(points * 100)
    if (np.abs(hundredths) < 2**31).all() and (hundredths / 100 == points).all():
        return hundredths.astype(np.int32)
    return points


def expanded(points: np.ndarray) -> np.ndarray:
    """A new array of the float64 coordinates that `compact` was given."""
    return points / 100 if points.dtype == np.int32 else np.array(points)


def farthest(points: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(N, 2) the largest |x|, |y| of each object with `counts` (N,) polygons of `sizes` (K,)
    points (P, 2); NaN where one is NaN, 0 where there is none."""
    reach = np.zeros((len(counts), 2))
    if len(points):
        starts = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(counts) - counts]
        some = counts > 0
        reach[some] = np.maximum.reduceat(np.abs(points), starts[some])
    return reach


class SegmentationTableWriter:
    """Append the COCO segmentation of each object, then make the `table`."""

    def __init__(self):
        self._numbers = array("d")  # x, y, x, y, ...
        self._polygon_ends = array("q")
        self._polygon_counts = array("q", [0])
        self._codes = bytearray()
        self._code_ends = array("q", [0])
        self._sizes = array("q")

    def append(self, segmentation: Any) -> None:
        """Add one object; None or [] is an empty mask.

        Raises `ValueError` if it is malformed, and then adds an empty one. Whether coordinates
        are sane is left to `SegmentationTable.unpaintable`, for all at once, and whether a bitmap
        is as large as the picture to those who know that.
        """
        size = (0, 0)
        try:
            if isinstance(segmentation, dict):
                codes, size = _compressed(segmentation)
                self._codes += codes
            elif segmentation is not None:
                self._append_polygons(segmentation)
        finally:
            self._polygon_counts.append(len(self._polygon_ends))
            self._code_ends.append(len(self._codes))
            self._sizes.extend(size)

    def _append_polygons(self, polygons: Any) -> None:
        if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
            raise ValueError("must be a list of polygons [[x, y, x, y, ...], ...] or an RLE object")
        for polygon in polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"a polygon has {len(polygon)} numbers: needs at least 6, an even count"
                )
            try:
                self._numbers.fromlist(polygon)
            except (TypeError, OverflowError) as error:
                raise ValueError(f"a polygon holds something else than numbers: {error}") from None
            self._polygon_ends.append(len(self._numbers) // 2)

    def table(self) -> SegmentationTable:
        points, counts = np.array(self._numbers).reshape(-1, 2), np.array(self._polygon_counts)
        ends = np.array(self._polygon_ends, np.int64)
        return SegmentationTable(
            points=points,
            polygon_ends=ends,
            polygon_counts=counts,
            reach=farthest(points, np.diff(ends, prepend=0), np.diff(counts)),
            codes=np.frombuffer(bytes(self._codes), np.uint8),
            code_ends=np.array(self._code_ends),
            sizes=np.array(self._sizes).reshape(-1, 2),
        )


def _compressed(rle: dict[str, Any]) -> tuple[bytes, tuple[int, int]]:
    """COCO's compressed run lengths of a compressed or an uncompressed RLE, and its (h, w)."""
    size, counts = rle.get("size"), rle.get("counts")
    whole = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    if not whole or not all(0 < side < 2**31 for side in size):
        raise ValueError(f"RLE size is {size}: must be that of the picture, [height, width]")
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise ValueError("RLE counts must be whole numbers")
        lengths = counts
    elif isinstance(counts, str):
        lengths = run_lengths(counts.encode("utf-8")).tolist()
    else:
        raise ValueError("RLE counts must be a list of run lengths or a compressed string")
    if min(lengths, default=0) < 0:
        raise ValueError("RLE has a negative run length")
    if sum(lengths) != size[0] * size[1]:
        raise ValueError(
            f"RLE counts add up to {sum(lengths)}, but {size[0]}x{size[1]} pixels need "
            f"{size[0] * size[1]}"
        )
    if isinstance(counts, list):
        if max(lengths) >= 2**32:
            raise ValueError("RLE has a run length that needs more than 32 bits")
        return coco_mask.frPyObjects(rle, *size)["counts"], (size[0], size[1])
    return counts.encode("utf-8"), (size[0], size[1])
