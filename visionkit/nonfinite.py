"""Losses and gradients that are not finite must never reach the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.progress import Progress
from visionkit.types import Batch


def check_finite(
    norm: Tensor, progress: Progress, seen: list[Batch], scaler: torch.amp.GradScaler
) -> None:
    """Stop before a loss or a gradient that is not finite reaches the weights."""
    terms, gradient = progress.last_losses(norm)
    broken = [name for name, value in terms.items() if not math.isfinite(value)]
    gradients_count = not scaler.is_enabled()  # fp16 skips steps with infinite gradients by design
    if broken or (gradients_count and not math.isfinite(gradient)):
        images = [target["image_id"] for batch in seen for target in batch.targets]
        what = f"loss {', '.join(broken)}" if broken else "gradient"
        raise DivergedError(
            f"step {progress.step + 1}: the {what} is not finite ({terms}; gradient norm "
            f"{gradient:g}); image ids {images}. The weights are as after the step before. "
            f"Try a smaller train.lr, or train.precision=fp32"
        )
