"""What a run consists of while it trains, and how it is saved and restored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visionkit import checkpoint, distributed
from visionkit.config import Config
from visionkit.errors import CheckpointError
from visionkit.model import VisionModel
from visionkit.optim import MovingAverage
from visionkit.progress import Progress
from visionkit.types import Classes

log = logging.getLogger("visionkit")


@dataclass
class TrainingState:
    """Everything that the next step depends on, but for the data, which is a function of the step.

    Only process 0 writes files.
    """

    config: Config
    run: Path
    classes: dict[str, Classes]
    model: VisionModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    progress: Progress

    @property
    def smooth(self) -> VisionModel:
        """The model to validate and to predict with: the moving average, where there is one."""
        return self.average.model if self.average else self.model

    def save_best(self) -> None:
        """checkpoints/best.pt: weights to predict with."""
        if distributed.rank() == 0:
            state = {
                **self._identity(),
                "step": self.progress.step,
                "metrics": self.progress.metrics,
                "model": self.smooth.state_dict(),
            }
            checkpoint.save(state, self.run / "checkpoints" / "best.pt")

    def save_last(self) -> None:
        """checkpoints/last.pt: all that `restore` needs."""
        self.progress.saved()
        if distributed.rank() == 0:
            state = {
                **self._identity(),
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                **self.progress.state(),
            }
            checkpoint.save(state, self.run / "checkpoints" / "last.pt")

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where `save_last` was called. Raises CheckpointError if it does not fit."""
        before = {head: tuple(c["names"]) for head, c in saved["classes"].items()}
        now = {head: c.names for head, c in self.classes.items()}
        if before != now:
            raise CheckpointError(f"--resume: the run has the classes {before}, the data now {now}")
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            if self.average:
                self.average.model.load_state_dict(saved["average"])
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"--resume: the checkpoint does not fit the config: {str(error)[:500]}"
            ) from error
        for key, (old, new) in _changes(saved["config"], self.config.to_dict()).items():
            log.info("resumed with another %s: %s instead of %s", key, new, old)
        self.progress.restore(saved)

    def _identity(self) -> dict[str, Any]:
        classes = {h: {"names": list(c.names), "ids": list(c.ids)} for h, c in self.classes.items()}
        return {"config": self.config.to_dict(), "name": self.config.name, "classes": classes}


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
