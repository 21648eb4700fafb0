"""The index of a large annotation file is made once and then found by the file's content."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from visionkit.cache import cache_folder, publish, remove, touch, unfinished
from visionkit.data.coco_index import CODES, CocoIndex, from_folder, read_index
from visionkit.data.index_store import column_file, content_key

log = logging.getLogger("visionkit")

FORMAT = 5  # to be raised with each change of what is stored, or of what is checked
SMALLEST = 4 << 20  # bytes of an annotation file that is worth an entry
_BUFFER = 2 << 20  # bytes written at once: as many as a large page, so that workers share it


def open_index(path: str | Path) -> CocoIndex:
    """The index of an annotation file, made now or found in the cache.

    Raises DataError if it is no COCO file; other faults are in the index. That of a large file
    without faults goes into the cache, and if that fails, a warning says so.
    """
    path = Path(path)
    try:
        before = path.stat()
        entry = _entry(path) if before.st_size >= SMALLEST else None
    except (OSError, RuntimeError):  # no such file, which reading tells; or no home folder
        entry = None
    if entry is None:
        return read_index(path)
    found = _find(path, entry)
    if found is not None:
        return found
    try:
        return _make(path, entry, before)
    except OSError as error:
        log.warning(
            "%s: its index cannot be kept in the cache, so each start reads the whole file "
            "[%s]; VISIONKIT_CACHE names another folder",
            path,
            error,
        )
        return read_index(path)


def _entry(path: Path) -> Path:
    return cache_folder() / "annotations" / f"{content_key(path)}-v{FORMAT}"


def _find(path: Path, entry: Path) -> CocoIndex | None:
    if not entry.exists():
        return None
    try:
        index = from_folder(path, entry)
    except (OSError, ValueError) as error:
        log.warning("%s: its index in the cache cannot be used, made anew [%s]", path, error)
        remove(entry)
        return None
    touch(entry)
    return index


def _make(path: Path, entry: Path, before: os.stat_result) -> CocoIndex:
    """Read a file into the cache, if it is without faults; OSError if it cannot be written."""
    with unfinished(entry) as folder:
        with column_file(folder, CODES).open("w+b", _BUFFER) as codes:
            index = read_index(path, codes=codes)
        if index.faults.count or index.mask_faults.count or _changed(before, path.stat()):
            return index
        index.save(folder)
        publish(folder, entry)
    return _find(path, entry) or index


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was written meanwhile, so that its content is not that of the key."""
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
