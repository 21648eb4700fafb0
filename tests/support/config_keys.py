"""Whether a key, a setting or a component that a page names exists."""

import argparse
import re
from functools import cache

from visionkit.cli import main
from visionkit.config import TrainConfig, load_config
from visionkit.config.components import INJECTED, PACKAGES, components
from visionkit.config.config import SOURCE_KEYS
from visionkit.config.schema import ConfigProblems, check_arguments, signature_arguments
from visionkit.config.shipped import shipped_configs
from visionkit.config.tasks import TASKS
from visionkit.config.validate import TOP
from visionkit.config.yaml import parse
from visionkit.errors import ConfigError

PLACES = {  # section of components -> where a config of one head and one source has them
    "backbones": ["backbone"],
    "necks": ["neck"],
    "heads": ["head"],
    "datasets": ["data.train", "data.val"],
    "transforms": [],
}


def exists(text):
    """Whether `train.lr`, `train.lr=0.1`, `{type: FCOS}`, `FCOS`, `--resume` are of visionkit."""
    if text.startswith("{type:"):
        return _is_component(text)
    if re.match(r"[a-z_.]+=", text):
        return _is_setting(text)
    names = {name for section in PACKAGES for name in components(section)}
    return text in keys() | _options() | names | shipped_configs().keys()


@cache
def keys():
    """Every dotted key that a config of one head and one source can have."""
    known = {*TOP, "base", "task", "head", "head.weight", "data.workers"}
    known |= {f"train.{name}" for name in TrainConfig.__dataclass_fields__}
    known |= {f"data.{name}" for name in SOURCE_KEYS}
    for section, places in PLACES.items():
        for place in places:
            known |= {f"{place}.type"}
            for name in components(section):
                known |= {f"{place}.{argument}" for argument in _arguments(section, name)}
    return known


def _arguments(section, name):
    return signature_arguments(components(section)[name], INJECTED.get(section, ()))


@cache
def _options():
    """Every option of the command line."""
    parsers, found = [main._parser()[0]], set()
    for parser in parsers:
        for action in parser._actions:
            found |= {*action.option_strings}
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


def _is_component(text):
    given = parse(text)
    name = given.pop("type")
    for section in PACKAGES:
        if name in components(section):
            problems, known = ConfigProblems("", {}), _arguments(section, name)
            needed = {key: known[key] for key in given if key in known}
            check_arguments(given, needed, (), problems)
            return not problems
    return False


def _is_setting(text):
    """Whether one of the shipped configs takes it; `task=` must name a task."""
    key, _, value = text.partition("=")
    if key == "task":
        return value in TASKS
    for path in shipped_configs().values():
        try:
            load_config(path, [text])
        except ConfigError:
            continue
        return True
    return False
