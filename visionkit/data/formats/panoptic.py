"""Panoptic COCO files: a segment for each object and each region of stuff, in PNGs of their ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from visionkit.data.checks.findings import short
from visionkit.data.coco.reader import json_file
from visionkit.data.files import unusable
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.image_files import inner_name
from visionkit.data.formats.masks import masked, read_values
from visionkit.errors import DataError, listed, plural, printable

MARKS = (b'"segments_info"', b'"isthing"')  # near the beginning or the end of such a file
PEEKED = 64 * 1024


def is_panoptic(file: Path) -> bool:
    """Whether a JSON file seems to be a panoptic one."""
    try:
        with file.open("rb") as opened:
            start = opened.read(PEEKED)
            opened.seek(max(opened.seek(0, os.SEEK_END) - PEEKED, 0))
            ends = start + b" " + opened.read(PEEKED)
    except OSError:
        return False
    return any(mark in ends for mark in MARKS)


class PanopticReader(Reader):
    """A panoptic COCO file with its PNGs, in the folder of its name, of its `file_name`s or
    `instances`: the id of a segment is R + 256 G + 65536 B, or the value of a gray PNG.

    Each segment becomes one object, of stuff (`isthing: 0`) too; the categories keep their keys.
    """

    name = "COCO panoptic"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        if options.get("images") is None:
            inner = self.source.parent / "images"
            self.images = inner if inner.is_dir() else self.source.parent
        try:
            with json_file(self.source, "annotation file") as data:
                content = json.loads(data[:])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.problems.source}: is not JSON [{printable(error)}]") from None
        self._lists: dict[str, list[Record]] = {}
        for key in ("images", "annotations", "categories"):
            found = content.get(key) if isinstance(content, dict) else None
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise DataError(f"{self.problems.source}: {key!r} must be a list of objects")
            self._lists[key] = found
        self.categories = self._lists["categories"]
        for i, one in enumerate(self.categories):
            if not _is_id(one.get("id")):
                what = f"{self.problems.source}: categories[{i}]: 'id' is {short(one.get('id'))}"
                raise DataError(f"{what}: must be an integer")
        self._known = {one["id"] for one in self.categories}
        self.maps = self._find_maps()

    def files(self) -> list[Path]:
        return [self.source, self.maps]

    def _find_maps(self) -> Path:
        """The folder with the first PNG."""
        folder, names = (
            self.source.parent,
            [one.get("file_name") for one in self._lists["annotations"]],
        )
        first = next((name for name in names if isinstance(name, str) and name), "")
        for root in (folder / self.source.stem, folder / "instances", folder):
            if first and (root / first).is_file():
                return root
        where = printable(folder / self.source.stem)
        raise DataError(f"{self.problems.source}: the PNG {short(first)} is not in {where}")

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        of_image = self._annotations()
        seen: set[int] = set()
        count = stuff = 0
        stuff_ids = {one["id"] for one in self.categories if not one.get("isthing", 1)}
        for i, image in enumerate(self._lists["images"]):
            where, id_ = f"images[{i}]", image.get("id")
            if not _is_id(id_) or id_ in seen:
                self.bad(where, f"'id' is {short(id_)}", "must be an integer, once", kind="image")
                continue
            seen.add(id_)
            place, record = of_image.get(id_, (-1, {}))
            try:
                if place < 0:
                    raise ValueError(f"image {id_} has no annotation with segments")
                found = self._segments(record, image)
            except ValueError as error:
                self.bad(f"annotations[{place}]" if place >= 0 else where, str(error))
                continue
            own = []
            for one in found:
                count += 1
                stuff += one["category_id"] in stuff_ids
                own.append({**one, "id": one.get("id", count), "image_id": id_})
            yield image, own
        for id_, (place, _) in of_image.items():
            if id_ not in seen:
                self.bad(f"annotations[{place}]", f"its image {id_} is not in 'images'")
        if stuff:
            regions = plural(stuff, "object")
            self.notes.append(f"{regions} of {count} are regions of stuff (isthing 0)")

    def _annotations(self) -> dict[int, tuple[int, Record]]:
        """The annotations and their places by image; those that cannot be used are bad."""
        found: dict[int, tuple[int, Record]] = {}
        names: list[str] = []
        places: list[int] = []
        rows = self._lists["annotations"]
        for i, one in enumerate(rows):
            segments, name, id_ = (one.get(k) for k in ("segments_info", "file_name", "image_id"))
            sound = isinstance(segments, list) and all(isinstance(s, dict) for s in segments)
            fault = "" if sound else "'segments_info' must be a list of objects"
            try:
                inner = inner_name(name if isinstance(name, str) else "")
            except ValueError as error:
                fault, inner = f"'file_name': {error}", ""
            if not _is_id(id_) or id_ in found:
                fault = f"'image_id' is {short(id_)}: must be an integer, once"
            else:
                found[id_] = i, one | {"file_name": inner}
                if fault:
                    del found[id_]
            if fault:
                self.bad(f"annotations[{i}]", fault)
                continue
            names.append(inner)
            places.append(i)
        for k, kind, what in unusable(self.maps, names, self.links):
            what = f"'file_name' is {short(names[k])}, but {what}"
            self.bad(f"annotations[{places[k]}]", what, kind=kind)
            found.pop(rows[places[k]]["image_id"])
        return found

    def _segments(self, record: Record, image: Record) -> list[Record]:
        """The objects of an image. ValueError for what is wrong with its PNG or its segments."""
        ids = read_values(self.maps / record["file_name"], colored=False)
        numbers = ids.numbers
        if ids.are_colors:  # as red, green and blue from high to low bits
            numbers = numbers >> 16 | numbers & 0xFF00 | (numbers & 0xFF) << 16
        height, width = numbers.shape
        if (image.get("height"), image.get("width")) != (height, width):
            size = short(f"{image.get('width')}x{image.get('height')}")
            raise ValueError(f"its PNG is {width}x{height}, but its image {size}")
        left = set(np.unique(numbers).tolist()) - {0}
        objects, faults = [], []
        for segment in record["segments_info"]:
            id_, category = segment.get("id"), segment.get("category_id")
            if not _is_id(id_) or id_ not in left:
                faults.append(f"segment {short(id_)} has no pixel in its PNG, or is there twice")
                continue
            left.discard(id_)
            if not _is_id(category) or category not in self._known:
                faults.append(
                    f"segment {id_}: 'category_id' {short(category)} is not in 'categories'"
                )
                continue
            objects.append(_object(segment, masked(numbers == id_)))
        if left:
            faults.append(f"its PNG has segments that are not listed: {listed(sorted(left), 5)}")
        if faults:
            raise ValueError("; ".join(faults[:5]))
        return objects


def _object(segment: Record, found: Record) -> Record:
    """The record of a segment; its own box and area where they are numbers."""
    one: Record = {"category_id": segment["category_id"], **found}
    box, area = segment.get("bbox"), segment.get("area")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        one["bbox"] = box
    if _is_number(area):
        one["area"] = area
    one["iscrowd"] = int(segment.get("iscrowd") in (1, True))
    if _is_id(segment.get("annotation_id")):
        one["id"] = segment["annotation_id"]
    return one


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**62


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9
