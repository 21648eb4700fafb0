"""A COCO annotation file read and checked as a whole, for those who use it with pictures or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionkit.data.coco_attributes import AttributeTable, read_attributes
from visionkit.data.coco_cache import open_index
from visionkit.data.coco_columns import place, short
from visionkit.data.coco_federated import is_federated, present_in, read_labelled
from visionkit.data.coco_index import CocoIndex
from visionkit.data.coco_objects import Objects, choose_objects
from visionkit.data.fault_kinds import KINDS, Action
from visionkit.data.files import absent
from visionkit.data.problems import Problems, check_classes
from visionkit.errors import DataError
from visionkit.types import Classes


@dataclass(frozen=True)
class Annotations:
    """What the file says, as far as it is wanted."""

    index: CocoIndex
    names: list[str]  # of the pictures
    classes: Classes  # the wanted ones
    objects: Objects
    has_masks: bool
    attributes: AttributeTable | None
    labelled: list[frozenset[int] | None] | None  # ids labelled in each picture, as in LVIS


def read_annotations(
    path: str | Path,
    problems: Problems,
    *,
    classes: Sequence[str] | None = None,
    other_classes: str = "error",
    masks: bool | None = None,
    attributes: Collection[str] | None = None,
    actions: Mapping[str, Action],
    read: Callable[[str | Path], CocoIndex] = open_index,
) -> Annotations:
    """Arguments as of `coco.Coco`; `actions` by kind of fault. What is an error goes to `problems`;
    then nothing may be done with the result but to look for more of them."""
    index = read(path)
    problems.extend(index.faults)
    has_masks = _choose_masks(index, masks, problems)
    described = _read_attributes(index, attributes, problems)
    labelled = _read_labelled(index, problems)
    picked = index.classes  # which others may be refused, if the file is sound so far
    if not problems.count:
        picked = _pick(picked, classes, other_classes, problems)
    names = index.images.names.texts()
    objects = choose_objects(index, names, picked, actions, problems, masks=has_masks)
    return Annotations(index, names, picked, objects, has_masks, described, labelled)


def find_missing(read: Annotations, pictures: Path, problems: Problems) -> None:
    """Add the pictures that are not in that folder, and class maps that are not where named."""
    index = read.index
    for root, key, names in (
        (pictures, "file_name", read.names),
        (index.path.parent, "semantic", index.images.semantic.texts()),
    ):
        if key == "semantic" and not len(index.images.semantic.data):
            continue
        if not root.is_dir():
            what = f"folder of pictures {root} does not exist or is no folder"
            problems.add("", what, kind="missing-file", value=str(root))
            continue
        for row in absent(root, names):
            problems.add(
                place("images", row, index.images.record(row)),
                f"'{key}' is {short(names[row])}, but there is no such file in {root}",
                KINDS["missing-file"].remedy,
                kind="missing-file",
                key=key,
                value=short(names[row]),
            )


def _choose_masks(index: CocoIndex, wanted: bool | None, problems: Problems) -> bool:
    """Whether there are segmentations and they are wanted."""
    if wanted and not index.has_masks:
        problems.add("annotations", "none has a 'segmentation', but masks are asked for")
    chosen = wanted is not False and index.has_masks
    if chosen:  # malformed ones have a policy
        problems.findings += [f for f in index.mask_faults.findings if f.kind == "far"]
    return chosen


def _read_attributes(
    index: CocoIndex, wanted: Collection[str] | None, problems: Problems
) -> AttributeTable | None:
    records = index.objects.extra_records() if "attributes" in index.object_keys else []
    listed = index.names["attribute_classes"]
    return read_attributes(records, problems, wanted=wanted, listed=listed)


def _read_labelled(index: CocoIndex, problems: Problems) -> list[frozenset[int] | None] | None:
    """The ids of the classes labelled in each picture, where the file says so."""
    if not is_federated(index.image_keys):
        return None
    present = present_in(index.objects.image, index.objects.category, len(index.images.ids))
    return read_labelled(index.images.extra_records(), present, index.classes.ids, problems)


def _pick(found: Classes, wanted: Sequence[str] | None, others: str, problems: Problems) -> Classes:
    if wanted is None:
        return found
    try:
        unknown_ok = others == "ignore"
        check_classes("categories", found.names, wanted, missing_ok=False, unknown_ok=unknown_ok)
    except DataError as error:
        problems.add("", str(error), kind="value", key="categories")
        return found
    id_of = dict(zip(found.names, found.ids, strict=True))
    return Classes(tuple(wanted), tuple(id_of[name] for name in wanted))
