"""visionkit: shared backbones, pluggable heads, one YAML file.

import visionkit
if __name__ == "__main__":  # loader workers import the script too
    visionkit.train("configs/detection.yaml", {"train.epochs": 2})
    model = visionkit.load("runs/detection-001")
    model.predict("a.jpg").boxes
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visionkit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    Preempted,
    ResourceError,
    VisionkitError,
)

if TYPE_CHECKING:  # for type checkers; at runtime `__getattr__` imports what is used
    from visionkit.config import Config, load_config
    from visionkit.data.sample import Sample
    from visionkit.engine.check import check
    from visionkit.engine.evaluate import evaluate
    from visionkit.engine.predict import Predictor, load, predict
    from visionkit.engine.prediction import PredictedObject, Prediction
    from visionkit.engine.results import predict_files
    from visionkit.engine.train import train
    from visionkit.types import (
        Backbone,
        Batch,
        Classes,
        Dataset,
        Evaluator,
        Head,
        Level,
        Loss,
        Target,
        Transform,
    )

_HOME = {
    **dict.fromkeys(("Config", "load_config"), "config"),
    **dict.fromkeys(("Predictor", "load", "predict"), "engine.predict"),
    **dict.fromkeys(("PredictedObject", "Prediction"), "engine.prediction"),
    "predict_files": "engine.results",
    "Sample": "data.sample",
    "check": "engine.check",
    "evaluate": "engine.evaluate",
    "train": "engine.train",
}
__all__ = [
    "Backbone",
    "Batch",
    "CheckpointError",
    "Classes",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "DivergedError",
    "Evaluator",
    "Head",
    "Level",
    "Loss",
    "PredictedObject",
    "Prediction",
    "Predictor",
    "Preempted",
    "ResourceError",
    "Sample",
    "Target",
    "Transform",
    "VisionkitError",
    "check",
    "evaluate",
    "load",
    "load_config",
    "predict",
    "predict_files",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `visionkit --help` does not wait for torch."""
    if name in __all__:
        value = getattr(import_module(f"visionkit.{_HOME.get(name, 'types')}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'visionkit' has no attribute {name!r}")
