"""The configs that visionkit ships: where they are, and what a name on the command line means.

In a clone they are in `configs/`, in an installed package in `visionkit/configs/`. Importing this
module imports no torch.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from visionkit.errors import ConfigError, listed, unknown
from visionkit.runs.files import twin_clause

log = logging.getLogger("visionkit")

PACKAGE = Path(__file__).parents[1]
FOLDERS = ("", "torchvision")  # within the folder of configs
NEAREST = 3  # names in the answer to an unknown one
SUFFIXES = (".yaml", ".yml")
MOST_LISTED = 1000  # files that a missing one is compared with


def shipped_configs() -> dict[str, Path]:
    """The file of each shipped config by its name, sorted."""
    files = [file for folder in FOLDERS for file in (_root() / folder).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def find_config(name_or_path: str | os.PathLike[str], folder: Path = Path()) -> Path:
    """The file that a user means: a path, relative to `folder`, or the name of a shipped config.

    A path has a suffix or a separator; `detection_small` is a name, whatever lies in the folder.
    Raises ConfigError with the nearest names if there is neither.
    """
    text = os.fspath(name_or_path)
    path, shipped = folder / text, shipped_configs()
    if text in shipped:
        own = next((f"{path}{s}" for s in SUFFIXES if os.path.isfile(f"{path}{s}")), None)
        if own is not None and not os.path.samefile(own, shipped[text]):
            log.warning("%s: is the shipped config; for the file there write %s", text, own)
        return shipped[text]
    is_name = not path.suffix and os.path.basename(text) == text
    if os.path.lexists(path) or not (is_name or path.suffix in SUFFIXES):
        return path  # reading it says what is wrong
    if is_name:
        what = f"unknown config {text!r}, neither a file nor a shipped config"
        nearest = unknown(text, shipped, what, limit=NEAREST)
        raise ConfigError(f"{nearest}; `visionkit list configs` shows all")
    what = f"{text}: not found (relative to {folder.absolute()})"
    if path.stem in shipped:
        raise ConfigError(f"{what}; the shipped config of that name is {path.stem!r}")
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
