"""Matches boxes to objects, and samples the boxes to learn from. For any head with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import ConfigError
from visionkit.ops.boxes import box_ioa, box_iou
from visionkit.ops.layers import noise_of
from visionkit.types import Batch, Features, Loss, Target

BACKGROUND, IGNORED = -1, -2


class GroundTruth(NamedTuple):
    """The labeled objects of one image, apart from its crowd regions."""

    boxes: Tensor  # (M, 4)
    labels: Tensor  # (M,)
    crowds: Tensor  # (C, 4)
    masks: Tensor | None  # (M, h, w) bool
    labeled: Tensor | None = None  # (K,) bool; None: all classes
    noise: torch.Generator | None = None  # for the random sampling in it; None: torch's default

    @property
    def partially_labeled(self) -> bool:
        """Whether there may be objects without a label."""
        return self.labeled is not None and not bool(self.labeled.all())


def ground_truth_of(target: Target) -> GroundTruth:
    boxes, labels, masks = target["boxes"], target["labels"], target.get("masks")
    labeled, noise = target.get("labeled"), noise_of(target, boxes.device)
    crowd = target.get("iscrowd")
    if crowd is None or not crowd.any():
        return GroundTruth(boxes, labels, boxes[:0], masks, labeled, noise)
    single = ~crowd
    single_masks = None if masks is None else masks[single]
    return GroundTruth(boxes[single], labels[single], boxes[crowd], single_masks, labeled, noise)


@dataclass(frozen=True)
class Matcher:
    """Matches boxes to objects by their overlap (Ren et al. 2015).

    fg_iou: a box that overlaps an object by at least this is positive.
    bg_iou: a box that overlaps every object by less is background. The boxes between are ignored,
        as is background that lies by more than half in a crowd region.
    best_for_each: whether the boxes that overlap an object most are positive however small the
        overlap is (for the object that they overlap most, if that is another).
    """

    fg_iou: float
    bg_iou: float
    best_for_each: bool

    def __post_init__(self) -> None:
        if self.bg_iou > self.fg_iou:
            raise ConfigError(f"bg_iou ({self.bg_iou}) must not exceed fg_iou ({self.fg_iou})")

    def __call__(self, boxes: Tensor, truth: GroundTruth) -> Tensor:
        """For each box (N, 4) the index of its object, BACKGROUND or IGNORED: (N,) int64."""
        matched = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        if len(truth.boxes):
            iou_MN = box_iou(truth.boxes, boxes)
            iou, nearest = iou_MN.max(0)
            matched[iou >= self.bg_iou] = IGNORED
            positive = iou >= self.fg_iou
            if self.best_for_each:
                best = iou_MN.amax(1, keepdim=True)
                positive |= ((iou_MN == best) & (best > 0)).any(0)
            matched = torch.where(positive, nearest, matched)
        if len(truth.crowds):
            in_crowd = box_ioa(boxes, truth.crowds).amax(1) > 0.5
            matched[in_crowd & (matched == BACKGROUND)] = IGNORED
        return matched


@dataclass(frozen=True)
class Sampler:
    """Draws the boxes of an image that are in the loss (Ren et al. 2015).

    batch_size, positive_fraction: boxes to draw; largest share of positives.
    """

    batch_size: int
    positive_fraction: float

    def __call__(self, matched: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Indices of the drawn positives and negatives, from a `Matcher`'s matches (N,)."""
        positive = torch.where(matched >= 0)[0]
        negative = torch.where(matched == BACKGROUND)[0]
        positive = _sample(positive, int(self.batch_size * self.positive_fraction), noise)
        return positive, _sample(negative, self.batch_size - len(positive), noise)


def _sample(indices: Tensor, count: int, noise: torch.Generator | None) -> Tensor:
    order = torch.randperm(len(indices), device=indices.device, generator=noise)
    return indices[order[:count]]


def labeled(
    features: Features, batch: Batch, required_targets: Sequence[str]
) -> tuple[dict[str, Tensor], Batch]:
    """The part of a batch whose targets have all the keys in `required_targets`."""
    keep = [i for i, t in enumerate(batch.targets) if all(key in t for key in required_targets)]
    if len(keep) == len(batch):
        return features, batch
    part = Batch(batch.images[keep], [batch.targets[i] for i in keep])
    return {name: level[keep] for name, level in features.items()}, part


def marginal_targets(logits: Tensor, possible: Tensor) -> Tensor:
    """What boxes may show (R, K + 1), background first, less the classes that are not labeled
    wherever background is more probable than each of them."""
    others = logits.masked_fill(~possible, -torch.inf)[:, 1:].amax(1)
    background = possible[:, 0] & (logits[:, 0] >= others)
    return possible & ~F.pad(background[:, None].expand(-1, possible.shape[1] - 1), (1, 0))


def zero_losses(head: nn.Module, features: Features, terms: Sequence[str]) -> dict[str, Loss]:
    """Zeros with a gradient of zero for the features and for each parameter of the head."""
    reached = [*features.values(), *head.parameters()]
    zero = sum((tensor.sum() * 0.0 for tensor in reached), start=torch.zeros(()).to(reached[0]))
    return {term: Loss(zero, zero.new_zeros(())) for term in terms}
