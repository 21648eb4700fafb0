"""Loads the weights of a whole model: a visionkit checkpoint, or the state_dict of a torchvision
detector or segmentation model.

visionkit keeps torchvision's parameter names inside the backbone, the neck and the heads, so a
torchvision name differs from ours in its prefix alone.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from visionkit.errors import CheckpointError
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


def load_model_weights(model: VisionModel, path: str, classes: dict[str, Classes]) -> None:
    """Load the tensors that fit and log the others. Raise CheckpointError if none fits.

    The class rows of a torchvision model trained on COCO are selected by class name if all names
    are COCO's; otherwise a predictor of another shape keeps its random initialization.
    """
    state = load_tensors(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a state_dict of tensors")
    if any(name.startswith(("rpn.", "head.", "backbone.fpn.")) for name in state):
        head = _only_head(model, path)
        state = {_our_name(name, head): tensor for name, tensor in state.items()}
        state = _pick_coco_rows(state, head, model, classes[head].names)
    elif any(name.startswith("classifier.") for name in state) and any(
        name.startswith("backbone.") for name in state
    ):
        head = _only_head(model, path)
        state = {_segmentation_name(name, head): tensor for name, tensor in state.items()}
    _load_fitting(model, state, path)


def _only_head(model: VisionModel, path: str) -> str:
    if len(model.heads) != 1:
        raise CheckpointError(
            f"{path}: weights of a torchvision model need a model with one head, got "
            f"{len(model.heads)} heads: {', '.join(model.heads)}"
        )
    return next(iter(model.heads))


def _segmentation_name(name: str, head: str) -> str:
    """Map `backbone.layer1...` to `backbone.body.layer1...`, and the rest into the head."""
    if name.startswith("backbone."):
        return name.replace("backbone.", "backbone.body.", 1)
    return f"heads.{head}.{name}"


# Names in older torchvision files, before each convolution got a module of its own.
LEGACY = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
)


def _our_name(name: str, head: str) -> str:
    for pattern, replacement in LEGACY:
        name = re.sub(pattern, replacement, name)
    legacy_mask = re.match(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$", name)
    if legacy_mask:
        name = f"roi_heads.mask_head.{int(legacy_mask[1]) - 1}.0.{legacy_mask[2]}"
    if name.startswith("backbone.fpn."):
        return name.replace("backbone.fpn.", "neck.", 1)
    return name if name.startswith("backbone.") else f"heads.{head}.{name}"


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
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            log.warning("%s: %s: %s%s", path, what, ", ".join(found[:10]), more)
