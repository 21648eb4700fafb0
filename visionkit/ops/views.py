"""Several views of an image: mirrored, at other scales, in tiles; and what is found in them, in the
pixels of the image. In numpy: exported models use it without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.errors import ArgumentError, shorten
from visionkit.ops.original import encode_columns
from visionkit.types import Size, is_tensor

Window: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the image
Tta: TypeAlias = "str | Sequence[str | float] | None"
FLIP = "flip"
OVERLAP = 0.2
SMALLEST_TILE = 64
SCALES = (0.1, 4.0)  # lowest and highest


class View(NamedTuple):
    """One view of an image: a window of it, perhaps mirrored, at a scale of the image size.

    image: (h, w) of the whole image.
    """

    image: Size
    window: Window
    flip: bool = False
    scale: float = 1.0

    @property
    def size(self) -> Size:
        """(h, w) of the window."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    @property
    def is_tile(self) -> bool:
        return self.size != self.image

    def cut(self, image: Any) -> Any:
        """The pixels of the view of an image (3, h, w), a tensor or an array."""
        left, top, right, bottom = self.window
        part = image[:, top:bottom, left:right]
        if not self.flip:
            return part
        return part.flip(-1) if is_tensor(part) else np.ascontiguousarray(part[..., ::-1])

    def unmirrored(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) in pixels of the view, in those of its window."""
        if not self.flip:
            return boxes
        x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
        return np.stack([self.size[1] - x2, y1, self.size[1] - x1, y2], -1).astype(boxes.dtype)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) in pixels of the view, in those of the image."""
        left, top, _, _ = self.window
        return self.unmirrored(boxes) + np.array([left, top, left, top], boxes.dtype)

    def pixels(self, mask: dict[str, Any]) -> np.ndarray:
        """The (h, w) uint8 pixels of its window of a mask, a run-length code of the view."""
        found = coco_mask.decode(mask)
        return found[:, ::-1] if self.flip else found

    def encoded(self, pixels: np.ndarray) -> dict[str, Any]:
        """Pixels (h, w) of its window as a run-length code of the whole image."""
        left, top, _, _ = self.window
        columns = np.flatnonzero(pixels.any(0))
        first, last = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
        part = pixels[:, first:last].T.astype(bool)
        return encode_columns(part, top, left + int(first), self.image)


@dataclass(frozen=True)
class Views:
    """Which views of an image a model predicts from.

    The image itself is always the first. With `flip` and `scales` there are all their combinations,
    2 * (1 + number of scales). With `tile` each tile is seen in as many ways.

    scales: factors of the image size.
    tile: side in pixels of the image; None: no tiles.
    overlap: least share of a tile's side that it has in common with the next one.
    """

    flip: bool = False
    scales: tuple[float, ...] = ()
    tile: int | None = None
    overlap: float = OVERLAP

    @classmethod
    def of(cls, tta: Tta = None, tiles: int | None = None, overlap: float | None = None) -> Views:
        """From the options of the commands; ArgumentError for wrong ones."""
        flip, scales = _parsed(tta)
        if tiles is None and overlap is not None:
            raise ArgumentError(f"overlap: got {overlap!r} without tiles; give tiles, too")
        if tiles is not None and (type(tiles) is not int or tiles < SMALLEST_TILE):
            what = f"expected the side of a tile in pixels, an integer >= {SMALLEST_TILE}"
            raise ArgumentError(f"tiles: got {shorten(tiles)}; {what}")
        if overlap is not None and not (_is_number(overlap) and 0 <= overlap < 0.9):
            raise ArgumentError(f"overlap: got {shorten(overlap)}; expected 0 <= overlap < 0.9")
        return cls(flip, scales, tiles, OVERLAP if overlap is None else float(overlap))

    @property
    def is_plain(self) -> bool:
        """Whether there is the image itself alone, whatever its size."""
        return not (self.flip or self.scales or self.tile)

    def plan(self, size: Size) -> list[View]:
        """The views of an image of that (h, w), the image itself first."""
        height, width = size
        windows: list[Window] = [(0, 0, width, height)]
        if self.tile is not None and max(size) > self.tile:
            rows, columns = (_starts(side, self.tile, self.overlap) for side in size)
            windows += [
                (left, top, min(left + self.tile, width), min(top + self.tile, height))
                for top, left in product(rows, columns)
            ]
        ways = [*product((1.0, *self.scales), (False, True)[: 1 + self.flip])]
        return [View(size, w, flip, scale) for w in windows for scale, flip in ways]

    def record(self) -> dict[str, Any]:
        """For JSON: what of `tta`, `tiles` and `overlap` applies."""
        tta = [*([FLIP] if self.flip else []), *self.scales]
        found: dict[str, Any] = {"tta": tta} if tta else {}
        return found | ({"tiles": self.tile, "overlap": self.overlap} if self.tile else {})

    def __str__(self) -> str:
        """`the image, mirrored, at 0.83 and 1.2 times its size; and tiles of ...`."""
        parts = ["the image"]
        if self.flip:
            parts.append("mirrored")
        if self.scales:
            parts.append(f"at {' and '.join(f'{one:g}' for one in self.scales)} times its size")
        if self.tile:
            parts.append(f"in tiles of {self.tile} pixels that overlap by {self.overlap:g}")
        return ", ".join(parts)


def _parsed(tta: Any) -> tuple[bool, tuple[float, ...]]:
    """Whether to mirror, and the scales."""
    low, high = SCALES
    wanted = f"expected {FLIP} and scales of the image size from {low:g} to {high:g} other than 1"
    words = tta.split(",") if isinstance(tta, str) else () if tta is None else tta
    if not isinstance(words, Sequence) or (isinstance(tta, str) and not tta.strip()):
        raise ArgumentError(f"tta: got {shorten(repr(tta))}; {wanted}, such as 'flip,0.83,1.2'")
    flip, scales = False, []
    for word in words:
        if isinstance(word, str) and word.strip() == FLIP and not flip:
            flip = True
            continue
        try:
            scale = float(word) if not isinstance(word, bool) else math.nan
        except (TypeError, ValueError):
            scale = math.nan
        if not low <= scale <= high or scale == 1 or scale in scales:
            twice = " twice" if scale in scales or word == FLIP else ""
            raise ArgumentError(f"tta: got {shorten(word)}{twice}; {wanted}, each once")
        scales.append(scale)
    return flip, tuple(scales)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin, at equal distances from the first pixel to the last."""
    if side <= tile:
        return [0]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((side - tile) / step) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]
