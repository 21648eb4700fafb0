"""Before training: the model, its data and class lists, and whether they belong together."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visionkit.config import Config
from visionkit.data.build import build_sources, head_classes
from visionkit.data.checks.findings import Finding
from visionkit.data.checks.images import check_images
from visionkit.data.checks.splits import cross_split_findings
from visionkit.data.checks.summary import cross_split_lines, data_summary, summary_lines
from visionkit.data.loading.source import Source
from visionkit.distributed import collectives
from visionkit.engine.device import pick_device, pick_precision
from visionkit.engine.evaluate import metric_names
from visionkit.engine.failures import explain_errors
from visionkit.engine.optim import ModelEMA, build_optimizer, check_patterns, freeze
from visionkit.engine.progress import Best, Progress, default_best
from visionkit.engine.state import TrainingState, flattened
from visionkit.errors import CheckpointError, ConfigError, unknown
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.runs import checkpoint, files
from visionkit.runs import directory as rundir
from visionkit.types import Classes

# --- From a config to the state that training starts from, and the run directory that is its
# own.


class TrainingSetup(NamedTuple):
    """All that the loop needs."""

    state: TrainingState
    sources: list[Source]
    device: torch.device
    dtype: torch.dtype


def begin(config: Config, held: ExitStack, *, resume: bool, overwrite: bool) -> TrainingSetup:
    """Check, build and, with `resume`, restore everything; then take the run directory, which is
    given free when `held` is closed."""
    config, resume, overwrite = _restarted(config, resume, overwrite)
    device = pick_device(config.train.device)
    if config.train.sync_batchnorm and collectives.world_size() > 1 and device.type != "cuda":
        raise ConfigError(
            f"train.sync_batchnorm: got true, but the ranks train on {device.type}; it needs GPUs: "
            "set train.sync_batchnorm=false"
        )
    dtype = pick_precision(config.train.precision, device)
    torch.use_deterministic_algorithms(config.train.deterministic)
    used, saved = _last_of(config) if resume else (None, None)
    with explain_errors(config):
        model, sources, classes = set_up(config, saved, device=device)
        images = check_images(config, sources)
    run = collectives.on_main_rank(
        lambda: rundir.choose(config.output, config.name, resume=resume, overwrite=overwrite)
    )
    held.callback(rundir.release, run)
    log.info("run %s: %s on %s", run, str(dtype).removeprefix("torch."), device)
    state = _state(config, run, model, sources, classes, device, dtype)
    if saved is not None:
        state.restore(saved)
    if used is not None and not collectives.on_main_rank(
        lambda: checkpoint.quarantine_damaged(run, used)
    ):
        state.progress.best_score = None
    collectives.broadcast_state(model)
    with state.progress.misses.allowed(run / "data.json"):
        collectives.on_main_rank(lambda: log_data_summary(config, run, sources, images))
    return TrainingSetup(state, sources, device, dtype)


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
    steps_per_epoch = max(
        -(-s.steps_per_epoch // settings.accumulate_grad_batches) for s in trained
    )
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = ModelEMA(model, settings.ema) if settings.ema else None
    progress = Progress(config, run, total_steps, steps_per_epoch)
    return TrainingState(
        config, run, classes, model, optimizer, scaler, average, progress, _sizes(sources)
    )


def _restarted(config: Config, resume: bool, overwrite: bool) -> tuple[Config, bool, bool]:
    """With torchrun's --max-restarts: go on with the run that the attempt before has begun."""
    earlier = collectives.on_main_rank(lambda: rundir.of_launch(config.output, config.name))
    if earlier is None:
        return config, resume, overwrite
    saved = collectives.on_main_rank(lambda: bool(list((earlier / "checkpoints").glob("*.pt"))))
    what = "goes on from its last checkpoint" if saved else "begins again: nothing was saved"
    log.info("started again by torchrun: %s %s", earlier, what)
    return replace(config, output=str(earlier)), saved, not saved


def _last_of(config: Config) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, and its content; rank 0 picks it for all."""
    if config.output is None:
        raise ConfigError("resume: say which run with `output`")
    found: dict[str, Any] = {}

    def pick() -> Path:
        path, found["state"] = checkpoint.load_latest(config.output, resume=True)
        return path

    path = collectives.on_main_rank(pick)
    return path, found.get("state") or checkpoint.load_run(path)


def _sizes(sources: list[Source]) -> dict[str, int]:
    """The number of images of each data set."""
    return {
        f"data.{source.name}.{split}": len(dataset)
        for source in sources
        for split, dataset in (("train", source.train), ("val", source.val))
        if dataset is not None
    }


# --- TrainingSetup from a trained model: its weights, its class lists, and what of it stays as it
# is.

INIT_HEADS = "init_heads"  # in `train.freeze`: all heads that were taken over


def load_init_from(config: Config) -> dict[str, Any] | None:
    """The checkpoint that `init_from` names, None without it."""
    if config.init_from is None:
        return None
    return checkpoint.load_latest(config.init_from["run"])[1]


def classes_taken_over(config: Config, state: dict[str, Any] | None) -> dict[str, Classes]:
    """The class lists of the heads that come from the checkpoint `state` as they are."""
    heads = config.init_from["heads"] if config.init_from else []
    saved = state["classes"] if state else {}
    missing = [head for head in heads if head not in saved]
    if missing:
        raise CheckpointError(f"init_from: the checkpoint has no head {missing[0]!r}")
    return {h: Classes(tuple(saved[h]["names"]), tuple(saved[h]["ids"])) for h in heads}


def load_origin(model: VisionModel, config: Config, state: dict[str, Any]) -> None:
    """Backbone, neck and the heads taken over must fit; of other heads, what fits is loaded."""
    ours, theirs = model.state_dict(), state["model"]
    same = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
    heads = "|".join(map(re.escape, config.init_from["heads"])) or "$"
    taken = re.compile(rf"(backbone|neck)\.|heads\.({heads})\.")
    misfits = [name for name in ours if taken.match(name) and name not in same]
    if misfits:
        raise CheckpointError(
            f"init_from: {config.init_from['run']}: {len(misfits)} tensors do not fit the model, "
            f"{misfits[0]!r} for example"
        )
    with torch.no_grad():
        model.load_state_dict(same, strict=False)
    new = [name for name in ours if name not in same]
    log.info(
        "init_from %s: loaded %d tensors; %d are new", config.init_from["run"], len(same), len(new)
    )


def frozen_patterns(config: Config) -> list[str]:
    """`train.freeze` as regexes."""
    if config.init_from is None:
        return config.train.freeze
    old = [f"^heads\\.{head}\\." for head in config.init_from["heads"]]
    return [
        regex
        for pattern in config.train.freeze
        for regex in (old if pattern == INIT_HEADS else [pattern])
    ]


log = logging.getLogger("visionkit")


def set_up(
    config: Config, saved: dict[str, Any] | None = None, *, device: torch.device
) -> tuple[VisionModel, list[Source], dict[str, Classes]]:
    """The model as it begins to train, its data, and each head's classes; `saved` is the state of
    a run that is to go on."""
    origin = load_init_from(config) if saved is None else None
    taken_over = classes_taken_over(config, saved or origin)
    sources = build_sources(config, opened_splits(config), taken_over)
    check_training(config)
    collectives.assert_same_on_all_ranks(_facts(config, sources))
    model, classes = prepare_model(config, sources, taken_over, origin, device=device)
    return model, sources, classes


def opened_splits(config: Config) -> tuple[str, ...]:
    """The splits that a run of that config reads."""
    return ("train", "val") if config.train.validate else ("train",)


def prepare_model(
    config: Config,
    sources: list[Source],
    taken_over: dict[str, Classes],
    origin: dict[str, Any] | None,
    *,
    device: torch.device,
) -> tuple[VisionModel, dict[str, Classes]]:
    """The model as it begins to train on those data, and the classes of each head."""
    classes = {**head_classes(config, sources), **taken_over}
    torch.manual_seed(config.train.seed)
    model = build_model(config, classes, pretrained=config.init_from is None)
    if origin is not None:
        load_origin(model, config, origin)
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    frozen = frozen_patterns(config)
    check_patterns(model, {"train.freeze": frozen, "train.lr_scale": config.train.lr_scale})
    freeze(model, frozen)
    if config.train.sync_batchnorm and collectives.world_size() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    _check_best(config, model, sources)
    return model, classes


def _facts(config: Config, sources: list[Source]) -> dict[str, Any]:
    """What all processes of a training must have in common."""
    facts: dict[str, Any] = {"torch": torch.__version__}
    for source in sources:
        for split in ("train", "val"):
            dataset = getattr(source, split)
            if dataset is not None:
                facts[f"data.{source.name}.{split}"] = f"with {len(dataset)} images"
                lists = {key: c.names for key, c in dataset.classes.items()}
                facts[f"classes of data.{source.name}.{split}"] = str(lists)
    settings = {key: v for key, v in config.to_dict().items() if key not in ("output", "name")}
    return facts | flattened(settings)


def check_training(config: Config) -> None:
    """A source without training data only validates; every new head needs one that has some."""
    trained = {head for spec in config.data.values() if spec.train for head in spec.feeds}
    taken_over = config.init_from["heads"] if config.init_from else ()
    problems = [
        f"heads.{head}: no source with a 'train' section feeds it"
        for head in config.heads
        if head not in trained and head not in taken_over
    ]
    if not trained:
        problems = ["data: no source has a 'train' section; nothing to train on"]
    problems += [
        f"data.{name}.batch_size: {spec.batch_size} images cannot be shared by "
        f"{collectives.world_size()} processes; use a multiple"
        for name, spec in config.data.items()
        if spec.batch_size % collectives.world_size()
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def log_data_summary(
    config: Config, run: Path, sources: list[Source], images: dict[str, list[Finding]]
) -> None:
    """Write what is used of the data to data.json, and say it; in one process."""
    across = cross_split_findings(config, sources)
    used = data_summary(sources, across, images)
    files.write_text(run / "data.json", files.to_json(used) + "\n")
    for line in summary_lines(used):
        log.info("%s", line)
    for line in cross_split_lines(across):
        log.warning("%s", line)


def _check_best(config: Config, model: VisionModel, sources: list[Source]) -> None:
    """A metric that nobody computes should not come to light after the first epoch."""
    names = metric_names(model, sources)
    validated = any(source.val is not None for source in sources)
    chosen = config.train.best_metric or (default_best(config) if validated else None)
    best = "train.best_metric" if config.train.best_metric else "main_metric of the first head"
    guards = config.train.best_constraints
    for where, wanted in ((best, Best(chosen, {}).names), ("train.best_constraints", guards)):
        for name in wanted:
            if "/loss/" not in name and name not in names:
                none = (
                    ""
                    if names
                    else ", as nothing is validated (train.best_metric=null leaves it out)"
                )
                what = f"{where}: no validation gives {name!r}{none}"
                raise ConfigError(unknown(name, names, what))
