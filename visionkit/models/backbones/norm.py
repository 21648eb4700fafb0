"""Normalize the pixels of a backbone, and replace its batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from visionkit.errors import ConfigError
from visionkit.ops.layers import group_norm, valid_cells
from visionkit.types import Size

Rgb = tuple[float, float, float]
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """`(images / 255 - mean) / std`, as torchvision's models expect, in one scale and one shift.

    The buffers are not persistent: a state_dict keeps the names of torchvision's models.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        if not all(value > 0 for value in std):
            raise ConfigError(f"std: got {list(std)}; each of the three must be above 0")
        mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * std_3)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean_3 / std_3).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None, like: nn.Module
    ) -> Tensor:
        """(B, 3, H, W) uint8 to float, laid out in memory as the weights of `like` are.

        Pixels beyond each image's (h, w) in `sizes` become exactly 0. In an exported model `sizes`
        is a tensor (B, 2).
        """
        pixels = (images * self.scale).add_(self.shift)
        pixels = pixels.contiguous(memory_format=memory_format(like))
        if isinstance(sizes, Tensor):
            return pixels.masked_fill(~valid_cells(sizes, pixels, 1)[:, None], 0)
        if sizes is not None:
            for image, (h, w) in zip(pixels, sizes, strict=True):
                image[:, h:] = 0
                image[:, :, w:] = 0
        return pixels


def memory_format(module: nn.Module) -> torch.memory_format:
    """The memory format of a backbone, as its first convolution has it."""
    weight = next((p for p in module.parameters() if p.dim() == 4), None)
    plain = weight is None or weight.is_contiguous()
    return torch.contiguous_format if plain else torch.channels_last


Norm = Literal["auto", "batch", "frozen", "group"]


class FrozenBatchNorm(FrozenBatchNorm2d):
    """A BatchNorm whose statistics and affine part never change, not even in training.

    State as torchvision's `FrozenBatchNorm2d`. One fused operation that stays in the dtype of `x`
    under autocast; unlike `F.batch_norm` it keeps no input for the backward pass, which saves a
    third of a ResNet-50's activations at the same speed.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype).view(-1, 1, 1), x, scale.to(x.dtype).view(-1, 1, 1))


def resolve_norm(norm: Norm, weights: str | None) -> Norm:
    """`auto` is `frozen` with pretrained weights, else `batch`."""
    if norm != "auto":
        return norm
    return "batch" if weights is None else "frozen"


def convert_norms(
    module: nn.Module,
    norm: Norm,
    weights: str | None,
    eps: float | None,
    momentum: float | None = None,
) -> None:
    """Replace each BatchNorm2d inside `module` by what `norm` means, and set its `eps` and
    `momentum`.

    ConfigError if there is none to change.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.BatchNorm2d
    ]
    if not found and (norm in ("batch", "group") or eps is not None or momentum is not None):
        raise ConfigError(
            f"norm: got norm={norm!r}, norm_eps={eps}, norm_momentum={momentum}, but this backbone "
            "has no batch normalization; remove them"
        )
    for parent, name, child in found:
        child.eps = child.eps if eps is None else eps
        child.momentum = child.momentum if momentum is None else momentum
        setattr(parent, name, _replacement(child, resolve_norm(norm, weights)))


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics that differ between ranks while a model trains."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moving = [m for m in norms if m.training and not isinstance(m, nn.SyncBatchNorm)]
    return [s for m in moving for s in (m.running_mean, m.running_var) if s is not None]


def _replacement(batch_norm: nn.BatchNorm2d, norm: Norm) -> nn.Module:
    if norm == "frozen":
        frozen = FrozenBatchNorm(batch_norm.num_features, batch_norm.eps)
        frozen.load_state_dict(batch_norm.state_dict())
        return frozen
    if norm == "group":
        group = group_norm(batch_norm.num_features)
        group.eps = batch_norm.eps
        group.load_state_dict({"weight": batch_norm.weight, "bias": batch_norm.bias})
        return group
    return batch_norm
