"""Training: `train` prepares and ends a run, `_run_steps` is the loop, `train_step` one step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from visionkit.config import Config, load_config
from visionkit.data.loading.source import Source
from visionkit.distributed import collectives
from visionkit.distributed.collectives import (
    across_ranks,
    check_terms,
    loss_values,
    pad_to_global_max,
)
from visionkit.engine.evaluate import evaluate_model, find_thresholds
from visionkit.engine.failures import (
    agree_on_signal,
    explain_errors,
    propagate_failures,
    record_status,
)
from visionkit.engine.optim import Learner, StepResult, total_norm
from visionkit.engine.report_runs import write_report
from visionkit.engine.setup import setup
from visionkit.engine.state import TrainingState, check_finite
from visionkit.engine.torch_model import Overrides, Predictor, load_model
from visionkit.errors import ArgumentError, ConfigError, Preempted, check_flags, printable
from visionkit.metrics.report import SHOWN, metric_lines
from visionkit.ops.inference import autocast
from visionkit.runs import checkpoint, directory, files
from visionkit.runs.signals import Stopped, StopRequest
from visionkit.types import Batch
from visionkit.visualization.plots import save_train_samples, save_val_samples, write_curves

log = logging.getLogger("visionkit")
SAMPLED = 3  # steps whose first batches are drawn with their labels


class TrainedRun(NamedTuple):
    """What `train` returns.

    directory: the run directory.
    metrics: those of the best checkpoint by name, `<head>/<metric>`; without a validation, none.
    """

    directory: Path
    metrics: dict[str, float]

    @property
    def checkpoint(self) -> Path:
        """The file of the best checkpoint."""
        return checkpoint.folder(self.directory) / "best.pt"

    def load(
        self, overrides: Overrides = (), *, heads: Sequence[str] | None = None, fold: bool = True
    ) -> Predictor:
        """The trained model, ready to predict; the arguments are those of `visionkit.load`."""
        return load_model(self.directory, overrides, heads=heads, fold=fold, allow_plugins=True)

    def __repr__(self) -> str:
        """The directory, and a line for each metric."""
        lines = metric_lines(self.metrics)
        more = [f"... and {len(lines) - SHOWN} more in .metrics"] if len(lines) > SHOWN else []
        of = f"TrainedRun in {printable(self.directory)}"
        return "\n  ".join([of, *(lines[:SHOWN] or ["not validated"]), *more])


def train(
    config: str | Path | Mapping[str, Any] | Config | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    resume: bool | str | Path = False,
    overwrite: bool = False,
    strict: bool = False,
    allow_plugins: bool = False,
) -> TrainedRun:
    """Train the model that a config describes and write everything to a run directory.

    `config` is a YAML file, the name of a shipped config, a dict of the same form, or a checked
    Config; `overrides` are dotted keys with values. With `resume=True`, continue the run in
    `config.output` from its last checkpoint; with `overwrite`, replace it. `resume` may be the run
    directory instead, whose config is used. With `strict`, resuming with other data is a DataError
    instead of a warning. `allow_plugins` is for `init_from` and for the config of a run, see
    `load_config`.

    Raises ConfigError, DataError, CheckpointError or DivergedError for what the user can fix, and
    Preempted when a signal asked to stop.
    """
    check_flags(overwrite=overwrite, strict=strict)
    if resume and overwrite:
        raise ArgumentError("resume continues a run, overwrite replaces it: give only one")
    config = _config_to_train(config, overrides, resume=resume, allow_plugins=allow_plugins)
    resume = bool(resume)
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            collectives.setup()
            with propagate_failures():
                state, sources = setup(
                    config, held, resume=resume, overwrite=overwrite, strict=strict
                )
            # An error passes from the right to the left: it gets its hint, reaches the other
            # ranks, and is written to status.json, undisturbed by a signal.
            with (
                stop.deferred(),
                record_status(state.progress, stop),
                propagate_failures(),
                explain_errors(config),
            ):
                _begin(state)
                _run_steps(state, sources, stop)
                return _finish(state, sources, stop)
        except Stopped:
            held.close()  # unlock the run directory, whose status may change now
            run = config.output if resume else None
            raise directory.stopped_before_training(run, stop.received) from None


def _config_to_train(
    config: Any, overrides: Any, *, resume: bool | str | Path, allow_plugins: bool
) -> Config:
    if isinstance(resume, (str, Path)):
        if config is not None:
            what = f"config: does not apply to resume={str(resume)!r}"
            raise ArgumentError(f"{what}, whose own config is used; give overrides alone")
        return resumed_config(resume, overrides, allow_plugins=allow_plugins)
    check_flags(resume=resume)
    if not isinstance(config, Config):
        return load_config(config, overrides, allow_plugins=allow_plugins)
    if overrides:
        raise ArgumentError("overrides: do not apply to a checked Config; give them to load_config")
    return config


def resumed_config(run: str | Path, overrides: Any = (), *, allow_plugins: bool = False) -> Config:
    """The config of a run directory with which it continues."""
    given = overrides if isinstance(overrides, (Mapping, list, tuple)) else ()
    if any(str(one).lstrip("-").partition("=")[0] == "output" for one in given):
        raise ConfigError(f"resume: {run} continues where it is; remove output=")
    file = Path(run) / "config.yaml"
    if not file.is_file():
        near = "" if Path(run).exists() else checkpoint.nearest(run)
        raise ConfigError(f"resume: {run} is not a run directory (no config.yaml){near}")
    # Written by whoever trained it, so that its custom classes are imported only if allowed.
    config = load_config(file, overrides, origin=str(file), allow_plugins=allow_plugins)
    return replace(config, output=str(run))


def _begin(state: TrainingState) -> None:
    progress, run = state.progress, state.run
    progress.begin()
    if progress.step >= progress.total_steps:
        log.info(
            "%s is finished at step %d; raise train.steps or train.epochs to continue it",
            run,
            progress.step,
        )
    elif collectives.rank() == 0:
        with progress.errors.tolerated(run / "config.yaml"):
            files.write_text(run / "config.yaml", state.config.to_yaml())


def _run_steps(state: TrainingState, sources: list[Source], stop: StopRequest) -> None:
    """The training loop."""
    learner, progress, settings = state.learner, state.progress, state.config.train
    trained = [source for source in sources if source.train is not None]
    accumulate = settings.accumulate_grad_batches
    with contextlib.ExitStack() as stack:
        streams = open_streams(
            state.config,
            trained,
            stack,
            start=progress.step * accumulate,
            total=progress.total_steps * accumulate,
        )
        _validate_if_due(state, sources, stop)  # where a stopped run did not reach it
        while progress.step < progress.total_steps and not progress.early_end:
            step = progress.step
            with state.save_on_failure():
                # All batches first: an unreadable image ends the run between two steps.
                taken = [(s, next(streams[s.name])) for _ in range(accumulate) for s in trained]
                if step < SAMPLED:
                    _draw_samples(state, taken[: len(trained)])
                result = train_step(learner, [(s.feeds, batch) for s, batch in taken], step)

            batches = [batch for _, batch in taken]
            losses = {}
            if check_finite(state, result, batches):
                learner.update(result.norm, step)
                losses = result.losses | {"grad_norm": result.norm}
            progress.update_scaler(learner.scaler)
            metrics = result.metrics | _log_metrics(learner, trained)
            progress.advance(sum(map(len, batches)), losses, result.lr, metrics)

            with state.save_on_failure():
                due = [int(bool(stop.received)), int(progress.save_due)]
                interrupted, save = map(bool, collectives.all_reduce_max(due))  # on any rank
            if save or interrupted:
                state.save_last(final=interrupted)
            if interrupted:
                stop.received = agree_on_signal(stop.received)
                raise Preempted(
                    f"stopped by {stop.received} after step {progress.step}; "
                    f"{progress.resume_command}"
                )
            _validate_if_due(state, sources, stop)


def open_streams(
    config: Config,
    sources: Iterable[Source],
    stack: contextlib.ExitStack,
    start: int = 0,
    total: int | None = None,
) -> dict[str, Iterator[Batch]]:
    """The endless batches of each source from number `start` on, in a run of `total`; `stack` ends
    their workers."""
    streams: dict[str, Iterator[Batch]] = {}
    for source in sources:
        stream = source.train_batches(
            seed=config.train.seed, start=start, workers=config.workers, total=total
        )
        streams[source.name] = stack.enter_context(contextlib.closing(stream))
    return streams


def train_step(
    learner: Learner, batches: Sequence[tuple[Sequence[str], Batch]], step: int
) -> StepResult:
    """Compute the gradients of one step: forward, loss and backward of each batch, then the mean
    over ranks. `batches` come with the heads that they feed. `Learner.update` applies the result.
    """
    model, settings = learner.model, learner.settings
    seed_step(settings.seed, step, learner.device)
    learner.unfreeze(step)
    lr = learner.set_lr(step)
    learner.optimizer.zero_grad(set_to_none=True)
    share = settings.accumulate_grad_batches
    logged: dict[str, torch.Tensor] = {}
    for heads, batch in batches:
        batch = pad_to_global_max(batch).to(learner.device)
        with autocast(learner.device, learner.dtype), across_ranks():
            features = model.features(batch)
            terms = model.losses(features, batch, heads)
            if not learner.terms_checked:
                check_terms(terms)
            losses = loss_values(terms)
            parts = model.weighted(losses)
        learner.gradients.backward({h: learner.scaler.scale(p / share) for h, p in parts.items()})
        found = {f"{h}/{name}": v for h, values in losses.items() for name, v in values.items()}
        found["total"] = reduce(torch.add, parts.values())
        for name, value in found.items():
            value = value.detach() / share
            logged[name] = logged[name] + value if name in logged else value
        del features, terms, losses, parts, found, value  # or they live until the next are computed
    learner.terms_checked = True
    own = logged
    if collectives.world_size() > 1:
        own = {name: value.clone() for name, value in logged.items()}
    metrics = learner.gradients.finish(step)
    collectives.sync_gradients(learner.parameters, [*learner.statistics, *logged.values()])
    learner.scaler.unscale_(learner.optimizer)
    return StepResult(logged, own, total_norm(learner.parameters), lr, metrics)


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """A step's randomness depends on nothing before it, so resuming needs no history."""
    key = int(np.random.SeedSequence((seed, step, collectives.rank())).generate_state(1)[0])
    if device.type == "cpu":  # `torch.manual_seed` records the stack for CUDA: 0.2 ms
        torch.default_generator.manual_seed(key)
    else:
        torch.manual_seed(key)


def _log_metrics(learner: Learner, trained: list[Source]) -> dict[str, float]:
    """What metrics.jsonl gets besides losses."""
    metrics: dict[str, float] = {}
    if len(learner.model.heads) > 1:
        metrics = {f"weight/{h}": w for h, w in learner.model.effective_weights().items()}
    if unreadable := sum(len(source.unreadable) for source in trained):
        metrics["unreadable_images"] = unreadable
    return metrics


def _validate_if_due(state: TrainingState, sources: list[Source], stop: StopRequest) -> None:
    if not state.progress.validation_due:
        return
    learner = state.learner
    with stop.interruptible():  # the state is saved, and the validation is repeated
        metrics, evaluators = evaluate_model(
            learner.averaged, sources, dtype=learner.dtype, workers=state.config.workers
        )
        thresholds = find_thresholds(evaluators)
    if state.progress.validated(metrics):
        state.evaluators = evaluators
        state.set_thresholds(thresholds)
        state.save_best()
    if state.drawing.due():
        with stop.interruptible():
            _draw(state, sources)


def _draw_samples(state: TrainingState, taken: Sequence[tuple[Source, Batch]]) -> None:
    """A batch of each source with its labels."""
    wanted, model, number = state.config.train.plots, state.learner.model, state.progress.step + 1
    for source, batch in taken:
        save_train_samples(state.run, wanted, batch, number, source, model, state.classes)
    _log_images(state, [f"train_{source.name}_{number}" for source, _ in taken])


def _draw(state: TrainingState, sources: list[Source]) -> None:
    """Curves so far, and the validation images with what the model predicts by now."""
    run, settings, learner, progress = state.run, state.config.train, state.learner, state.progress
    with state.drawing.timed():
        save_val_samples(
            run,
            settings.plots,
            learner.averaged,
            sources,
            state.classes,
            dtype=learner.dtype,
            step=progress.step,
        )
        write_curves(run, settings.plots)
    _log_images(state, [f"val_{source.name}" for source in sources])


def _log_images(state: TrainingState, names: Sequence[str]) -> None:
    """Hand what was drawn to the loggers."""
    if state.progress.loggers.active:
        paths = {name: state.run / "plots" / f"{name}.jpg" for name in names}
        images = {name: Image.open(path) for name, path in paths.items() if path.is_file()}
        if images:
            state.progress.loggers.images(state.progress.step, images)


def _finish(state: TrainingState, sources: list[Source], stop: StopRequest) -> TrainedRun:
    """Save the last state and what shows the result."""
    run, settings, progress = state.run, state.config.train, state.progress
    if progress.unsaved:
        state.save_last(final=True)
    if not (run / "checkpoints" / "best.pt").exists():
        if settings.best_constraints:
            log.warning("no validation met train.best_constraints: best.pt is the last state")
        state.save_best(final=True)
    collectives.all_gather_object(None)  # if the last save fails, all ranks fail
    with stop.interruptible():
        _draw(state, sources)
        if settings.report and settings.validate and any(s.val is not None for s in sources):
            write_report(state, sources)
    if progress.early_end:
        log.info("%s", progress.early_end)
    progress.finish("finished", exit_code=0, reason=progress.early_end)
    return TrainedRun(run, progress.metrics)
