"""Images that show nearly the same, by difference hashes (dHash)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from visionkit.data import image_io
from visionkit.data.image_io import Exif, Refused, ValueRange
from visionkit.data.loading.workers import cores
from visionkit.runs.terminal import progress_bar

CLOSE = 4  # bits in which the hashes of near duplicates may differ
COLUMNS, ROWS = 9, 8
DRAFT = (COLUMNS * 16, ROWS * 16)  # a JPEG is decoded at no less than this: several times faster
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # of each byte


class Look(NamedTuple):
    """What one pass over an image file shows."""

    hash: int = 0  # 64 bits
    height: int = 0
    width: int = 0
    fault: str = ""  # why it cannot be read: a clause that follows its name


def look(path: str | Path, exif: Exif = "apply", value_range: ValueRange | None = None) -> Look:
    """The difference hash of an image file, and its size as `read_image` returns it.

    The image is reduced to 9x8 gray pixels; a bit says whether one is darker than the next in its
    row. So brightness, contrast, size and compression hardly change the hash.
    """

    def hashed(image: Image.Image) -> Look:
        turned = exif == "apply" and image_io.orientation(image) >= 5
        width, height = image.size[::-1] if turned else image.size
        image.draft("L", DRAFT)
        gray = image_io.to_rgb(image_io.upright(image, exif), value_range).convert("L")
        pixels = np.asarray(gray.resize((COLUMNS, ROWS), Image.Resampling.BOX)).astype(np.int16)
        bits = np.packbits(pixels[:, :-1] < pixels[:, 1:])
        return Look(int.from_bytes(bits.tobytes(), "big"), height, width)

    try:
        return image_io.open_image(path, hashed)
    except Refused as refused:
        return Look(fault=refused.fault.clause)


def look_all(
    paths: Sequence[str | Path],
    what: str = "images",
    exif: Exif = "apply",
    value_range: ValueRange | None = None,
) -> list[Look]:
    """`look` of each file, in several threads; a file that is there twice is read once."""
    unique = [*dict.fromkeys(map(str, paths))]
    with ThreadPoolExecutor(cores() + 1, "look") as pool:
        looks = pool.map(lambda path: look(path, exif, value_range), unique)
        found = dict(zip(unique, progress_bar(looks, what, total=len(unique)), strict=True))
    return [found[str(path)] for path in paths]


def near_groups(hashes: np.ndarray) -> list[list[int]]:
    """The places in `hashes` (N,) uint64 of near duplicates, a sorted list for each group, sorted.

    Two are in one group if their hashes differ in at most `CLOSE` bits, or if others lead from one
    to the other in such steps.
    """
    values, place = np.unique(hashes, return_inverse=True)
    group = np.arange(len(values))

    def root(value: int) -> int:
        while group[value] != value:
            group[value] = value = group[group[value]]
        return value

    for one, other in close_pairs(values).tolist():
        low, high = sorted((root(one), root(other)))
        group[high] = low
    roots = np.array([root(value) for value in range(len(values))], np.int64)[place.ravel()]
    order = np.argsort(roots, kind="stable")
    found = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return sorted(members.tolist() for members in found if len(members) > 1)


def close_pairs(values: np.ndarray) -> np.ndarray:
    """(P, 2) the places of all pairs of different `values` (N,) uint64 that differ in at most
    `CLOSE` bits.

    Of such a pair at least one of `CLOSE` + 1 parts is equal, so only values with an equal part are
    compared.
    """
    starts = np.linspace(0, 64, CLOSE + 2).astype(int).tolist()
    found = [np.zeros((0, 2), np.int64)]
    for low, high in pairwise(starts):
        part = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        for one, other in pairs_within(part[order]):
            one, other = order[one], order[other]
            near = distances(values[one], values[other]) <= CLOSE
            found.append(np.stack([one[near], other[near]], 1))
    return np.unique(np.sort(np.concatenate(found), 1), axis=0)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) the number of bits that differ between two arrays (N,) uint64."""
    differing = np.ascontiguousarray(one ^ other).view(np.uint8).reshape(-1, 8)
    return _BITS[differing].sum(1)


def pairs_within(groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places with equal values in the sorted `groups` (N,): arrays of the first and of
    the second places, for one distance between the two after another."""
    first = np.arange(len(groups))
    for distance in count(1):
        first = first[: np.searchsorted(first, len(groups) - distance)]
        first = first[groups[first] == groups[first + distance]]
        if not len(first):
            return
        yield first, first + distance
