"""The cache folder: files that visionkit can always make again, in entries that appear whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.runs.files import open_regular

LIMIT = 20 * 2**30  # bytes of all entries of one kind; the least recently used are removed first
ABANDONED = 24 * 3600  # seconds after which the folder of an unfinished entry is removed
META = "index.json"

_BLOCK = 1 << 23  # bytes that are hashed at once
_CHECKED = 1 << 24  # bytes; the checksum of larger arrays is not verified


def cache_folder() -> Path:
    """`$VISIONKIT_CACHE`, else `$XDG_CACHE_HOME/visionkit`, else `~/.cache/visionkit`."""
    if named := os.environ.get("VISIONKIT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "visionkit"


@contextmanager
def staging(entry: Path) -> Iterator[Path]:
    """A new folder for the content of `entry`, removed at the end unless committed. OSError if it
    cannot be made."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", dir=entry.parent))
    try:
        yield folder
    finally:
        remove(folder)


def commit(folder: Path, entry: Path, limit: int = LIMIT) -> None:
    """Make a staging folder the `entry`, unless another process was faster. Then the least
    recently used entries next to it are removed until all take at most `limit` bytes. OSError if
    this fails.
    """
    if not entry.exists():
        with suppress(FileExistsError):
            folder.rename(entry)
    evict(entry.parent, limit, keep=entry)


def touch(entry: Path) -> None:
    """Mark an entry as used, if that is allowed."""
    with suppress(OSError):
        os.utime(entry)


def remove(entry: Path) -> None:
    """Remove an entry, or whatever has its name, as far as that is allowed."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def evict(folder: Path, limit: int, keep: Path | None = None) -> None:
    """Remove entries, the least recently used first, until the others take at most `limit` bytes.
    The entry `keep` stays."""
    sizes: list[tuple[float, Path, int]] = []
    for entry in folder.iterdir():
        with suppress(OSError):  # another process removed it
            used = entry.stat().st_mtime
            if entry.name.startswith("."):
                if used < time.time() - ABANDONED:
                    remove(entry)
            else:
                files = (path for path in (entry, *entry.rglob("*")) if path.is_file())
                sizes.append((used, entry, sum(path.stat().st_size for path in files)))
    total = sum(size for _, _, size in sizes)
    for _, entry, size in sorted(sizes):
        if total > limit and entry != keep:
            remove(entry)
            total -= size


def content_key(path: Path) -> str:
    """A hash of a file's content: the SHA-256 of the hashes of its blocks, made in threads."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size

        def digest(start: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), _BLOCK, start)).digest()

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(digest, range(0, size, _BLOCK)))
    return hashlib.sha256(b"".join([str(size).encode(), *digests])).hexdigest()


def save(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write the arrays, one .npy file each, and `meta`, which must be JSON."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    text = json.dumps({"checksums": checksums, "meta": meta})
    (folder / META).write_text(text, encoding="utf-8")


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The read-only, memory-mapped arrays and the meta data that `save` wrote.

    Raises ValueError or OSError if anything is missing, truncated or of another kind. A changed
    byte is noticed, except in arrays above 16 MB.
    """
    with open_regular(folder / META) as file:
        found = json.load(file)
    arrays = {}
    try:
        for name, checksum in found["checksums"].items():
            path = folder / f"{name}.npy"
            arrays[name] = np.load(path, mmap_mode="r").view(np.ndarray)
            if _checksum(arrays[name]) != checksum:
                raise ValueError(f"{path} has changed since it was written")
        return arrays, found["meta"]
    except (KeyError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(f"{folder / META} has changed since it was written: {error!r}") from None


def _checksum(array: np.ndarray) -> int | None:
    small = 0 < array.nbytes <= _CHECKED
    return zlib.crc32(np.ascontiguousarray(array).data) if small else None
