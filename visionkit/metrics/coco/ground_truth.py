"""The ground truth of a COCO evaluation: checked, numbered and packed into columns."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.columns import Record, place, report_repeats, rows_of, short, whole_numbers
from visionkit.metrics.coco.rle import polygon_fault, polygons_sound, rle_fault, rle_totals

IouType = Literal["bbox", "segm"]
FARTHEST = 1e9  # of a box, in pixels: the engines' products stay finite (inf / inf is a match)
LARGEST_IMAGE = 2**31  # pixels; pycocotools counts them in 32 bits

log = logging.getLogger("visionkit")


@dataclass(frozen=True)
class Truth:
    """Objects refer to images and categories by their row; both are sorted by their id."""

    image_ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int64 h, w; 0 where boxes are scored and the file does not say
    category_ids: np.ndarray  # (C,) int64
    names: tuple[str, ...]  # (C,)
    image: np.ndarray  # (A,) rows
    category: np.ndarray  # (A,) rows
    boxes: np.ndarray  # (A, 4) float64 x, y, w, h
    areas: np.ndarray  # (A,) float64
    iscrowd: np.ndarray  # (A,) bool
    masks: list[Any] | None  # (A,) polygons or RLE, when masks are scored

    def __len__(self) -> int:
        return len(self.image)

    @property
    def iou_type(self) -> IouType:
        """What it was read for."""
        return "bbox" if self.masks is None else "segm"

    def rasterized(self) -> Truth:
        """The same with all masks as compressed RLE, for more than one evaluation: each of them
        would turn the polygons into pixels again."""
        if self.masks is None:
            return self
        sizes = sizes_of(self.image, self.sizes)
        return replace(self, masks=list(map(_compressed, self.masks, sizes)))

    @cached_property
    def image_rows(self) -> dict[int, int]:
        """The row of each image id."""
        return {id_: row for row, id_ in enumerate(self.image_ids.tolist())}

    @cached_property
    def category_rows(self) -> dict[int, int]:
        """The row of each category id."""
        return {id_: row for row, id_ in enumerate(self.category_ids.tolist())}


def read_truth(truth: dict[str, Any], iou_type: IouType, source: str = "ground truth") -> Truth:
    """Pack a COCO dict; `DataError` lists what could not be scored or would be scored wrongly.

    For masks, an object without one becomes a region to ignore, its box. A missing or negative
    area is that of the mask when masks are scored, else that of the box; a missing iscrowd is 0.
    """
    problems = Problems(source)
    images, categories, annotations = (truth[k] for k in ("images", "categories", "annotations"))
    image_ids = _unique("images", images, "id", problems)
    category_ids = _unique("categories", categories, "id", problems)
    names = _names(categories, problems)
    sizes = np.zeros((len(images), 2), np.int64)
    if iou_type == "segm":
        for side, key in enumerate(("height", "width")):
            sizes[:, side] = _integers("images", images, key, problems, low=1)
        for i in np.flatnonzero(sizes.astype(float).prod(1) >= LARGEST_IMAGE):
            what = f"'height' and 'width' {sizes[i].tolist()} are too many pixels to score masks"
            problems.add(place("images", i, images[i]), what)
    problems.raise_any()  # what follows looks the rows up

    by_id, by_category = np.argsort(image_ids), np.argsort(category_ids)
    image_ids, category_ids, sizes = image_ids[by_id], category_ids[by_category], sizes[by_id]
    image = _rows("image_id", annotations, image_ids, problems)
    category = _rows("category_id", annotations, category_ids, problems)
    masks = None
    if iou_type == "segm":
        masks = [record.get("segmentation") for record in annotations]
        masks = [None if mask == [] or mask == {} else mask for mask in masks]
        _check_masks(annotations, masks, sizes_of(image, sizes), problems)
    boxes = _boxes(annotations, masks, problems)
    areas = _areas(annotations, boxes, masks, sizes_of(image, sizes), problems)
    iscrowd = _crowds(annotations, problems)
    if masks is not None:
        iscrowd |= _boxes_to_ignore(annotations, boxes, masks, sizes_of(image, sizes), problems)
    problems.raise_any()
    return Truth(
        image_ids=image_ids,
        sizes=sizes,
        category_ids=category_ids,
        names=tuple(names[i] for i in by_category),
        image=image,
        category=category,
        boxes=boxes,
        areas=areas,
        iscrowd=iscrowd,
        masks=masks,
    )


def sizes_of(image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N, 2) h, w of the images in those rows; 0 for row -1."""
    return np.concatenate([sizes, np.zeros((1, 2), np.int64)]).take(image, 0)


def _integers(
    kind: str, records: Sequence[Record], key: str, problems: Problems, **bounds: int
) -> np.ndarray:
    try:
        column = np.array(array("q", map(itemgetter(key), records)), np.int64)
        in_range = not len(column) or column.min() >= bounds.get("low", column.min())
        if in_range and bool not in set(map(type, map(itemgetter(key), records))):
            return column
    except (KeyError, TypeError, OverflowError):
        pass  # the slow way finds the record
    return whole_numbers(kind, list(records), key, problems, **bounds)[0]


def _names(categories: Sequence[Record], problems: Problems) -> list[str]:
    names = [category.get("name") for category in categories]
    named = [isinstance(name, str) and bool(name) for name in names]
    for i in np.flatnonzero(~np.array(named, bool)):
        what = f"'name' is {short(names[i])}: must be a text"
        problems.add(place("categories", i, categories[i]), what)
    report_repeats("categories", categories.__getitem__, "name", names, named, problems)
    return names


def _crowds(records: Sequence[Record], problems: Problems) -> np.ndarray:
    """(A,) bool. "0" and "1" are taken for numbers, as training takes them: for pycocotools every
    text is a crowd, "0" too."""
    found = [record.get("iscrowd") for record in records]
    for i, value in enumerate(found):
        if value not in (None, 0, 1, "0", "1"):
            what = f"'iscrowd' is {short(value)}: must be 0 or 1, or left out"
            problems.add(place("annotations", i, records[i]), what)
    if texts := sum(isinstance(value, str) for value in found):
        tell_once(f"{texts} of {len(found)} values of iscrowd are texts: taken for numbers")
    return np.array([value in (1, "1") for value in found], bool)


def _unique(kind: str, records: Sequence[Record], key: str, problems: Problems) -> np.ndarray:
    ids = _integers(kind, records, key, problems)
    if len(np.unique(ids)) < len(ids):
        report_repeats(kind, records.__getitem__, key, ids.tolist(), [True] * len(ids), problems)
    return ids


def _rows(key: str, records: Sequence[Record], known: np.ndarray, problems: Problems) -> np.ndarray:
    ids = _integers("annotations", records, key, problems)
    rows = rows_of(ids, known)
    for i in np.flatnonzero(rows < 0):
        what = key.removesuffix("_id")
        problems.add(place("annotations", i, records[i]), f"'{key}' {ids[i]}: no such {what}")
    return rows


def _boxes(records: Sequence[Record], masks: list[Any] | None, problems: Problems) -> np.ndarray:
    """Boxes (A, 4); zeros where masks are scored and there is one."""
    rows = np.arange(len(records))
    if masks is not None:
        rows = np.array([i for i, mask in enumerate(masks) if mask is None], int)
    found = [records[i].get("bbox") for i in rows]
    boxes = np.zeros((len(records), 4))
    try:
        if not set(map(len, found)) - {4}:
            boxes[rows] = np.array(array("d", chain.from_iterable(found))).reshape(-1, 4)
            near = (np.abs(boxes) <= FARTHEST).all()  # False for NaN
            if near and bool not in set(map(type, chain.from_iterable(found))):
                return boxes
    except (TypeError, OverflowError):
        pass  # the slow way finds the record
    for i, box in zip(rows, found, strict=True):
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_near, box)):
            what = f"'bbox' is {short(box)}: must be [x, y, width, height], finite numbers"
            problems.add(place("annotations", i, records[i]), what)
    return boxes


def _is_near(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= FARTHEST  # False for NaN


def _check_masks(
    records: Sequence[Record], masks: list[Any], sizes: np.ndarray, problems: Problems
) -> None:
    known = sizes.any(1).tolist()  # an unknown image is a problem of its own
    rows = [i for i, mask in enumerate(masks) if known[i] and isinstance(mask, list)]
    if polygons_sound([masks[i] for i in rows], sizes[rows]):
        rows = []
    rows += [i for i, m in enumerate(masks) if known[i] and not isinstance(m, list | None)]
    compressed = []
    for i in sorted(rows):
        size = sizes[i].tolist()
        is_rle = isinstance(masks[i], dict)
        fault = (rle_fault if is_rle else polygon_fault)(masks[i], size)
        if fault:
            problems.add(place("annotations", i, records[i]), f"'segmentation': {fault}")
        elif is_rle and not isinstance(masks[i]["counts"], list):
            compressed.append(i)
    covered, _ = rle_totals([masks[i]["counts"] for i in compressed])
    for i in np.array(compressed, int)[covered != sizes[compressed].prod(1)]:
        what = "'segmentation': the RLE counts are damaged, or do not add up to the image's size"
        problems.add(place("annotations", i, records[i]), what)


def _boxes_to_ignore(
    records: Sequence[Record],
    boxes: np.ndarray,
    masks: list[Any],
    sizes: np.ndarray,
    problems: Problems,
) -> np.ndarray:
    """(A,) which objects have no mask; in `masks` they then have their boxes."""
    without = [i for i, mask in enumerate(masks) if mask is None]
    for i in without:
        x, y, w, h = boxes[i].tolist()
        masks[i] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if sizes[i].any() and (fault := polygon_fault(masks[i], sizes[i].tolist())):
            problems.add(place("annotations", i, records[i]), f"'bbox': {fault}")
    if without:
        tell_once(
            f"{len(without)} of {len(masks)} annotated objects have no segmentation: when masks "
            "are scored their boxes are regions to ignore"
        )
    chosen = np.zeros(len(masks), bool)
    chosen[without] = True
    return chosen


def _areas(
    records: Sequence[Record],
    boxes: np.ndarray,
    masks: list[Any] | None,
    sizes: np.ndarray,
    problems: Problems,
) -> np.ndarray:
    found = [record.get("area") for record in records]
    try:
        areas = np.array(array("d", found))
        if ((areas >= 0) & (areas < 1e18)).all() and bool not in set(map(type, found)):
            return areas  # none is NaN
    except (TypeError, OverflowError):
        pass  # the slow way fills in what is missing or finds the record
    negative = 0
    for i, area in enumerate(found):
        is_number = isinstance(area, int | float) and not isinstance(area, bool)
        if area is None or (is_number and -1e18 < area < 0):
            negative += area is not None
            found[i] = 0.0
            if not problems.count:  # of masks that are sound
                mask = masks[i] if masks is not None else None
                found[i] = _area_of(mask, boxes[i], sizes[i])
        elif not is_number or not 0 <= area < 1e18:
            what = f"'area' is {short(area)}: must be a finite number, or left out"
            problems.add(place("annotations", i, records[i]), what)
            found[i] = 0.0
    if negative:
        what = f"{negative} of {len(found)} annotated areas are negative: those of the "
        tell_once(f"{what}{'masks' if masks is not None else 'boxes'} are taken")
    return np.array(found, np.float64)


def _area_of(mask: Any, box: np.ndarray, size: np.ndarray) -> float:
    if not mask:
        return float(max(box[2], 0) * max(box[3], 0))
    return float(coco_mask.area(_compressed(mask, size)))


def _compressed(mask: Any, size: np.ndarray) -> dict[str, Any]:
    """A sound mask as a compressed RLE."""
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return mask
    rle = coco_mask.frPyObjects(mask, *size.tolist())
    return coco_mask.merge(rle) if isinstance(rle, list) else rle


@cache
def tell_once(message: str) -> None:
    """Warn, once in the life of the process: validation opens the same truth again and again."""
    log.warning("%s", message)
