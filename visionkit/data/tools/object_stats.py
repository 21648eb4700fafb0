"""Count the objects of a dataset: sizes, shapes and overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from visionkit.data.coco.annotations import Annotations
from visionkit.data.resize import ImageSize, fit
from visionkit.data.tools.near_duplicates import pairs_within

AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # of COCO
SIZES = (320, 640, 960)  # at which objects of a file without a config are measured
OVERLAPS = (0.5, 0.7)  # IoUs
PAIRS = 5  # of classes that overlap
BORDER = 1.0  # pixels from the border of the image at which an object ends there
# Aspect ratio from which the anchors of ratio 1:2 reach no IoU of 0.5 with an object of their area:
# that is sqrt(2 / r) / (2 - sqrt(2 / r)).
ELONGATED = 4.5
Record = dict[str, Any]


def deciles(values: np.ndarray) -> list[float] | None:
    """The least value, the nine deciles and the largest one; None without values."""
    if not len(values):
        return None
    return np.quantile(values, np.arange(11) / 10).round(3).tolist()


class Objects(NamedTuple):
    """The objects of a dataset in columns, without crowd regions, sorted by image."""

    image: np.ndarray  # (A,) index
    labels: np.ndarray  # (A,)
    boxes: np.ndarray  # (A, 4) float64 xyxy, clipped to the image
    areas: np.ndarray  # (A,) of the mask, or of the box
    sizes: np.ndarray  # (I, 2) h, w of all images
    names: tuple[str, ...]
    crowds: int

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def of(cls, data: Annotations, unlabeled: Sequence[str] = ()) -> Objects:
        """Those that training uses, without the classes that are not labeled."""
        chosen, names = data.selected, data.classes["labels"].names
        known = np.array([name not in unlabeled for name in names], bool)
        rows = chosen.rows.astype(np.int64)
        image = np.repeat(np.arange(len(data)), np.diff(chosen.starts))
        single = ~chosen.iscrowd & np.append(known, True)[chosen.labels]
        rows, labels = rows[single], chosen.labels[single].astype(np.int64)
        renumbered = np.cumsum(known) - 1
        return cls(
            image[single],
            renumbered[labels],
            data.index.objects.boxes(rows, data.index.images),
            data.areas()[rows],
            data.index.images.sizes,
            tuple(name for name in names if name not in unlabeled),
            int(chosen.iscrowd.sum()),
        )

    @property
    def sides(self) -> np.ndarray:
        """(A, 2) widths and heights."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def scales(self, image_size: ImageSize) -> np.ndarray:
        """(A, 2) by which widths and heights change in an image resized for the network."""
        sizes, of_image = np.unique(self.sizes, axis=0, return_inverse=True)
        found = [np.divide(fit(size, image_size), size) for size in map(tuple, sizes.tolist())]
        by_size = np.array(found).reshape(-1, 2)[:, ::-1]
        return by_size[of_image.ravel()[self.image]]


def describe_objects(objects: Objects, image_size: ImageSize | None) -> Record:
    """Counts, sizes, shapes and overlaps of objects, of all and of each class."""
    per_image = np.bincount(objects.image, minlength=len(objects.sizes))
    scales = {
        size: objects.scales(size) for size in (SIZES if image_size is None else (image_size,))
    }
    overlapping, same, pairs = overlaps(objects)
    whole = {
        "objects": len(objects),
        "crowds": objects.crowds,
        "empty_images": int((per_image == 0).sum()),
        "objects_per_image": {
            "mean": round(float(per_image.mean()), 3),
            "deciles": deciles(per_image),
        },
    }
    columns = _Columns(objects, scales, overlapping, same)
    classes = []
    for label, name in enumerate(objects.names):
        chosen = np.flatnonzero(objects.labels == label)
        classes.append({"name": name, **columns.summary(chosen)})
    every = columns.summary(np.arange(len(objects)))
    every.pop("images"), every.pop("objects")
    return whole | every | {"overlapping_classes": pairs, "classes": classes}


class _Columns:
    """What is measured of each object."""

    def __init__(
        self,
        objects: Objects,
        scales: Mapping[ImageSize, np.ndarray],
        overlapping: np.ndarray,
        same: np.ndarray,
    ):
        sides = objects.sides
        self.image, self.areas = objects.image, objects.areas
        self.side, self.ratio = sides.min(1), sides[:, 0] / sides[:, 1].clip(1e-9)
        self.side_at = {str(size): (sides * scale).min(1) for size, scale in scales.items()}
        self.area_at = {str(size): self.areas * scale.prod(1) for size, scale in scales.items()}
        ends = objects.sizes[objects.image][:, ::-1] - BORDER
        low, high = objects.boxes[:, :2] <= BORDER, objects.boxes[:, 2:] >= ends
        self.at_border = (low | high).any(1)
        self.overlapping, self.same = overlapping, same

    def summary(self, rows: np.ndarray) -> Record:
        """The numbers of these objects."""
        return {
            "objects": len(rows),
            "images": len(np.unique(self.image[rows])),
            "sizes": _by_area(self.areas[rows]),
            "side": deciles(self.side[rows]),
            "at_image_size": {
                size: {"sizes": _by_area(self.area_at[size][rows]), "side": deciles(side[rows])}
                for size, side in self.side_at.items()
            },
            "aspect_ratio": deciles(self.ratio[rows]),
            "elongated": int(
                (np.maximum(self.ratio, 1 / self.ratio.clip(1e-9))[rows] > ELONGATED).sum()
            ),
            "at_border": int(self.at_border[rows].sum()),
            "overlapping": {
                f"{iou:g}": int((self.overlapping[rows] > iou).sum()) for iou in OVERLAPS
            },
            "overlapping_same_class": {
                f"{iou:g}": int((self.same[rows] > iou).sum()) for iou in OVERLAPS
            },
        }


def _by_area(areas: np.ndarray) -> dict[str, int]:
    return {
        name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in AREAS.items()
    }


def overlaps(objects: Objects) -> tuple[np.ndarray, np.ndarray, list[Record]]:
    """(A,) the highest IoU of each object with another one, and with one of its class; and the
    pairs of classes that overlap most often with more than the first of `OVERLAPS`."""
    best, same = np.zeros(len(objects)), np.zeros(len(objects))
    sizes, count = objects.sides.prod(1), max(1, len(objects.names))
    pairs = np.zeros(count * count, np.int64)
    for one, other in pairs_within(objects.image):
        a, b = objects.boxes[one], objects.boxes[other]
        sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        shared = sides.clip(0).prod(1)
        iou = shared / (sizes[one] + sizes[other] - shared).clip(1e-9)
        for place in (one, other):  # no place is in an array twice
            best[place] = np.maximum(best[place], iou)
        alike = objects.labels[one] == objects.labels[other]
        for place in (one, other):
            same[place] = np.maximum(same[place], np.where(alike, iou, 0))
        near = iou > OVERLAPS[0]
        ends = np.sort(np.stack([objects.labels[one], objects.labels[other]]), 0)[:, near]
        pairs += np.bincount(ends[0] * count + ends[1], minlength=count * count)
    top = np.argsort(-pairs, kind="stable")[:PAIRS]
    return (
        best,
        same,
        [
            {
                "classes": [objects.names[i // count], objects.names[i % count]],
                "pairs": int(pairs[i]),
            }
            for i in top.tolist()
            if pairs[i]
        ],
    )
