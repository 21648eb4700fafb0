"""The segmentations of a whole data set in a few flat arrays, which forked workers share."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.masks import Bitmap, Polygons, Segmentation, run_lengths


@dataclass(frozen=True)
class SegmentationTable:
    """`table[i]` is the segmentation of object i. Made by a `SegmentationTableWriter`."""

    points: np.ndarray  # (P, 2) float64, of all polygons
    polygon_ends: np.ndarray  # (K,) where each polygon ends in `points`
    polygon_counts: np.ndarray  # (N+1,) how many polygons there are before each object
    codes: np.ndarray  # (C,) uint8, the run-length codes of all bitmaps
    code_ends: np.ndarray  # (N+1,) how much of `codes` there is before each object
    sizes: np.ndarray  # (N, 2) h, w of each object's picture

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Segmentation:
        start, end = self.code_ends[index : index + 2]
        if start < end:
            return Bitmap(self.codes[start:end].tobytes(), tuple(self.sizes[index].tolist()))
        first, last = self.polygon_counts[index : index + 2]
        begin = self.polygon_ends[first - 1] if first else 0
        ends = self.polygon_ends[first:last]
        return Polygons(self.points[begin : ends[-1] if len(ends) else begin], ends - begin)

    def is_empty(self) -> np.ndarray:
        """(N,) bool: the objects without polygons or pixels."""
        return (np.diff(self.polygon_counts) == 0) & (np.diff(self.code_ends) == 0)

    def unpaintable(self) -> np.ndarray:
        """The objects with a coordinate that is not finite, or farther away than ten times the
        picture's size. Painting one could take all memory.
        """
        points_before = np.concatenate([[0], self.polygon_ends])[self.polygon_counts]
        owner = np.repeat(np.arange(len(self)), np.diff(points_before))
        near = np.abs(self.points) <= 10 * self.sizes[owner, ::-1]  # False for NaN
        return np.unique(owner[~near.all(1)])


class SegmentationTableWriter:
    """Append the COCO segmentation of each object, then make the `table`."""

    def __init__(self):
        self._numbers = array("d")  # x, y, x, y, ...
        self._polygon_ends = array("q")
        self._polygon_counts = array("q", [0])
        self._codes = bytearray()
        self._code_ends = array("q", [0])
        self._sizes = array("q")

    def append(self, segmentation: Any, size: tuple[int, int]) -> None:
        """Add one object in a picture of `size` (h, w); None or [] is an empty mask.

        Raises `ValueError` if it is malformed, and then adds an empty one. Whether coordinates
        are sane is left to `SegmentationTable.unpaintable`, for all at once.
        """
        try:
            if isinstance(segmentation, dict):
                self._codes += _compressed(segmentation, size)
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
        return SegmentationTable(
            points=np.array(self._numbers).reshape(-1, 2),
            polygon_ends=np.array(self._polygon_ends),
            polygon_counts=np.array(self._polygon_counts),
            codes=np.frombuffer(bytes(self._codes), np.uint8),
            code_ends=np.array(self._code_ends),
            sizes=np.array(self._sizes).reshape(-1, 2),
        )


def _compressed(rle: dict[str, Any], size: tuple[int, int]) -> bytes:
    """COCO's compressed run lengths of a compressed or an uncompressed RLE."""
    if rle.get("size") != list(size):
        raise ValueError(f"RLE size is {rle.get('size')}, but the picture's is {list(size)} (h, w)")
    counts = rle.get("counts")
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
    if isinstance(counts, str):
        return counts.encode("utf-8")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
