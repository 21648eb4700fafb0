"""Batch norms taken into the convolutions before them: less to compute once training is over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from visionkit.types import Batch

# --- Weights rounded once, instead of by autocast at every call: for use, not for training.

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights of all convolutions and linear layers the precision of autocast.

    Under autocast the outputs stay exactly the same; outside it they cannot be called any more.
    Biases stay as they are: they are small, and a head may add one by itself, unrounded.
    """
    for module in model.modules():
        if type(module) in LAYERS:
            module.weight.data = module.weight.data.to(dtype)


NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
SIDE = 64  # pixels of the image that shows which norm follows which convolution


@torch.no_grad()
def fold_norms(model: Any) -> int:
    """Fold the norms of a VisionModel's backbone and neck; gives the number of them.

    Outputs stay the same but for rounding. The model cannot be trained or saved afterwards.
    """
    places = {m: (p, n) for p in model.modules() for n, m in p.named_children()}
    pairs = _pairs(model)
    for conv, norm in pairs:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        before = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
        conv.bias = nn.Parameter(norm.bias + (before - norm.running_mean) * scale)
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        parent, name = places[norm]
        setattr(parent, name, nn.Identity())
    return len(pairs)


def _pairs(model: Any) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions, and the norm that alone takes what each of them gives, in evaluation."""
    if not any(isinstance(module, NORMS) for module in model.modules()):
        return []  # without an image: MLP takes those of its own size only
    made: list[tuple[Tensor, nn.Conv2d]] = []  # holds the maps, so that none takes another's place
    taken: list[tuple[Tensor, nn.Module]] = []
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, x, y: made.append((y, m))))
        elif isinstance(module, NORMS) and module.weight is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, x: taken.append((x[0], m))))
    device = next(model.parameters()).device
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8, device=device)
    features = model.features(Batch(images, [{"size": (SIDE, SIDE)}]))
    for hook in hooks:
        hook.remove()
    norm_of = {id(x): norm for x, norm in taken}
    levels = {id(level) for level in features.values()}
    found = [(c, norm_of[id(y)]) for y, c in made if id(y) in norm_of and id(y) not in levels]
    convs, norms = [c for c, _ in found], [n for _, n in found]
    return [(c, n) for c, n in found if convs.count(c) == norms.count(n) == 1]
