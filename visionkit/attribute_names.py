"""What the class names of attributes mean: `color=red`, `covers:star`, `open`.

One attribute of an object, its color say, is one or several classes, which the names tell:

    color=red, color=blue    one of: each object has exactly one of the values
    covers:star, covers:ring any of: each value is a yes or no of its own
    open                     a yes or no

An attribute's own name holds neither `=` nor `:`; a value may hold both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from visionkit.errors import ConfigError

Kind = Literal["one_of", "any_of", "yes_no"]
KINDS: dict[str | None, Kind] = {"=": "one_of", ":": "any_of", None: "yes_no"}
SEPARATORS = {kind: separator or "" for separator, kind in KINDS.items()}
YES = 0.5  # the probability from which a yes or no counts as yes

_NAME = re.compile(r"([^=:]+)(?:([=:])(.+))?", re.DOTALL)


class Group(NamedTuple):
    """One attribute: its kind, the columns of its classes, and the value that each stands for."""

    kind: Kind
    columns: list[int]
    values: list[str]  # [""] for a yes or no


def groups(names: Sequence[str]) -> dict[str, Group]:
    """The attributes behind these class names, by name, in the order of their first column.

    Raises ConfigError for a name that is empty, given twice, or of two kinds.
    """
    found: dict[str, Group] = {}
    for column, name in enumerate(names):
        match = _NAME.fullmatch(name)
        if match is None or name in names[:column]:
            fault = "is given twice" if match else "must be name, name=value or name:value"
            raise ConfigError(f"attributes: class {name!r} {fault}")
        attribute, separator, value = match.groups()
        kind = KINDS[separator]
        group = found.setdefault(attribute, Group(kind, [], []))
        if group.kind != kind:
            raise ConfigError(
                f"attributes: {attribute!r} has the classes {names[group.columns[0]]!r} and "
                f"{name!r}: an attribute is either one of (=), any of (:), or a yes or no"
            )
        group.columns.append(column)
        group.values.append(value or "")
    return found


def describe(names: Sequence[str], probs: Tensor) -> list[str]:
    """One object's attributes in words, for example `["color red 93%", "covered 71%"]`.

    `probs` (A,) belong to the classes `names`. Of a one-of attribute the best value; of the others
    those with a probability of at least `YES`.
    """
    words = []
    for attribute, group in groups(names).items():
        answers = [(probs[c].item(), v) for c, v in zip(group.columns, group.values, strict=True)]
        if group.kind == "one_of":
            answers = [max(answers, key=lambda answer: answer[0])]
        else:
            answers = [answer for answer in answers if answer[0] >= YES]
        words += [f"{f'{attribute} {value}'.strip()} {prob:.0%}" for prob, value in answers]
    return words
