"""A COCO annotation file, checked as a whole and packed into arrays that forked workers share."""

from __future__ import annotations

import gc
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.coco_columns import (
    Record,
    file_names,
    place,
    report_repeats,
    short,
    whole_numbers,
)
from visionkit.data.files import diagnose
from visionkit.data.images import MAX_PIXELS
from visionkit.data.masks import paint
from visionkit.data.problems import Problems
from visionkit.data.segmentation_table import SegmentationTable, SegmentationTableWriter
from visionkit.errors import DataError
from visionkit.types import Classes


@dataclass(frozen=True)
class ImageTable:
    """The image records. -1 and "" stand for "not labelled"."""

    ids: np.ndarray  # (I,) int64
    file_names: list[str]
    sizes: np.ndarray  # (I, 2) int64 h, w
    class_ids: np.ndarray  # (I,) int64
    identities: np.ndarray  # (I,) int64
    semantic: list[str]  # files, relative to the annotation file

    def sizes_of(self, rows: np.ndarray) -> np.ndarray:
        """The sizes of these images; (-1, -1) for row -1."""
        return np.where(rows[:, None] >= 0, self.sizes[rows], -1)


@dataclass(frozen=True)
class ObjectTable:
    """The annotations in the order of the file."""

    image: np.ndarray  # (A,) index into the image table
    category: np.ndarray  # (A,) int64 category id of the file
    bbox: np.ndarray  # (A, 4) float64 x, y, w, h
    area: np.ndarray  # (A,) float64, NaN where the file has none
    iscrowd: np.ndarray  # (A,) bool


def read_coco(path: str | Path) -> dict[str, Any]:
    """The JSON of an annotation file, whose three lists are there and hold objects."""
    collecting = gc.isenabled()
    gc.disable()  # it would walk the growing data again and again, 2.5 times the time
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"annotation file {path} {diagnose(path)} [{error}]") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(data, dict):
        raise DataError(
            f"annotation file {path} holds a {type(data).__name__}, not an object with 'images', "
            "'annotations' and 'categories' (a list is COCO's format for results)"
        )
    for key in ("images", "annotations", "categories"):
        records = data.get(key)
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise DataError(
                f"annotation file {path}: '{key}' is "
                f"{'missing' if key not in data else 'not a list of objects'}; "
                "is it a COCO file for detection or segmentation?"
            )
    for key in ("images", "categories"):
        if not data[key]:
            raise DataError(f"annotation file {path}: '{key}' is empty; there is nothing to learn")
    return data


def read_categories(records: list[Record], problems: Problems) -> Classes:
    """Names and ids in the order of the ids."""
    ids, valid = whole_numbers("categories", records, "id", problems)
    report_repeats("categories", records, "id", ids.tolist(), valid, problems)
    names = [record.get("name") for record in records]
    named = [isinstance(name, str) and bool(name) for name in names]
    for i in np.flatnonzero(~np.array(named)):
        problems.add(
            place("categories", i, records[i]), f"'name' is {short(names[i])}: must be a text"
        )
    report_repeats("categories", records, "name", names, named, problems)
    order = np.argsort(ids, kind="stable")
    return Classes(tuple(str(names[i]) for i in order), tuple(ids[order].tolist()))


def read_images(records: list[Record], num_classes: int, problems: Problems) -> ImageTable:
    """Check and pack the image records; `num_classes` bounds their own 'class_id'."""
    ids, valid = whole_numbers("images", records, "id", problems)
    report_repeats("images", records, "id", ids.tolist(), valid, problems)
    heights, _ = whole_numbers("images", records, "height", problems, low=1)
    widths, _ = whole_numbers("images", records, "width", problems, low=1)
    for i in np.flatnonzero(heights * widths.astype(float) > MAX_PIXELS):
        problems.add(
            place("images", i, records[i]),
            f"{widths[i]}x{heights[i]} is more than the limit of {MAX_PIXELS} pixels",
        )
    optional = {"required": False, "low": 0}
    class_ids, _ = whole_numbers("images", records, "class_id", problems, **optional)
    for i in np.flatnonzero(class_ids >= num_classes):
        problems.add(
            place("images", i, records[i]),
            f"'class_id' is {class_ids[i]}, but 'image_classes' has {num_classes} names",
        )
    identities, _ = whole_numbers("images", records, "identity", problems, **optional)
    return ImageTable(
        ids=ids,
        file_names=file_names(records, "file_name", problems, required=True),
        sizes=np.stack([heights, widths], 1),
        class_ids=class_ids,
        identities=identities,
        semantic=file_names(records, "semantic", problems, required=False),
    )


def read_objects(
    records: list[Record], images: ImageTable, categories: Classes, problems: Problems
) -> ObjectTable:
    """Check and pack the annotations, all but their segmentations."""
    rows = {image_id: row for row, image_id in enumerate(images.ids.tolist())}
    image_ids, valid = whole_numbers("annotations", records, "image_id", problems)
    image = np.array([rows.get(i, -1) for i in image_ids.tolist()], np.int64)
    for i in np.flatnonzero(valid & (image < 0)):
        problems.add(
            place("annotations", i, records[i]),
            f"'image_id' is {image_ids[i]}, which no image has: remove it or add the image",
        )
    category, valid = whole_numbers("annotations", records, "category_id", problems)
    for i in np.flatnonzero(valid & ~np.isin(category, categories.ids)):
        problems.add(
            place("annotations", i, records[i]),
            f"'category_id' is {category[i]}, which no category has: remove it or add the category",
        )
    bbox = _boxes(records, images.sizes_of(image), problems)
    return ObjectTable(image, category, bbox, _areas(records, problems), _crowds(records, problems))


def _boxes(records: list[Record], sizes: np.ndarray, problems: Problems) -> np.ndarray:
    numbers = array("d")
    for i, record in enumerate(records):
        box = record.get("bbox")
        try:
            if not isinstance(box, list) or len(box) != 4:
                raise TypeError
            numbers.fromlist(box)
        except (TypeError, OverflowError):
            problems.add(
                place("annotations", i, record),
                f"'bbox' is {short(box)}: must be four numbers [x, y, width, height]",
            )
            numbers.extend((0, 0, 0, 0))
    boxes = np.array(numbers).reshape(-1, 4)
    near = np.abs(boxes) <= 10 * sizes.max(1, keepdims=True)  # False for NaN
    for i in np.flatnonzero(~near.all(1) & (sizes > 0).all(1)):
        height, width = sizes[i]
        problems.add(
            place("annotations", i, records[i]),
            f"'bbox' is {short(records[i]['bbox'])}: must be finite, and not farther from the "
            f"{width}x{height} picture than ten times its size",
        )
    return boxes


def _areas(records: list[Record], problems: Problems) -> np.ndarray:
    areas = np.full(len(records), np.nan)
    for i, record in enumerate(records):
        area = record.get("area")
        if area is None:
            continue
        if isinstance(area, int | float) and 0 <= area < 1e15:
            areas[i] = area
        else:
            problems.add(
                place("annotations", i, record),
                f"'area' is {short(area)}: must be a number of at least 0, or left out",
            )
    return areas


def _crowds(records: list[Record], problems: Problems) -> np.ndarray:
    values = [record.get("iscrowd") or 0 for record in records]
    for i, value in enumerate(values):
        if value not in (0, 1):
            problems.add(
                place("annotations", i, records[i]),
                f"'iscrowd' is {short(value)}: must be 0 or 1, or left out",
            )
    return np.array([value == 1 for value in values], bool)


def read_segmentations(
    records: list[Record],
    objects: ObjectTable,
    images: ImageTable,
    wanted: bool | None,
    problems: Problems,
) -> SegmentationTable | None:
    """All segmentations in the order of the file; None if there are none or none are wanted."""
    present = any(record.get("segmentation") for record in records)
    if wanted and not present:
        problems.add("annotations", "none has a 'segmentation', but masks are asked for")
    if wanted is False or not present:
        return None
    writer = SegmentationTableWriter()
    sizes = images.sizes_of(objects.image).tolist()
    for i, (record, size) in enumerate(zip(records, sizes, strict=True)):
        known = min(size) > 0  # else that is a problem of its own
        try:
            writer.append(record.get("segmentation") if known else None, tuple(size))
        except ValueError as error:
            problems.add(place("annotations", i, record), f"'segmentation': {error}")
    table = writer.table()
    for i in table.unpaintable():
        problems.add(
            place("annotations", i, records[i]),
            "'segmentation' has a coordinate that is not finite or lies farther away than ten "
            "times the picture's size",
        )
    return table


def filled_areas(objects: ObjectTable, table: SegmentationTable | None) -> np.ndarray:
    """Areas; where the file has none, that of the mask, or of the box if there is no mask."""
    missing = np.isnan(objects.area)
    areas = np.where(missing, objects.bbox[:, 2:].clip(0).prod(1), objects.area)
    if table is not None:
        for i in np.flatnonzero(missing & ~table.is_empty()):
            areas[i] = paint([table[i]], tuple(table.sizes[i].tolist())).sum()
    return areas
