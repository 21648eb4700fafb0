"""Pictures with a COCO annotation file: boxes, masks, crowds, and labels of whole pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from visionkit.data import coco_index
from visionkit.data.coco_attributes import AttributeTable, read_attributes
from visionkit.data.coco_federated import is_federated, present_in, read_labelled
from visionkit.data.files import check_present
from visionkit.data.images import load_image, load_label_map
from visionkit.data.problems import Problems, check_classes
from visionkit.data.sample import Sample
from visionkit.data.segmentation_table import SegmentationTable
from visionkit.data.semantic_maps import paint_classes
from visionkit.errors import DataError
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
    ):
        self.images, self.annotations, self.exif = Path(images), Path(annotations), exif
        self.other_classes = other_classes
        masks = True if semantic == "paint" else masks
        data = coco_index.read_coco(annotations)
        problems = Problems(f"annotation file {annotations}")
        categories = coco_index.read_categories(data["categories"], problems)
        lists = ("image_classes", "semantic_classes", "attribute_classes")
        names = {key: _names(data, key, problems) for key in lists}
        self._images = coco_index.read_images(data["images"], len(names["image_classes"]), problems)
        objects = coco_index.read_objects(data["annotations"], self._images, categories, problems)
        table = coco_index.read_segmentations(
            data["annotations"], objects, self._images, masks, problems
        )
        described = read_attributes(
            data["annotations"], problems, wanted=attributes, listed=names["attribute_classes"]
        )
        self._labelled_ids = None
        if is_federated(data["images"]):
            present = present_in(objects.image, objects.category, len(data["images"]))
            self._labelled_ids = read_labelled(data["images"], present, categories.ids, problems)
        problems.raise_any()
        check_present(self.images, self._images.file_names)
        check_present(self.annotations.parent, filter(None, self._images.semantic))

        self.image_ids: list[int] = self._images.ids.tolist()
        self._index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        self.file_names: list[str] = self._images.file_names
        self.vocabularies = {"labels": _pick(categories, classes, other_classes, problems.source)}
        self._keep_objects(objects, table)
        self._attributes = None if described is None else described.values[self._rows]
        self._paints = semantic == "paint"
        self._describe(names, described)

    def _keep_objects(
        self, objects: coco_index.ObjectTable, table: SegmentationTable | None
    ) -> None:
        """Sort the objects by picture, without the unusable ones."""
        sizes = self._images.sizes[objects.image]
        corners = objects.bbox + np.pad(objects.bbox[:, :2], [(0, 0), (2, 0)])  # xywh -> xyxy
        boxes = corners.clip(0, np.tile(sizes[:, ::-1], 2))
        extent = boxes[:, 2:] - boxes[:, :2]
        label_of = {id_: label for label, id_ in enumerate(self.vocabularies["labels"].ids)}
        labels = np.array([label_of.get(c, -1) for c in objects.category.tolist()], np.int64)

        unlisted = labels < 0
        degenerate = ~unlisted & (objects.bbox[:, 2:] <= 0).any(1)
        outside = ~unlisted & ~degenerate & (extent <= 0).any(1)
        order = np.argsort(objects.image, kind="stable")
        order = order[~(unlisted | degenerate | outside)[order]]

        self._rows = order  # where each object stands in the file
        self._starts = np.searchsorted(objects.image[order], np.arange(len(self._images.ids) + 1))
        self._boxes = boxes[order].astype(np.float32)
        self._labels = labels[order]
        self._iscrowd = objects.iscrowd[order]
        self._area = coco_index.filled_areas(objects, table)[order]
        self._table = table
        self.dropped = {
            "boxes without extent": int(degenerate.sum()),
            "boxes outside their picture": int(outside.sum()),
            "objects of other classes": int(unlisted.sum()),
        }
        self.num_objects = int((~self._iscrowd).sum())
        self._warn(corners[order], sizes[order])

    def _warn(self, corners: np.ndarray, sizes: np.ndarray) -> None:
        """Log once what was left out or looks wrong."""
        notes = [f"{count} {what} left out" for what, count in self.dropped.items() if count]
        if self._table is not None:
            bare = self._table.is_empty()[self._rows].sum()
            if bare:
                notes.append(f"{bare} objects without a segmentation get an empty mask")
        overhang = (corners[:, 2:] > 1.05 * sizes[:, ::-1]).any(1).sum()
        if overhang > 0.05 * len(corners):
            notes.append(
                f"{overhang} boxes reach far beyond their picture; "
                "are they really [x, y, width, height]?"
            )
        if notes:
            log.warning("%s: %s", self.annotations, "; ".join(notes))

    def _describe(self, names: dict[str, list[str]], described: AttributeTable | None) -> None:
        images = self._images
        keys = ["boxes", "labels", "iscrowd", "area"]
        if self._table is not None:
            keys.append("masks")
        if (images.class_ids >= 0).any():
            keys.append("class_id")
            self.vocabularies["class_id"] = _numbered(names["image_classes"])
        if described is not None:
            keys.append("attributes")
            self.vocabularies["attributes"] = described.classes
        if self._paints or any(images.semantic):
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
        return self.images / self.file_names[index]

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = self.image_path(index)
        size = tuple(self._images.sizes[index].tolist())
        sample = Sample(load_image(path, exif=self.exif), self.image_ids[index], size)
        self._check_size(path, sample.size, size)

        span = self._span(index)
        sample.boxes, sample.labels = self._boxes[span], self._labels[span]
        sample.iscrowd, sample.area = self._iscrowd[span], self._area[span].astype(np.float32)
        if self._table is not None:
            sample.segmentations = [self._table[row] for row in self._rows[span]]
        if self._attributes is not None:
            sample.attributes = self._attributes[span]
        if self._labelled_ids is not None and self._labelled_ids[index] is not None:
            ids = self.vocabularies["labels"].ids
            sample.labelled = np.isin(ids, list(self._labelled_ids[index]))
        if self._images.class_ids[index] >= 0:
            sample.class_id = int(self._images.class_ids[index])
        if self._images.identities[index] >= 0:
            sample.identity = int(self._images.identities[index])
        sample.semantic = self._semantic(index)
        return sample

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All objects that are not crowd regions: the index of their picture, boxes (A, 4) xyxy,
        labels, and their rows in the list of annotations."""
        image = np.repeat(np.arange(len(self)), np.diff(self._starts))
        single = ~self._iscrowd
        columns = (image, self._boxes, self._labels, self._rows)
        return tuple(column[single] for column in columns)  # type: ignore[return-value]

    def semantic_truth(self, image_id: int) -> Tensor | None:
        """The class map (h, w) uint8 of that picture as annotated; None where it has none."""
        return self._semantic(self._index_of[image_id])

    def _span(self, index: int) -> slice:
        """Where the objects of a picture stand among all."""
        return slice(*self._starts[index : index + 2].tolist())

    def _semantic(self, index: int) -> Tensor | None:
        size = tuple(self._images.sizes[index].tolist())
        if self._paints:
            span = self._span(index)
            segmentations = [self._table[row] for row in self._rows[span]]
            return paint_classes(segmentations, self._labels[span], self._boxes[span], size)
        name = self._images.semantic[index]
        return self._load_semantic(name, size) if name else None

    def _check_size(self, path: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
        if found == expected:
            return
        other = "ignore" if self.exif == "apply" else "apply"
        hint = (
            f"swapped: the sizes in the file are wrong, or set the data set's `exif: {other}`"
            if found == expected[::-1]
            else "annotations and picture do not belong together: resize neither alone"
        )
        raise DataError(
            f"picture {path} is {found[1]}x{found[0]}, but {self.annotations} says "
            f"{expected[1]}x{expected[0]} ({hint})"
        )

    def _load_semantic(self, name: str, size: tuple[int, int]) -> Tensor:
        path = self.annotations.parent / name
        labels = load_label_map(path)
        if tuple(labels.shape) != size:
            raise DataError(f"semantic map {path} is {tuple(labels.shape)} (h, w), not {size}")
        known = len(self.vocabularies["semantic"].names)
        highest = int(labels.where(labels != 255, 0).max())
        if highest >= known:
            raise DataError(
                f"semantic map {path} has the value {highest}, but 'semantic_classes' has "
                f"{known} names (255 = ignore)"
            )
        return labels

    def coco_truth(self) -> dict[str, Any]:
        """The ground truth for a COCO evaluator, with the exact numbers of the file.

        All annotations of `vocabularies["labels"]`, also those that training leaves out; only a
        missing id, area or iscrowd is added.
        """
        data = coco_index.read_coco(self.annotations)
        ids = self.vocabularies["labels"].ids
        areas = dict(zip(self._rows.tolist(), self._area.tolist(), strict=True))
        annotations = []
        for row, record in enumerate(data["annotations"]):
            if record["category_id"] not in ids:
                continue
            defaults = {"id": row + 1, "iscrowd": 0, "area": areas.get(row, 0.0)}
            fill = {key: value for key, value in defaults.items() if record.get(key) is None}
            annotations.append({**record, **fill})
        records = {record["id"]: record for record in data["categories"]}
        return {
            "images": data["images"],
            "annotations": annotations,
            "categories": [records[id_] for id_ in ids],
        }


def _names(data: dict[str, Any], key: str, problems: Problems) -> list[str]:
    names = data.get(key, [])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    problems.add(key, "must be a list of names")
    return []


def _numbered(names: list[str]) -> Classes:
    return Classes(tuple(names), tuple(range(len(names))))


def _pick(found: Classes, wanted: list[str] | None, others: str, source: str) -> Classes:
    if wanted is None:
        return found
    check_classes(source, found.names, wanted, missing_ok=False, unknown_ok=others == "ignore")
    id_of = dict(zip(found.names, found.ids, strict=True))
    return Classes(tuple(wanted), tuple(id_of[name] for name in wanted))
