"""`visionkit bench`: where the time and the memory of a config go, on this machine.

The steps are those of training (`_fit` in training.py) with a clock between their parts; nothing is
kept, and no file of a run is written.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_

from visionkit.config import Config, load_config
from visionkit.data.loading.source import Source
from visionkit.distributed.losses import loss_values
from visionkit.engine.device import pick_device, pick_precision
from visionkit.engine.optim import ModelEMA, build_optimizer, gradient_combiner, total_norm
from visionkit.engine.setup import set_up
from visionkit.models.model import VisionModel
from visionkit.types import Batch

WARM_UP = 3  # steps, or evaluated batches, before the clock counts


class Stopwatch:
    """Adds up the seconds of named parts; waits for a GPU before it looks at the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[part] += self.now() - start


def benchmark(
    config: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    steps: int = 20,
    allow_plugins: bool = False,
) -> dict[str, Any]:
    """Measure the training and the evaluation that a config describes.

    `steps` training steps are timed after a warm-up, as many batches of the loader alone, and at
    most as many batches of the evaluation. Gives `device`, `precision`, `workers`, `batch`
    (images in a step), `steps`; `images_per_second` of training and `loader_images_per_second`
    of the loader when nothing else runs; `seconds`, of one `step` and of each of its parts, which
    add up to it; `evaluation` (see `_evaluate`); `memory_mb`, the peak of this process and, on a
    GPU, of its allocations; `advice`, a list of lines. The random generator is left as it was.
    """
    checked = load_config(config, overrides, allow_plugins=allow_plugins)
    settings = checked.train
    device = pick_device(settings.device)
    dtype = pick_precision(settings.precision, device)
    strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(settings.deterministic)
    try:
        with torch.random.fork_rng():
            model, sources, _ = set_up(checked, device=device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            trained = [source for source in sources if source.train is not None]
            seconds = _train(checked, model, trained, steps, dtype=dtype)
            loader = _load(checked, trained, steps)
            evaluation = _evaluate(model, sources, steps, workers=checked.workers, dtype=dtype)
    finally:
        torch.use_deterministic_algorithms(strict)
    batch = settings.accumulate_grad_batches * sum(source.batch_size for source in trained)
    result = {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "workers": checked.workers,
        "batch": batch,
        "steps": steps,
        "images_per_second": batch / seconds["step"],
        "loader_images_per_second": loader,
        "seconds": seconds,
        "evaluation": evaluation,
        "memory_mb": _memory(device),
    }
    return {**result, "advice": advice(result, cores=cores())}


def advice(result: Mapping[str, Any], cores: int) -> list[str]:
    """One line for each cost that stands out in a result, with what to change."""
    seconds, found = result["seconds"], []
    share = {part: round(100 * value / seconds["step"]) for part, value in seconds.items()}
    if share["data"] >= 20:
        wait = f"the loop waits for data {share['data']} % of the time"
        if result["workers"] < cores:
            found.append(f"{wait}: raise data.workers, which is {result['workers']}")
        else:
            found.append(f"{wait}: smaller image files or fewer transforms would help")
    if share["optimizer"] >= 25:
        found.append(
            f"the optimizer takes {share['optimizer']} % of a step: a larger batch_size shares it "
            "among more images"
        )
    device = torch.device(result["device"])
    if result["precision"] == "float32" and pick_precision("auto", device) == torch.bfloat16:
        found.append("this hardware computes in bfloat16: try train.precision=auto")
    return found


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(
    config: Config, model: VisionModel, sources: list[Source], steps: int, *, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of a training step and of its parts, the mean over `steps`."""
    settings = config.train
    device = next(model.parameters()).device
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = ModelEMA(model, settings.ema) if settings.ema else None
    gradients = gradient_combiner(settings.weighting, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    watch = Stopwatch(device)
    model.train()
    with ExitStack() as stack:
        batches = _open(config, sources, stack)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                watch.seconds.clear()
                start = watch.now()
            for _ in range(settings.accumulate_grad_batches):
                for source in sources:
                    with watch("data"):
                        batch = next(batches[source.name])
                    with watch("to_device"):
                        batch = batch.to(device)
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        losses = _forward(model, batch, source.feeds, watch)
                        parts = model.weighted(losses)
                    with watch("backward"):
                        gradients.backward(
                            {
                                head: scaler.scale(p / settings.accumulate_grad_batches)
                                for head, p in parts.items()
                            }
                        )
            with watch("optimizer"):
                gradients.finish(step)
                scaler.unscale_(optimizer)
                norm = total_norm(parameters)
                if settings.clip_norm:
                    clip_grads_with_norm_(parameters, settings.clip_norm, norm)
                scaler.step(optimizer)
                scaler.update()
                if average:
                    average.update(step)
                optimizer.zero_grad(set_to_none=True)
        total = (watch.now() - start) / steps
    means = {part: value / steps for part, value in watch.seconds.items()}
    means |= {part: means.pop(part) for part in ("backward", "optimizer")}  # after all heads
    return {"step": total, **means, "other": total - sum(means.values())}


def _forward(
    model: VisionModel, batch: Batch, heads: list[str], watch: Stopwatch
) -> dict[str, dict[str, torch.Tensor]]:
    """The losses of the heads, as `VisionModel.features` and `losses` compute them."""
    with watch("backbone"):
        features = model.backbone(batch.images, batch.sizes)
    if model.neck is not None:
        with watch("neck"):
            features = model.neck(features)
    losses = {}
    for head in heads:
        with watch(f"head/{head}"):
            losses |= loss_values(model.losses(features, batch, [head]))
    return losses


def _load(config: Config, sources: list[Source], steps: int) -> float:
    """Images per second of the loaders alone, past what their workers had ready."""
    with ExitStack() as stack:
        batches = _open(config, sources, stack)

        def draw(count: int) -> int:
            return sum(len(next(b)) for _ in range(count) for b in batches.values())

        draw(2 * config.workers + 1)
        count = max(steps, 8 * config.workers)  # what is ready when the clock starts is a part
        start = time.perf_counter()
        return draw(count) / (time.perf_counter() - start)


def _open(config: Config, sources: list[Source], stack: ExitStack) -> dict[str, Iterator[Batch]]:
    """The endless batches of each source; the stack ends their workers."""
    opened = {
        source.name: source.train_batches(seed=config.train.seed, start=0, workers=config.workers)
        for source in sources
    }
    for endless in opened.values():
        stack.callback(endless.close)
    return opened


@torch.inference_mode()
def _evaluate(
    model: VisionModel,
    sources: list[Source],
    steps: int,
    *,
    workers: int,
    dtype: torch.dtype,
) -> dict[str, float] | None:
    """`images` predicted, `predict_seconds` for each, and `scoring_seconds` for all of them.

    None if nothing is validated. The weights are those a training begins with, so there may be
    more or fewer objects to score than later.
    """
    device = next(model.parameters()).device
    watch, images = Stopwatch(device), 0
    model.eval()
    for source in sources:
        if source.val is None or not source.feeds:
            continue
        evaluators = {head: model.evaluator(head, source.val) for head in source.feeds}
        with closing(source.val_batches(workers=workers)) as batches:
            for number, batch in enumerate(islice(batches, steps)):
                batch = batch.to(device)
                for part in ("warm-up", "predict") if number == 0 else ("predict",):
                    with (
                        watch(part),
                        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
                    ):
                        features = model.features(batch)
                        predictions = model.predictions(features, batch, source.feeds)
                images += len(batch)
                with watch("scoring"):
                    for head, evaluator in evaluators.items():
                        evaluator.update(predictions[head], batch)
        with watch("scoring"):
            for evaluator in evaluators.values():
                evaluator.compute()
    if not images:
        return None
    return {
        "images": images,
        "predict_seconds": watch.seconds["predict"] / images,
        "scoring_seconds": watch.seconds["scoring"],
    }


def _memory(device: torch.device) -> dict[str, float]:
    """Peaks in megabytes; that of the process counts from its start."""
    found = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["process"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    if device.type == "cuda":
        found["cuda"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found
