"""Overrides, `train.lr=1e-3` on the command line or {"train.lr": 1e-3} from Python.

They are applied to a config as it is written, in the short form or the long. Another `type` starts
a section again, and arguments of another dataset (`data.train.images=...` on a config with
generated images) change the type of the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from visionkit.config.components import arguments_of
from visionkit.config.config import SOURCE_KEYS
from visionkit.config.schema import REQUIRED, ConfigProblems
from visionkit.config.tasks import TASKS
from visionkit.config.yaml import Key, parse
from visionkit.errors import ConfigError, shorten

log = logging.getLogger("visionkit")

OWN_DATA = ("Coco", "ImageFolder", "Idx", "LabelMaps")  # tried after the task's own
INSTEAD: dict[Key, str] = {("train", "steps"): "epochs", ("train", "epochs"): "steps"}


class Override(NamedTuple):
    key: Key
    value: Any
    text: str  # as the user wrote it


def apply_overrides(
    config: dict[str, Any], given: Mapping[str, Any] | Iterable[str], problems: ConfigProblems
) -> None:
    """Change `config` in place; `problems` gets the places of the values."""
    overrides = [o._replace(key=_full_key(o.key, config)) for o in _parse(given, problems)]
    keys = {override.key for override in overrides}
    task = next((o.value for o in reversed(overrides) if o.key == ("task",)), config.get("task"))
    for section in dict.fromkeys(override.key[:-1] for override in overrides):
        inside = {o.key[-1]: o for o in overrides if o.key[:-1] == section}
        if fresh := _fresh_start(config, section, inside, task):
            _set(config, section, fresh)
            problems.overridden(section, next(iter(inside.values())).text)
    for override in overrides:
        other, train = INSTEAD.get(override.key), config.get("train")
        replaces = other and ("train", other) not in keys and override.value is not None
        if replaces and isinstance(train, dict):
            train.pop(other, None)
        try:
            _set(config, override.key, override.value)
        except ValueError as error:
            problems.refused(override.text, str(error))
        else:
            problems.overridden(override.key, override.text)


def _parse(given: Mapping[str, Any] | Iterable[str], problems: ConfigProblems) -> list[Override]:
    overrides = []
    for item in given.items() if isinstance(given, Mapping) else given:
        text = item if isinstance(item, str) else f"{item[0]}={item[1]!r}"
        try:
            overrides.append(_override(item, shorten(text)))
        except ValueError as error:
            problems.refused(shorten(text), str(error))
    return overrides


def _override(item: str | tuple[str, Any], text: str) -> Override:
    if isinstance(item, str):
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError("expected key=value")
        value = parse(value)
    else:
        key, value = item
    parts = tuple(str(key).strip().split("."))
    if not all(parts):
        raise ValueError(f"{key!r} is not a key; expected one like train.lr")
    return Override(parts, value, text)


def _full_key(key: Key, config: dict[str, Any]) -> Key:
    """In the long form, `head.x` and `data.train.x` mean the only head and the only source."""
    heads, data = config.get("heads"), config.get("data")
    if "task" in config:
        return key
    if key[0] == "head" and isinstance(heads, dict) and len(heads) == 1:
        return ("heads", *heads, *key[1:])
    if key[0] == "data" and key[1:] and key[1] in SOURCE_KEYS and isinstance(data, dict):
        sources = [name for name in data if name != "workers"]
        if len(sources) == 1:
            return ("data", *sources, *key[1:])
    return key


def _fresh_start(
    config: dict[str, Any], section: Key, inside: Mapping[str, Override], task: Any
) -> dict[str, Any] | None:
    """What a component's section starts with before the overrides; None: with what it has."""
    kind = _component_kind(section, "task" in config)
    current = _get(config, section) or {}
    if kind is None or not isinstance(current, dict):
        return None
    defaults = _default_types(kind, task)
    current_type = current.get("type", defaults[0] if defaults else None)
    if "type" in inside:
        kept = {"weight": current["weight"]} if "weight" in current else {}
        new_type = inside["type"].value
        return {**kept, "type": new_type} if new_type != current_type else None
    if kind != "datasets" or _accepts(kind, current_type, inside):
        return None
    fitting = [own for own in (*defaults, *OWN_DATA) if _accepts(kind, own, inside)]
    complete = [own for own in fitting if not _required(kind, own) - set(inside)]
    usual = [own for own in defaults if own in fitting]  # even if it misses something
    for own in [*usual, *complete, *fitting][:1]:
        arguments = " and ".join(f"{name}=" for name in inside)
        log.info("%s: dataset type set to %s, inferred from %s", ".".join(section), own, arguments)
        return {"type": own}
    return None


def _component_kind(section: Key, short: bool) -> str | None:
    if section in (("backbone",), ("neck",), ("head",)):
        return f"{section[0]}s"
    if len(section) == 2 and section[0] == "heads":
        return "heads"
    is_split = section[:1] == ("data",) and section[-1] in ("train", "val")
    return "datasets" if is_split and len(section) == (2 if short else 3) else None


def _default_types(kind: str, task: Any) -> tuple[str, ...]:
    if not isinstance(task, str) or task not in TASKS:
        return ()
    entry = TASKS[task]
    types = {"backbones": entry.backbone, "necks": entry.neck, "heads": entry.head}
    return tuple(filter(None, [types.get(kind, entry.dataset)]))


def _accepts(kind: str, type_name: str | None, names: Iterable[str]) -> bool:
    try:
        return set(names) <= set(arguments_of(kind, type_name))
    except ConfigError:
        return False


def _required(kind: str, type_name: str) -> set[str]:
    accepted = arguments_of(kind, type_name).items()
    return {name for name, argument in accepted if argument.default is REQUIRED}


def _get(config: Any, key: Key) -> Any:
    for part in key:
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _set(config: dict[str, Any], key: Key, value: Any) -> None:
    """Set a value and create missing sections. ValueError if a section is not a mapping."""
    for depth, part in enumerate(key[:-1], start=1):
        if config.get(part) is None:
            config[part] = {}
        config = config[part]
        if not isinstance(config, dict):
            raise ValueError(f"{'.'.join(key[:depth])} is not a mapping; override it as a whole")
    config[key[-1]] = value
