"""The polygons in the text of COCO annotations, cut out and checked: most of a large file.

They are kept as text, and read by `json` when an object is asked for. To know that nothing is
wrong with them takes no arithmetic, which would be half of the work of opening a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MARK = b'"segmentation@": null'  # stands where polygons were cut out
KEY = "segmentation@"
WIDEST = 15  # digits before a point; a double holds whole numbers of so many exactly

_POLYGONS = re.compile(
    rb'("segmentation"[ \t\n\r]*:[ \t\n\r]*)'
    rb"(\[[ \t\n\r]*\[[^\]]*\](?:[ \t\n\r]*,[ \t\n\r]*\[[^\]]*\])*[ \t\n\r]*\])"
)
_ESCAPED = re.compile(rb"\\u00[0-7]")  # a letter of ASCII, which nobody has to escape

# What may follow which character, 0 for any digit; `]` and `[` of two records stand together.
_FOLLOWING = {"0": "0.,]", ".": "0", "-": "0", ",": " 0-[", " ": "0-[", "[": "0-[", "]": "],["}
_ORDER = "".join(_FOLLOWING)
_KIND = bytes(
    _ORDER.index("0" if c in b"0123456789" else chr(c)) if c in b"0123456789.-, []" else 15
    for c in range(256)
)
_PAIRS = {16 * _ORDER.index(a) + _ORDER.index(b): a + b for a in _ORDER for b in _FOLLOWING[a]}
# Points, numbers and polygons are counted by these; `!` stands for what is in no plain polygons.
_TOLD = {"0.": ".", "0,": ",", "[0": "[", "[-": "[", "0]": "]"}
_MARK = bytes(ord(_TOLD.get(_PAIRS.get(pair, ""), "!")) for pair in range(256))
_UNTOLD = bytes(pair for pair, text in _PAIRS.items() if text not in _TOLD)


class Cut(NamedTuple):
    """The text of some records without their polygons, and those of each that had any."""

    text: bytes
    codes: bytes  # the polygons of all of them, as JSON
    starts: np.ndarray  # (N,) where those of each record that has `KEY` now were in the text
    sizes: np.ndarray  # (N,) how many bytes of it they were
    reach: np.ndarray  # (N,) float64, all |x|, |y| are below

    def outlines(self) -> Iterator[tuple[bytes, float]]:
        """The text of the polygons of each record, and their reach."""
        spans = pairwise([0, *self.sizes.cumsum().tolist()])
        for (start, end), reach in zip(spans, self.reach.tolist(), strict=True):
            yield self.codes[start:end], reach


def cut_polygons(text: bytes) -> Cut | None:
    """Take the polygons out of the text of JSON records; None where that is not safe.

    What was cut was `"segmentation": [[x, y, ...], ...]` with plain decimal numbers, at least six
    and an even count in each polygon. It may have been anywhere in a record. So the text counts
    only if each of the N records has `KEY`, and none of them "segmentation" as well: then
    nothing was cut from an inner object, or where the key was there twice.
    """
    parts = _POLYGONS.split(text)
    rest, codes = MARK.join(parts[::3]), b"".join(parts[2::3])
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    starts, sizes = (lengths.cumsum() - lengths)[2::3], lengths[2::3]
    if rest.count(KEY.encode()) != len(sizes) or (b"\\" in rest and _ESCAPED.search(rest)):
        return None  # that key is in the file, or could be
    if not codes:
        return Cut(rest, codes, starts, sizes, np.empty(0))
    reach = _reach(codes, sizes.cumsum()) if _is_plain(codes) else None
    return None if reach is None else Cut(rest, codes, starts, sizes, reach)


def _is_plain(codes: bytes) -> bool:
    """Whether polygons, which match `_POLYGONS`, hold plain numbers, an even count of at least six
    each, one space or none behind each comma.

    Zeros before other digits are left to `_reach`.
    """
    chars = np.frombuffer(codes, np.uint8)
    kinds = np.frombuffer(codes.translate(_KIND), np.uint8)
    pairs = kinds[:-1] * np.uint8(16) | kinds[1:]
    marks = pairs.tobytes().translate(_MARK, _UNTOLD)
    if b"!" in marks or np.count_nonzero(chars == 91) != np.count_nonzero(chars == 93):
        return False  # with as many `[` as `]`, none is among the numbers
    points = np.frombuffer(marks, np.uint8) == 46
    if (points[:-1] & points[1:]).any():
        return False  # a number has two
    frame = np.frombuffer(marks.translate(None, b"."), np.uint8)
    brackets = np.flatnonzero(frame != 44)  # where a polygon begins, where it ends, and so on
    counts = np.diff(brackets)[::2]
    return bool(((counts >= 6) & (counts % 2 == 0)).all())


def _reach(codes: bytes, ends: np.ndarray) -> np.ndarray | None:
    """(N,) a power of ten that no coordinate reaches, for polygons that end at `ends` (N,) in the
    text; at least 1000, which is less than ten times the size of most pictures. None where a
    number has a zero before other digits or too many digits."""
    chars = np.frombuffer(codes, np.uint8)
    digit = (chars - np.uint8(48)) <= 9  # lower characters wrap around
    before = (chars - np.uint8(46)) > 11  # neither digit nor point: a number may follow
    first = before[:-2] & digit[1:-1]
    first &= digit[2:]  # and the second
    if (first & (chars[1:-1] == 48)).any():
        return None
    reach, digits = np.full(len(ends), 1000.0), 4
    at = np.flatnonzero(first[:-2] & digit[3:-1] & digit[4:])
    while len(at):
        if digits > WIDEST:
            return None
        reach[np.searchsorted(ends, at, "right")] = 10.0**digits
        digits += 1
        at = at[digit[at + digits]]
    return reach
