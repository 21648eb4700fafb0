"""Build the model of a checked config, and load weights of the whole model into it.

visionkit keeps torchvision's parameter names inside the backbone, the neck and the heads, so a
name in a file of a torchvision detector or segmentation model differs from ours in its prefix
alone.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from visionkit.config import Config
from visionkit.config.components import build, resolve
from visionkit.errors import CheckpointError, listed
from visionkit.models.contracts import checked_levels
from visionkit.models.model import VisionModel
from visionkit.runs.checkpoint import load_tensors
from visionkit.types import Classes

log = logging.getLogger("visionkit")

# Layers with rows for each of COCO's 91 ids: rows per id, and whether id 0 is the background
CLASS_ROWS = {
    "roi_heads.box_predictor.cls_score": (1, True),
    "roi_heads.box_predictor.bbox_pred": (4, True),
    "roi_heads.mask_predictor.mask_fcn_logits": (1, True),
    "head.classification_head.cls_logits": (1, False),
}
# Names in older torchvision files, before each convolution got a module of its own; and the neck.
LEGACY = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    *((rf"^(roi_heads\.mask_head\.)mask_fcn{n}\.", rf"\g<1>{n - 1}.0.") for n in (1, 2, 3, 4)),
    (r"^backbone\.fpn\.", "neck."),
)


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


def load_model_weights(model: VisionModel, path: str, classes: dict[str, Classes]) -> None:
    """Load the tensors of a file that fit, a visionkit checkpoint or a state_dict of visionkit or
    torchvision, and log the others. Raise CheckpointError if none fits.

    The class rows of a torchvision model trained on COCO are selected by class name if all names
    are COCO's; otherwise a predictor of another shape keeps its random initialization.
    """
    state = load_tensors(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a state_dict of tensors")
    detector = any(name.startswith(("rpn.", "head.", "backbone.fpn.")) for name in state)
    if detector or {"backbone", "classifier"} <= {name.partition(".")[0] for name in state}:
        head = _only_head(model, path)
        if not detector:
            state = {re.sub(r"^backbone\.", "backbone.body.", n): t for n, t in state.items()}
        state = {_our_name(name, head): tensor for name, tensor in state.items()}
        state = _pick_coco_rows(state, head, model, classes[head].names)
    _load_fitting(model, state, path)


def _only_head(model: VisionModel, path: str) -> str:
    if len(model.heads) != 1:
        raise CheckpointError(
            f"{path}: weights of a torchvision model need a model with one head, got "
            f"{len(model.heads)} heads: {', '.join(model.heads)}"
        )
    return next(iter(model.heads))


def _our_name(name: str, head: str) -> str:
    for pattern, replacement in LEGACY:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith(("backbone.", "neck.")) else f"heads.{head}.{name}"


def _pick_coco_rows(
    state: dict[str, Tensor], head: str, model: VisionModel, names: tuple[str, ...]
) -> dict[str, Tensor]:
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if not all(name in coco for name in names):
        return state
    slots = [coco.index(name) for name in names]
    ours = model.state_dict()
    picked = dict(state)
    for layer, (rows, background) in CLASS_ROWS.items():
        for kind in ("weight", "bias"):
            name = f"heads.{head}.{layer}.{kind}"
            if name in state and state[name].shape[0] == rows * len(coco) != ours[name].shape[0]:
                tensor = state[name].unflatten(0, (len(coco), rows))
                chosen = [0, *slots] if background else slots
                picked[name] = tensor[torch.tensor(chosen)].flatten(0, 1)
    return picked


def _load_fitting(model: VisionModel, state: dict[str, Tensor], path: str) -> None:
    ours = model.state_dict()
    fitting = {n: t for n, t in state.items() if n in ours and ours[n].shape == t.shape}
    if not fitting:
        raise CheckpointError(
            f"{path}: none of the {len(state)} tensors fits this model; expected names like "
            f"{next(iter(ours))!r}, got {next(iter(state), None)!r}"
        )
    model.load_state_dict(fitting, strict=False)
    reports = {
        "another shape": [n for n in state if n in ours and n not in fitting],
        "not in the model": [n for n in state if n not in ours and "num_batches" not in n],
        "not in the file": [n for n in ours if n not in state and "num_batches" not in n],
    }
    log.info("%s: loaded %d of %d tensors", path, len(fitting), len(ours))
    for what, found in reports.items():
        if found:
            log.warning("%s: %s: %s", path, what, listed(found))
