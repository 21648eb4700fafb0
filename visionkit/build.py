"""From a checked config to objects: data sets and their sources, and the model."""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

import torch

from visionkit.class_lists import class_lists, classes_of_heads, relabelled
from visionkit.components import resolve
from visionkit.config import Config, missing_paths
from visionkit.data.picture_cache import PictureCache
from visionkit.data.sources import Source
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
    problems = missing_paths(config, splits)
    if problems:
        raise ConfigError("\n".join(problems))
    opened: dict[tuple[str, str], Dataset] = {}
    wanted = 0
    for name, spec in config.data.items():
        for split in splits:
            section = getattr(spec, split)
            if section is None:
                continue
            where = section_of(name, split)
            wanted += 1
            try:
                opened[name, split] = _open(section)
            except DataError as error:
                problems.append(f"{where}: {error}{_still_generated(spec, split)}")
                continue
            problems += _check_keys(where, opened[name, split], spec.feeds, config)
            problems += _check_content(where, opened[name, split], split)
            if spec.cache_gb is not None and not hasattr(opened[name, split], "sample"):
                problems.append(f"{where}: {section['type']} keeps no pictures; leave out cache_gb")
    lists = class_lists(_vocabularies(config), config.data, opened, classes or {})
    for (name, split), dataset in opened.items() if len(opened) == wanted else ():
        where, spec = section_of(name, split), config.data[name]
        try:
            opened[name, split] = relabelled(where, dataset, lists[name], spec.labelled)
        except DataError as error:
            problems.append(f"{where}: {error}{_still_generated(spec, split)}")
    if problems:
        raise DataError("\n".join(problems))
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


def section_of(source: str, split: str) -> str:
    """The dotted name of a data set in the config, in the short form where there is one source."""
    return f"data.{split}" if source == "main" else f"data.{source}.{split}"


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


def _check_content(where: str, dataset: Dataset, split: str) -> list[str]:
    """Whether there is anything to learn from a data set of objects."""
    if getattr(dataset, "num_objects", 1) > 0 or "class_id" in dataset.keys:
        return []
    log.warning("%s: no object is annotated", where)
    nothing = f"{where}: no object is annotated; there is nothing to learn"
    return [nothing] if split == "train" else []


def _check_keys(where: str, dataset: Dataset, feeds: list[str], config: Config) -> list[str]:
    """Whether the data set labels what the heads it feeds need."""
    problems = []
    for head in feeds:
        cls = _head_class(config, head)
        for key in cls.needs:
            if key not in dataset.keys:
                gives = ", ".join(dataset.keys) or "pictures alone"
                problems.append(
                    f"{where}: gives no {key!r} (needed by head {head!r}, {cls.__name__}); it "
                    f"gives {gives}. Feed {head!r} from another source"
                )
    return problems
