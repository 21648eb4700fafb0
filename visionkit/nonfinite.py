"""Losses and gradients that are not finite must never reach the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visionkit import distributed
from visionkit.config import TrainConfig
from visionkit.errors import DivergedError
from visionkit.progress import Progress
from visionkit.training_state import Buffers
from visionkit.types import Batch

MOST_IN_A_ROW = 10  # skipped steps; with more the run has diverged


class Guard:
    """Decides before each update whether it may be made: `train.on_nonfinite`.

    All processes decide alike, because they see the mean losses and gradients of all. fp16's
    GradScaler leaves out steps with infinite gradients by design; those it decides itself.
    """

    def __init__(self, buffers: Buffers, settings: TrainConfig) -> None:
        self.buffers, self.skips = buffers, settings.on_nonfinite == "skip"

    def admits(
        self, norm: Tensor, progress: Progress, seen: list[Batch], scaler: torch.amp.GradScaler
    ) -> bool:
        """False if the step is to be left out, with the batch statistics as before it. Raises
        DivergedError where it is not to be, or after too many in a row."""
        terms, gradient = progress.last_losses(norm)
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if not broken and (math.isfinite(gradient) or scaler.is_enabled()):
            return True
        what = f"loss {', '.join(broken)}" if broken else "gradient"
        told = (
            f"step {progress.step + 1} (epoch {progress.epoch}, learning rate "
            f"{progress.lr:.3g}): the {what} is not finite ({terms}; gradient norm {gradient:g}); "
            f"{_where(progress, seen)}"
        )
        if not self.skips:
            raise DivergedError(
                f"{told}. The weights are as after the step before. Try a smaller train.lr, or "
                "train.precision=fp32, or leave such steps out with train.on_nonfinite=skip"
            )
        self.buffers.bring_back()
        progress.skip(told)
        if progress.skipped_in_a_row > MOST_IN_A_ROW:
            raise DivergedError(f"{told}. It is the {MOST_IN_A_ROW + 1}th such step in a row")
        return False


def _where(progress: Progress, seen: list[Batch]) -> str:
    """The pictures of the processes whose own losses are not finite; else those of all."""
    images = [target["image_id"] for batch in seen for target in batch.targets]
    of_all = distributed.gather((progress.own_losses_are_finite(), images))
    if len(of_all) == 1:
        return f"image ids {images}"
    faulty = {rank: ids for rank, (finite, ids) in enumerate(of_all) if not finite}
    shown = faulty or {rank: ids for rank, (_, ids) in enumerate(of_all)}
    return "; ".join(f"image ids {ids} in process {rank}" for rank, ids in shown.items())
