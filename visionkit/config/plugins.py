"""Whose word imports a class: the user's own always, that of a file from elsewhere if he allows it.

A `type:` outside visionkit is found by importing its module, which runs it. A config that the user
names may do that. The config inside a checkpoint, or in a run directory that he resumes, may come
from somebody else, and could have any module run that Python finds, a file in the current directory
or `subprocess.Popen` among them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visionkit.components import shipped
from visionkit.config.yaml import Key
from visionkit.errors import ConfigError

SETTING = "VISIONKIT_ALLOW_PLUGINS"  # of the environment; "1" allows
SHOWN = 10  # names in a message


def refuse_plugins(config: Mapping[str, Any], origin: str | Path, *, allowed: bool = False) -> None:
    """ConfigError if a config, as it is written in the file `origin`, names a class that visionkit
    does not have, unless that is `allowed` here or in the environment. Nothing is imported."""
    if allowed or os.environ.get(SETTING) == "1":
        return
    strangers = {
        f"{'.'.join(key)}.type: {name}": name.rpartition(".")[0]
        for section, key, name in _types(config, ())
        if not shipped(section, name)
    }
    if not strangers:
        return
    named = list(strangers)[:SHOWN] + ["..."] * (len(strangers) > SHOWN)
    modules = ", ".join(list(dict.fromkeys(strangers.values()))[:SHOWN])
    raise ConfigError(
        f"{origin}: its config names what is not part of visionkit: {', '.join(named)}; to use it, "
        f"Python would import {modules}, which runs that code on this machine. If you trust the "
        f"file and the code, add --allow-plugins, set {SETTING}=1, or from Python give "
        f"allow_plugins=True"
    )


def _types(value: Any, key: Key) -> Iterator[tuple[str, Key, str]]:
    """Section, key and import path of every place of a config, in the short form or the long, where
    `load_config` looks for a class."""
    section = _section(key)
    if isinstance(value, Mapping):
        name = value.get("type")
        if section and isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name):
            yield section, key, name
        for part, item in value.items():
            yield from _types(item, (*key, str(part)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _types(item, (*key, str(index)))


def _section(key: Key) -> str | None:
    match key:
        case ("backbone",) | ("neck",) | ("head",):
            return f"{key[0]}s"
        case ("heads", _):
            return "heads"
        case ("data", *_, "train" | "val"):
            return "datasets"
        case ("data", *_, "transforms", _):
            return "transforms"
    return None
