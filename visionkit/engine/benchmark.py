"""`visionkit bench`: the time and the memory that each part of a config takes on this machine.

The steps are those of training, with a clock around their parts. No file of a run is written. How
long a trained model takes is in `latency`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from visionkit.config import Config, load_config
from visionkit.data.loading.source import Source
from visionkit.data.loading.workers import cores
from visionkit.engine.latency import Stopwatch, is_model, latency
from visionkit.engine.optim import Learner
from visionkit.engine.setup import build_training
from visionkit.engine.train import open_streams, train_step
from visionkit.models.build import with_published
from visionkit.models.model import wrap_calls
from visionkit.ops.inference import pick_device, pick_precision, reproducible

WARM_UP = 3  # steps, or evaluated batches, before the clock counts


def benchmark(
    config: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    steps: int = 20,
    allow_plugins: bool = False,
) -> dict[str, Any]:
    """Measure the training and the evaluation that a config describes; of a run, a file of weights
    or an ONNX file how fast it predicts, as `visionkit.engine.latency.latency` says.

    `steps` training steps are timed after a warm-up, as many batches of the loader alone, and at
    most as many batches of the evaluation. Returns `device`, `precision`, `workers`, `batch`
    (images in a step), `steps`; `images_per_second` of training and `loader_images_per_second`
    of the loader when nothing else runs; `seconds`, of one `step` and of each of its parts, which
    add up to it; `evaluation`, None or a dict of `images`, `predict_seconds` of each and
    `scoring_seconds` of all; `memory_mb`, the peak of this process and, on a GPU, of its
    allocations; `advice`, a list of lines. The random generator is unchanged.
    """
    if is_model(config):
        return latency(config, overrides, steps=steps, allow_plugins=allow_plugins)
    checked = with_published(load_config(config, overrides, allow_plugins=allow_plugins))
    settings = checked.train
    device = pick_device(settings.device)
    dtype = pick_precision(settings.precision, device)
    with reproducible(settings.deterministic):
        model, sources, _ = build_training(checked, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trained = [source for source in sources if source.train is not None]
        learner = Learner(model, settings, WARM_UP + steps, dtype)
        seconds = _train(checked, learner, trained, steps)
        loader = _load(checked, trained, steps)
        evaluation = _evaluate(learner, sources, steps, workers=checked.workers)
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


def _train(config: Config, learner: Learner, sources: list[Source], steps: int) -> dict[str, float]:
    """Seconds of a training step and of its parts, the mean over `steps`."""
    watch = Stopwatch(learner.device)
    wrap_calls(learner.model, lambda key, call: watch(key.replace("heads.", "head/"))(call))
    backward = watch("backward")(learner.gradients.backward)
    learner.gradients.backward = backward  # type: ignore[method-assign]  # thrown away soon
    with ExitStack() as stack:
        streams = open_streams(config, sources, stack)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                watch.seconds.clear()
                start = watch.now()
            batches = []
            for source in sources * config.train.accumulate_grad_batches:
                with watch("data"):
                    batch = next(streams[source.name])
                with watch("to_device"):
                    batches.append((source.feeds, batch.to(learner.device)))
            result = train_step(learner, batches, step)
            with watch("optimizer"):
                learner.update(result.norm, step)
                learner.scaler.update()
        total = (watch.now() - start) / steps
    means = {part: value / steps for part, value in watch.seconds.items()}
    means |= {part: means.pop(part) for part in ("backward", "optimizer")}  # after all heads
    return {"step": total, **means, "other": total - sum(means.values())}


def _load(config: Config, sources: list[Source], steps: int) -> float:
    """Images per second of the loaders alone, after what their workers had ready."""
    with ExitStack() as stack:
        batches = open_streams(config, sources, stack)

        def draw(count: int) -> int:
            return sum(len(next(b)) for _ in range(count) for b in batches.values())

        draw(2 * config.workers + 1)
        count = max(steps, 8 * config.workers)  # so that what is ready at the start hardly counts
        start = time.perf_counter()
        return draw(count) / (time.perf_counter() - start)


@torch.inference_mode()
def _evaluate(
    learner: Learner, sources: list[Source], steps: int, *, workers: int
) -> dict[str, float] | None:
    """`images` predicted, `predict_seconds` for each, and `scoring_seconds` for all of them.

    None if nothing is validated. The model is hardly trained, so there may be more or fewer
    objects to score than later.
    """
    model, device = learner.model.eval(), learner.device
    watch, images = Stopwatch(device), 0
    for source in sources:
        if source.val is None or not source.feeds:
            continue
        evaluators = {head: model.evaluator(head, source.val) for head in source.feeds}
        with closing(source.val_batches(workers=workers)) as batches:
            for number, batch in enumerate(islice(batches, steps)):
                batch = batch.to(device)
                for part in ("warm-up", "predict") if number == 0 else ("predict",):
                    with watch(part):
                        predictions, _ = model.infer(batch, source.feeds, learner.dtype)
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
    """Peaks in megabytes; that of the process is since its start."""
    found = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["process"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    if device.type == "cuda":
        found["cuda"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found
