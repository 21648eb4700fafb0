"""Everything before the first training step: data, model, optimizer, run directory, old state.

`setup` reads from top to bottom. `build_training` is its part without a run directory, which
`visionkit bench` uses too; `visionkit check` calls its pieces one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visionkit.config import Config
from visionkit.data.build import build_sources, check_custom, head_classes
from visionkit.data.checks.findings import Finding
from visionkit.data.checks.images import check_images
from visionkit.data.checks.summary import (
    all_class_findings,
    below_cell,
    class_lines,
    cross_split_findings,
    cross_split_lines,
    data_summary,
    file_fingerprint,
    fingerprint,
    summary_lines,
)
from visionkit.data.loading.source import Source, iter_splits, split_key
from visionkit.distributed import collectives
from visionkit.engine.evaluate import metric_names
from visionkit.engine.failures import explain_errors
from visionkit.engine.optim import Learner, check_patterns, freeze
from visionkit.engine.progress import Best, Progress, default_best
from visionkit.engine.state import TrainingState, flattened
from visionkit.engine.torch_model import class_lists_of
from visionkit.errors import CheckpointError, ConfigError, unknown
from visionkit.metrics.thresholds import saved_thresholds
from visionkit.models.build import build_model, with_published
from visionkit.models.model import VisionModel
from visionkit.models.weights import checkpoint_origin, fill
from visionkit.ops.inference import pick_device, pick_precision
from visionkit.runs import checkpoint, directory, files
from visionkit.types import Classes, Dataset

log = logging.getLogger("visionkit")
INIT_HEADS = "init_heads"  # in `train.freeze`: all heads that `init_from` reuses


class TrainingSetup(NamedTuple):
    """All that the loop needs."""

    state: TrainingState
    sources: list[Source]


def setup(
    config: Config, held: ExitStack, *, resume: bool, overwrite: bool, strict: bool
) -> TrainingSetup:
    """Check, build and, with `resume`, restore everything, then lock the run directory until `held`
    is closed. With `strict`, other data than that of the resumed run is an error."""
    config, resume, overwrite = _continue_launch(config, resume, overwrite)
    config = with_published(config)
    device = pick_device(config.train.device)
    dtype = pick_precision(config.train.precision, device)
    if config.train.sync_batchnorm and collectives.world_size() > 1 and device.type != "cuda":
        raise ConfigError(
            f"train.sync_batchnorm: got true, but the ranks train on {device.type}; it needs GPUs: "
            "set train.sync_batchnorm=false"
        )
    torch.use_deterministic_algorithms(config.train.deterministic)
    used, saved = _last_checkpoint(config) if resume else (None, None)

    with explain_errors(config):
        model, sources, classes = build_training(config, saved, device=device)
        images = check_images(config, sources)

    run = collectives.on_main_rank(
        lambda: directory.choose(config.output, config.name, resume=resume, overwrite=overwrite)
    )
    held.callback(directory.release, run)
    log.info("run %s: %s on %s", run, str(dtype).removeprefix("torch."), device)

    settings = config.train
    batches = max(source.steps_per_epoch for source in sources if source.train is not None)
    steps_per_epoch = -(-batches // settings.accumulate_grad_batches)
    total_steps = settings.steps or (settings.epochs or 0) * steps_per_epoch  # one is given
    learner = Learner(model, settings, total_steps, dtype, steps_per_epoch=steps_per_epoch)
    if settings.layer_decay < 1:
        scales = [group["scale"] for group in learner.optimizer.param_groups]
        words = "train.layer_decay: learning rates from %.3g, of the first layer, to %.3g"
        log.info(words, settings.lr * min(scales), settings.lr * max(scales))
    progress = Progress(config, run, total_steps, steps_per_epoch)
    sizes = {name: len(dataset) for name, dataset in _datasets(sources)}
    hashes = collectives.on_main_rank(
        lambda: {
            name: {"labels": fingerprint(dataset), "file sizes": file_fingerprint(dataset)}
            for name, dataset in _datasets(sources)
        }
    )
    state = TrainingState(config, run, classes, learner, progress, sizes, hashes)
    if saved is not None:
        state.restore(saved, strict=strict)
    if used is not None and not collectives.on_main_rank(
        lambda: checkpoint.quarantine_damaged(run, used)
    ):
        progress.best_score = None
    collectives.broadcast_state(model)

    with progress.errors.tolerated(run / "data.json"):
        collectives.on_main_rank(lambda: log_data_summary(config, run, sources, images))
        collectives.on_main_rank(lambda: log_small_objects(model, sources))
    return TrainingSetup(state, sources)


def build_training(
    config: Config, saved: dict[str, Any] | None = None, *, device: torch.device
) -> tuple[VisionModel, list[Source], dict[str, Classes]]:
    """The model before its first step, its data, and each head's classes. `saved` is the state of
    a run that is resumed."""
    origin = load_init_from(config) if saved is None else None
    reused = reused_classes(config, saved or origin)
    # A resumed run has its weights in its checkpoint: their files may be gone.
    read = config if saved is None else _without_weights(config)
    sources = build_sources(read, splits_read(config), reused)
    check_training(config)
    for source in sources:
        check_custom(source)
    collectives.assert_same_on_all_ranks(_fingerprint(config, sources))
    model, classes = build_initial_model(
        config, sources, reused, origin, device=device, resumed=saved is not None
    )
    return model, sources, classes


def _without_weights(config: Config) -> Config:
    backbone = {**config.backbone, **({"weights": None} if "weights" in config.backbone else {})}
    return replace(config, weights=None, backbone=backbone)


def build_initial_model(
    config: Config,
    sources: list[Source],
    reused: dict[str, Classes],
    origin: dict[str, Any] | None,
    *,
    device: torch.device,
    resumed: bool = False,
) -> tuple[VisionModel, dict[str, Classes]]:
    """The model before its first step on those data, and the classes of each head; `origin` is the
    checkpoint of `init_from`, which gives the classes of the heads in `reused`. That of a `resumed`
    run reads no pretrained weights: all are in its checkpoint."""
    classes = {**head_classes(config, sources), **reused}
    torch.manual_seed(config.train.seed)
    model = build_model(config, classes, pretrained=config.init_from is None and not resumed)
    if origin is not None:
        _load_init_weights(model, config, classes, origin)
        known = saved_thresholds(origin)
        model.thresholds = {head: one for head, one in known.items() if head in reused}
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    frozen = _frozen_patterns(config)
    patterns = {"train.freeze": frozen, "train.lr_scale": config.train.lr_scale}
    check_patterns(model, {**patterns, "train.unfreeze_after": config.train.unfreeze_after})
    freeze(model, frozen)
    if config.train.sync_batchnorm and collectives.world_size() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    _check_best(config, model, sources)
    return model, classes


def _continue_launch(config: Config, resume: bool, overwrite: bool) -> tuple[Config, bool, bool]:
    """With torchrun's --max-restarts: continue the run that the previous attempt started."""
    earlier = collectives.on_main_rank(lambda: directory.find_restarted(config.output, config.name))
    if earlier is None:
        return config, resume, overwrite
    saved = collectives.on_main_rank(lambda: any((earlier / "checkpoints").glob("*.pt")))
    what = "continues from its last checkpoint" if saved else "starts again: nothing was saved"
    log.info("restarted by torchrun: %s %s", earlier, what)
    return replace(config, output=str(earlier)), saved, not saved


def _last_checkpoint(config: Config) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume from, and its content; rank 0 picks it for all."""
    run = config.output
    if run is None:
        raise ConfigError("resume: name the run with `output`")
    found: dict[str, Any] = {}

    def pick() -> Path:
        path, found["state"] = checkpoint.load_latest(run, resume=True)
        checkpoint.require_resumable(path, found["state"])
        return path

    path = collectives.on_main_rank(pick)
    return path, found.get("state") or checkpoint.load_run(path)


def load_init_from(config: Config) -> dict[str, Any] | None:
    """The checkpoint that `init_from` names, None without it."""
    return checkpoint.load_latest(config.init_from["run"])[1] if config.init_from else None


def reused_classes(config: Config, state: dict[str, Any] | None) -> dict[str, Classes]:
    """The class lists of the heads that are reused from the checkpoint `state`."""
    heads = config.init_from["heads"] if config.init_from else []
    saved = class_lists_of(state) if state else {}
    missing = [head for head in heads if head not in saved]
    if missing:
        raise CheckpointError(f"init_from: the checkpoint has no head {missing[0]!r}")
    return {head: saved[head] for head in heads}


def _load_init_weights(
    model: VisionModel, config: Config, classes: dict[str, Classes], state: dict[str, Any]
) -> None:
    """Backbone, neck and all heads of the same names must fit; heads that are not there are new."""
    assert config.init_from is not None
    origin = checkpoint_origin(f"init_from: {config.init_from['run']}", state)
    new = [name for name in model.heads if name not in origin.classes]
    fill(
        model,
        origin,
        classes,
        rename=config.rename,
        partial=config.partial_weights,
        may_be_new=new,
    )


def _frozen_patterns(config: Config) -> list[str]:
    """`train.freeze` as regexes."""
    if config.init_from is None:
        return config.train.freeze
    old = [f"^heads\\.{head}\\." for head in config.init_from["heads"]]
    return [
        regex
        for pattern in config.train.freeze
        for regex in (old if pattern == INIT_HEADS else [pattern])
    ]


def splits_read(config: Config) -> tuple[str, ...]:
    """The splits that a run of that config reads."""
    return ("train", "val") if config.train.validate else ("train",)


def check_training(config: Config) -> None:
    """Raise ConfigError unless every new head is trained and each batch can be split over ranks."""
    trained = {head for spec in config.data.values() if spec.train for head in spec.feeds}
    reused = config.init_from["heads"] if config.init_from else ()
    problems = [
        f"heads.{head}: no source with a 'train' section feeds it"
        for head in config.heads
        if head not in trained and head not in reused
    ]
    if not trained:
        problems = ["data: no source has a 'train' section; nothing to train on"]
    ranks = collectives.world_size()
    problems += [
        f"data.{name}.batch_size: {spec.batch_size} images cannot be split evenly over {ranks} "
        "ranks; use a multiple"
        for name, spec in config.data.items()
        if spec.batch_size % ranks
    ]
    if problems:
        raise ConfigError(*problems)


def _check_best(config: Config, model: VisionModel, sources: list[Source]) -> None:
    """Raise ConfigError for a metric that no validation computes: now, not after an epoch."""
    names = metric_names(model, sources)
    validated = any(source.val is not None for source in sources)
    chosen = config.train.best_metric or (default_best(config) if validated else None)
    key = "train.best_metric" if config.train.best_metric else "main_metric of the first head"
    constraints = config.train.best_constraints
    for where, wanted in ((key, Best(chosen, {}).names), ("train.best_constraints", constraints)):
        for name in wanted:
            if "/loss/" not in name and name not in names:
                hint = ""
                if not names:
                    hint = ", as nothing is validated (train.best_metric=null disables it)"
                what = f"{where}: no validation has {name!r}{hint}"
                raise ConfigError(unknown(name, names, what))


def _fingerprint(config: Config, sources: list[Source]) -> dict[str, Any]:
    """What all ranks of a training must have in common."""
    facts: dict[str, Any] = {"torch": torch.__version__}
    for name, dataset in _datasets(sources):
        facts[name] = f"with {len(dataset)} images"
        facts[f"classes of {name}"] = str({key: c.names for key, c in dataset.classes.items()})
    settings = {key: v for key, v in config.to_dict().items() if key not in ("output", "name")}
    return facts | flattened(settings)


def _datasets(sources: list[Source]) -> Iterator[tuple[str, Dataset]]:
    for source in sources:
        for split, dataset in iter_splits(source):
            yield f"data.{source.name}.{split}", dataset


def small_object_findings(model: VisionModel, sources: list[Source]) -> list[Finding]:
    """How many objects of the training data of each source with boxes are below one pixel, and how
    many below a cell, for each head that finds objects by cells."""
    found = []
    for source in sources:
        heads = {name: model.head(name) for name in source.feeds}
        cells = {name: head.cell for name, head in heads.items() if head.cell}
        if source.train is None or not any("boxes" in h.required_targets for h in heads.values()):
            continue
        for head, cell in cells.items() or [("", None)]:
            if one := below_cell(source.train, source.image_size, head, cell):
                found.append(one._replace(file=split_key(source.name, "train")))
    return found


def log_small_objects(model: VisionModel, sources: list[Source]) -> None:
    for found in small_object_findings(model, sources):
        level = logging.INFO if found.severity == "note" else logging.WARNING
        log.log(level, "%s: %s; %s", found.file, found.message, found.hint)


def log_data_summary(
    config: Config, run: Path, sources: list[Source], images: dict[str, list[Finding]]
) -> None:
    """Write what is used of the data to data.json, and log it; on rank 0."""
    across, classes = cross_split_findings(config, sources), all_class_findings(config, sources)
    used = data_summary(sources, across, images, classes)
    files.write_text(run / "data.json", files.to_json(used) + "\n")
    for line in summary_lines(used):
        log.info("%s", line)
    of_classes = (line for found in classes.values() for line in class_lines(found))
    for line in (*of_classes, *cross_split_lines(across)):
        log.warning("%s", line)
