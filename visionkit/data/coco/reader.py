"""Read JSON in chunks, so that memory stays bounded: COCO annotation files and result files."""

from __future__ import annotations

import gc
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionkit.data.files import diagnose
from visionkit.errors import DataError
from visionkit.runs.files import open_regular

CHUNK = 1 << 20  # bytes of a list that are decoded at once

Data = bytes | mmap.mmap
Take = Callable[[bytes], int | None]

_SPACE = re.compile(rb"[ \t\n\r]*")
_BETWEEN = re.compile(rb"\}[ \t\n\r]*(,)[ \t\n\r]*(?=\{)")
_DECODER = json.JSONDecoder()


@contextmanager
def json_file(path: str | Path, what: str) -> Iterator[Data]:
    """The text of a JSON file in UTF-8 without a byte order mark, mapped into memory.

    DataError, which begins with `what` and the path, for a file that cannot be read and for a
    ValueError or RecursionError inside of the `with` block. The block runs without garbage
    collection, which would take as long as the decoding and find nothing.
    """
    with paused_collector():
        try:
            with open_regular(path) as file:
                start = file.read(4)
                encoding = json.detect_encoding(start) if start else "utf-8"
                if start and encoding == "utf-8":
                    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                        yield data
                else:
                    yield (start + file.read()).decode(encoding).encode("utf-8")
        except DataError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{what} {path} {diagnose(path)} [{error}]") from None


@contextmanager
def paused_collector() -> Iterator[None]:
    """Suspend garbage collection while many objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_members(data: Data, lists: Mapping[str, Take], chunk: int = CHUNK) -> dict[str, Any]:
    """The members of the JSON object `data`; those in `lists` go to their functions in chunks.

    See `read_list`. In the result such a member is an empty list; one that is not a list comes as
    its value. Raises ValueError if `data` is not a JSON object, or has a key twice.
    """
    members: dict[str, Any] = {}
    at = skip(data, _expect(data, skip(data), b"{"))
    more = data[at : at + 1] != b"}"
    while more:
        key, at = _value(data, at)
        if not isinstance(key, str):
            raise ValueError(f"a key is not a string: {key!r}")
        if key in members:  # Python's parser would silently use the last one
            raise ValueError(f"the key {key!r} is there twice: remove one")
        at = skip(data, _expect(data, skip(data, at), b":"))
        if key in lists and data[at : at + 1] == b"[":
            members[key], at = [], read_list(data, at, lists[key], chunk)
        else:
            members[key], at = _value(data, at)
        at = skip(data, at)
        more = data[at : at + 1] == b","
        if more:
            at = skip(data, at + 1)
    expect_end(data, _expect(data, at, b"}"))
    return members


def read_list(data: Data, at: int, take: Take, chunk: int = CHUNK) -> int:
    """Pass the elements of the list that begins at `at` to `take` in chunks; returns its end.

    `take` gets the text of some elements with commas between. It returns None if the text is just
    that; or the length of the elements if the list ends before the text does. It raises what
    `elements` raises if the text is not JSON, and is then called with more: a chunk ends where one
    object may end and another begin, which may be inside of a string or of an inner list.
    """
    at = skip(data, at + 1)
    length = chunk
    while True:
        found = _BETWEEN.search(data, at + length)
        end, following = (found.start(1), found.end()) if found else (len(data), None)
        try:
            used = take(data[at:end])
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if following is None:
                raise ValueError(_located(error, at - 1)) from None  # `elements` put [ before it
            length = max(2 * length, end - at)
            continue
        if hasattr(data, "madvise"):  # else all of the mapped file counts as memory in use
            data.madvise(mmap.MADV_DONTNEED, at - at % mmap.PAGESIZE, end - at)
        if used is not None:
            return _expect(data, skip(data, at + used), b"]")
        if following is None:
            raise ValueError(f"a list does not end (char {len(data)})")
        at, length = following, chunk


def elements(text: bytes) -> tuple[list[Any], int | None]:
    """The JSON values in the text of a list, and what `Take` returns; JSONDecodeError, or
    UnicodeDecodeError, if there are none."""
    decoded = "[" + text.decode("utf-8") + "]"
    values, end = _DECODER.raw_decode(decoded)
    return values, None if end == len(decoded) else len(decoded[1 : end - 1].encode("utf-8"))


def json_type(value: Any) -> str:
    """The JSON type of a value, for a message."""
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return kinds.get(type(value), "true or false" if isinstance(value, bool) else "a number")


def skip(data: Data, at: int = 0) -> int:
    """The place of the next byte that is not space."""
    space = _SPACE.match(data, at)
    assert space is not None  # it matches nothing, too
    return space.end()


def expect_end(data: Data, at: int) -> None:
    """ValueError if anything but space follows."""
    at = skip(data, at)
    if at < len(data):
        raise ValueError(f"extra data at the end (char {at})")


def _located(error: ValueError, before: int) -> str:
    """The message with the byte in the file, `before` which there are so many bytes."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg}: byte {before + len(error.doc[: error.pos].encode('utf-8'))}"


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
            if whole or end < len(text):  # else a number may continue
                return value, at + len(text[:end].encode("utf-8"))
        length *= 4


def _expect(data: Data, at: int, mark: bytes) -> int:
    found = data[at : at + 1]
    if found != mark:
        raise ValueError(f"expected {mark.decode()!r}, found {found!r} (char {at})")
    return at + 1
