"""From a checked config to objects: data sets and their sources, and the model."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from visionkit.class_lists import class_lists, classes_of_heads, relabelled
from visionkit.components import resolve
from visionkit.config import Config, missing_paths
from visionkit.data.picture_cache import PictureCache
from visionkit.data.problems import finding, together
from visionkit.data.sources import Source
from visionkit.data_used import where_is
from visionkit.errors import ConfigError, DataError, VisionkitError
from visionkit.model import VisionModel
from visionkit.torchvision_weights import load_model_weights
from visionkit.types import Classes, Dataset, Head

log = logging.getLogger("visionkit")


def build_sources(
    config: Config, splits: tuple[str, ...], classes: dict[str, Classes] | None = None
) -> list[Source]:
    """The data sets of those splits (`train`, `val`), opened and checked against the heads.

    `classes` by head, from a checkpoint, fix the class lists; otherwise the training data do. All
    data sets are matched to them by name. All problems are reported together.
    """
    missing = missing_paths(config, splits)
    if missing:
        raise ConfigError("\n".join(missing))
    sources, errors = open_sources(config, splits, classes)
    if errors:
        raise together(errors)
    return sources


def open_sources(
    config: Config,
    splits: tuple[str, ...],
    classes: dict[str, Classes] | None = None,
    skip: Collection[tuple[str, str]] = (),
) -> tuple[list[Source], list[VisionkitError]]:
    """The same as far as the data can be used, without those (source, split) in `skip`; and what
    is wrong with the others."""
    opened: dict[tuple[str, str], Dataset] = {}
    errors: list[VisionkitError] = []
    wanted = [
        (name, split)
        for name in config.data
        for split in splits
        if getattr(config.data[name], split)
    ]
    for name, split in wanted:
        spec, where = config.data[name], where_is(name, split)
        if (name, split) in skip:
            continue
        try:
            opened[name, split] = dataset = _open(getattr(spec, split))
        except (ConfigError, DataError) as error:
            errors.append(_located(where, error, _still_generated(spec, split)))
            continue
        errors += _check_keys(where, dataset, spec.feeds, config)
        errors += _check_content(where, dataset, split)
        if spec.cache_gb is not None and not hasattr(dataset, "sample"):
            kind = getattr(spec, split)["type"]
            errors.append(DataError(f"{where}: {kind} keeps no pictures; leave out cache_gb"))
    lists = class_lists(_vocabularies(config), config.data, opened, classes or {})
    for (name, split), dataset in opened.items() if len(opened) == len(wanted) else ():
        where, spec = where_is(name, split), config.data[name]
        try:
            opened[name, split] = relabelled(where, dataset, lists[name], spec.labelled)
        except DataError as error:
            errors.append(_located(where, error, _still_generated(spec, split), "classes"))
    return _sources(config, opened), errors


def _sources(config: Config, opened: Mapping[tuple[str, str], Dataset]) -> list[Source]:
    return [
        Source(
            name=name,
            feeds=spec.feeds,
            train=opened.get((name, "train")),
            val=opened.get((name, "val")),
            batch_size=spec.batch_size,
            image_size=spec.image_size,
            transforms=[_make("data", t) for t in spec.transforms or ()],
            eval_batch_size=config.train.eval_batch_size,
            per_identity=spec.per_identity,
            group_shapes=spec.group_shapes,
            cache=None if spec.cache_gb is None else PictureCache(spec.cache_gb),
            skip_broken=spec.on_broken_picture == "skip",
        )
        for name, spec in config.data.items()
    ]


def head_classes(config: Config, sources: list[Source]) -> dict[str, Classes]:
    """The class list of each head that is fed, from the data sets that feed it."""
    return classes_of_heads(_vocabularies(config), sources)


def build_model(
    config: Config, classes: dict[str, Classes], *, pretrained: bool = True
) -> VisionModel:
    """The model of a config. With `pretrained=False` no weights file is looked for, because a
    checkpoint's are about to be loaded."""
    backbone = _make("backbones", _backbone_spec(config.backbone, pretrained))
    neck = None if config.neck is None else _make("necks", config.neck, backbone.levels)
    levels = backbone.levels if neck is None else neck.levels
    heads, weights = {}, {}
    for name, spec in config.heads.items():
        knobs = {key: value for key, value in spec.items() if key != "weight"}
        heads[name] = _make("heads", knobs, levels, classes[name].names)
        weights[name] = spec.get("weight", 1.0)
    learned = config.train.weighting == "uncertainty"
    model = VisionModel(backbone, neck, heads, weights, learned_weights=learned)
    if pretrained and config.weights:
        load_model_weights(model, config.weights, classes)
    return model


def default_best(config: Config) -> str | None:
    """The main metric of the first validated head; None if nothing is validated."""
    validated = {name: spec for name, spec in config.data.items() if spec.val is not None}
    if not validated:
        return None
    name, spec = next(iter(validated.items()))
    prefix = f"{name}/" if len(validated) > 1 else ""
    return f"{prefix}{spec.feeds[0]}/{_head_class(config, spec.feeds[0]).main_metric}"


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process if there is one, else Apple's, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", name)
        reason = str(error).strip().splitlines()[0] if known else "it is no auto, cpu, cuda or mps"
        raise ConfigError(f"train.device: {name!r} cannot be used here: {reason}") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _make(section: str, spec: dict[str, Any], *injected: Any) -> Any:
    knobs = {key: value for key, value in spec.items() if key != "type"}
    try:
        return resolve(section, spec["type"])(*injected, **knobs)
    except VisionkitError:
        raise
    except ValueError as error:  # a component's own word on a value that its annotation allows
        raise ConfigError(f"{section}: {spec['type']}: {error}") from error


def _backbone_spec(spec: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    if pretrained or not spec.get("weights"):
        return spec
    spec = {**spec, "weights": None}
    knobs = inspect.signature(resolve("backbones", spec["type"])).parameters
    if "norm" in knobs and spec.get("norm", "auto") == "auto":
        spec["norm"] = "frozen"  # what `auto` meant while there were weights
    return spec


def _open(section: dict[str, Any]) -> Dataset:
    dataset = _make("data", section)
    if len(dataset) == 0:
        raise DataError(f"{section['type']}: holds no pictures")
    return dataset


def _located(where: str, error: VisionkitError, hint: str, kind: str = "file") -> VisionkitError:
    """The same error with the key of the data set in front."""
    message = f"{where}: {error}{hint}"
    if isinstance(error, DataError):
        found = error.findings or [finding(kind, str(error), file=where)]
        return DataError(message, found, error.others)
    return ConfigError(message)


def _vocabularies(config: Config) -> dict[str, str | None]:
    """The target key whose classes each head predicts."""
    return {head: _head_class(config, head).vocabulary for head in config.heads}


def _head_class(config: Config, head: str) -> type[Head]:
    return resolve("heads", config.heads[head]["type"])


def _still_generated(spec: Any, split: str) -> str:
    """A hint for who replaced the training data of a shipped config and forgot the validation."""
    if split != "val" or spec.train is None:
        return ""
    if spec.val["type"] != "shapes.Shapes" or spec.train["type"] == "shapes.Shapes":
        return ""
    return "\n  data.val is still generated shapes: give your own, or data.val=null for none"


def _check_content(where: str, dataset: Dataset, split: str) -> list[DataError]:
    """Whether there is anything to learn from a data set of objects."""
    if getattr(dataset, "num_objects", 1) > 0 or "class_id" in dataset.keys:
        return []
    log.warning("%s: no object is annotated", where)
    what = "no object is annotated; there is nothing to learn"
    found = finding("nothing-to-learn", what, file=where)
    return [DataError(f"{where}: {what}", [found])] if split == "train" else []


def _check_keys(where: str, dataset: Dataset, feeds: list[str], config: Config) -> list[DataError]:
    """Whether the data set labels what the heads it feeds need."""
    errors = []
    for head in feeds:
        cls = _head_class(config, head)
        for key in cls.needs:
            if key not in dataset.keys:
                gives = ", ".join(dataset.keys) or "pictures alone"
                what = (
                    f"gives no {key!r} (needed by head {head!r}, {cls.__name__}); it "
                    f"gives {gives}. Feed {head!r} from another source"
                )
                found = finding("config", what, file=where, key=key)
                errors.append(DataError(f"{where}: {what}", [found]))
    return errors
