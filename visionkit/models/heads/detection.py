"""Boxes of many objects: Faster R-CNN in two stages; those in one are in `fcos` and `aligned`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.config.schema import Count, Fraction, Positive
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.heads.fcos import FCOS
from visionkit.models.heads.rcnn.matching import (
    GroundTruth,
    MatcherSampler,
    labeled,
    objects_of,
    zero_losses,
)
from visionkit.models.heads.rcnn.roi_heads import (
    MaskHead,
    MaskPredictor,
    RoIHeads,
    RoIPooler,
    SampledRegions,
    encode_masks,
    mask_loss,
    mask_targets,
)
from visionkit.models.heads.rcnn.rpn import RPN, AnchorGenerator, Counts
from visionkit.models.heads.task_aligned import TaskAligned
from visionkit.ops.boxes import to_original
from visionkit.types import Batch, Dataset, Evaluator, Head, Level, Loss

# --- Boxes and masks of many objects: Mask R-CNN.


class MaskRCNN(Head):
    """Faster R-CNN with a branch that draws each object's mask (He et al. 2017).

    All arguments but the last three are those of `FasterRCNN`.

    mask_pool_size: bins per region side; the mask has twice as many.
    mask_channels, mask_convs: width and number of the mask branch's hidden convolutions; by
        default as wide as the levels.
    """

    required_targets = ("boxes", "labels", "masks")
    class_key = "labels"
    main_metric = "segm/AP"
    terms = ("objectness", "rpn_box", "classifier", "box_reg", "mask")

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        anchor_sizes: list[list[Positive]] | None = None,
        anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0),
        rpn_convs: Count = 1,
        rpn_fg_iou: Fraction = 0.7,
        rpn_bg_iou: Fraction = 0.3,
        rpn_batch_size: Count = 256,
        rpn_positive_fraction: Fraction = 0.5,
        rpn_pre_nms_train: Count = 2000,
        rpn_pre_nms_test: Count = 1000,
        rpn_post_nms_train: Count = 2000,
        rpn_post_nms_test: Count = 1000,
        rpn_nms_iou: Fraction = 0.7,
        rpn_score_threshold: Fraction = 0.0,
        roi_levels: list[str] | None = None,
        box_pool_size: Count = 7,
        sampling_ratio: Count = 2,
        box_hidden: Count | None = None,
        box_fg_iou: Fraction = 0.5,
        box_bg_iou: Fraction = 0.5,
        box_batch_size: Count = 512,
        box_positive_fraction: Fraction = 0.25,
        box_score_threshold: Fraction = 0.05,
        box_nms_iou: Fraction = 0.5,
        max_detections: Count = 100,
        mask_pool_size: Count = 14,
        mask_channels: Count | None = None,
        mask_convs: Count = 4,
    ) -> None:
        super().__init__()
        self.rpn = RPN(
            levels,
            AnchorGenerator(levels, anchor_sizes, anchor_ratios),
            MatcherSampler(
                rpn_fg_iou,
                rpn_bg_iou,
                best_for_each=True,
                batch_size=rpn_batch_size,
                positive_fraction=rpn_positive_fraction,
            ),
            convs=rpn_convs,
            train=Counts(rpn_pre_nms_train, rpn_post_nms_train),
            test=Counts(rpn_pre_nms_test, rpn_post_nms_test),
            nms_iou=rpn_nms_iou,
            score_threshold=rpn_score_threshold,
        )
        self.roi_heads = RoIHeads(
            len(classes),
            RoIPooler(levels, roi_levels, box_pool_size, sampling_ratio),
            MatcherSampler(
                box_fg_iou,
                box_bg_iou,
                best_for_each=False,
                batch_size=box_batch_size,
                positive_fraction=box_positive_fraction,
            ),
            hidden=box_hidden,
            score_threshold=box_score_threshold,
            nms_iou=box_nms_iou,
            max_detections=max_detections,
        )
        self.mask_pool = RoIPooler(levels, roi_levels, mask_pool_size, sampling_ratio)
        # Beside the box modules, where torchvision's checkpoints have them.
        mask_channels = mask_channels or self.mask_pool.channels
        self.roi_heads.mask_head = MaskHead(self.mask_pool.channels, mask_channels, mask_convs)
        self.roi_heads.mask_predictor = MaskPredictor(mask_channels, mask_channels, len(classes))

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Draws anchors and regions at random. The same in training and in evaluation mode."""
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, self.terms)
        objects = [objects_of(target) for target in batch.targets]
        candidates = self.rpn(features, batch.images.shape[-2:])
        losses = self.rpn.loss(candidates, objects)
        proposals = self.rpn.propose(candidates, batch.sizes, self.rpn.train_counts)
        regions = self.roi_heads.sample(proposals, objects)
        losses |= self.roi_heads.loss(features, regions)
        return losses | {"mask": self._mask_loss(features, regions, objects)}

    def _mask_loss(
        self, features: dict[str, Tensor], regions: SampledRegions, objects: Sequence[GroundTruth]
    ) -> Loss:
        masks = [image_objects.masks for image_objects in objects]
        drawn = [image_masks.flatten(1).any(1) for image_masks in masks]
        boxes, matched, classes = regions.positive(drawn)
        logits = self._mask_logits(features, boxes, classes)
        return mask_loss(logits, mask_targets(boxes, matched, masks, logits.shape[-1]))

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Tensor
    ) -> Tensor:
        """(R, 2s, 2s) for the boxes of all images; `classes` (R,) count background as 0."""
        hidden = self.roi_heads.mask_head(self.mask_pool(features, boxes))
        return self.roi_heads.mask_predictor(hidden, classes)

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
        """For each image `boxes` (N, 4), `scores`, `labels` and `masks`, best first.

        In original pixels; masks are N dicts of COCO's compressed RLE.
        """
        candidates = self.rpn(features, batch.images.shape[-2:])
        proposals = self.rpn.propose(candidates, batch.sizes, self.rpn.test_counts)
        detections = self.roi_heads.detect(features, proposals, batch.sizes)
        boxes = [found["boxes"] for found in detections]
        classes = torch.cat([found["labels"] for found in detections]) + 1
        probs = self._mask_logits(features, boxes, classes).sigmoid()
        probs = probs.split([len(b) for b in boxes])
        for found, mask_probs, target in zip(detections, probs, batch.targets, strict=True):
            found["boxes"] = to_original(found["boxes"], target["size"], target["orig_size"])
            found["masks"] = encode_masks(mask_probs, found["boxes"], target["orig_size"])
        return detections

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox", "segm"))


__all__ = ["FCOS", "FasterRCNN", "TaskAligned"]


class FasterRCNN(Head):
    """Proposes regions from anchors, then classifies and refines them (Ren et al. 2015).

    With a feature pyramid as in Lin et al. 2017. Parts, parameter names and defaults are
    torchvision's, so its checkpoints fit. Thresholds named `iou` are in 0..1.

    anchor_sizes: for each level a list of sizes in pixels; by default [8 * stride].
    anchor_ratios: height / width of the anchors; each size comes in each ratio.
    rpn_convs: hidden convolutions of the proposal network.
    rpn_fg_iou, rpn_bg_iou: an anchor is positive from the one overlap with an object, negative
        below the other, and ignored between them.
    rpn_batch_size, rpn_positive_fraction: anchors per image in the loss; share of positives.
    rpn_pre_nms_*, rpn_post_nms_*: proposals kept per level before, and per image after
        non-maximum suppression at `rpn_nms_iou`: `train` in the loss, `test` in predictions.
    rpn_score_threshold: least objectness of a proposal.
    roi_levels: levels that regions are read from; by default those of stride 32 and finer.
    box_pool_size, sampling_ratio: bins per region side; samples per bin side.
    box_hidden: width of the two hidden layers over a region; by default 4 times the channels of
        the levels, which is torchvision's 1024 at its 256.
    box_fg_iou, box_bg_iou, box_batch_size, box_positive_fraction: as for the anchors, but for the
        regions of the second stage.
    box_score_threshold, box_nms_iou, max_detections: which detections are predicted.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"
    terms = ("objectness", "rpn_box", "classifier", "box_reg")

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        anchor_sizes: list[list[Positive]] | None = None,
        anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0),
        rpn_convs: Count = 1,
        rpn_fg_iou: Fraction = 0.7,
        rpn_bg_iou: Fraction = 0.3,
        rpn_batch_size: Count = 256,
        rpn_positive_fraction: Fraction = 0.5,
        rpn_pre_nms_train: Count = 2000,
        rpn_pre_nms_test: Count = 1000,
        rpn_post_nms_train: Count = 2000,
        rpn_post_nms_test: Count = 1000,
        rpn_nms_iou: Fraction = 0.7,
        rpn_score_threshold: Fraction = 0.0,
        roi_levels: list[str] | None = None,
        box_pool_size: Count = 7,
        sampling_ratio: Count = 2,
        box_hidden: Count | None = None,
        box_fg_iou: Fraction = 0.5,
        box_bg_iou: Fraction = 0.5,
        box_batch_size: Count = 512,
        box_positive_fraction: Fraction = 0.25,
        box_score_threshold: Fraction = 0.05,
        box_nms_iou: Fraction = 0.5,
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        self.rpn = RPN(
            levels,
            AnchorGenerator(levels, anchor_sizes, anchor_ratios),
            MatcherSampler(
                rpn_fg_iou,
                rpn_bg_iou,
                best_for_each=True,
                batch_size=rpn_batch_size,
                positive_fraction=rpn_positive_fraction,
            ),
            convs=rpn_convs,
            train=Counts(rpn_pre_nms_train, rpn_post_nms_train),
            test=Counts(rpn_pre_nms_test, rpn_post_nms_test),
            nms_iou=rpn_nms_iou,
            score_threshold=rpn_score_threshold,
        )
        self.roi_heads = RoIHeads(
            len(classes),
            RoIPooler(levels, roi_levels, box_pool_size, sampling_ratio),
            MatcherSampler(
                box_fg_iou,
                box_bg_iou,
                best_for_each=False,
                batch_size=box_batch_size,
                positive_fraction=box_positive_fraction,
            ),
            hidden=box_hidden,
            score_threshold=box_score_threshold,
            nms_iou=box_nms_iou,
            max_detections=max_detections,
        )

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Draws anchors and regions at random. The same in training and in evaluation mode."""
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, self.terms)
        objects = [objects_of(target) for target in batch.targets]
        candidates = self.rpn(features, batch.images.shape[-2:])
        losses = self.rpn.loss(candidates, objects)
        proposals = self.rpn.propose(candidates, batch.sizes, self.rpn.train_counts)
        regions = self.roi_heads.sample(proposals, objects)
        return losses | self.roi_heads.loss(features, regions)

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
        """For each image `boxes` (N, 4) in original pixels, `scores` and `labels`, best first."""
        candidates = self.rpn(features, batch.images.shape[-2:])
        proposals = self.rpn.propose(candidates, batch.sizes, self.rpn.test_counts)
        detections = self.roi_heads.detect(features, proposals, batch.sizes)
        for found, target in zip(detections, batch.targets, strict=True):
            found["boxes"] = to_original(found["boxes"], target["size"], target["orig_size"])
        return detections

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))
