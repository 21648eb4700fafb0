"""From a config to the state that training starts from, and the run directory that is its own."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visionkit import checkpoint, distributed, generations, rundir, runlock
from visionkit.build import pick_device, pick_precision
from visionkit.config import Config
from visionkit.data.sources import Source
from visionkit.errors import ConfigError
from visionkit.model import VisionModel
from visionkit.optim import MovingAverage, build_optimizer
from visionkit.picture_report import check_pictures
from visionkit.preparation import set_up, tell_data
from visionkit.progress import Progress
from visionkit.remedies import explained
from visionkit.training_state import TrainingState
from visionkit.types import Classes

log = logging.getLogger("visionkit")


class Beginning(NamedTuple):
    """All that the loop needs."""

    state: TrainingState
    sources: list[Source]
    device: torch.device
    dtype: torch.dtype


def begin(config: Config, held: ExitStack, *, resume: bool, overwrite: bool) -> Beginning:
    """Check, build and, with `resume`, restore everything; then take the run directory, which is
    given free when `held` is closed."""
    config, resume, overwrite = _restarted(config, resume, overwrite)
    device = pick_device(config.train.device)
    dtype = pick_precision(config.train.precision, device)
    torch.use_deterministic_algorithms(config.train.deterministic)
    used, saved = _last_of(config) if resume else (None, None)
    with explained(config):
        model, sources, classes = set_up(config, saved, device=device)
        pictures = check_pictures(config, sources)
    run = distributed.on_first(
        lambda: rundir.choose(config.output, config.name, resume=resume, overwrite=overwrite)
    )
    held.callback(runlock.release, run)
    log.info("run %s: %s on %s", run, str(dtype).removeprefix("torch."), device)
    state = _state(config, run, model, sources, classes, device, dtype)
    if saved is not None:
        state.restore(saved)
    if used is not None and not distributed.on_first(lambda: generations.set_aside(run, used)):
        state.progress.best_score = None
    distributed.broadcast_state(model)
    with state.progress.misses.allowed(run / "data.json"):
        distributed.on_first(lambda: tell_data(config, run, sources, pictures))
    return Beginning(state, sources, device, dtype)


def _state(
    config: Config,
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingState:
    settings = config.train
    trained = [source for source in sources if source.train is not None]
    steps_per_epoch = max(-(-s.steps_per_epoch // settings.accumulate) for s in trained)
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = MovingAverage(model, settings.ema) if settings.ema else None
    progress = Progress(config, run, total_steps, steps_per_epoch)
    return TrainingState(
        config, run, classes, model, optimizer, scaler, average, progress, _sizes(sources)
    )


def _restarted(config: Config, resume: bool, overwrite: bool) -> tuple[Config, bool, bool]:
    """With torchrun's --max-restarts: go on with the run that the attempt before has begun."""
    earlier = distributed.on_first(lambda: rundir.of_launch(config.output, config.name))
    if earlier is None:
        return config, resume, overwrite
    saved = distributed.on_first(lambda: bool(list((earlier / "checkpoints").glob("*.pt"))))
    what = "goes on from its last checkpoint" if saved else "begins anew: nothing was saved"
    log.info("started again by torchrun: %s %s", earlier, what)
    return replace(config, output=str(earlier)), saved, not saved


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
