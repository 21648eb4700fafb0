"""Two-stage detection: Faster R-CNN, and Mask R-CNN, which adds a mask for each box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from visionkit.config.schema import Count, Fraction, Natural, Positive
from visionkit.errors import ConfigError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.head import Head
from visionkit.models.heads.dense import AnchorGenerator
from visionkit.models.heads.matching import Matcher, Sampler, ground_truth_of, labeled, zero_losses
from visionkit.models.heads.rcnn.roi_heads import (
    MaskHead,
    MaskPredictor,
    RoIHeads,
    RoIPooler,
    SampledRegions,
    mask_targets,
    pad_rows,
    used_rows,
    valid_rows,
)
from visionkit.models.heads.rcnn.rpn import RPN, TopN
from visionkit.ops.layers import OptionalNorm
from visionkit.ops.nms import Among, detections
from visionkit.ops.roi_align import flatten_boxes
from visionkit.types import (
    Batch,
    Dataset,
    Evaluator,
    Features,
    HeadPrediction,
    Level,
    Loss,
    Size,
)

# Of the second stage; the first knows no classes
ROWS = {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4}


class FasterRCNN(Head):
    """Proposes regions from anchors, then classifies and refines them (Ren et al. 2015).

    With a feature pyramid as in Lin et al. 2017. Parts, parameter names and defaults are
    torchvision's, so its checkpoints fit. Thresholds named `iou` are in 0..1.

    anchor_sizes: for each level a list of sizes in pixels; by default [8 * stride].
    anchor_ratios: height / width of the anchors; each size comes in each ratio.
    rpn_convs: hidden convolutions of the proposal network.
    rpn_fg_iou, rpn_bg_iou: an anchor is positive if it overlaps an object by at least the first,
        negative if it overlaps every object by less than the second, and else ignored.
    rpn_batch_size, rpn_positive_fraction: anchors per image in the loss; share of positives.
    rpn_pre_nms_*, rpn_post_nms_*: proposals kept per level before, and per image after
        non-maximum suppression at `rpn_nms_iou`: `train` in the loss, `test` in predictions.
    rpn_score_threshold: least objectness of a proposal.
    roi_levels: levels that regions are read from; by default those of stride 32 and finer.
    box_pool_size, sampling_ratio: bins per region side; samples per bin side.
    box_convs, box_norm: convolutions over a region, before the hidden layers, and the norm after
        each.
    box_hidden: width of the two hidden layers over a region, or one after convolutions; by default
        4 times the channels of the levels, which is torchvision's 1024 at its 256.
    box_fg_iou, box_bg_iou, box_batch_size, box_positive_fraction: as for the anchors, but for the
        regions of the second stage.
    box_score_threshold, box_nms_iou, max_detections: least score of a detection, overlap at which
        the weaker of two goes, and how many stay in an image. Only the best enter the suppression,
        four times as many as proposals.
    nms: whether only the detections of one `class` suppress each other, or `all`, so that no
        object is found as two classes.
    """

    required_targets: ClassVar[tuple[str, ...]] = ("boxes", "labels")
    class_key = "labels"
    class_layers = ROWS
    main_metric = "bbox/AP"
    default_transforms = ("HorizontalFlip", "ScaleJitter")
    terms: ClassVar[tuple[str, ...]] = ("objectness", "rpn_box", "classifier", "box_reg")

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
        box_convs: Natural = 0,
        box_norm: OptionalNorm = "none",
        box_hidden: Count | None = None,
        box_fg_iou: Fraction = 0.5,
        box_bg_iou: Fraction = 0.5,
        box_batch_size: Count = 512,
        box_positive_fraction: Fraction = 0.25,
        box_score_threshold: Fraction = 0.05,
        box_nms_iou: Fraction = 0.5,
        nms: Among = "class",
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        if box_norm != "none" and not box_convs:
            raise ConfigError(
                f"box_norm: got {box_norm!r} without convolutions to normalize; give box_convs"
            )
        self.rpn = RPN(
            AnchorGenerator(levels, anchor_sizes, anchor_ratios),
            Matcher(rpn_fg_iou, rpn_bg_iou, best_for_each=True),
            Sampler(rpn_batch_size, rpn_positive_fraction),
            convs=rpn_convs,
            train=TopN(rpn_pre_nms_train, rpn_post_nms_train),
            test=TopN(rpn_pre_nms_test, rpn_post_nms_test),
            nms_iou=rpn_nms_iou,
            score_threshold=rpn_score_threshold,
        )
        self.roi_heads = RoIHeads(
            len(classes),
            RoIPooler(levels, roi_levels, box_pool_size, sampling_ratio),
            Matcher(box_fg_iou, box_bg_iou, best_for_each=False),
            Sampler(box_batch_size, box_positive_fraction),
            convs=box_convs,
            norm=box_norm,
            hidden=box_hidden,
            score_threshold=box_score_threshold,
            nms_iou=box_nms_iou,
            nms=nms,
            max_detections=max_detections,
        )

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Draws anchors and regions at random. The same in training and in evaluation mode."""
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, self.terms)
        truths = [ground_truth_of(target) for target in batch.targets]
        outputs = self.rpn(features)
        losses = self.rpn.loss(outputs, truths)
        proposals, count = self.rpn.propose(outputs, batch.size_tensor, self.rpn.train_top)
        regions = self.roi_heads.sample(proposals, count, truths)
        return losses | self._second_stage_losses(features, regions)

    def _second_stage_losses(self, features: Features, regions: SampledRegions) -> dict[str, Loss]:
        return self.roi_heads.loss(features, regions)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """The best M = `max_detections` of each image, or fewer if there are fewer candidates.

        `boxes` (B, M, 4) in input pixels, `scores` and `labels` (B, M), best first, and `count`
        (B,), the detections of each image. The rows behind them are zero.
        """
        outputs = self.rpn(features)
        inside = outputs.anchors.image_size if sizes is None else sizes
        proposals, count = self.rpn.propose(outputs, inside, self.rpn.test_top)
        return self.roi_heads.detect(features, proposals, count, inside)

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The outputs as they are: non-maximum suppression is a part of both stages."""
        return outputs

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first; of Mask R-CNN
        also N `masks`, dicts of COCO's compressed RLE."""
        return detections(self.postprocess(outputs, batch.padded_size), batch)

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a branch that draws each object's mask (He et al. 2017).

    mask_pool_size: bins per region side; the mask has twice as many.
    mask_channels, mask_convs, mask_norm: width and number of the mask branch's hidden convolutions,
        by default as wide as the levels, and the norm after each.
    kwargs: the arguments of `FasterRCNN`.
    """

    required_targets = ("boxes", "labels", "masks")
    class_layers: ClassVar[dict[str, int]] = {**ROWS, "roi_heads.mask_predictor.mask_fcn_logits": 1}
    main_metric = "segm/AP"
    terms = (*FasterRCNN.terms, "mask")

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        mask_pool_size: Count = 14,
        mask_channels: Count | None = None,
        mask_convs: Count = 4,
        mask_norm: OptionalNorm = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, classes, **kwargs)
        pool = self.roi_heads.pool
        self.mask_pool = RoIPooler(levels, pool.names, mask_pool_size, pool.sampling_ratio)
        mask_channels = mask_channels or pool.channels
        # Next to the box modules, where torchvision's checkpoints have them.
        self.roi_heads.mask_head = MaskHead(pool.channels, mask_channels, mask_convs, mask_norm)
        self.roi_heads.mask_predictor = MaskPredictor(mask_channels, mask_channels, len(classes))

    def _second_stage_losses(self, features: Features, regions: SampledRegions) -> dict[str, Loss]:
        losses = super()._second_stage_losses(features, regions)
        masks = [t.masks for t in regions.truths if t.masks is not None]  # all are labeled
        known = [image_masks.flatten(1).any(1) for image_masks in masks]
        boxes, matched, labels = regions.positive(known)
        logits = self._mask_logits(features, *flatten_boxes(boxes), labels)
        targets = mask_targets(boxes, matched, masks, logits.shape[-1])
        mask = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return losses | {"mask": Loss(mask, mask.new_full((), targets.numel()))}

    def _mask_logits(
        self, features: Features, boxes: Tensor, image: Tensor, labels: Tensor
    ) -> Tensor:
        """(R, 2s, 2s) for the boxes (R, 4) of these images and labels (R,)."""
        hidden = self.roi_heads.mask_head(self.mask_pool(features, boxes, image))
        return self.roi_heads.mask_predictor(hidden, labels + 1)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """As `FasterRCNN.forward`, and `masks` (B, M, 2s, 2s): probabilities within each box."""
        found = super().forward(features, sizes)
        boxes, labels = found["boxes"].flatten(0, 1), found["labels"].flatten()
        used = valid_rows(found["count"], found["boxes"].shape[1])
        rows = used_rows(used)
        image = rows // used.shape[1]
        probs = self._mask_logits(features, boxes[rows], image, labels[rows]).sigmoid()
        return found | {"masks": pad_rows(probs, rows, used) * used[:, :, None, None]}

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox", "segm"))
