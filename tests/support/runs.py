"""Small whole runs, ways to cut them off, and what it means that two are equal.

Models have a few thousand parameters and images 32 pixels: a step takes some milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import visionkit.engine.train as training
from support import heads
from visionkit import errors
from visionkit.distributed import collectives
from visionkit.engine.progress import Progress
from visionkit.runs import checkpoint

SIZE = 32
STEPS = 5  # an epoch of three steps, and two of the next
HEADS: dict[str, dict[str, Any]] = {
    case.name: {"type": head, **case.resumed}
    for head, case in heads.HEADS.items()
    if case.resumed is not None
}

WEIGHTINGS = ("fixed", "uncertainty", "pcgrad")
MODELS = [(case.name, "fixed") for case in heads.HEADS.values() if case.task and case.name in HEADS]
MODELS += [("joint", weighting) for weighting in WEIGHTINGS]
FEEDS = {name: {"main": [name]} for name in HEADS} | {
    "pair": {"main": ["classification", "vae"]},
    "three": {"main": ["fcos", "localization", "semantic"]},
    "joint": {"objects": ["fcos", "attributes"], "places": ["classification", "vae", "fcos"]},
}


def spec(what: str, output: Path, *, workers: int = 0, **train: Any) -> dict[str, Any]:
    """A config that trains the heads of `FEEDS[what]` from the sources there."""
    feeds = FEEDS[what]
    used = dict.fromkeys(head for heads in feeds.values() for head in heads)
    return {
        "backbone": {"type": "TinyCNN", "channels": [4, 8, 8], "norm": "batch"},
        "neck": {"type": "FPN", "channels": 8, "in_features": ["c2", "c3"], "extra_levels": "none"},
        "heads": {name: HEADS[name] for name in used},
        "data": {"workers": workers, **{n: _source(n, f) for n, f in feeds.items()}},
        "train": {
            **{"steps": STEPS, "log_every": 1, "precision": "fp32", "plots": False},
            "eval_batch_size": 2,  # something for each of two processes
            **train,
        },
        "output": str(output),
    }


def _source(name: str, feeds: list[str]) -> dict[str, Any]:
    images = {"type": "Shapes", "size": SIZE}
    return {
        "feeds": feeds,
        "batch_size": 8,
        "image_size": SIZE,
        "images_per_identity": 2 if feeds == ["embedding"] else None,
        "transforms": [{"type": "HorizontalFlip"}],
        "train": {**images, "num_images": 20, "seed": len(name)},
        "val": {**images, "num_images": 5, "seed": 1},
    }


# --- cutting a run off ---


class Killed(BaseException):
    """What stands for SIGKILL within one process: nothing that training does may stop it."""


def _raise_killed() -> None:
    raise Killed


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


HOW = ("signal", "kill", "kill in validation")


@contextmanager
def cut_off(step: int, how: str, kill: Callable[[], None] = _raise_killed) -> Iterator[None]:
    """Within, a run does not get far beyond that step.

    signal: SIGTERM comes to the last rank when that step is done.
    kill: the process dies when the next step is done and logged; the checkpoint is of `step`.
    kill in validation: it dies in the first validation from that step on, when all is computed and
        nothing of it is saved; the checkpoint is of just before.
    """
    advance, validated = Progress.advance, Progress.validated

    def advance_and_stop(self: Progress, *args: Any, **kwargs: Any) -> None:
        advance(self, *args, **kwargs)
        last_rank = collectives.rank() == collectives.world_size() - 1
        if how == "signal" and self.step == step and last_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "kill" and self.step == step + 1:
            kill()

    def save_due(self: Progress) -> bool:
        return self.validation_due or (how == "kill" and self.step == step)

    def validated_in_vain(self: Progress, metrics: dict[str, float]) -> bool:
        improved = validated(self, metrics)
        if how == "kill in validation" and self.step >= step:
            kill()
        return improved

    with (
        patch.object(Progress, "advance", advance_and_stop),
        patch.object(Progress, "save_due", property(save_due)),
        patch.object(Progress, "validated", validated_in_vain),
    ):
        yield


def train(config: dict[str, Any], *, resume: bool = False) -> Path:
    """Without the images of the run directory: a quarter of the time, and no part in this."""
    with patch.multiple(training, save_train_samples=_nothing, save_val_samples=_nothing):
        return training.train(config, resume=resume).directory


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def train_until(config: dict[str, Any], step: int, how: str) -> Path:
    """Train and be cut off; the run directory."""
    run = Path(config["output"])
    with cut_off(step, how):
        try:
            train(config)
        except errors.Preempted:
            assert how == "signal" and read_status(run)["state"] == "preempted"
            assert read_status(run)["step"] == step
        except Killed:
            assert how != "signal"
        else:
            raise AssertionError(f"the run was not cut off at step {step} by {how}")
    return run


# --- what a run leaves ---


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for time, its process and its place."""
    left: dict[str, Any] = {
        "lines": [
            {key: value for key, value in line.items() if key != "images_per_second"}
            for line in read_lines(run)
        ],
        "status": {key: read_status(run)[key] for key in ("state", "step", "total_steps", "epoch")},
    }
    for name in ("last", "best"):
        left[name] = checkpoint.load(run / "checkpoints" / f"{name}.pt")
        del left[name]["config"]  # output, and the number of workers
    return left


def equal(a: Any, b: Any, path: str = "") -> None:
    """AssertionError, saying where, unless both are the same bit by bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, f"{path}/{i}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), path
