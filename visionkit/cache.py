"""The folder for what visionkit can always make again, and entries in it that appear whole."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIMIT = 20 * 2**30  # bytes of all entries of one kind; the least recently used go first

ABANDONED = 24 * 3600  # seconds after which an unfinished entry belongs to a dead process


def cache_folder() -> Path:
    """`$VISIONKIT_CACHE`, else `$XDG_CACHE_HOME/visionkit`, else `~/.cache/visionkit`."""
    if named := os.environ.get("VISIONKIT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "visionkit"


@contextmanager
def unfinished(entry: Path) -> Iterator[Path]:
    """A new folder for what is to be `entry`; it is removed unless it is published meanwhile.

    Raises OSError if it cannot be made.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", dir=entry.parent))
    try:
        yield folder
    finally:
        remove(folder)


def publish(folder: Path, entry: Path, limit: int = LIMIT) -> None:
    """Make that folder the `entry`; where another process was quicker its entry stays.

    Then the oldest entries beside it are removed until all take at most `limit` bytes. Raises
    OSError if it cannot be done.
    """
    if not entry.exists():
        with suppress(FileExistsError):
            folder.rename(entry)
    trim(entry.parent, limit, keep=entry)


def touch(entry: Path) -> None:
    """Note that an entry was used; nothing happens where that is not allowed."""
    with suppress(OSError):
        os.utime(entry)


def remove(entry: Path) -> None:
    """Remove an entry, or whatever stands in its place, as far as that is allowed."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def trim(folder: Path, limit: int, keep: Path | None = None) -> None:
    """Remove entries, least recently used first, until those that stay take at most `limit`."""
    sizes: list[tuple[float, Path, int]] = []
    for entry in folder.iterdir():
        with suppress(OSError):  # another process removed it
            used = entry.stat().st_mtime
            if entry.name.startswith("."):
                if used < time.time() - ABANDONED:
                    remove(entry)
            else:
                sizes.append((used, entry, _size(entry)))
    total = sum(size for _, _, size in sizes)
    for _, entry, size in sorted(sizes):
        if total > limit and entry != keep:
            remove(entry)
            total -= size


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in (entry, *entry.rglob("*")) if path.is_file())
