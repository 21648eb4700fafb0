"""Denoising queries for detection transformers: boxes of objects with noise, from which the decoder
learns to restore the objects (Li et al. 2022, arXiv 2203.01305), and boxes with more noise, which
it learns to reject (Zhang et al. 2022, arXiv 2203.03605).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visionkit.ops.layers import noise_of
from visionkit.types import Target

PADDING = -1
CPU = torch.device("cpu")


class Denoising(NamedTuple):
    """The denoising queries of a batch, D for each image, the rest padding. The queries of a group
    are copies of each object with little noise, then as many with more."""

    boxes: Tensor  # (B, D, 4) corners in 0..1, perhaps crossed
    labels: Tensor  # (B, D), some of them wrong
    group: Tensor  # (B, D), or PADDING
    objects: Tensor  # (B, D): the object of its image to restore, or PADDING
    weights: Tensor  # (B,): of each query in the loss, so that each object counts once
    num_objects: int  # the objects that have queries


def denoising_queries(
    truths: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Target],
    num_classes: int,
    *,
    total: int,
    label_noise: float,
    box_noise: float,
) -> Denoising | None:
    """Queries for objects with boxes (M, 4), corners in 0..1, and labels (M,), of each image; None
    for no objects. All randomness is keyed by the images.

    An image has `total` pairs of queries, in groups of all of its objects; of more objects than
    that, so many, drawn at random. `label_noise` is twice the share of wrong labels; the sides of
    boxes move by up to `box_noise` times half of the extent, those to reject by once to twice that.
    """
    parts = [
        _of_image(boxes, labels, noise_of(target, CPU), num_classes, total, label_noise, box_noise)
        for (boxes, labels), target in zip(truths, targets, strict=True)
    ]
    used = sum(min(total, len(labels)) for _, labels in truths)
    if not used:
        return None
    boxes, labels, group, objects = (
        pad_sequence([part[k] for part in parts], batch_first=True, padding_value=padding)
        for k, padding in enumerate((0, 0, PADDING, PADDING))
    )
    weights = [1 / max(1, total // max(1, len(labels))) for _, labels in truths]
    return Denoising(
        boxes, labels, group, objects, torch.tensor(weights, device=boxes.device), used
    )


def _of_image(
    boxes: Tensor,
    labels: Tensor,
    noise: torch.Generator | None,
    num_classes: int,
    total: int,
    label_noise: float,
    box_noise: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, labels, groups and objects of the queries of one image."""
    index = torch.arange(len(labels))
    if len(labels) > total:
        index = torch.randperm(len(labels), generator=noise)[:total]
    shape = total // max(1, len(index)), 2, len(index)  # groups, to restore or reject, objects
    draw = torch.rand(*shape, 10, generator=noise)
    size, sign, wrong, other = draw.split([4, 4, 1, 1], -1)
    size = size + torch.tensor([0.0, 1.0])[:, None, None]
    move = size * torch.where(sign < 0.5, -0.5, 0.5) * box_noise
    objects = index.expand(shape).clone()
    objects[:, 1] = PADDING
    group = torch.arange(shape[0])[:, None, None].expand(shape)
    # All is drawn on the CPU: one copy for each image, and no kernels.
    flat = index.expand(shape).flatten().to(labels.device)
    own = boxes[flat]
    extent = (own[:, 2:] - own[:, :2]).repeat(1, 2)
    moved = (own + move.flatten(0, 2).to(boxes) * extent).clamp(0, 1)
    random = (other * num_classes).long().clamp(max=num_classes - 1).flatten().to(labels)
    is_wrong = (wrong < 0.5 * label_noise).flatten().to(labels.device)
    kept = torch.where(is_wrong, random, labels[flat])
    return moved, kept, group.flatten().to(labels), objects.flatten().to(labels)


def attention_mask(group: Tensor, queries: int) -> Tensor:
    """Which of D denoising queries, of these groups (B, D), and of so many others, which stand
    behind them, attend to which: (B, D + queries, D + queries) bool.

    A group sees itself and the others, but no other group; the others see no group.
    """
    batch, denoising = group.shape
    allowed = torch.ones(batch, *(denoising + queries,) * 2, dtype=torch.bool, device=group.device)
    allowed[:, denoising:, :denoising] = False
    allowed[:, :denoising, :denoising] = group[:, :, None] == group[:, None, :]
    return allowed
