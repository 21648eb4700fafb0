"""The annotated objects of a COCO file, each as a separate image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from visionkit.config.schema import Count, InputPath, NonNegative
from visionkit.data.checks.findings import Finding, FindingCounts
from visionkit.data.checks.kinds import FINDING_KINDS
from visionkit.data.datasets.coco import Coco
from visionkit.data.files import Links
from visionkit.data.image_io import Exif
from visionkit.data.sample import Sample
from visionkit.errors import DataError

log = logging.getLogger("visionkit")


class Crops:
    """The annotated objects without crowd regions, each cut out of its image with a margin.

    The class of a crop is its object's category. Its `image_id` is the object's place in the list
    of annotations, counted from 0. Raises `DataError` for errors of the file, and if no object is
    large enough.

    classes, other_classes, exif, links, on_fault: as in `Coco`.
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
            masks=False,
            exif=exif,
            links=links,
            on_fault=on_fault,
        )
        self.exif = exif
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
            self.identities = self._coco.identifiers(identity, rows[large])
        self._small = small = int((~large).sum())
        self.dropped = {**self._coco.dropped, FINDING_KINDS["small-object"].title: small}
        if small:
            log.warning("%s: %d objects smaller than min_size dropped", annotations, small)

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
