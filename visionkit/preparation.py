"""Before training: the model, its data and class lists, and whether they belong together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from visionkit import distributed, growth, rundir
from visionkit.backbones.norm import synchronized
from visionkit.best import Best
from visionkit.build import build_model, build_sources, default_best, head_classes
from visionkit.components import unknown
from visionkit.config import Config
from visionkit.data.problems import Finding
from visionkit.data.sources import Source
from visionkit.data_used import across_lines, data_used, lines
from visionkit.errors import ConfigError
from visionkit.evaluation import metric_names
from visionkit.model import VisionModel
from visionkit.optim import check_patterns, freeze
from visionkit.splits import look_across
from visionkit.training_state import flattened
from visionkit.types import Classes

log = logging.getLogger("visionkit")


def set_up(
    config: Config, saved: dict[str, Any] | None = None, *, device: torch.device
) -> tuple[VisionModel, list[Source], dict[str, Classes]]:
    """The model as it begins to train, its data, and each head's classes; `saved` is the state of
    a run that is to go on."""
    origin = growth.origin(config) if saved is None else None
    taken_over = growth.classes_taken_over(config, saved or origin)
    sources = build_sources(config, opened_splits(config), taken_over)
    check_training(config)
    distributed.require_same(_facts(config, sources))
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
        growth.load_origin(model, config, origin)
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    frozen = growth.frozen_patterns(config)
    check_patterns(model, {"train.freeze": frozen, "train.lr_scale": config.train.lr_scale})
    freeze(model, frozen)
    if config.train.sync_batchnorm and distributed.world_size() > 1:
        synchronized(model)
    _check_best(config, model, sources)
    return model, classes


def _facts(config: Config, sources: list[Source]) -> dict[str, Any]:
    """What all processes of a training must have in common."""
    facts: dict[str, Any] = {"torch": torch.__version__}
    for source in sources:
        for split in ("train", "val"):
            dataset = getattr(source, split)
            if dataset is not None:
                facts[f"data.{source.name}.{split}"] = f"with {len(dataset)} pictures"
                lists = {key: c.names for key, c in dataset.vocabularies.items()}
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
        f"data.{name}.batch_size: {spec.batch_size} pictures cannot be shared by "
        f"{distributed.world_size()} processes; use a multiple"
        for name, spec in config.data.items()
        if spec.batch_size % distributed.world_size()
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def tell_data(
    config: Config, run: Path, sources: list[Source], pictures: dict[str, list[Finding]]
) -> None:
    """Write what is used of the data to data.json, and say it; in one process."""
    across = look_across(config, sources)
    used = data_used(sources, across, pictures)
    rundir.write_text(run / "data.json", rundir.to_json(used) + "\n")
    for line in lines(used):
        log.info("%s", line)
    for line in across_lines(across):
        log.warning("%s", line)


def _check_best(config: Config, model: VisionModel, sources: list[Source]) -> None:
    """A metric that nobody computes should not come to light after the first epoch."""
    names = metric_names(model, sources)
    validated = any(source.val is not None for source in sources)
    chosen = config.train.best or (default_best(config) if validated else None)
    best = "train.best" if config.train.best else "main_metric of the first head"
    guards = config.train.no_worse_than
    for where, wanted in ((best, Best(chosen, {}).names), ("train.no_worse_than", guards)):
        for name in wanted:
            if "/loss/" not in name and name not in names:
                none = "" if names else ", as nothing is validated (train.best=null leaves it out)"
                what = f"{where}: no validation gives {name!r}{none}"
                raise ConfigError(unknown(name, names, what))
