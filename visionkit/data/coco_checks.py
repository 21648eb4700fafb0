"""The checks of a COCO file for which one record is not enough, over all records at once."""

from __future__ import annotations

import numpy as np

from visionkit.data.coco_columns import ABSENT, place, report_repeats, short
from visionkit.data.coco_tables import ImageTable, ObjectTable
from visionkit.data.fault_kinds import KINDS
from visionkit.data.problems import Problems
from visionkit.types import Classes


def check_images(images: ImageTable, num_classes: int, problems: Problems) -> None:
    """Ids must be unique; `num_classes` bounds 'class_id'."""
    if (np.diff(np.sort(images.ids)) == 0).any():
        valid = images.ids != ABSENT
        report_repeats("images", images.record, "id", images.ids.tolist(), valid, problems)
    for i in np.flatnonzero(images.class_ids >= num_classes):
        problems.add(
            place("images", i, images.record(i)),
            f"'class_id' is {images.class_ids[i]}, but 'image_classes' has {num_classes} names",
            key="class_id",
            value=str(images.class_ids[i]),
        )


def check_objects(
    objects: ObjectTable, images: ImageTable, categories: Classes, problems: Problems
) -> None:
    """Each object must have a category, and lie near its picture."""
    known = np.isin(objects.category, categories.ids)
    for i in np.flatnonzero((objects.category != ABSENT) & ~known):
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'category_id' is {objects.category[i]}, which no category has",
            KINDS["unknown-category"].remedy,
            kind="unknown-category",
            key="category_id",
            value=str(objects.category[i]),
        )
    sizes = images.sizes_of(objects.image)
    limits = 10 * np.maximum(*sizes.T)
    near = np.logical_and.reduce([np.abs(side) <= limits for side in objects.bbox.T])
    for i in np.flatnonzero(~near & (np.minimum(*sizes.T) > 0)):  # NaN is not near
        height, width = sizes[i]
        found = short(objects.bbox[i].tolist())
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'bbox' is {found}",
            f"must be finite, and not farther from the {width}x{height} picture than ten times "
            "its size",
            kind="far",
            key="bbox",
            value=found,
        )


def check_masks(
    objects: ObjectTable, images: ImageTable, malformed: list[tuple[int, str]], problems: Problems
) -> None:
    """Segmentations must be well formed, of the size of their picture, and near it.

    Those in a picture of unknown size are passed over.
    """
    sizes = images.sizes_of(objects.image)
    bitmaps = np.flatnonzero(objects.masks.sizes[:, 0])
    other = bitmaps[(objects.masks.sizes[bitmaps] != sizes[bitmaps]).any(1)]
    faults = [(i, "bad-mask", what) for i, what in malformed]
    faults += [
        (
            i,
            "bad-mask",
            f"RLE size is {objects.masks.sizes[i].tolist()}, but the picture's is "
            f"{sizes[i].tolist()} (h, w)",
        )
        for i in other.tolist()
    ]
    far = "a coordinate is not finite or lies farther away than ten times the picture's size"
    faults += [(i, "far", far) for i in objects.masks.unpaintable(sizes).tolist()]
    for i, kind, what in sorted(faults):
        if min(sizes[i]) > 0:
            record = objects.record(i)
            problems.add(
                place("annotations", i, record),
                f"'segmentation': {what}",
                "" if kind == "far" else KINDS["bad-mask"].remedy,
                kind=kind,
                key="segmentation",
                value=short(record.get("segmentation")),
            )
