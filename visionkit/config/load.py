"""`load_config`: read, override, rewrite to the long form, check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from visionkit.config.components import arguments_of, refuse_plugins
from visionkit.config.config import Config
from visionkit.config.init_from import with_origin
from visionkit.config.overrides import apply_overrides
from visionkit.config.schema import ConfigProblems, paths_in
from visionkit.config.tasks import to_long_form
from visionkit.config.validate import check
from visionkit.config.yaml import read
from visionkit.errors import ConfigError

DEEPEST = 50  # levels of a dict


def missing_paths(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """A problem text for each path that a component declares as InputPath and that does not exist.

    The datasets of `splits` are checked, and, if `train` is among them, the files with weights that
    training starts from.
    """
    found = []
    if "train" in splits:
        pretrained = config.backbone.get("weights")
        found += [("weights", config.weights)] if config.weights else []
        if pretrained not in (None, "default") and config.init_from is None:
            found.append(("backbone.weights", pretrained))
    for key, section, spec in _components(config, splits):
        for name, argument in arguments_of(section, spec["type"]).items():
            found += [(f"{key}.{name}", p) for p in paths_in(spec.get(name), argument.annotation)]
    return [
        f"{key}: got {path!r}; not found (relative to {Path.cwd()})"
        for key, path in dict.fromkeys(found)
        if not Path(path).exists()
    ]


def _components(
    config: Config, splits: tuple[str, ...]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Dotted key, section and spec of each; a single head or source goes by its short key."""
    yield "backbone", "backbones", config.backbone
    if config.neck is not None:
        yield "neck", "necks", config.neck
    for name, spec in config.heads.items():
        yield "head" if len(config.heads) == 1 else f"heads.{name}", "heads", spec
    for name, source in config.data.items():
        prefix = "data" if len(config.data) == 1 else f"data.{name}"
        for split in splits:
            if getattr(source, split) is not None:
                yield f"{prefix}.{split}", "datasets", getattr(source, split)


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    origin: str | Path | None = None,
    allow_plugins: bool = False,
) -> Config:
    """The checked config of a YAML file, or of a dict of the same form.

    `overrides` are strings such as `train.epochs=2`, or a dict such as {"train.epochs": 2}. Raises
    one ConfigError with a line for each problem. Whether datasets and weights exist on the disk is
    not checked: see `missing_paths`.

    `origin` is the file of a config that the user did not name, such as a checkpoint. Such a config
    may name custom classes only with `allow_plugins`; so may the run that `init_from` names. See
    `components.refuse_plugins`.
    """
    if isinstance(source, Mapping):
        config, name, problems = _copy(source), "run", ConfigProblems(str(origin or "config"), {})
    elif isinstance(source, (str, os.PathLike)):
        config, lines = read(os.fspath(source))
        name, problems = Path(source).stem, ConfigProblems(os.fspath(source), lines)
    else:
        raise ConfigError(f"expected a config file or a dict, got a {type(source).__name__}")
    if origin is not None:
        refuse_plugins(config, origin, allowed=allow_plugins)
    given = [overrides] if isinstance(overrides, str) else _copy(overrides)
    apply_overrides(config, given, problems)
    long = with_origin(to_long_form(config, problems), problems, allow_plugins=allow_plugins)
    return check(long, name, problems)


def _copy(value: Any, depth: int = 0) -> Any:
    """A copy of the containers, so that the caller's are not changed."""
    if depth > DEEPEST:
        raise ConfigError(f"config: is nested more than {DEEPEST} levels deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"config: a key must be a string, got {key!r}")
        return {key: _copy(item, depth + 1) for key, item in value.items()}
    return [_copy(v, depth + 1) for v in value] if isinstance(value, (list, tuple)) else value
