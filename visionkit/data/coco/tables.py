"""What a COCO file says, in flat arrays that can lie in files and be shared by processes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.coco.columns import UNMAPPED, Record
from visionkit.data.masks import Bitmap, Polygons, Segmentation, run_lengths

# --- The segmentations of a whole data set in a few flat arrays, which loader workers share.


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
        size (N, 2) h, w of their image. Painting one could take all memory. Those in an image
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
        is as large as the image to those who know that.
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
        raise ValueError(f"RLE size is {size}: must be that of the image, [height, width]")
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


OTHER, POLYGONS, COMPRESSED, UNCOMPRESSED = range(4)  # how the file gives a segmentation


@dataclass(frozen=True)
class Texts:
    """`texts[i]` is one of many byte strings, which lie in one array."""

    data: np.ndarray  # (T,) uint8
    ends: np.ndarray  # (N+1,) how much of `data` there is before each

    def __getitem__(self, index: int) -> bytes:
        start, end = self.ends[index : index + 2].tolist()
        return self.data[start:end].tobytes()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def text(self, index: int) -> str:
        return self[index].decode("utf-8", "surrogatepass")

    def texts(self) -> list[str]:
        """All of them, decoded."""
        data, spans = self.data.tobytes(), pairwise(self.ends.tolist())
        if data.isascii():
            text = data.decode("ascii")
            return [text[a:b] for a, b in spans]
        return [data[a:b].decode("utf-8", "surrogatepass") for a, b in spans]


def packed(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Those texts as the two columns `name` and `name_sizes`, for `Gathered.texts`."""
    data, sizes = "".join(texts), map(len, texts)
    if not data.isascii():  # JSON can escape halves of characters
        sizes = (len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return {
        name: np.frombuffer(data.encode("utf-8", "surrogatepass"), np.uint8),
        f"{name}_sizes": np.fromiter(sizes, np.int64, len(texts)),
    }


@dataclass(frozen=True)
class ImageTable:
    """The image records. -1 and "" stand for "not labeled"."""

    ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int64 h, w
    class_ids: np.ndarray  # (I,) int64
    identities: np.ndarray  # (I,) int64
    names: Texts  # files, relative to the folder of images
    semantic: Texts  # files, relative to the annotation file
    extras: Texts  # JSON of what the other columns do not tell, or nothing

    def sizes_of(self, rows: np.ndarray) -> np.ndarray:
        """The sizes of these images; (-1, -1) for row -1."""
        return np.append(self.sizes, [[-1, -1]], 0).take(rows, 0)

    def record(self, row: int) -> Record:
        """The record as it is in the file."""
        record: Record = {"id": int(self.ids[row])}
        for key, column in (("file_name", self.names), ("semantic", self.semantic)):
            if text := column.text(row):
                record[key] = text
        record["height"], record["width"] = self.sizes[row].tolist()
        for key, values in (("class_id", self.class_ids), ("identity", self.identities)):
            if values[row] >= 0:
                record[key] = int(values[row])
        return record | self.extra(row)

    def extra(self, row: int) -> Record:
        """What the other columns do not tell about a record."""
        return json.loads(self.extras[row] or b"{}")

    def extra_records(self) -> list[Record]:
        """The id and what `extra` tells, of all records."""
        return _extra_records(self.ids, self.extras)


@dataclass(frozen=True)
class ObjectTable:
    """The annotations in the order of the file."""

    ids: np.ndarray  # (A,) int64, UNMAPPED where there is none or it is in `extras`
    image: np.ndarray  # (A,) index into the image table
    image_ids: np.ndarray  # (A,) int64, UNMAPPED where it is bad
    category: np.ndarray  # (A,) int64 category id of the file, UNMAPPED where it is bad
    bbox: np.ndarray  # (A, 4) float64 x, y, w, h
    area: np.ndarray  # (A,) float64, NaN where the file has none
    iscrowd: np.ndarray  # (A,) int8, -1 where the file does not say
    kind: np.ndarray  # (A,) uint8, how the file gives the segmentation
    extras: Texts  # JSON of what the other columns do not tell, or nothing
    masks: SegmentationTable

    def record(self, row: int) -> Record:
        """The record as it is in the file; whole numbers of it may be floats here."""
        record: Record = {"bbox": self.bbox[row].tolist()}
        columns = (("id", self.ids), ("image_id", self.image_ids), ("category_id", self.category))
        record |= {key: int(column[row]) for key, column in columns if column[row] != UNMAPPED}
        if not np.isnan(self.area[row]):
            record["area"] = float(self.area[row])
        if self.iscrowd[row] >= 0:
            record["iscrowd"] = int(self.iscrowd[row])
        if self.kind[row] != OTHER:
            record["segmentation"] = self._segmentation(row)
        return record | self.extra(row)

    def extra(self, row: int) -> Record:
        """What the other columns do not tell about a record."""
        return json.loads(self.extras[row] or b"{}")

    def extra_records(self) -> list[Record]:
        """The id and what `extra` tells, of all records."""
        return _extra_records(self.ids, self.extras)

    def rows_by_image(self) -> np.ndarray:
        """(A,) all rows in the order of their images, those of one in that of the file: what a
        stable argsort gives, in less time."""
        keys = self.image * len(self.image) + np.arange(len(self.image))
        keys.sort()
        return keys % len(keys)

    def boxes(self, rows: np.ndarray | slice, images: ImageTable) -> np.ndarray:
        """(N, 4) float64 xyxy of those rows, clipped to their images."""
        boxes = np.array(self.bbox[rows])
        sizes = images.sizes.take(self.image[rows], 0)
        for axis in (0, 1):  # numpy is slow along an axis of two
            low, high, limit = boxes[:, axis], boxes[:, 2 + axis], sizes[:, 1 - axis]
            high += low
            low.clip(0, limit, out=low)
            high.clip(0, limit, out=high)
        return boxes

    def _segmentation(self, row: int) -> Any:
        if self.kind[row] == POLYGONS:
            return self.masks.polygons(row)
        found = self.masks[row]
        if self.kind[row] == COMPRESSED:
            return {"size": list(found.size), "counts": found.counts.decode()}
        return {"size": list(found.size), "counts": run_lengths(found.counts).tolist()}


def _extra_records(ids: np.ndarray, extras: Texts) -> list[Record]:
    found = json.loads("[" + ",".join(text or "{}" for text in extras.texts()) + "]")
    numbered = zip(ids.tolist(), found, strict=True)
    return [{"id": id_} | extra if id_ != UNMAPPED else extra for id_, extra in numbered]


class Gathered:
    """Columns that grow piece by piece, each in one block of memory."""

    def __init__(self):
        self._bytes: dict[str, bytearray] = {}

    def add(self, columns: dict[str, np.ndarray]) -> None:
        for name, part in columns.items():
            whole = self._bytes.setdefault(name, bytearray())
            if part.size:
                whole += np.ascontiguousarray(part).reshape(-1).view(np.uint8).data

    def column(self, name: str, dtype: type, width: int | None = None) -> np.ndarray:
        """That column as (N,) or (N, width)."""
        column = np.frombuffer(self._bytes.get(name, b""), dtype)
        return column if width is None else column.reshape(-1, width)

    def offsets(self, name: str) -> np.ndarray:
        """(N+1,) of that column of sizes: what there is before each, and in all."""
        return np.concatenate([[0], np.cumsum(self.column(name, np.int64))])

    def texts(self, name: str) -> Texts:
        """The texts that `packed` put into each piece."""
        return Texts(self.column(name, np.uint8), self.offsets(f"{name}_sizes"))


Table = ImageTable | ObjectTable | SegmentationTable | Texts


def flat(table: Table, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a table and of the tables in it, by dotted names."""
    arrays: dict[str, np.ndarray] = {}
    for field in fields(table):
        value, name = getattr(table, field.name), f"{prefix}.{field.name}"
        arrays |= {name: value} if isinstance(value, np.ndarray) else flat(value, name)
    return arrays


def nested(kind: type, arrays: dict[str, np.ndarray], prefix: str) -> Any:
    """The table whose arrays `flat` gave."""
    inner = {"Texts": Texts, "SegmentationTable": SegmentationTable}
    values = {
        field.name: nested(inner[field.type], arrays, f"{prefix}.{field.name}")
        if field.type in inner
        else arrays[f"{prefix}.{field.name}"]
        for field in fields(kind)
    }
    return kind(**values)
