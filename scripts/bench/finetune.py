"""Quality after an equal time of training: from pretrained weights and from scratch.

    python scripts/bench/finetune.py \
        data.train.images=DIR data.train.annotations=FILE.json ... data.image_size=320 \
        --seconds 90 --seeds 0 1 2 \
        --recipe detection_small --recipe detection_finetune [--recipe CONFIG key=value ...]

Each recipe is a config with its own overrides; those before the options are for all. First the
processor time of a training step is measured, loading included, in turn for several rounds, with
one thread. Other work on the machine hardly changes it, and on a quiet core it is the time of a
step. Each recipe then trains for as many steps as fit into `--seconds`, for each seed, and is
scored at the end. With --steps, one number for each recipe, nothing is measured. Prints a JSON
record for each run, then the medians over the seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from contextlib import ExitStack
from typing import Any

import torch
from arguments import count, start

import visionkit
from visionkit.config import Config
from visionkit.engine.optim import Learner
from visionkit.engine.setup import build_training
from visionkit.engine.train import open_streams, train_step
from visionkit.ops.inference import pick_device, pick_precision

WARM_UP = 2  # steps before the clock counts
NEVER = 10**6  # epochs: validation after the last step alone


def config_of(recipe: list[str], common: list[str], **settings: Any) -> Config:
    words = ["train.plots=false", "data.workers=0", f"train.validate={NEVER}"]
    words += [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return visionkit.load_config(recipe[0], [*words, *common, *recipe[1:]])


def step_seconds(config: Config, steps: int) -> float:
    """Processor seconds of a training step, its batch included."""
    device = pick_device(config.train.device)
    model, sources, _ = build_training(config, device=device)
    dtype = pick_precision(config.train.precision, device)
    learner = Learner(model, config.train, NEVER, dtype)
    with ExitStack() as stack:
        streams = open_streams(config, sources, stack)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                before = time.process_time()
            batches = [(source.feeds, next(streams[source.name])) for source in sources]
            learner.update(train_step(learner, batches, step).norm, step)
    return (time.process_time() - before) / steps


def train(config: Config) -> dict[str, float]:
    """The metrics after the last step, without losses and classes."""
    started = time.process_time()
    metrics = visionkit.train(config).metrics
    found = {
        key.partition("/")[2]: value
        for key, value in metrics.items()
        if "loss/" not in key and key.count("/") < 3
    }
    return {"processor_seconds": time.process_time() - started, **found}


def medians(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the runs that differ only in their seed, with the lowest and the highest."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["recipe"], []).append(run)
    found = []
    for recipe, group in groups.items():
        record = {"recipe": recipe, "seeds": len(group), "steps": group[0]["steps"]}
        for key, value in group[0].items():
            if isinstance(value, float):
                values = [run[key] for run in group]
                record[key] = [*map(rounded, (statistics.median(values), min(values), max(values)))]
        found.append(record)
    return found


def rounded(value: Any) -> Any:
    """Of four digits; null for NaN, which JSON lacks."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("common", nargs="*", metavar="key=value")
    recipe = {"nargs": "+", "action": "append", "required": True}
    parser.add_argument("--recipe", **recipe, metavar=("CONFIG", "key=value"))
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--timed-steps", type=count, default=8)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--steps", type=count, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_intermixed_args()
    if args.steps is not None and len(args.steps) != len(args.recipe):
        parser.error(f"--steps: got {len(args.steps)} numbers for {len(args.recipe)} recipes")
    logging.getLogger("visionkit").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    names = [" ".join(recipe) for recipe in args.recipe]
    steps = args.steps
    if steps is None:
        timed: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, recipe in zip(names, args.recipe, strict=True):
                timed[name].append(step_seconds(config_of(recipe, args.common), args.timed_steps))
        seconds = [statistics.median(times) for times in timed.values()]
        steps = [max(1, round(args.seconds / each)) for each in seconds]
        times = {n: [*map(rounded, values)] for n, values in timed.items()}
        print(json.dumps({"step_seconds": times, "steps": steps}), flush=True)
    runs = []
    for seed in args.seeds:  # outermost, so that a stop leaves comparable runs
        for name, recipe, number in zip(names, args.recipe, steps, strict=True):
            with tempfile.TemporaryDirectory() as scratch:
                settings = {"train__steps": number, "train__seed": seed, "output": f"{scratch}/run"}
                metrics = train(config_of(recipe, args.common, **settings))
            runs.append({"recipe": name, "seed": seed, "steps": number, **metrics})
            print(json.dumps({k: rounded(v) for k, v in runs[-1].items()}), flush=True)
    print(json.dumps({"torch": torch.__version__, "medians": medians(runs)}, indent=2))


if __name__ == "__main__":
    start(main)
