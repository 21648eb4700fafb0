"""The members of a large JSON object, its long lists in pieces, so that memory stays bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from mmap import mmap
from typing import Any

PIECE = 1 << 20  # bytes of a list that are read at once

Data = bytes | mmap
Take = Callable[[int, int], int | None]

_SPACE = re.compile(rb"[ \t\n\r]*")
_BETWEEN = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*(?=\{)")
_DECODER = json.JSONDecoder()


class RepeatedKey(ValueError):
    """A JSON object has a key twice; Python's parser takes the last one in silence."""


def read_members(data: Data, lists: Mapping[str, Take], piece: int = PIECE) -> dict[str, Any]:
    """The members of the JSON object `data` (UTF-8); of those in `lists` only that they are lists.

    `lists[key](start, end)` is called for one part of the list after another: `data[start:end]`
    are some of its elements, commas between. It returns None if they are just that, and must then
    have dealt with them; or the length of the elements if the list ends before the text does,
    having dealt with them. It raises ValueError, having done nothing, if the text is no JSON, and
    is then called with more of it.

    A member that is no list although it is in `lists` comes as its value. Raises ValueError if
    `data` is no JSON object, or has a key twice.
    """
    members: dict[str, Any] = {}
    at = _skip(data, _expect(data, _skip(data, 0), b"{"))
    more = data[at : at + 1] != b"}"
    while more:
        key, at = _value(data, at)
        if not isinstance(key, str):
            raise ValueError(f"a key is not a text: {key!r}")
        if key in members:
            raise RepeatedKey(f"the key {key!r} is there twice: remove one")
        at = _skip(data, _expect(data, _skip(data, at), b":"))
        if key in lists and data[at : at + 1] == b"[":
            members[key], at = [], _read_list(data, at + 1, lists[key], piece)
        else:
            members[key], at = _value(data, at)
        at = _skip(data, at)
        more = data[at : at + 1] == b","
        if more:
            at = _skip(data, at + 1)
    at = _skip(data, _expect(data, at, b"}"))
    if at < len(data):
        raise ValueError(f"extra data after the object (char {at})")
    return members


def elements(text: bytes) -> tuple[list[Any], int | None]:
    """The JSON values in the text of a list, and where they end, as `read_members` asks for it."""
    decoded = "[" + text.decode("utf-8") + "]"
    values, end = _DECODER.raw_decode(decoded)
    return values, None if end == len(decoded) else len(decoded[1 : end - 1].encode("utf-8"))


def _read_list(data: Data, at: int, take: Take, piece: int) -> int:
    """Hand out the elements of the list that begins at `at`; returns where it has ended.

    A piece is cut where one object may end and another begin. That may be inside of a text or of
    an inner list; then the piece is no JSON by itself, and a longer one is tried.
    """
    at = _skip(data, at)
    length = piece
    while True:
        end, following = _cut(data, at, length)
        try:
            used = take(at, end)
        except ValueError as error:
            if following is None:
                raise ValueError(_located(error, at - 1)) from None  # a bracket was put before it
            length = max(2 * length, end - at)
            continue
        if used is not None:
            return _expect(data, _skip(data, at + used), b"]")
        if following is None:
            raise ValueError(f"a list does not end (char {len(data)})")
        at, length = following, piece


def _located(error: ValueError, before: int) -> str:
    """The message with the place in the file, `before` which there are so many bytes."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg}: byte {before + len(error.doc[: error.pos].encode('utf-8'))}"


def proposals(data: Data, at: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Where the parts of a list begin and end, if each turns out to be JSON; goes on to the end
    of `data`, as it does not see where the list ends."""
    following: int | None = at
    while following is not None:
        at = following
        end, following = _cut(data, at, piece)
        yield at, end


def _cut(data: Data, at: int, length: int) -> tuple[int, int | None]:
    """The end of a part that begins at `at`, and where the next one begins."""
    found = _BETWEEN.search(data, at + length)
    return (found.start(1), found.end()) if found else (len(data), None)


def _value(data: Data, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends."""
    length = 1 << 16
    while True:
        whole = at + length >= len(data)
        text = data[at : at + length].decode("utf-8", "strict" if whole else "ignore")
        try:
            value, end = _DECODER.raw_decode(text)
        except ValueError:
            if whole:
                raise
        else:
            if whole or end < len(text):  # else a number may go on
                return value, at + len(text[:end].encode("utf-8"))
        length *= 4


def _skip(data: Data, at: int) -> int:
    return _SPACE.match(data, at).end()


def _expect(data: Data, at: int, mark: bytes) -> int:
    found = data[at : at + 1]
    if found != mark:
        raise ValueError(f"expected {mark.decode()!r}, found {found!r} (char {at})")
    return at + 1
