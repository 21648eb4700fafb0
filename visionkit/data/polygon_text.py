"""The polygons in the text of COCO annotations, cut out and read apart: 85 % of a large file."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from visionkit.data.decimals import Numbers, read_numbers

MARK = b'"segmentation@": null'  # stands where polygons were cut out
KEY = "segmentation@"

_POLYGONS = re.compile(
    rb'"segmentation"[ \t\n\r]*:[ \t\n\r]*'
    rb"(\[[ \t\n\r]*\[[^\]]*\](?:[ \t\n\r]*,[ \t\n\r]*\[[^\]]*\])*[ \t\n\r]*\])"
)
_ESCAPED = re.compile(rb"\\u00[0-7]")  # a letter of ASCII, which nobody has to escape
_COMMA, _SPACE, _OPEN, _CLOSE = b", []"


class Cut(NamedTuple):
    """The text of some records without their polygons, and those of each that had any."""

    text: bytes
    points: np.ndarray  # (P, 2) float64
    sizes: np.ndarray  # (K,) points of each polygon
    counts: np.ndarray  # (N,) polygons of each record that has `KEY` now


def cut_polygons(text: bytes) -> Cut | None:
    """Take the polygons out of the text of JSON records; None where that is not safe.

    What was cut was `"segmentation": [[x, y, ...], ...]` with plain decimal numbers, at least six
    and an even count in each polygon. It may have been anywhere in a record. So the text counts
    only if each of the `counts` records has `KEY`, and none of them "segmentation" as well: then
    nothing was cut from an inner object, or where the key was there twice.
    """
    parts = _POLYGONS.split(text)
    rest = MARK.join(parts[::2])
    if rest.count(KEY.encode()) != len(parts) // 2 or _ESCAPED.search(rest):
        return None  # that key is in the file, or could be
    polygons = b"".join(parts[1::2])
    numbers = read_numbers(polygons)
    if numbers is None or not len(numbers.values):
        return None if polygons else Cut(text, np.empty((0, 2)), *np.empty((2, 0), np.int64))
    ends = _ends(numbers)
    if ends is None:
        return None
    polygon_ends, counts = ends
    sizes = np.diff(polygon_ends, prepend=0)
    if (sizes < 6).any() or (sizes % 2).any() or len(counts) != len(parts) // 2:
        return None
    return Cut(rest, numbers.values.reshape(-1, 2), sizes // 2, counts)


def _ends(numbers: Numbers) -> tuple[np.ndarray, np.ndarray] | None:
    """How many numbers there are before the end of each polygon, and polygons of each record.

    None unless the text is `[[1, 2], [3, 4]][[5, 6]]...`, with one space or none behind a comma.
    """
    text = numbers.text
    gaps = numbers.starts[1:] - numbers.ends[:-1]
    first = text[numbers.ends]
    closed = first == _CLOSE
    inside = gaps[~closed[:-1]]
    last = np.flatnonzero(closed)  # the last number of each polygon
    before = last[:-1]
    at, gap = numbers.ends[before], gaps[before]
    second, third, fourth = text[at + 1], text[at + 2], text[numbers.ends[before] + gap - 1]
    next_polygon = (second == _COMMA) & (fourth == _OPEN)
    next_polygon &= (gap == 3) | ((gap == 4) & (third == _SPACE))
    next_record = (second == _CLOSE) & (third == _OPEN) & (fourth == _OPEN) & (gap == 4)
    spaces = np.count_nonzero(inside == 2) + np.count_nonzero(next_polygon & (gap == 4))
    regular = (
        len(last)
        and last[-1] == len(first) - 1
        and bytes(text[1 : numbers.starts[0]]) == b"[["
        and bytes(text[numbers.ends[-1] : -1]) == b"]]"
        and (closed | (first == _COMMA)).all()
        and (inside <= 2).all()
        and (next_polygon | next_record).all()
        and np.count_nonzero(text[1:-1] == _SPACE) == spaces
    )
    if not regular:
        return None
    record_ends = np.append(np.flatnonzero(next_record) + 1, len(last))
    return last + 1, np.diff(record_ends, prepend=0)
