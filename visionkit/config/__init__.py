"""From YAML to a checked config; see `load_config`."""

from visionkit.config.config import Config, SourceConfig, TrainConfig
from visionkit.config.load import load_config, missing_paths

__all__ = ["Config", "SourceConfig", "TrainConfig", "load_config", "missing_paths"]
