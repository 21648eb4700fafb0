"""Checks of many COCO masks at once, and the areas of run-length coded ones."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

CHUNK = 1024  # masks decoded at once: their numbers stay in the cache


def rle_totals(codes: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each of N compressed run-length codes covers, and how many are set.

    Two (N,) int64; -1 in the first where a code is malformed or has a negative run length.
    """
    parts = [_totals(codes[i : i + CHUNK]) for i in range(0, len(codes), CHUNK)]
    covered, filled = zip(*parts, strict=True) if parts else ((), ())
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *covered]), np.concatenate([none, *filled])


def _totals(codes: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """`rle_totals` of a few: the arithmetic of `visionkit.data.masks.run_lengths`, without a loop.

    From its fourth number on a code stores differences to the number two places before. So sums
    over every second number of all codes together hold the run lengths, up to what the sums were
    before each code.
    """
    lengths = np.fromiter(map(len, codes), np.int64, len(codes))
    try:
        text = "".join(codes).encode("latin-1", "replace")  # a byte for each character
    except TypeError:  # some are bytes
        as_text = (code if isinstance(code, str) else code.decode("latin-1") for code in codes)
        text = "".join(as_text).encode("latin-1", "replace")
    chars = np.frombuffer(text, np.uint8) - np.uint8(48)
    last = chars < 32  # the last character of each number
    char_ends = lengths.cumsum()
    valid = lengths > 0
    finals = char_ends[valid] - 1
    valid[valid] = last[finals]
    last[finals] = True  # a code that was cut short must not run into the next one
    strange = np.flatnonzero(chars > 63)
    valid[np.searchsorted(char_ends, strange, side="right")] = False

    ends = np.flatnonzero(last)
    numbers, too_long = _numbers(chars, last, ends)
    valid[np.searchsorted(char_ends, too_long, side="right")] = False
    stops = np.searchsorted(ends, char_ends)
    starts = np.concatenate([[0], stops[:-1]])
    covered, filled = np.zeros(len(codes), np.int64), np.zeros(len(codes), np.int64)
    usable = np.flatnonzero(valid)
    if len(usable):
        sums = _sums_of_every_second(numbers, starts[usable], stops[usable])
        covered[usable], filled[usable], lowest = sums
        valid[usable[lowest < 0]] = False
    return np.where(valid, covered, -1), filled


def _numbers(
    chars: np.ndarray, last: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The signed numbers that the characters (five bits each, low ones first) stand for, and
    characters that belong to a number of more than 32 bits."""
    numbers = ((chars[ends] ^ 16).astype(np.int8) - np.int8(16)).astype(np.int64)  # of most
    others = np.flatnonzero(~last)  # characters that another one follows
    if not len(others):
        return numbers, others
    owner = others - np.arange(len(others))
    first = np.diff(owner, prepend=-1) > 0
    shift = 5 * (others - np.maximum.accumulate(np.where(first, others, 0)))
    too_long = others[shift >= 30]
    shift = np.minimum(shift, 30)
    final = np.append(first[1:], True)
    numbers[owner[final]] <<= shift[final] + 5
    for bits in range(0, int(shift.max()) + 1, 5):
        at = np.flatnonzero(shift == bits)
        numbers[owner[at]] += (chars[others[at]] & 31).astype(np.int64) << bits
    return numbers, too_long


def _sums_of_every_second(
    numbers: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each code: the sum of all run lengths, the sum of every second, and the least one."""
    padded = np.zeros(2 * (len(numbers) // 2) + 6, np.int64)
    padded[2 : 2 + len(numbers)] = numbers
    total, lowest = numbers[starts], numbers[starts]
    filled = np.zeros_like(total)
    for parity in (0, 1):  # the numbers at even and at odd places among all codes
        sums = padded[parity::2].cumsum()
        place = 1 + (starts + 1 + parity) % 2  # in the code: from 1 the runs of ones, from 2 zeros
        begin = (starts + 2 + place) // 2
        count = np.maximum(stops - starts - place + 1, 0) // 2
        edges = np.stack([begin, begin + count], 1).ravel()
        base = sums[begin - 1]
        found = np.where(count, np.add.reduceat(sums, edges)[::2] - base * count, 0)
        least = np.where(count, np.minimum.reduceat(sums, edges)[::2] - base, 0)
        total += found
        filled += np.where(place == 1, found, 0)
        lowest = np.minimum(lowest, least)
    return total, filled, lowest


def polygons_sound(objects: Sequence[list[Any]], sizes: np.ndarray) -> bool:
    """Whether `polygon_fault` finds nothing in any object of pictures of `sizes` (N, 2)."""
    try:
        flat = list(chain.from_iterable(objects))
        lengths = np.fromiter(map(len, flat), np.int64, len(flat))
        points = np.array(array("d", chain.from_iterable(flat)))
    except (TypeError, OverflowError):
        return False
    if (lengths < 6).any() or (lengths % 2).any() or any(type(p) is not list for p in flat):
        return False
    counts = np.fromiter(map(len, objects), np.int64, len(objects))
    limits = np.repeat(np.repeat(10 * sizes.max(1), counts), lengths)
    return bool((np.abs(points) <= limits).all())  # False for NaN


def polygon_fault(polygons: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with the polygons of an object in a picture of `size` (h, w), or None."""
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        return "must be a list of polygons [[x, y, x, y, ...], ...] or an RLE object"
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon has {len(polygon)} numbers: needs at least 6, an even count"
    try:
        points = np.array(array("d", chain.from_iterable(polygons)))
    except (TypeError, OverflowError) as error:
        return f"a polygon holds something else than numbers: {error}"
    if not (np.abs(points) <= 10 * max(size)).all():  # False for NaN
        return (
            "has a coordinate that is not finite or lies farther away than ten times the "
            "picture's size"
        )
    return None
