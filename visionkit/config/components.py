"""Resolve the `type:` names of a config to classes, and decide whether a config may import code.

A plain name such as `MaskRCNN` is what the package of its section exports in `__all__`; a dotted
name such as `my_package.pose.PoseHead` is always the user's own import path, the current directory
included. Importing a module runs it, so `refuse_plugins` checks who may name one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visionkit.config.renamed import renamed_type
from visionkit.config.schema import REQUIRED, Argument, expected, signature_arguments
from visionkit.config.yaml import Key
from visionkit.errors import ConfigError, DataError, VisionkitError, listed, shorten, unknown
from visionkit.types import Target

if TYPE_CHECKING:
    from visionkit.config.config import Config, TrainConfig

PACKAGES = {  # what a section's `type:` can name is in the `__all__` of its package
    "backbones": "visionkit.models.backbones",
    "necks": "visionkit.models.necks",
    "heads": "visionkit.models.heads",
    "datasets": "visionkit.data.datasets",
    "transforms": "visionkit.data.transforms",
    "loggers": "visionkit.engine.loggers",
    "optimizers": "visionkit.engine.optimizers",
}
INJECTED = {  # arguments that no config gives
    "heads": ("levels", "classes"),
    "necks": ("levels",),
    "optimizers": ("params", "lr", "weight_decay"),  # of `train`
}
SETTING = "VISIONKIT_ALLOW_PLUGINS"  # environment variable; "1" allows plugins


def components(section: str) -> dict[str, Any]:
    """The classes of visionkit that `type:` can name in a section (a key of PACKAGES)."""
    package = importlib.import_module(PACKAGES[section])
    return {name: getattr(package, name) for name in sorted(package.__all__)}


def recognized(folder: str) -> Any:
    """What that folder of data looks like: a `visionkit.data.formats.recognize.Recognized`.
    DataError for one that is not known."""
    return importlib.import_module("visionkit.data.formats.recognize").recognize(folder)


def resolve(section: str, type_name: Any) -> Any:
    """The class that `type: type_name` means in a section (a key of PACKAGES).

    Raises ConfigError with the valid names and the nearest one, or the reason why a module cannot
    be imported.
    """
    ours = components(section)
    if type_name in ours:
        return ours[type_name]
    if not isinstance(type_name, str) or not re.fullmatch(r"\w+(\.\w+)+", type_name):
        what = f"got {type_name!r}; expected the name of a component or an import path"
        raise ConfigError(unknown(type_name, ours, what))
    module_name, _, class_name = type_name.rpartition(".")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that a file there hides no installed package
    importlib.invalidate_caches()
    module = _import(module_name)
    found = vars(module).get(class_name) if module else None
    if callable(found) and not isinstance(found, type):
        raise ConfigError(f"{type_name} is a {type(found).__name__}; expected a class")
    if not isinstance(found, type):
        valid, what = [*ours], f"unknown type {type_name!r}"
        if module:
            valid += [f"{module_name}.{name}" for name in _own_classes(module)]
        else:
            what += " (a custom class must be importable from this folder or PYTHONPATH)"
        raise ConfigError(unknown(type_name, valid, what))
    check_class(section, type_name, found)
    return found


def arguments_of(section: str, type_name: Any) -> dict[str, Argument]:
    """The arguments that a config may set for `type: type_name`. ConfigError as by `resolve`."""
    return signature_arguments(resolve(section, type_name), INJECTED.get(section, ()))


def build(section: str, spec: dict[str, Any], *injected: Any, key: str = "") -> Any:
    """An instance of what `type:` names, with its arguments after the `injected` ones.

    The message of a ConfigError begins with the `key` of the spec.
    """
    arguments = {key: value for key, value in spec.items() if key != "type"}
    try:
        return resolve(section, spec["type"])(*injected, **arguments)
    except ConfigError as error:
        text = f"{key}: {error}" if key else str(error)
        raise ConfigError(*text.split("\n")) from error
    except VisionkitError:
        raise
    except ValueError as error:  # a component may refuse a value that its annotation allows
        raise ConfigError(f"{key or section}: {spec['type']}: {error}") from error
    except Exception as error:  # custom classes raise anything
        if spec["type"] in components(section) or isinstance(error, MemoryError):
            raise
        kind = DataError if section == "datasets" else ConfigError
        *_, place = traceback.extract_tb(error.__traceback__)
        what = (
            f"{spec['type']}: its __init__ raised {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        )
        raise kind(f"{key}: {what}" if key else what) from error


def head_base() -> Any:
    """The class that every head derives from. By its name, since it is of a higher package."""
    return importlib.import_module("visionkit.models.head").Head


def head_class(config: Config, head: str) -> Any:
    """The class of a head of a checked config."""
    return resolve("heads", config.heads[head]["type"])


def main_metric(config: Config, head: str) -> str:
    """The metric of a head that selects the best checkpoint by default."""
    return head_class(config, head).main_metric_of(config.heads[head])


def any_case(section: str, name: Any) -> Any:
    """The name of visionkit's own component that is written so in any case; else as it is."""
    names = {own.lower(): own for own in components(section)}
    return names.get(name.lower(), name) if isinstance(name, str) else name


def optimizer_spec(train: TrainConfig) -> dict[str, Any]:
    """`train.optimizer` as a type with all its arguments, except the parameters."""
    given = train.optimizer
    given = {"type": given} if isinstance(given, str) else given
    name = any_case("optimizers", given["type"])
    usual: dict[str, dict[str, Any]] = {
        "SGD": {"momentum": train.momentum, "fused": True},
        "AdamW": {"fused": True},
    }
    return {**usual.get(name, {}), "lr": train.lr, **given, "type": name}


def check_class(section: str, name: str, cls: type) -> None:
    """Raise ConfigError unless a class has what every component of its section must have; list all
    that is missing."""
    contract, find_faults = _CONTRACTS[section]
    try:
        faults = list(find_faults(cls))
        faults += [
            f"its argument {parameter.name!r} is positional-only, but a config names arguments"
            for parameter in inspect.signature(cls).parameters.values()
            if parameter.kind is parameter.POSITIONAL_ONLY
        ]
    except (TypeError, ValueError) as error:  # of a class that is not written in Python
        faults = [str(error)]
    if faults:
        raise ConfigError(f"{name}: {'; '.join(faults)} ({contract})")


def _head_faults(cls: Any) -> Iterator[str]:
    base = head_base()
    if not issubclass(cls, base):
        yield "it must derive from visionkit.Head"
        return
    required, main = getattr(cls, "required_targets", None), getattr(cls, "main_metric", None)
    keys = ", ".join(Target.__annotations__)
    if not isinstance(required, tuple | list) or not {*Target.__annotations__} >= {*required}:
        yield f"its 'required_targets' is {required!r}; expected a tuple of target keys: {keys}"
    if cls.class_key is not None and cls.class_key not in Target.__annotations__:
        yield f"its 'class_key' is {cls.class_key!r}; expected None or one of {keys}"
    if not isinstance(main, str):
        yield f"its 'main_metric' is {main!r}; expected the name of one of its metrics"
    suited = cls.default_transforms
    if not isinstance(suited, tuple | list) or not all(isinstance(name, str) for name in suited):
        yield f"its 'default_transforms' is {suited!r}; expected types of transforms"
    for method in ("loss", "forward", "decode", "evaluator"):
        if getattr(cls, method, None) is getattr(base, method):
            yield f"it has no {method}()"
    if not _takes(cls, "levels", "classes"):
        yield "its __init__ does not take (levels, classes, *, its arguments)"


def _backbone_faults(cls: type) -> Iterator[str]:
    yield from _module_faults(cls, "images", "sizes")


def _neck_faults(cls: type) -> Iterator[str]:
    yield from _module_faults(cls, "features")
    if not _takes(cls, "levels"):
        yield "its __init__ does not take (levels, *, its arguments)"


def _module_faults(cls: type, *arguments: str) -> Iterator[str]:
    if not issubclass(cls, nn.Module):
        yield "it must derive from torch.nn.Module"
    yield from _method_faults(cls, "forward", *arguments)


def _dataset_faults(cls: type) -> Iterator[str]:
    yield from _method_faults(cls, "__len__")
    yield from _method_faults(cls, "__getitem__", "index")


def _transform_faults(cls: type) -> Iterator[str]:
    others: Any = getattr(cls, "others", 0)
    if type(others) is not int or others < 0:
        yield f"its 'others' is {shorten(repr(others))}; expected how many more images it takes"
    several = ("others",) if others else ()
    yield from _method_faults(cls, "__call__", "sample", "rng", "size", *several)
    if not isinstance(resizes := getattr(cls, "resizes", False), bool):
        yield f"its 'resizes' is {shorten(repr(resizes))}; expected True or False"


def _logger_faults(cls: type) -> Iterator[str]:
    yield from _method_faults(cls, "begin", "run", "config")
    yield from _method_faults(cls, "scalars", "step", "values")
    yield from _method_faults(cls, "images", "step", "images")
    yield from _method_faults(cls, "end", "status")


def _optimizer_faults(cls: type) -> Iterator[str]:
    if not issubclass(cls, torch.optim.Optimizer):
        yield "it must derive from torch.optim.Optimizer"
    elif "lr" not in inspect.signature(cls).parameters or not _takes(cls, "params"):
        yield "its __init__ does not take (params, lr=..., its arguments)"


def _method_faults(cls: type, name: str, *arguments: str) -> Iterator[str]:
    """That the method is missing or takes other arguments than these."""
    # Not by `getattr`, which would find the __call__ of any class: that makes an instance.
    method = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    given = arguments if isinstance(method, staticmethod) else ("self", *arguments)
    if method is None or method is nn.Module.forward:
        yield f"it has no {name}()"
    elif isinstance(method, FunctionType | staticmethod) and not _takes(
        method, *given, all_of=True
    ):
        yield f"its {name}() does not take ({', '.join(arguments)})"


def _takes(call: Callable[..., Any], *arguments: str, all_of: bool = False) -> bool:
    """Whether a call takes these arguments by position; with `all_of`, and needs no others."""
    signature = inspect.signature(call)
    try:
        (signature.bind if all_of else signature.bind_partial)(*arguments)
    except TypeError:
        return False
    return True


# By section: the contract, and what a class lacks of it.
_CONTRACTS: dict[str, tuple[str, Callable[[type], Iterator[str]]]] = {
    "heads": ("visionkit.Head", _head_faults),
    "backbones": ("visionkit.types.Backbone", _backbone_faults),
    "necks": ("visionkit.types.Backbone", _neck_faults),
    "datasets": ("visionkit.types.Dataset", _dataset_faults),
    "transforms": ("visionkit.types.Transform", _transform_faults),
    "loggers": ("visionkit.types.Logger", _logger_faults),
    "optimizers": ("torch.optim.Optimizer", _optimizer_faults),
}


def describe(section: str) -> str:
    """The text of `visionkit list`: type, first sentence of the docstring, arguments."""
    entries = []
    for name, cls in components(section).items():
        lines = [name, f"    {first_sentence(cls)}".rstrip()]
        for argument, (annotation, default) in arguments_of(section, name).items():
            value = "required" if default is REQUIRED else f"default {json.dumps(default)}"
            lines.append(f"    {argument}: {expected(annotation)} ({value})")
        entries.append("\n".join(line for line in lines if line))
    return "\n\n".join(entries)


def first_sentence(cls: type) -> str:
    """What the docstring of a class begins with."""
    paragraph = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def refuse_plugins(config: Mapping[str, Any], origin: str | Path, *, allowed: bool = False) -> None:
    """ConfigError if a config, as it is written in the file `origin`, names a class that visionkit
    does not have, unless that is `allowed` here or in the environment. Nothing is imported."""
    if allowed or os.environ.get(SETTING) == "1":
        return
    plugins = {f"{'.'.join(key)}.type: {spec['type']}": spec for key, spec in _plugins(config, ())}
    if not plugins:
        return
    ours = [name for section in PACKAGES for name in components(section)]
    old = [f"{at}: {new}" for at, spec in plugins.items() if (new := renamed_type(spec, ours))]
    if old:
        raise ConfigError(f"{origin}: its config is of visionkit 0.1: {listed(old)}")
    modules = dict.fromkeys(spec["type"].rpartition(".")[0] for spec in plugins.values())
    raise ConfigError(
        f"{origin}: its config names classes that are not part of visionkit: {listed(plugins)}; "
        f"for them Python would import {listed(modules)}, which runs that code on this machine. If "
        f"you trust the file and the code, add --allow-plugins, set {SETTING}=1, or pass "
        "allow_plugins=True in Python"
    )


def _plugins(value: Any, key: Key) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """Key and section of every custom class of a config, in the short form or the long, where
    `load_config` expects a class."""
    if isinstance(value, Mapping):
        name = value.get("type")
        if _names_a_class(key) and isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name):
            yield key, value
        for part, item in value.items():
            short = (*key, part) == ("train", "optimizer") and isinstance(item, str)
            yield from _plugins({"type": item} if short else item, (*key, str(part)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            short = key == ("train", "loggers") and isinstance(item, str)
            yield from _plugins({"type": item} if short else item, (*key, str(index)))


def _names_a_class(key: Key) -> bool:
    match key:
        case ("backbone",) | ("neck",) | ("head",) | ("heads", _):
            return True
        case ("data", *_, "train" | "val") | ("data", *_, "transforms", _):
            return True
        case ("train", "loggers", _) | ("train", "optimizer"):
            return True
    return False


def _own_classes(module: ModuleType) -> list[str]:
    """The public classes that a module defines or names in `__all__`."""
    exported = getattr(module, "__all__", ())
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and (name in exported or (value.__module__ == module.__name__ and name[0] != "_"))
    ]


def _import(name: str) -> ModuleType | None:
    """The module of that name, None if there is none; ConfigError if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            return None
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error
