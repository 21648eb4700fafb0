"""Configs of small runs, one for each kind of head, that take a fraction of a second to train."""

from __future__ import annotations

from typing import Any

from support import heads
from support.paths import CONFIGS
from visionkit.config import load_config

SHAPES = {"type": "Shapes", "num_images": 12, "size": 32}
TINY = {"type": "TinyCNN", "channels": [8, 16], "norm": "group"}
PYRAMID = {"type": "FPN", "channels": 8}


def config(
    task: str, head: str, *, pyramid: bool = False, data: Any = None, **arguments: Any
) -> dict[str, Any]:
    """The short form for that task, without `output`; `arguments` are the head's."""
    spec: dict[str, Any] = {
        "task": task,
        "backbone": dict(TINY),
        "head": {"type": head, **arguments},
        "data": {
            "train": {**SHAPES, "seed": 0},
            "val": {**SHAPES, "num_images": 5, "seed": 1},
            "image_size": 32,
            "batch_size": 6,
            "workers": 0,
            **(data or {}),
        },
        "train": {"steps": 3, "log_every": 1, "precision": "fp32", "plots": False, "lr": 0.02}
        | {"warmup_steps": 0, "validate": 3, "report": False},
    }
    return spec | ({"neck": dict(PYRAMID)} if pyramid else {})


PAIRS = {"images_per_identity": 2, "batch_size": 8}
SMALL_RUNS = {
    case.name: config(
        case.task,
        head,
        pyramid=case.pyramid,
        data=PAIRS if case.task == "embedding" else None,
        **case.small,
    )
    for head, case in heads.HEADS.items()
    if case.task
} | {"contrastive": config("embedding", "Embedding", data=PAIRS, loss="contrastive")}
# One head of each task.
TASKS = ("classification", "localization", "fcos", "mask_rcnn", "semantic", "embedding", "vae")


def joint(**train: Any) -> dict[str, Any]:
    """Three heads on two sources, of which one labels what the other does not."""
    small = {"image_size": 32, "train": {**SHAPES, "seed": 0}}
    val = {**SHAPES, "num_images": 5, "seed": 1}
    return {
        "backbone": dict(TINY),
        "neck": dict(PYRAMID),
        "heads": {
            "objects": {"type": "FCOS"},
            "looks": {"type": "Attributes", "boxes_from": "objects", "hidden": 16},
            "scene": {"type": "Classification", "weight": 0.5},
        },
        "data": {
            "workers": 0,
            "street": {"feeds": ["objects", "looks"], "batch_size": 4, "val": val, **small},
            "places": {"feeds": ["scene"], "batch_size": 6, "val": val, **small},
        },
        "train": {**SMALL_RUNS["fcos"]["train"], **train},
    }


def quick_settings(config: str) -> list[str]:
    """Overrides with which a config of `configs/` trains in a second."""
    words = ["data.workers=0", "train.epochs=null", "train.steps=3", "train.plots=false"]
    words += ["train.report=false"]
    given = load_config(CONFIGS / config)
    words += ["backbone.weights=null"] * bool(given.backbone.get("weights"))  # needs no package
    for name, source in given.data.items():
        key = "data" if name == "main" else f"data.{name}"
        words += [f"{key}.{split}.size=64" for split in ("train", "val")]
        words += [f"{key}.train.num_images=16", f"{key}.val.num_images=6"]
        words += [f"{key}.batch_size={2 * (source.images_per_identity or 2)}"]
        words += [f"{key}.image_size=64"] * (source.image_size not in range(64))
    return words
