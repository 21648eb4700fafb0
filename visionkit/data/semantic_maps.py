"""Semantic maps: read from files, or painted from the masks of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visionkit.data.checks.findings import Finding, Progress, finding
from visionkit.data.image_io import read_label_map
from visionkit.data.masks import Segmentation, paint
from visionkit.errors import DataError, printable
from visionkit.types import IGNORE

BACKGROUND = 0


def load_classes(path: Path, size: tuple[int, int], num_classes: int) -> Tensor:
    """The map (h, w) uint8 in that file; DataError if it has another size or unknown classes."""
    labels = read_label_map(path)
    if tuple(labels.shape) != size:
        raise DataError(
            f"semantic map {printable(path)} is {tuple(labels.shape)} (h, w), not {size}"
        )
    highest = int(labels.where(labels != IGNORE, 0).max())
    if highest >= num_classes:
        raise DataError(
            f"semantic map {printable(path)} has the value {highest}, but 'semantic_classes' has "
            f"{num_classes} names (255 = ignore)"
        )
    return labels


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
    classes = np.full(size, BACKGROUND, np.uint8)
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


def check_maps(
    ids: Iterable[int], read: Callable[[int], Tensor | None], progress: Progress
) -> Iterator[Finding]:
    """Findings about the semantic maps that `read` returns by image id: invalid or unlabeled."""
    for id_ in progress(ids, "semantic maps"):
        try:
            labels = read(id_)
        except DataError as error:
            yield finding("class-map", str(error), value=str(id_), hint="")
            continue
        if labels is not None and (labels == IGNORE).all():
            text = f"the semantic map of image {id_} has no labeled pixel"
            yield finding("unlabeled-map", text, value=str(id_))
