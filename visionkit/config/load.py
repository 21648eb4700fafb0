"""`load_config`: read, override, rewrite to the long form, check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visionkit.config.check import check
from visionkit.config.forms import to_long_form
from visionkit.config.overrides import apply_overrides
from visionkit.config.problems import Problems
from visionkit.config.resolved import Config
from visionkit.config.yaml import read
from visionkit.errors import ConfigError


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> Config:
    """The checked config of a YAML file, or of a dict of the same form.

    `overrides` are words such as `train.epochs=2`, or a dict such as {"train.epochs": 2}. Raises
    one ConfigError with a line for each problem. Data sets and weights are not looked for on the
    disk: see `missing_paths`.
    """
    if isinstance(source, Mapping):
        config, name, problems = _copy(source), "run", Problems("config", {})
    elif isinstance(source, (str, os.PathLike)):
        config, lines = read(source)
        name, problems = Path(source).stem, Problems(os.fspath(source), lines)
    else:
        raise ConfigError(f"a config is a file or a dict, not a {type(source).__name__}")
    given = [overrides] if isinstance(overrides, str) else _copy(overrides)
    apply_overrides(config, given, problems)
    return check(to_long_form(config, problems), name, problems)


def _copy(value: Any) -> Any:
    """A copy of the containers, so that the caller's are not changed."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"config: a key must be text, got {key!r}")
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value
