"""The checks of a COCO file for which one record is not enough, over all records at once."""

from __future__ import annotations

import numpy as np

from visionkit.data.coco_columns import ABSENT, place, report_repeats, short
from visionkit.data.coco_tables import ImageTable, ObjectTable
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
        )


def check_objects(
    objects: ObjectTable, images: ImageTable, categories: Classes, problems: Problems
) -> None:
    """Each object must have an image and a category, and lie near its picture."""
    for i in np.flatnonzero((objects.image_ids != ABSENT) & (objects.image < 0)):
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'image_id' is {objects.image_ids[i]}, which no image has: remove it or add the image",
        )
    known = np.isin(objects.category, categories.ids)
    for i in np.flatnonzero((objects.category != ABSENT) & ~known):
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'category_id' is {objects.category[i]}, which no category has: remove it or add the "
            "category",
        )
    sizes = images.sizes_of(objects.image)
    limits = 10 * np.maximum(*sizes.T)
    near = np.logical_and.reduce([np.abs(side) <= limits for side in objects.bbox.T])
    for i in np.flatnonzero(~near & (np.minimum(*sizes.T) > 0)):  # NaN is not near
        height, width = sizes[i]
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'bbox' is {short(objects.bbox[i].tolist())}: must be finite, and not farther from "
            f"the {width}x{height} picture than ten times its size",
        )


def check_masks(
    objects: ObjectTable, images: ImageTable, malformed: list[tuple[int, str]], problems: Problems
) -> None:
    """Segmentations must be well formed, of the size of their picture, and near it.

    Those in a picture of unknown size, which is a problem of its own, are passed over.
    """
    sizes = images.sizes_of(objects.image)
    bitmaps = np.flatnonzero(objects.masks.sizes[:, 0])
    other = bitmaps[(objects.masks.sizes[bitmaps] != sizes[bitmaps]).any(1)]
    faults = malformed + [
        (
            i,
            f"RLE size is {objects.masks.sizes[i].tolist()}, but the picture's is "
            f"{sizes[i].tolist()} (h, w)",
        )
        for i in other.tolist()
    ]
    far = "a coordinate is not finite or lies farther away than ten times the picture's size"
    faults += [(i, far) for i in objects.masks.unpaintable(sizes).tolist()]
    for i, what in sorted(faults):
        if min(sizes[i]) > 0:
            problems.add(place("annotations", i, objects.record(i)), f"'segmentation': {what}")
