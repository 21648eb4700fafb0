"""Which normalisation a trunk uses in place of the BatchNorm that its family was designed with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from visionkit.errors import ConfigError
from visionkit.ops.norm import group_norm

Norm = Literal["auto", "batch", "frozen", "group"]


class FrozenBatchNorm(FrozenBatchNorm2d):
    """A BatchNorm whose statistics and affine part never change, in training neither.

    State as torchvision's `FrozenBatchNorm2d`. One fused operation that stays in the dtype of `x`
    under autocast; unlike `F.batch_norm` it keeps no input for the backward pass, which saves a
    third of a ResNet-50's activations at the same speed.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype).view(-1, 1, 1), x, scale.to(x.dtype).view(-1, 1, 1))


def resolve(norm: Norm, weights: str | None) -> Norm:
    """`auto` is `frozen` with pretrained weights, else `batch`."""
    if norm != "auto":
        return norm
    return "batch" if weights is None else "frozen"


def convert_norms(module: nn.Module, norm: Norm, eps: float | None) -> int:
    """Replace each BatchNorm2d inside `module` and set its `eps`; give the number of them."""
    found = 0
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.BatchNorm2d:
                continue
            found += 1
            child.eps = child.eps if eps is None else eps
            setattr(parent, name, _replacement(child, norm))
    return found


def check_norms(found: int, norm: Norm, eps: float | None) -> None:
    """A ConfigError when the norm of a trunk without any BatchNorm is to be changed."""
    if not found and (norm != "auto" or eps is not None):
        raise ConfigError(
            f"norm: got norm={norm!r}, norm_eps={eps}, but this trunk has no batch normalisation; "
            "leave both out"
        )


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
