"""Training: `train` sets the stage, `_fit` is the loop, and the loop is all there is."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils import clip_grads_with_norm_

from visionkit import checkpoint, distributed, global_batch, peers, rundir
from visionkit.backbones.norm import batch_statistics
from visionkit.build import pick_device, pick_precision
from visionkit.config import Config, load_config
from visionkit.data.sources import Source
from visionkit.errors import ConfigError, DivergedError, Preempted
from visionkit.evaluation import evaluate_model
from visionkit.gradients import combiner, total_norm
from visionkit.model import VisionModel
from visionkit.nonfinite import Guard
from visionkit.optim import MovingAverage, build_optimizer, lr_factor, set_lr
from visionkit.picture_report import check_pictures
from visionkit.preparation import set_up
from visionkit.progress import Progress
from visionkit.report import picture_training_batch, picture_validation, write_curves
from visionkit.signals import StopRequest
from visionkit.training_state import TrainingState
from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")


class Run(NamedTuple):
    """What training leaves: the run directory, and the metrics of its best checkpoint."""

    directory: Path
    metrics: dict[str, float]


def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_plugins: bool = False,
) -> Run:
    """Train the model that a config describes and write everything to a run directory.

    `config` is a YAML file, a dict of the same form, or a checked Config; `overrides` are dotted
    keys with values. With `resume`, continue the run in `config.output` where its last checkpoint
    left it; with `overwrite`, replace it. `allow_plugins` is for `init_from`, see `load_config`.
    Raises ConfigError, DataError, CheckpointError, DivergedError for what the user can mend, and
    Preempted when a signal asked to stop.
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides, allow_plugins=allow_plugins)
    distributed.setup()
    with peers.together():
        config, resume, overwrite = _restarted(config, resume, overwrite)
        device = pick_device(config.train.device)
        dtype = pick_precision(config.train.precision, device)
        torch.use_deterministic_algorithms(config.train.deterministic)
        saved = _last_of(config) if resume else None
        model, sources, classes = set_up(config, saved, device=device)
        check_pictures(config, sources)
        run = distributed.on_first(
            lambda: rundir.choose(config.output, config.name, resume=resume, overwrite=overwrite)
        )
    log.info("run %s: %s on %s", run, str(dtype).removeprefix("torch."), device)
    with peers.together(at_failure=lambda error: _write_failure(run, error)):
        return _fit(config, run, model, sources, classes, saved, device=device, dtype=dtype)


def _fit(
    config: Config,
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    saved: dict[str, Any] | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Run:
    settings = config.train
    trained = [source for source in sources if source.train is not None]
    steps_per_epoch = max(-(-s.steps_per_epoch // settings.accumulate) for s in trained)
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = MovingAverage(model, settings.ema) if settings.ema else None
    gradients = combiner(settings.weighting, model)
    guard = Guard(model, settings)
    progress = Progress(config, run, total_steps, steps_per_epoch)
    state = TrainingState(config, run, classes, model, optimizer, scaler, average, progress)
    if saved is not None:
        state.restore(saved)
    if progress.step >= total_steps:
        log.info(
            "%s is finished at step %d; more train.steps or train.epochs go on", run, progress.step
        )
    elif distributed.rank() == 0:
        rundir.write_text(run / "config.yaml", config.to_yaml())
    distributed.broadcast_state(model)

    batches = {
        source.name: source.train_batches(
            seed=settings.seed, start=progress.step * settings.accumulate, workers=config.workers
        )
        for source in trained
    }

    def validate_if_due() -> None:
        if progress.validation_due:
            metrics, _ = evaluate_model(state.smooth, sources, dtype=dtype, workers=config.workers)
            if progress.validated(metrics):
                state.save_best()

    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    statistics = batch_statistics(model)
    progress.begin()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        for endless in batches.values():
            stack.callback(endless.close)  # ends its workers
        validate_if_due()  # where a stopped run did not come to it
        while progress.step < total_steps and not progress.stopped_early:
            step = progress.step
            _seed_step(settings.seed, step, device)
            set_lr(optimizer, settings.lr * lr_factor(step, total_steps, settings))
            progress.lr = optimizer.param_groups[0]["lr"]
            optimizer.zero_grad(set_to_none=True)
            guard.remember()

            seen: list[Batch] = []
            for micro in range(settings.accumulate):
                for source in trained:
                    batch = next(batches[source.name])
                    if step == micro == 0:
                        picture_training_batch(run, batch, source, model, classes)
                    batch = batch.to(device)
                    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
                    with autocast, global_batch.shared():
                        features = model.features(batch)
                        losses = model.losses(features, batch, source.feeds)
                        parts = model.weighted(losses)
                    gradients.backward(
                        {head: scaler.scale(p / settings.accumulate) for head, p in parts.items()}
                    )
                    progress.note(losses, sum(parts.values()) / settings.accumulate)
                    seen.append(batch)
                    del features, losses, parts  # or they lived until the next ones are computed

            combined = gradients.finish(step)
            distributed.average_step(parameters, [*statistics, *progress.losses])
            scaler.unscale_(optimizer)
            norm = total_norm(parameters)
            if guard.admits(norm, progress, seen, scaler):
                if settings.clip_norm:
                    clip_grads_with_norm_(parameters, settings.clip_norm, norm)
                scaler.step(optimizer)
                if average:
                    average.update(step)
            progress.scaled(scaler)
            if len(model.heads) > 1:
                combined |= {f"weight/{head}": w for head, w in model.effective_weights().items()}
            if broken := sum(len(source.broken.times) for source in trained):
                combined["broken_pictures"] = broken
            progress.advance(sum(map(len, seen)), norm=norm, combined=combined)

            interrupted, due = distributed.any_of(
                bool(stop.received), progress.save_due, device=device
            )
            if due or interrupted:
                state.save_last()
            if interrupted:
                progress.finish("preempted", reason=stop.received)
                raise Preempted(
                    f"stopped by {stop.received or 'another process'} after step {progress.step}; "
                    f"continue with: visionkit train --resume {run}"
                )
            validate_if_due()

    state.save_last()
    if not (run / "checkpoints" / "best.pt").exists():
        if settings.no_worse_than:
            log.warning("no validation kept to train.no_worse_than: best.pt is the last state")
        state.save_best()
    picture_validation(run, state.smooth, sources, classes, dtype=dtype)
    progress.finish("finished")
    write_curves(run, settings.plots)
    return Run(run, progress.metrics)


def _restarted(config: Config, resume: bool, overwrite: bool) -> tuple[Config, bool, bool]:
    """With torchrun's --max-restarts: go on with the run that the attempt before has begun."""
    earlier = distributed.on_first(lambda: rundir.of_launch(config.output, config.name))
    if earlier is None:
        return config, resume, overwrite
    saved = distributed.on_first(lambda: bool(list((earlier / "checkpoints").glob("*.pt"))))
    what = "goes on from its last checkpoint" if saved else "begins anew: nothing was saved"
    log.info("started again by torchrun: %s %s", earlier, what)
    return replace(config, output=str(earlier)), saved, not saved


def _write_failure(run: Path, error: BaseException) -> None:
    failed = "diverged" if isinstance(error, DivergedError) else "failed"
    if distributed.rank() == 0 and rundir.read_status(run).get("pid") == os.getpid():
        rundir.write_status(run, failed, reason=f"{type(error).__name__}: {error}")


def _last_of(config: Config) -> dict[str, Any]:
    if config.output is None:
        raise ConfigError("resume: say which run with `output`")
    return checkpoint.load_run(checkpoint.checkpoint_of(config.output, resume=True))


def _seed_step(seed: int, step: int, device: torch.device) -> None:
    """A step's randomness depends on nothing that went before it, so resuming needs no history."""
    key = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1)[0]
    if device.type == "cpu":  # `torch.manual_seed` records the stack for CUDA: 0.2 ms
        torch.default_generator.manual_seed(int(key))
    else:
        torch.manual_seed(int(key))
