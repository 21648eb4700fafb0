"""A model of each kind of head with random weights, and the ONNX file of it."""

from __future__ import annotations

import onnx
import torch
from onnx import helper
from torch import nn

from support import small_runs
from visionkit.config import load_config
from visionkit.config.components import head_class
from visionkit.engine.export.graph import exported_program, to_onnx
from visionkit.engine.export.metadata import KEY, HeadInfo, ModelInfo
from visionkit.engine.torch_model import Predictor
from visionkit.models.build import build_model
from visionkit.types import Classes

CLASSES = {None: (), "attributes": ("wet", "color=red", "color=blue")}


def random_predictor(spec, gain=1.5, **settings):
    """An eager model in float32, whose weights are larger than at the start of a training: or all
    scores would be nearly the same."""
    overrides = {"train.device": "cpu", "train.precision": "fp32", **settings}
    config = load_config(spec, overrides)
    keys = {head: head_class(config, head).class_key for head in config.heads}
    classes = {h: Classes.numbered(CLASSES.get(key, ("a", "b", "c"))) for h, key in keys.items()}
    torch.manual_seed(0)
    model = build_model(config, classes, pretrained=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
    return Predictor(model, config, classes, fold=False)


def write_exported(predictor, path, *, size=None, batch=None):
    """The ONNX file of a predictor."""
    model = predictor.model
    program = exported_program(model, predictor.heads, size=size, batch=batch)
    proto = to_onnx(program)
    names = [value.name for value in proto.graph.output]
    heads = {}
    for name in predictor.heads:
        head = model.head(name)
        multilabel = getattr(head, "multilabel", False)
        heads[name] = HeadInfo(
            type(head).__name__,
            predictor.classes[name],
            predictor._image_size[name],
            tuple(n.removeprefix(f"{name}_") for n in names if n.startswith(f"{name}_")),
            head.boxes_from,
            head.draw_threshold,
            head.threshold if multilabel else None,
        )
    info = ModelInfo("exported", heads, {}, size=size, batch=batch, thresholds=model.thresholds)
    helper.set_model_props(proto, {KEY: info.to_json()})
    onnx.save(proto, path)
    return path


RUNS = {**small_runs.SMALL_RUNS, "joint": small_runs.joint()}
