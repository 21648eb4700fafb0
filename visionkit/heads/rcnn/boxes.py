"""The second stage: which class a proposed region shows, and its exact box (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from visionkit.boxes import clip, decode, encode
from visionkit.global_batch import divisor
from visionkit.heads.rcnn.matching import Objects, Sampler
from visionkit.heads.rcnn.pooling import RegionPool
from visionkit.losses import marginal_cross_entropy

OFFSET_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # makes the offsets' spread about 1
MIN_EXTENT = 1e-2  # pixels; detections that are thinner than that are dropped


class Regions(NamedTuple):
    """The regions to learn from. In `classes` 0 is background, and label k is k + 1."""

    boxes: list[Tensor]  # (R_i, 4) for each image
    matched: list[Tensor]  # (R_i,) for each image: its object, or negative
    classes: Tensor  # (R,) for all images
    goals: Tensor  # (R, 4) box of the object for all images; the region's own for background
    possible: Tensor | None  # (R, K + 1) bool: what each may show; None: its class alone

    def positive(self, drawn: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Boxes and matched objects for each image, and classes for all: the regions of objects
        whose mask is known, which `drawn` (M_i,) bool tells for each image."""
        keep = []
        for matched, known in zip(self.matched, drawn, strict=True):
            keep.append(matched >= 0)
            keep[-1][matched >= 0] = known[matched[matched >= 0]]
        boxes = [b[k] for b, k in zip(self.boxes, keep, strict=True)]
        matched = [m[k] for m, k in zip(self.matched, keep, strict=True)]
        return boxes, matched, self.classes[torch.cat(keep)]


class BoxHead(nn.Module):
    """Two hidden layers over a pooled region."""

    def __init__(self, channels: int, size: int, hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, size, size) to (R, hidden)."""
        return F.relu(self.fc7(F.relu(self.fc6(regions.flatten(1)))))


class BoxPredictor(nn.Module):
    """A logit for background and each of K classes, and box offsets for each of them."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 * (num_classes + 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, hidden) to (R, K + 1) and (R, K + 1, 4), in float32."""
        offsets = self.bbox_pred(hidden).float().unflatten(1, (-1, 4))
        return self.cls_score(hidden).float(), offsets


class BoxStage(nn.Module):
    """Learns from sampled proposals; turns proposals into detections.

    hidden: width of the box head; by default 4 times the pool's channels.
    score_threshold: the least probability of a class for a detection.
    nms_iou: of two detections of one class that overlap more than that, the worse goes.
    max_detections: most detections per image, over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        pool: RegionPool,
        sampler: Sampler,
        *,
        hidden: int | None,
        score_threshold: float,
        nms_iou: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool = pool
        self.sampler = sampler
        hidden = hidden or 4 * pool.channels
        self.box_head = BoxHead(pool.channels, pool.size, hidden)
        self.box_predictor = BoxPredictor(hidden, num_classes)
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections

    def forward(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1) and offsets (R, K + 1, 4) of the boxes of all images."""
        return self.box_predictor(self.box_head(self.pool(features, boxes)))

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], objects: Sequence[Objects]) -> Regions:
        """Draws regions among the proposals and the objects' own boxes."""
        boxes, matches, classes, goals, partly = [], [], [], [], False
        for found, image_objects in zip(proposals, objects, strict=True):
            found = torch.cat([found, image_objects.boxes])
            matched, positive, negative = self.sampler(found, image_objects)
            drawn = torch.cat([positive, negative])
            boxes.append(found[drawn])
            matches.append(matched[drawn])
            classes.append(image_objects.labels[matched[positive]] + 1)
            classes.append(torch.zeros_like(negative))
            goals.append(image_objects.boxes[matched[positive]])
            goals.append(found[negative])
            partly |= image_objects.may_lack_some
        classes = torch.cat(classes)
        possible = _possible(classes, boxes, objects, self.num_classes) if partly else None
        return Regions(boxes, matches, classes, torch.cat(goals), possible)

    def loss(self, features: dict[str, Tensor], regions: Regions) -> dict[str, Tensor]:
        """`classifier` and `box_reg`, each divided by the number of regions.

        A region without an object shows background or one of the classes that are not labelled
        in its picture. Where the network finds one of those more probable than background, only
        the sum of all of them is raised (the marginal loss of Shi et al. 2021); elsewhere it is
        background. The sum alone would leave background without a teacher for too long.
        """
        logits, offsets = self(features, regions.boxes)
        positive = torch.where(regions.classes > 0)[0]
        goals = encode(regions.goals[positive], torch.cat(regions.boxes)[positive], OFFSET_WEIGHTS)
        own_offsets = offsets[positive, regions.classes[positive]]
        count = divisor(torch.tensor(float(len(logits)), device=logits.device))
        if regions.possible is None:
            classifier = F.cross_entropy(logits, regions.classes, reduction="sum")
        else:
            possible = believed(logits.detach(), regions.possible)
            classifier = marginal_cross_entropy(logits, possible).sum()
        box_reg = F.smooth_l1_loss(own_offsets, goals, beta=1 / 9, reduction="sum")
        return {"classifier": classifier / count, "box_reg": box_reg / count}

    def detect(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """For each image `boxes` (N, 4) in input pixels, `scores` and `labels`, best first."""
        logits, offsets = self(features, proposals)
        counts = [len(boxes) for boxes in proposals]
        per_image = zip(
            logits.softmax(1)[:, 1:].split(counts),
            offsets[:, 1:].split(counts),
            proposals,
            sizes,
            strict=True,
        )
        return [self._detect_in_image(*parts) for parts in per_image]

    def _detect_in_image(
        self, scores: Tensor, offsets: Tensor, proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """From scores (R, K) and offsets (R, K, 4) of the proposals (R, 4) of one image."""
        region, labels = torch.where(scores > self.score_threshold)
        scores = scores[region, labels]
        boxes = decode(offsets[region, labels], proposals[region], OFFSET_WEIGHTS)
        boxes = clip(boxes, size)
        solid = (boxes[:, 2:] - boxes[:, :2] >= MIN_EXTENT).all(1)
        boxes, scores, labels = boxes[solid], scores[solid], labels[solid]
        keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def believed(logits: Tensor, possible: Tensor) -> Tensor:
    """What regions may show (R, K + 1), less the classes that are not labelled wherever background
    is more probable than each of them."""
    others = logits.masked_fill(~possible, -torch.inf)[:, 1:].amax(1)
    background = possible[:, 0] & (logits[:, 0] >= others)
    return possible & ~F.pad(background[:, None].expand(-1, possible.shape[1] - 1), (1, 0))


def _possible(
    classes: Tensor, boxes: Sequence[Tensor], objects: Sequence[Objects], num_classes: int
) -> Tensor:
    """(R, K + 1): the class of a region; for background also what its picture does not label."""
    possible = F.one_hot(classes, num_classes + 1).bool()
    for rows, background, image_objects in zip(
        possible.split([len(b) for b in boxes]),
        (classes == 0).split([len(b) for b in boxes]),
        objects,
        strict=True,
    ):
        if image_objects.may_lack_some:
            rows[:, 1:] |= background[:, None] & ~image_objects.labelled
    return possible
