"""Which classes a COCO file labels in each picture, where it says so as LVIS does (Gupta 2019)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from visionkit.data.coco_columns import Record, place, short
from visionkit.data.problems import Problems

NEGATIVE, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"


def read_labelled(
    records: list[Record], present: list[set[int]], known: tuple[int, ...], problems: Problems
) -> list[frozenset[int] | None]:
    """For each image the ids of the classes whose objects are all labelled; None: all classes.

    `present` are the ids that have an object in the image. An image record with the list
    `neg_category_ids` is checked for those classes and the present ones only; of the classes in
    `not_exhaustive_category_ids` some objects may lack a label.
    """
    labelled: list[frozenset[int] | None] = []
    for i, record in enumerate(records):
        lists = {key: record.get(key) for key in (NEGATIVE, INCOMPLETE)}
        for key, ids in lists.items():
            fits = ids is None or (isinstance(ids, list) and all(id_ in known for id_ in ids))
            if not fits:
                problems.add(
                    place("images", i, record),
                    f"'{key}' is {short(ids)}: must be a list of category ids",
                )
                lists[key] = None
        incomplete = frozenset(lists[INCOMPLETE] or ())
        if lists[NEGATIVE] is not None:
            labelled.append(frozenset(lists[NEGATIVE]) | present[i] - incomplete)
        else:
            labelled.append(frozenset(known) - incomplete if incomplete else None)
    return labelled


def present_in(image: np.ndarray, category: np.ndarray, count: int) -> list[set[int]]:
    """The category ids of each of `count` images, from parallel arrays of all objects."""
    found: list[set[int]] = [set() for _ in range(count)]
    for row, id_ in zip(image.tolist(), category.tolist(), strict=True):
        if row >= 0:
            found[row].add(id_)
    return found


def is_federated(keys: Collection[str]) -> bool:
    """Whether image records with such keys say so."""
    return NEGATIVE in keys or INCOMPLETE in keys
