"""The segmentations of a whole data set in a few flat arrays, which loader workers share."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.masks import Bitmap, Polygons, Segmentation, run_lengths


@dataclass(frozen=True)
class SegmentationTable:
    """`table[i]` is the segmentation of object i; see `SegmentationTableWriter`."""

    codes: np.ndarray  # (C,) uint8, run-length codes of all bitmaps, JSON of all polygons
    code_ends: np.ndarray  # (N+1,) how much of `codes` there is before each object
    reach: np.ndarray  # (N,) float64, no |x|, |y| of its polygons is larger; 0 for none
    sizes: np.ndarray  # (N, 2) int32 h, w of each bitmap; 0 for polygons

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Segmentation:
        height, width = self.sizes[index].tolist()
        if height:
            return Bitmap(self._code(index), (height, width))
        polygons = self.polygons(index)
        points = np.array(list(chain.from_iterable(polygons)), np.float64).reshape(-1, 2)
        return Polygons(points, np.array([len(polygon) // 2 for polygon in polygons], int).cumsum())

    def polygons(self, index: int) -> list[list[float]]:
        """The polygons of an object that is no bitmap, as the file has them."""
        return json.loads(self._code(index) or b"[]")

    def is_empty(self) -> np.ndarray:
        """(N,) bool: the objects without polygons or pixels."""
        return np.diff(self.code_ends) == 0

    def without(self, rows: np.ndarray) -> SegmentationTable:
        """The same with nothing in those rows."""
        lengths, kept = np.diff(self.code_ends), np.ones(len(self), bool)
        kept[rows] = False
        return SegmentationTable(
            codes=self.codes[np.repeat(kept, lengths)],
            code_ends=np.concatenate([[0], np.cumsum(lengths * kept)]),
            reach=self.reach * kept,
            sizes=self.sizes * kept[:, None],
        )

    def unpaintable(self, sizes: np.ndarray) -> np.ndarray:
        """The objects with a coordinate that is not finite, or farther away than ten times the
        size (N, 2) h, w of their picture. Painting one could take all memory. Those in a picture
        of unknown size, below 0, are passed over.
        """
        nearest = 10 * np.minimum(*sizes.T)
        rows = np.flatnonzero(~(self.reach <= nearest) & (nearest > 0))  # also where it is NaN
        far = [not (np.abs(self[row].points) <= 10 * sizes[row, ::-1]).all() for row in rows]
        return rows[np.array(far, bool)]

    def _code(self, index: int) -> bytes:
        start, end = self.code_ends[index : index + 2].tolist()
        return self.codes[start:end].tobytes()


class SegmentationTableWriter:
    """Append the COCO segmentation of each object, then make the `table`."""

    def __init__(self):
        self._codes = bytearray()
        self._code_ends = array("q", [0])
        self._reach = array("d")
        self._sizes = array("i")

    def append(self, segmentation: Any) -> None:
        """Add one object; None or [] is an empty mask.

        Raises `ValueError` if it is malformed, and then adds an empty one. Whether coordinates
        are sane is left to `SegmentationTable.unpaintable`, for all at once, and whether a bitmap
        is as large as the picture to those who know that.
        """
        code, size, reach = b"", (0, 0), 0.0
        try:
            if isinstance(segmentation, dict):
                code, size = _compressed(segmentation)
            elif segmentation is not None:
                reach = _farthest(segmentation)
                code = json.dumps(segmentation).encode() if segmentation else b""
        finally:
            self.append_code(code, reach, size)

    def append_code(self, code: bytes, reach: float, size: tuple[int, int] = (0, 0)) -> None:
        """Add one object as the `table` has it."""
        self._codes += code
        self._code_ends.append(len(self._codes))
        self._reach.append(reach)
        self._sizes.extend(size)

    def table(self) -> SegmentationTable:
        return SegmentationTable(
            codes=np.frombuffer(bytes(self._codes), np.uint8),
            code_ends=np.array(self._code_ends),
            reach=np.array(self._reach),
            sizes=np.array(self._sizes).reshape(-1, 2),
        )


def _farthest(polygons: Any) -> float:
    """The largest |x|, |y|; NaN where one is NaN, 0 where there is none."""
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        raise ValueError("must be a list of polygons [[x, y, x, y, ...], ...] or an RLE object")
    numbers = array("d")
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon has {len(polygon)} numbers: needs at least 6, an even count"
            )
        try:
            numbers.fromlist(polygon)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"a polygon holds something else than numbers: {error}") from None
    return float(np.abs(numbers).max(initial=0))


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
