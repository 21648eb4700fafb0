"""Pictures with a COCO annotation file: boxes, masks, crowds, and labels of whole pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from visionkit.data.coco_attributes import AttributeTable, read_attributes
from visionkit.data.coco_cache import open_index
from visionkit.data.coco_columns import rows_of
from visionkit.data.coco_federated import is_federated, present_in, read_labelled
from visionkit.data.coco_truth import coco_truth, filled_areas
from visionkit.data.files import Links, check_present
from visionkit.data.identifiers import read_identifiers
from visionkit.data.images import Load, check_size, load_image
from visionkit.data.problems import Problems, check_classes
from visionkit.data.sample import Sample
from visionkit.data.segmentation_table import SegmentationTable
from visionkit.data.semantic_maps import load_classes, paint_classes
from visionkit.types import Classes, InputPath

log = logging.getLogger("visionkit")


class Coco:
    """The pictures of a folder and what a COCO JSON file says about them.

    Checked as a whole at construction; `DataError` lists all that is wrong. Boxes without extent
    or outside their picture are left out and counted in `dropped`; a missing area is computed, a
    missing iscrowd is 0; objects without a segmentation among others that have one get an empty
    mask, which says that none is known. Samples hold xyxy boxes clipped to the picture.

    Beyond COCO, an image record may have `class_id` (an index into the list `image_classes` at
    the top of the file), `identity` (a number) and `semantic` (the name of a map of class numbers
    into the list `semantic_classes`, 255 = ignore, relative to the annotation file). As in LVIS,
    `neg_category_ids` and `not_exhaustive_category_ids` say which classes are labelled in it. An
    annotation may have `attributes`; see `coco_attributes`.

    classes: names in label order, the same as the file's, which may have other ids; by default
        those of the file in the order of their ids.
    other_classes: "ignore" leaves out the objects of classes that are not in `classes`.
    masks: False leaves the segmentations unread, True demands them; None takes what is there.
    semantic: "paint" makes the class maps from the masks; "files" takes those that are named.
    attributes: names of those to read; by default all that there are, [] for none.
    exif: whether boxes belong to the upright picture ("apply") or to the pixels as stored.
    links: "any" allows file names to be links that lead out of the folder, which itself may be one.
    """

    def __init__(
        self,
        images: InputPath,
        annotations: InputPath,
        *,
        classes: list[str] | None = None,
        other_classes: Literal["error", "ignore"] = "error",
        masks: bool | None = None,
        semantic: Literal["files", "paint"] = "files",
        attributes: list[str] | None = None,
        exif: Literal["apply", "ignore"] = "apply",
        links: Links = "inside",
    ):
        self.images, self.annotations, self.exif = Path(images), Path(annotations), exif
        self.other_classes = other_classes
        self._index = index = open_index(annotations)
        problems = Problems(f"annotation file {annotations}")
        problems.extend(index.faults)
        self._has_masks = self._choose_masks(semantic == "paint" or masks, problems)
        described = self._read_attributes(attributes, problems)
        self._labelled_ids = self._read_labelled(problems)
        problems.raise_any()
        check_present(self.images, index.images.names.texts(), links)
        if len(index.images.semantic.data):
            maps = filter(None, index.images.semantic.texts())
            check_present(self.annotations.parent, maps, links)

        self.image_ids: list[int] = index.images.ids.tolist()
        self.vocabularies = {
            "labels": _pick(index.classes, classes, other_classes, problems.source)
        }
        self._keep_objects()
        self._attributes = None if described is None else described.values[self._rows]
        self._paints = semantic == "paint"
        self._describe(index.names, described)

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) h, w of all pictures."""
        return self._index.images.sizes

    @property
    def file_names(self) -> list[str]:
        """Of all pictures, relative to their folder."""
        return self._index.images.names.texts()

    @property
    def _masks(self) -> SegmentationTable | None:
        return self._index.objects.masks if self._has_masks else None

    def _choose_masks(self, wanted: bool | None, problems: Problems) -> bool:
        """Whether there are segmentations and they are wanted."""
        if wanted and not self._index.has_masks:
            problems.add("annotations", "none has a 'segmentation', but masks are asked for")
        chosen = wanted is not False and self._index.has_masks
        if chosen:
            problems.extend(self._index.mask_faults)
        return chosen

    def _read_attributes(
        self, wanted: list[str] | None, problems: Problems
    ) -> AttributeTable | None:
        index, listed = self._index, self._index.names["attribute_classes"]
        records = index.objects.extra_records() if "attributes" in index.object_keys else []
        return read_attributes(records, problems, wanted=wanted, listed=listed)

    def _read_labelled(self, problems: Problems) -> list[frozenset[int] | None] | None:
        """The ids of the classes labelled in each picture, where the file says so."""
        index = self._index
        if not is_federated(index.image_keys):
            return None
        present = present_in(index.objects.image, index.objects.category, len(index.images.ids))
        return read_labelled(index.images.extra_records(), present, index.classes.ids, problems)

    def _keep_objects(self) -> None:
        """Sort the objects by picture, without the unusable ones."""
        objects, known = self._index.objects, np.array(self.vocabularies["labels"].ids)
        labels = rows_of(objects.category, known)
        x1, y1, x2, y2 = objects.boxes(slice(None), self._index.images).T
        unlisted = labels < 0
        degenerate = ~unlisted & (np.minimum(*objects.bbox[:, 2:].T) <= 0)
        outside = ~unlisted & ~degenerate & ((x2 <= x1) | (y2 <= y1))
        order = objects.rows_by_image()
        order = order[~(unlisted | degenerate | outside)[order]]

        self._rows = order.astype(np.int32)  # where each object stands in the file
        self._starts = np.searchsorted(objects.image[order], np.arange(len(self) + 1))
        self._labels = labels[order].astype(np.int32)
        self._area = filled_areas(objects, self._index.images, masks=self._has_masks)
        self.dropped = {
            "boxes without extent": int(degenerate.sum()),
            "boxes outside their picture": int(outside.sum()),
            "objects of other classes": int(unlisted.sum()),
        }
        self.num_objects = int((objects.iscrowd[order] != 1).sum())
        self._warn()

    def _warn(self) -> None:
        """Log once what was left out or looks wrong."""
        objects, sizes = self._index.objects, self._index.images.sizes
        notes = [f"{count} {what} left out" for what, count in self.dropped.items() if count]
        if self._has_masks:
            bare = self._masks.is_empty()[self._rows].sum()
            if bare:
                notes.append(f"{bare} objects without a segmentation get an empty mask")
        x2, y2 = (objects.bbox[:, axis] + objects.bbox[:, 2 + axis] for axis in (0, 1))
        height, width = 1.05 * sizes.take(objects.image, 0).T
        overhang = ((x2 > width) | (y2 > height))[self._rows].sum()
        if overhang > 0.05 * len(self._rows):
            notes.append(
                f"{overhang} boxes reach far beyond their picture; "
                "are they really [x, y, width, height]?"
            )
        if notes:
            log.warning("%s: %s", self.annotations, "; ".join(notes))

    def _describe(self, names: dict[str, list[str]], described: AttributeTable | None) -> None:
        images, keys = self._index.images, ["boxes", "labels", "iscrowd", "area"]
        if self._has_masks:
            keys.append("masks")
        if (images.class_ids >= 0).any():
            keys.append("class_id")
            self.vocabularies["class_id"] = _numbered(names["image_classes"])
        if described is not None:
            keys.append("attributes")
            self.vocabularies["attributes"] = described.classes
        if self._paints or len(images.semantic.data):
            keys.append("semantic")
            painted = ["background", *self.vocabularies["labels"].names]
            self.vocabularies["semantic"] = _numbered(
                painted if self._paints else names["semantic_classes"]
            )
        if (images.identities >= 0).any():
            keys.append("identity")
            self.identities = images.identities
        self.keys: tuple[str, ...] = tuple(keys)

    def image_path(self, index: int) -> Path:
        return self.images / self._index.images.names.text(index)

    def map_path(self, index: int) -> Path | None:
        """The file of that picture's class map; None where it has none."""
        name = "" if self._paints else self._index.images.semantic.text(index)
        return self.annotations.parent / name if name else None

    def __len__(self) -> int:
        return len(self._index.images.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, load: Load = load_image) -> Sample:
        """One picture, read by `load`, and its labels."""
        index = range(len(self))[index]
        path, images = self.image_path(index), self._index.images
        size = tuple(images.sizes[index].tolist())
        sample = Sample(load(path, exif=self.exif), self.image_ids[index], size)
        check_size(path, sample.size, size, self.annotations, self.exif)

        span = self._span(index)
        rows, objects = self._rows[span], self._index.objects
        sample.boxes = objects.boxes(rows, images).astype(np.float32)
        sample.labels = self._labels[span].astype(np.int64)
        sample.iscrowd, sample.area = objects.iscrowd[rows] == 1, self._area[rows].astype("f4")
        if self._has_masks:
            sample.segmentations = [self._masks[row] for row in rows]
        if self._attributes is not None:
            sample.attributes = self._attributes[span]
        if self._labelled_ids is not None and self._labelled_ids[index] is not None:
            ids = self.vocabularies["labels"].ids
            sample.labelled = np.isin(ids, list(self._labelled_ids[index]))
        if images.class_ids[index] >= 0:
            sample.class_id = int(images.class_ids[index])
        if images.identities[index] >= 0:
            sample.identity = int(images.identities[index])
        sample.semantic = self._semantic(index)
        return sample

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All objects that are not crowd regions: the index of their picture, boxes (A, 4) xyxy,
        labels, and their rows in the list of annotations."""
        single = self._index.objects.iscrowd[self._rows] != 1
        image = np.repeat(np.arange(len(self)), np.diff(self._starts))[single]
        rows = self._rows[single].astype(np.int64)
        boxes = self._index.objects.boxes(rows, self._index.images)
        return image, boxes.astype(np.float32), self._labels[single].astype(np.int64), rows

    def identifiers(self, key: str, rows: np.ndarray) -> np.ndarray:
        """(N,) numbers, alike for alike values of that key in those rows; see `identifiers`."""
        problems = Problems(f"annotation file {self.annotations}")
        return read_identifiers(self._index.objects, key, rows.tolist(), problems)

    def semantic_truth(self, image_id: int) -> Tensor | None:
        """The class map (h, w) uint8 of that picture as annotated; None where it has none."""
        return self._semantic(self.image_ids.index(image_id))

    def _span(self, index: int) -> slice:
        """Where the objects of a picture stand among all."""
        return slice(*self._starts[index : index + 2].tolist())

    def _semantic(self, index: int) -> Tensor | None:
        images, span = self._index.images, self._span(index)
        size = tuple(images.sizes[index].tolist())
        if self._paints:
            rows = self._rows[span]
            boxes = self._index.objects.boxes(rows, images).astype(np.float32)
            masks = [self._masks[row] for row in rows]
            return paint_classes(masks, self._labels[span], boxes, size)
        path = self.map_path(index)
        if path is None:
            return None
        return load_classes(path, size, len(self.vocabularies["semantic"].names))

    def coco_truth(self) -> dict[str, Any]:
        """The ground truth for a COCO evaluator, with the exact numbers of the file.

        All annotations of `vocabularies["labels"]`, also those that training leaves out; only a
        missing id, area or iscrowd is added.
        """
        return coco_truth(self._index, self.vocabularies["labels"].ids, self._area)


def _numbered(names: list[str]) -> Classes:
    return Classes(tuple(names), tuple(range(len(names))))


def _pick(found: Classes, wanted: list[str] | None, others: str, source: str) -> Classes:
    if wanted is None:
        return found
    check_classes(source, found.names, wanted, missing_ok=False, unknown_ok=others == "ignore")
    id_of = dict(zip(found.names, found.ids, strict=True))
    return Classes(tuple(wanted), tuple(id_of[name] for name in wanted))
