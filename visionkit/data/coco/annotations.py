"""Read and check a COCO annotation file as a whole, with or without its images."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import (
    Finding,
    FindingCounts,
    Problems,
    Progress,
    check_classes,
    finding,
    short,
)
from visionkit.data.checks.kinds import FINDING_KINDS, Action
from visionkit.data.coco.attributes import read_attributes
from visionkit.data.coco.ground_truth import read_labeled, without_categories
from visionkit.data.coco.image_classes import read_image_classes
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.segmentations import SegmentationTable
from visionkit.data.coco.selection import SelectedObjects, choose_objects, describe
from visionkit.data.files import Links, resolve, unusable
from visionkit.data.image_io import MAX_PIXELS
from visionkit.data.masks import Bitmap, Segmentation
from visionkit.errors import DataError, printable
from visionkit.types import Classes

# Findings that count objects:
COUNTED = ("all-crowd", "no-annotations")
# Segmentations against boxes and areas:
LEAST_IOU = 0.5  # of the bounds of a mask with its box
CLOSE = 2.0  # pixels by which sides may differ all the same: of small objects it is much
SHARE = 0.1  # by which an area may be off
FEW_PIXELS = 5  # by which it may, too


class Annotations:
    """The wanted content of an annotation file, whose index is given, checked.

    The other arguments are those of `Coco`, `actions` by kind of finding. Errors are added to
    `problems`; then the result is only good for finding more of them.
    """

    def __init__(
        self,
        index: CocoIndex,
        problems: Problems,
        *,
        images: Path | None = None,
        links: Links = "inside",
        classes: Sequence[str] | None = None,
        other_classes: str = "error",
        ignore_categories: Collection[str] = (),
        masks: bool | None = None,
        attributes: Collection[str] | None = None,
        actions: Mapping[str, Action],
    ):
        self.index = index
        self.image_classes = _several_classes(index)  # (I, K) int8
        if not len(index.images.ids) or not (index.categories or self._has_image_classes):
            key = "categories" if len(index.images.ids) else "images"
            raise DataError(f"{problems.source}: '{key}' is empty; there is nothing to learn")
        problems.findings += index.faults.findings
        _check_pixels(index, problems)
        self.has_masks = _choose_masks(index, masks, problems)
        # If nobody named attributes, their faults are errors only if a head reads them.
        unread = Problems(problems.source, problems.file)
        self.unusable = {"attributes": unread}
        self.attributes = read_attributes(
            index.objects.extra_records() if "attributes" in index.object_keys else [],
            problems,
            faults=unread if attributes is None else problems,
            wanted=attributes,
            listed=index.names["attribute_classes"],
        )
        self.labeled_ids = read_labeled(index, problems)
        found, self.ignored_ids = without_categories(index.classes, ignore_categories, problems)
        picked = Classes(*found)
        if not problems.count:  # which others may be refused, if the file is sound so far
            picked = _pick(picked, classes, other_classes, problems)
        self.classes: dict[str, Classes] = {"labels": picked}
        if self._has_image_classes:
            self.classes["class_id"] = Classes.numbered(index.names["image_classes"])
        if self.attributes is not None:
            self.classes["attributes"] = self.attributes.classes
        self.file_names: list[str] = index.images.names.texts()
        self.semantic_names: list[str] = index.images.semantic.texts()
        if images is not None:
            self._find_files(images, problems, links)
            self._report_another_folder(images, problems)
        self.selected: SelectedObjects = choose_objects(
            index,
            self.file_names,
            picked,
            actions,
            problems,
            masks=self.has_masks,
            ignored_ids=self.ignored_ids,
        )
        self.selected.remarks.extend(_unread_attributes(unread))
        self.num_objects = int(self.selected.label_counts.sum())  # without crowd regions
        if problems.count:
            problems.others += _others(problems.findings, self.findings())

    @property
    def _has_image_classes(self) -> bool:
        return self.image_classes is not None or bool((self.index.images.class_ids >= 0).any())

    def __len__(self) -> int:
        return len(self.file_names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached `masks`, which another process maps with the index."""
        return {key: value for key, value in self.__dict__.items() if key != "masks"}

    @property
    def fingerprint(self) -> str:
        """A hash of the annotations."""
        return self.index.fingerprint

    @cached_property
    def masks(self) -> SegmentationTable | None:
        """The segmentations without malformed ones; None if they are not wanted."""
        if not self.has_masks:
            return None
        malformed, table = self.selected.rows_with("bad-mask"), self.index.objects.masks
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
        return self.selected.findings(self.index)

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """Findings that take longer."""
        if self.masks is not None:
            rows, wrong = np.sort(self.selected.rows), self.selected.rows_with("wrong-area")
            yield from check_outlines(self.index, self.masks, rows, set(wrong.tolist()), progress)

    def counts(self) -> FindingCounts:
        """How many records were dropped, fixed, or kept despite a fault."""
        return self.selected.counts()

    def class_counts(self) -> dict[str, np.ndarray]:
        """How many objects and images there are of each class, by class_key."""
        counts = {"labels": self.selected.label_counts}
        numbers = self.index.images.class_ids
        if self.image_classes is not None:
            counts["class_id"] = (self.image_classes == 1).sum(0)
        elif (numbers >= 0).any():
            size = len(self.index.names["image_classes"])
            counts["class_id"] = np.bincount(numbers[numbers >= 0], minlength=size)
        if self.attributes is not None:
            counts["attributes"] = (self.attributes.values[self.selected.rows] == 1).sum(0)
        return counts

    def _report_another_folder(self, images: Path, problems: Problems) -> None:
        """Where none of several images is there, say first that their folder is another one."""
        missing = [(found.kind, found.key) for found in problems.findings]
        count = missing.count(("missing-file", "file_name"))
        if count == len(self.file_names) > 2:
            what = f"none of the {count} images is in {printable(images)}"
            hint = "give data.train.images=DIR data.train.annotations=FILE"
            problems.add("", what, hint, kind="missing-file", value=str(images))
            problems.findings.insert(0, problems.findings.pop())

    def _find_files(self, images: Path, problems: Problems, links: Links) -> None:
        """Make names relative to their folders; add those that are not there, or lead out of it."""
        index = self.index
        if "coco_url" in index.image_keys and not all(self.file_names):  # as in LVIS
            for row, record in enumerate(index.images.extra_records()):
                url = record.get("coco_url")
                if not self.file_names[row] and isinstance(url, str):
                    name = self.file_names[row] = _name_of(url, images)
                    if not name:
                        what = f"'coco_url' is {short(url)}, and there is no 'file_name'"
                        hint = "must end with a file name"
                        problems.add_value("images", row, record, "coco_url", what, hint)
        for root, key, names in (
            (images, "file_name", self.file_names),
            (index.path.parent, "semantic", self.semantic_names),
        ):
            if key == "semantic" and not any(names):
                continue
            if not root.is_dir():
                what = f"image directory {printable(root)} does not exist or is not a directory"
                problems.add("", what, kind="missing-file", value=str(root))
                continue
            for row, name in resolve(root, names):
                if not name:
                    what = f"'{key}' is {short(names[row])}, which is not in {printable(root)}"
                    record, hint = index.images.record(row), "must be relative to the image folder"
                    problems.add_value("images", row, record, key, what, hint, "path")
                names[row] = name
            for row, kind, what in unusable(root, names, links):
                hint = FINDING_KINDS[kind].hint
                if kind == "path":
                    hint = "if the link is yours, set `links: any` on the dataset"
                what = f"'{key}' is {short(names[row])}, but {what}"
                record = index.images.record(row)
                problems.add_value("images", row, record, key, what, hint, kind)


def _several_classes(index: CocoIndex) -> np.ndarray | None:
    """The classes of images that have any number of them; see `read_image_classes`."""
    if "class_id" not in index.image_keys:
        return None
    count = len(index.names["image_classes"])
    return read_image_classes(index.images, count, Problems(""))


def _name_of(url: str, images: Path) -> str:
    """The file of a URL: its last part, in the folder of the split where there is one."""
    path = re.sub(r"[\\\0]", "/", unquote(urlsplit(url).path))
    parts = [part for part in path.split("/") if part not in ("", "..")]
    in_split = "/".join(parts[-2:])
    return in_split if (images / in_split).exists() else parts[-1] if parts else ""


def _unread_attributes(faults: Problems) -> Iterator[Finding]:
    """One note for each attribute with faults."""
    for fault in {found.key: found for found in reversed(faults.findings)}.values():
        details: Any = {"file": fault.file, "place": fault.place, "key": "attributes"}
        yield finding("unread-attribute", fault.message, **details)


def _others(errors: list[Finding], findings: Iterator[Finding]) -> list[Finding]:
    """The findings of which no error may be the only reason: an error in the same value, one in an
    object for its duplicates, any but those of images for what is counted by class and image."""
    values = {(*error.place[:2], error.key) for error in errors if error.place}
    records = {value[:2] for value in values}
    unclear = any(not e.place or e.place.list != "images" or e.key == "id" for e in errors)

    def is_sound(found: Finding) -> bool:
        record = found.place[:2] if found.place else ()
        if found.kind in COUNTED:
            return not unclear
        is_twin = found.kind == "duplicate-box" and record in records
        return (*record, found.key) not in values and not is_twin

    return list(filter(is_sound, findings))


def _check_pixels(index: CocoIndex, problems: Problems) -> None:
    """Images must be small enough to be decoded."""
    for i in np.flatnonzero(index.images.sizes.astype(float).prod(1) > MAX_PIXELS).tolist():
        record, (height, width) = index.images.record(i), index.images.sizes[i].tolist()
        what = f"{width}x{height} is more than the limit of {MAX_PIXELS} pixels"
        problems.add_value("images", i, record, "width", what)


def _choose_masks(index: CocoIndex, wanted: bool | None, problems: Problems) -> bool:
    """Whether there are segmentations and they are wanted; reports bad ones."""
    if wanted and not index.has_masks:
        what = "none has a 'segmentation', but `masks: true` or `semantic: paint` requires masks"
        problems.add("annotations", what)
    chosen = wanted is not False and index.has_masks
    if chosen:  # malformed ones have a policy
        always = ("coordinate-range", "relative-boxes")
        problems.findings += [f for f in index.mask_faults.findings if f.kind in always]
    return chosen


def _pick(found: Classes, wanted: Sequence[str] | None, others: str, problems: Problems) -> Classes:
    if wanted is None:
        return found
    try:
        unknown_ok = others == "ignore"
        check_classes("categories", found.names, wanted, missing_ok=False, unknown_ok=unknown_ok)
    except DataError as error:
        problems.add("", error, kind="value", key="categories")
        return found
    id_of = dict(zip(found.names, found.ids, strict=True))
    return Classes(tuple(wanted), tuple(id_of[name] for name in wanted))


def check_outlines(
    index: CocoIndex,
    masks: SegmentationTable,
    rows: np.ndarray,
    reported: set[int],
    progress: Progress,
) -> Iterator[Finding]:
    """Findings about segmentations that cover nothing, are not where their box is, or have another
    area than the file says. Reads each one of the `rows`, so only `visionkit check` calls it. The
    wrong areas of the rows `reported` are known already."""
    known = rows[~masks.is_empty()[rows]]
    for row in progress(known.tolist(), f"masks of {index.path.name}"):
        bounds, area = _measure(masks[row])
        size = tuple(index.images.sizes[index.objects.image[row]].tolist())
        given = float(index.objects.area[row])
        is_off = given > 0 and row not in reported and _is_off(given, area)
        if area < 1 or is_off:  # by its corners: count the pixels
            area = masks.area(row, size)
        if area == 0:
            yield describe(index, "empty-mask", row, "segmentation", "the mask covers no pixel")
        elif is_off and _is_off(given, area):
            what = f"'area' is {given:g}, but the mask has {area:g} pixels"
            yield describe(index, "wrong-area", row, "area", what)
        x, y, w, h = index.objects.bbox[row].tolist()
        box = np.array([x, y, x + w, y + h])
        if w > 0 and h > 0 and _is_elsewhere(bounds, box):
            shown = short([round(side, 2) for side in bounds.tolist()])
            what = f"'bbox' is {short([x, y, w, h])}, but the mask extends over {shown} (xyxy)"
            yield describe(index, "mask-box-mismatch", row, "bbox", what)


def _measure(segmentation: Segmentation) -> tuple[np.ndarray, float]:
    """Its bounds (4,) xyxy and its area. That of polygons goes by their corners: it is too small if
    one crosses itself, too large if two overlap."""
    if isinstance(segmentation, Bitmap):
        rle = {"size": list(segmentation.size), "counts": segmentation.counts}
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        return np.array([x, y, x + w, y + h]), float(coco_mask.area(rle))
    points, area = segmentation.points, 0.0
    for part in np.split(points, segmentation.ends[:-1]):
        (x, y), (u, v) = part.T, np.roll(part, -1, 0).T
        area += abs(float((x * v - u * y).sum())) / 2
    return np.concatenate([points.min(0), points.max(0)]), area


def _is_off(given: float, found: float) -> bool:
    """Whether an area differs by much; NaN (absent) does not."""
    return abs(given - found) > max(SHARE * max(given, found), FEW_PIXELS)


def _is_elsewhere(bounds: np.ndarray, box: np.ndarray) -> bool:
    if np.abs(bounds - box).max() <= CLOSE:
        return False
    low, high = np.maximum(bounds[:2], box[:2]), np.minimum(bounds[2:], box[2:])
    shared = float((high - low).clip(0).prod())
    both = float((bounds[2:] - bounds[:2]).prod() + (box[2:] - box[:2]).prod())
    return shared < LEAST_IOU * (both - shared)
