"""Losses of semantic segmentation, also with partial labels, and semantic maps from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionkit.distributed.collectives import all_gather_with_grad
from visionkit.errors import ConfigError
from visionkit.models.heads.classification import weights_in_order
from visionkit.ops import original
from visionkit.types import IGNORE, Batch, HeadPrediction, Loss, Size, Target, as_numpy

CHUNK = 2**23  # logits held at full resolution at a time: 32 MB
MAX_CLASSES = IGNORE  # what fits into 8 bits next to it
TINY = 1e-12  # least sum of class weights


class Sums(NamedTuple):
    """What an image, or a batch, adds to the losses."""

    cross_entropy: Tensor  # () weighted
    weight: Tensor  # () of the pixels that count
    overlap: Tensor  # (K,) probability of a class on its own pixels
    extent: Tensor  # (K,) probability of a class anywhere, plus its pixels
    pixels: Tensor  # (K,) of each class


class PixelLoss(nn.Module):
    """Cross-entropy of every labeled pixel at the full resolution of the batch, and Dice.

    Pixels of IGNORE, padding, and images without `semantic` are excluded. A pixel of a class that
    is not in `semantic_labeled` means "one of the unlabeled classes": their probabilities are
    summed before the logarithm (marginal loss, Shi et al. 2021), and Dice excludes them.

    class_weights: factor of a class in the cross-entropy, by name; 1 where none is given. Classes
        that are not labeled share the mean of theirs.
    dice: weight of the term `dice`; 0 is none.
    """

    weights: Tensor

    def __init__(
        self, classes: Sequence[str], *, class_weights: dict[str, float] | None, dice: float
    ) -> None:
        super().__init__()
        if len(classes) > MAX_CLASSES:
            raise ConfigError(
                f"classes: got {len(classes)}; semantic maps have 8 bits and 255 means ignore, so "
                f"expected at most {MAX_CLASSES}"
            )
        self.dice = dice
        weights = torch.tensor(weights_in_order(classes, class_weights or {}))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, batch: Batch) -> dict[str, Loss]:
        """`semantic`, and `dice` where it has a weight, of `logits` (B, K, hl, wl).

        `semantic` is the mean over all pixels of the batch that count, by weight; `dice` the mean
        over the classes that occur in the batch of 1 - 2 |A B| / (|A| + |B|), all pixels of the
        batch taken together (Milletari et al. 2016).
        """
        sums = self._of_batch(logits, batch)
        losses = {"semantic": Loss(sums.cross_entropy, sums.weight, TINY)}
        if self.dice:
            own = torch.stack([sums.overlap, sums.extent, sums.pixels])[None]
            overlap, extent, pixels = all_gather_with_grad(own).sum(0)  # of all ranks
            occurs = pixels > 0
            missed = 1 - 2 * overlap / extent.clamp(min=1)
            losses["dice"] = Loss(self.dice * (missed * occurs).sum(), occurs.sum())
        return losses

    def _of_batch(self, logits: Tensor, batch: Batch) -> Sums:
        height, width = batch.images.shape[-2:]
        # Logits of one image at a time at full resolution; computed again for the gradient.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        of_images = [
            again(self._of_image, image, target, (height, width))
            for image, target in zip(logits, batch.targets, strict=True)
            if "semantic" in target
        ]
        if not of_images:
            nothing, of_class = logits.sum().float() * 0, torch.zeros_like(self.weights)
            return Sums(nothing, nothing.detach(), nothing + of_class, of_class, of_class)
        total: Any = [sum(column) for column in zip(*of_images, strict=True)]
        return Sums(*total)

    def _of_image(self, logits: Tensor, target: Target, padded: Size) -> Sums:
        logits = at_pixels(logits, target["size"], padded)
        truth = target["semantic"].long()
        weights, partial = self.weights, None
        if "semantic_labeled" in target and not target["semantic_labeled"].all():
            partial = target["semantic_labeled"]
            logits, truth, weights = _merge(logits, truth, weights, partial)
        log_probs = F.log_softmax(logits, 0)
        by_value = weights.new_zeros(IGNORE + 1)
        by_value[: len(weights)] = weights
        cross_entropy = F.nll_loss(
            log_probs[None], truth[None], weights, ignore_index=IGNORE, reduction="sum"
        )
        zeros = torch.zeros_like(self.weights)
        by_class = [zeros, zeros, zeros]
        if self.dice:
            by_class = _dice_sums(log_probs, truth, len(logits) - (partial is not None))
        if self.dice and partial is not None:
            by_class = [zeros.masked_scatter(partial, sums) for sums in by_class]
        return Sums(cross_entropy, by_value[truth].sum(), *by_class)


def _merge(
    logits: Tensor, truth: Tensor, weights: Tensor, labeled: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (K, h, w), truth (h, w) and weights (K,) with all classes that are not `labeled`
    (K,) as one more class after the others, whose probability is the sum of theirs. Where none is
    labeled, all pixels become IGNORE."""
    others = logits[~labeled].logsumexp(0, keepdim=True)
    slots = torch.full((IGNORE + 1,), IGNORE, device=truth.device)
    other = torch.where(labeled.any(), labeled.sum(), IGNORE)
    slots[: len(labeled)] = torch.where(labeled, labeled.cumsum(0) - 1, other)
    return (
        torch.cat([logits[labeled], others]),
        slots[truth],
        torch.cat([weights[labeled], weights[~labeled].mean(0, keepdim=True)]),
    )


def _dice_sums(log_probs: Tensor, truth: Tensor, classes: int) -> list[Tensor]:
    """Overlap, extent and pixels, each (classes,), of the first so many classes."""
    probs = log_probs[:classes].exp() * (truth != IGNORE)
    own = truth == torch.arange(classes, device=truth.device)[:, None, None]
    pixels = own.sum((1, 2)).float()
    return [(probs * own).sum((1, 2)), probs.sum((1, 2)) + pixels, pixels]


def cells_of_image(logits: Tensor, size: Size, padded: Size) -> Tensor:
    """The cells (K, ch, cw) of an image's `logits` (K, hl, wl) that see a part of it.

    `size` is the image's valid (h, w), `padded` that of the whole batch, which the grid covers.
    """
    hl, wl = logits.shape[-2:]
    return logits[:, : math.ceil(size[0] * hl / padded[0]), : math.ceil(size[1] * wl / padded[1])]


def at_pixels(logits: Tensor, size: Size, padded: Size) -> Tensor:
    """`logits` (K, hl, wl) at the valid pixels of the image: (K, h, w) float32, bilinear.

    Cells that see only padding are excluded: at the edge the outermost valid cell counts alone.
    """
    cells = cells_of_image(logits, size, padded)
    covered = [
        math.ceil(count * whole / grid)
        for count, whole, grid in zip(cells.shape[-2:], padded, logits.shape[-2:], strict=True)
    ]
    full = F.interpolate(cells[None].float(), covered, mode="bilinear", align_corners=False)[0]
    return full[:, : size[0], : size[1]]


def semantic_map(logits: Tensor, size: Size, padded: Size, orig_size: Size) -> Tensor:
    """The most probable class of each original pixel, (h, w) uint8, of `logits` (K, hl, wl); see
    `visionkit.ops.original.semantic_map`, which is several times faster than torch on a CPU."""
    if not logits.is_cpu:
        return sampled_map(logits, size, padded, orig_size)
    found = original.semantic_map(as_numpy(logits), size, padded, orig_size)
    return torch.from_numpy(found)


def sampled_map(logits: Tensor, size: Size, padded: Size, orig_size: Size) -> Tensor:
    """The same on the device of the logits, some rows at a time, so that those of a large image are
    never all held at full resolution."""
    cells = cells_of_image(logits, size, padded).float()
    rows, columns = (
        # In the units of grid_sample: -1 and 1 are the outer edges of the valid cells.
        _centers(orig, whole * count / (side * grid), count, cells.device)
        for orig, side, whole, grid, count in zip(
            orig_size, size, padded, logits.shape[-2:], cells.shape[-2:], strict=True
        )
    )
    found = []
    for part in rows.split(max(1, CHUNK // (len(cells) * orig_size[1]))):
        places = torch.stack(torch.meshgrid(part, columns, indexing="ij")[::-1], dim=-1)
        full = F.grid_sample(cells[None], places[None], align_corners=False)[0]
        found.append(full.argmax(0).to(torch.uint8))
    return torch.cat(found)


def _centers(pixels: int, covered: float, cells: int, device: torch.device) -> Tensor:
    """Centers of `pixels` pixels within cells that reach `covered` times as far as the pixels."""
    centers = (torch.arange(pixels, device=device) + 0.5) * (2 / (pixels * covered)) - 1
    edge = 1 - 1 / cells  # the center of the outermost cell, beyond which its value stays
    return centers.clamp(-edge, edge)


def semantic_maps(logits: Tensor, batch: Batch) -> list[HeadPrediction]:
    """Each image's `semantic` (h, w) uint8 at its `orig_size`, of `logits` (B, K, hl, wl)."""
    height, width = batch.images.shape[-2:]
    return [
        {"semantic": semantic_map(image, target["size"], (height, width), target["orig_size"])}
        for image, target in zip(logits, batch.targets, strict=True)
    ]
