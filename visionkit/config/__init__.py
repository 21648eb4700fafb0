"""From YAML to a checked config; see `load_config`."""

from visionkit.config.load import load_config
from visionkit.config.paths import missing_paths
from visionkit.config.resolved import Config, SourceConfig
from visionkit.config.training import TrainConfig

__all__ = ["Config", "SourceConfig", "TrainConfig", "load_config", "missing_paths"]
