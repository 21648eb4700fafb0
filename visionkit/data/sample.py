"""One image with its labels, before batching. Geometric changes move all of them together.

Objects stay polygons until the end and are painted once, at the final size: cheaper and more exact
than resizing masks of the whole image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from visionkit.data.masks import Bitmap, Polygons, Segmentation, paint
from visionkit.errors import DataError
from visionkit.types import Target


@dataclass
class Sample:
    """An image with its labels; None means not labeled.

    Geometry methods return a new sample and change nothing in place.
    """

    image: Tensor  # (3, h, w) uint8
    image_id: int
    orig_size: tuple[int, int]
    boxes: np.ndarray | None = None  # (N, 4) float32 xyxy
    labels: np.ndarray | None = None  # (N,) int64; -1: a crowd region of no class
    attributes: np.ndarray | None = None  # (N, A) float32: 1 yes, 0 no, NaN unknown
    iscrowd: np.ndarray | None = None  # (N,) bool
    area: np.ndarray | None = None  # (N,) float32, original pixels
    segmentations: list[Segmentation] | None = None  # N polygon lists or bitmaps
    cut: np.ndarray | None = None  # (N,) bool: objects cut by a crop
    labeled: np.ndarray | None = None  # (K,) bool, see `Target`; None = all classes
    semantic: Tensor | None = None  # (h, w) uint8
    semantic_labeled: np.ndarray | None = None  # (S,) bool; None = all classes
    # A sequence has for each class 1 (present), 0 or NaN (not known).
    class_id: int | Sequence[float] | None = None
    identity: int | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)  # keys for custom heads

    @classmethod
    def from_target(cls, image: Tensor, target: Mapping[str, Any]) -> Sample:
        """The sample of an image (3, h, w) uint8 and its labels in a dict, as torchvision's
        detectors take it: `boxes` (N, 4) xyxy in pixels of the image, `labels` (N,), and perhaps
        `masks` (N, h, w), `iscrowd`, `area`, `image_id`; or any other key of `visionkit.Target`.
        Tensors or arrays. A mask without a pixel is not known. Keys that `Target` does not have are
        kept, but not moved.

        Raises DataError if a shape does not fit.
        """
        size = (image.shape[1], image.shape[2])
        given = {key: value for key, value in target.items() if key not in ("size", "orig_size")}
        sample = cls(image, int(_array(given.pop("image_id", 0)).item()), size)
        count = len(given["boxes"]) if "boxes" in given else 0
        for key, (dtype, shape) in _COLUMNS.items():
            if key in given:
                values = _array(given.pop(key)).astype(dtype)
                setattr(sample, key, _fitting(key, values, (count, *shape)))
        if sample.boxes is not None and sample.iscrowd is None:
            sample.iscrowd = np.zeros(count, bool)
        if "masks" in given:
            masks = _fitting("masks", _array(given.pop("masks")), (count, *size))
            sample.segmentations = [_outline(mask) for mask in masks]
        if "semantic" in given:
            values = _fitting("semantic", _array(given.pop("semantic")), size)
            sample.semantic = torch.from_numpy(values.astype(np.uint8))
        for key in ("class_id", "identity"):
            if key in given:
                setattr(sample, key, int(_array(given.pop(key)).item()))
        for key in ("labeled", "semantic_labeled"):
            if key in given:
                setattr(sample, key, _array(given.pop(key)).astype(bool))
        sample.extra = given
        return sample

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]

    def resize(self, size: tuple[int, int]) -> Sample:
        """The same image at `size` (h, w); antialiased, labels nearest."""
        (old_h, old_w), (h, w) = self.size, size
        if (old_h, old_w) == (h, w):
            return self
        moved = self._map((w / old_w, h / old_h), (0, 0), size)
        moved.image = F.resize(self.image, [h, w], antialias=True)
        if self.semantic is not None:
            nearest = F.InterpolationMode.NEAREST_EXACT
            moved.semantic = F.resize(self.semantic[None], [h, w], interpolation=nearest)[0]
        return moved

    def crop(self, top: int, left: int, height: int, width: int) -> Sample:
        """The window of that size, which must be inside the image; boxes are clipped."""
        window = (..., slice(top, top + height), slice(left, left + width))
        moved = self._map((1, 1), (-left, -top), (height, width))
        moved.image = self.image[window]
        if self.boxes is not None:
            low, high = [left, top], [left + width, top + height]
            cut = np.any((self.boxes[:, :2] < low) | (self.boxes[:, 2:] > high), axis=1)
            moved.cut = cut if self.cut is None else cut | self.cut
        if self.semantic is not None:
            moved.semantic = self.semantic[window]
        return moved

    def hflip(self) -> Sample:
        """Flipped left to right."""
        return self._flip(-1, (-1, 1), (self.size[1], 0))

    def vflip(self) -> Sample:
        """Flipped top to bottom."""
        return self._flip(-2, (1, -1), (0, self.size[0]))

    def _flip(self, dim: int, scale: tuple[int, int], offset: tuple[int, int]) -> Sample:
        moved = self._map(scale, offset, self.size)
        moved.image = self.image.flip(dim)
        if self.semantic is not None:
            moved.semantic = self.semantic.flip(dim)
        return moved

    def _map(
        self, scale: tuple[float, float], offset: tuple[float, float], size: tuple[int, int]
    ) -> Sample:
        """Points (x, y) move to `scale * point + offset`; boxes are clipped to `size` (h, w)."""
        moved = replace(self)
        factor, shift = np.array(scale, float), np.array(offset, float)
        if self.boxes is not None:
            corners = self.boxes.reshape(-1, 2, 2) * factor + shift
            boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
            moved.boxes = boxes.clip(0, [size[1], size[0]] * 2).astype(np.float32)
        if self.segmentations is not None:
            moved.segmentations = [s.map(factor, shift) for s in self.segmentations]
        return moved

    def target(self) -> Target:
        """The labels as tensors. Objects below one pixel after a crop or resize are dropped. With
        masks, the box of a cut object is that of its visible part.
        """
        target: Target = {"image_id": self.image_id, "size": self.size, "orig_size": self.orig_size}
        if self.class_id is not None:
            several = isinstance(self.class_id, Sequence)
            target["class_id"] = torch.tensor(self.class_id, dtype=torch.float if several else None)
        if self.identity is not None:
            target["identity"] = torch.tensor(self.identity)
        if self.semantic is not None:
            target["semantic"] = self.semantic.contiguous()
            if self.semantic_labeled is not None:
                target["semantic_labeled"] = torch.from_numpy(self.semantic_labeled)
        if self.boxes is not None:
            self._add_objects(target)
        target.update(self.extra)  # type: ignore[typeddict-item]  # of custom heads
        return target

    def _add_objects(self, target: Target) -> None:
        assert self.boxes is not None
        rows = np.flatnonzero(_has_extent(self.boxes))
        boxes = self.boxes[rows]
        if self.segmentations is not None:
            masks = paint([self.segmentations[i] for i in rows], self.size)
            if self.cut is not None and self.cut[rows].any():
                for i in np.flatnonzero(self.cut[rows]):
                    if self.segmentations[rows[i]].known:
                        boxes[i] = _bounds(masks[i])
                seen = _has_extent(boxes)
                rows, boxes, masks = rows[seen], boxes[seen], masks[seen]
            target["masks"] = torch.from_numpy(masks)
        target["boxes"] = torch.from_numpy(boxes)
        for key in ("labels", "iscrowd", "area", "attributes"):
            if (column := getattr(self, key)) is not None:
                values = column[rows].clip(0) if key == "labels" else column[rows]
                target[key] = torch.from_numpy(values)
        if self.labeled is not None:
            target["labeled"] = torch.from_numpy(self.labeled)


# Of each object: its type, and the shape of one; -1: any number.
_COLUMNS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "boxes": (np.float32, (4,)),
    "labels": (np.int64, ()),
    "iscrowd": (bool, ()),
    "area": (np.float32, ()),
    "attributes": (np.float32, (-1,)),
}


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _fitting(key: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values, if they have that shape; none at all may have any."""
    if not values.size and 0 in shape:
        return values.reshape([max(side, 0) for side in shape])
    pairs = zip(values.shape, shape, strict=False)
    if values.ndim != len(shape) or any(b >= 0 and a != b for a, b in pairs):
        wanted = ", ".join("A" if side < 0 else str(side) for side in shape)
        comma = "," if len(shape) == 1 else ""
        raise DataError(f"target: {key} has the shape {values.shape}; expected ({wanted}{comma})")
    return values


def _outline(mask: np.ndarray) -> Segmentation:
    """The object of a mask (h, w) of true and false or of 0 and 1."""
    if not mask.any():
        return Polygons(np.zeros((0, 2)), np.zeros(0, np.int64))
    code = coco_mask.encode(np.asfortranarray(mask >= 0.5, np.uint8))
    return Bitmap(code["counts"], (mask.shape[0], mask.shape[1]))


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)


def _bounds(mask: np.ndarray) -> list[int]:
    """The xyxy box around the set pixels of an (h, w) mask; zeros without any."""
    if not mask.any():
        return [0, 0, 0, 0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
