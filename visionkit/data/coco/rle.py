"""Pixels covered and set by many run-length coded masks at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

CHUNK = 2048  # masks decoded at once: their numbers stay in the cache
MORE = bytes(range(80, 256))  # the characters that another one of the same number follows
SIGNED = bytes(((code - 48 & 31 ^ 16) - 16) % 256 for code in range(256))  # the others, as int8


def rle_totals(codes: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each of N compressed run-length codes covers, and how many are set.

    Two (N,) int64; -1 in the first where a code is malformed or has a negative run length.
    TypeError if one is neither a str nor bytes.
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
    text = _joined(codes)
    chars = np.frombuffer(text, np.uint8)
    lengths = np.fromiter(map(len, codes), np.int64, len(codes))
    char_ends = (lengths + 1).cumsum() - 1
    followed = np.flatnonzero(chars >= 80)
    strange = np.flatnonzero(chars - np.uint8(48) > 63)
    numbers, too_long = _numbers(text, chars, followed)
    stops = char_ends - np.searchsorted(followed, char_ends)
    starts = np.concatenate([[0], stops[:-1] + 1])
    covered, filled, sound = _sums_of_every_second(numbers, starts, stops)
    sound &= (lengths > 0) & (chars[char_ends - 1] < 80)  # the last number has an end
    sound[np.searchsorted(char_ends, np.concatenate([strange, too_long]))] = False
    return np.where(sound, covered, -1), filled


def _joined(codes: Sequence[str | bytes]) -> bytes:
    """A byte for each character, ~ for those outside of ASCII; each code is followed by a zero,
    so that one that was cut short does not run into the next."""
    try:
        text = "0".join(codes)  # type: ignore[arg-type]  # tried first: mostly all are str
    except TypeError:  # some are bytes
        if set(map(type, codes)) - {str, bytes}:
            raise
        text = "0".join(c if isinstance(c, str) else c.decode("latin-1") for c in codes)
    return (text if text.isascii() else re.sub("[^\0-~]", "~", text)).encode() + b"0"


def _numbers(text: bytes, chars: np.ndarray, followed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The signed numbers that the characters (five bits each, low ones first) stand for, from
    place 2 on between zeros, and the characters where those of more than 35 bits begin.
    `followed` are the characters that another one follows."""
    last = np.frombuffer(text.translate(SIGNED, MORE), np.int8)  # mostly the only one
    owner = followed - np.arange(len(followed))
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    count = np.diff(first, append=len(followed))
    owner, place = owner[first], followed[first]
    too_long = place[count > 6]
    count = np.minimum(count, 6)
    longer = last[owner].astype(np.int64) << 5 * count
    for i in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > i)
        longer[rows] += (chars[place[rows] + i] & 31 ^ 16).astype(np.int64) << 5 * i
    numbers = np.zeros(2 * (len(last) // 2) + 6, np.int64)
    numbers[2 : 2 + len(last)] = last
    numbers[2 + owner] = longer
    return numbers, too_long


def _sums_of_every_second(
    numbers: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each code: the sum of all run lengths, the sum of every second, and whether all of them
    are from 0 to 2^32. Code i has the numbers from `starts[i]` to `stops[i]`, see `_numbers`."""
    total = np.where(stops > starts, numbers[2 + starts], 0)
    filled, sound = np.zeros_like(total), total >= 0
    for parity in (0, 1):  # the numbers at even and at odd places among all codes
        sums = numbers[parity::2].cumsum()
        place = 1 + (starts + 1 + parity) % 2  # in the code: from 1 the runs of ones, from 2 zeros
        begin = (starts + 2 + place) // 2
        count = np.maximum(stops - starts - place + 1, 0) // 2
        edges = np.stack([begin, begin + count], 1).ravel()
        base = sums[begin - 1]
        found = np.where(count, np.add.reduceat(sums, edges)[::2] - base * count, 0)
        total += found
        filled += np.where(place == 1, found, 0)
        sound &= (count == 0) | (np.minimum.reduceat(sums, edges)[::2] >= base)
        sound &= (count == 0) | (np.maximum.reduceat(sums, edges)[::2] <= base + 2**32)
    return total, filled, sound
