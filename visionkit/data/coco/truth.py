"""The ground truth for a COCO evaluator, with the exact numbers of the annotation file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.tables import ImageTable, ObjectTable, SegmentationTable
from visionkit.data.masks import paint


def coco_truth(
    index: CocoIndex, ids: tuple[int, ...], areas: np.ndarray, malformed: Collection[int] = ()
) -> dict[str, Any]:
    """The records of the file, of annotations those of the categories `ids`, in a COCO dict.

    A missing id or iscrowd is added, and a missing or negative area is that of `areas` (A,). An
    iscrowd such as "0" is the number; what is annotated in no known image is left out, which
    changes no figure; and the rows `malformed` have no segmentation.
    """
    objects, annotations = index.objects, []
    wanted = np.isin(objects.category, ids) & (objects.image >= 0)
    for row in np.flatnonzero(wanted).tolist():
        record = objects.record(row)
        missing: dict[str, Any] = {"iscrowd": int(objects.iscrowd[row] == 1)}
        if record.get("id") is None:
            missing["id"] = row + 1
        if not objects.area[row] >= 0:
            missing["area"] = float(areas[row])
        if row in malformed:
            missing["segmentation"] = None
        annotations.append(record | missing)
    records = {record["id"]: record for record in index.categories}
    return {
        "images": [index.images.record(row) for row in range(len(index.images.ids))],
        "annotations": annotations,
        "categories": [records[id_] for id_ in ids],
    }


def filled_areas(
    objects: ObjectTable, images: ImageTable, masks: SegmentationTable | None
) -> np.ndarray:
    """Areas; where the file has none that could be, that of the mask, or of the box without one."""
    missing = ~(objects.area >= 0)  # NaN is absent
    if not missing.any():
        return objects.area
    areas = np.where(missing, objects.bbox[:, 2:].clip(0).prod(1), objects.area)
    if masks is not None:
        for i in np.flatnonzero(missing & (objects.image >= 0) & ~masks.is_empty()):
            areas[i] = paint([masks[i]], tuple(images.sizes[objects.image[i]].tolist())).sum()
    return areas
