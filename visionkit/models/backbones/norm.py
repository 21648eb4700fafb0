"""Replace the BatchNorm that a backbone was designed with, and normalize its input pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from visionkit.distributed import collectives
from visionkit.errors import ConfigError
from visionkit.ops.layers import group_norm

# --- From bytes to what a backbone was trained on: scaled, shifted, zero beyond each image's
# edge.

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
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None, like: nn.Module
    ) -> Tensor:
        """(B, 3, H, W) uint8 to float, laid out in memory as the weights of `like` are.

        What lies beyond each image's (h, w) in `sizes` becomes exactly 0.
        """
        pixels = (images * self.scale).add_(self.shift)
        pixels = pixels.contiguous(memory_format=memory_format(like))
        if sizes is not None:
            for image, (h, w) in zip(pixels, sizes, strict=True):
                image[:, h:] = 0
                image[:, :, w:] = 0
        return pixels


def memory_format(module: nn.Module) -> torch.memory_format:
    """Whether a backbone is kept channels-last; its first convolution tells."""
    weight = next(p for p in module.parameters() if p.dim() == 4)
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last


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
    """A ConfigError when the norm of a backbone without any BatchNorm is to be changed."""
    if not found and (norm != "auto" or eps is not None):
        raise ConfigError(
            f"norm: got norm={norm!r}, norm_eps={eps}, but this backbone has no batch "
            "normalization; leave both out"
        )


class SyncBatchNorm(nn.BatchNorm2d):
    """A BatchNorm that in training normalizes by the whole batch of all processes.

    Ours, because torch.nn.SyncBatchNorm takes tensors on accelerators alone. As there, what
    counts is the mean over all cells of all images, however many each process has.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or collectives.world_size() == 1:
            return super().forward(x)
        y, mean, var, count = _OverProcesses.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return y


class _OverProcesses(torch.autograd.Function):
    """y (B, C, h, w), and the mean (C,), variance (C,) and number () of what was normalized."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float):
        wide = x.float()
        own = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
        sums = collectives.all_reduce_sum(torch.cat([wide.sum((0, 2, 3)), own]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centered = (wide - mean.view(-1, 1, 1)).square().sum((0, 2, 3))
        var = collectives.all_reduce_sum(centered) / count
        y = F.batch_norm(x, mean, var, weight, bias, eps=eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, dy: Tensor, *_: Tensor):
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x.float() - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
        dy = dy.float()
        own_bias, own_weight = dy.sum((0, 2, 3)), (dy * normal).sum((0, 2, 3))
        both = collectives.all_reduce_sum(torch.stack([own_bias, own_weight])) / count
        inner = dy - both[0].view(-1, 1, 1) - normal * both[1].view(-1, 1, 1)
        dx = inner * (weight * scale).view(-1, 1, 1)
        return dx.to(x.dtype), own_weight, own_bias, None


def synchronized(model: nn.Module) -> nn.Module:
    """The model with all its batch norms that can be trained normalizing over all processes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child.weight.requires_grad:
                sync = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                sync.load_state_dict(child.state_dict())
                setattr(parent, name, sync.to(child.weight.device))
    return model


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics that differ from process to process while a model trains."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moving = [m for m in norms if m.training and not isinstance(m, SyncBatchNorm)]
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
