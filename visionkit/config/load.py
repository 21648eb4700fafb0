"""`load_config`: read, override, rewrite to the long form, reuse the run of `init_from`, check.
`missing_paths`: the files that a checked config names and that do not exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from visionkit.config.base import Layer, check_version, layers, read_layer, refuse_base
from visionkit.config.components import arguments_of, components, refuse_plugins
from visionkit.config.config import Config, SourceConfig, TrainConfig
from visionkit.config.folders import with_folders
from visionkit.config.overrides import apply_overrides, copied, merge
from visionkit.config.schema import REQUIRED, ConfigProblems, paths_in
from visionkit.config.shipped import find_config
from visionkit.config.tasks import to_long_form
from visionkit.config.validate import check
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    VisionkitError,
    check_flags,
)
from visionkit.runs import checkpoint
from visionkit.runs.files import means_file, twin_clause
from visionkit.runs.hub import is_hub


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
        top, name = Layer(str(origin or "config"), copied(source), {}), "run"
    elif isinstance(source, (str, os.PathLike)):
        path = find_config(source)
        top, name = read_layer(path), path.stem
    else:
        raise ArgumentError(f"expected a config file or a dict, got a {type(source).__name__}")
    check_flags(allow_plugins=allow_plugins)
    if origin is not None:
        refuse_base(top, origin)
        refuse_plugins(top.values, origin, allowed=allow_plugins)
    problems = ConfigProblems(top.source)
    config = merge(layers(top), problems)
    apply_overrides(config, overrides, problems)
    long = _with_origin(to_long_form(config, problems), problems, allow_plugins=allow_plugins)
    return check(with_folders(long, problems), name, problems)


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
        check_version(old, str(path))
        refuse_plugins(old, path, allowed=allow_plugins)
    except VisionkitError as error:
        # Other problems may only follow from it. It alone is an error of the checkpoint.
        kind = ConfigError if problems else type(error)
        problems.add(("init_from",), error)
        problems.raise_found(kind)
    if long.get("weights"):
        problems.add(("weights",), "would replace those of `init_from`; give one of the two")
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
        found += [
            (key, value)
            for key, value in given.items()
            if value and means_file(value) and not is_hub(value)
        ]
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
