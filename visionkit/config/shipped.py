"""The configs that visionkit ships: where they are, and what a name on the command line means.

In a clone they are in `configs/`, in an installed package in `visionkit/configs/`. Importing this
module imports no torch.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from visionkit.errors import ConfigError, unknown

log = logging.getLogger("visionkit")

PACKAGE = Path(__file__).parents[1]
FOLDERS = ("", "torchvision")  # within the folder of configs
NEAREST = 3  # names in the answer to an unknown one
SUFFIXES = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """The file of each shipped config by its name, sorted."""
    files = [file for folder in FOLDERS for file in (_root() / folder).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The file that a user means: a path, or the name of a shipped config.

    A path has a suffix or a separator; `detection_small` is a name, whatever lies in the current
    directory. Raises ConfigError with the nearest names for one that is neither.
    """
    text = os.fspath(name_or_path)
    path, shipped = Path(text), shipped_configs()
    if os.path.basename(text) == text and text in shipped:
        if own := next((f"{text}{s}" for s in SUFFIXES if os.path.isfile(f"{text}{s}")), None):
            log.warning("%s: is the shipped config; for the file here write %s", text, own)
        return shipped[text]
    if os.path.exists(text):
        return path
    if path.suffix in SUFFIXES and path.stem in shipped:
        raise ConfigError(
            f"{text}: not found (relative to {Path.cwd()}); visionkit ships a config of that name: "
            f"write {path.stem} instead of the path"
        )
    if path.suffix or os.path.basename(text) != text:
        return path  # reading it says what is wrong
    what = f"unknown config {text!r}, neither a file nor a shipped config"
    raise ConfigError(
        f"{unknown(text, shipped, what, limit=NEAREST)}; `visionkit list configs` shows all"
    )


def _root() -> Path:
    """The folder of an installed package, or of the clone that this file is in."""
    installed, clone = PACKAGE / "configs", PACKAGE.parent
    is_clone = not installed.is_dir() and (clone / "pyproject.toml").is_file()
    return clone / "configs" if is_clone else installed
