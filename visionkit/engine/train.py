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

from visionkit.config import Config, load_config
from visionkit.distributed import collectives
from visionkit.distributed.losses import across_ranks, loss_values, pad_to_global_max
from visionkit.engine import failures
from visionkit.engine.evaluate import evaluate_model
from visionkit.engine.failures import explain_errors, record_status
from visionkit.engine.optim import gradient_combiner, lr_factor, set_lr, total_norm
from visionkit.engine.setup import TrainingSetup, begin
from visionkit.engine.state import Guard
from visionkit.errors import Preempted
from visionkit.models.backbones.norm import batch_statistics
from visionkit.runs import directory as rundir
from visionkit.runs import files
from visionkit.runs.signals import Stopped, StopRequest
from visionkit.visualization.samples import save_train_samples, save_val_samples, write_curves

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
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            collectives.setup()
            with failures.propagate_failures():
                begun = begin(config, held, resume=resume, overwrite=overwrite)
            progress = begun.state.progress
            with (
                stop.deferred(),
                record_status(progress, stop),
                failures.propagate_failures(),
                explain_errors(config),
            ):
                return _fit(begun, stop)
        except Stopped:
            held.close()  # of the run directory, whose status it may be to tell
            run = config.output if resume else None
            raise rundir.stopped_before_training(run, stop.received) from None


def _fit(begun: TrainingSetup, stop: StopRequest) -> Run:
    state, sources, device, dtype = begun
    config, run, model, classes = state.config, state.run, state.model, state.classes
    optimizer, scaler, average = state.optimizer, state.scaler, state.average
    settings, progress = config.train, state.progress
    total_steps = progress.total_steps
    trained = [source for source in sources if source.train is not None]
    gradients = gradient_combiner(settings.weighting, model)
    guard = Guard(state.buffers, settings)
    batches = {
        source.name: source.train_batches(
            seed=settings.seed,
            start=progress.step * settings.accumulate_grad_batches,
            workers=config.workers,
        )
        for source in trained
    }

    def validate_if_due() -> None:
        if progress.validation_due:
            with stop.interruptible():  # the state is saved, and the validation comes again
                metrics, _ = evaluate_model(
                    state.smooth, sources, dtype=dtype, workers=config.workers
                )
            if progress.validated(metrics):
                state.save_best()

    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    statistics = batch_statistics(model)
    progress.begin()
    if progress.step >= total_steps:
        log.info(
            "%s is finished at step %d; more train.steps or train.epochs go on", run, progress.step
        )
    elif collectives.rank() == 0:
        with progress.misses.allowed(run / "config.yaml"):
            files.write_text(run / "config.yaml", config.to_yaml())
    with contextlib.ExitStack() as stack:
        for endless in batches.values():
            stack.callback(endless.close)  # ends its workers
        validate_if_due()  # where a stopped run did not come to it
        while progress.step < total_steps and not progress.early_end:
            step = progress.step
            with state.save_on_failure():
                taken = [  # all that the step needs, so that nothing of it happens without
                    (source, next(batches[source.name]))
                    for _ in range(settings.accumulate_grad_batches)
                    for source in trained
                ]
                seen = [batch for _, batch in taken]
                for source, batch in taken[: len(trained)] if step == 0 else ():
                    save_train_samples(run, settings.plots, batch, source, model, classes)
                _seed_step(settings.seed, step, device)
                progress.lr = settings.lr * lr_factor(step, total_steps, settings)
                set_lr(optimizer, progress.lr)
                optimizer.zero_grad(set_to_none=True)
                for source, batch in taken:
                    batch = pad_to_global_max(batch).to(device)
                    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
                    with autocast, across_ranks():
                        features = model.features(batch)
                        losses = loss_values(model.losses(features, batch, source.feeds))
                        parts = model.weighted(losses)
                    gradients.backward(
                        {
                            head: scaler.scale(p / settings.accumulate_grad_batches)
                            for head, p in parts.items()
                        }
                    )
                    progress.note(losses, sum(parts.values()) / settings.accumulate_grad_batches)
                    del features, losses, parts  # or they lived until the next ones are computed

                combined = gradients.finish(step)
                collectives.sync_gradients(parameters, [*statistics, *progress.losses])

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
            if broken := sum(len(source.unreadable) for source in trained):
                combined["unreadable_images"] = broken
            progress.advance(sum(map(len, seen)), norm=norm, combined=combined)

            with state.save_on_failure():
                interrupted, due = collectives.any_rank(
                    bool(stop.received), progress.save_due, device=device
                )
            if due or interrupted:
                state.save_last(final=interrupted)
            if interrupted:
                stop.received = failures.agree_on_signal(stop.received)
                raise Preempted(
                    f"stopped by {stop.received} after step {progress.step}; "
                    f"continue with: visionkit train --resume {run}"
                )
            validate_if_due()

    if progress.unsaved:
        state.save_last(final=True)
    if not (run / "checkpoints" / "best.pt").exists():
        if settings.best_constraints:
            log.warning("no validation kept to train.best_constraints: best.pt is the last state")
        state.save_best(final=True)
    collectives.gather(None)  # if the last save fails, all processes fail
    with stop.interruptible():
        save_val_samples(run, settings.plots, state.smooth, sources, classes, dtype=dtype)
        write_curves(run, settings.plots)
    if progress.early_end:
        log.info("%s", progress.early_end)
    progress.finish("finished", exit_code=0, reason=progress.early_end)
    return Run(run, progress.metrics)


def _seed_step(seed: int, step: int, device: torch.device) -> None:
    """A step's randomness depends on nothing that went before it, so resuming needs no history."""
    key = np.random.SeedSequence((seed, step, collectives.rank())).generate_state(1)[0]
    if device.type == "cpu":  # `torch.manual_seed` records the stack for CUDA: 0.2 ms
        torch.default_generator.manual_seed(int(key))
    else:
        torch.manual_seed(int(key))
