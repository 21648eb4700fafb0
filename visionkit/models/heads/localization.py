"""The class of an image's largest object, and one box around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Natural, Positive
from visionkit.metrics.accuracy import LocalizationAccuracy, largest_objects
from visionkit.models.head import Head
from visionkit.models.heads.classification import coarsest_useful, pick_level
from visionkit.ops.boxes import rescale_boxes
from visionkit.ops.layers import (
    cell_corners,
    constant_bias,
    conv_norm_relu,
    masked_mean,
    valid_cells,
)
from visionkit.ops.losses import giou_loss
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size


class Output(NamedTuple):
    """What the convolutions give; boxes and centers in units of the valid image, 0..1."""

    class_logits: Tensor  # (B, K)
    attention_logits: Tensor  # (B, cells), -inf at cells of the padding
    boxes: Tensor  # (B, 4)
    centers: Tensor  # (B, cells, 2), x and y of each cell
    scale: Tensor  # (B, 4): the w, h, w, h of each valid image


class Localization(Head):
    """One class and one box per image, from an attention over the cells of one feature map.

    Every cell proposes a box, by the distances from its own center to the four sides, and a weight;
    the box of the image is the mean of the proposals under the softmax of the weights. So the
    box branch is convolutional, has positions, and fits images of any size and shape. The class is
    predicted from the mean of the features under the same softmax and from their plain mean.

    The ground truth is the largest object that is not a crowd region; images without one are
    skipped.
    Loss terms: `classification` (cross-entropy), `box`, and `attention`: minus the logarithm of
    the attention inside the true box, without which a network without pretraining does not
    find it.

    level: the feature map to read; by default the coarsest whose stride is at most 32.
    num_convs, channels: depth and width of the box branch.
    loss: `giou`, or `smooth_l1` of the four sides in units of the image.
    box_weight: factor of `box` among the three terms; the box is the slowest to learn.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    class_layers: ClassVar[dict[str, int]] = {"linear": 1}
    main_metric = "loc50"
    default_transforms = ("HorizontalFlip", "ScaleJitter")
    single_object = True

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        num_convs: Natural = 2,
        channels: Count = 128,
        dropout: Fraction = 0.0,
        loss: Literal["smooth_l1", "giou"] = "giou",
        box_weight: Positive = 5.0,
        label_smoothing: Fraction = 0.0,
    ):
        super().__init__()
        self.classes = list(classes)
        self.level = pick_level(levels, level, default=coarsest_useful(levels))
        self.stride = levels[self.level].stride
        self.box_loss = loss
        self.box_weight = box_weight
        self.label_smoothing = label_smoothing
        in_channels = levels[self.level].channels
        self.tower, width = conv_tower(in_channels, channels, num_convs)
        self.attention = nn.Conv2d(width, 1, 1, bias=False)  # a bias does not change a softmax
        self.distances = nn.Conv2d(width, 4, 1)
        nn.init.normal_(self.distances.weight, std=0.01)
        constant_bias(self.distances, -1.0)  # boxes of about half the image to begin
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * in_channels, len(self.classes))

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K) of the classes and `boxes` (B, 4) in input pixels."""
        output = self.outputs(features, sizes)
        return {"logits": output.class_logits, "boxes": output.boxes.clamp(0, 1) * output.scale}

    def outputs(self, features: Features, sizes: Tensor | None) -> Output:
        cells = features[self.level]
        valid = valid_cells(sizes, cells, self.stride)
        scale = image_scale(sizes, cells, self.stride)
        tower = self.tower(cells)
        attention_logits = self.attention(tower).float().flatten(1)
        attention_logits = attention_logits.masked_fill(~valid.flatten(1), -torch.inf)
        attention = attention_logits.softmax(1)  # (B, cells)

        centers = cell_centers(cells, self.stride) / scale[:, None, :2]  # (B, cells, 2)
        distances = self.distances(tower).float().sigmoid().flatten(2).mT  # (B, cells, 4)
        proposals = torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], 2)
        # Not a matrix product, which autocast would round to three digits.
        boxes = (attention[:, :, None] * proposals).sum(1)

        attended = (attention[:, None] * cells.flatten(2)).sum(2)
        pooled = torch.cat([attended, masked_mean(cells, valid)], 1)
        class_logits = self.linear(self.dropout(pooled)).float()
        return Output(class_logits, attention_logits, boxes, centers, scale)

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        output = self.outputs(features, batch.size_tensor)
        boxes, labels, found = (x.to(output.boxes.device) for x in largest_objects(batch.targets))
        truth = boxes / output.scale
        losses = {
            "classification": F.cross_entropy(
                output.class_logits, labels, label_smoothing=self.label_smoothing, reduction="none"
            ),
            "box": self.box_weight * self._box_losses(output.boxes, truth),
            "attention": attention_losses(output, truth),
        }
        count = found.sum()
        return {name: Loss((values * found).sum(), count) for name, values in losses.items()}

    def _box_losses(self, boxes: Tensor, truth: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return giou_loss(boxes, truth)
        return F.smooth_l1_loss(boxes, truth, beta=0.1, reduction="none").sum(1)

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """`probs` (B, K) and `box` (B, 4) in input pixels."""
        return {"probs": outputs["logits"].softmax(1), "box": outputs["boxes"]}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `probs` (K,), `label` (), its `score` (), and `box` (4,)."""
        found = self.postprocess(outputs, batch.padded_size)
        return [
            {
                "probs": probs,
                "label": probs.argmax(),
                "score": probs.max(),
                "box": rescale_boxes(box, target["size"], target["orig_size"]),
            }
            for probs, box, target in zip(found["probs"], found["box"], batch.targets, strict=True)
        ]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return LocalizationAccuracy(self.classes)


def attention_losses(output: Output, truth: Tensor) -> Tensor:
    """Minus the logarithm of the attention within the true boxes (B, 4): (B,)."""
    # A box that holds no cell's center takes the cell nearest to its own center.
    offset = output.centers - (truth[:, None, :2] + truth[:, None, 2:]) / 2  # (B, cells, 2)
    distance = offset.square().sum(2).masked_fill(output.attention_logits.isinf(), torch.inf)
    nearest = distance == distance.amin(1, keepdim=True)
    inside = (offset.abs() <= (truth[:, None, 2:] - truth[:, None, :2]) / 2).all(2)
    log_attention = output.attention_logits.log_softmax(1)
    return -log_attention.masked_fill(~(inside | nearest), -torch.inf).logsumexp(1)


def cell_centers(cells: Tensor, stride: int) -> Tensor:
    """Centers (h * w, 2), x and y in input pixels, of the cells (B, C, h, w)."""
    return cell_corners(cells.shape[-2:], (stride, stride), cells.device) + stride / 2


def image_scale(sizes: Tensor | None, cells: Tensor, stride: int) -> Tensor:
    """(B, 4) float32: the w, h, w, h of each valid image; without `sizes` those of the map."""
    if sizes is None:
        h, w = cells.shape[-2:]
        sizes = torch.tensor([[h * stride, w * stride]]).expand(cells.shape[0], 2)
    return sizes.to(cells.device, torch.float32).flip(1).repeat(1, 2)


def conv_tower(in_channels: int, channels: int, num_convs: int) -> tuple[nn.Module, int]:
    """`num_convs` times 3x3 convolution, group norm, ReLU; and the channels that come out."""
    widths = [in_channels, *[channels] * num_convs]
    layers = [layer for a, b in pairwise(widths) for layer in conv_norm_relu(a, b)]
    return nn.Sequential(*layers), widths[-1]
