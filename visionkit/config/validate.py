"""Check a long form, section by section and then across sections, and make a Config of it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import nn

from visionkit.config.components import (
    any_case,
    arguments_of,
    build,
    components,
    optimizer_spec,
    resolve,
)
from visionkit.config.config import (
    DIVISOR,
    SOURCE_KEYS,
    Config,
    SourceConfig,
    TrainConfig,
    fixed_size,
    problems_of,
    scaled_side,
)
from visionkit.config.renamed import ELSEWHERE, renamed_key, renamed_type
from visionkit.config.schema import (
    Argument,
    ConfigProblems,
    NonNegative,
    Range,
    check_arguments,
    mismatch,
    signature_arguments,
)
from visionkit.config.tasks import default_transforms
from visionkit.config.yaml import Key
from visionkit.errors import ConfigError, unknown

Workers = Annotated[int, Range(0, 256)]  # processes for each source
TOP = {
    "version": Literal[1],
    "name": str,
    "backbone": dict,
    "neck": dict | None,
    "heads": dict,
    "data": dict | None,
    "train": dict | None,
    "weights": str | None,
    "partial_weights": bool,
    "rename": dict[str, str] | None,
    "init_from": str | dict[str, Any] | None,
    "output": str | None,
}


def check(long: dict[str, Any], name: str, problems: ConfigProblems) -> Config:
    """Raises ConfigError with all problems, those found before included."""
    given = check_arguments(long, {key: Argument(TOP[key], None) for key in TOP}, (), problems)
    name = _check_value(given.get("name", name), str, ("name",), problems)
    if name != os.path.basename(name) or name in ("", ".", ".."):
        problems.add(("name",), f"got {name!r}; expected a valid directory name")
    if given.get("output") == "":  # it would mean the current directory
        problems.add(("output",), "got ''; expected a directory, or null for runs/<name>-001")
    backbone = _check_component("backbones", long.get("backbone"), ("backbone",), problems)
    neck = given.get("neck")
    if neck is not None:
        neck = _check_component("necks", neck, ("neck",), problems)
    heads = _check_heads(given.get("heads", {}), problems)
    data = given.get("data") or {}
    origin = given.get("init_from")
    reused = _reused_heads(origin, problems)
    workers, sources = _check_data(data, heads, reused, problems)
    if "heads" in given:
        _check_feeding(given["heads"], sources, reused, problems)
        if isinstance(long.get("data", {}), dict | None) and not data.keys() - {"workers"}:
            problems.add(("data",), "has no source; expected one with 'feeds' and 'train' or 'val'")
    for key in ("rename", "partial_weights"):
        if given.get(key) and not (given.get("weights") or origin):
            problems.add((key,), "is for `weights` or `init_from`, and neither is given")
    train = _check_training(given.get("train") or {}, problems)
    _check_best(train, given.get("heads", {}), sources, problems)
    if not problems:  # it may build a model
        _check_sides("backbone", backbone, sources, problems)
        _check_sides("neck", neck, sources, problems)
    problems.raise_found()
    return Config(
        name=name,
        backbone=backbone,
        neck=neck,
        heads=heads,
        data=sources,
        workers=workers,
        train=train,
        weights=given.get("weights"),
        partial_weights=given.get("partial_weights", False),
        rename=given.get("rename") or {},
        init_from=origin if isinstance(origin, dict) else None,
        output=given.get("output"),
    )


def _reused_heads(origin: Any, problems: ConfigProblems) -> list[str]:
    """The heads in `init_from`, which is a mapping in configs that visionkit wrote."""
    match origin:
        case {"run": str(), "heads": list(heads)} if all(isinstance(h, str) for h in heads):
            return heads
        case dict():
            problems.add(
                ("init_from",), f"{mismatch(origin, str)}: the path of a run or checkpoint"
            )
    return []


def _check_component(section: str, spec: Any, key: Key, problems: ConfigProblems) -> dict[str, Any]:
    """The type and the arguments that fit; without a known type, nothing else is checked."""
    if not isinstance(spec, dict):
        found = "missing; expected a mapping" if spec is None else mismatch(spec, dict)
        problems.add(key, found)
        return {}
    if "type" not in spec:
        problems.add(key, unknown("", components(section), "missing 'type'"))
        return {}
    try:
        accepted = arguments_of(section, spec["type"])
    except ConfigError as error:
        renamed = renamed_type(spec, components(section))
        problems.add((*key, "type"), renamed or str(error))
        return {}
    arguments = {name: value for name, value in spec.items() if name != "type"}
    return {"type": spec["type"], **check_arguments(arguments, accepted, key, problems)}


def _check_sides(
    part: Literal["backbone", "neck"],
    spec: dict[str, Any] | None,
    sources: dict[str, SourceConfig],
    problems: ConfigProblems,
) -> None:
    """That the backbone or neck takes images of these sizes, and those that `multi_scale` makes of
    them, where its class has a `largest_side` or `smallest_side`."""
    if not spec:
        return
    arguments = {name: value for name, value in spec.items() if name != "type"}
    cls: Any = resolve(f"{part}s", spec["type"])
    what = arguments.get("name", spec["type"])
    try:
        limits = [
            getattr(cls, name)(**arguments) if hasattr(cls, name) else None
            for name in ("largest_side", "smallest_side")
        ]
    except ConfigError as error:
        name, _, text = str(error).partition(": ")
        if name in arguments:
            problems.add((part, name), text)
        else:
            problems.add((part,), str(error))
        return
    largest, smallest = limits
    takes_size = "image_size" in arguments_of(f"{part}s", spec["type"])  # others are run to know
    for name, source in sources.items():
        size, span = source.image_size, source.multi_scale
        sides: Any = fixed_size(size) or (size if isinstance(size, tuple) else (size,))
        side = max(sides)
        if largest is not None and side > largest and takes_size:
            larger = -(-side // DIVISOR) * DIVISOR
            problems.add(
                ("data", name, "image_size"),
                f"got {size!r}, but {what} takes images of at most {largest}x{largest} pixels; set "
                f"it to {largest}, or build the {part} for larger ones "
                f"({part}.image_size={larger})",
            )
        elif span is not None:
            low, high = (scaled_side(side, factor) for factor in span)
            if (largest is not None and high > largest) or (
                smallest is not None and low < smallest
            ):
                only = f"at most {largest}" if smallest is None else f"{smallest} to {largest}"
                problems.add(
                    ("data", name, "multi_scale"),
                    f"got {[*span]}, which makes images of {low} to {high} pixels (the longest "
                    f"side), but {what} takes {only}; change its range, or remove it",
                )


def _check_value(value: Any, annotation: Any, key: Key, problems: ConfigProblems) -> Any:
    try:
        return problems.fit(value, annotation, key)
    except ValueError:
        problems.add(key, mismatch(value, annotation))
        return value


def _check_heads(given: dict[str, Any], problems: ConfigProblems) -> dict[str, dict[str, Any]]:
    heads = {}
    for name, spec in given.items():
        key = ("heads", name)
        _check_name(key, problems, taken=hasattr(nn.ModuleDict(), name))
        spec = dict(spec) if isinstance(spec, dict) else spec
        weight = spec.pop("weight", 1.0) if isinstance(spec, dict) else 1.0
        weight = _check_value(weight, NonNegative, (*key, "weight"), problems)
        checked = _check_component("heads", spec, key, problems)
        heads[name] = {"type": checked.pop("type", ""), "weight": weight, **checked}
    return heads


def _check_data(
    given: dict[str, Any],
    heads: dict[str, dict[str, Any]],
    reused: list[str],
    problems: ConfigProblems,
) -> tuple[int, dict[str, SourceConfig]]:
    workers = given.get("workers", min(2, os.cpu_count() or 1))
    _check_value(workers, Workers, ("data", "workers"), problems)
    sources = {}
    for name, spec in given.items():
        key = ("data", name)
        if name == "workers":
            continue
        _check_name(key, problems, taken=name in SOURCE_KEYS)
        if isinstance(spec, dict):
            sources[name] = _check_source(spec, heads, key, problems)
            nothing = spec.get("train") is None and spec.get("val") is None
            if nothing and not set(sources[name].feeds) & set(reused):
                message = "has neither 'train' nor 'val'; expected a dataset for one of them"
                problems.add(key, message)
        elif name not in SOURCE_KEYS:
            place = f"unknown key; did you mean {ELSEWHERE[name]!r}?" if name in ELSEWHERE else None
            problems.add(key, renamed_key(name, SOURCE_KEYS) or place or mismatch(spec, dict))
    return workers, sources


def _check_source(
    spec: dict[str, Any], heads: dict[str, dict[str, Any]], key: Key, problems: ConfigProblems
) -> SourceConfig:
    fitting = check_arguments(spec, signature_arguments(SourceConfig), key, problems)
    size = fitting.get("image_size")
    if isinstance(size, tuple) and size[0] > size[1]:
        problems.add((*key, "image_size"), f"got {list(size)}; expected [shortest, longest]")
    fixed = fixed_size(size) if isinstance(size, str) else None
    if fixed and not all(8 <= side <= 8192 for side in fixed):
        message = f"got {size!r}; expected sides of 8 to 8192 pixels"
        problems.add((*key, "image_size"), message)
    span = fitting.get("value_range")
    if isinstance(span, tuple) and not span[0] < span[1]:
        problems.add((*key, "value_range"), f"got {list(span)}; expected [low, high], low < high")
    group, batch_size = fitting.get("images_per_identity"), fitting.get("batch_size", 8)
    if group and (batch_size % group or batch_size < 2 * group):
        wanted = f"a divisor of batch_size, which is {batch_size}, for at least two identities"
        problems.add((*key, "images_per_identity"), f"got {group}; expected {wanted}")
    if group and fitting.get("group_by_aspect_ratio"):
        message = "conflicts with 'images_per_identity'; give one of the two"
        problems.add((*key, "group_by_aspect_ratio"), message)
    _check_sampling(fitting, key, problems)
    for name, what in (
        ("feeds", "at least one head; or remove the source"),
        ("labeled_classes", "at least one class, or null for all classes of the dataset"),
    ):
        if fitting.get(name) == []:
            problems.add((*key, name), f"got []; expected {what}")
    for split in ("train", "val"):
        if fitting.get(split) is not None:
            fitting[split] = _check_component("datasets", fitting[split], (*key, split), problems)
    if fitting.get("holdout") is not None:
        fitting["val"] = _check_holdout(spec, fitting, key, problems)
    if fitting.get("transforms") is None:
        types = [heads[head]["type"] for head in fitting.get("feeds", ()) if head in heads]
        fitting["transforms"] = default_transforms(types)
    fitting["transforms"] = _check_transforms(fitting["transforms"], key, problems)
    _check_mixing(fitting, heads, key, problems)
    return SourceConfig(**{"feeds": [], **fitting})


def _check_transforms(specs: list[Any], key: Key, problems: ConfigProblems) -> list[dict[str, Any]]:
    """Those of visionkit are made once, as their arguments may contradict each other."""
    checked: list[dict[str, Any]] = []
    for index, spec in enumerate(specs):
        place = (*key, "transforms", str(index))
        spec = _check_component("transforms", spec, place, problems)
        if spec.get("type") in components("transforms"):
            try:
                build("transforms", spec)
            except ConfigError as error:
                problems.add(place, str(error))
        if spec and getattr(resolve("transforms", spec["type"]), "resizes", False):
            types = [one.get("type") for one in checked]
            if "Letterbox" in types:
                what = f"{spec['type']} resizes what Letterbox ({types.index('Letterbox')}) made"
                problems.add(place, f"{what}; remove one of the two")
        checked.append(spec)
    return checked


def _check_sampling(fitting: dict[str, Any], key: Key, problems: ConfigProblems) -> None:
    """`sampling`, `multi_scale` and `progressive`."""
    span = fitting.get("multi_scale")
    if span is not None and span[0] > span[1]:
        problems.add((*key, "multi_scale"), f"got {list(span)}; expected [low, high], low <= high")
    if fitting.get("progressive") and span is None:
        message = "needs 'multi_scale', such as [0.5, 1.0]: between these the size grows"
        problems.add((*key, "progressive"), message)
    match given := fitting.get("sampling"):
        case None | {"balanced": "class"} if given is None or len(given) == 1:
            pass
        case {"repeat_factor": float(share) | int(share)} if (
            len(given) == 1 and share is not True and 0 < share <= 1
        ):
            pass
        case _:
            message = f"got {given}; expected {{repeat_factor: 0.01}} or {{balanced: class}}"
            problems.add((*key, "sampling"), message)
    if given is not None and fitting.get("images_per_identity"):
        message = "conflicts with 'images_per_identity', by which images are drawn; remove one"
        problems.add((*key, "sampling"), message)


def _check_mixing(
    fitting: dict[str, Any], heads: dict[str, dict[str, Any]], key: Key, problems: ConfigProblems
) -> None:
    """Transforms of several images, which do not suit every head."""
    fed = {}
    for head in fitting.get("feeds", ()):
        with suppress(ConfigError):  # reported with the head
            fed[head] = resolve("heads", heads.get(head, {}).get("type"))
    learned = {target: head for head, cls in fed.items() for target in cls.required_targets}
    for index, spec in enumerate(fitting["transforms"]):
        cls = resolve("transforms", spec["type"]) if "type" in spec else None
        if not getattr(cls, "others", 0):
            continue
        where, name = (*key, "transforms", str(index)), spec["type"]
        if fitting.get("images_per_identity"):
            message = f"{name} conflicts with 'images_per_identity'; remove one of the two"
            problems.add(where, message)
        for head, head_cls in fed.items():
            if head_cls.single_object:
                message = f"{name} makes images of several objects, but head {head!r}"
                problems.add(where, f"{message} ({head_cls.__name__}) wants one; remove {name}")
        unfit = getattr(cls, "unfit", {})
        for target in unfit.keys() & learned.keys():
            head = learned[target]
            message = f"{name} does not suit head {head!r} ({fed[head].__name__})"
            problems.add(where, f"{message}: {unfit[target]}")
        if getattr(cls, "mixes_classes", False) and {"class_id", "boxes"} <= learned.keys():
            both = f"{learned['class_id']!r} and {learned['boxes']!r}"
            message = f"{name} cannot suit both heads {both}: classes of images and of objects"
            problems.add(where, f"{message} want other shares; feed them from two sources")


def _check_holdout(
    spec: dict[str, Any], fitting: dict[str, Any], key: Key, problems: ConfigProblems
) -> Any:
    """The dataset to validate with: that of training, of which a share is held out."""
    train, val = fitting.get("train"), fitting.get("val")
    what = f"takes {fitting['holdout']:g} of the training images"
    if train is None:
        problems.add((*key, "holdout"), f"{what}, but there is no 'train'; remove it")
    elif val is None and "val" in spec:
        problems.add((*key, "holdout"), f"{what}, but 'val' is null; give one of the two")
    elif val not in (None, train):
        message = f"{what} to validate, but 'val' is another dataset; remove one of the two"
        problems.add((*key, "holdout"), f"{message} (data.holdout=null)")
    return train


def _check_feeding(
    heads: dict[str, Any],
    sources: dict[str, SourceConfig],
    reused: list[str],
    problems: ConfigProblems,
) -> None:
    if not heads:
        problems.add(("heads",), "is empty; expected at least one head")
    for name, source in sources.items():
        key = ("data", name, "feeds")
        for head in source.feeds:
            if head not in heads:
                problems.add(key, unknown(head, heads, f"unknown head {head!r}"))
        if len(set(source.feeds)) != len(source.feeds):
            problems.add(key, f"got {source.feeds}; expected each head once")
    fed = {head for source in sources.values() for head in source.feeds}
    for head in heads:
        if sources and head not in fed and head not in reused:
            problems.add(("heads", head), "no source feeds it; add it to the 'feeds' of one")


def _check_training(given: dict[str, Any], problems: ConfigProblems) -> TrainConfig:
    fitting = check_arguments(given, signature_arguments(TrainConfig), ("train",), problems)
    if given.get("steps") is not None and given.get("epochs") is not None:
        problems.add(("train", "steps"), "conflicts with 'epochs'; give one of the two")
    if fitting.get("steps") is not None:
        fitting["epochs"] = None
    fitting["loggers"] = [
        _check_named("loggers", spec, ("train", "loggers", str(number)), problems)
        for number, spec in enumerate(fitting.get("loggers", ()))
    ]
    train = TrainConfig(**fitting)
    for name, message in problems_of(train).items():
        problems.add(("train", *name.split(".")), message)
    return _check_optimizer(train, problems)


def _check_named(section: str, spec: Any, key: Key, problems: ConfigProblems) -> dict[str, Any]:
    """A name, or a mapping with arguments; the names of visionkit's in any case."""
    spec = {"type": spec} if isinstance(spec, str) else dict(spec)
    if "type" in spec:
        spec["type"] = any_case(section, spec["type"])
    return _check_component(section, spec, key, problems)


def _check_optimizer(train: TrainConfig, problems: ConfigProblems) -> TrainConfig:
    """The settings with the arguments of the optimizer as annotated; one is made, to know that it
    accepts their values."""
    key, given = ("train", "optimizer"), train.optimizer
    if isinstance(given, str):
        problems.renamed((*key, "type"), key)
    checked = _check_named("optimizers", given, key, problems)
    if checked.keys() != ({"type"} if isinstance(given, str) else given.keys()):
        return train  # it has problems
    if isinstance(given, dict):
        train = replace(train, optimizer=checked)
    try:
        build("optimizers", optimizer_spec(train), [nn.Parameter(torch.zeros(1))])
    except (ConfigError, RuntimeError, TypeError) as error:
        problems.add(key, str(error).removeprefix("optimizers: "))
    return train


def _check_best(
    train: TrainConfig,
    heads: dict[str, Any],
    sources: dict[str, SourceConfig],
    problems: ConfigProblems,
) -> None:
    """`head/metric` or `source/head/metric`."""
    best = (
        [train.best_metric] if isinstance(train.best_metric, str) else [*(train.best_metric or ())]
    )
    for key, names in {"best_metric": best, "best_constraints": train.best_constraints}.items():
        for name in names if heads else ():
            first, _, rest = name.partition("/")
            second, _, metric = rest.partition("/")
            if (first in heads and rest) or (first in sources and second in heads and metric):
                continue
            several = sum(source.val is not None for source in sources.values()) > 1
            valid = [f"{s}/{h}" if several else h for s in sources for h in sources[s].feeds]
            form = "source/head/metric" if several else "head/metric"
            what = f"got {name!r}; expected {form}, with a head"
            given = f"{first}/{second}" if several else first
            problems.add(("train", key), unknown(given, dict.fromkeys(valid), what))


def _check_name(key: Key, problems: ConfigProblems, *, taken: bool) -> None:
    if taken:
        problems.add(key, f"{key[-1]!r} is a reserved name; choose another")
    elif not re.fullmatch(r"[^\W\d][\w-]*", key[-1]):
        problems.add(key, f"got the name {key[-1]!r}; expected letters, digits, '_' and '-'")
