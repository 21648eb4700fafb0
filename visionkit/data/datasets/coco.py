"""Images with a COCO annotation file, whole or cut into its objects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import Count, InputPath, NonNegative
from visionkit.data.checks.findings import Finding, FindingCounts, Problems, Progress
from visionkit.data.checks.kinds import FINDING_KINDS, Action, policies
from visionkit.data.coco.annotations import Annotations
from visionkit.data.coco.attributes import read_identifiers
from visionkit.data.coco.ground_truth import GroundTruth, ground_truth
from visionkit.data.coco.image_classes import as_class_id
from visionkit.data.coco.index import CocoIndex, open_index
from visionkit.data.coco.selection import warn
from visionkit.data.datasets.label_maps import check_maps
from visionkit.data.files import Links
from visionkit.data.image_io import Exif, ValueRange, check_size, read_image, read_label_map
from visionkit.data.masks import Segmentation, paint
from visionkit.data.sample import Sample
from visionkit.errors import DataError, check_names, printable
from visionkit.types import IGNORE, Classes

log = logging.getLogger("visionkit")


class Coco(Annotations):
    """The images of a directory with the labels of a COCO JSON file.

    The whole file is checked at construction; `DataError` lists all errors. Boxes without area or
    outside their image are dropped and counted in `dropped`; a missing area is computed, a missing
    iscrowd is 0; where some objects have a segmentation, those without get an empty mask, which
    means that it is unknown. Samples have xyxy boxes clipped to the image. `on_fault` changes
    this; evaluation always scores against the file's own ground truth.

    Beyond COCO, an image record may have `class_id` (an index into the list `image_classes` at
    the top of the file, or a list of them: `visionkit.data.coco.image_classes`), `identity` (a
    number) and `semantic` (the file name of a semantic map with indices into the list
    `semantic_classes`, 255 = ignore, relative to the annotation file).
    As in LVIS, `neg_category_ids` and `not_exhaustive_category_ids` list the classes it is labeled
    for. An annotation may have `attributes`; see `visionkit.data.coco.attributes`.

    images, annotations: the image directory and the JSON file.
    classes: names in label order, the same as the file's, which may have other ids; by default
        those of the file in the order of their ids.
    other_classes: "ignore" drops the objects of classes that are not in `classes`.
    ignore_categories: categories of regions to ignore: their objects are crowd regions of no class,
        neither objects nor background in losses and metrics.
    masks: False ignores the segmentations, True requires them; None uses them if there are any.
    semantic: "paint" makes semantic maps from the masks; "files" reads those named in the file.
    attributes: names of those to read; by default all, [] for none.
    exif: whether boxes belong to the upright image ("apply") or to the pixels as stored.
    links: "any" allows file names to be links that lead out of the directory.
    on_fault: the policy for records of a kind of fault, for example {"bad-mask": "drop"};
        docs/guide/data-checks.md lists the kinds and their defaults.
    """

    value_range: ValueRange | None = None  # set by the source

    def __init__(
        self,
        images: InputPath,
        annotations: InputPath,
        *,
        classes: list[str] | None = None,
        other_classes: Literal["error", "ignore"] = "error",
        ignore_categories: list[str] | None = None,
        masks: bool | None = None,
        semantic: Literal["files", "paint"] = "files",
        attributes: list[str] | None = None,
        exif: Exif = "apply",
        links: Links = "inside",
        on_fault: dict[str, Literal["keep", "fix", "drop", "error"]] | None = None,
    ):
        self._use(
            open_index(annotations),
            f"annotation file {annotations}",
            images,
            classes=classes,
            other_classes=other_classes,
            ignore_categories=ignore_categories,
            masks=masks,
            semantic=semantic,
            attributes=attributes,
            exif=exif,
            links=links,
            on_fault=on_fault,
        )

    def _use(
        self,
        index: CocoIndex,
        source: str,
        images: str | Path,
        *,
        classes: list[str] | None,
        other_classes: str,
        ignore_categories: list[str] | None,
        masks: bool | None,
        semantic: str,
        attributes: list[str] | None,
        exif: Exif,
        links: Links,
        on_fault: dict[str, Action] | None,
    ) -> None:
        """Check the records of the index, which `source` names in errors, and use them."""
        check_names(classes=classes, attributes=attributes)
        self.images, self.annotations, self.exif = Path(images), index.path, exif
        self.other_classes, actions = other_classes, policies(on_fault)
        problems = Problems(source, index.path)
        super().__init__(
            index,
            problems,
            images=self.images,
            links=links,
            classes=classes,
            other_classes=other_classes,
            ignore_categories=ignore_categories or (),
            masks=semantic == "paint" or masks,
            attributes=attributes,
            actions=actions,
        )
        problems.raise_any()

        self.image_ids: list[int] = self.index.images.ids.tolist()
        self.dropped = self.selected.dropped
        warn(str(index.path), self.selected)
        self._area = self.areas()
        self._paints = semantic == "paint"
        self._describe()

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) h, w of all images."""
        return self.index.images.sizes

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """Findings that take longer: about segmentations and semantic maps."""
        yield from super().examine(progress)
        if not self._paints and "semantic" in self.keys:
            yield from check_maps(self.image_ids, self.semantic_truth, progress)

    def _describe(self) -> None:
        """Set `keys`, and the class list of each."""
        images = self.index.images
        keys = ["boxes", "labels", "iscrowd", "area"] if self.index.categories else []
        names = self.index.names
        if self.has_masks:
            keys.append("masks")
        keys += [key for key in ("class_id", "attributes") if key in self.classes]
        if self._paints or len(images.semantic.data):
            keys.append("semantic")
            painted = ["background", *self.classes["labels"].names]
            self.classes["semantic"] = Classes.numbered(
                painted if self._paints else names["semantic_classes"]
            )
        if "class_id" in self.classes:
            self.multilabel = self.image_classes is not None
        if (images.identities >= 0).any():
            keys.append("identity")
            self.identities = images.identities
        self.keys: tuple[str, ...] = tuple(keys)

    def image_path(self, index: int) -> Path:
        return self.images / self.file_names[index]

    def map_path(self, index: int) -> Path | None:
        """The semantic map file of that image; None where it has none."""
        name = "" if self._paints else self.semantic_names[index]
        return self.annotations.parent / name if name else None

    def map_fault(self, values: np.ndarray) -> str | None:
        """Why a semantic map file with these values (V,) cannot be used; follows its name."""
        count = len(self.classes["semantic"].names)
        if (highest := int(values[values != IGNORE].max(initial=0))) < count:
            return None
        return f"has the value {highest}, but 'semantic_classes' has {count} names (255 = ignore)"

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path, images = self.image_path(index), self.index.images
        size = tuple(images.sizes[index].tolist())
        image = read_image(path, exif=self.exif, value_range=self.value_range)
        sample = Sample(image, self.image_ids[index], size)
        check_size(path, sample.size, size, self.annotations, self.exif)

        if self.image_classes is not None:
            sample.class_id = as_class_id(self.image_classes[index])
        elif images.class_ids[index] >= 0:
            sample.class_id = int(images.class_ids[index])
        if images.identities[index] >= 0:
            sample.identity = int(images.identities[index])
        sample.semantic = self._semantic(index)
        if "boxes" in self.keys:
            self._add_objects(sample, index)
        return sample

    def _add_objects(self, sample: Sample, index: int) -> None:
        span, images = self._span(index), self.index.images
        rows, objects = self.selected.rows[span], self.index.objects
        sample.boxes = objects.boxes(rows, images).astype(np.float32)
        sample.labels = self.selected.labels[span].astype(np.int64)
        sample.iscrowd, sample.area = self.selected.iscrowd[span], self._area[rows].astype("f4")
        if (masks := self.masks) is not None:
            sample.segmentations = [masks[row] for row in rows]
        if self.attributes is not None:
            sample.attributes = self.attributes.values[rows]
        labeled = None if self.labeled_ids is None else self.labeled_ids[index]
        if labeled is not None:
            sample.labeled = np.isin(self.classes["labels"].ids, list(labeled))

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All objects without crowd regions: the index of their image, boxes (A, 4) xyxy, labels,
        and their rows in the list of annotations."""
        single = ~self.selected.iscrowd
        image = np.repeat(np.arange(len(self)), np.diff(self.selected.starts))[single]
        rows = self.selected.rows[single].astype(np.int64)
        boxes = self.index.objects.boxes(rows, self.index.images)
        return image, boxes.astype(np.float32), self.selected.labels[single].astype(np.int64), rows

    def occurrences(self) -> dict[str, tuple[np.ndarray, ...]]:
        """By class_key, the images (M,) and the classes (M,) of what `class_counts` counts."""
        image, _, labels, rows = self.objects()
        found: dict[str, tuple[np.ndarray, ...]] = {"labels": (image, labels)}
        numbers = self.index.images.class_ids
        if self.image_classes is not None:
            found["class_id"] = np.nonzero(self.image_classes == 1)
        elif "class_id" in self.classes:
            found["class_id"] = np.flatnonzero(numbers >= 0), numbers[numbers >= 0]
        if self.attributes is not None:
            object_, column = np.nonzero(self.attributes.values[rows] == 1)
            found["attributes"] = image[object_], column
        return found

    def row_of(self, found: Finding) -> int | None:
        """The image that a finding is about; None if it is about another thing or none."""
        if found.place is None:
            return None
        number = found.place.index
        row = number if found.place.list == "images" else int(self.index.objects.image[number])
        return row if row >= 0 else None

    def semantic_truth(self, image_id: int) -> Tensor | None:
        """The semantic map (h, w) uint8 of that image as annotated; None where it has none."""
        return self._semantic(self.image_ids.index(image_id))

    def _span(self, index: int) -> slice:
        """The objects of an image among all used ones."""
        return slice(*self.selected.starts[index : index + 2].tolist())

    def _semantic(self, index: int) -> Tensor | None:
        """The map of an image; DataError if it has another size or unknown classes."""
        images, span = self.index.images, self._span(index)
        size = tuple(images.sizes[index].tolist())
        if self._paints and (masks := self.masks) is not None:
            chosen, labels = self.selected, self.selected.labels[span]
            dropped = slice(*chosen.skipped_starts[index : index + 2].tolist())
            own, of_class = chosen.rows[span], labels >= 0
            rows = np.concatenate([own[of_class], own[~of_class], chosen.skipped[dropped]])
            boxes = self.index.objects.boxes(rows, images).astype(np.float32)
            outlines = [masks[row] for row in rows]
            return paint_classes(outlines, labels[of_class], boxes, size)
        path = self.map_path(index)
        if path is None:
            return None
        values = read_label_map(path)
        if tuple(values.shape) != size:
            found = f"is {values.shape[1]}x{values.shape[0]}, but its image {size[1]}x{size[0]}"
            raise DataError(f"semantic map {printable(path)} {found}: make them one size")
        highest = values.where(values != IGNORE, 0).max().reshape(1)
        if clause := self.map_fault(highest.numpy()):
            raise DataError(f"semantic map {printable(path)} {clause}")
        return values

    def ground_truth(self) -> GroundTruth:
        """The objects to score detections against, with the exact numbers of the file.

        All annotations of `classes["labels"]`, also those that training drops, without malformed
        segmentations; missing and negative areas are computed.
        """
        masks, classes = self.index.objects.masks, self.classes["labels"]
        if len(malformed := self.selected.rows_with("bad-mask")):
            masks = masks.without(malformed)
        return ground_truth(self.index, classes, masks, self._area, self.ignored_ids)


class Crops:
    """The annotated objects without crowd regions, each cut out of its image with a margin.

    The class of a crop is its object's category. Its `image_id` is the object's place in the list
    of annotations, counted from 0. Raises `DataError` for errors of the file, and if no object is
    large enough.

    classes, other_classes, ignore_categories, exif, links, on_fault: as in `Coco`.
    margin: how far a box grows at each side, in its widths and heights; it ends at the border of
        the image.
    min_size: objects whose box has a side below this, in pixels, are dropped and counted in
        `dropped`.
    identity: the key of an annotation, for example "track_id", whose integer or string identifies
        the object in all images. Objects without it have no identity. By default the identity is
        the category.
    """

    keys = ("class_id", "identity")

    def __init__(
        self,
        images: InputPath,
        annotations: InputPath,
        *,
        classes: list[str] | None = None,
        other_classes: Literal["error", "ignore"] = "error",
        ignore_categories: list[str] | None = None,
        margin: NonNegative = 0.1,
        min_size: Count = 16,
        identity: str | None = None,
        exif: Exif = "apply",
        links: Links = "inside",
        on_fault: dict[str, Literal["keep", "fix", "drop", "error"]] | None = None,
    ):
        self._coco = Coco(
            images,
            annotations,
            classes=classes,
            other_classes=other_classes,
            ignore_categories=ignore_categories,
            masks=False,
            exif=exif,
            links=links,
            on_fault=on_fault,
        )
        self.exif, self.other_classes = exif, other_classes
        image_index, boxes, labels, rows = self._coco.objects()
        large = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(1)
        if not large.any():
            raise DataError(
                f"annotation file {annotations}: none of {len(large)} objects has a box of at "
                f"least {min_size} pixels in width and height; lower min_size"
            )
        self._images, self._labels = image_index[large], labels[large]
        self._boxes = _grown(boxes[large], margin)
        self.classes = {"class_id": self._coco.classes["labels"]}
        self.image_ids: list[int] = rows[large].tolist()
        self.identities = self._labels  # (N,) int64, -1 where it is not known
        if identity is not None:
            problems = Problems(f"annotation file {annotations}", annotations)
            objects = self._coco.index.objects
            self.identities = read_identifiers(objects, identity, self.image_ids, problems)
        self._small = small = int((~large).sum())
        self.dropped = {**self._coco.dropped, FINDING_KINDS["small-object"].title: small}
        if small:
            log.warning("%s: %d objects smaller than min_size dropped", annotations, small)

    @property
    def value_range(self) -> ValueRange | None:
        """Set by the source."""
        return self._coco.value_range

    @value_range.setter
    def value_range(self, value: ValueRange | None) -> None:
        self._coco.value_range = value

    @property
    def fingerprint(self) -> str:
        """A hash of the annotation file."""
        return self._coco.fingerprint

    def findings(self) -> Iterator[Finding]:
        """As of the annotation file."""
        return self._coco.findings()

    def counts(self) -> FindingCounts:
        """As of the annotation file, and the objects that are too small."""
        counts = self._coco.counts()
        small = {"small-object": self._small} if self._small else {}
        return {**counts, "dropped": counts["dropped"] | small}

    def class_counts(self) -> dict[str, np.ndarray]:
        """How many images there are of each class."""
        size = len(self.classes["class_id"].names)
        return {"class_id": np.bincount(self._labels, minlength=size)}

    def occurrences(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By class_key, the images and their classes."""
        return {"class_id": (np.arange(len(self)), self._labels)}

    def image_path(self, index: int) -> Path:
        """The file of the whole image."""
        return self._coco.image_path(int(self._images[index]))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        whole = self._coco[int(self._images[index])].image
        (left, top), limit = self._boxes[index, :2].clip(0), [whole.shape[2], whole.shape[1]]
        right, bottom = np.minimum(self._boxes[index, 2:], limit)
        identity = int(self.identities[index])
        return Sample(
            whole[:, top:bottom, left:right],
            self.image_ids[index],
            orig_size=(int(bottom - top), int(right - left)),
            class_id=int(self._labels[index]),
            identity=identity if identity >= 0 else None,
        )


def _grown(boxes: np.ndarray, margin: float) -> np.ndarray:
    """Larger boxes (N, 4) in whole pixels, rounded outwards; they may leave the image."""
    extra = margin * (boxes[:, 2:] - boxes[:, :2])
    low, high = np.floor(boxes[:, :2] - extra), np.ceil(boxes[:, 2:] + extra)
    return np.concatenate([low, high], 1).astype(np.int64)


def paint_classes(
    segmentations: Sequence[Segmentation],
    labels: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
) -> Tensor:
    """(h, w) uint8: label + 1 where an object is, 0 elsewhere; smaller objects on top.

    `segmentations` and `boxes` (N, 4), xyxy in pixels, are those of the objects with `labels` (L,),
    followed by those of N - L dropped objects, which become 255 (ignore). Boxes of objects without
    a known outline become 255 too, where no other object covers them.
    """
    classes = np.zeros(size, np.uint8)
    masks = paint(segmentations, size)
    known = np.array([s.known for s in segmentations], bool)
    classes[masks[len(labels) :].any(0)] = IGNORE
    masks = masks[: len(labels)]
    for box in boxes[~known]:
        x1, y1 = np.floor(box[:2]).astype(int)
        x2, y2 = np.ceil(box[2:]).astype(int)
        classes[y1:y2, x1:x2] = IGNORE
    areas = masks.sum((1, 2))
    for i in np.argsort(-areas, kind="stable"):
        classes[masks[i]] = labels[i] + 1
    return torch.from_numpy(classes)
