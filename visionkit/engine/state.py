"""The state of a run while it trains: how it is saved and restored, and the check for NaN."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from visionkit.config import Config
from visionkit.config.load import with_defaults
from visionkit.distributed import collectives
from visionkit.engine.failures import is_out_of_memory
from visionkit.engine.optim import Learner, StepResult
from visionkit.engine.progress import Progress
from visionkit.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    LostRank,
    ResourceError,
    shorten,
)
from visionkit.metrics.thresholds import Thresholds, saved_thresholds
from visionkit.runs import checkpoint
from visionkit.types import Batch, Classes, Evaluator

log = logging.getLogger("visionkit")
MAX_WRITE_ERRORS = 3  # in a row; then the run ends
MAX_SKIPPED_IN_A_ROW = 10  # steps; with more the run has diverged


class Drawing:
    """When to draw curves and images: seldom enough to cost a twentieth of the time."""

    def __init__(self) -> None:
        self._ended, self._seconds = -math.inf, 0.0

    def due(self) -> bool:
        return time.perf_counter() - self._ended >= 20 * self._seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._ended = time.perf_counter()
        self._seconds = self._ended - start


@dataclass
class TrainingState:
    """Everything that the next step depends on, except the data, which is a function of the step.

    Only rank 0 writes files. `images` is the size of each dataset, by its key in the config;
    `fingerprints` are hashes of its labels and of the sizes of its files.
    """

    config: Config
    run: Path
    classes: dict[str, Classes]
    learner: Learner
    progress: Progress
    images: dict[str, int]
    fingerprints: dict[str, dict[str, str | None]]
    evaluators: dict[str, Evaluator] = field(default_factory=dict, init=False)  # of the best
    drawing: Drawing = field(default_factory=Drawing, init=False)
    _write_errors: int = field(default=0, init=False)  # in a row
    _best: dict[str, Any] | None = field(default=None, init=False)  # could not be written yet

    def __post_init__(self) -> None:
        self._buffers = [*self.learner.model.buffers()]
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]

    def save_best(self, *, final: bool = False) -> None:
        """checkpoints/best.pt: weights to predict with.

        A disk that refuses them is tolerated as in `save_last`, which tries again.
        """
        if collectives.rank() != 0:
            return
        self._best = {
            **self._identity(),
            "step": self.progress.step,
            "metrics": self.progress.metrics,
            "thresholds": self._thresholds(),
            "model": self.learner.averaged.state_dict(),
        }
        if not self._tolerate_write_error(self._write_best, final=final):
            self._best["model"] = {
                name: tensor.to("cpu", copy=True) for name, tensor in self._best["model"].items()
            }

    def save_last(self, *, final: bool = False) -> None:
        """checkpoints/last.pt: all that `restore` needs; the one before becomes prev.pt.

        A disk that refuses it is tolerated with a warning, but not three times in a row nor when
        it is `final`: then CheckpointError. last.pt never counts a best.pt that was not written,
        or a run that is killed could not repeat the validation that made it.
        """
        self.progress.saving()
        if collectives.rank() != 0 or self._tolerate_write_error(self._write_all, final=final):
            self.progress.saved()

    def _tolerate_write_error(self, write: Callable[[], None], *, final: bool) -> bool:
        """Returns whether it succeeded."""
        try:
            write()
        except CheckpointError as error:
            self._write_errors += 1
            status = self.progress.checkpoint_status()
            if final or self._write_errors == MAX_WRITE_ERRORS:
                raise CheckpointError(f"{error}; {status}") from error
            attempt = f"attempt {self._write_errors} of {MAX_WRITE_ERRORS}"
            log.warning("%s; %s; will retry at the next checkpoint (%s)", error, status, attempt)
            return False
        self._write_errors = 0
        return True

    def _write_all(self) -> None:
        self._write_best()
        state = {
            **self._identity(),
            **self.learner.state(),
            "world_size": collectives.world_size(),
            "images": self.images,
            "fingerprints": self.fingerprints,
            "thresholds": self._thresholds(),
            **self.progress.state(),
        }
        checkpoint.save_last(self.run, state)

    def _write_best(self) -> None:
        if self._best is not None:
            checkpoint.save(self._best, checkpoint.folder(self.run) / "best.pt")
            self._best = None

    @contextmanager
    def save_on_failure(self) -> Iterator[None]:
        """Around what changes no weights: if an unreadable image, a lack of memory or a lost rank
        ends the run inside, the state after the last whole step is saved."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)
        try:
            yield
        except Exception as error:
            known = isinstance(error, DataError | ResourceError | LostRank)
            if not known and not is_out_of_memory(error):
                raise
            self.restore_buffers()
            try:
                if self.progress.step > 0 and self.progress.unsaved:
                    self.save_last(final=True)
            except (CheckpointError, MemoryError) as failure:  # the first error matters more
                log.warning("%s", failure)
            raise

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """The buffers of the model as before the step: batch norms count what passes through them
        before it is known whether the step will be made."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)

    def restore(self, saved: dict[str, Any], *, strict: bool = False) -> None:
        """Restore what `save_last` saved. Raises CheckpointError if it does not fit. What makes the
        rest of the run differ is a warning; with `strict`, other data is a DataError."""
        other_data = self._other_data(saved)
        if other_data and strict:
            raise DataError(*(f"--resume --strict: {text}" for text in other_data))
        before = {head: tuple(c["names"]) for head, c in saved["classes"].items()}
        now = {head: c.names for head, c in self.classes.items()}
        if before != now:
            raise CheckpointError(f"--resume: the run has the classes {before}, the data now {now}")
        given = saved["config"]["train"]["optimizer"], self.config.train.optimizer
        old, new = (one if isinstance(one, str) else one["type"] for one in given)
        if old.lower() != new.lower():
            raise CheckpointError(f"--resume: train.optimizer is {new!r}, but the run's is {old!r}")
        checkpoint.load_weights(self.learner.model, saved["model"], "--resume: the checkpoint")
        try:
            self.learner.restore(saved)
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                "--resume: the checkpoint does not fit the config: "
                + shorten(" ".join(str(error).split()), 500)
            ) from error
        for text in [*_changes_since(saved["config"], self.config.to_dict()), *other_data]:
            log.warning("resumed with %s", text)
        if (before := saved["world_size"]) != collectives.world_size():
            log.warning("resumed with %d ranks instead of %d", collectives.world_size(), before)
        self.progress.restore(saved)
        self.set_thresholds(saved_thresholds(saved))

    def _other_data(self, saved: dict[str, Any]) -> list[str]:
        """How the datasets differ from those that the run was trained with so far."""
        texts = []
        for key, images in self.images.items():
            before = saved["images"].get(key, images)
            if images != before:
                texts.append(f"{images} images in {key} instead of {before}")
            old = saved.get("fingerprints", {}).get(key, {})  # missing in older checkpoints
            changed = [
                f"{what} ({str(new)[:8]} instead of {str(old[what])[:8]})"
                for what, new in self.fingerprints[key].items()
                if images == before and old.get(what, new) != new
            ]
            if changed:
                _, name, split = key.split(".")
                spec = getattr(self.config.data[name], split)
                paths = [f"{k}: {value}" for k, value in spec.items() if isinstance(value, str)]
                texts.append(
                    f"other data in {key} ({', '.join(paths)}): another fingerprint of "
                    f"{' and of '.join(changed)}"
                )
        return texts

    def set_thresholds(self, found: dict[str, Thresholds]) -> None:
        """The models draw, and best.pt keeps, what was found by the validation of the weights."""
        for model in {self.learner.model, self.learner.averaged}:
            model.thresholds = {**model.thresholds, **found}

    def _thresholds(self) -> dict[str, Any]:
        return {head: one.to_dict() for head, one in self.learner.model.thresholds.items()}

    def _identity(self) -> dict[str, Any]:
        classes = {h: {"names": list(c.names), "ids": list(c.ids)} for h, c in self.classes.items()}
        return {"config": self.config.to_dict(), "name": self.config.name, "classes": classes}


def _changes_since(saved: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings that differ from the saved ones. One that the saved config lacks, as it is
    newer, differs if it is not the default."""
    old, new = flattened(with_defaults(saved)), flattened(with_defaults(config))
    keys = [key for key in {**old, **new} if key != "output"]
    return [f"{k}: {new.get(k)} instead of {old.get(k)}" for k in keys if new.get(k) != old.get(k)]


def flattened(settings: Any, key: str = "") -> dict[str, Any]:
    """The values of nested dicts by their dotted keys; tuples as lists."""
    if not isinstance(settings, dict):
        return {key: list(settings) if isinstance(settings, tuple) else settings}
    parts = (flattened(v, f"{key}.{name}" if key else name) for name, v in settings.items())
    return {name: value for part in parts for name, value in part.items()}


def check_finite(state: TrainingState, result: StepResult, batches: list[Batch]) -> bool:
    """Check before an update that losses and gradients are finite: `train.on_nonfinite`.

    False if the step is to be skipped, with the batch statistics as before it. Raises DivergedError
    where `on_nonfinite` is not `skip`, or after too many in a row. All ranks decide alike, because
    they have the mean losses and gradients of all. fp16's GradScaler skips steps with infinite
    gradients by design; those are left to it.
    """
    progress = state.progress
    *values, gradient = torch.stack([*result.losses.values(), result.norm]).tolist()
    terms = dict(zip(result.losses, values, strict=True))  # one wait for a GPU
    wrong = [name for name, value in terms.items() if not math.isfinite(value)]
    if not wrong and (math.isfinite(gradient) or state.learner.scaler.is_enabled()):
        return True
    what = f"loss {', '.join(wrong)}" if wrong else "gradient"
    message = (
        f"step {progress.step + 1} (epoch {progress.epoch}, learning rate "
        f"{result.lr:.3g}): the {what} is not finite ({terms}; gradient norm {gradient:g}); "
        f"{_image_ids(result, batches)}"
    )
    if state.learner.settings.on_nonfinite != "skip":
        raise DivergedError(
            f"{message}. The weights are as after the step before. Try a smaller train.lr, or "
            "train.precision=fp32, or skip such steps with train.on_nonfinite=skip"
        )
    state.restore_buffers()
    progress.skip(message)
    if (skipped := progress.skipped_in_a_row) > MAX_SKIPPED_IN_A_ROW:
        raise DivergedError(f"{message}. {skipped} steps in a row were skipped")
    return False


def _image_ids(result: StepResult, batches: list[Batch]) -> str:
    """The images of the ranks whose own losses are not finite; else those of all ranks."""
    images = [target["image_id"] for batch in batches for target in batch.targets]
    finite = all(math.isfinite(float(value)) for value in result.own_losses.values())
    of_all = collectives.all_gather_object((finite, images))
    if len(of_all) == 1:
        return f"image ids {images}"
    faulty = {rank: ids for rank, (finite, ids) in enumerate(of_all) if not finite}
    shown = faulty or {rank: ids for rank, (_, ids) in enumerate(of_all)}
    return "; ".join(f"image ids {ids} in rank {rank}" for rank, ids in shown.items())
