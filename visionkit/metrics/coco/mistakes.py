"""What a detector mistakes for what: the matches of all classes together, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionkit.data.coco.tables import rows_of
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.ground_truth import ScoredTruth

IOU = 0.5


@dataclass(frozen=True)
class Mistakes:
    """What the detections above their thresholds are, and which objects they find.

    By descending score, each takes the free object of any class that it overlaps most, with an IoU
    of at least `iou`. Detections that match no object but lie on a crowd do not count.
    """

    truth: ScoredTruth
    found: Detections  # the M detections that count
    image: np.ndarray  # (M,) rows of `truth`
    category: np.ndarray  # (M,)
    matched: np.ndarray  # (M,) the row of its object; -1: background
    finder: np.ndarray  # (A,) the row of the detection that has the object; -1: none

    @property
    def right(self) -> np.ndarray:
        """(M,) bool: detections of an object of their class."""
        classes = np.append(self.truth.category, -1)  # of what matches nothing: none
        return classes[self.matched] == self.category

    @property
    def objects(self) -> np.ndarray:
        """Rows of the objects that are not crowds."""
        return np.flatnonzero(~self.truth.iscrowd)

    def confusion(self) -> np.ndarray:
        """(C + 1, C + 1) int64: objects of a class by the class that they are detected as. The last
        column has those that are missed, the last row the detections of background."""
        counts = np.zeros((len(self.truth.names) + 1,) * 2, np.int64)
        row, column, _ = self._cells()
        np.add.at(counts, (row, column), 1)
        return counts

    def images_by_cell(self) -> dict[tuple[int, int], list[int]]:
        """The image ids behind each cell of the matrix, those with the most cases first."""
        cases, counts = np.unique(np.stack(self._cells()), axis=1, return_counts=True)
        row, column, image = cases
        order = np.lexsort((image, -counts, column, row))
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        ids = self.truth.image_ids[image[order]]
        for r, c, id_ in zip(
            *(one.tolist() for one in (row[order], column[order], ids)), strict=True
        ):
            found[r, c].append(id_)
        return found

    def _cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, column and image (N,) of each object and each detection of background."""
        background, objects = len(self.truth.names), self.objects
        finder, alone = self.finder[objects], np.flatnonzero(self.matched < 0)
        detected = np.append(self.category, background)[finder]  # -1: by none
        return (
            np.append(self.truth.category[objects], np.full(len(alone), background)),
            np.append(detected, self.category[alone]),
            np.append(self.truth.image[objects], self.image[alone]),
        )

    def by_image(self) -> np.ndarray:
        """(I, 3) int64: right detections, wrong detections and missed objects of each image."""
        truth, right = self.truth, self.right
        hit = np.zeros(len(truth), bool)
        hit[self.matched[right]] = True
        missed = self.objects[~hit[self.objects]]
        parts = (self.image[right], self.image[~right], truth.image[missed])
        return np.stack([np.bincount(part, minlength=len(truth.image_ids)) for part in parts], 1)


def find_mistakes(
    truth: ScoredTruth, found: Detections, thresholds: Sequence[float], iou: float = IOU
) -> Mistakes:
    """Match checked detections with a score of at least the threshold (C,) of their class."""
    category = rows_of(found.category_ids, truth.category_ids)
    found = found[found.scores >= np.asarray(thresholds)[category]]
    image = rows_of(found.image_ids, truth.image_ids)
    order = np.lexsort((-found.scores, image))
    found, image = found[order], image[order]
    matched = np.full(len(found), -1)
    on_crowd = np.zeros(len(found), bool)
    by_image = np.argsort(truth.image, kind="stable")
    bounds = np.arange(len(truth.image_ids) + 1)
    first, first_object = (
        np.searchsorted(image, bounds),
        np.searchsorted(truth.image[by_image], bounds),
    )
    for number in np.unique(image).tolist():
        rows = np.arange(first[number], first[number + 1])
        objects = by_image[first_object[number] : first_object[number + 1]]
        ious = overlaps(truth, found, rows, objects)
        matched[rows], on_crowd[rows] = _matched(ious, objects, truth.iscrowd[objects], iou)
    kept = ~on_crowd
    found, image, matched = found[kept], image[kept], matched[kept]
    finder = np.full(len(truth), -1)
    finder[matched[matched >= 0]] = np.flatnonzero(matched >= 0)
    category = rows_of(found.category_ids, truth.category_ids)
    return Mistakes(truth, found, image, category, matched, finder)


def overlaps(
    truth: ScoredTruth, found: Detections, rows: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """COCO's IoU (D, G) of those detections and objects of one image."""
    from pycocotools import mask as masks

    from visionkit.data.coco.segmentations import to_rle

    if not len(rows) or not len(objects):
        return np.zeros((len(rows), len(objects)))
    iscrowd = truth.iscrowd[objects].astype(np.uint8)
    if truth.iou_type == "bbox":
        assert found.boxes is not None
        return masks.iou(found.boxes[rows], truth.boxes[objects], iscrowd)
    assert found.masks is not None and truth.masks is not None
    size = truth.sizes[truth.image[objects[0]]].tolist()
    there = [to_rle(truth.masks[i], size) for i in objects.tolist()]
    return masks.iou([found.masks[i] for i in rows.tolist()], there, iscrowd)


def _matched(
    ious: np.ndarray, objects: np.ndarray, iscrowd: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, best first, its object or -1, and whether it lies on a crowd."""
    matched = np.full(len(ious), -1)
    free = ~iscrowd
    for row, values in enumerate(ious):
        candidates = np.where(free, values, -1.0)
        if len(candidates) and candidates.max() >= iou:
            best = int(candidates.argmax())
            matched[row], free[best] = objects[best], False
    crowd = ious[:, iscrowd].max(1, initial=0.0) >= iou
    return matched, crowd & (matched < 0)
