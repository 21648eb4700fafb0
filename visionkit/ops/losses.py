"""Losses that several heads use, without any reduction: the caller sums.

All are computed in float32, whatever the precision of the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.ops.boxes import area


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss, of the shape of `logits` (Lin et al. 2017).

    `targets` are 0 or 1. `alpha` weights positives against negatives, `gamma` hard examples against
    easy ones.
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probs = logits.sigmoid()
    missed = probs + targets - 2 * probs * targets  # 1 - p where the target is 1, else p
    balance = (1 - alpha) + (2 * alpha - 1) * targets
    return balance * missed**gamma * cross_entropy


def quality_focal_loss(logits: Tensor, targets: Tensor, *, beta: float = 2.0) -> Tensor:
    """Cross-entropy with targets in 0..1, each weighted by |probability - target|^beta: the focal
    loss for soft targets, of the shape of `logits` (Li et al. 2020, arXiv 2006.04388).
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (logits.sigmoid() - targets).abs() ** beta * cross_entropy


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy plus dice loss (Milletari et al. 2016) of each of R masks: (R,).

    `logits` (R, s, s); `targets` (R, s, s) in 0..1.
    """
    logits, targets = logits.float().flatten(1), targets.float().flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    probs = logits.sigmoid()
    shared, total = (probs * targets).sum(1), (probs.square() + targets.square()).sum(1)
    return cross_entropy + 1 - (2 * shared + 1) / (total + 1)  # 1: empty masks have no ratio


def marginal_cross_entropy(logits: Tensor, possible: Tensor) -> Tensor:
    """-log of the total probability of the classes that are possible (Shi et al. 2021): (...,).

    `logits` (..., K), `possible` (..., K) bool with at least one in each row. With exactly one it
    is the softmax cross-entropy.
    """
    logits = logits.float()
    return logits.logsumexp(-1) - logits.masked_fill(~possible, -torch.inf).logsumexp(-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalized IoU of boxes (..., 4) with targets (..., 4), in 0..2 (Rezatofighi 2019)."""
    boxes, targets = boxes.float(), targets.float()
    low, high = torch.maximum(boxes, targets), torch.minimum(boxes, targets)
    extent = (high[..., 2:] - low[..., :2]).clamp(min=0)
    shared = extent[..., 0] * extent[..., 1]
    union = area(boxes) + area(targets) - shared
    hull = area(torch.cat([high[..., :2], low[..., 2:]], dim=-1))
    tiny = 1e-7  # two empty boxes: no division by zero
    return 1 - shared / (union + tiny) + (hull - union) / (hull + tiny)


def varifocal_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy with targets in 0..1, of the shape of `logits` (Zhang et al. 2021, arXiv
    2008.13367): weighted by the target where it is `positive` (bool), elsewhere by alpha times the
    probability to the power of gamma.
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    background = alpha * logits.detach().sigmoid() ** gamma
    return targets.where(positive, background) * cross_entropy
