"""All decimal numbers of a text at once, with numpy; each equals what `float` makes of it.

Eight characters are one 64-bit word, on which digits are added up in three multiplications
(Lemire 2018, "Quickly parsing eight digits"). A number is the whole of its digits, below 2**53,
divided by a power of ten that a double holds exactly: both exact, so the quotient is the nearest
double, which is what `float` gives (Clinger 1990).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WIDEST = 15  # characters of a number that are read in words; so many digits are below 2**53

_PAD = b" " * 16  # before the text, so that two words can be read before each end
_POWERS = 10.0 ** np.arange(WIDEST + 1)

U = np.uint64
_ONES, _HIGHS = U(0x0101010101010101), U(0x8080808080808080)
_DOTS, _DIGITS = U(0x2E2E2E2E2E2E2E2E), U(0x0F0F0F0F0F0F0F0F)
_PLACES = U(0x0706050403020100)  # how many characters follow that one in its word


class Numbers(NamedTuple):
    """The numbers of a text in its order, and the text around them."""

    values: np.ndarray  # (N,) float64
    starts: np.ndarray  # (N,) int64, into `text`
    ends: np.ndarray  # (N,) int64
    text: np.ndarray  # (T,) uint8, with a space at both ends


def read_numbers(text: bytes) -> Numbers | None:
    """The runs of the characters `0123456789.-`; None if one of them is no number in JSON.

    A number with an exponent is two runs with an `e` between, which the caller must look for.
    """
    padded = b"".join((_PAD, text, b" " * 9))
    chars = np.frombuffer(padded, np.uint8)
    words = np.lib.stride_tricks.as_strided(chars[:8].view(U), (len(chars) - 7,), (1,))
    first = len(_PAD) - 1  # a space, as is the one behind the text
    inner = chars[first : first + len(text) + 2]
    is_number = (inner - np.uint8(45)) <= 12  # "-" to "9"; lower characters wrap around
    if np.count_nonzero(inner == 47):  # the slash, the only other one between
        return None
    edges = np.flatnonzero(is_number[1:] != is_number[:-1])
    edges += first + 1
    starts, ends = edges.reshape(-1, 2).T.copy()
    digits, negative = starts, None
    minuses = np.count_nonzero(inner == 45)
    if minuses:
        negative = chars[starts] == 45
        digits = starts + negative
        if np.count_nonzero(negative) != minuses:
            return None  # one is inside of a number
    if _malformed(chars, digits, ends):
        return None
    try:
        values, points = _values(padded, words, digits, ends)
    except ValueError:
        return None
    if points != np.count_nonzero(inner == 46):
        return None  # a number has two
    if negative is not None:
        np.negative(values, out=values, where=negative)
    return Numbers(values, starts - first, ends - first, inner)


def _malformed(chars: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> bool:
    """Whether any number, without its sign, begins or ends with no digit, or has a leading 0."""
    first, second = chars[starts], chars[starts + 1]
    leading = (first == 48) & (second >= 48) & (second <= 57)
    return bool((leading | (first < 48) | (first > 57) | (chars[ends - 1] < 48)).any())


def _values(
    text: bytes, words: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, int]:
    """The numbers there, which have no sign, and how many points were found in them.

    Raises ValueError for some that have two.
    """
    length = ends - starts
    whole, places, point = _digits(words[ends - 8], np.minimum(length, 8))
    values, points = whole.astype(np.float64), np.count_nonzero(point)
    values /= _POWERS[places]
    middle = np.flatnonzero((length > 8) & (length <= WIDEST))
    if len(middle):
        high, above, high_point = _digits(words[ends[middle] - 16], length[middle] - 8)
        if (point[middle] & high_point).any():
            raise ValueError("a number has two points")
        high *= np.where(point[middle], U(10**7), U(10**8))
        places = np.where(high_point, 8 + above, places[middle])
        values[middle] = (high + whole[middle]).astype(np.float64) / _POWERS[places]
        points += np.count_nonzero(high_point)
    long = np.flatnonzero(length > WIDEST)
    if len(long):
        spans = zip(starts[long].tolist(), ends[long].tolist(), strict=True)
        numbers = [text[start:end] for start, end in spans]
        values[long] = list(map(float, numbers))
        points += b"".join(numbers).count(b".") - np.count_nonzero(point[long])
    return values, points


def _digits(words: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `length` characters of each word, digits and at most one point: all the digits as
    one whole number, how many of them are behind the point, and whether there is one."""
    shift = (8 - length).astype(U) << U(3)
    words = words >> shift << shift  # what is before the number becomes zero
    found = words ^ _DOTS
    dot = (found - _ONES) & ~found & _HIGHS
    dot >>= U(7)  # a one in the byte of the point
    has_dot = dot != 0
    before = dot - U(1)  # all ones where there is no point
    low = words & before
    low <<= has_dot.astype(U) << U(3)  # close the gap that the point leaves
    behind = words & ~(before | (dot * U(255)))
    digits = (low | behind) & _DIGITS
    digits = (digits * U(10) + (digits >> U(8))) & U(0x00FF00FF00FF00FF)
    digits = (digits * U(100) + (digits >> U(16))) & U(0x0000FFFF0000FFFF)
    digits = (digits * U(10_000) + (digits >> U(32))) & U(0x00000000FFFFFFFF)
    return digits, ((dot * _PLACES) >> U(56) & U(7)).astype(np.intp), has_dot
