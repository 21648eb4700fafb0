"""Small layers: norms, pooling of the valid part of images, random numbers keyed by the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from visionkit.types import Target

Norm = Literal["batch", "group"]
OptionalNorm = Literal["none", "batch", "group"]
M = TypeVar("M", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups (Wu and He 2018), or of as many as divide both 32 and the channels.

    Never of single channels: on a map of one cell these would become zero.
    """
    groups = gcd(32, channels)
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm, but a single value for each channel, as of one image, or none has no statistics:
    the running ones normalize it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and not self.training:
            # torch's operator branches on whether there is a row, and regions may be none.
            assert self.running_mean is not None and self.running_var is not None
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale[:, None, None] + shift[:, None, None]
        if not self.training or x[:, 0].numel() > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


NORM_LAYERS: dict[OptionalNorm, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": BatchNorm,
    "group": group_norm,
}


def conv_block(channels: int, out: int, norm: OptionalNorm) -> nn.Sequential:
    """A 3x3 convolution, a norm and a ReLU, named as torchvision names them. The convolution has a
    bias if no norm follows."""
    return Conv2dNormActivation(channels, out, norm_layer=NORM_LAYERS[norm])


def conv_norm_relu(
    channels: int, out: int, norm: Norm = "group", *, kernel: int = 3, dilation: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size of its map, a norm and a ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(out) if norm == "batch" else group_norm(out), nn.ReLU()]


class HalvingConv(nn.Conv2d):
    """A convolution of stride 2, in float32 on a map of a single cell: in bfloat16 on a CPU, torch
    2.14 leaves parts of the weight's gradient uninitialized there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


class SkippingConv(nn.Conv2d):
    """A 1x1 convolution with a stride and without padding, on the cells that the stride leaves.

    The same result; but with fewer than 8 input channels in channels-last order, the gradient of
    the weight by torch 2.14 on a CPU reads beyond its memory, which can end the process.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)

    @classmethod
    def replace_in(cls, module: nn.Module) -> None:
        """Make those convolutions inside `module` of this class that need it."""
        for conv in (m for m in module.modules() if type(m) is nn.Conv2d):
            is_point = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
            if is_point and conv.stride != (1, 1) and conv.in_channels < 8:
                conv.__class__ = cls


def lite_conv(
    channels: int, out: int, *, kernel: int = 1, stride: int = 1, depthwise: bool = False
) -> nn.Sequential:
    """A convolution, a batch norm and ReLU6, a building block of SSDLite (Sandler et al. 2018);
    epsilon and momentum are torchvision's."""
    groups = channels if depthwise else 1
    block = Conv2dNormActivation(
        channels,
        out,
        kernel,
        stride,
        groups=groups,
        norm_layer=partial(BatchNorm, eps=0.001, momentum=0.03),
        activation_layer=nn.ReLU6,
    )
    if stride == 2:
        padding = (kernel - 1) // 2
        block[0] = HalvingConv(
            channels, out, kernel, stride, padding=padding, groups=groups, bias=False
        )
    return block


def init_convs(module: M, init: Callable[[Tensor], Tensor]) -> M:
    """The module, with new weights of its convolutions, and biases of zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            init(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def init_lite(module: M) -> M:
    """`init_convs` as torchvision does it for the parts of SSDLite."""
    return init_convs(module, partial(nn.init.normal_, std=0.03))


def constant_bias(layer: nn.Conv2d | nn.Linear, value: float) -> None:
    """Set all biases of a layer."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, value)


def noise_of(target: Target, device: torch.device) -> torch.Generator | None:
    """A generator keyed by the image's `position`, the same on any rank; None without one."""
    if "position" not in target:
        return None
    return torch.Generator(device).manual_seed(target["position"])


def normal_noise(like: Tensor, targets: Sequence[Target]) -> Tensor:
    """Standard normal numbers of the shape of `like` (B, ...), keyed by the images."""
    cpu = torch.device("cpu")  # one copy; a GPU would run a kernel for each image
    rows = [torch.randn(like.shape[1:], generator=noise_of(target, cpu)) for target in targets]
    return torch.stack(rows).to(like)


def level_name(stride: int, prefix: str = "c") -> str:
    """The name of a level: `c4` for stride 16; `s14` for 14, not a power of two."""
    return f"s{stride}" if stride & (stride - 1) else f"{prefix}{stride.bit_length() - 1}"


def valid_cells(sizes: Tensor | None, features: Tensor, stride: int) -> Tensor:
    """Which cells of `features` (B, C, h, w) see a part of their image: (B, h, w) bool.

    `sizes` (B, 2) are the valid (h, w) of each image in input pixels, None is all of it; `stride`
    is the input pixels per cell.
    """
    h, w = features.shape[-2:]
    if sizes is None:
        return features.new_ones(features.shape[0], h, w, dtype=torch.bool)
    cells = (sizes.to(features.device) + (stride - 1)) // stride  # (B, 2)
    rows = torch.arange(h, device=features.device) < cells[:, :1]
    columns = torch.arange(w, device=features.device) < cells[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def cell_corners(grid: Sequence[int], step: tuple[float, float], device: torch.device) -> Tensor:
    """x and y (h * w, 2) of the top left corners of a (h, w) grid of cells, row by row; `step` is
    the height and width of a cell."""
    y = torch.arange(grid[0], device=device, dtype=torch.float32) * step[0]
    x = torch.arange(grid[1], device=device, dtype=torch.float32) * step[1]
    # Not len(), which would fix the size of an exported model.
    h, w = y.shape[0], x.shape[0]
    return torch.stack([x.expand(h, -1), y[:, None].expand(-1, w)], 2).reshape(-1, 2)


def masked_mean(features: Tensor, valid: Tensor) -> Tensor:
    """Mean of `features` (B, C, h, w) over the cells where `valid` (B, h, w): (B, C) float32."""
    total = (features.float() * valid[:, None]).sum((2, 3))
    return total / valid.sum((1, 2)).clamp(min=1)[:, None]


def adaptive_mean(features: Tensor, sizes: Tensor | None, stride: int, bins: int) -> Tensor:
    """Means of `features` (B, C, h, w) over bins x bins parts of each image: (B, C, bins, bins).

    As `F.adaptive_avg_pool2d` of the cells that see a part of the image; arguments as of
    `valid_cells`.
    """
    if sizes is None:
        return F.adaptive_avg_pool2d(features, bins)
    cells = (sizes.to(features.device) + (stride - 1)) // stride  # (B, 2)
    rows = _bins(cells[:, 0], features.shape[-2], bins)[:, None]
    columns = _bins(cells[:, 1], features.shape[-1], bins)[:, None]
    with torch.autocast(features.device.type, enabled=False):
        return rows @ features.float() @ columns.mT


def _bins(cells: Tensor, size: int, bins: int) -> Tensor:
    """Weights (B, bins, size) of the means over `bins` parts of the first `cells` (B,)."""
    edges = torch.arange(bins + 1, device=cells.device) * cells[:, None]  # (B, bins + 1)
    first, last = edges[:, :-1] // bins, (edges[:, 1:] + (bins - 1)) // bins
    place = torch.arange(size, device=cells.device)
    inside = (place >= first[..., None]) & (place < last[..., None])
    return inside / (last - first)[..., None]
