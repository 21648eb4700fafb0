"""A COCO annotation file read and checked as a whole, for those who use it with images or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from visionkit.data.checks.findings import Finding, FindingCounts, Problems, check_classes
from visionkit.data.checks.kinds import FINDING_KINDS, Action
from visionkit.data.coco.attributes import AttributeTable, read_attributes
from visionkit.data.coco.columns import Record, place, short
from visionkit.data.coco.index import CocoIndex, open_index
from visionkit.data.coco.quality import Progress, SelectedObjects, choose_objects, look_at_outlines
from visionkit.data.coco.tables import SegmentationTable
from visionkit.data.files import Links, unusable
from visionkit.data.loading.cache import content_key
from visionkit.errors import DataError, printable
from visionkit.types import Classes

# --- Which classes a COCO file labels in each image, where it says so as LVIS does (Gupta
# 2019).

NEGATIVE, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"


def read_labeled(
    records: list[Record], present: list[set[int]], known: tuple[int, ...], problems: Problems
) -> list[frozenset[int] | None]:
    """For each image the ids of the classes whose objects are all labeled; None: all classes.

    `present` are the ids that have an object in the image. An image record with the list
    `neg_category_ids` is checked for those classes and the present ones only; of the classes in
    `not_exhaustive_category_ids` some objects may lack a label.
    """
    labeled: list[frozenset[int] | None] = []
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
            labeled.append(frozenset(lists[NEGATIVE]) | present[i] - incomplete)
        else:
            labeled.append(frozenset(known) - incomplete if incomplete else None)
    return labeled


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


@dataclass(frozen=True)
class Annotations:
    """What the file says, as far as it is wanted."""

    index: CocoIndex
    names: list[str]  # of the images
    label_classes: Classes  # the wanted ones
    objects: SelectedObjects
    has_masks: bool
    attributes: AttributeTable | None
    labeled: list[frozenset[int] | None] | None  # ids labeled in each image, as in LVIS

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> dict[str, Classes]:
        """That of the objects alone."""
        return {"labels": self.label_classes}

    @property
    def num_objects(self) -> int:
        """Those that are used and no crowd region."""
        return self.objects.num_objects

    @property
    def fingerprint(self) -> str:
        """A hash of the annotation file."""
        folder = self.index.folder
        return content_key(self.index.path) if folder is None else folder.name.split("-")[0]

    @cached_property
    def masks(self) -> SegmentationTable | None:
        """The segmentations, malformed ones as if there were none; None if they are not wanted."""
        if not self.has_masks:
            return None
        malformed, table = self.objects.bad_masks(), self.index.objects.masks
        return table.without(malformed) if len(malformed) else table

    def findings(self) -> Iterator[Finding]:
        """What is wrong or remarkable though the file can be used."""
        return self.objects.findings(self.index)

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """What takes longer to find."""
        if self.masks is not None:
            told = [f.rows for f in self.objects.faulty if f.kind == "wrong-area"]
            rows, told = np.sort(self.objects.rows), set(told[0].tolist() if told else ())
            yield from look_at_outlines(self.index, self.masks, rows, told, progress)

    def counts(self) -> FindingCounts:
        """How many records were left out, fixed, or kept though there is something wrong."""
        return self.objects.counts()

    def class_counts(self) -> dict[str, np.ndarray]:
        """How many objects and images there are of each class, by class_key."""
        counts = {"labels": self.objects.label_counts}
        numbers = self.index.images.class_ids
        if (numbers >= 0).any():
            size = len(self.index.names["image_classes"])
            counts["class_id"] = np.bincount(numbers[numbers >= 0], minlength=size)
        return counts


def read_annotations(
    path: str | Path,
    problems: Problems,
    *,
    classes: Sequence[str] | None = None,
    other_classes: str = "error",
    masks: bool | None = None,
    attributes: Collection[str] | None = None,
    actions: Mapping[str, Action],
) -> Annotations:
    """Arguments as of `Coco`; `actions` by kind of fault. What is an error goes to `problems`;
    then nothing may be done with the result but to look for more of them."""
    index = open_index(path)
    problems.extend(index.faults)
    has_masks = _choose_masks(index, masks, problems)
    described = _read_attributes(index, attributes, problems)
    labeled = _read_labeled(index, problems)
    picked = index.classes  # which others may be refused, if the file is sound so far
    if not problems.count:
        picked = _pick(picked, classes, other_classes, problems)
    names = index.images.names.texts()
    objects = choose_objects(index, names, picked, actions, problems, masks=has_masks)
    read = Annotations(index, names, picked, objects, has_masks, described, labeled)
    if problems.count:
        problems.others += _beside(problems.findings, read.findings())
    return read


def _beside(errors: list[Finding], findings: Iterator[Finding]) -> list[Finding]:
    """What is remarkable about sound annotations; of a record with an error, and of the whole file,
    that error may be the only reason."""
    wrong = {error.place[:2] for error in errors if error.place}
    return [
        found
        for found in findings
        if found.place and found.place.list == "annotations" and found.place[:2] not in wrong
    ]


def find_missing(
    read: Annotations, images: Path, problems: Problems, links: Links = "inside"
) -> None:
    """Add the images that are not in that folder, and class maps that are not where named."""
    index = read.index
    for root, key, names in (
        (images, "file_name", read.names),
        (index.path.parent, "semantic", index.images.semantic.texts()),
    ):
        if key == "semantic" and not len(index.images.semantic.data):
            continue
        if not root.is_dir():
            what = f"folder of images {printable(root)} does not exist or is no folder"
            problems.add("", what, kind="missing-file", value=str(root))
            continue
        for row, kind, what in unusable(root, names, links):
            problems.add(
                place("images", row, index.images.record(row)),
                f"'{key}' is {short(names[row])}, but {what}",
                "if the link is yours, set the data set's `links: any`"
                if kind == "path"
                else FINDING_KINDS[kind].remedy,
                kind=kind,
                key=key,
                value=short(names[row]),
            )


def _choose_masks(index: CocoIndex, wanted: bool | None, problems: Problems) -> bool:
    """Whether there are segmentations and they are wanted."""
    if wanted and not index.has_masks:
        problems.add("annotations", "none has a 'segmentation', but masks are asked for")
    chosen = wanted is not False and index.has_masks
    if chosen:  # malformed ones have a policy
        problems.findings += [f for f in index.mask_faults.findings if f.kind == "coordinate-range"]
    return chosen


def _read_attributes(
    index: CocoIndex, wanted: Collection[str] | None, problems: Problems
) -> AttributeTable | None:
    records = index.objects.extra_records() if "attributes" in index.object_keys else []
    listed = index.names["attribute_classes"]
    return read_attributes(records, problems, wanted=wanted, listed=listed)


def _read_labeled(index: CocoIndex, problems: Problems) -> list[frozenset[int] | None] | None:
    """The ids of the classes labeled in each image, where the file says so."""
    if not is_federated(index.image_keys):
        return None
    present = present_in(index.objects.image, index.objects.category, len(index.images.ids))
    return read_labeled(index.images.extra_records(), present, index.classes.ids, problems)


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
