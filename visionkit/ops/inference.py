"""The device and the precision that a model computes with; and faster inference: norms folded into
the convolutions before them, weights rounded once, after which it cannot be trained or saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from visionkit.errors import ConfigError
from visionkit.types import Batch

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
SIDE = 64  # pixels of the image that shows which norm follows which convolution


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this rank if there is one, else Apple's, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", name)
        reason = str(error).strip().splitlines()[0] if known else "expected auto, cpu, cuda or mps"
        raise ConfigError(f"train.device: {name!r} cannot be used here: {reason}") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a model computes in that precision; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Within, `train.deterministic` holds; torch's mode and generators are unchanged afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of all convolutions and linear layers to the precision of autocast.

    Autocast then does not round them at every call. Under autocast the outputs stay exactly the
    same; outside it the layers cannot be called. Biases keep their precision: they are small, and
    a head may add one by itself, unrounded.
    """
    for module in model.modules():
        if type(module) in LAYERS:
            weight = module.get_parameter("weight")
            weight.data = weight.data.to(dtype)


@torch.no_grad()
def fold_norms(model: Any) -> int:
    """Fold the norms of a VisionModel's backbone and neck; returns the number of folded norms.

    Outputs stay the same but for rounding.
    """
    places = {m: (p, n) for p in model.modules() for n, m in p.named_children()}
    pairs = _pairs(model)
    for conv, norm in pairs:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        before = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
        conv.bias = nn.Parameter(norm.bias + (before - norm.running_mean) * scale)
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        parent, name = places[norm]
        setattr(parent, name, _after(norm))
    return len(pairs)


def _after(norm: Any) -> nn.Module:
    """What a norm does after it has normalized: some of timm's have a dropout and an activation."""
    layers = [getattr(norm, name, None) for name in ("drop", "act")]
    found = [layer for layer in layers if isinstance(layer, nn.Module)]
    return nn.Sequential(*found) if found else nn.Identity()


def _is_known(norm: Any, x: Tensor, y: Tensor) -> bool:
    """Whether the result `y` for `x` is that of a norm and `_after` it; a subclass may do more."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    expected = _after(norm)(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))
    return torch.allclose(expected, y, rtol=1e-3, atol=1e-3)


def _pairs(model: Any) -> list[tuple[nn.Conv2d, Any]]:
    """Convolutions whose output goes to a norm and nowhere else, each with that norm."""
    if not any(isinstance(module, NORMS) for module in model.modules()):
        return []  # without a forward pass: MLP takes images of its own size only
    # The lists hold the tensors, so that no later tensor gets the id of an earlier one.
    outputs: list[tuple[Tensor, nn.Conv2d]] = []
    inputs: list[tuple[Tensor, nn.Module]] = []
    hooks = []

    def norm_called(norm: nn.Module, x: Tensor, y: Tensor) -> None:
        if _is_known(norm, x, y):
            inputs.append((x, norm))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, x, y: outputs.append((y, m))))
        elif isinstance(module, NORMS) and module.weight is not None:
            hooks.append(module.register_forward_hook(lambda m, x, y: norm_called(m, x[0], y)))
    device = next(model.parameters()).device
    images = torch.arange(3 * SIDE * SIDE, device=device).to(torch.uint8).view(1, 3, SIDE, SIDE)
    features = model.features(Batch(images, [{"size": (SIDE, SIDE)}]))
    for hook in hooks:
        hook.remove()
    norm_of = {id(x): norm for x, norm in inputs}
    levels = {id(level) for level in features.values()}
    found = [(c, norm_of[id(y)]) for y, c in outputs if id(y) in norm_of and id(y) not in levels]
    convs, norms = [c for c, _ in found], [n for _, n in found]
    return [(c, n) for c, n in found if convs.count(c) == norms.count(n) == 1]
