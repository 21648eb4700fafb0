"""Build the model of a checked config."""

from __future__ import annotations

import inspect
from typing import Any

from visionkit.config import Config
from visionkit.config.components import build, resolve
from visionkit.models.contracts import checked_levels
from visionkit.models.model import VisionModel
from visionkit.models.weights import config_kind, load_model_weights
from visionkit.types import Classes


def build_model(
    config: Config, classes: dict[str, Classes], *, pretrained: bool = True
) -> VisionModel:
    """The model of a config. `pretrained=False` reads no file with weights, for a model that a
    checkpoint is loaded into."""
    backbone = build("backbones", _backbone_spec(config.backbone, pretrained), key="backbone")
    levels, neck = checked_levels("backbone", backbone), None
    if config.neck is not None:
        neck = build("necks", config.neck, levels, key="neck")
        levels = checked_levels("neck", neck)
    heads, weights = {}, {}
    for name, spec in config.heads.items():
        arguments = {key: value for key, value in spec.items() if key != "weight"}
        heads[name] = build("heads", arguments, levels, classes[name].names, key=f"heads.{name}")
        weights[name] = spec.get("weight", 1.0)
    learned = config.train.weighting == "uncertainty"
    model = VisionModel(backbone, neck, heads, weights, learned_weights=learned)
    model.kind = config_kind(vars(config))
    if pretrained and config.weights:
        rename, partial = config.rename, config.partial_weights
        load_model_weights(model, config.weights, classes, rename=rename, partial=partial)
    return model


def _backbone_spec(spec: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    if pretrained or not spec.get("weights"):
        return spec
    spec = {**spec, "weights": None}
    arguments = inspect.signature(resolve("backbones", spec["type"])).parameters
    if "norm" in arguments and spec.get("norm", "auto") == "auto":
        spec["norm"] = "frozen"  # the meaning of `auto` with weights
    return spec
