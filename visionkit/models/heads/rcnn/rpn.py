"""Region proposal network: where there may be an object, of whatever class (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.models.heads.dense import AnchorGenerator, Anchors, best_of_each_level, init_small
from visionkit.models.heads.matching import BACKGROUND, IGNORED, GroundTruth, Matcher, Sampler
from visionkit.ops.boxes import clip, encode
from visionkit.ops.layers import conv_block
from visionkit.ops.nms import suppress
from visionkit.types import Features, Loss, Size

MIN_EXTENT = 1e-3  # pixels; proposals that are thinner than that are dropped


class RPNOutput(NamedTuple):
    """Predictions of the network for every anchor."""

    logits: Tensor  # (B, N)
    offsets: Tensor  # (B, N, 4)
    anchors: Anchors


class TopN(NamedTuple):
    """Most proposals per level before non-maximum suppression, and per image after it."""

    pre_nms: int
    post_nms: int


class RPN(nn.Module):
    """Scores every anchor, and proposes the best that do not overlap each other.

    train, test: how many proposals, for the second stage to learn from and for predictions.
    nms_iou: of two proposals of one level that overlap more than that, the worse goes.
    score_threshold: the least probability of an object.
    """

    def __init__(
        self,
        anchors: AnchorGenerator,
        matcher: Matcher,
        sampler: Sampler,
        *,
        convs: int,
        train: TopN,
        test: TopN,
        nms_iou: float,
        score_threshold: float,
    ) -> None:
        super().__init__()
        self.levels = list(anchors.levels)
        self.anchors = anchors
        self.head = RPNHead(anchors.levels[self.levels[0]].channels, anchors.per_cell, convs)
        self.matcher, self.sampler = matcher, sampler
        self.train_top, self.test_top = train, test
        self.nms_iou = nms_iou
        self.score_threshold = score_threshold

    def forward(self, features: Features) -> RPNOutput:
        maps = (self.head(features[name]) for name in self.levels)
        logits, offsets = zip(*maps, strict=True)
        return RPNOutput(torch.cat(logits, 1), torch.cat(offsets, 1), self.anchors(features))

    @torch.no_grad()
    def propose(self, outputs: RPNOutput, sizes: Size | Tensor, top: TopN) -> tuple[Tensor, Tensor]:
        """Boxes (B, M, 4) within the valid sizes (B, 2), the best first, and how many (B,) of
        each image are proposals. The rows behind them are zero."""
        boxes, _, logits, levels, _ = best_of_each_level(
            outputs.logits.float(), outputs.offsets.float(), outputs.anchors, top.pre_nms
        )
        boxes, scores = clip(boxes, sizes), logits.sigmoid()
        solid = (boxes[..., 2:] - boxes[..., :2] >= MIN_EXTENT).all(-1)
        scores = scores.masked_fill(~solid | (scores < self.score_threshold), -1)
        found = suppress(boxes, scores, levels, iou=self.nms_iou, among="class", count=top.post_nms)
        return found["boxes"], found["count"]

    def loss(self, outputs: RPNOutput, truths: Sequence[GroundTruth]) -> dict[str, Loss]:
        """`objectness` and `rpn_box`, each divided by the number of sampled anchors.

        Where some classes are not labeled, an anchor that is taken for an object and matches
        none may be one of theirs; it is not taught that it shows background.
        """
        anchors = outputs.anchors.corners
        logits, is_object, offsets, targets = [], [], [], []
        for index, truth in enumerate(truths):
            matched = self.matcher(anchors, truth)
            if truth.partially_labeled:
                matched[(matched == BACKGROUND) & (outputs.logits[index] > 0)] = IGNORED
            positive, negative = self.sampler(matched, truth.noise)
            logits.append(outputs.logits[index, torch.cat([positive, negative])])
            is_object.append(torch.ones(len(positive), device=anchors.device))
            is_object.append(torch.zeros(len(negative), device=anchors.device))
            offsets.append(outputs.offsets[index, positive])
            targets.append(encode(truth.boxes[matched[positive]], anchors[positive]))
        objectness = F.binary_cross_entropy_with_logits(
            torch.cat(logits).float(), torch.cat(is_object), reduction="sum"
        )
        box = F.smooth_l1_loss(
            torch.cat(offsets).float(), torch.cat(targets), beta=1 / 9, reduction="sum"
        )
        sampled = objectness.new_full((), sum(map(len, logits)))
        return {"objectness": Loss(objectness, sampled), "rpn_box": Loss(box, sampled)}


class RPNHead(nn.Module):
    """Convolutions shared by all levels: a logit and offsets for each anchor of each location."""

    def __init__(self, channels: int, anchors_per_cell: int, convs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(conv_block(channels, channels, "none") for _ in range(convs)))
        self.cls_logits = nn.Conv2d(channels, anchors_per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors_per_cell, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_small(layer)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, C, h, w): logits (B, h * w * A) and offsets (B, h * w * A, 4)."""
        hidden = self.conv(feature)
        logits = self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.bbox_pred(hidden).permute(0, 2, 3, 1).flatten(1)
        return logits, offsets.unflatten(1, (-1, 4))
