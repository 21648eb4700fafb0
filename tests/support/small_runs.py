"""Configs of small runs, one for each kind of head, that take a fraction of a second to train."""

from __future__ import annotations

from typing import Any

from support.paths import CONFIGS
from visionkit.config import load_config

SHAPES = {"type": "Shapes", "num_images": 12, "size": 32}
TINY = {"type": "TinyCNN", "channels": [8, 16], "norm": "group"}
PYRAMID = {"type": "FPN", "channels": 8}
REGIONS = {"box_hidden": 32}
PIXELS = {"dropout": 0.0, "norm": "group"}


def config(
    task: str, head: str | None = None, *, pyramid: bool = False, data: Any = None, **arguments: Any
) -> dict[str, Any]:
    """The short form for that task, without `output`; `arguments` are the head's."""
    spec: dict[str, Any] = {
        "task": task,
        "backbone": dict(TINY),
        "data": {
            "train": {**SHAPES, "seed": 0},
            "val": {**SHAPES, "num_images": 5, "seed": 1},
            "image_size": 32,
            "batch_size": 6,
            "workers": 0,
            **(data or {}),
        },
        "train": {"steps": 3, "log_every": 1, "precision": "fp32", "plots": False, "lr": 0.02}
        | {"warmup_steps": 0, "validate": 3},
    }
    if head is not None:
        spec["head"] = {"type": head, **arguments}
    return spec | ({"neck": dict(PYRAMID)} if pyramid else {})


PAIRS = {"images_per_identity": 2, "batch_size": 8}
HEADS = {
    "classification": config("classification"),
    "localization": config("localization"),
    "fcos": config("detection", "FCOS", pyramid=True),
    "aligned": config("detection", "TaskAligned", pyramid=True, num_convs=0),
    "faster": config("detection", "FasterRCNN", pyramid=True, **REGIONS),
    "mask": config("instance_segmentation", "MaskRCNN", pyramid=True, mask_convs=1, **REGIONS),
    "fcn": config("semantic_segmentation", "FCN", dice=0.5, aux_weight=0.5, **PIXELS),
    "deeplab": config("semantic_segmentation", "DeepLabV3", channels=8, **PIXELS),
    "pyramid": config("semantic_segmentation", "SemanticFPN", pyramid=True),
    "triplet": config("embedding", "Embedding", data=PAIRS),
    "contrastive": config("embedding", "Embedding", data=PAIRS, loss="contrastive"),
    "autoencoder": config("autoencoder", "Autoencoder", channels=8),
    "vae": config("autoencoder", "VAE", latent=2, channels=8),
}
# One head of each task.
TASKS = ("classification", "localization", "fcos", "mask", "pyramid", "triplet", "vae")


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
        "train": {**HEADS["fcos"]["train"], **train},
    }


def quick_settings(config: str) -> list[str]:
    """Overrides with which a config of `configs/` trains in a second."""
    words = ["data.workers=0", "train.epochs=null", "train.steps=3", "train.plots=false"]
    for name, source in load_config(CONFIGS / config).data.items():
        key = "data" if name == "main" else f"data.{name}"
        words += [f"{key}.{split}.size=64" for split in ("train", "val")]
        words += [f"{key}.train.num_images=16", f"{key}.val.num_images=6"]
        words += [f"{key}.batch_size={2 * (source.images_per_identity or 2)}"]
        words += [f"{key}.image_size=64"] * (source.image_size > 64)
    return words
