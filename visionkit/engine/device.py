"""The device and the precision that a run computes with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from visionkit.errors import ConfigError


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
