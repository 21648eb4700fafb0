"""Change a config as it is written, in the short form or the long: by overrides, such as
`train.lr=1e-3` on the command line or {"train.lr": 1e-3} from Python, or by a config that has it as
its base.

Both follow the same rules. Another `type` starts a section again, another `task` the head, and
arguments of another dataset (`data.train.images=...` on a config with generated images) change the
type of the dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from visionkit.config.base import Layer
from visionkit.config.components import arguments_of
from visionkit.config.config import SOURCE_KEYS
from visionkit.config.renamed import usual_key
from visionkit.config.schema import REQUIRED, ConfigProblems
from visionkit.config.tasks import TASKS
from visionkit.config.yaml import Key, parse
from visionkit.errors import ArgumentError, ConfigError, shorten

log = logging.getLogger("visionkit")

DEEPEST = 50  # levels of a dict
OWN_DATA = ("Coco", "ImageFolder", "Idx", "LabelMaps")  # tried after the task's own
INSTEAD: dict[Key, str] = {("train", "steps"): "epochs", ("train", "epochs"): "steps"}


class Override(NamedTuple):
    """A value for a key; `place` says where it is from, `raw` is what was typed, and `merged` says
    that an empty mapping changes nothing in one that is there."""

    key: Key
    value: Any
    place: str
    raw: str | None = None
    merged: bool = False


def merge(layers: Sequence[Layer], problems: ConfigProblems) -> dict[str, Any]:
    """The config of the first layer as each further one changes it: mappings are merged, other
    values replaced. `problems` gets file and line of each value."""
    config = layers[0].values
    if isinstance(config.get("data"), str):  # `data: DIR`
        config["data"] = {"from": config["data"]}
    problems.located(layers[0].source, layers[0].lines)
    for layer in layers[1:]:
        lines = {_full_key(key, config): line for key, line in layer.lines.items()}
        _apply(config, [*_leaves(config, layer, layer.values, ())], problems)
        problems.located(layer.source, lines)
    return config


def apply_overrides(config: dict[str, Any], given: Any, problems: ConfigProblems) -> None:
    """Change `config` in place. ArgumentError if the overrides are of another type."""
    _apply(config, _parse(_given(given), problems), problems)


def copied(value: Any, depth: int = 0) -> Any:
    """A copy of the containers, so that the caller's are not changed."""
    if depth > DEEPEST:
        raise ConfigError(f"config: is nested more than {DEEPEST} levels deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"config: a key must be a string, got {key!r}")
        return {key: copied(item, depth + 1) for key, item in value.items()}
    return [copied(v, depth + 1) for v in value] if isinstance(value, (list, tuple)) else value


def _leaves(config: dict[str, Any], layer: Layer, value: Any, key: Key) -> Iterator[Override]:
    """The values of a layer that replace those of `config`."""
    known = _get(config, _full_key(key, config)) if key else config
    if isinstance(value, dict) and value and isinstance(known, dict):
        for name, item in value.items():
            yield from _leaves(config, layer, item, (*key, name))
    elif key:
        yield Override(key, value, layer.place(key), merged=True)


def _apply(config: dict[str, Any], given: Iterable[Override], problems: ConfigProblems) -> None:
    """Change `config` in place; `problems` gets the places of the values."""
    overrides = [o._replace(key=_full_key(_of_folder(o), config)) for o in given]
    keys = {override.key for override in overrides}
    for override in overrides:
        if override.key[0] == "data" and override.key[-1] == "from" and override.value is not None:
            _forget_data(config, override.key[:-1], keys)
    task = _start_task(config, overrides, problems)
    sections = (o.key[:depth] for o in overrides for depth in range(len(o.key)))
    for section in dict.fromkeys(sections):
        inside = {o.key[len(section)]: o for o in overrides if _is_below(o.key, section)}
        if fresh := _fresh_start(config, section, inside, task):
            _set(config, section, fresh)
            problems.overridden(section, next(iter(inside.values())).place)
    for override in overrides:
        if (
            override.merged
            and override.value == {}
            and isinstance(_get(config, override.key), dict)
        ):
            continue
        other, train = INSTEAD.get(override.key), config.get("train")
        replaces = other and ("train", other) not in keys and override.value is not None
        if replaces and isinstance(train, dict):
            train.pop(other, None)
        try:
            _set(config, override.key, override.value)
        except ValueError as error:
            problems.refused(override.place, str(error))
        else:
            problems.overridden(override.key, override.place, override.raw)


def _of_folder(override: Override) -> Key:
    """`data=DIR` means `data.from=DIR`: the other settings of the data stay."""
    is_folder = override.key == ("data",) and isinstance(override.value, str)
    return ("data", "from") if is_folder else override.key


def _forget_data(config: dict[str, Any], section: Key, keys: Collection[Key]) -> None:
    """Remove the datasets of a source that gets a folder instead, and an `image_size` that was
    that of generated images."""
    source = _get(config, section)
    if not isinstance(source, dict):
        return
    before = [source.pop(split, None) for split in ("train", "val")]
    generated = [one for one in before if isinstance(one, dict) and one.get("type") == "Shapes"]
    sizes = [one.get("size") for one in generated]
    if source.get("image_size") in sizes and (*section, "image_size") not in keys:
        del source["image_size"]
    source.pop("holdout", None)


def _is_below(key: Key, section: Key) -> bool:
    return len(key) > len(section) and key[: len(section)] == section


def _start_task(
    config: dict[str, Any], overrides: Sequence[Override], problems: ConfigProblems
) -> Any:
    """The task after the overrides. Another one than before starts the head again, and the neck if
    it has another by default."""
    before = config.get("task")
    given = next((o for o in reversed(overrides) if o.key == ("task",)), None)
    if given is None or given.value == before:
        return before
    old, new = (TASKS.get(t) if isinstance(t, str) else None for t in (before, given.value))
    if old is not None and new is not None:
        for section in ("head", "neck") if old.neck != new.neck else ("head",):
            config.pop(section, None)
            problems.overridden((section,), given.place)
    return given.value


def _given(overrides: Any) -> dict[str, Any] | list[str]:
    """A copy of the overrides. ArgumentError if they are of another type."""
    if isinstance(overrides, Mapping):
        return copied(overrides)
    alone = isinstance(overrides, str) or not isinstance(overrides, Iterable)
    given = [overrides] if alone else [*overrides]
    for item in given:
        if not isinstance(item, str):
            raise ArgumentError(
                f"overrides: got {shorten(repr(item))}; expected strings such as 'train.lr=0.01', "
                "or a dict such as {'train.lr': 0.01}"
            )
    return given


def _parse(given: Mapping[str, Any] | Iterable[str], problems: ConfigProblems) -> list[Override]:
    overrides = []
    for item in given.items() if isinstance(given, Mapping) else given:
        text = item if isinstance(item, str) else f"{item[0]}={item[1]!r}"
        try:
            overrides.append(_override(item, f"override {shorten(text)}"))
        except ValueError as error:
            problems.refused(f"override {shorten(text)}", str(error))
    return overrides


def _override(item: str | tuple[str, Any], place: str) -> Override:
    raw = None
    if isinstance(item, str):
        key, separator, raw = item.partition("=")
        if not separator:
            raise ValueError("expected key=value")
        value, raw = parse(raw), raw.strip()
    else:
        key, value = item
    parts = tuple(str(key).strip().split("."))
    if not all(parts):
        raise ValueError(f"{key!r} is not a key; expected one like train.lr")
    if parts[0] == "base":
        raise ValueError("base: only a config file can name its base; write one, with `base:`")
    return Override(parts, value, place, raw)


def _full_key(key: Key, config: dict[str, Any]) -> Key:
    """In the long form, `head.x` and `data.train.x` mean the only head and the only source."""
    heads, data = config.get("heads"), config.get("data")
    if "task" in config or not key:
        return key
    if key[0] == "head" and isinstance(heads, dict) and len(heads) == 1:
        return ("heads", *heads, *key[1:])
    if key[0] == "data" and key[1:] and key[1] in (*SOURCE_KEYS, "from") and isinstance(data, dict):
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
    meant = [own for own in defaults if _accepts(kind, own, _meant(kind, own, inside))]
    for own in [*usual, *complete, *meant, *fitting][:1]:
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


def _meant(kind: str, type_name: str, names: Iterable[str]) -> list[str]:
    """The names as that class has them, where they are those of other programs."""
    accepted = arguments_of(kind, type_name)
    return [name if name in accepted else usual_key(name, accepted) for name in names]


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
