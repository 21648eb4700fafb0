"""Runs of a fraction of a second, in this process or in a forked one that may be killed."""

import json
import logging
import multiprocessing
import os
import sys
from pathlib import Path

import torch

from visionkit.cli import main
from visionkit.runs import checkpoint

SHAPES = {"type": "Shapes", "num_images": 12, "size": 32}


def config(output, *, workers=0, **settings):
    """Four steps of a tiny classifier, validated after the third and the last."""
    small = {"steps": 4, "log_every": 1, "precision": "fp32", "plots": False, "ema": 0.9}
    return {
        "task": "classification",
        "backbone": {"type": "TinyCNN", "channels": [4, 8], "norm": "batch"},
        "data": {
            "train": {**SHAPES, "seed": 0},
            "val": {**SHAPES, "num_images": 5, "seed": 1},
            "image_size": 32,
            "batch_size": 4,
            "workers": workers,
        },
        "train": {**small, "optimizer": "adamw", "lr": 0.01, **settings},
        "output": str(output),
    }


def state(run, name="last.pt"):
    """All of a checkpoint but for the folder it was made in."""
    found = checkpoint.load(Path(run) / "checkpoints" / name)
    for key in ("output", "name"):
        found["config"].pop(key)
    found.pop("name")
    return found


def status(run):
    return json.loads((Path(run) / "status.json").read_text())


def lines(run):
    """metrics.jsonl without what depends on the clock."""
    records = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def same(a, b):
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def start(arguments, log, prepare=lambda: None):
    """`visionkit ARGUMENTS` in a forked process, after `prepare()`; what it says goes to `log`.

    Forked, because importing torch again takes seconds.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_main, args=(list(map(str, arguments)), log, prepare)
    )
    process.start()
    return process


def _main(arguments, log, prepare):
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
