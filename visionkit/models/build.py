"""Build the model of a checked config."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from visionkit.config import Config
from visionkit.config.components import build, resolve
from visionkit.models.model import VisionModel
from visionkit.models.pretrained import load_model_weights
from visionkit.types import Classes

log = logging.getLogger("visionkit")


def build_model(
    config: Config, classes: dict[str, Classes], *, pretrained: bool = True
) -> VisionModel:
    """The model of a config. `pretrained=False` reads no file with weights, for a model that a
    checkpoint is loaded into."""
    backbone = build("backbones", _backbone_spec(config.backbone, pretrained), key="backbone")
    neck = None if config.neck is None else build("necks", config.neck, backbone.levels, key="neck")
    levels = backbone.levels if neck is None else neck.levels
    heads, weights = {}, {}
    for name, spec in config.heads.items():
        arguments = {key: value for key, value in spec.items() if key != "weight"}
        heads[name] = build("heads", arguments, levels, classes[name].names, key=f"heads.{name}")
        weights[name] = spec.get("weight", 1.0)
    learned = config.train.weighting == "uncertainty"
    model = VisionModel(backbone, neck, heads, weights, learned_weights=learned)
    if pretrained and config.weights:
        load_model_weights(model, config.weights, classes)
    return model


def _backbone_spec(spec: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    if pretrained or not spec.get("weights"):
        return spec
    spec = {**spec, "weights": None}
    arguments = inspect.signature(resolve("backbones", spec["type"])).parameters
    if "norm" in arguments and spec.get("norm", "auto") == "auto":
        spec["norm"] = "frozen"  # the meaning of `auto` with weights
    return spec
