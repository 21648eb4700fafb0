"""Class maps painted from the masks of objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visionkit.data.masks import Segmentation, paint

BACKGROUND, IGNORE = 0, 255


def paint_classes(
    segmentations: Sequence[Segmentation],
    labels: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
) -> Tensor:
    """(h, w) uint8: label + 1 where an object is, 0 elsewhere; smaller objects on top.

    `labels` (N,), `boxes` (N, 4) xyxy in pixels. Where an object's outline is not known, its box
    is 255 (ignore) as far as nothing else covers it.
    """
    classes = np.full(size, BACKGROUND, np.uint8)
    masks = paint(segmentations, size).numpy()
    known = np.array([s.known for s in segmentations], bool)
    for box in boxes[~known]:
        x1, y1 = np.floor(box[:2]).astype(int)
        x2, y2 = np.ceil(box[2:]).astype(int)
        classes[y1:y2, x1:x2] = IGNORE
    areas = masks.sum((1, 2))
    for i in np.argsort(-areas, kind="stable"):
        classes[masks[i]] = labels[i] + 1
    return torch.from_numpy(classes)
