"""Compare joint training with each of its heads alone, on configs/joint_shapes.yaml.

    python scripts/bench/joint.py time [--rounds 5] [--steps 6]
    python scripts/bench/joint.py metrics [key=value ...]    # six trainings

`time` alternates training steps (features, losses, backward, optimizer) of the joint model and of a
model for each head in one process, and prints the median of each and the ratio of the joint model
to the sum of the others, for all heads and for three. `metrics` trains the joint model and each
head alone for equally many steps, and prints the main metric of each head from both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from arguments import count, start

import visionkit
from visionkit.config import Config, load_config
from visionkit.config.components import resolve
from visionkit.data.build import build_sources, head_classes
from visionkit.distributed.collectives import loss_values
from visionkit.engine.optim import build_optimizer
from visionkit.models.build import build_model
from visionkit.ops.inference import pick_device, pick_precision
from visionkit.types import Batch

CONFIG = Path(__file__).parents[2] / "configs/joint_shapes.yaml"
THREE = ("objects", "map", "scene")


def with_heads(heads: list[str], overrides: list[str]) -> Config:
    """The joint config reduced to some of its heads."""
    spec = load_config(CONFIG, overrides).to_dict()
    spec["heads"] = {name: spec["heads"][name] for name in heads}
    spec["data"]["shapes"]["feeds"] = heads
    spec["train"]["best_metric"] = None
    return load_config(spec)


def alone(head: str) -> list[str]:
    """The heads of a model for one head: `attributes` needs the boxes of `objects`."""
    return ["objects", head] if head == "attributes" else [head]


def stepper(config: Config, trained: list[str], batches: list[Batch]) -> Callable[[int], None]:
    """A function that runs one training step like that of visionkit/engine/train.py."""
    device = pick_device(config.train.device)
    dtype = pick_precision(config.train.precision, device)
    classes = head_classes(config, build_sources(config, ("train",)))
    model = build_model(config, classes).to(device, memory_format=torch.channels_last)
    model.train()
    optimizer = build_optimizer(model, config.train)

    def step(number: int) -> None:
        batch = batches[number].to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = loss_values(model.losses(model.features(batch), batch, trained))
            total = sum(model.weighted(losses).values())
        total.backward()
        parameters = [p for p in model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure_time(rounds: int, steps: int, overrides: list[str]) -> dict:
    config = load_config(CONFIG, overrides)
    heads = list(config.heads)
    (source,) = build_sources(config, ("train",))
    endless = source.train_batches(seed=0, start=0, workers=0)
    batches = [next(endless) for _ in range(steps)]
    groups = {"all": heads, "three": list(THREE)}
    runs = {name: stepper(with_heads(g, overrides), g, batches) for name, g in groups.items()}
    for head in heads:
        runs[head] = stepper(with_heads(alone(head), overrides), [head], batches)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, step in runs.items():
            start = time.perf_counter()
            for number in range(steps):
                step(number)
            if round_:  # the first is a warm-up
                times[name].append((time.perf_counter() - start) / steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds_per_step": {name: round(value, 4) for name, value in medians.items()},
        "joint_to_sum_all": round(medians["all"] / sum(medians[h] for h in heads), 3),
        "joint_to_sum_three": round(medians["three"] / sum(medians[h] for h in THREE), 3),
    }


def measure_metrics(overrides: list[str]) -> dict:
    heads = list(load_config(CONFIG, overrides).heads)
    found: dict[str, dict[str, float]] = {"joint": {}, "alone": {}}
    with tempfile.TemporaryDirectory() as scratch:
        plans = {"joint": heads, **{head: alone(head) for head in heads}}
        for name, group in plans.items():
            config = with_heads(group, [*overrides, f"output={scratch}/{name}"])
            metrics = visionkit.train(config).metrics
            for head in group:
                main = resolve("heads", config.heads[head]["type"]).main_metric
                if name in ("joint", head):
                    which = "joint" if name == "joint" else "alone"
                    found[which][f"{head}/{main}"] = round(metrics[f"{head}/{main}"], 4)
            print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "metrics"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--steps", type=count, default=6)
    args = parser.parse_args()
    if args.what == "time":
        print(json.dumps(measure_time(args.rounds, args.steps, args.overrides), indent=2))
    else:
        print(json.dumps(measure_metrics(args.overrides), indent=2))


if __name__ == "__main__":
    start(main)
