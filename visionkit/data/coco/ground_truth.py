"""The annotated objects of a dataset in columns, as evaluators score them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.data.checks.findings import Problems, short
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.records import read_categories
from visionkit.data.coco.segmentations import SegmentationTable
from visionkit.data.coco.tables import rows_of
from visionkit.errors import ConfigError, VisionkitError, check_names, unknown

if TYPE_CHECKING:
    from visionkit.types import Classes

NEGATIVE, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # as in LVIS


@dataclass(frozen=True)
class GroundTruth:
    """I images, C categories and A objects, with the exact numbers of an annotation file.

    `negatives` and `incomplete` are the lists of a file that is labeled in part (Gupta et al. 2019,
    LVIS): in an image with `negatives` only those categories and the annotated ones are labeled,
    and of the `incomplete` ones only some objects.
    """

    image_ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int64 h, w; masks are scored only where they are known
    category_ids: np.ndarray  # (C,) int64
    names: tuple[str, ...]  # (C,)
    image: np.ndarray  # (A,) rows in `image_ids`
    category: np.ndarray  # (A,) rows in `category_ids`
    boxes: np.ndarray  # (A, 4) float64 x, y, w, h
    areas: np.ndarray  # (A,) float64; below 0 or NaN: that of the mask or the box counts
    iscrowd: np.ndarray  # (A,) bool
    masks: SegmentationTable | None = None
    mask_rows: np.ndarray | None = None  # (A,) rows in `masks`
    negatives: Mapping[int, Sequence[int]] = field(default_factory=dict)  # by image id
    incomplete: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of_boxes(
        cls,
        classes: Classes,
        image_ids: Sequence[int],
        boxes: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
    ) -> GroundTruth:
        """The boxes (n, 4) xyxy in original pixels and the labels (n,) of each of those images.
        ConfigError unless they are that."""
        counts, number = [len(one) for one in boxes], len(classes.names)
        wrong = [i for i, one in enumerate(boxes) if np.shape(one)[1:] != (4,)]
        wrong += [i for i, one in enumerate(labels) if not all(0 <= n < number for n in one)]
        if wrong or [len(one) for one in labels] != counts or len(counts) != len(image_ids):
            image = f", not of image {wrong[0]}" if wrong else ""
            raise ConfigError(
                f"GroundTruth.of_boxes: expected boxes (n, 4) and n labels from 0 to {number - 1} "
                f"for each of {len(image_ids)} images{image}"
            )
        corners = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        return cls(
            image_ids=np.array(image_ids, np.int64),
            sizes=np.zeros((len(image_ids), 2), np.int64),
            category_ids=np.array(classes.ids, np.int64),
            names=classes.names,
            image=np.repeat(np.arange(len(image_ids)), counts),
            category=np.concatenate([np.zeros(0), *labels]).astype(np.int64),
            boxes=np.concatenate([corners[:, :2], sides], 1),
            areas=sides.prod(1),
            iscrowd=np.zeros(sum(counts), bool),
        )

    def __len__(self) -> int:
        return len(self.image)

    def of(
        self, *, images: Collection[int] | None = None, categories: Collection[int] | None = None
    ) -> GroundTruth:
        """The same with the images and the categories of these ids only."""
        image = _kept(self.image_ids, images)
        category = _kept(self.category_ids, categories)
        rows = np.flatnonzero(image[self.image] & category[self.category])
        return replace(
            self,
            image_ids=self.image_ids[image],
            sizes=self.sizes[image],
            category_ids=self.category_ids[category],
            names=tuple(self.names[i] for i in np.flatnonzero(category)),
            image=(image.cumsum() - 1)[self.image[rows]],
            category=(category.cumsum() - 1)[self.category[rows]],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            iscrowd=self.iscrowd[rows],
            mask_rows=None if self.mask_rows is None else self.mask_rows[rows],
        )


def ground_truth(
    index: CocoIndex,
    classes: tuple[Sequence[str], Sequence[int]],
    masks: SegmentationTable,
    areas: np.ndarray,
    ignored_ids: Sequence[int] = (),
) -> GroundTruth:
    """The objects of a file that have one of these classes (names and ids) and a known image.

    `masks` and `areas` (A,) are those of all objects of the file. Those of the categories
    `ignored_ids` are crowd regions of each class.
    """
    objects, (names, ids) = index.objects, classes
    category = rows_of(objects.category, np.array(ids, np.int64))
    rows = np.flatnonzero((category >= 0) & (objects.image >= 0))
    regions = np.flatnonzero(np.isin(objects.category, ignored_ids) & (objects.image >= 0))
    records = index.images.extra_records() if _is_federated(index.image_keys) else []
    negatives, incomplete = (
        {record["id"]: record[key] for record in records if record.get(key) is not None}
        for key in (NEGATIVE, INCOMPLETE)
    )
    category, iscrowd = category[rows], objects.iscrowd[rows] == 1
    if len(regions):
        labeled = {*zip(objects.image[rows].tolist(), category.tolist(), strict=True)}
        pairs = [  # where a class is not labeled, a region would say that it is
            (row, k)
            for row, image in zip(regions.tolist(), objects.image[regions].tolist(), strict=True)
            for k, id_ in enumerate(ids)
            if (image, k) in labeled or id_ in negatives.get(int(index.images.ids[image]), (id_,))
        ]
        added, of_class = np.array(pairs, np.int64).reshape(-1, 2).T
        rows, category = np.append(rows, added), np.append(category, of_class)
        iscrowd = np.append(iscrowd, np.ones(len(pairs), bool))
    return GroundTruth(
        image_ids=index.images.ids,
        sizes=index.images.sizes,
        category_ids=np.array(ids, np.int64),
        names=tuple(names),
        image=objects.image[rows],
        category=category,
        boxes=objects.bbox[rows],
        areas=areas[rows],
        iscrowd=iscrowd,
        masks=masks,
        mask_rows=rows,
        negatives=negatives,
        incomplete=incomplete,
    )


def without_categories(
    classes: tuple[Sequence[str], Sequence[int]], ignored: Collection[str], problems: Problems
) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], tuple[int, ...]]:
    """The classes (names and ids) without the ignored ones, and the ids of those."""
    check_names(ignore_categories=ignored)
    names, pairs = classes[0], list(zip(*classes, strict=True))
    for name in [name for name in ignored if name not in names]:
        what = unknown(name, names, f"ignore_categories: unknown category {name!r}")
        problems.add("", what, key="categories")
    kept = [pair for pair in pairs if pair[0] not in ignored]
    of_kept = tuple(name for name, _ in kept), tuple(id_ for _, id_ in kept)
    return of_kept, tuple(id_ for name, id_ in pairs if name in ignored)


def read_labeled(index: CocoIndex, problems: Problems) -> list[frozenset[int] | None] | None:
    """For each image the ids of the classes whose objects are all labeled, or None for all classes.
    None if the file does not list them as LVIS does (Gupta et al. 2019).

    An image record with the list `neg_category_ids` is checked for those classes and the annotated
    ones only; of the classes in `not_exhaustive_category_ids` some objects may lack a label.
    """
    if not _is_federated(index.image_keys):
        return None
    objects, known = index.objects, read_categories(index.categories, Problems(""))[1]
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
                what = f"'{key}' is {short(ids)}: must be a list of category ids"
                problems.add_value("images", i, record, key, what)
                lists[key] = None
        incomplete = frozenset(lists[INCOMPLETE] or ())
        if lists[NEGATIVE] is not None:
            labeled.append(frozenset(lists[NEGATIVE]) | present[i] - incomplete)
        else:
            labeled.append(frozenset(known) - incomplete if incomplete else None)
    return labeled


def _is_federated(keys: Collection[str]) -> bool:
    """Whether image records with such keys list the classes they are labeled for."""
    return NEGATIVE in keys or INCOMPLETE in keys


def _kept(ids: np.ndarray, wanted: Collection[int] | None) -> np.ndarray:
    return np.ones(len(ids), bool) if wanted is None else np.isin(ids, list(wanted))


def ground_truth_of(dataset: Any) -> GroundTruth:
    """What detections are scored against. ConfigError for a custom dataset that cannot say."""
    name = f"{type(dataset).__name__}.ground_truth()"
    method = getattr(dataset, "ground_truth", None)
    if method is None:
        raise ConfigError(
            f"{name}: missing; scoring boxes needs it (visionkit.types.Dataset). Add it, for "
            "example with GroundTruth.of_boxes, or set train.validate=false"
        )
    try:
        truth = method()
    except VisionkitError:
        raise
    except Exception as error:  # of a custom dataset
        raise ConfigError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(truth, GroundTruth):
        raise ConfigError(f"{name}: got a {type(truth).__name__}; expected a GroundTruth")
    return truth
