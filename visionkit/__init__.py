"""visionkit: shared backbones, pluggable heads, one YAML file.

import visionkit
visionkit.train("configs/detection.yaml", {"train.epochs": 2})
model = visionkit.load("runs/detection-001")
model.predict("a.jpg").boxes
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "train": "engine.train",
    "evaluate": "engine.evaluate",
    "load": "engine.predict",
    "Prediction": "engine.predict",
    "load_config": "config",
    "VisionkitError": "errors",
    "Head": "types",
    "Batch": "types",
    "Target": "types",
    "Level": "types",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: `visionkit --help` should not wait for torch."""
    if name in _HOME:
        value = getattr(import_module(f"visionkit.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'visionkit' has no attribute {name!r}")
