"""Training: `train` sets the stage, `_fit` is the loop, and the loop is all there is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils import clip_grads_with_norm_

from visionkit import checkpoint, distributed, generations, rundir, runlock
from visionkit.build import pick_device, pick_precision
from visionkit.config import Config, load_config
from visionkit.data.sources import Source
from visionkit.endings import recorded
from visionkit.errors import ConfigError, Preempted
from visionkit.evaluation import evaluate_model
from visionkit.gradients import combiner, total_norm
from visionkit.model import VisionModel
from visionkit.nonfinite import check_finite
from visionkit.optim import MovingAverage, build_optimizer, lr_factor, set_lr
from visionkit.picture_report import check_pictures
from visionkit.preparation import set_up, tell_data
from visionkit.progress import Progress
from visionkit.remedies import explained
from visionkit.report import picture_training_batch, picture_validation, write_curves
from visionkit.signals import Stopped, StopRequest
from visionkit.training_state import TrainingState
from visionkit.types import Classes

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
    run = None
    with StopRequest() as stop:
        try:
            distributed.setup()
            device = pick_device(config.train.device)
            dtype = pick_precision(config.train.precision, device)
            torch.use_deterministic_algorithms(config.train.deterministic)
            used, saved = _last_of(config) if resume else (None, None)
            with explained(config):
                model, sources, classes = set_up(config, saved, device=device)
                pictures = check_pictures(config, sources)
            run = distributed.on_first(
                lambda: rundir.choose(
                    config.output, config.name, resume=resume, overwrite=overwrite
                )
            )
            log.info("run %s: %s on %s", run, str(dtype).removeprefix("torch."), device)
            state = _begin(config, run, model, sources, classes, saved, device, dtype)
            if used is not None and not distributed.on_first(
                lambda: generations.set_aside(run, used)
            ):
                state.progress.best_score = None
            with state.progress.misses.allowed(run / "data.json"):
                distributed.on_first(lambda: tell_data(config, run, sources, pictures))
            with recorded(state.progress, stop), explained(config), stop.deferred():
                return _fit(state, sources, stop, device=device, dtype=dtype)
        except Stopped:
            raise Preempted(
                f"stopped by {stop.received} before training began; start it again"
            ) from None
        finally:
            if run is not None:
                runlock.release(run)


def _begin(
    config: Config,
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    saved: dict[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingState:
    """The state to train from: new, or the one that was saved."""
    settings = config.train
    trained = [source for source in sources if source.train is not None]
    steps_per_epoch = max(-(-s.steps_per_epoch // settings.accumulate) for s in trained)
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = MovingAverage(model, settings.ema) if settings.ema else None
    progress = Progress(config, run, total_steps, steps_per_epoch)
    state = TrainingState(
        config, run, classes, model, optimizer, scaler, average, progress, _sizes(sources)
    )
    if saved is not None:
        state.restore(saved)
    distributed.broadcast_state(model)
    return state


def _fit(
    state: TrainingState,
    sources: list[Source],
    stop: StopRequest,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Run:
    config, run, model, classes = state.config, state.run, state.model, state.classes
    optimizer, scaler, average = state.optimizer, state.scaler, state.average
    settings, progress = config.train, state.progress
    total_steps = progress.total_steps
    trained = [source for source in sources if source.train is not None]
    gradients = combiner(settings.weighting, model)
    batches = {
        source.name: source.train_batches(
            seed=settings.seed, start=progress.step * settings.accumulate, workers=config.workers
        )
        for source in trained
    }

    def validate_if_due() -> None:
        if progress.validation_due:
            distributed.broadcast_state(state.smooth)  # batch norms saw other pictures elsewhere
            with stop.at_once():  # the state is saved, and the validation comes again
                metrics, _ = evaluate_model(
                    state.smooth, sources, dtype=dtype, workers=config.workers
                )
            if progress.validated(metrics):
                state.save_best()

    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    progress.begin()
    if progress.step >= total_steps:
        log.info(
            "%s is finished at step %d; more train.steps or train.epochs go on", run, progress.step
        )
    elif distributed.rank() == 0:
        with progress.misses.allowed(run / "config.yaml"):
            rundir.write_text(run / "config.yaml", config.to_yaml())
    with contextlib.ExitStack() as stack:
        for endless in batches.values():
            stack.callback(endless.close)  # ends its workers
        validate_if_due()  # where a stopped run did not come to it
        while progress.step < total_steps and not progress.stopped_early:
            step = progress.step
            with state.saved_if_lost():
                taken = [  # all that the step needs, so that nothing of it happens without
                    (source, next(batches[source.name]))
                    for _ in range(settings.accumulate)
                    for source in trained
                ]
                seen = [batch for _, batch in taken]
                for source, batch in taken[: len(trained)] if step == 0 else ():
                    picture_training_batch(run, batch, source, model, classes)
                _seed_step(settings.seed, step, device)
                set_lr(optimizer, settings.lr * lr_factor(step, total_steps, settings))
                optimizer.zero_grad(set_to_none=True)
                for source, batch in taken:
                    batch = batch.to(device)
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        features = model.features(batch)
                        losses = model.losses(features, batch, source.feeds)
                        parts = model.weighted(losses)
                    gradients.backward(
                        {head: scaler.scale(p / settings.accumulate) for head, p in parts.items()}
                    )
                    progress.note(losses, sum(parts.values()) / settings.accumulate)
                    del features, losses, parts  # or they lived until the next ones are computed

            combined = gradients.finish(step)
            distributed.average_gradients(parameters)
            scaler.unscale_(optimizer)
            norm = total_norm(parameters)
            check_finite(norm, progress, seen, scaler)
            if settings.clip_norm:
                clip_grads_with_norm_(parameters, settings.clip_norm, norm)
            scaler.step(optimizer)
            scaler.update()
            if average:
                average.update(step)
            if len(model.heads) > 1:
                combined |= {f"weight/{head}": w for head, w in model.effective_weights().items()}
            if broken := sum(len(source.broken.times) for source in trained):
                combined["broken_pictures"] = broken
            progress.advance(
                sum(map(len, seen)),
                lr=optimizer.param_groups[0]["lr"],
                norm=norm,
                combined=combined,
            )

            interrupted, due = distributed.any_of(
                bool(stop.received), progress.save_due, device=device
            )
            if due or interrupted:
                state.save_last(final=interrupted)
            if interrupted:
                raise Preempted(
                    f"stopped by {stop.received or 'another process'} after step {progress.step}; "
                    f"continue with: visionkit train --resume {run}"
                )
            validate_if_due()

    if progress.unsaved:
        state.save_last(final=True)
    if not (run / "checkpoints" / "best.pt").exists():
        if settings.no_worse_than:
            log.warning("no validation kept to train.no_worse_than: best.pt is the last state")
        state.save_best(final=True)
    with stop.at_once():
        picture_validation(run, state.smooth, sources, classes, dtype=dtype)
        write_curves(run, settings.plots)
    progress.finish("finished", exit_code=0)
    return Run(run, progress.metrics)


def _last_of(config: Config) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, and its content; process 0 picks it for all."""
    if config.output is None:
        raise ConfigError("resume: say which run with `output`")
    found: dict[str, Any] = {}

    def pick() -> Path:
        path, found["state"] = generations.load_run(config.output, resume=True)
        return path

    path = distributed.on_first(pick)
    return path, found.get("state") or checkpoint.load_run(path)


def _sizes(sources: list[Source]) -> dict[str, int]:
    """The number of pictures of each data set."""
    return {
        f"data.{source.name}.{split}": len(dataset)
        for source in sources
        for split, dataset in (("train", source.train), ("val", source.val))
        if dataset is not None
    }


def _seed_step(seed: int, step: int, device: torch.device) -> None:
    """A step's randomness depends on nothing that went before it, so resuming needs no history."""
    key = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1)[0]
    if device.type == "cpu":  # `torch.manual_seed` records the stack for CUDA: 0.2 ms
        torch.default_generator.manual_seed(int(key))
    else:
        torch.manual_seed(int(key))
