"""Strict YAML: read a file with the line of each key, and write what reads back to the same values.

Numbers, booleans and null are those of YAML 1.2 without octal and hexadecimal: `1e-3` is a number,
while `no`, `012`, `12:30` and `2026-01-01` are strings. Duplicate keys, keys that are not strings,
tags, aliases and second documents are errors.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from visionkit.errors import ConfigError
from visionkit.runs.files import open_regular

Key = tuple[str, ...]

MAX_BYTES = 1_000_000
SHOWN = 20  # faults in one report
TAG = "tag:yaml.org,2002:"
REFUSED = "refused"  # tag of a node whose value is the reason why it is refused
SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {  # the first that matches
    TAG + "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    TAG + "bool": (
        re.compile(r"true|True|TRUE|false|False|FALSE"),
        lambda text: text.lower() == "true",
    ),
    TAG + "int": (re.compile(r"[-+]?(0|[1-9][0-9]{0,18})"), int),
    TAG + "float": (
        re.compile(
            r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),  # .inf -> inf
    ),
    TAG + "str": (re.compile(r".*", re.DOTALL), str),
}


class Fault(NamedTuple):
    """What is wrong in a text, and where: line and column count from 1."""

    line: int
    column: int
    message: str


def read(
    path: str | Path, expected: str = "a config begins with a line like 'task: detection'"
) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping in that file, and the line (from 1) of each of its keys.

    List items have their number as a key. Raises ConfigError with file and line of each fault;
    for an empty file with what was `expected`.
    """
    value, lines, faults = _load(_read_text(path))
    if faults:
        shown = [f"{path}:{f.line}:{f.column}: {f.message}" for f in faults[:SHOWN]]
        more = [f"{path}: and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ConfigError(*shown, *more)
    if not lines:
        raise ConfigError(f"{path}: is empty; {expected}")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:{lines[()]}: a config is a mapping, lines of 'key: value'")
    return value, lines


def parse(text: str) -> Any:
    """The value of a word on the command line: `[1, 2]`, `{a: b}`, `"quoted"`, or a plain scalar.

    A plain string may hold anything, such as a path with ': ' or ' #'. Raises ValueError.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return SCALARS[_plain_tag(text)][1](text)
    value, _, faults = _load(text)
    if faults:
        raise ValueError("; ".join(fault.message for fault in faults))
    return value


def dump(value: Any, *, ascii: bool = False, one_line: bool = False) -> str:
    """YAML that `read` and `parse` understand as the same value; tuples become lists."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=not ascii,
        default_flow_style=True if one_line else None,
        width=sys.maxsize if one_line else 99,
    )


def _plain_tag(text: str) -> str:
    return next(tag for tag, (pattern, _) in SCALARS.items() if pattern.fullmatch(text))


class _StrictScalars:
    """What an unquoted word means, for reading and for deciding what must be quoted."""

    def resolve(self, kind: type[Node], value: str, implicit: Any) -> str:
        if kind is ScalarNode and implicit[0]:
            return _plain_tag(value)
        return TAG + {ScalarNode: "str", SequenceNode: "seq", MappingNode: "map"}[kind]


class _Loader(_StrictScalars, yaml.SafeLoader):
    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """An alias or a node with a tag becomes a REFUSED one, so that all faults are reported."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            reason = f"the alias *{event.anchor} is not supported; write its value"
        else:
            node = super().compose_node(parent, index)
            if event.tag in (None, "!"):
                return node
            reason = f"unsupported tag {event.tag.replace(TAG, '!!')}; remove it"
        return ScalarNode(REFUSED, reason, event.start_mark, event.end_mark)


class _Dumper(_StrictScalars, yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, text: str) -> ScalarNode:
        """Rare line breaks, such as U+0085, survive only as escapes in double quotes."""
        return self.represent_scalar(TAG + "str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def _load(text: str) -> tuple[Any, dict[Key, int], list[Fault]]:
    """The value of a text, the line of each key (that of () is the first), and all faults."""
    lines: dict[Key, int] = {}
    faults: list[Fault] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = None if node is None else _value(node, (), lines, faults)
    except yaml.YAMLError as error:
        return None, lines, [_syntax_fault(error, text)]
    except RecursionError:
        return None, lines, [Fault(1, 1, "is nested too deeply")]
    return value, lines, sorted(faults)


def _value(node: Node, key: Key, lines: dict[Key, int], faults: list[Fault]) -> Any:
    """The plain value of a node; adds to `lines` and `faults`."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, SequenceNode):
        return [_value(n, (*key, str(i)), lines, faults) for i, n in enumerate(node.value)]
    if isinstance(node, MappingNode):
        result = {}
        for name_node, item in node.value:
            name, line = name_node.value, name_node.start_mark.line + 1
            if name_node.tag != TAG + "str":
                written = name if isinstance(name, str) else "a list or mapping"
                faults.append(_fault(name_node, f"a key must be a string, not {written}; quote it"))
            elif name in result:
                first = lines[(*key, name)]
                message = f"duplicate key {name!r}: on lines {first} and {line}"
                faults.append(_fault(name_node, message))
            else:
                lines[(*key, name)] = line
                result[name] = _value(item, (*key, name), lines, faults)
        return result
    if node.tag == REFUSED:
        return faults.append(_fault(node, node.value))
    return SCALARS[node.tag][1](node.value)


def _fault(node: Node, message: str) -> Fault:
    return Fault(node.start_mark.line + 1, node.start_mark.column + 1, message)


def _read_text(path: str | Path) -> str:
    if Path(path).suffix not in (".yaml", ".yml"):
        own = Path(path, "config.yaml")
        of_run = f"; that of this run is {own}" if os.path.isfile(own) else ""
        raise ConfigError(f"{path}: a config is a .yaml file{of_run}")
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1_000_000} MB; not a config")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text") from None


def _syntax_fault(error: yaml.YAMLError, text: str) -> Fault:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        return Fault(line, column, f"has a character that YAML forbids (code {error.character:#x})")
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    reason = error.problem or "cannot be parsed"
    if error.context and error.context_mark:
        reason += f" ({error.context} that begins on line {error.context_mark.line + 1})"
    if "'\\t'" in reason:
        reason += "; indent with spaces, not tabs"
    return Fault(mark.line + 1, mark.column + 1, reason)
