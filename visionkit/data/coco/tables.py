"""The records of a COCO file in flat arrays that can lie in files and be shared by processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from visionkit.data.coco.segmentations import SegmentationTable

Record = dict[str, Any]

# The keys of an annotation that columns hold.
CORE = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
UNMAPPED = -(2**63)  # in a column of ids
LARGEST = 2**62
LARGEST_AREA = 1e15
FARTHEST = 1e9  # of a box, in pixels: products in scoring stay finite (inf / inf is a match)


def rows_of(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The row of each id `among` others, the first one if they repeat; -1 where there is none."""
    if not len(among):
        return np.full(len(ids), -1)
    low, high = int(among.min()), int(among.max())
    if high - low < 8 * len(ids):  # as in most files: a table of all possible ids
        row_of = np.full(high - low + 1, -1)
        row_of[among[::-1] - low] = np.arange(len(among))[::-1]
        return np.where((ids >= low) & (ids <= high), row_of[np.clip(ids, low, high) - low], -1)
    order = np.argsort(among, kind="stable")
    place = np.searchsorted(among[order], ids).clip(max=len(among) - 1)
    rows = order[place]
    return np.where((among[rows] == ids) & (ids != UNMAPPED), rows, -1)


@dataclass(frozen=True)
class Texts:
    """`texts[i]` is one of many byte strings, all of which are in one array."""

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
    """Two columns `name` and `name_sizes` that hold these strings, for `Gathered.texts`."""
    data, sizes = "".join(texts), [len(text) for text in texts]
    if not data.isascii():  # JSON can escape halves of characters
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    return {
        name: np.frombuffer(data.encode("utf-8", "surrogatepass"), np.uint8),
        f"{name}_sizes": np.array(sizes, np.int32),
    }


class Records:
    """What the tables of records have in common."""

    ids: np.ndarray
    extras: Texts

    def extra(self, row: int) -> Record:
        """The part of a record that no other column holds."""
        return json.loads(self.extras[row] or b"{}")

    def extra_records(self) -> list[Record]:
        """The id and `extra` of all records."""
        found = json.loads("[" + ",".join(text or "{}" for text in self.extras.texts()) + "]")
        numbered = zip(self.ids.tolist(), found, strict=True)
        return [{"id": id_} | extra if id_ != UNMAPPED else extra for id_, extra in numbered]


@dataclass(frozen=True)
class ImageTable(Records):
    """The image records. -1 and "" stand for "not labeled"."""

    ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int64 h, w
    class_ids: np.ndarray  # (I,) int64
    identities: np.ndarray  # (I,) int64
    names: Texts  # files, relative to the folder of images
    semantic: Texts  # files, relative to the annotation file
    extras: Texts  # JSON of what no other column holds, or nothing

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


@dataclass(frozen=True)
class ObjectTable(Records):
    """The annotations in the order of the file."""

    ids: np.ndarray  # (A,) int64, UNMAPPED where there is none or it is in `extras`
    image: np.ndarray  # (A,) index into the image table
    image_ids: np.ndarray  # (A,) int64, UNMAPPED where it is bad
    category: np.ndarray  # (A,) int64 category id of the file, UNMAPPED where it is bad
    bbox: np.ndarray  # (A, 4) float64 x, y, w, h
    area: np.ndarray  # (A,) float64, NaN where it is absent or bad
    iscrowd: np.ndarray  # (A,) int8, -1 where it is absent or bad
    segmented: np.ndarray  # (A,) bool, whether `masks` has the file's segmentation
    extras: Texts  # JSON of what no other column holds, or nothing
    masks: SegmentationTable

    def record(self, row: int) -> Record:
        """The record of the file; integers may be floats here, and run lengths compressed."""
        record: Record = {"bbox": self.bbox[row].tolist()}
        columns = (("id", self.ids), ("image_id", self.image_ids), ("category_id", self.category))
        record |= {key: int(column[row]) for key, column in columns if column[row] != UNMAPPED}
        if not np.isnan(self.area[row]):
            record["area"] = float(self.area[row])
        if self.iscrowd[row] >= 0:
            record["iscrowd"] = int(self.iscrowd[row])
        if self.segmented[row]:
            record["segmentation"] = self.masks.coco(np.array([row]))[0] or []
        return record | self.extra(row)

    def rows_by_image(self) -> np.ndarray:
        """(A,) all rows, sorted by image and then in the order of the file; faster than a stable
        argsort."""
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


class Gathered:
    """Columns that grow chunk by chunk, each in one block of memory."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytearray] = {}

    def add(self, columns: dict[str, np.ndarray]) -> None:
        for name, part in columns.items():
            whole = self._bytes.setdefault(name, bytearray())
            if part.size:
                whole += np.ascontiguousarray(part).reshape(-1).view(np.uint8).data

    def column(self, name: str, dtype: type, width: int | None = None) -> np.ndarray:
        """That column as (N,) or (N, width)."""
        column: np.ndarray = np.frombuffer(self._bytes.get(name, b""), dtype)
        return column if width is None else column.reshape(-1, width)

    def offsets(self, name: str) -> np.ndarray:
        """(N+1,) the sums of the int32 sizes before each row of that column, and of all; frees
        it."""
        ends = np.zeros(len(self.column(name, np.int32)) + 1, np.int64)
        np.cumsum(self.column(name, np.int32), out=ends[1:])
        self._bytes.pop(name, None)
        return ends

    def texts(self, name: str) -> Texts:
        """The strings that `packed` put into the chunks."""
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
    """The table whose arrays `flat` returned."""
    inner = {"Texts": Texts, "SegmentationTable": SegmentationTable}
    values = {
        field.name: nested(inner[field.type], arrays, f"{prefix}.{field.name}")
        if field.type in inner
        else arrays[f"{prefix}.{field.name}"]
        for field in fields(kind)
    }
    return kind(**values)
