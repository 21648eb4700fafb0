"""Attributes of objects: which classes form one attribute, and how to say it in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from visionkit.errors import ConfigError

AttributeKind = Literal["one_of", "any_of", "yes_no"]
# In the class names of attributes: `color=red`, `covers:star`, `open`.
SEPARATORS: dict[AttributeKind, str] = {"one_of": "=", "any_of": ":", "yes_no": ""}
YES = 0.5  # the probability from which the answer is yes
_NAME = re.compile(r"([^=:]+)(?:([=:])(.+))?", re.DOTALL)


class Group(NamedTuple):
    """One attribute: its kind, the columns of its classes, and the value of each."""

    kind: AttributeKind
    columns: list[int]
    values: list[str]  # [""] for a yes or no


def groups(names: Sequence[str]) -> dict[str, Group]:
    """The attributes with these class names, by name, in the order of their first column.

    Raises ConfigError for a name that is empty, given twice, or of two kinds.
    """
    kinds = {separator: kind for kind, separator in SEPARATORS.items()}
    found: dict[str, Group] = {}
    for column, name in enumerate(names):
        match = _NAME.fullmatch(name)
        if match is None or name in names[:column]:
            fault = "is given twice" if match else "must be name, name=value or name:value"
            raise ConfigError(f"attributes: class {name!r} {fault}")
        attribute, separator, value = match.groups(default="")
        kind = kinds[separator]
        group = found.setdefault(attribute, Group(kind, [], []))
        if group.kind != kind:
            raise ConfigError(
                f"attributes: {attribute!r} has the classes {names[group.columns[0]]!r} and "
                f"{name!r}: an attribute is either one of (=), any of (:), or a yes or no"
            )
        group.columns.append(column)
        group.values.append(value)
    return found


def describe(names: Sequence[str], probs: Any) -> list[str]:
    """One object's attributes in words, such as `["color red 93%", "covered 71%"]`.

    `probs` (A,), a tensor or an array, are those of the classes `names`. Of a one-of attribute, the
    best value; of others, the values with a probability of at least `YES`.
    """
    words = []
    for attribute, group in groups(names).items():
        answers = [(float(probs[c]), v) for c, v in zip(group.columns, group.values, strict=True)]
        if group.kind == "one_of":
            answers = [max(answers, key=lambda answer: answer[0])]
        else:
            answers = [answer for answer in answers if answer[0] >= YES]
        words += [f"{f'{attribute} {value}'.strip()} {prob:.0%}" for prob, value in answers]
    return words
