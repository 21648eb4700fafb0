"""Read and check a COCO annotation file as a whole, with or without its images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Finding, FindingCounts, Problems, Progress, check_classes
from visionkit.data.checks.kinds import FINDING_KINDS, Action
from visionkit.data.coco.attributes import AttributeTable, read_attributes
from visionkit.data.coco.columns import place, short
from visionkit.data.coco.ground_truth import INCOMPLETE, NEGATIVE, is_federated
from visionkit.data.coco.index import CocoIndex, open_index
from visionkit.data.coco.quality import check_outlines
from visionkit.data.coco.segmentations import SegmentationTable
from visionkit.data.coco.selection import SelectedObjects, choose_objects
from visionkit.data.files import Links, unusable
from visionkit.data.image_io import MAX_PIXELS
from visionkit.data.loading.cache import content_key
from visionkit.errors import DataError, printable
from visionkit.types import Classes


@dataclass(frozen=True)
class Annotations:
    """The wanted content of an annotation file."""

    index: CocoIndex
    names: list[str]  # of the images
    label_classes: Classes  # the wanted ones
    objects: SelectedObjects
    has_masks: bool
    attributes: AttributeTable | None
    labeled: list[frozenset[int] | None] | None  # ids labeled in each image, as in LVIS

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached `masks`, which another process maps with the index."""
        return {key: value for key, value in self.__dict__.items() if key != "masks"}

    @property
    def classes(self) -> dict[str, Classes]:
        """The class list of the objects."""
        return {"labels": self.label_classes}

    @property
    def num_objects(self) -> int:
        """The number of used objects without crowd regions."""
        return self.objects.num_objects

    @property
    def fingerprint(self) -> str:
        """A hash of the annotation file."""
        folder = self.index.folder
        return content_key(self.index.path) if folder is None else folder.name.split("-")[0]

    @cached_property
    def masks(self) -> SegmentationTable | None:
        """The segmentations without malformed ones; None if they are not wanted."""
        if not self.has_masks:
            return None
        malformed, table = self.objects.bad_masks(), self.index.objects.masks
        return table.without(malformed) if len(malformed) else table

    def areas(self) -> np.ndarray:
        """(A,) of all objects; missing and negative ones are computed from the mask or the box."""
        objects, sizes = self.index.objects, self.index.images.sizes
        missing = ~(objects.area >= 0)  # NaN is absent
        if not missing.any():
            return objects.area
        areas = np.where(missing, objects.bbox[:, 2:].clip(0).prod(1), objects.area)
        if self.masks is not None:
            missing &= (objects.image >= 0) & ~self.masks.is_empty()
            for row in np.flatnonzero(missing).tolist():
                areas[row] = self.masks.area(row, sizes[objects.image[row]].tolist())
        return areas

    def findings(self) -> Iterator[Finding]:
        """The warnings and notes."""
        return self.objects.findings(self.index)

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """Findings that take longer."""
        if self.masks is not None:
            wrong = [f.rows for f in self.objects.faulty if f.kind == "wrong-area"]
            rows, reported = np.sort(self.objects.rows), set(wrong[0].tolist() if wrong else ())
            yield from check_outlines(self.index, self.masks, rows, reported, progress)

    def counts(self) -> FindingCounts:
        """How many records were dropped, fixed, or kept despite a fault."""
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
    """Read an annotation file; the arguments are those of `Coco`, `actions` by kind of finding.

    Errors are added to `problems`; then the result is only good for finding more of them.
    """
    index = open_index(path)
    for key, count in (("images", len(index.images.ids)), ("categories", len(index.categories))):
        if not count:
            raise DataError(f"annotation file {path}: '{key}' is empty; there is nothing to learn")
    problems.findings += index.faults.findings
    _check_pixels(index, problems)
    has_masks = _choose_masks(index, masks, problems)
    described = read_attributes(
        index.objects.extra_records() if "attributes" in index.object_keys else [],
        problems,
        wanted=attributes,
        listed=index.names["attribute_classes"],
    )
    labeled = _read_labeled(index, problems)
    picked = index.classes  # which others may be refused, if the file is sound so far
    if not problems.count:
        picked = _pick(picked, classes, other_classes, problems)
    names = index.images.names.texts()
    objects = choose_objects(index, names, picked, actions, problems, masks=has_masks)
    read = Annotations(index, names, picked, objects, has_masks, described, labeled)
    if problems.count:
        problems.others += _others(problems.findings, read.findings())
    return read


def _others(errors: list[Finding], findings: Iterator[Finding]) -> list[Finding]:
    """The findings about annotations without an error; an error may be the only reason for those
    about its record and about the whole file."""
    wrong = {error.place[:2] for error in errors if error.place}
    return [
        found
        for found in findings
        if found.place and found.place.list == "annotations" and found.place[:2] not in wrong
    ]


def find_missing(
    read: Annotations, images: Path, problems: Problems, links: Links = "inside"
) -> None:
    """Add the images that are not in that directory, and semantic maps that are not found."""
    index = read.index
    for root, key, names in (
        (images, "file_name", read.names),
        (index.path.parent, "semantic", index.images.semantic.texts()),
    ):
        if key == "semantic" and not len(index.images.semantic.data):
            continue
        if not root.is_dir():
            what = f"image directory {printable(root)} does not exist or is not a directory"
            problems.add("", what, kind="missing-file", value=str(root))
            continue
        for row, kind, what in unusable(root, names, links):
            problems.add(
                place("images", row, index.images.record(row)),
                f"'{key}' is {short(names[row])}, but {what}",
                "if the link is yours, set `links: any` on the dataset"
                if kind == "path"
                else FINDING_KINDS[kind].hint,
                kind=kind,
                key=key,
                value=short(names[row]),
            )


def _check_pixels(index: CocoIndex, problems: Problems) -> None:
    """Images must be small enough to be decoded."""
    for i in np.flatnonzero(index.images.sizes.astype(float).prod(1) > MAX_PIXELS).tolist():
        height, width = index.images.sizes[i].tolist()
        problems.add(
            place("images", i, index.images.record(i)),
            f"{width}x{height} is more than the limit of {MAX_PIXELS} pixels",
            key="width",
            value=str(width),
        )


def _choose_masks(index: CocoIndex, wanted: bool | None, problems: Problems) -> bool:
    """Whether there are segmentations and they are wanted; reports bad ones."""
    if wanted and not index.has_masks:
        what = "none has a 'segmentation', but `masks: true` or `semantic: paint` requires masks"
        problems.add("annotations", what)
    chosen = wanted is not False and index.has_masks
    if chosen:  # malformed ones have a policy
        problems.findings += [f for f in index.mask_faults.findings if f.kind == "coordinate-range"]
    return chosen


def _read_labeled(index: CocoIndex, problems: Problems) -> list[frozenset[int] | None] | None:
    """For each image the ids of the classes whose objects are all labeled, or None for all classes.
    None if the file does not list them as LVIS does (Gupta et al. 2019).

    An image record with the list `neg_category_ids` is checked for those classes and the annotated
    ones only; of the classes in `not_exhaustive_category_ids` some objects may lack a label.
    """
    if not is_federated(index.image_keys):
        return None
    objects, known = index.objects, index.classes.ids
    present: list[set[int]] = [set() for _ in index.images.ids]
    for row, id_ in zip(objects.image.tolist(), objects.category.tolist(), strict=True):
        if row >= 0:
            present[row].add(id_)
    labeled: list[frozenset[int] | None] = []
    for i, record in enumerate(index.images.extra_records()):
        lists: dict[str, Any] = {key: record.get(key) for key in (NEGATIVE, INCOMPLETE)}
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
