"""Class maps: read from files, or painted from the masks of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visionkit.data.files import shown
from visionkit.data.images import load_label_map
from visionkit.data.masks import Segmentation, paint
from visionkit.data.problems import Finding, finding
from visionkit.errors import DataError

BACKGROUND, IGNORE = 0, 255
Progress = Callable[[Iterable[int], str], Iterable[int]]  # shows how far it is


def load_classes(path: Path, size: tuple[int, int], num_classes: int) -> Tensor:
    """The map (h, w) uint8 in that file; DataError if it has another size or unknown classes."""
    labels = load_label_map(path)
    if tuple(labels.shape) != size:
        raise DataError(f"semantic map {shown(path)} is {tuple(labels.shape)} (h, w), not {size}")
    highest = int(labels.where(labels != IGNORE, 0).max())
    if highest >= num_classes:
        raise DataError(
            f"semantic map {shown(path)} has the value {highest}, but 'semantic_classes' has "
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
    and behind them of N - L that are left out: 255 (ignore), as are the boxes of those whose
    outline is not known, as far as nothing else covers them.
    """
    classes = np.full(size, BACKGROUND, np.uint8)
    masks = paint(segmentations, size).numpy()
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


def look_at_maps(
    ids: Iterable[int], read: Callable[[int], Tensor | None], progress: Progress
) -> Iterator[Finding]:
    """What is wrong with class maps that `read` gives by id, and those that say nothing."""
    for id_ in progress(ids, "class maps"):
        try:
            labels = read(id_)
        except DataError as error:
            yield finding("class-map", str(error), value=str(id_), remedy="")
            continue
        if labels is not None and (labels == IGNORE).all():
            text = f"the class map of picture {id_} has no labelled pixel"
            yield finding("unlabelled-map", text, value=str(id_))
