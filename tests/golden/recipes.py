"""Twenty steps of every task with tiny models on generated images: what the golden file holds.

Losses are to depend on rounding as little as they can, so that another machine finds nearly the
same: small steps, smooth activations, mean pooling. No two-stage head in the joint run: there a
last digit decided, on one of the machines that were tried, which regions a step looks at.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from support import heads
from visionkit.engine.train import train

Columns = dict[str, list[float]]

INSTRUCTIONS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")  # environment

STEPS = 20
# Where 0.002 would move little in 20 steps; or so much that rounding decides, of one of the many
# coordinates of denoising queries, on which side of the true one it is: 5 % of the gradient's norm.
LR = {"classification": 0.02, "autoencoder": 0.02, "rtdetr": 0.0005}
BACKBONE = {
    "type": "TinyCNN",
    "channels": [8, 16, 24, 32],
    "norm": "batch",
    "activation": "silu",
    "pool": "avg",
}
NECK = {"type": "FPN", "channels": 16}
SLOTS = {  # names of the heads
    "classification": "scene",
    "localization": "object",
    "detection": "objects",
    "instance_segmentation": "objects",
    "semantic_segmentation": "map",
    "embedding": "place",
    "autoencoder": "image",
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    **{
        case.name: {SLOTS[case.task]: {"type": head, **case.golden}}
        for head, case in heads.HEADS.items()
        if case.task
    },
    "joint": {
        "objects": {"type": "FCOS"},
        "color": {"type": "Attributes", "boxes_from": "objects"},
        "map": {"type": "SemanticFPN"},
        "scene": {"type": "Classification", "weight": 0.5},
        "place": {"type": "Embedding"},
    },
}


def config(task: str, output: Path) -> dict[str, Any]:
    used = RECIPES[task]
    source = {
        "feeds": [*used],
        "train": {"type": "Shapes", "num_images": 48, "size": 64, "seed": 0},
        "image_size": 64,
        "batch_size": 4,
        "transforms": [{"type": "HorizontalFlip"}],
    }
    if "place" in used:
        source["images_per_identity"] = 2
    return {
        "backbone": BACKBONE,
        "neck": NECK,
        "heads": used,
        "data": {"workers": 0, "main": source},
        "train": {
            "steps": STEPS,
            "lr": LR.get(task, 0.002),
            "optimizer": "adamw" if task == "vae" else "sgd",
            "log_every": 1,
            "precision": "fp32",
            "device": "cpu",
            "plots": False,
        },
        "output": str(output),
    }


def losses(task: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> Columns:
    """Every loss term and the norm of the gradient (20 numbers each, by name), on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = train(config(task, Path(folder) / "run"), overrides).directory
            lines = (run / "metrics.jsonl").read_text().splitlines()
    finally:
        torch.set_num_threads(threads)
    columns: Columns = {}
    for record in map(json.loads, lines):
        for name, value in record.items():
            if name.startswith("train/"):
                columns.setdefault(name.removeprefix("train/"), []).append(value)
    return columns


def machine() -> dict[str, str]:
    """What equality to the last digit depends on: others round otherwise."""
    chosen = {key: os.environ[key] for key in INSTRUCTIONS if key in os.environ}
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *chosen.values()]),
        "processor": _processor(),
    }


def _processor() -> str:
    """For example "x86_64 GenuineIntel 6 106": MKL and oneDNN choose their code by it."""
    words = [platform.machine()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        for key in ("vendor_id", "cpu family", "model"):
            words += re.findall(rf"^{key}\s*: (.+)$", text, re.MULTILINE)[:1]
    return " ".join(words)
