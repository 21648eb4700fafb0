"""The ground truth of a COCO evaluation: checked, sorted and ready for the engines."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from visionkit.data.checks.findings import Finding, Problems
from visionkit.data.coco.ground_truth import (
    GroundTruth,
    ground_truth,
    read_labeled,
    without_categories,
)
from visionkit.data.coco.index import CocoIndex, index_of
from visionkit.data.coco.records import read_categories
from visionkit.data.coco.segmentations import mask_area, to_rle
from visionkit.data.coco.selection import (
    FAR,
    LOOKS_WRONG,
    ignored,
    odd_crowds,
    report,
    unknown_images,
)
from visionkit.data.coco.tables import rows_of

IouType = Literal["bbox", "segm"]

log = logging.getLogger("visionkit")

_UNUSED = {"file_name", "semantic", "class_id", "identity"}  # keys of images


@dataclass(frozen=True)
class ScoredTruth:
    """Objects refer to images and categories by their row; both are sorted by their id."""

    iou_type: IouType
    image_ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int64 h, w
    category_ids: np.ndarray  # (C,) int64
    names: tuple[str, ...]  # (C,)
    image: np.ndarray  # (A,) rows
    category: np.ndarray  # (A,) rows
    boxes: np.ndarray  # (A, 4) float64 x, y, w, h
    areas: np.ndarray  # (A,) float64
    iscrowd: np.ndarray  # (A,) bool
    masks: list[Any] | None  # (A,) polygons or RLE, when masks are scored
    # By image id the ids of its labeled categories, where not all are (LVIS).
    labeled: Mapping[int, Collection[int]] = field(default_factory=dict)
    in_part: bool = False  # whether images are labeled in part

    def __len__(self) -> int:
        return len(self.image)

    def rasterized(self) -> ScoredTruth:
        """The same with all masks as compressed RLE, for more than one evaluation: otherwise each
        of them turns the polygons into pixels again."""
        if self.masks is None:
            return self
        sizes = sizes_of(self.image, self.sizes)
        return replace(self, masks=list(map(to_rle, self.masks, sizes.tolist())))

    @cached_property
    def image_rows(self) -> dict[int, int]:
        """The row of each image id."""
        return {id_: row for row, id_ in enumerate(self.image_ids.tolist())}

    @cached_property
    def category_rows(self) -> dict[int, int]:
        """The row of each category id."""
        return {id_: row for row, id_ in enumerate(self.category_ids.tolist())}


def read_truth(
    truth: Mapping[str, Any] | CocoIndex,
    iou_type: IouType,
    source: str = "ground truth",
    *,
    trust: bool = False,
    ignore_categories: Collection[str] = (),
) -> ScoredTruth:
    """Check a COCO dict or the index of a file; DataError lists all that cannot be scored.

    A missing or negative area is that of the mask when masks are scored, else that of the box; a
    missing iscrowd is 0. When masks are scored, an object without one is an ignore region.
    `trust` as in `scored`, `ignore_categories` as in `Coco`.
    """
    index = truth if isinstance(truth, CocoIndex) else index_of(truth, source)
    problems = Problems(index.faults.source, index.faults.file)
    without = index.objects.masks.is_empty()
    problems.findings += [
        found for found in index.faults.findings if _matters(found, iou_type, without)
    ]
    problems.findings += report(index, unknown_images(index), "error")
    read_labeled(index, problems)
    found = read_categories(index.categories, Problems(""))
    classes, ignored_ids = without_categories(found, ignore_categories, problems)
    if iou_type == "segm":
        problems.findings += [found._replace(hint="") for found in index.mask_faults.findings]
    problems.raise_any()
    if odd := len(odd_crowds(index)):
        log_once(f"{odd} of {len(without)} values of iscrowd are not numbers: read as 0 or 1")
    if negative := np.count_nonzero(index.objects.area < 0):
        used = "masks" if iou_type == "segm" else "boxes"
        log_once(f"{negative} of {len(without)} areas are negative: those of the {used} are used")
    if regions := len(ignored(index)):
        log_once(f"{regions} of {len(without)} objects have ignore or isgroupof: not scored")
    masks, areas = index.objects.masks, index.objects.area
    columns = ground_truth(index, classes, masks, areas, ignored_ids)
    ends, sizes = columns.boxes[:, :2] + columns.boxes[:, 2:], columns.sizes[columns.image]
    far = int(((ends > FAR * sizes[:, ::-1]) & (sizes[:, ::-1] > 0)).any(1).sum())
    if iou_type == "bbox" and far > LOOKS_WRONG * len(columns):
        log_once(
            f"annotations: {far} boxes reach far beyond their image; are they [x, y, width, "
            "height]?"
        )
    return scored(columns, iou_type, trust=trust)


def _matters(found: Finding, iou_type: IouType, without: np.ndarray) -> bool:
    """Whether scoring uses the value that a fault is about."""
    if found.place is None:
        return found.key != "bbox" or iou_type == "bbox"
    if found.place.list == "images":
        unused = _UNUSED | ({"height", "width"} if iou_type == "bbox" else set())
        return found.key not in unused
    is_box = found.place.list == "annotations" and found.key == "bbox"
    return not is_box or iou_type == "bbox" or bool(without[found.place.index])


def scored(truth: GroundTruth, iou_type: IouType, *, trust: bool = False) -> ScoredTruth:
    """Sort by ids, fill in areas, and add regions where a category is labeled incompletely.

    As in LVIS, a region is a crowd as large as the image, so that detections of the category that
    match no annotated object are ignored. Objects that nothing can match (`_lost`) are ignored too,
    as training drops them; with `trust` they count as missed, as in pycocotools.
    """
    by_id, by_category = np.argsort(truth.image_ids), np.argsort(truth.category_ids)
    masks = _masks(truth) if iou_type == "segm" else None
    iscrowd, boxes = truth.iscrowd, truth.boxes
    lost = np.zeros(len(truth), bool) if trust else _lost(truth, iou_type)
    if count := int((lost & ~iscrowd).sum()):
        i = int(np.flatnonzero(lost & ~iscrowd)[0])
        row = truth.image[i]
        height, width = truth.sizes[row].tolist()
        size = f", {width}x{height}" if width > 0 else ""
        what = "a mask without a pixel" if masks is not None else "a box without area"
        log_once(
            f"{count} of {len(truth)} annotated objects have {what} or outside their image (the "
            f"first: a {truth.names[truth.category[i]]!r}, bbox {truth.boxes[i].tolist()}, of "
            f"image_id {truth.image_ids[row]}{size}): nothing can match them, so they are not "
            "scored"
        )
    iscrowd = iscrowd | lost
    if masks is not None:
        empty = np.array([mask is None for mask in masks], bool)
        iscrowd, boxes = iscrowd | empty, np.where(empty[:, None], boxes, 0.0)
        if count := int(empty.sum()):
            log_once(
                f"{count} of {len(masks)} annotated objects have no segmentation: when masks are "
                "scored their boxes are ignore regions"
            )
    image, category, regions = _regions(truth)
    boxes = np.concatenate([boxes, regions])
    areas = np.concatenate([_areas(truth, masks), regions[:, 2] * regions[:, 3]])
    if masks is not None:
        masks += [None] * len(regions)
        masks = [_outline(boxes[i]) if mask is None else mask for i, mask in enumerate(masks)]
    return ScoredTruth(
        iou_type=iou_type,
        image_ids=truth.image_ids[by_id],
        sizes=truth.sizes[by_id].clip(0),  # -1 where it is unknown
        category_ids=truth.category_ids[by_category],
        names=tuple(truth.names[i] for i in by_category),
        image=np.argsort(by_id)[np.concatenate([truth.image, image])],
        category=np.argsort(by_category)[np.concatenate([truth.category, category])],
        boxes=boxes,
        areas=areas,
        iscrowd=np.concatenate([iscrowd, np.ones(len(regions), bool)]),
        masks=masks,
        labeled=_labeled(truth),
        in_part=bool(truth.negatives or truth.incomplete),
    )


def _lost(truth: GroundTruth, iou_type: IouType) -> np.ndarray:
    """(A,) bool: boxes without area or outside their image; of masks, those without a pixel."""
    sizes = truth.sizes[truth.image]
    if iou_type == "bbox":
        (x, y, w, h), (height, width) = truth.boxes.T, sizes.T
        beyond = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
        return ~((w > 0) & (h > 0)) | (beyond & (sizes > 0).all(1))  # -1: the size is unknown
    lost = np.zeros(len(truth), bool)
    if truth.masks is not None and truth.mask_rows is not None:
        thin = truth.masks.may_be_empty(sizes, truth.mask_rows)
        for i in np.flatnonzero(thin).tolist():
            lost[i] = truth.masks.area(truth.mask_rows[i], sizes[i].tolist()) == 0
    return lost


def _labeled(truth: GroundTruth) -> dict[int, set[int]]:
    """The categories that are labeled in an image with `negatives`: those, and the annotated."""
    labeled = {image: set(ids) for image, ids in truth.negatives.items()}
    if labeled:
        images, categories = truth.image_ids[truth.image], truth.category_ids[truth.category]
        for image, category in zip(images.tolist(), categories.tolist(), strict=True):
            if image in labeled:
                labeled[image].add(category)
    return labeled


def sizes_of(image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N, 2) h, w of the images in those rows; 0 for row -1."""
    return np.concatenate([sizes, np.zeros((1, 2), np.int64)]).take(image, 0)


def _masks(truth: GroundTruth) -> list[Any]:
    if truth.masks is None or truth.mask_rows is None:
        return [None] * len(truth)
    return truth.masks.coco(truth.mask_rows)


def _areas(truth: GroundTruth, masks: list[Any] | None) -> np.ndarray:
    missing = ~(truth.areas >= 0)  # NaN is absent
    if not missing.any():
        return truth.areas
    areas = np.where(missing, truth.boxes[:, 2:].clip(0).prod(1), truth.areas)
    for i in np.flatnonzero(missing).tolist():
        if masks is not None and masks[i] is not None:
            areas[i] = mask_area(masks[i], truth.sizes[truth.image[i]].tolist())
    return areas


def _regions(truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of images and of categories, and boxes (R, 4), where labels are incomplete."""
    pairs = [(image, id_) for image, ids in truth.incomplete.items() for id_ in ids]
    images, categories = np.array(pairs, np.int64).reshape(-1, 2).T
    image, category = rows_of(images, truth.image_ids), rows_of(categories, truth.category_ids)
    known = (image >= 0) & (category >= 0)
    image, category = image[known], category[known]
    boxes = np.zeros((len(image), 4))
    boxes[:, 2:] = truth.sizes[image, ::-1]
    return image, category, boxes


def _outline(box: np.ndarray) -> list[list[float]]:
    x, y, w, h = box.tolist()
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@cache
def log_once(message: str, level: int = logging.WARNING) -> None:
    """Log once per process: each validation prepares the same ground truth."""
    log.log(level, "%s", message)
