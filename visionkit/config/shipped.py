"""The configs that visionkit ships: where they are, and what a name on the command line means.

In a clone they are in `configs/`, in an installed package in `visionkit/configs/`. Importing this
module imports no torch.
"""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionkit.config.yaml import read
from visionkit.errors import ConfigError, listed, unknown
from visionkit.runs.files import twin_clause

log = logging.getLogger("visionkit")

PACKAGE = Path(__file__).parents[1]
FOLDERS = {  # within the folder of configs, and what is in them
    "": "Recipes",
    "torchvision": "Models of torchvision, with the values that fit its published weights",
    "transformers": "Models of transformers, with the values that fit their published weights",
}
NEAREST = 3  # names in the answer to an unknown one
SUFFIXES = (".yaml", ".yml")
MOST_LISTED = 1000  # files that a missing one is compared with


def shipped_configs() -> dict[str, Path]:
    """The file of each shipped config by its name, sorted."""
    files = [file for folder in FOLDERS for file in (_root() / folder).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


@dataclass(frozen=True)
class ShippedConfig:
    """What `visionkit list configs` shows of one config."""

    name: str
    path: Path
    task: str  # `joint`: several heads
    heads: tuple[str, ...]  # their types
    backbone: str  # its `name`, or else its type
    summary: str  # what it is good for: the first comment of the file

    @property
    def group(self) -> str:
        """The folder: empty for the recipes of visionkit."""
        return self.path.parent.name if self.path.parent.name in FOLDERS else ""


def list_configs() -> list[ShippedConfig]:
    """All shipped configs: visionkit's own by name, then those of published models."""
    found = [_describe(name, path) for name, path in shipped_configs().items()]
    return sorted(found, key=lambda config: ([*FOLDERS].index(config.group), config.name))


def describe_configs() -> str:
    """The text of `visionkit list configs`: of each config the name, task, backbone and heads, and
    what it is good for."""
    found, shown = list_configs(), []
    for folder, title in FOLDERS.items():
        group = [config for config in found if config.group == folder]
        rows = [(c.name, c.task, c.backbone, ", ".join(c.heads)) for c in group]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        shown.append(f"{title}:")
        for config, row in zip(group, rows, strict=True):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            shown += ["  ".join(cells).rstrip(), f"    {config.summary}"]
        shown.append("")
    return "\n".join(
        [*shown, "Use: visionkit train NAME key=value ..., or a copy: visionkit init NAME"]
    )


def _describe(name: str, path: Path) -> ShippedConfig:
    config: dict[str, Any] = {}
    file: Path | None = path
    while file is not None:  # what the config says, or else its base
        values, _ = read(file)
        base = values.pop("base", None)
        config, file = values | config, base and find_config(base, file)
    heads, backbone = config.get("heads") or {"": config["head"]}, config["backbone"]
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return ShippedConfig(
        name=name,
        path=path,
        task=config.get("task", "joint"),
        heads=tuple(head["type"] for head in heads.values()),
        backbone=backbone.get("name", backbone["type"]),
        summary=first.removeprefix("#").strip(),
    )


def find_config(name_or_path: str | os.PathLike[str], named_by: Path | None = None) -> Path:
    """The file that a user means: a path, or the name of a shipped config. In a config, `named_by`,
    a path is relative to its folder; if that is a link, to the folder of the file it links to.

    A path has a suffix or a separator; `detection_small` is a name, whatever lies in the folder.
    Raises ConfigError with the nearest names if there is neither.
    """
    text, shipped, folder = os.fspath(name_or_path), shipped_configs(), Path()
    if named_by is not None:
        folder = (named_by.resolve() if named_by.is_symlink() else named_by).parent
    path = folder / text
    if text in shipped:
        own = next((f"{path}{s}" for s in SUFFIXES if os.path.isfile(f"{path}{s}")), None)
        known = [shipped[text], *([named_by] if named_by else [])]
        if own is not None and not any(os.path.samefile(own, file) for file in known):
            log.warning("%s: is the shipped config; for the file there write %s", text, own)
        return shipped[text]
    if os.path.lexists(path):
        return path  # reading it says what is wrong with it
    if not path.suffix and os.path.basename(text) == text:
        what = f"unknown config {text!r}, neither a file nor a shipped config"
        nearest = unknown(text, shipped, what, limit=NEAREST)
        raise ConfigError(f"{nearest}; `visionkit list configs` shows all")
    what = f"{text}: not found (relative to {folder.absolute()})"
    if path.stem in shipped:
        raise ConfigError(f"{what}; the shipped config of that name is {path.stem!r}")
    if path.suffix not in SUFFIXES:
        return path
    near = difflib.get_close_matches(path.name, [*_configs_in(path.parent), *shipped], n=NEAREST)
    nearest = f"; nearest: {listed(near)}" if near else ""
    raise ConfigError(f"{what}{twin_clause(path)}{nearest}")


def _configs_in(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(SUFFIXES)][:MOST_LISTED]
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return []


def _root() -> Path:
    """The folder of an installed package, or of the clone that this file is in."""
    installed, clone = PACKAGE / "configs", PACKAGE.parent
    is_clone = not installed.is_dir() and (clone / "pyproject.toml").is_file()
    return clone / "configs" if is_clone else installed
