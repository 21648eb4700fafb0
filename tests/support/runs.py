"""Small whole runs, ways to cut them off, and what it means that two are equal.

Models have a few thousand parameters and images 32 pixels: a step takes some milliseconds.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import visionkit.engine.train as training
from support import heads
from visionkit import errors
from visionkit.cli import main
from visionkit.distributed import collectives
from visionkit.engine.progress import Progress
from visionkit.runs import checkpoint
from visionkit.runs.directory import read_status

SIZE = 32
STEPS = 5  # an epoch of three steps, and two of the next
RESUMED: dict[str, dict[str, Any]] = {
    case.name: {"type": head, **case.resumed}
    for head, case in heads.HEADS.items()
    if case.resumed is not None
}

WEIGHTINGS = ("fixed", "uncertainty", "pcgrad")
MODELS = [
    (case.name, "fixed") for case in heads.HEADS.values() if case.task and case.name in RESUMED
]
MODELS += [("joint", weighting) for weighting in WEIGHTINGS]
FEEDS = {name: {"main": [name]} for name in RESUMED} | {
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
        "heads": {name: RESUMED[name] for name in used},
        "data": {"workers": workers, **{n: _source(n, f) for n, f in feeds.items()}},
        "train": {
            **{
                "steps": STEPS,
                "log_every": 1,
                "precision": "fp32",
                "plots": False,
                "report": False,
                "validate": 1,
            },
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


def config(output: Path, *, workers: int = 0, **settings: Any) -> dict[str, Any]:
    """Four steps of a tiny classifier, validated after the third and the last."""
    shapes = {"type": "Shapes", "size": SIZE}
    small = {
        "steps": 4,
        "log_every": 1,
        "precision": "fp32",
        "plots": False,
        "report": False,
        "validate": 1,
        "ema": 0.9,
    }
    return {
        "task": "classification",
        "backbone": {"type": "TinyCNN", "channels": [4, 8], "norm": "batch"},
        "data": {
            "train": {**shapes, "num_images": 12, "seed": 0},
            "val": {**shapes, "num_images": 5, "seed": 1},
            "image_size": SIZE,
            "batch_size": 4,
            "workers": workers,
        },
        "train": {**small, "optimizer": "adamw", "lr": 0.01, **settings},
        "output": str(output),
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


def start(
    arguments: Sequence[Any], log: Path, prepare: Callable[[], Any] = lambda: None
) -> BaseProcess:
    """`visionkit ARGUMENTS` in a forked process, after `prepare()`; what it says goes to `log`.

    Forked, because importing torch again takes seconds.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_main, args=(list(map(str, arguments)), log, prepare)
    )
    process.start()
    return process


def _main(arguments: list[str], log: Path, prepare: Callable[[], Any]) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not there
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with open(descriptor, "w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        logging.getLogger().handlers = [logging.StreamHandler(sys.stderr)]
        prepare()
        code = main.main(arguments)
    sys.exit(code)


# --- what a run leaves ---


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def state(run: Path, name: str = "last.pt") -> dict[str, Any]:
    """All of a checkpoint but for the folder it was made in."""
    found = checkpoint.load(run / "checkpoints" / name)
    for key in ("output", "name"):
        found["config"].pop(key)
    found.pop("name")
    return found


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for time, its process and its place."""
    left: dict[str, Any] = {
        "lines": lines(run),
        "status": {key: read_status(run)[key] for key in ("state", "step", "total_steps", "epoch")},
    }
    for name in ("last", "best"):
        left[name] = checkpoint.load(run / "checkpoints" / f"{name}.pt")
        del left[name]["config"]  # output, and the number of workers
    return left


def equal(a: Any, b: Any, path: str = "") -> None:
    """AssertionError, saying where, unless both are the same bit by bit."""
    if isinstance(a, dict):  # or an OrderedDict
        assert isinstance(b, dict) and a.keys() == b.keys(), path
        for key in a:
            equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, f"{path}/{i}")
    elif torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    else:
        assert type(a) is type(b) and (a == b or (a != a and b != b)), path


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same bit by bit."""
    try:
        equal(a, b)
    except AssertionError:
        return False
    return True
