"""Semantic segmentation: FCN, DeepLabV3, LR-ASPP, and a head for feature pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, NonNegative, Positive
from visionkit.errors import ConfigError
from visionkit.metrics.confusion import ConfusionMatrix
from visionkit.models.head import Head
from visionkit.models.heads.classification import coarsest_useful, pick_level
from visionkit.models.heads.pixel_loss import PixelLoss, semantic_maps
from visionkit.ops.layers import (
    BatchNorm,
    Norm,
    conv_norm_relu,
    group_norm,
    masked_mean,
    valid_cells,
)
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size

MAX_STRIDE = 16  # coarser maps do not separate pixels
MIN_CHANNELS = 64  # a quarter of a narrow neck's channels would be too few
PYRAMID_STRIDE = 32  # coarser levels of a pyramid add nothing to this one


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): a 1x1 convolution, one 3x3 convolution
    for each dilation in `rates`, and the mean of the whole image, joined by a 1x1 convolution.

    Parameter names are torchvision's. (B, channels, h, w) to (B, out, h, w).
    """

    def __init__(
        self, channels: int, out: int, *, rates: Sequence[int], dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        pooled = [
            nn.Identity(),  # the pooling, done in `forward`; it keeps the names of what follows
            nn.Conv2d(channels, out, 1, bias=False),
            BatchNorm(out) if norm == "batch" else group_norm(out),
            nn.ReLU(),
        ]
        branches = [
            conv_norm_relu(channels, out, norm, kernel=1),
            *(conv_norm_relu(channels, out, norm, dilation=rate) for rate in rates),
            pooled,
        ]
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.project = nn.Sequential(
            *conv_norm_relu(len(branches) * out, out, norm, kernel=1), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`valid` (B, h, w) bool: the cells of `x` over which the mean is taken."""
        *local, pooled = self.convs
        mean = pooled(masked_mean(x, valid)[:, :, None, None].to(x.dtype))
        maps = [conv(x) for conv in local]
        return self.project(torch.cat([*maps, mean.expand_as(maps[0])], dim=1))


class SemanticHead(Head):
    """Base of the heads that give each pixel a class. Their `forward` returns `logits`
    (B, K, h, w) on the cells of a feature map, which cover the batch's images."""

    required_targets = ("semantic",)
    class_key = "semantic"
    main_metric = "mIoU"
    default_transforms = ("HorizontalFlip", "ScaleJitter")

    def __init__(
        self, classes: Sequence[str], class_weights: dict[str, Positive] | None, dice: NonNegative
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.pixel_loss = PixelLoss(classes, class_weights=class_weights, dice=dice)

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        return self.pixel_loss(self(features, batch.size_tensor)["logits"], batch)

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """`map` (B, H, W) uint8, the class of every input pixel, and the `logits` as they are, from
        which that of every original pixel is computed in one step."""
        logits = outputs["logits"].float()
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return {"map": full.argmax(1).to(torch.uint8), "logits": logits}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `semantic` (h, w) uint8, the class of every original pixel."""
        return semantic_maps(outputs["logits"], batch)

    def predict_view(self, features: Features, batch: Batch) -> list[HeadPrediction]:
        """Each image's `logits` (K, h, w), which cover `padded`, the (h, w) of the batch, and the
        `size` that is valid of it."""
        found: list[Any] = [
            {"logits": logits, "size": target["size"], "padded": batch.padded_size}
            for logits, target in zip(
                self(features, batch.size_tensor)["logits"].float(), batch.targets, strict=True
            )
        ]
        return found

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return ConfusionMatrix(self.classes, dataset)


class SingleLevelHead(SemanticHead):
    """Base of the heads that read one level, with an auxiliary classifier on another.

    level: the feature map to read; by default the last whose stride is 16 or less.
    norm: `group` for small batches.
    class_weights: factor of a class in the cross-entropy, by its name; 1 where none is given.
    dice: weight of a Dice loss next to the cross-entropy.
    aux_weight: weight of the cross-entropy of a second, auxiliary classifier, which is used in
        training only; 0 is none, torchvision trains with 0.5.
    aux_level: the feature map that it reads; by default the one before `level`.
    """

    class_layers: ClassVar[dict[str, int]] = {"classifier.4": 1, "aux_classifier.4": 1}
    classifier: nn.Sequential

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        norm: Norm = "batch",
        class_weights: dict[str, Positive] | None = None,
        dice: NonNegative = 0.0,
        aux_weight: NonNegative = 0.0,
        aux_level: str | None = None,
    ) -> None:
        super().__init__(classes, class_weights, dice)
        self.level = pick_level(levels, level, default=coarsest_useful(levels, MAX_STRIDE))
        self.aux_level = pick_level(levels, aux_level, default=_before(levels, self.level))
        self.aux_weight = aux_weight
        self.norm: Norm = norm

    def add_aux_classifier(self, levels: dict[str, Level], dropout: float) -> None:
        """To call last, so that the seed gives the same weights with and without it."""
        if self.aux_weight:
            width = levels[self.aux_level].channels
            self.aux_classifier = _fcn(width, width // 4, len(self.classes), dropout, self.norm)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K, h, w) on the cells of the level."""
        return {"logits": self.classifier(features[self.level])}

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        losses = super().loss(features, batch)
        if self.aux_weight:
            logits = self.aux_classifier(features[self.aux_level])
            aux = self.pixel_loss(logits, batch)["semantic"]
            losses["aux"] = aux._replace(sum=self.aux_weight * aux.sum)
        return losses


class FCN(SingleLevelHead):
    """A 3x3 and a 1x1 convolution on one feature map (Long et al. 2015, in torchvision's form).

    At its best on a backbone with `dilated: true`. Loss, partial labels included: see `PixelLoss`.

    channels: between the two convolutions; by default a quarter of the level's, at least 64.
    dropout: probability with which a channel of those is dropped in training.
    kwargs: the other arguments of `SingleLevelHead`.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        channels: Count | None = None,
        dropout: Fraction = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, classes, **kwargs)
        width = levels[self.level].channels
        channels = channels or max(MIN_CHANNELS, width // 4)
        self.classifier = _fcn(width, channels, len(classes), dropout, self.norm)
        self.add_aux_classifier(levels, dropout)


class DeepLabV3(SingleLevelHead):
    """Atrous spatial pyramid pooling on one feature map (Chen et al. 2017).

    Made for a backbone with `dilated: true`.

    channels: width of the pyramid's branches and of what follows.
    rates: dilations of the branches: 12, 24, 36 on a map of stride 8, 6, 12, 18 on one of 16.
    dropout: after the branches are joined, and 0.1 in the auxiliary classifier.
    kwargs: the other arguments of `SingleLevelHead`.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        channels: Count = 256,
        rates: tuple[Count, ...] = (12, 24, 36),
        dropout: Fraction = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, classes, **kwargs)
        width, self.stride = levels[self.level]
        self.classifier = nn.Sequential(
            ASPP(width, channels, rates=rates, dropout=dropout, norm=self.norm),
            *conv_norm_relu(channels, channels, self.norm),
            nn.Conv2d(channels, len(classes), 1),
        )
        self.add_aux_classifier(levels, 0.1)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K, h, w) on the cells of the level."""
        feature = features[self.level]
        joined = self.classifier[0](feature, valid_cells(sizes, feature, self.stride))
        return {"logits": self.classifier[1:](joined)}


class LRASPP(SemanticHead):
    """Lite reduced atrous spatial pyramid pooling, MobileNetV3's fast head (Howard et al. 2019).

    A 1x1 convolution of a coarse feature map, weighted by channel from the mean of the whole image,
    and a finer map each give logits, which are added at the finer one. Made for a MobileNetV3 with
    `dilated: true`. Loss, partial labels included: see `PixelLoss`. Parameter names are
    torchvision's.

    level: the coarse map; by default the last whose stride is 16 or less.
    low_level: the fine map; by default the one before `level`.
    channels: of the convolution.
    norm: `group` for small batches.
    class_weights: factor of a class in the cross-entropy, by its name; 1 where none is given.
    dice: weight of a Dice loss next to the cross-entropy.
    """

    class_layers: ClassVar[dict[str, int]] = {
        "classifier.low_classifier": 1,
        "classifier.high_classifier": 1,
    }

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        low_level: str | None = None,
        channels: Count = 128,
        norm: Norm = "batch",
        class_weights: dict[str, Positive] | None = None,
        dice: NonNegative = 0.0,
    ) -> None:
        super().__init__(classes, class_weights, dice)
        self.level = pick_level(levels, level, default=coarsest_useful(levels, MAX_STRIDE))
        self.low_level = pick_level(levels, low_level, default=_before(levels, self.level))
        width, self.stride = levels[self.level]
        scale = nn.Conv2d(width, channels, 1, bias=False)
        self.classifier = nn.ModuleDict(
            {
                "cbr": nn.Sequential(*conv_norm_relu(width, channels, norm, kernel=1)),
                # Pooling is done in `forward`; its place keeps the name of the convolution.
                "scale": nn.Sequential(nn.Identity(), scale, nn.Sigmoid()),
                "low_classifier": nn.Conv2d(levels[self.low_level].channels, len(classes), 1),
                "high_classifier": nn.Conv2d(channels, len(classes), 1),
            }
        )

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K, h, w) on the cells of the fine map."""
        layers, low, high = self.classifier, features[self.low_level], features[self.level]
        mean = masked_mean(high, valid_cells(sizes, high, self.stride))[:, :, None, None]
        x = layers["cbr"](high) * layers["scale"](mean.to(high.dtype))
        x = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False)
        return {"logits": layers["low_classifier"](low) + layers["high_classifier"](x)}


class SemanticFPN(SemanticHead):
    """Every level of a pyramid brought to the finest one and added up (Kirillov et al. 2019).

    A level is convolved (3x3, group norm, ReLU) and doubled in size until it is as fine as the
    finest, stride 4 for the usual necks; the sum goes through a 1x1 convolution. The head for a
    neck that is shared with other tasks. Loss, partial labels included: see `PixelLoss`.

    inputs: names of the levels to read; by default those of stride 32 and finer.
    channels: width of the head.
    dropout: probability with which a channel of the sum is dropped in training.
    class_weights: factor of a class in the cross-entropy, by its name; 1 where none is given.
    dice: weight of a Dice loss next to the cross-entropy.
    """

    class_layers: ClassVar[dict[str, int]] = {"predictor": 1}

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        inputs: list[str] | None = None,
        channels: Count = 128,
        dropout: Fraction = 0.0,
        class_weights: dict[str, Positive] | None = None,
        dice: NonNegative = 0.0,
    ) -> None:
        super().__init__(classes, class_weights, dice)
        self.inputs = _pick_inputs(levels, inputs)
        finest = min(levels[name].stride for name in self.inputs)
        branches = {name: _branch(levels[name], channels, finest) for name in self.inputs}
        self.branches = nn.ModuleDict(branches)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, len(classes), 1)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K, h, w) on the cells of the finest level."""
        size = max((features[name].shape[-2:] for name in self.inputs), key=lambda hw: hw[0])
        refined = [_refined(features[name], self.branches[name], size) for name in self.inputs]
        return {"logits": self.predictor(self.dropout(sum(refined)))}


def _fcn(width: int, channels: int, classes: int, dropout: float, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm_relu(width, channels, norm), nn.Dropout(dropout), nn.Conv2d(channels, classes, 1)
    )


def _before(levels: dict[str, Level], level: str) -> str:
    """The next finer level; the finest has none and gives itself."""
    names = list(levels)
    return names[max(0, names.index(level) - 1)]


def _pick_inputs(levels: dict[str, Level], inputs: list[str] | None) -> list[str]:
    if inputs is None:
        usual = [name for name, level in levels.items() if level.stride <= PYRAMID_STRIDE]
        return usual or list(levels)[:1]
    unknown = [name for name in inputs if name not in levels]
    if unknown or not inputs:
        raise ConfigError(f"inputs: got {inputs}; expected one or more of {[*levels]}")
    return inputs


def _branch(level: Level, channels: int, finest: int) -> nn.ModuleList:
    """One stage for each doubling up to the stride `finest`, at least one."""
    stages = max(1, (level.stride // finest).bit_length() - 1)
    widths = [level.channels, *[channels] * stages]
    return nn.ModuleList(nn.Sequential(*conv_norm_relu(a, b)) for a, b in pairwise(widths))


def _refined(x: Tensor, branch: nn.Module, size: Sequence[int]) -> Tensor:
    """A level (B, C, h, w) at `size` (h, w) of the finest: half of it before the last stage."""
    stages = list(branch.children())
    for remaining, stage in zip(range(len(stages))[::-1], stages, strict=True):
        x = stage(x)
        half = [-(-side // 2**remaining) for side in size]
        if list(x.shape[-2:]) != half:
            x = F.interpolate(x, half, mode="bilinear", align_corners=False)
    return x
