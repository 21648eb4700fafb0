"""Finding classes by the `type:` of a config: in visionkit's folders, else by import path.

There is no registry. `detection.FasterRCNN` in the section `heads` is the class `FasterRCNN` of
visionkit/heads/detection.py; `my_package.pose.PoseHead` is found wherever Python finds it, the
current directory included. Finding it runs its module, so who may name it is a question of trust:
see `config.plugins`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterable
from types import ModuleType

from visionkit.contracts import check_class
from visionkit.errors import ConfigError
from visionkit.types import Head

INJECTED = {"heads": ("levels", "classes"), "necks": ("levels",)}  # arguments no config gives
FOLDERS = {"datasets": "data", "transforms": "data"}  # of sections that are not named alike


def resolve(section: str, type_name: str) -> type:
    """The class that `type: type_name` means in `backbones`, `necks`, `heads` or `data`.

    Raises ConfigError with the valid names and the nearest one, or the reason why a module cannot
    be imported.
    """
    if not isinstance(type_name, str) or not re.fullmatch(r"\w+(\.\w+)+", type_name):
        what = f"got {type_name!r}; expected module.Class"
        raise ConfigError(unknown(type_name, components(section), what))
    module_name, _, class_name = type_name.rpartition(".")
    found, theirs = shipped(section, type_name), None
    if found is None:
        _make_current_directory_importable()
        theirs = _import(module_name)
        found = vars(theirs).get(class_name) if theirs else None
    if not isinstance(found, type):
        nearby = [f"{module_name}.{name}" for name in _own_classes(theirs)]
        valid = [*components(section), *nearby]
        what = f"unknown type {type_name!r}"
        if theirs is None:
            what += " (one of your own must be importable from this folder or PYTHONPATH)"
        raise ConfigError(unknown(type_name, valid, what))
    if section == "heads" and not issubclass(found, Head):
        raise ConfigError(f"{type_name} must derive from visionkit.types.Head")
    if section == "heads":
        check_class(type_name, found)
    return found


def shipped(section: str, type_name: str) -> type | None:
    """The component of visionkit itself with that `type:`, if there is one.

    Imports nothing from outside visionkit to find out. What a module of visionkit merely imports,
    or uses as a part, is no component.
    """
    module_name, _, class_name = type_name.rpartition(".")
    found = getattr(_import(f"{_package(section)}.{module_name}"), class_name, None)
    ours = isinstance(found, type) and found.__module__.startswith("visionkit.")
    return found if ours and _fits(section, found) else None


def components(section: str) -> dict[str, type]:
    """The classes that visionkit itself has for a section, by their `type:`.

    Sections are `backbones`, `necks`, `heads`, `datasets`, `transforms`, and `data` for the last
    two together. A class that another module names in its `__all__` is listed there. Modules whose
    optional dependency is missing are left out.
    """
    return {name: cls for name, cls in _scan(section).items() if isinstance(cls, type)}


def describe(section: str) -> str:
    """The text of `visionkit list`: type, first sentence of the docstring, knobs with defaults."""
    from visionkit.config.schema import REQUIRED, expected, knobs  # it imports this module

    entries = []
    for name, found in _scan(section).items():
        if not isinstance(found, type):
            entries.append(f"{name}.*: not available here: {found}")
            continue
        lines = [name, f"    {_first_sentence(found)}".rstrip()]
        for knob_name, knob in knobs(found, INJECTED.get(section, ())).items():
            default = "required" if knob.default is REQUIRED else f"default {knob.default!r}"
            lines.append(f"    {knob_name}: {expected(knob.annotation)} ({default})")
        entries.append("\n".join(line for line in lines if line))
    return "\n\n".join(entries)


def unknown(name: object, valid: Iterable[str], what: str = "unknown key") -> str:
    """`unknown key; did you mean 'lr'? valid: ...`"""
    by_lower = {option.lower(): option for option in valid}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    guess = f"; did you mean {by_lower[close[0]]!r}?" if close else ";"
    return f"{what}{guess} valid: {', '.join(sorted(by_lower.values())) or 'none'}"


def _scan(section: str) -> dict[str, type | str]:
    """Components by type; for a module that cannot be imported, the reason by its name."""
    package = _package(section)
    found: dict[str, type | str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.ispkg:
            continue
        try:
            module = _import(f"{package}.{info.name}")
        except ConfigError as error:
            found[info.name] = str(error)
            continue
        for name, value in _own_classes(module).items():
            if _fits(section, value):
                found[f"{info.name}.{name}"] = value
    exported = {cls for name, cls in found.items() if not _is_home(package, name, cls)}
    return {
        name: cls
        for name, cls in sorted(found.items())
        if cls not in exported or not _is_home(package, name, cls)
    }


def _is_home(package: str, name: str, cls: type | str) -> bool:
    return isinstance(cls, str) or f"{package}.{name}" == f"{cls.__module__}.{cls.__name__}"


def _own_classes(module: ModuleType | None) -> dict[str, type]:
    """The public classes that a module defines or names in `__all__`."""
    exported = getattr(module, "__all__", ())
    return {
        name: value
        for name, value in (vars(module) if module else {}).items()
        if isinstance(value, type)
        and (name in exported or (value.__module__ == module.__name__ and name[0] != "_"))
    }


def _fits(section: str, cls: type) -> bool:
    """Whether a class of a section's folder is one of its components and not a part of one."""
    if issubclass(cls, BaseException):  # some have no signature
        return False
    arguments = list(inspect.signature(cls).parameters.values())
    only_knobs = all(argument.kind is argument.KEYWORD_ONLY for argument in arguments)
    if section == "heads":
        return issubclass(cls, Head)
    if section == "backbones":
        return _declares(cls, "levels") and only_knobs
    if section == "necks":
        return _declares(cls, "levels")
    is_transform = cls.__module__ == f"{_package(section)}.transforms"
    methods = ("__len__", "__getitem__", "__iter__")  # of types.Dataset
    is_dataset = all(hasattr(cls, m) for m in methods) and not issubclass(cls, (tuple, list, dict))
    return {
        "transforms": is_transform and only_knobs,
        "datasets": is_dataset,
        "data": is_dataset or (is_transform and only_knobs),
    }[section]


def _first_sentence(cls: type) -> str:
    paragraph = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _declares(cls: type, name: str) -> bool:
    return any(name in vars(c) or name in vars(c).get("__annotations__", {}) for c in cls.__mro__)


def _package(section: str) -> str:
    return f"visionkit.{FOLDERS.get(section, section)}"


def _import(name: str) -> ModuleType | None:
    """The module of that name, None if there is none; ConfigError if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name is not None
        if absent and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def _make_current_directory_importable() -> None:
    """At the end of the path, so that a file lying there hides no installed package."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
