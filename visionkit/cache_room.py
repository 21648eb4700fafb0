"""The disk space that entries of many processes may take together: FOLDER/<group>/<entry>."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path

from visionkit.cache import ABANDONED, remove

BLOCK = 4096  # bytes, in which files take up a disk


class Room:
    """A limit in bytes. When it is reached, entries of groups that were not used since `open` go,
    the least recently used group first; the time of a group is its folder's.

    What is taken is counted for all processes alike by the length of a file, one byte for each
    block: appending is atomic, so it takes no lock. It is counted anew by `open` and at each
    removal. All raise OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit // BLOCK
        self._ledger, self._began = folder / ".blocks", -math.inf

    def open(self) -> None:
        """Make the folder, and remove what is beyond the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._trim(self.limit, before=math.inf)
        os.utime(self._ledger)
        self._began = self._ledger.stat().st_mtime  # by the clock of the file system

    def take(self, size: int) -> bool:
        """Whether there is room for that many bytes; then they count as taken."""
        blocks = -(-size // BLOCK)
        if self._append(blocks):
            return True
        self._trim(self.limit - self.limit // 16 - blocks, before=self._began)
        return self._append(blocks)

    def _append(self, blocks: int) -> bool:
        with open(self._ledger, "ab", buffering=0) as ledger:
            ledger.write(bytes(blocks))
            return ledger.tell() <= self.limit

    def _trim(self, goal: int, before: float) -> None:
        """Count, and remove entries last used before that time until at most `goal` blocks stay."""
        found: list[tuple[float, str, int]] = []
        for group in filter(Path.is_dir, self.folder.iterdir()):
            with suppress(FileNotFoundError):  # another process removed it
                used = group.stat().st_mtime
                found += [(used, entry, blocks) for entry, blocks in _entries(group)]
        total = sum(blocks for _, _, blocks in found)
        for used, entry, blocks in sorted(found) if total > goal else ():
            if total > goal and used < before:
                remove(Path(entry))
                os.utime(os.path.dirname(entry), (used, used))  # to be removed is not to be used
                total -= blocks
        with open(self._ledger, "ab", buffering=0) as ledger:
            ledger.truncate(total)


def _entries(group: Path) -> list[tuple[str, int]]:
    """The paths of entries and their blocks; what a dead process left unfinished is removed."""
    found = []
    for entry in os.scandir(group):
        with suppress(FileNotFoundError):
            status = entry.stat()
            if not entry.name.startswith("."):
                found.append((entry.path, -(-status.st_size // BLOCK)))
            elif status.st_mtime < time.time() - ABANDONED:
                remove(Path(entry.path))
    return found
