"""Every picture of a data set looked at before it is needed, and what is wrong with each."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from visionkit.data.files import find_fault, shown
from visionkit.data.images import Refused, check_label_mode
from visionkit.data.kept_looks import KeptLooks, State
from visionkit.data.picture_look import SUFFIXES_OF, Look, look_at, of_fault
from visionkit.data.read_ahead import cores

MOST = 16  # threads; decoding is done outside of Python's lock
_BLOCK = 32  # pictures that a thread takes at once, and that are remembered together

LOST = {  # a note on what reading leaves out
    "alpha": "has transparent pixels: alpha is dropped",
    "bits": "has 16 bits a channel: they are scaled to 8",
    "frames": "holds several pictures: only the first is used",
}

Exif = Literal["apply", "ignore"]
Severity = Literal["error", "warning", "note"]


class PictureFault(NamedTuple):
    """Something about one picture. An `error` means that it cannot be used as it is; a `warning`
    that something in it is lost or looks wrong; a `note` is only worth counting."""

    index: int  # in the list of pictures
    kind: str  # "missing", "damaged", "size", "alpha", ...: what to count by
    message: str  # with the path, what was found and what to do
    severity: Severity


def look_at_all(paths: Sequence[Path], name: str = "pictures") -> list[Look]:
    """A look at each picture, by several threads, or as it is remembered from an earlier start.

    A file that is the same in path, size and time of change is not looked at again.
    """
    full = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([*{os.path.dirname(path) for path in full}] or [os.sep])
    folder = folder.rstrip(os.sep) + os.sep
    kept, looks = KeptLooks(folder), dict[str, Look]()
    unknown: list[str] = []
    for path in dict.fromkeys(full):
        state = _state(path)
        known = None if state is None else kept.find(path[len(folder) :], state)
        if known is None:
            unknown.append(path)
        else:
            looks[path] = known
    with tqdm(total=len(unknown), desc=f"checking {name}", leave=False, disable=None) as bar:
        for found in _in_threads(unknown):
            kept.add((path[len(folder) :], state, look) for path, state, look in found if state)
            looks |= {path: look for path, _, look in found}
            bar.update(len(found))
    kept.close()
    return [looks[path] for path in full]


def find_faults(
    paths: Sequence[Path],
    looks: Sequence[Look],
    sizes: Sequence[tuple[int, int] | None] | np.ndarray | None = None,
    exif: Exif = "apply",
    *,
    maps: bool = False,
) -> list[PictureFault]:
    """What those looks tell, in the order of `paths`.

    sizes: the (h, w) that each should have, as the annotations say, after `exif`; None where they
        do not say.
    maps: whether they are maps of class numbers, which `exif` never turns.
    """
    faults: list[PictureFault] = []
    wanted = [None] * len(paths) if sizes is None else sizes
    for i, (path, look, size) in enumerate(zip(paths, looks, wanted, strict=True)):
        size = None if size is None else (int(size[0]), int(size[1]))
        found = _faults_of_map(look, size) if maps else _faults_of(look, size, exif)
        if look.format and Path(path).suffix.lower() not in SUFFIXES_OF.get(look.format, ()):
            found.append(("suffix", f"is a {look.format} file, whatever its name ends in", "note"))
        subject = f"{'class map' if maps else 'picture'} {shown(path)}"
        faults += [PictureFault(i, kind, f"{subject} {what}", level) for kind, what, level in found]
    return faults


def same_content(looks: Iterable[Look]) -> list[list[int]]:
    """The places of pictures whose files hold the same bytes, a list for each such file."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, look in enumerate(looks):
        if look.content:
            places[look.content].append(i)
    return [alike for alike in places.values() if len(alike) > 1]


def size_seen(look: Look, exif: Exif = "apply") -> tuple[int, int]:
    """The (h, w) of the picture as it is read."""
    turned = exif == "apply" and look.orientation >= 5
    return (look.width, look.height) if turned else (look.height, look.width)


_Found = list[tuple[str, str, Severity]]


def _faults_of(look: Look, size: tuple[int, int] | None, exif: Exif) -> _Found:
    if look.kind:
        return [(look.kind, look.clause, "error")]
    found: _Found = [(what, LOST[what], "warning") for what in look.loses.split()]
    if look.orientation != 1:
        done = "is turned upright" if exif == "apply" else "is left as it is stored"
        found.append(("exif", f"has EXIF orientation {look.orientation}: it {done}", "note"))
    seen = size_seen(look, exif)
    if size is not None and seen != size:
        found.append(("size", _wrong_size(look, seen, size, exif), "error"))
    return found


def _wrong_size(look: Look, seen: tuple[int, int], size: tuple[int, int], exif: Exif) -> str:
    other: Exif = "ignore" if exif == "apply" else "apply"
    if seen == size[::-1]:
        remedy = "height and width are swapped in the annotations"
        if size_seen(look, other) == size:
            remedy = (
                f"they describe the picture {'as stored' if exif == 'apply' else 'turned upright'};"
                f" set the data set's `exif: {other}`"
            )
    else:
        remedy = "they belong to another picture, or one of them was resized alone"
    return f"is {seen[1]}x{seen[0]}, but the annotations say {size[1]}x{size[0]}: {remedy}"


def _faults_of_map(look: Look, size: tuple[int, int] | None) -> _Found:
    if look.kind:
        return [(look.kind, look.clause, "error")]
    try:
        check_label_mode(look.mode)
    except Refused as refused:
        return [(refused.fault.kind, refused.fault.clause, "error")]
    if size is not None and (look.height, look.width) != size:
        what = f"is {look.width}x{look.height}, but its picture {size[1]}x{size[0]}"
        return [("size", f"{what}: make them one size", "error")]
    return []


_Seen = list[tuple[str, State | None, Look]]


def _in_threads(paths: Sequence[str]) -> Iterable[_Seen]:
    """Blocks of looks, in the order of the paths."""
    pool = ThreadPoolExecutor(min(MOST, cores() + 1), "look")
    blocks = (paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK))
    try:
        waiting: list[Future[_Seen]] = [pool.submit(_look_at_block, block) for block in blocks]
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_block(paths: Sequence[str]) -> _Seen:
    return [_look_once(path) for path in paths]


def _look_once(path: str) -> tuple[str, State | None, Look]:
    """The look, and the state of the file; None if it changed meanwhile."""
    before = _state(path)
    look = of_fault(find_fault(path)) if before is None else look_at(Path(path))
    return path, before if before == _state(path) else None, look


def _state(path: str) -> State | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
