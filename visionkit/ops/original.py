"""What a model finds, in the pixels of the original image: boxes, masks, semantic maps.

In numpy, so that an exported model is read without torch; the heads use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.types import Size

MASK_THRESHOLD = 0.5  # a pixel is part of the object from this probability
CHUNK = 2**15  # pixels of a semantic map at a time: what a processor's cache holds


class Samples(NamedTuple):
    """For each of P pixels in a row: the cell before its center, the next one, and its share."""

    cell: np.ndarray  # (P,)
    next_cell: np.ndarray  # (P,)
    share: np.ndarray  # (P, 1) float32, of the next cell

    def of(self, cells: np.ndarray) -> np.ndarray:
        """Cells (C, ...) float32 interpolated at the pixels: (P, ...)."""
        before = cells[self.cell]
        found = cells[self.next_cell]
        found -= before
        found *= self.share
        found += before
        return found

    def part(self, start: int, stop: int) -> Samples:
        """The same of some of the pixels."""
        return Samples(*(column[start:stop] for column in self))


def rescaled(boxes: np.ndarray, size: Size, new_size: Size) -> np.ndarray:
    """Boxes (..., 4) float32 of an image with `size` (h, w), in its pixels at `new_size`."""
    scale_y, scale_x = (new / old for old, new in zip(size, new_size, strict=True))
    return boxes * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)


def encode_masks(probs: np.ndarray, boxes: np.ndarray, size: Size) -> list[dict[str, Any]]:
    """COCO's compressed RLE of masks (N, s, s) put into `boxes` (N, 4) of a (h, w) image."""
    masks = []
    for mask_probs, box in zip(probs, boxes, strict=True):
        columns, top, left = paste(mask_probs, box, size)
        masks.append(encode_columns(columns > MASK_THRESHOLD, top, left, size))
    return masks


def paste(probs: np.ndarray, box: np.ndarray, size: Size) -> tuple[np.ndarray, int, int]:
    """The part of a (h, w) image that a mask (s, s) in `box` (4,) can cover, column by column:
    (columns, rows), with top and left.

    Probabilities are interpolated between the mask's bins and fall off to zero within one bin
    around the box. The part is empty where the box is outside of the image.
    """
    padded = np.zeros((len(probs) + 2, len(probs) + 2), np.float32)
    padded[1:-1, 1:-1] = probs
    grow = np.float32(0.5 * len(padded) / len(probs))
    with np.errstate(invalid="ignore"):  # a box that is not finite covers nothing
        center, half = (box[:2] + box[2:]) * np.float32(0.5), (box[2:] - box[:2]) * grow
        left, top = (center - half).astype(np.int64).tolist()
        right, bottom = ((center + half).astype(np.int64) + 1).tolist()
    lines = _bins(top, bottom, size[0], len(padded)).of(padded)  # (rows, s + 2)
    columns = _bins(left, right, size[1], len(padded)).of(np.ascontiguousarray(lines.T))
    return columns, max(top, 0), max(left, 0)


def _bins(start: int, stop: int, limit: int, bins: int) -> Samples:
    """The pixels of `start` to `stop` within 0..limit, of bins that cover all of these."""
    first, last = max(start, 0), min(stop, limit)
    pixels = np.arange(first, max(first, last), dtype=np.float32)
    position = (pixels - start + np.float32(0.5)) * np.float32(bins / max(stop - start, 1))
    return _samples(position - np.float32(0.5), bins)


def _samples(position: np.ndarray, cells: int) -> Samples:
    """At these positions (P,) among cells, of which the first has its center at 0."""
    position = position.clip(min=0)
    cell = position.astype(np.intp)
    return Samples(cell, (cell + 1).clip(max=cells - 1), (position - cell)[:, None])


def encode_columns(columns: np.ndarray, top: int, left: int, size: Size) -> dict[str, Any]:
    """COCO's compressed RLE of a (h, w) image that is empty but for a patch at `top` and `left`,
    given as (columns, rows) bool."""
    height, width = size
    whole = np.zeros((len(columns), height), bool)  # RLE runs down the columns
    whole[:, top : top + columns.shape[1]] = columns
    edges = np.flatnonzero(np.diff(whole.ravel(), prepend=False, append=False))
    runs = np.diff(edges + left * height, prepend=0, append=height * width)
    runs = runs[:-1] if runs[-1] == 0 else runs
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def semantic_map(logits: np.ndarray, size: Size, padded: Size, orig_size: Size) -> np.ndarray:
    """The most probable class of each original pixel, (h, w) uint8, of `logits` (K, hl, wl).

    `size` is the image's valid (h, w) in the network, `padded` that of the batch, which the logits
    cover. One bilinear step leads from their cells to `orig_size`; of several classes with the
    same logit, the first counts. Cells that see only padding are excluded: at the edge the
    outermost valid cell counts alone.
    """
    cells, rows, columns = cells_at(logits, size, padded, orig_size)
    lines = [columns.of(np.ascontiguousarray(one.T)).T for one in cells]  # K of (ch, w)
    lines = [np.ascontiguousarray(one) for one in lines]
    found = np.zeros(orig_size, np.uint8)
    step = max(1, CHUNK // orig_size[1])
    for start in range(0, orig_size[0], step):
        some = rows.part(start, start + step)
        best, labels = some.of(lines[0]), found[start : start + step]
        for label, line in enumerate(lines[1:], start=1):
            logit = some.of(line)
            labels[logit > best] = label
            np.maximum(best, logit, out=best)
    return found


def cells_at(
    logits: np.ndarray, size: Size, padded: Size, orig_size: Size
) -> tuple[np.ndarray, Samples, Samples]:
    """The cells (K, c, r) float32 of `logits` that see a part of the image, and where the rows and
    the columns of the original image are among them; see `semantic_map`."""
    grid: Sequence[int] = logits.shape[1:]
    counts = [-(-side * n // whole) for side, n, whole in zip(size, grid, padded, strict=True)]
    cells = np.asarray(logits[:, : counts[0], : counts[1]], np.float32)
    rows, columns = (
        _samples(_centers(orig, whole * count / (side * n), count), count)
        for orig, side, whole, n, count in zip(orig_size, size, padded, grid, counts, strict=True)
    )
    return cells, rows, columns


def _centers(pixels: int, covered: float, cells: int) -> np.ndarray:
    """Centers of `pixels` pixels among cells that reach `covered` times as far as the pixels."""
    centers = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(
        cells / (pixels * covered)
    ) - np.float32(0.5)
    return centers.clip(0, cells - 1)
