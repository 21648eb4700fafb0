"""Overhead of visionkit's training loop compared with a bare PyTorch loop.

    python scripts/bench/loop.py CONFIG [key=value ...] [--segments 12] [--steps 20] [--batches 4]

Runs `visionkit.train` on a few batches loaded in advance, so neither side measures the loader. The
clock is read whenever the loop requests a batch, so a step includes logging and status files. After
each segment of steps, while the loop waits for its next batch, equally many steps of a bare loop
run on a copy of the model, with the same batches, optimizer, precision and clipping. Prints medians
over the segments, and the median of their ratios, as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from arguments import count, existing, start
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import visionkit
from visionkit.config import Config, load_config
from visionkit.data.build import build_sources, head_classes
from visionkit.data.loading.source import Source
from visionkit.distributed.collectives import loss_values
from visionkit.engine.optim import build_optimizer
from visionkit.models.build import build_model
from visionkit.ops.inference import pick_device, pick_precision
from visionkit.types import Batch


class Loaded:
    """A few batches of each source, and a copy of the model in a bare loop."""

    def __init__(self, config: Config, count: int) -> None:
        self.device = pick_device(config.train.device)
        self.dtype = pick_precision(config.train.precision, self.device)
        self.sources = build_sources(config, ("train",))
        self.batches = {}
        for source in self.sources:
            endless = source.train_batches(seed=0, start=0, workers=0)
            self.batches[source.name] = [next(endless) for _ in range(count)]
        self.size = sum(source.batch_size for source in self.sources)
        torch.manual_seed(config.train.seed)
        model = build_model(config, head_classes(config, self.sources)).to(self.device)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.train()
        self.optimizer = build_optimizer(model, config.train)
        self.clip_norm = config.train.clip_norm
        ema = config.train.ema and get_ema_multi_avg_fn(config.train.ema)
        self.average = (
            AveragedModel(self.model, multi_avg_fn=ema, use_buffers=True) if ema else None
        )

    def step(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for source in self.sources:
            batches = self.batches[source.name]
            batch: Batch = batches[number % len(batches)].to(self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                losses = loss_values(
                    self.model.losses(self.model.features(batch), batch, source.feeds)
                )
                loss = sum(self.model.weighted(losses).values())
            loss.backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)


class Clock:
    """Yields the loaded batches, and times the steps between them and those of the bare loop."""

    def __init__(self, loaded: Loaded, steps: int, clock: Callable[[], float]) -> None:
        self.loaded, self.steps, self.clock = loaded, steps, clock
        self.ours: list[float] = []  # seconds per step, for each segment
        self.bare: list[float] = []

    def now(self) -> float:
        if self.loaded.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def first(self, name: str) -> Iterator[Batch]:
        """The batches of the first source of a step."""
        number, batches = 0, self.loaded.batches[name]
        while True:
            start = self.now()
            for _ in range(self.steps):
                yield batches[number % len(batches)]
                number += 1
            self.ours.append((self.now() - start) / self.steps)
            state, start = torch.get_rng_state(), self.now()
            for step in range(self.steps):
                self.loaded.step(step)
            self.bare.append((self.now() - start) / self.steps)
            torch.set_rng_state(state)

    def others(self, name: str) -> Iterator[Batch]:
        number, batches = 0, self.loaded.batches[name]
        while True:
            yield batches[number % len(batches)]
            number += 1

    def batches_of(self) -> Callable:
        first = self.loaded.sources[0].name

        def train_batches(source: Source, **_: object) -> Iterator[Batch]:
            return self.first(source.name) if source.name == first else self.others(source.name)

        return train_batches


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [
            *args.overrides,
            f"output={scratch}/run",
            "train.validate=false",
            "train.best_metric=null",
        ]
        overrides += [f"train.steps={(args.segments + 1) * args.steps + 1}", "train.epochs=null"]
        config = load_config(args.config, overrides)
        timer = time.process_time if args.cpu_time else time.perf_counter
        clock = Clock(Loaded(config, args.batches), args.steps, timer)
        with mock.patch.object(Source, "train_batches", clock.batches_of()):
            visionkit.train(config)
    ours, bare = clock.ours[1:], clock.bare[1:]  # the first ones are a warm-up
    pairs = list(zip(ours, bare, strict=True))
    return {
        "config": args.config,
        "overrides": args.overrides,
        "batch": clock.loaded.size,
        "bare_ms": round(1e3 * statistics.median(bare), 3),
        "visionkit_ms": round(1e3 * statistics.median(ours), 3),
        "overhead": round(statistics.median(one / other for one, other in pairs) - 1, 4),
        "overhead_ms": round(1e3 * statistics.median(one - other for one, other in pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=existing)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--segments", type=count, default=12)
    parser.add_argument("--steps", type=count, default=20, help="steps per segment")
    parser.add_argument("--batches", type=count, default=4, help="number of different batches")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time")
    args = parser.parse_args()
    logging.getLogger("visionkit").setLevel(logging.WARNING)
    print(json.dumps(measure(args), indent=2))


if __name__ == "__main__":
    start(main)
