"""From YAML to a checked config; see `load_config`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visionkit.config.config import Config, SourceConfig, TrainConfig

if TYPE_CHECKING:
    from visionkit.config.load import load_config, missing_paths

__all__ = ["Config", "SourceConfig", "TrainConfig", "load_config", "missing_paths"]


def __getattr__(name: str) -> Any:
    """Import on first use: the check of a config needs torch, the list of the shipped ones not."""
    if name in ("load_config", "missing_paths"):
        return getattr(import_module("visionkit.config.load"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
