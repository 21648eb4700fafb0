"""Before training: the model, its data and class lists, and whether they belong together."""

from __future__ import annotations

from typing import Any

import torch

from visionkit import distributed, growth
from visionkit.backbones.norm import synchronized
from visionkit.best import Best
from visionkit.build import build_model, build_sources, head_classes
from visionkit.components import unknown
from visionkit.config import Config
from visionkit.data.sources import Source
from visionkit.errors import ConfigError
from visionkit.evaluation import metric_names
from visionkit.model import VisionModel
from visionkit.optim import freeze
from visionkit.training_state import flattened
from visionkit.types import Classes


def set_up(
    config: Config, saved: dict[str, Any] | None = None, *, device: torch.device
) -> tuple[VisionModel, list[Source], dict[str, Classes]]:
    """The model as it begins to train, its data, and each head's classes; `saved` is the state of
    a run that is to go on."""
    origin = growth.origin(config) if saved is None else None
    taken_over = growth.classes_taken_over(config, saved or origin)
    splits = ("train", "val") if config.train.validate else ("train",)
    sources = build_sources(config, splits, taken_over)
    _check_training(config, sources)
    distributed.require_same(_facts(config, sources))
    classes = {**head_classes(config, sources), **taken_over}
    torch.manual_seed(config.train.seed)
    model = build_model(config, classes, pretrained=config.init_from is None)
    if origin is not None:
        growth.load_origin(model, config, origin)
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    freeze(model, growth.frozen_patterns(config))
    if config.train.sync_batchnorm and distributed.world_size() > 1:
        synchronized(model)
    _check_best(config, model, sources)
    return model, sources, classes


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


def _check_training(config: Config, sources: list[Source]) -> None:
    """A source without training data only validates; every new head needs one that has some."""
    trained = {head for source in sources if source.train is not None for head in source.feeds}
    taken_over = config.init_from["heads"] if config.init_from else ()
    for head in config.heads:
        if head not in trained and head not in taken_over:
            raise ConfigError(f"heads.{head}: no source with a 'train' section feeds it")
    if not trained:
        raise ConfigError("data: no source has a 'train' section; nothing to train on")
    for source in sources:
        if source.batch_size % distributed.world_size():
            raise ConfigError(
                f"data.{source.name}.batch_size: {source.batch_size} pictures cannot be shared "
                f"by {distributed.world_size()} processes; use a multiple"
            )


def _check_best(config: Config, model: VisionModel, sources: list[Source]) -> None:
    """A metric that nobody computes should not come to light after the first epoch."""
    names = metric_names(model, sources)
    for wanted in Best(config.train.best, config.train.no_worse_than).names:
        if "/loss/" not in wanted and wanted not in names:
            what = f"train.best: no validation gives {wanted!r}"
            raise ConfigError(unknown(wanted, names, what))
