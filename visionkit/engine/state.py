"""What a run consists of while it trains, and how it is saved and restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionkit.config import Config, TrainConfig
from visionkit.distributed import collectives
from visionkit.engine.failures import is_out_of_memory
from visionkit.engine.optim import ModelEMA
from visionkit.engine.progress import Progress
from visionkit.errors import CheckpointError, DataError, DivergedError, LostProcess, ResourceError
from visionkit.models.model import VisionModel
from visionkit.runs import checkpoint
from visionkit.types import Batch, Classes

# --- Losses and gradients that are not finite must never reach the weights.

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
        self.buffers.restore()
        progress.skip(told)
        if progress.skipped_in_a_row > MOST_IN_A_ROW:
            raise DivergedError(f"{told}. It is the {MOST_IN_A_ROW + 1}th such step in a row")
        return False


def _where(progress: Progress, seen: list[Batch]) -> str:
    """The images of the processes whose own losses are not finite; else those of all."""
    images = [target["image_id"] for batch in seen for target in batch.targets]
    of_all = collectives.gather((progress.own_losses_are_finite(), images))
    if len(of_all) == 1:
        return f"image ids {images}"
    faulty = {rank: ids for rank, (finite, ids) in enumerate(of_all) if not finite}
    shown = faulty or {rank: ids for rank, (_, ids) in enumerate(of_all)}
    return "; ".join(f"image ids {ids} in rank {rank}" for rank, ids in shown.items())


log = logging.getLogger("visionkit")
MOST_FAILURES = 3  # in a row, of saving


class Buffers:
    """The buffers of a model as they were before a step: batch norms count what passes through
    them, before anybody knows whether the step will be made."""

    def __init__(self, model: VisionModel) -> None:
        self._now = [*model.buffers()]
        self._before = [torch.empty_like(buffer) for buffer in self._now]

    def remember(self) -> None:
        if self._now:
            torch._foreach_copy_(self._before, self._now)

    @torch.no_grad()
    def restore(self) -> None:
        if self._now:
            torch._foreach_copy_(self._now, self._before)


@dataclass
class TrainingState:
    """Everything that the next step depends on, but for the data, which is a function of the step.

    Only rank 0 writes files. `images` is the size of each data set, by its key in the config.
    """

    config: Config
    run: Path
    classes: dict[str, Classes]
    model: VisionModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEMA | None
    progress: Progress
    images: dict[str, int]
    _failures: int = field(default=0, init=False)
    _best: dict[str, Any] | None = field(default=None, init=False)  # could not be written yet

    def __post_init__(self) -> None:
        self.buffers = Buffers(self.model)

    @property
    def smooth(self) -> VisionModel:
        """The model to validate and to predict with: the moving average, where there is one."""
        return self.average.model if self.average else self.model

    # --- saving ---

    def save_best(self, *, final: bool = False) -> None:
        """checkpoints/best.pt: weights to predict with.

        A disk that does not take them is forgiven as in `save_last`, which tries again.
        """
        if collectives.rank() != 0:
            return
        self._best = {
            **self._identity(),
            "step": self.progress.step,
            "metrics": self.progress.metrics,
            "model": self.smooth.state_dict(),
        }
        if not self._tolerate_write_error(self._write_best, final=final):
            self._best["model"] = {
                name: tensor.to("cpu", copy=True) for name, tensor in self._best["model"].items()
            }

    def save_last(self, *, final: bool = False) -> None:
        """checkpoints/last.pt: all that `restore` needs; what was there becomes prev.pt.

        A disk that does not take it is forgiven with a warning, but not three times in a row nor
        when it is `final`: then CheckpointError. last.pt never speaks of a best.pt that is not
        there, or a run that is killed could not repeat the validation that gave it.
        """
        self.progress.tried_to_save()
        if collectives.rank() != 0 or self._tolerate_write_error(self._write_all, final=final):
            self.progress.saved()

    def _tolerate_write_error(self, write: Callable[[], None], *, final: bool) -> bool:
        """Whether it worked."""
        try:
            write()
        except CheckpointError as error:
            self._failures += 1
            kept = self.progress.checkpoint_status()
            if final or self._failures == MOST_FAILURES:
                raise CheckpointError(f"{error}; {kept}") from error
            log.warning(
                "%s; %s; training goes on and tries again later (failure %d, the run ends at %d)",
                *(error, kept, self._failures, MOST_FAILURES),
            )
            return False
        self._failures = 0
        return True

    def _write_all(self) -> None:
        self._write_best()
        state = {
            **self._identity(),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "world_size": collectives.world_size(),
            "images": self.images,
            **self.progress.state(),
        }
        checkpoint.save_last(self.run, state)

    def _write_best(self) -> None:
        if self._best is not None:
            checkpoint.save(self._best, checkpoint.folder(self.run) / "best.pt")
            self._best = None

    @contextmanager
    def save_on_failure(self) -> Iterator[None]:
        """Around what changes no weights: where a broken image, a lack of memory or another
        process that is gone ends the run there, the state after the last whole step is saved."""
        self.buffers.remember()
        try:
            yield
        except Exception as error:
            known = isinstance(error, DataError | ResourceError | LostProcess)
            if not known and not is_out_of_memory(error):
                raise
            self.buffers.restore()
            self._save_what_is_left()
            raise

    def _save_what_is_left(self) -> None:
        if self.progress.step == 0:
            return  # the run can be started again
        try:
            if self.progress.unsaved:
                self.save_last(final=True)
        except (CheckpointError, MemoryError) as error:  # the first error is the one to tell
            log.warning("%s", error)

    # --- going on ---

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where `save_last` was called. Raises CheckpointError if it does not fit."""
        before = {head: tuple(c["names"]) for head, c in saved["classes"].items()}
        now = {head: c.names for head, c in self.classes.items()}
        if before != now:
            raise CheckpointError(f"--resume: the run has the classes {before}, the data now {now}")
        old, new = saved["config"]["train"]["optimizer"], self.config.train.optimizer
        if old != new:
            raise CheckpointError(f"--resume: train.optimizer is {new!r}, but the run's is {old!r}")
        checkpoint.load_weights(self.model, saved["model"], "--resume: the checkpoint")
        try:
            if self.average:
                self.average.model.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"--resume: the checkpoint does not fit the config: {str(error)[:500]}"
            ) from error
        for text in _changes_since(saved, self.config.to_dict(), self.images):
            log.warning("resumed with %s", text)
        self.progress.restore(saved)

    def _identity(self) -> dict[str, Any]:
        classes = {h: {"names": list(c.names), "ids": list(c.ids)} for h, c in self.classes.items()}
        return {"config": self.config.to_dict(), "name": self.config.name, "classes": classes}


def _changes_since(
    saved: dict[str, Any], config: dict[str, Any], images: dict[str, int]
) -> list[str]:
    """What makes the rest of the run another one than it would have been."""
    changes = _changes(saved["config"], config)
    texts = [f"another {key}: {new} instead of {old}" for key, (old, new) in changes.items()]
    before, now = saved.get("world_size"), collectives.world_size()
    if before not in (None, now):
        texts.append(f"{now} processes instead of {before}")
    for key, count in saved.get("images", images).items():
        if images.get(key, count) != count:
            texts.append(f"{images[key]} images in {key} instead of {count}")
    return texts


def flattened(settings: Any, key: str = "") -> dict[str, Any]:
    """The values of nested dicts by their dotted keys."""
    if not isinstance(settings, dict):
        return {key: settings}
    parts = (flattened(v, f"{key}.{name}" if key else name) for name, v in settings.items())
    return {name: value for part in parts for name, value in part.items()}


def _changes(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for name in {**old, **new}:
            found |= _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    same = old == new or (isinstance(old, (list, tuple)) and list(old) == list(new or ()))
    return {} if same or key == "output" else {key: (old, new)}
