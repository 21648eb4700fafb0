"""YAML whose values are all text, as lists of class names need it: one may be called `no`."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


def parse(text: str) -> Any:
    """Dicts, lists and strings; None for an empty text. Raises ValueError, of one line, for a text
    that is not YAML, is nested too deeply, or has aliases, which could grow without bound."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _value(root, set())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or "nested too deeply") from None


def _value(node: Node, seen: set[int]) -> Any:
    if id(node) in seen:
        raise yaml.YAMLError("aliases are not supported")
    seen.add(id(node))
    if isinstance(node, MappingNode):
        pairs = [(_value(key, seen), _value(value, seen)) for key, value in node.value]
        if not all(isinstance(key, str) for key, _ in pairs):
            raise yaml.YAMLError("a key is not a text")
        return dict(pairs)
    if isinstance(node, SequenceNode):
        return [_value(item, seen) for item in node.value]
    assert isinstance(node, ScalarNode)
    return node.value
