"""What a `CocoEvaluator` scores against: a dataset, a COCO file, or the targets of a loop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.ground_truth import ground_truth_of
from visionkit.data.coco.index import index_of, open_index
from visionkit.data.coco.records import read_categories
from visionkit.errors import ArgumentError, DataError, plural, unknown
from visionkit.metrics.coco.arrays import LabelKind, objects_of
from visionkit.metrics.coco.detections import Detections, concatenate
from visionkit.metrics.coco.ground_truth import IouType, ScoredTruth, log_once, read_truth, scored

if TYPE_CHECKING:
    from visionkit.types import Classes

log = logging.getLogger("visionkit")
BACKGROUND = "__background__"  # the first class of torchvision's lists; never an object
NOT_A_CATEGORY = -1  # its id
NOTHING = concatenate([], "bbox")


class ImageResult(NamedTuple):
    """What an evaluator keeps of an image."""

    image_id: int
    detections: Detections
    objects: list[dict[str, Any]] | None = None  # annotated ones, where the target gives them
    numbered: bool = False  # whether it has no id of its own


class Truth(Protocol):
    """Ground truth of a `CocoEvaluator`."""

    classes: Classes  # in label order

    def take(self, target: Any, images: Sequence[ImageResult]) -> ImageResult:
        """What its target says of the image after `images`; DataError if that is not possible."""

    def merged(self, states: Sequence[Sequence[ImageResult]]) -> list[ImageResult]:
        """What all processes kept, in the order of ids."""

    def scored(self, iou_type: IouType, images: Sequence[ImageResult]) -> ScoredTruth:
        """The truth to score these images with."""


def truth_of(
    source: Any, types: Sequence[IouType], classes: Sequence[str] | None, labels: LabelKind
) -> Truth:
    """What the first argument of `CocoEvaluator` means."""
    if labels not in ("index", "id"):
        raise ArgumentError(f"labels: got {labels!r}; expected 'index' or 'id'")
    if isinstance(source, (str, Path, Mapping)):
        return FileTruth(source, types, classes)
    if hasattr(source, "classes"):
        if classes is not None:
            raise ArgumentError("classes: does not apply to a dataset, which has its own list")
        return DatasetTruth(source)
    if classes is not None:
        raise ArgumentError("classes: does not apply, as the first argument is the list of classes")
    return TargetTruth(source, types, labels)


class DatasetTruth:
    """The objects of a `visionkit.types.Dataset`; its loader gives each image once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.classes = dataset, dataset.classes["labels"]

    def take(self, target: Any, images: Sequence[ImageResult]) -> ImageResult:
        return ImageResult(_image_id(target), NOTHING)

    def merged(self, states: Sequence[Sequence[ImageResult]]) -> list[ImageResult]:
        return _sorted([one for state in states for one in state if len(one.detections)])

    def scored(self, iou_type: IouType, images: Sequence[ImageResult]) -> ScoredTruth:
        return scored(ground_truth_of(self.dataset), iou_type)


class FileTruth:
    """The objects of a COCO annotation file or dict: those of `classes`, or all."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        types: Sequence[IouType],
        classes: Sequence[str] | None,
    ) -> None:
        from visionkit.types import Classes

        if isinstance(source, Mapping):
            index, self.name = index_of(source, "ground truth"), "the ground truth"
        else:
            index, self.name = open_index(source), str(source)
        self.truths = {one: read_truth(index, one).rasterized() for one in types}
        names, ids = read_categories(index.categories, Problems(""))
        self.classes = Classes(tuple(names), tuple(ids))
        if classes is not None:
            id_of = {**dict(zip(names, ids, strict=True)), BACKGROUND: NOT_A_CATEGORY}
            for name in [name for name in _names(classes) if name not in id_of]:
                what = f"classes: {name!r} is not a category of {self.name}"
                raise ArgumentError(unknown(name, names, what))
            self.classes = Classes(tuple(classes), tuple(id_of[name] for name in classes))
            self.truths = {
                t: _of_categories(one, self.classes.ids) for t, one in self.truths.items()
            }
        self.known = {int(id_) for one in self.truths.values() for id_ in one.image_ids}

    def take(self, target: Any, images: Sequence[ImageResult]) -> ImageResult:
        image_id = _image_id(target)
        if image_id not in self.known:
            has = f"it has {plural(len(self.known), 'image')}"
            raise DataError(f"image_id {image_id} is not in {self.name}; {has}")
        return ImageResult(image_id, NOTHING)

    def merged(self, states: Sequence[Sequence[ImageResult]]) -> list[ImageResult]:
        return _once(states)

    def scored(self, iou_type: IouType, images: Sequence[ImageResult]) -> ScoredTruth:
        if images and (missing := len(self.known) - len(images)):
            log_once(
                f"{missing} of {plural(len(self.known), 'image')} of {self.name} got no "
                "predictions: their objects count as missed"
            )
        return self.truths[iou_type]


class TargetTruth:
    """The objects that the targets of `update` have, of a list of class names."""

    def __init__(self, classes: Any, types: Sequence[IouType], labels: LabelKind) -> None:
        from visionkit.types import Classes

        self.masks, self.labels = "segm" in types, labels
        if isinstance(classes, Classes):
            self.classes = classes
        else:
            names = _names(classes)
            ids = [NOT_A_CATEGORY if name == BACKGROUND else i for i, name in enumerate(names)]
            self.classes = Classes(tuple(names), tuple(ids))

    def take(self, target: Any, images: Sequence[ImageResult]) -> ImageResult:
        if not isinstance(target, Mapping):
            found = type(target).__name__
            raise DataError(f"a target is a {found}; expected a dict with boxes and labels")
        size, original = target.get("size"), target.get("orig_size")
        if size is not None and original is not None and tuple(size) != tuple(original):
            raise DataError(
                f"a target was resized from {tuple(original)} to {tuple(size)} (h, w), but metrics "
                "are of the image as annotated: give the target as it was before the transforms"
            )
        numbered = "image_id" not in target
        if images and images[0].numbered != numbered:
            raise DataError("some targets have an image_id and some have not; expected all or none")
        image_id = len(images) if numbered else _image_id(target)
        where = f"image {image_id}"
        objects = objects_of(target, self.classes, self.labels, where, masks=self.masks)
        return ImageResult(image_id, NOTHING, objects, numbered)

    def merged(self, states: Sequence[Sequence[ImageResult]]) -> list[ImageResult]:
        # In turns, as distributed samplers deal them: of equal scores the first counts first.
        turns = [one for row in zip_longest(*states) for one in row]
        images = [one for one in turns if one is not None]
        if not any(one.numbered for one in images):
            return _once(states)
        return [_renumbered(one, number) for number, one in enumerate(images)]

    def scored(self, iou_type: IouType, images: Sequence[ImageResult]) -> ScoredTruth:
        pairs = zip(self.classes.names, self.classes.ids, strict=True)
        objects = [
            {**one, "image_id": image.image_id} for image in images for one in image.objects or ()
        ]
        content = {
            "images": [{"id": one.image_id, **_size(one, iou_type)} for one in images],
            "categories": [{"id": i, "name": n} for n, i in pairs if i != NOT_A_CATEGORY],
            "annotations": [{"id": number, **one} for number, one in enumerate(objects, start=1)],
        }
        return read_truth(content, iou_type, "targets")


def _names(classes: Any) -> list[str]:
    listed = isinstance(classes, Sequence) and not isinstance(classes, (str, bytes))
    if not listed or not classes or not all(isinstance(name, str) for name in classes):
        expected = "expected a dataset, a COCO file or dict, or a list of class names"
        raise ArgumentError(f"CocoEvaluator: got {classes!r:.60}; {expected}")
    return list(classes)


def _image_id(target: Any) -> int:
    """Of a target, which may be the id itself."""
    value = target
    if isinstance(target, Mapping):
        if "image_id" not in target:
            raise DataError("a target lacks 'image_id', which says what image of the truth it is")
        value = target["image_id"]
    number = value
    if hasattr(value, "item"):  # a tensor or an array of one number
        with suppress(RuntimeError, ValueError):  # of several numbers
            number = value.item()
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f"image_id: got {value!r:.60}; expected an integer")
    return number


def _size(image: ImageResult, iou_type: IouType) -> dict[str, int]:
    """Height and width, as masks have them, if any; where masks are scored and an image has none,
    any will do."""
    masks = [one["segmentation"] for one in image.objects or () if "segmentation" in one]
    sizes = [mask["size"] for mask in [*masks, *(image.detections.masks or ())]]
    sizes += [(1, 1)] if iou_type == "segm" else []
    return dict(zip(("height", "width"), sizes[0], strict=True)) if sizes else {}


def _sorted(images: Iterable[ImageResult]) -> list[ImageResult]:
    return sorted(images, key=lambda one: one.image_id)


def _once(states: Sequence[Sequence[ImageResult]]) -> list[ImageResult]:
    """Each image once: distributed samplers give some to several ranks, so that all have equally
    many."""
    found: dict[int, ImageResult] = {}
    for state in states:
        for one in state:
            found.setdefault(one.image_id, one)
    return _sorted(found.values())


def _renumbered(image: ImageResult, number: int) -> ImageResult:
    ids = np.full(len(image.detections), number, np.int64)
    return image._replace(image_id=number, detections=replace(image.detections, image_ids=ids))


def _of_categories(truth: ScoredTruth, ids: Sequence[int]) -> ScoredTruth:
    """The objects and the categories of these ids alone."""
    kept = np.isin(truth.category_ids, ids)
    rows = np.flatnonzero(kept[truth.category])
    return replace(
        truth,
        category_ids=truth.category_ids[kept],
        names=tuple(name for name, one in zip(truth.names, kept, strict=True) if one),
        image=truth.image[rows],
        category=(kept.cumsum() - 1)[truth.category[rows]],
        boxes=truth.boxes[rows],
        areas=truth.areas[rows],
        iscrowd=truth.iscrowd[rows],
        masks=None if truth.masks is None else [truth.masks[row] for row in rows.tolist()],
    )
