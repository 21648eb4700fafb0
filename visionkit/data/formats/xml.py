"""Read and write the XML of annotation formats.

A file cannot define entities or name other files: document type declarations are refused before
anything in them is used. What is in memory at once is bounded.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from visionkit.data.coco.tables import FARTHEST
from visionkit.data.files import find_fault
from visionkit.runs.files import open_regular

CHUNK = 1 << 20
LARGEST = 16 << 20  # bytes of one child of the root: one image and its objects
MOST = 1_000_000  # elements in it
DEEPEST = 50  # elements in each other
_BEGINNINGS = (b"<", b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe", b"\0<")  # of XML, with byte orders
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_HELD = re.compile("[\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
_OF_ENCODING = ("not well-formed (invalid token)", "unknown encoding")


class XmlFault(Exception):
    """A file cannot be read as XML: the line, 0 if there is none; what is wrong; what to do."""

    def __init__(self, line: int, what: str, hint: str = ""):
        super().__init__(what)
        self.line, self.what, self.hint = line, what, hint


@dataclass(slots=True)
class Element:
    """An element and what is in it. `text` is its own, without spaces at both ends."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, tag: str) -> Element | None:
        """The first child with that tag."""
        return next((one for one in self.children if one.tag == tag), None)

    def text_of(self, tag: str) -> str:
        """The text of the first child with that tag; "" if there is none."""
        found = self.child(tag)
        return "" if found is None else found.text


def read_children(path: Path, root: str) -> Iterator[Element]:
    """The children of the root of an XML file, one after another, each with all that is in it.
    Raises XmlFault for what is not XML with the root `root`."""
    try:
        file = open_regular(path)
    except OSError:
        raise XmlFault(0, find_fault(path).clause) from None
    with file:
        start = file.read(CHUNK)
        if not start.lstrip().startswith(_BEGINNINGS):
            raise XmlFault(0, find_fault(path).clause)
        builder, data, size = _Builder(root), start, 0
        while True:
            size += len(data)
            builder.feed(data)
            if size - builder.start > LARGEST:
                what = f"one element has more than {LARGEST >> 20} MB"
                raise XmlFault(builder.line, what, "divide it")
            yield from builder.done
            builder.done.clear()
            if not data:
                return
            data = file.read(CHUNK)


class _Builder:
    """Makes elements of what expat finds. `done` has the children of the root that have ended."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.open: list[Element] = []
        self.texts: list[list[str]] = []  # of the open elements
        self.done: list[Element] = []
        self.start = 0  # byte where the last child of the root began or ended
        self.count = 0  # elements since
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse

    @property
    def line(self) -> int:
        return self.parser.CurrentLineNumber

    def feed(self, data: bytes) -> None:
        """Parse more of the file; its end if there is nothing."""
        try:
            self.parser.Parse(data, not data)
        except expat.ExpatError as error:
            text = expat.ErrorString(error.code)
            hint = "save it as UTF-8" if text in _OF_ENCODING else "write it again"
            raise XmlFault(error.lineno, f"is not well-formed XML: {text}", hint) from None
        except (ValueError, LookupError) as error:  # of an encoding
            raise XmlFault(1, f"cannot be decoded [{error}]", "save it as UTF-8") from None

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        if not self.open and tag != self.root:
            raise XmlFault(self.line, f"the root element is <{tag}>: must be <{self.root}>")
        if len(self.open) >= DEEPEST:
            raise XmlFault(self.line, f"more than {DEEPEST} elements are in each other")
        self.count += 1
        if self.count > MOST:
            raise XmlFault(self.line, f"one element has more than {MOST} in it", "divide it")
        element = Element(tag, attributes, self.line)
        if len(self.open) == 1:
            self.start, self.count = self.parser.CurrentByteIndex, 0
        elif self.open:
            self.open[-1].children.append(element)
        self.open.append(element)
        self.texts.append([])

    def _end(self, tag: str) -> None:
        element, texts = self.open.pop(), self.texts.pop()
        element.text = "".join(texts).strip()
        if len(self.open) == 1:
            self.done.append(element)
            self.start = self.parser.CurrentByteIndex

    def _characters(self, text: str) -> None:
        if len(self.open) > 1:
            self.texts[-1].append(text)

    def _refuse(self, *_: Any) -> int:
        what = "has a document type declaration (DTD), which could define entities"
        raise XmlFault(self.line, what, "remove the declaration")


def number(text: str) -> float:
    """A decimal number. ValueError for anything else."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= FARTHEST:
        hint = ": write a point instead of the comma" if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise ValueError(f"{text!r} is not a number{hint}" if text else "a number is missing")
    return value


def typed(text: str) -> bool | int | float | str:
    """A value that was written as text: `true` and `false`, numbers, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"-?(0|[1-9]\d{0,14})", text, re.ASCII):
        return int(text)
    is_plain = re.fullmatch(r"-?\d{1,15}\.\d{1,15}", text, re.ASCII)
    return float(text) if is_plain else text


def fits(text: str) -> bool:
    """Whether XML can hold the text and a reader gets the same: no control characters, halves of
    characters, or spaces at an end."""
    return text == text.strip() and _HELD.fullmatch(text) is not None


def escape(text: str) -> str:
    """Text for the content of an element or a quoted attribute."""
    return html.escape(text)
