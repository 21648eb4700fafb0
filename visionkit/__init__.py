"""visionkit: shared backbones, pluggable heads, one YAML file.

import visionkit
if __name__ == "__main__":  # loader workers import the script too
    run = visionkit.train("detection", {"train.epochs": 2})
    print(run.metrics)
    for found in run.load().predict("a.jpg").above(0.5):
        print(found.name, found.score, found.box)
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
    from visionkit.config.shipped import ShippedConfig, list_configs
    from visionkit.config.starter import init
    from visionkit.data.datasets.shapes import generate_shapes
    from visionkit.data.formats.convert import convert
    from visionkit.data.sample import Sample
    from visionkit.data.tools.merge import merge_data
    from visionkit.data.tools.sample import sample_data
    from visionkit.data.tools.split import kfold_data, split_data
    from visionkit.data.tools.stats import data_stats
    from visionkit.engine.benchmark import benchmark
    from visionkit.engine.check import check
    from visionkit.engine.check_report import CheckReport
    from visionkit.engine.evaluate import evaluate
    from visionkit.engine.export.export import export
    from visionkit.engine.folds import train_folds
    from visionkit.engine.predict import load, predict
    from visionkit.engine.prediction import PredictedObject, Prediction
    from visionkit.engine.reporting import report
    from visionkit.engine.results import predict_files
    from visionkit.engine.search import SearchResult, search, search_files
    from visionkit.engine.show import show_data
    from visionkit.engine.torch_model import Predictor
    from visionkit.engine.train import TrainedRun, train
    from visionkit.metrics.coco.evaluator import CocoEvaluator, evaluate_files
    from visionkit.models.head import Head
    from visionkit.models.published import fetch_weights, list_weights
    from visionkit.types import (
        Backbone,
        Batch,
        Classes,
        Dataset,
        Evaluator,
        Level,
        Loss,
        Target,
        Transform,
    )

_HOME = {
    **dict.fromkeys(("Config", "load_config"), "config"),
    **dict.fromkeys(("ShippedConfig", "list_configs"), "config.shipped"),
    **dict.fromkeys(("load", "predict"), "engine.predict"),
    **dict.fromkeys(("PredictedObject", "Prediction"), "engine.prediction"),
    **dict.fromkeys(("SearchResult", "search", "search_files"), "engine.search"),
    **dict.fromkeys(("TrainedRun", "train"), "engine.train"),
    **dict.fromkeys(("kfold_data", "split_data"), "data.tools.split"),
    **dict.fromkeys(("CocoEvaluator", "evaluate_files"), "metrics.coco.evaluator"),
    **dict.fromkeys(("fetch_weights", "list_weights"), "models.published"),
    "CheckReport": "engine.check_report",
    "Head": "models.head",
    "Predictor": "engine.torch_model",
    "Sample": "data.sample",
    "benchmark": "engine.benchmark",
    "check": "engine.check",
    "convert": "data.formats.convert",
    "data_stats": "data.tools.stats",
    "evaluate": "engine.evaluate",
    "export": "engine.export.export",
    "generate_shapes": "data.datasets.shapes",
    "init": "config.starter",
    "merge_data": "data.tools.merge",
    "predict_files": "engine.results",
    "report": "engine.reporting",
    "sample_data": "data.tools.sample",
    "show_data": "engine.show",
    "train_folds": "engine.folds",
}
__all__ = [
    "Backbone",
    "Batch",
    "CheckReport",
    "CheckpointError",
    "Classes",
    "CocoEvaluator",
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
    "SearchResult",
    "ShippedConfig",
    "Target",
    "TrainedRun",
    "Transform",
    "VisionkitError",
    "benchmark",
    "check",
    "convert",
    "data_stats",
    "evaluate",
    "evaluate_files",
    "export",
    "fetch_weights",
    "generate_shapes",
    "init",
    "kfold_data",
    "list_configs",
    "list_weights",
    "load",
    "load_config",
    "merge_data",
    "predict",
    "predict_files",
    "report",
    "sample_data",
    "search",
    "search_files",
    "show_data",
    "split_data",
    "train",
    "train_folds",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `visionkit --help` does not wait for torch."""
    if name in __all__:
        value = getattr(import_module(f"visionkit.{_HOME.get(name, 'types')}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'visionkit' has no attribute {name!r}")
