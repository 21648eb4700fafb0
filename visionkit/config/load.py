"""`load_config`: read, override, rewrite to the long form, reuse the run of `init_from`, check.
`missing_paths`: the files that a checked config names and that do not exist.

Overrides, `train.lr=1e-3` on the command line or {"train.lr": 1e-3} from Python, are applied to a
config as it is written, in the short form or the long. Another `type` starts a section again, and
arguments of another dataset (`data.train.images=...` on a config with generated images) change the
type of the dataset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.config.components import arguments_of, components, refuse_plugins
from visionkit.config.config import SOURCE_KEYS, Config, SourceConfig, TrainConfig
from visionkit.config.schema import REQUIRED, ConfigProblems, paths_in
from visionkit.config.shipped import find_config
from visionkit.config.tasks import TASKS, to_long_form
from visionkit.config.validate import check
from visionkit.config.yaml import Key, parse, read
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    VisionkitError,
    check_flags,
    shorten,
)
from visionkit.runs import checkpoint
from visionkit.runs.files import means_file, twin_clause

log = logging.getLogger("visionkit")

DEEPEST = 50  # levels of a dict
OWN_DATA = ("Coco", "ImageFolder", "Idx", "LabelMaps")  # tried after the task's own
INSTEAD: dict[Key, str] = {("train", "steps"): "epochs", ("train", "epochs"): "steps"}


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    origin: str | Path | None = None,
    allow_plugins: bool = False,
) -> Config:
    """The checked config of a YAML file, of the shipped config of that name, or of a dict of the
    same form.

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
        path = find_config(source)
        config, lines = read(path)
        name, problems = path.stem, ConfigProblems(str(path), lines)
    else:
        raise ArgumentError(f"expected a config file or a dict, got a {type(source).__name__}")
    check_flags(allow_plugins=allow_plugins)
    if origin is not None:
        refuse_plugins(config, origin, allowed=allow_plugins)
    _apply_overrides(config, _given(overrides), problems)
    long = _with_origin(to_long_form(config, problems), problems, allow_plugins=allow_plugins)
    return check(long, name, problems)


def _given(overrides: Any) -> dict[str, Any] | list[str]:
    """A copy of the overrides. ArgumentError if they are of another type."""
    if isinstance(overrides, Mapping):
        return _copy(overrides)
    alone = isinstance(overrides, str) or not isinstance(overrides, Iterable)
    given = [overrides] if alone else [*overrides]
    for item in given:
        if not isinstance(item, str):
            raise ArgumentError(
                f"overrides: got {shorten(repr(item))}; expected strings such as 'train.lr=0.01', "
                "or a dict such as {'train.lr': 0.01}"
            )
    return given


class Override(NamedTuple):
    key: Key
    value: Any
    text: str  # as the user wrote it
    raw: str | None = None  # the value as it was typed


def _apply_overrides(
    config: dict[str, Any],
    given: Mapping[str, Any] | Iterable[str],
    problems: ConfigProblems,
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
            problems.overridden(override.key, override.text, override.raw)


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
    return Override(parts, value, text, raw)


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


def _with_origin(
    long: dict[str, Any], problems: ConfigProblems, *, allow_plugins: bool
) -> dict[str, Any]:
    """The long form with backbone, neck and heads of the run that `init_from` names, where it has
    none of that name.

    The datasets that validated the heads are reused, those that trained them are not. `init_from`
    becomes a mapping of the `run` and the reused `heads`; a config in which it is a mapping is
    complete. The run is not trusted: see `components.refuse_plugins`.
    """
    run = long.get("init_from")
    with suppress(ValueError):  # which the check of the config reports
        run = problems.fit(run, str, ("init_from",))  # `init_from=123` names a run
    if not isinstance(run, str):
        return long
    try:
        path, state = checkpoint.load_latest(run)
        old = state["config"]
        if not _is_long(old):
            raise CheckpointError(f"{path}: its config was not saved by visionkit")
        refuse_plugins(old, path, allowed=allow_plugins)
    except VisionkitError as error:
        # Other problems may only follow from it. It alone is an error of the checkpoint.
        kind = ConfigError if problems else type(error)
        problems.add(("init_from",), error)
        problems.raise_found(kind)
    grown = dict(long)
    for part in ("backbone", "neck"):
        given = long.get(part)
        if given is not None and not _agrees(given, old[part]):
            problems.add((part,), f"differs from that of {run}, which is {old[part]}; remove it")
        grown[part] = old[part]
    heads = grown.get("heads")
    if not isinstance(heads, dict):
        return grown
    taken = [name for name in old["heads"] if name not in heads]
    grown["heads"] = {**{name: old["heads"][name] for name in taken}, **heads}
    if isinstance(long.get("data"), dict):
        grown["data"] = {**long["data"], **_validation_of(taken, old["data"], long["data"])}
    grown["init_from"] = {"run": run, "heads": taken}
    return grown


def _is_long(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config has the long form in which visionkit saves it."""
    heads, data = config.get("heads"), config.get("data")
    if not isinstance(heads, dict) or not isinstance(data, dict):
        return False
    sources = [source for name, source in data.items() if name != "workers"]
    fed = all(isinstance(s, dict) and isinstance(s.get("feeds"), list) for s in sources)
    return fed and {"backbone", "neck"} <= config.keys()


def _agrees(given: Any, old: Any) -> bool:
    """Whether all given values are those of before."""
    if not isinstance(given, dict) or not isinstance(old, dict):
        return given == old
    return all(old.get(key) == value for key, value in given.items())


def _validation_of(
    heads: list[str], old: dict[str, Any], given: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, source in old.items():
        feeds = [head for head in source["feeds"] if head in heads] if name != "workers" else []
        if feeds:
            free = name if name not in given else f"{name}_before"
            found[free] = {**source, "feeds": feeds, "train": None, "images_per_identity": None}
    return found


def missing_paths(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """A problem text for each path that a component declares as InputPath and that does not exist.

    The datasets of `splits` are checked, and, if `train` is among them, the files with weights that
    training starts from; not the names of published weights.
    """
    found = []
    if "train" in splits:
        given = {"weights": config.weights}
        if config.init_from is None:
            given["backbone.weights"] = config.backbone.get("weights")
        found += [(key, value) for key, value in given.items() if value and means_file(value)]
    for key, section, spec in _components(config, splits):
        for name, argument in arguments_of(section, spec["type"]).items():
            found += [(f"{key}.{name}", p) for p in paths_in(spec.get(name), argument.annotation)]
    return [
        f"{key}: got {path!r}; not found (relative to {Path.cwd()}){twin_clause(path)}"
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


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the defaults of the settings that it lacks, such as newer ones. Custom
    classes, which would be imported for theirs, keep what they have."""

    def filled(section: str, spec: Any) -> Any:
        if not isinstance(spec, dict) or spec.get("type") not in components(section):
            return spec
        accepted = arguments_of(section, spec["type"]).items()
        return {name: a.default for name, a in accepted if a.default is not REQUIRED} | spec

    heads, data = saved.get("heads") or {}, dict(saved.get("data") or {})
    for name, spec in data.items():
        if isinstance(spec, dict):
            source = asdict(SourceConfig([])) | spec
            source |= {split: filled("datasets", source[split]) for split in ("train", "val")}
            source["transforms"] = [filled("transforms", t) for t in source["transforms"] or ()]
            data[name] = source
    return {
        **{field.name: field.default for field in fields(Config) if field.default is not MISSING},
        **saved,
        "backbone": filled("backbones", saved.get("backbone")),
        "neck": filled("necks", saved.get("neck")),
        "heads": {name: filled("heads", spec) for name, spec in heads.items()},
        "data": data,
        "train": asdict(TrainConfig()) | (saved.get("train") or {}),
    }


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
