"""One image with its labels, before batching. Geometric changes move all of them together.

Objects stay polygons until the end and are painted once, at the final size: cheaper and more exact
than resizing masks of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional as F

from visionkit.data.masks import (
    Bitmap,
    Polygons,
    Segmentation,
    clip_all,
    extent,
    map_all,
    moved,
    paint,
    scaling,
)
from visionkit.errors import ArgumentError, DataError
from visionkit.types import IGNORE, Target

FILL = 114  # gray of pixels that show nothing of the image: about the mean of photos


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
    cut: np.ndarray | None = None  # (N,) bool: cut or warped, so that the box follows the outline
    labeled: np.ndarray | None = None  # (K,) bool, see `Target`; None = all classes
    semantic: Tensor | None = None  # (h, w) uint8
    semantic_labeled: np.ndarray | None = None  # (S,) bool; None = all classes
    # A sequence has for each class 1 (present), 0 or NaN (not known), or of mixed images its share.
    class_id: int | Sequence[float] | None = None
    identity: int | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)  # keys for custom heads
    not_pasted: int = 0  # objects of another image, as this one does not label their class

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
        new = self._map(scaling((w / old_w, h / old_h)), size)
        new.image = F.resize(self.image, [h, w], antialias=True)
        if self.semantic is not None:
            nearest = F.InterpolationMode.NEAREST_EXACT
            new.semantic = F.resize(self.semantic[None], [h, w], interpolation=nearest)[0]
        return new

    def crop(self, top: int, left: int, height: int, width: int) -> Sample:
        """The window of that size, which must be inside the image; boxes are clipped."""
        window = (..., slice(top, top + height), slice(left, left + width))
        new = self._map(scaling((1, 1), (-left, -top)), (height, width))
        new.image = self.image[window]
        if self.boxes is not None:
            low, high = [left, top], [left + width, top + height]
            cut = np.any((self.boxes[:, :2] < low) | (self.boxes[:, 2:] > high), axis=1)
            new.cut = cut if self.cut is None else cut | self.cut
        if self.semantic is not None:
            new.semantic = self.semantic[window]
        return new

    def pad(self, top: int, left: int, size: tuple[int, int], fill: int = FILL) -> Sample:
        """The image on a canvas of `size` (h, w), with its upper left corner at (top, left); it
        must fit. The rest is gray (`fill`, 0 to 255), in semantic maps `IGNORE`."""
        image = self.image.new_full((*size, 3), fill).permute(2, 0, 1)  # as images are read
        return self.onto(top, left, image)

    def onto(self, top: int, left: int, image: Tensor) -> Sample:
        """As `pad`, on the canvas `image` (3, h, w) uint8, which is changed."""
        size = (image.shape[-2], image.shape[-1])
        new = self._visible()._map(scaling((1, 1), (left, top)), size)
        window = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
        image[window], new.image = self.image, image
        if self.semantic is not None:
            new.semantic = self.semantic.new_full(size, IGNORE)
            new.semantic[window] = self.semantic
        return new

    def hflip(self) -> Sample:
        """Flipped left to right."""
        matrix = scaling((-1, 1), (self.size[1], 0))
        return self._rearranged(lambda pixels: pixels.flip(-1), matrix)

    def vflip(self) -> Sample:
        """Flipped top to bottom."""
        matrix = scaling((1, -1), (0, self.size[0]))
        return self._rearranged(lambda pixels: pixels.flip(-2), matrix)

    def rot90(self, turns: int) -> Sample:
        """Turned counterclockwise by so many quarters of a circle; a pixel stays a pixel."""
        matrix, (height, width) = np.eye(3), self.size
        for _ in range(turns % 4):
            matrix = np.array([[0, 1, 0], [-1, 0, width], [0, 0, 1.0]]) @ matrix
            height, width = width, height
        return self._rearranged(lambda pixels: pixels.rot90(turns, (-2, -1)), matrix)

    def warp(self, matrix: np.ndarray, size: tuple[int, int], fill: int = FILL) -> Sample:
        """The image where a (3, 3) matrix moves its points (see `visionkit.data.masks`), seen
        through a window of `size` (h, w). Pixels are bilinear, semantic maps nearest; what shows
        nothing of the image is gray (`fill`, 0 to 255), in semantic maps `IGNORE`.

        The box of an object with a known outline becomes the bounds of what is visible of it, that
        of another object the bounds of the corners of its old box: exact where the matrix only
        scales and moves, larger than the object where it turns (a circle's box grows by 41 % in a
        turn of 45 degrees). Objects below one pixel before are dropped.

        Raises ArgumentError if the matrix cannot be inverted, or moves a point of the image to
        infinity or beyond.
        """
        matrix = _facing(matrix, self.size)
        old = self._visible()
        new = old._map(matrix, size)
        inverse = np.linalg.inv(matrix)
        new.image = _bilinear(self.image, inverse, size, fill)
        if self.semantic is not None:
            new.semantic = _nearest(self.semantic, inverse, size)
        if old.boxes is not None:
            seen = _has_extent(old.boxes)
            bounds = extent(moved(_corners(old.boxes * seen[:, None]), matrix))
            for i, segmentation in enumerate(old.segmentations or ()):
                if seen[i] and len(points := segmentation.corners()):
                    bounds[i] = extent(moved(points, matrix))
            new.boxes = _clipped(bounds, size)
            new.cut = np.ones(len(bounds), bool)
        return new

    def _visible(self) -> Sample:
        """Without what an earlier crop left outside of the image, and could come into view."""
        if self.segmentations is None or self.boxes is None:
            return self
        parts = clip_all(self.segmentations, self.size)
        pairs = zip(self.segmentations, parts, strict=True)
        gone = [part is not whole and not len(part.corners()) for whole, part in pairs]
        return replace(self, segmentations=parts, boxes=self.boxes * ~np.array(gone, bool)[:, None])

    def _rearranged(self, rearrange: Callable[[Tensor], Tensor], matrix: np.ndarray) -> Sample:
        """The same pixels in another order."""
        image = rearrange(self.image)
        new = self._map(matrix, (image.shape[-2], image.shape[-1]))
        new.image = image
        if self.semantic is not None:
            new.semantic = rearrange(self.semantic)
        return new

    def _map(self, matrix: np.ndarray, size: tuple[int, int]) -> Sample:
        """A matrix moves all points; boxes are clipped to `size` (h, w)."""
        new = replace(self)
        if self.boxes is not None:
            new.boxes = _clipped(extent(moved(_corners(self.boxes), matrix)), size)
        if self.segmentations is not None:
            new.segmentations = map_all(self.segmentations, matrix)
        return new

    def target(self) -> Target:
        """The labels as tensors. Objects below one pixel after a crop or resize are dropped. With
        masks, the box of a cut or warped object is that of the visible part of its outline, at
        most one pixel from that of its mask.
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
        if self.not_pasted:
            target["not_pasted"] = self.not_pasted
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
                    if (outline := self.segmentations[rows[i]]).known:
                        boxes[i] = _box_of(outline, masks[i])
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
    return Bitmap.of(mask >= 0.5)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """The corners (N, 4, 2) of boxes (N, 4) xyxy."""
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(float)


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return boxes.clip(0, [size[1], size[0]] * 2).astype(np.float32)


def _facing(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The matrix with positive divisors for all points of an image of `size` (h, w), 1 for all if
    that is possible. ArgumentError if it cannot be inverted, or if the signs differ."""
    matrix = np.array(matrix, float)
    if matrix.shape != (3, 3) or not abs(np.linalg.det(matrix)) > 1e-12:
        raise ArgumentError(f"matrix: got {matrix.tolist()}; expected (3, 3) with an inverse")
    divisors = np.array([[x, y, 1] for x in (0, size[1]) for y in (0, size[0])]) @ matrix[2]
    if not (divisors > 0).all() and not (divisors < 0).all():
        raise ArgumentError(f"matrix: {matrix.tolist()} moves points of the image to infinity")
    return matrix / divisors[0]


def _bilinear(image: Tensor, inverse: np.ndarray, size: tuple[int, int], fill: int) -> Tensor:
    """(3, h, w) uint8 at `size`; a point of the new image is at inverse @ point of this one."""
    height, width = image.shape[1:]
    rows = (scaling((2 / width, 2 / height), (-1, -1)) @ inverse).tolist()
    y, x = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1]) + 0.5
    grid = torch.empty(1, *size, 2)  # (x, y) from -1 to 1
    for axis, (a, b, c) in enumerate(rows[:2]):
        torch.add(a * x + c, b * y, out=grid[0, :, :, axis])  # twice as fast as a stack of both
    if inverse[2, :2].any():
        a, b, c = rows[2]
        grid /= (a * x + c + b * y)[..., None]
    pixels = torch.empty(1, *image.shape)
    pixels[0].copy_(image).sub_(fill)  # of a channel at a time, which is faster to sample
    return grid_sample(pixels, grid, align_corners=False)[0].add_(fill + 0.5).to(torch.uint8)


def _nearest(values: Tensor, inverse: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A map (h, w) uint8 at `size`, as `_bilinear`, `IGNORE` beyond the old one."""
    is_affine = not inverse[2, :2].any()
    new = Image.fromarray(values.numpy()).transform(
        (size[1], size[0]),
        Image.Transform.AFFINE if is_affine else Image.Transform.PERSPECTIVE,
        (inverse / inverse[2, 2]).ravel()[: 6 if is_affine else 8].tolist(),
        Image.Resampling.NEAREST,
        fillcolor=IGNORE,
    )
    return torch.from_numpy(np.array(new))


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)


def _box_of(outline: Segmentation, mask: np.ndarray) -> np.ndarray:
    """The xyxy box of what is visible of an outline, at most a pixel from that of its mask (h, w):
    a thin tip may have no pixel. Zeros if the mask is empty."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return np.zeros(4)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    corners = outline.clip((mask.shape[0], mask.shape[1])).corners()
    return extent(corners).clip(seen - 1, seen + 1) if len(corners) else seen
