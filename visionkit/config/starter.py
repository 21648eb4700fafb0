"""`visionkit init`: the text of a config to edit, made from a shipped one.

Its comments are those of `visionkit.config.config` and the first sentences of the datasets.
"""

from __future__ import annotations

import inspect
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

from visionkit.config.base import layers, read_layer
from visionkit.config.components import arguments_of, components, first_sentence
from visionkit.config.config import VERSION, Config, SourceConfig, TrainConfig
from visionkit.config.overrides import merge
from visionkit.config.schema import REQUIRED, ConfigProblems
from visionkit.config.shipped import NEAREST, SUFFIXES, shipped_configs
from visionkit.config.tasks import TASKS
from visionkit.config.yaml import dump
from visionkit.errors import ConfigError, printable, unknown
from visionkit.runs.files import write_new

WIDTH = 100  # of a line with a comment
COMPONENTS = {"backbone": "backbones", "neck": "necks", "head": "heads", "transforms": "transforms"}


def help_texts(settings: type) -> dict[str, str]:
    """The comment of each field of a dataclass: behind it, or on the line above."""
    source = inspect.getsource(settings)
    above = re.findall(r"^    # (.+)\n    (\w+): ", source, re.MULTILINE)
    behind = re.findall(r"^    (\w+): .*?  # (.+)$", source, re.MULTILINE)
    return {name: text[0].lower() + text[1:] for text, name in above} | dict(behind)


def init(name: str, file: str | Path | None = None) -> Path:
    """Write a copy of a shipped config, with comments, to edit; returns the file, by default
    NAME.yaml. Raises ConfigError for an unknown name, and for a file that exists."""
    path = Path(f"{name}.yaml" if file is None else file)
    if name not in (shipped := shipped_configs()):
        what = f"init: {name!r} is not a shipped config"
        nearest = unknown(Path(name).stem, shipped, what, limit=NEAREST)
        raise ConfigError(f"{nearest}; `visionkit list configs` shows all")
    if path.is_dir():
        raise ConfigError(f"init: {path} is a folder; name a file: {path / name}.yaml")
    if path.suffix not in SUFFIXES:
        stem = path.stem if re.fullmatch(r"\.[A-Za-z]+", path.suffix) else path.name
        raise ConfigError(
            f"init: got {path}; a config is a .yaml file: {path.with_name(f'{stem}.yaml')}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"init: the folder of {path} does not exist")
    try:
        write_new(path, starter_text(name, str(path)))
    except FileExistsError:
        raise ConfigError(
            f"init: {path} already exists and stays as it is; name another file: "
            f"visionkit init {name} FILE.yaml"
        ) from None
    return path


def starter_text(name: str, file: str) -> str:
    """A copy of a shipped config for `file`, without a base: what a newcomer edits is explained."""
    path = shipped_configs()[name]
    config = merge(layers(read_layer(path)), ConfigProblems(name))
    written = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(takewhile(lambda line: line.startswith("#"), written))
    target = printable(shlex.quote(file))
    header = re.sub(rf"(visionkit \w+ ){name}(?!\S)", lambda match: match[1] + target, header)
    first, _, rest = header.partition("\n")
    copied = f"# A copy of visionkit's config {name}, to edit."
    lines = [first, "#", copied, *rest.split("\n"), f"version: {VERSION}"]
    texts = help_texts(Config)
    for key, value in config.items():
        if key == "data" and isinstance(value, dict):
            lines += ["data:", *_indented(_data(value, config.get("task")))]
        elif key == "train" and isinstance(value, dict):
            lines += ["train:", *_indented(_entries(value, help_texts(TrainConfig)))]
        elif key not in ("version", "output"):
            lines += _entry(key, value, _listed(key) or texts.get(key))
    lines += _entry("output", config.get("output"), texts["output"])
    return "\n".join(lines) + "\n"


def _data(data: dict[str, Any], task: Any) -> list[str]:
    """The lines of one source, or of several."""
    workers = help_texts(Config)["workers"]
    if task is None:
        lines: list[str] = []
        for name, source in data.items():
            is_source = isinstance(source, dict)
            lines += _named(name, source) if is_source else _entry(name, source, workers)
        return lines
    own = TASKS[task].dataset
    needed = {
        argument: "FILE.json" if argument == "annotations" else "DIR"
        for argument, (_, default) in arguments_of("datasets", own).items()
        if default is REQUIRED
    }
    instead = [f"#   {split}: {dump(needed).strip()}" for split in ("train", "val")]
    about = f"# {own}: {first_sentence(components('datasets')[own])}"
    return ["# Generated images. Put your data instead:", *instead, about, *_source(data)]


def _named(name: str, source: dict[str, Any]) -> list[str]:
    return [f"{name}:", *_indented(_source(source))]


def _source(source: dict[str, Any]) -> list[str]:
    texts = help_texts(SourceConfig) | {"workers": help_texts(Config)["workers"]}
    return _entries(source, {key: _listed(key) or texts.get(key, "") for key in source})


def _entries(values: dict[str, Any], texts: dict[str, str]) -> list[str]:
    return [line for key, value in values.items() for line in _entry(key, value, texts.get(key))]


def _entry(key: str, value: Any, comment: str | None = None) -> list[str]:
    """The lines of a key; the comment is behind it, or above if the line is long."""
    line = dump({key: value}, one_line=True).strip()[1:-1]  # without the braces of the mapping
    lines = [line] if len(line) < WIDTH else dump({key: value}).rstrip("\n").split("\n")
    if not comment:
        return lines
    fits = len(lines) == 1 and len(line) + len(comment) + 4 < WIDTH
    return [f"{line}  # {comment}"] if fits else [f"# {comment}", *lines]


def _listed(key: str) -> str:
    section = COMPONENTS.get(key)
    return f"see `visionkit list {section}`" if section else ""


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
