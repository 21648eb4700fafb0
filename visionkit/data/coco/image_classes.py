"""The classes of whole images in a COCO file whose images may have several: multi-label.

`class_id` of such an image is the list of the classes that it shows, as places in the list
`image_classes`. The others are not shown, but for those in `class_id_unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Problems, short
from visionkit.data.coco.tables import ImageTable, Record

UNKNOWN = -1
SHOWN_KEY, UNKNOWN_KEY = "class_id", "class_id_unknown"


def read_image_classes(
    images: ImageTable, num_classes: int, problems: Problems
) -> np.ndarray | None:
    """(I, K) int8 for each image and class: 1 shown, 0 not shown, `UNKNOWN` not known. None if no
    `class_id` is a list. Bad lists, and single numbers next to lists, are added to `problems`."""
    extras = images.extra_records()
    listed = [i for i, extra in enumerate(extras) if isinstance(extra.get(SHOWN_KEY), list)]
    if not listed:
        return None
    for i in np.flatnonzero(images.class_ids >= 0).tolist():
        what = f"'{SHOWN_KEY}' is {images.class_ids[i]}, but that of images[{listed[0]}] is a list"
        hint = "write a list for each image"
        problems.add_value("images", i, images.record(i), SHOWN_KEY, what, hint)
    table = np.full((len(extras), num_classes), UNKNOWN, np.int8)
    for i in listed:
        table[i] = 0
        for key, value in ((SHOWN_KEY, 1), (UNKNOWN_KEY, UNKNOWN)):
            places = _places(extras[i], key, num_classes)
            if places is None:
                what = f"'{key}' is {short(extras[i][key])}"
                hint = f"must be a list of places in 'image_classes', 0 to {num_classes - 1}"
                problems.add_value("images", i, images.record(i), key, what, hint)
            elif value == UNKNOWN and (table[i, places] == 1).any():
                what = f"'{key}' is {short(places)}, and '{SHOWN_KEY}' has some of them, too"
                problems.add_value("images", i, images.record(i), key, what)
            else:
                table[i, places] = value
    return table


def as_class_id(row: np.ndarray) -> list[float] | None:
    """`Sample.class_id` of a row of that table: 1 shown, 0 not shown, NaN not known; None if
    nothing is known."""
    return None if (row == UNKNOWN).all() else np.where(row == UNKNOWN, np.nan, row).tolist()


def class_id_record(shown: Sequence[int], unknown: Sequence[int] = ()) -> Record:
    """The keys of an image record that `read_image_classes` reads."""
    return {SHOWN_KEY: [*shown]} | ({UNKNOWN_KEY: [*unknown]} if unknown else {})


def _places(record: Record, key: str, num_classes: int) -> list[int] | None:
    """A list of classes of a record; None if it is malformed."""
    found: Any = record.get(key, [])
    if isinstance(found, list) and all(
        type(one) is int and 0 <= one < num_classes for one in found
    ):
        return found
    return None
