"""Strict YAML: reading with line numbers, and writing what reads back to the same values.

Numbers, booleans and null are those of YAML 1.2 without octal and hexadecimal: `1e-3` is a number,
while `no`, `012`, `12:30` and `2026-01-01` are text. Duplicate keys, keys that are not text,
unknown tags, recursive aliases and second documents are errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from visionkit.errors import ConfigError

Key = tuple[str, ...]

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000  # after aliases are expanded: a few lines of them can mean billions

TAG = "tag:yaml.org,2002:"
PATTERNS = {
    TAG + "null": re.compile(r"~|null|Null|NULL|"),
    TAG + "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    TAG + "int": re.compile(r"[-+]?(0|[1-9][0-9]{0,18})"),
    TAG + "float": re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    TAG + "str": re.compile(r".*", re.DOTALL),
}
CONVERT = {
    TAG + "null": lambda text: None,
    TAG + "bool": lambda text: text.lower() == "true",
    TAG + "int": int,
    TAG + "float": lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),  # .inf -> inf
    TAG + "str": str,
}


def read(path: str | Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping in that file, and the line (from 1) on which each of its keys stands.

    List items have their number as a key. Raises ConfigError naming the file and the line.
    """
    text = _read_text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_explain(error, text)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    if node is None:
        raise ConfigError(f"{path}: is empty; a config begins with a line like 'task: detection'")
    if not isinstance(node, MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(f"{path}:{line}: a config is a mapping, lines of 'key: value'")
    conversion = _Conversion()
    value = conversion.value(node, ())
    if conversion.faults:
        faults = sorted(conversion.faults)
        raise ConfigError(
            "\n".join(f"{path}:{line}:{column}: {fault}" for line, column, fault in faults)
        )
    return value, conversion.lines


def parse(text: str) -> Any:
    """The value of a word on the command line: `[1, 2]`, `{a: b}`, `"quoted"`, or a plain scalar.

    Plain text may hold anything, such as a path with ': ' or ' #'. Raises ValueError.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return CONVERT[_plain_tag(text)](text)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_explain(error, text).partition(": ")[2]) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    conversion = _Conversion()
    value = conversion.value(node, ())
    if conversion.faults:
        raise ValueError("; ".join(fault for _, _, fault in conversion.faults))
    return value


def dump(value: Any) -> str:
    """YAML that `read` and `parse` understand as the same value; tuples become lists."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=99,
    )


def _plain_tag(text: str) -> str:
    return next(tag for tag, pattern in PATTERNS.items() if pattern.fullmatch(text))


class _StrictScalars:
    """What an unquoted word means, for reading and for deciding what must be quoted."""

    def resolve(self, kind: type[Node], value: str, implicit: Any) -> str:
        if kind is ScalarNode and implicit[0]:
            return _plain_tag(value)
        return TAG + {ScalarNode: "str", SequenceNode: "seq", MappingNode: "map"}[kind]


class _Loader(_StrictScalars, yaml.SafeLoader):
    pass


class _Dumper(_StrictScalars, yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, text: str) -> ScalarNode:
        """Rare line breaks, such as U+0085, survive only as escapes in double quotes."""
        return self.represent_scalar(TAG + "str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


class _Conversion:
    """From the nodes of a YAML text to plain values; notes the lines of keys, and faults."""

    def __init__(self) -> None:
        self.lines: dict[Key, int] = {}
        self.faults: list[tuple[int, int, str]] = []
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: Node, key: Key) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            if self._count == MAX_VALUES + 1:
                self._fault(node, f"more than {MAX_VALUES} values, with aliases expanded")
            return None
        if id(node) in self._open:
            return self._fault(node, "an alias that contains itself")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if node.tag not in (TAG + "map", TAG + "seq"):
            return self._fault(node, f"unsupported tag {_shown(node.tag)}")
        self._open.add(id(node))
        convert = self._mapping if isinstance(node, MappingNode) else self._sequence
        result = convert(node, key)
        self._open.remove(id(node))
        return result

    def _scalar(self, node: ScalarNode) -> Any:
        if node.tag not in PATTERNS:
            return self._fault(node, f"unsupported tag {_shown(node.tag)}")
        if not PATTERNS[node.tag].fullmatch(node.value):
            return self._fault(node, f"{node.value!r} does not fit its tag {_shown(node.tag)}")
        return CONVERT[node.tag](node.value)

    def _sequence(self, node: SequenceNode, key: Key) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            item_key = (*key, str(index))
            self.lines[item_key] = item.start_mark.line + 1
            result.append(self.value(item, item_key))
        return result

    def _mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, item in node.value:
            if name_node.tag != TAG + "str" or not isinstance(name_node, ScalarNode):
                written = (
                    name_node.value if isinstance(name_node, ScalarNode) else "a list or mapping"
                )
                self._fault(name_node, f"a key must be text, not {written}; quote it")
                continue
            name = name_node.value
            item_key = (*key, name)
            line = name_node.start_mark.line + 1
            if name in result:
                first = self.lines[item_key]
                self._fault(name_node, f"duplicate key {name!r}: on lines {first} and {line}")
                continue
            self.lines[item_key] = line
            result[name] = self.value(item, item_key)
        return result

    def _fault(self, node: Node, message: str) -> None:
        self.faults.append((node.start_mark.line + 1, node.start_mark.column + 1, message))


def _read_text(path: str | Path) -> str:
    if Path(path).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a config is a .yaml file")
    try:
        with open(path, "rb") as file:
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


def _explain(error: yaml.YAMLError, text: str) -> str:
    """`:line:column: reason` of a syntax error."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f":{line}: holds a character that YAML forbids (code {error.character:#x})"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    reason = error.problem or "cannot be parsed"
    if error.context and error.context_mark:
        reason += f" ({error.context} that begins on line {error.context_mark.line + 1})"
    if "'\\t'" in reason:
        reason += "; indent with spaces, not tabs"
    return f":{mark.line + 1}:{mark.column + 1}: {reason}"


def _shown(tag: str) -> str:
    return tag.replace(TAG, "!!")
