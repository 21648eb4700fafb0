"""The signature is the schema: values are checked against annotations of keyword arguments."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from visionkit.config.renamed import ELSEWHERE, renamed_key, usual_key
from visionkit.config.yaml import Key
from visionkit.errors import ConfigError, VisionkitError, printable, shorten, unknown


@dataclass(frozen=True)
class Range:
    """Bounds of a number in a signature, `low <= x <= high`, or `low < x` with `open`."""

    low: float | None = None
    high: float | None = None
    open: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.open else value < self.low):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'>' if self.open else '>='} {self.low:.10g}"
        high = "" if self.high is None else f"<= {self.high:.10g}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class OneOf:
    """The names that a string may be, where they are too many for a Literal."""

    names: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def mismatch(self, value: object) -> str:
        return unknown(value, self.names, f"got {shorten(repr(value))}", limit=len(self.names))


@dataclass(frozen=True)
class Form:
    """The form that a string must have: a regular expression, and the same in words."""

    pattern: str
    words: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(low=0, open=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
InputPath = Annotated[str, "path"]  # a file or folder that must exist before a run starts


class ConfigProblems:
    """Collects problems by key, for one error. A place is a line of a file, or an override."""

    def __init__(self, source: str, lines: Mapping[Key, int] | None = None) -> None:
        self._places: dict[Key, tuple[int, str]] = {}  # with their order
        self._last = 0
        self._renamed: dict[Key, Key] = {}
        self._raw: dict[Key, str] = {}
        self._found: dict[str, int] = {}
        self.located(source, lines or {})

    def located(self, source: str, lines: Mapping[Key, int]) -> None:
        """The values at these keys are from these lines of a file; what is missing is missing
        there."""
        for key, line in lines.items():
            self._places[key] = (self._last + line, f"{source}:{line}")
        self._places[()] = (0, source)
        self._last += max(lines.values(), default=0)

    def overridden(self, key: Key, place: str, raw: str | None = None) -> None:
        """The value at `key` and below is from that place, no longer from the one before; `raw` is
        the value as it was typed."""
        for known in (self._places, self._raw):
            for stale in [place for place in known if place[: len(key)] == key]:
                del known[stale]
        self._last += 1
        self._places[key] = (self._last, place)
        if raw is not None:
            self._raw[key] = raw
        for length in range(1, len(key)):  # sections that only the override mentions
            self._places.setdefault(key[:length], (self._last, place))

    def refused(self, place: str, message: str) -> None:
        """Add the problem of an override that cannot be applied."""
        self._last += 1
        self._found[printable(f"{place}: {message}")] = self._last

    def place(self, key: Key) -> str:
        """Where the value at a key is from, or the nearest section that it is in."""
        return self._place(self._as_written(key))[1]

    def _place(self, key: Key) -> tuple[int, str]:
        return self._places[
            next(k for n in range(len(key), -1, -1) if (k := key[:n]) in self._places)
        ]

    def fit(self, value: Any, annotation: Any, key: Key) -> Any:
        """The value as annotated, or as it was typed: `output=123` names a directory. ValueError if
        neither fits."""
        try:
            return convert(value, annotation)
        except ValueError:
            raw = self._raw.get(self._as_written(key))
            if raw is None or isinstance(value, (str, list, dict)):
                raise
            return convert(raw, annotation)

    def renamed(self, key: Key, written: Key) -> None:
        """The user wrote `written` for what is checked as `key`."""
        self._renamed[key] = written

    def add(self, key: Key, message: str | VisionkitError) -> None:
        key = self._as_written(key)
        order, text = self._place(key)
        parts = text, ".".join(key), message
        entry = ": ".join(printable(part) for part in parts if part)
        self._found.setdefault(entry, order)

    def _as_written(self, key: Key) -> Key:
        for long, written in self._renamed.items():
            if key[: len(long)] == long:
                return written + key[len(long) :]
        return key

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_found(self, kind: type[VisionkitError] = ConfigError) -> None:
        """One error of that kind with a line for each problem, in the order of the places."""
        if self._found:
            entries = sorted(self._found, key=lambda e: (self._found[e], e))
            raise kind(*(line for e in entries for line in e.split("\n")))


REQUIRED = inspect.Parameter.empty
LISTS, MAPPINGS = (list, tuple, Sequence, Iterable, Collection), (dict, Mapping)
PATH = get_args(InputPath)[1]


class Argument(NamedTuple):
    """One keyword argument: what it may be, and its default or REQUIRED."""

    annotation: Any
    default: Any


def signature_arguments(cls: type, injected: Collection[str] = ()) -> dict[str, Argument]:
    """The keyword arguments of a class, without those that visionkit itself passes.

    A constructor with `**kwargs` also takes the arguments of the base class's constructor. Raises
    ConfigError if the annotations cannot be read.
    """
    arguments: dict[str, Argument] = {}
    for owner in [base for base in cls.__mro__[:-1] if "__init__" in vars(base)]:
        try:
            hints = get_type_hints(vars(owner)["__init__"], include_extras=True)
        except (NameError, TypeError) as error:
            name = f"{owner.__module__}.{owner.__qualname__}"
            raise ConfigError(f"cannot read the annotations of {name}: {error}") from error
        parameters = inspect.signature(owner).parameters.values()
        arguments = {
            parameter.name: Argument(hints.get(parameter.name, Any), parameter.default)
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in injected
        } | arguments
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments


def check_arguments(
    given: Mapping[str, Any], accepted: Mapping[str, Argument], key: Key, problems: ConfigProblems
) -> dict[str, Any]:
    """The given values that fit, as their annotations have them; `problems` gets the others."""
    fitting = {}
    for name, value in given.items():
        if name not in accepted:
            meant, place = usual_key(name, accepted), ELSEWHERE.get(name)
            known = unknown(meant, accepted, limit=len(accepted), meant=place)
            problems.add((*key, str(name)), renamed_key(name, accepted) or known)
            continue
        try:
            fitting[name] = problems.fit(value, accepted[name].annotation, (*key, name))
        except ValueError:
            problems.add((*key, name), mismatch(value, accepted[name].annotation))
    for name, argument in accepted.items():
        if argument.default is REQUIRED and name not in given:
            problems.add((*key, name), f"missing; expected {expected(argument.annotation)}")
    return fitting


def mismatch(value: Any, annotation: Any) -> str:
    """The problem text of a value that `convert` refuses."""
    for option in get_args(annotation)[1:]:
        if isinstance(option, OneOf) and isinstance(value, str):
            return option.mismatch(value)
    faulty = isinstance(value, str) and not _is_writable(value)
    what = ", which cannot be a file name" if faulty else ""
    return f"got {shorten(repr(value))}{what}; expected {expected(annotation)}"


def convert(value: Any, annotation: Any) -> Any:
    """The value as annotated: 1 becomes 1.0 for a float, a list a tuple. ValueError if it misfits.

    Annotations other than those of this module and plain containers accept anything.
    """
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return _in_range(convert(value, args[0]), args[1:])
    if origin in (Union, UnionType):
        return _first_fitting(value, args)
    if origin is Literal:
        return _require(value, any(value == a and type(value) is type(a) for a in args))
    if origin in (None, NoneType):
        return _require(value, value is None)
    if origin is bool:
        return _require(value, isinstance(value, bool))
    if origin is int:
        return _require(value, isinstance(value, int) and not isinstance(value, bool))
    if origin is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_require(value, number and math.isfinite(value)))
    if origin is str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        return _require(value, isinstance(value, str) and _is_writable(value))
    if origin in LISTS:
        return _convert_list(value, origin, args)
    if origin in MAPPINGS:
        return _convert_mapping(value, args)
    return value


def expected(annotation: Any) -> str:
    """An annotation as a phrase: `an integer >= 1`, `'sgd' or 'adamw'`."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    if origin is Annotated:
        if PATH in args[1:]:
            return "a path"
        if choices := [str(m) for m in args[1:] if isinstance(m, (OneOf, Form))]:
            return choices[0]
        return " ".join([expected(args[0]), *(str(r) for r in args[1:] if isinstance(r, Range))])
    if origin in (Union, UnionType):
        return " or ".join(expected(option) for option in args)
    if origin is Literal:
        return " or ".join(repr(option) for option in args)
    if origin in (None, NoneType):
        return "null"
    if origin is tuple and args and Ellipsis not in args:
        return f"a list of {len(args)} ({', '.join(expected(item) for item in args)})"
    if origin in LISTS:
        return f"a list (each {expected(args[0])})" if args and args[0] is not Any else "a list"
    if origin in MAPPINGS:
        return (
            f"a mapping (each value {expected(args[1])})"
            if args and args[1] is not Any
            else "a mapping"
        )
    return words.get(origin, "any value")


def paths_in(value: Any, annotation: Any) -> list[str]:
    """The input paths among the values of an argument."""
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return [value] if PATH in args[1:] and isinstance(value, str) else []
    if origin in LISTS or origin in MAPPINGS:
        items = value.values() if isinstance(value, Mapping) else value
        inner = Any if not args else args[-1] if origin in MAPPINGS else args[0]
        fits = isinstance(value, (list, tuple, dict))
        return [path for item in items for path in paths_in(item, inner)] if fits else []
    if origin in (Union, UnionType):
        literal = any(
            get_origin(option) is Literal and value in get_args(option) for option in args
        )
        return [] if literal else [path for option in args for path in paths_in(value, option)]
    return []


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(value)
    return value


def _is_writable(text: str) -> bool:
    """Whether a file could be named so: no NUL, no half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _in_range(value: Any, metadata: tuple[Any, ...]) -> Any:
    kind = Range if isinstance(value, (int, float)) else (OneOf, Form)
    return _require(value, all(value in m for m in metadata if isinstance(m, kind)))


def _first_fitting(value: Any, options: tuple[Any, ...]) -> Any:
    """Converted by an option that keeps the type if there is one: 1 stays 1 in float | int."""
    results = []
    for option in options:
        try:
            results.append(convert(value, option))
        except ValueError:
            continue
    unchanged = [result for result in results if type(result) is type(value)]
    _require(value, bool(results))
    return (unchanged or results)[0]


def _convert_list(value: Any, origin: Any, args: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    _require(value, isinstance(value, (list, tuple)))
    if origin is not tuple:
        return [convert(item, args[0] if args else Any) for item in value]
    if not args or Ellipsis in args:
        return tuple(convert(item, args[0] if args else Any) for item in value)
    _require(value, len(value) == len(args))
    return tuple(convert(item, arg) for item, arg in zip(value, args, strict=True))


def _convert_mapping(value: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    _require(value, isinstance(value, Mapping) and all(isinstance(name, str) for name in value))
    return {name: convert(item, args[1] if args else Any) for name, item in value.items()}
