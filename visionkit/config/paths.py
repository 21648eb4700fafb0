"""Which input files and folders of a config do not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionkit.components import INJECTED, resolve
from visionkit.config.resolved import Config
from visionkit.config.schema import knobs, paths_in


def missing_paths(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """A problem text for each path that a component declares as InputPath and that is not there.

    The data sets of `splits` are looked at, and, if `train` is among them, the files with weights
    that training begins from.
    """
    found = []
    trunk = config.backbone.get("weights")
    if "train" in splits:
        found += [("weights", config.weights)] if config.weights else []
        read = trunk not in (None, "default") and config.init_from is None
        found += [("backbone.weights", trunk)] if read else []
    for key, section, spec in _components(config, splits):
        for name, knob in knobs(resolve(section, spec["type"]), INJECTED.get(section, ())).items():
            found += [(f"{key}.{name}", p) for p in paths_in(spec.get(name), knob.annotation)]
    return [
        f"{key}: got {path!r}; there is no such file or folder (seen from {Path.cwd()})"
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
                yield f"{prefix}.{split}", "data", getattr(source, split)
