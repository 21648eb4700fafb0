"""Random numbers keyed by the picture, so that it draws the same in whatever process it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionkit.types import Target


def noise_of(target: Target, device: torch.device) -> torch.Generator | None:
    """A generator for one picture; None, torch's own, if it has no `position`."""
    if "position" not in target:
        return None
    return torch.Generator(device).manual_seed(target["position"])


def normal_noise(like: Tensor, targets: Sequence[Target]) -> Tensor:
    """Standard normal numbers of the shape of `like` (B, ...), those of each picture its own."""
    cpu = torch.device("cpu")  # one copy, where a GPU would run a kernel for each picture
    rows = [torch.randn(like.shape[1:], generator=noise_of(target, cpu)) for target in targets]
    return torch.stack(rows).to(like)
