"""RetinaNet: one-stage detection with anchors and the focal loss (Lin et al. 2017, arXiv
1708.02002).

Every anchor of every level scores the classes and predicts the offsets that lead from it to the
box. Parameter names, outputs and losses are those of `torchvision.models.detection`'s
`retinanet_resnet50_fpn` and, with a GIoU loss and group norms, of `retinanet_resnet50_fpn_v2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from visionkit.config.schema import Fraction, Natural, NonNegative, Positive
from visionkit.models.heads.dense import (
    AnchorGenerator,
    Anchors,
    DenseHead,
    Prior,
    cells_first,
    init_small,
    prior_bias,
)
from visionkit.models.heads.matching import (
    IGNORED,
    GroundTruth,
    Matcher,
    ground_truth_of,
    labeled,
    zero_losses,
)
from visionkit.ops.boxes import encode
from visionkit.ops.layers import OptionalNorm, conv_block
from visionkit.ops.losses import giou_loss, sigmoid_focal_loss
from visionkit.types import Batch, Features, Level, Loss

LOGITS = "head.classification_head.cls_logits"


class Output(NamedTuple):
    """What the convolutions give for each of the P anchors, in float32."""

    class_logits: Tensor  # (B, P, K)
    offsets: Tensor  # (B, P, 4)


class RetinaNet(DenseHead):
    """One-stage detection with anchors and the focal loss (Lin et al. 2017).

    All levels need the same number of channels, as those of an FPN have. Thresholds named `iou` are
    in 0..1.

    anchor_sizes: for each level a list of sizes in pixels; by default three, a third of an octave
        apart, from 4 * stride on.
    anchor_ratios: height / width of the anchors; each size comes in each ratio.
    num_convs: convolutions before the predictors, in each of the two branches.
    norm: after each of them.
    fg_iou, bg_iou: an anchor detects an object that it overlaps by at least the first, or more than
        any other anchor does; it shows background if it overlaps every object by less than the
        second, and else is ignored.
    box_loss: `l1` of the offsets (torchvision's), or `giou`, 1 - GIoU of the boxes.
    focal_alpha, focal_gamma, prior: of the focal loss, and the class probability at the start.
    kwargs: the other arguments of `DenseHead`.
    """

    class_layers: ClassVar[dict[str, int]] = {LOGITS: 1}

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        anchor_sizes: list[list[Positive]] | None = None,
        anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0),
        num_convs: Natural = 4,
        norm: OptionalNorm = "none",
        fg_iou: Fraction = 0.5,
        bg_iou: Fraction = 0.4,
        box_loss: Literal["l1", "giou"] = "l1",
        focal_alpha: Fraction = 0.25,
        focal_gamma: NonNegative = 2.0,
        prior: Prior = 0.01,
        score_threshold: Fraction = 0.05,
        nms_iou: Fraction = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, score_threshold=score_threshold, nms_iou=nms_iou, **kwargs)
        self.cell = None  # an anchor detects an object smaller than a cell, too
        sizes = _thirds(levels) if anchor_sizes is None else anchor_sizes
        self.anchors = AnchorGenerator(levels, sizes, anchor_ratios)
        self.matcher = Matcher(fg_iou, bg_iou, best_for_each=True)
        self.box_loss = box_loss
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        anchors = self.anchors.per_cell
        self.class_groups = {LOGITS: anchors}
        branches = {
            "classification_head": ("cls_logits", anchors * len(classes)),
            "regression_head": ("bbox_reg", anchors * 4),
        }
        self.head = nn.ModuleDict(
            {name: Branch(self.channels, num_convs, norm, *last) for name, last in branches.items()}
        )
        nn.init.constant_(self.get_parameter(f"{LOGITS}.bias"), prior_bias(prior))

    def outputs(self, features: Features) -> Output:
        maps = [features[name] for name in self.levels]
        of_anchors = (self.anchors.per_cell, -1)
        return Output(
            *(branch(maps).unflatten(2, of_anchors).flatten(1, 2) for branch in self.head.values())
        )

    def dense_predictions(self, features: Features) -> tuple[Tensor, Tensor, Anchors]:
        output = self.outputs(features)
        return output.class_logits.sigmoid(), output.offsets, self.anchors(features)

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Sums over the images; the loss of an image is the mean over its anchors with an object.

        `classification` is the focal loss, `box_reg` that of `box_loss`. Anchors in a crowd region
        do not learn that they show background, and none learns anything about a class that is not
        labeled in its image, but from an object of that class.
        """
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, ("classification", "box_reg"))
        output, anchors = self.outputs(features), self.anchors(features)
        truths = [ground_truth_of(target) for target in batch.targets]
        matched = torch.stack([self.matcher(anchors.corners, truth) for truth in truths])
        found = matched >= 0  # (B, P)
        share = 1 / found.sum(1).clamp(min=1)  # (B,): of an anchor in the loss of its image
        own = [index[index >= 0] for index in matched]
        pairs = [*zip(truths, own, strict=True)]

        one_hot = torch.zeros_like(output.class_logits, dtype=torch.bool)
        image, index = found.nonzero(as_tuple=True)
        one_hot[image, index, torch.cat([truth.labels[objects] for truth, objects in pairs])] = True
        class_losses = sigmoid_focal_loss(
            output.class_logits, one_hot, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        loss_mask = (matched != IGNORED)[..., None] & _known(truths, one_hot)
        classification = ((class_losses * loss_mask).sum((1, 2)) * share).sum()

        true_boxes = torch.cat([truth.boxes[objects] for truth, objects in pairs])
        box_losses = self._box_losses(output.offsets[image, index], true_boxes, anchors, index)
        count = share.new_full((), len(batch))
        return {
            "classification": Loss(classification, count),
            "box_reg": Loss((box_losses * share[image]).sum(), count),
        }

    def _box_losses(
        self, offsets: Tensor, true_boxes: Tensor, anchors: Anchors, index: Tensor
    ) -> Tensor:
        """(N,) of offsets (N, 4) from the anchors `index` (N,) to boxes (N, 4)."""
        if self.box_loss == "giou":
            return giou_loss(anchors.boxes(offsets, index), true_boxes)
        return (offsets - encode(true_boxes, anchors.corners[index])).abs().sum(1)


def _thirds(levels: dict[str, Level]) -> list[list[float]]:
    """Whole pixels, as torchvision has them."""
    return [[int(4 * level.stride * 2 ** (i / 3)) for i in range(3)] for level in levels.values()]


def _known(truths: Sequence[GroundTruth], one_hot: Tensor) -> Tensor:
    """Where the class of an anchor is known, of `one_hot` (B, P, K)."""
    every = one_hot.new_ones(one_hot.shape[-1])
    is_labeled = torch.stack([every if t.labeled is None else t.labeled for t in truths])
    return is_labeled[:, None] | one_hot


class Branch(nn.Module):
    """Convolutions, and a predictor on the last of them, shared by all levels. Names are
    torchvision's."""

    def __init__(
        self, channels: int, num_convs: int, norm: OptionalNorm, predictor: str, outputs: int
    ) -> None:
        super().__init__()
        convs = [conv_block(channels, channels, norm) for _ in range(num_convs)]
        self.conv = nn.Sequential(*convs)
        self.predictor = predictor
        self.add_module(predictor, nn.Conv2d(channels, outputs, 3, padding=1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_small(layer)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels, h, w) to (B, cells, outputs) in float32."""
        predict = self.get_submodule(self.predictor)
        return torch.cat([cells_first(predict(self.conv(x))) for x in maps], 1)
