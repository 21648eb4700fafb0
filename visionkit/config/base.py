"""`base: other.yaml`: read a config and all those that it is based on, and check their version.

How a config changes its base is in `overrides.merge`. Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.config.config import VERSION
from visionkit.config.shipped import find_config
from visionkit.config.yaml import Key, read
from visionkit.errors import ConfigError, shorten, upgrade_hint


class Layer(NamedTuple):
    """One config as it is written: the values, and their lines in its file. A dict has no file."""

    source: str
    values: dict[str, Any]
    lines: dict[Key, int]
    file: Path | None = None

    def place(self, key: Key) -> str:
        """Where a value is from, for messages."""
        return f"{self.source}:{self.lines[key]}" if key in self.lines else self.source


def read_layer(file: Path) -> Layer:
    """The config in that file. Raises ConfigError with file and line of each fault."""
    return Layer(str(file), *read(file), file)


def layers(top: Layer) -> list[Layer]:
    """All that a config is based on, the innermost first, then itself; none has a `base` anymore.

    A base is relative to the folder of the file that names it, or the name of a shipped config;
    of a link to a file that folder is where the file is.
    Raises ConfigError for one that is missing or circular, or that has a newer version.
    """
    chain = [top]
    while True:
        layer = chain[-1]
        check_version(layer.values, layer.place(("version",)))
        base = layer.values.pop("base", None)
        if base is None:
            return chain[::-1]
        chain.append(_read_base(base, chain))


def refuse_base(layer: Layer, origin: str | Path) -> None:
    """ConfigError if a config that the user did not name has a base: it would open any file."""
    if layer.values.get("base") is not None:
        raise ConfigError(
            f"{origin}: its config names a base; only a config that you name may do so, and those "
            "that visionkit writes are complete"
        )


def check_version(config: dict[str, Any], place: str) -> None:
    """ConfigError if the format of a config is newer than this visionkit."""
    version = config.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise ConfigError(
            f"{place}: version: got {version}, this visionkit reads version {VERSION}; upgrade it: "
            f"{upgrade_hint()}"
        )


def _read_base(base: Any, chain: Sequence[Layer]) -> Layer:
    layer = chain[-1]
    place = f"{layer.place(('base',))}: base"
    if not isinstance(base, (str, os.PathLike)):
        raise ConfigError(
            f"{place}: got {shorten(repr(base))}; expected one file or the name of a shipped "
            "config, which may have a base itself"
        )
    try:
        file = find_config(base, layer.file)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    known = [one.file for one in chain if one.file is not None]
    if any(os.path.realpath(file) == os.path.realpath(one) for one in known):
        circle = " -> ".join(map(str, [*known, file]))
        raise ConfigError(f"{place}: is circular: {circle}; remove one of them")
    try:
        return read_layer(file)
    except ConfigError as error:
        raise ConfigError(*error.lines, f"{place}: names that file") from error
