"""What looking at pictures found, remembered in the cache folder, so that it is paid for once.

A file of lines for each folder of pictures, each a CRC and a JSON list; lines are only ever added.
Only pictures without a fault are remembered: others are few, and may be mended.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import PIL

from visionkit.cache import cache_folder, remove, touch, trim
from visionkit.data.picture_look import Look

log = logging.getLogger("visionkit")

FORMAT = 1  # to be raised with each change of what is stored, or of what a look finds
LIMIT = 2**30  # bytes of all such files; the least recently used go first

State = tuple[int, int]  # of a file: size in bytes, time of change in ns

_TYPES = tuple(type(value) for value in Look())


class KeptLooks:
    """The looks at pictures below one folder, by their path relative to it.

    A picture is known by its path, size and time of change. A file of another version or folder,
    or with damaged lines, is not used or not wholly, which a warning says; nor is it an error if
    nothing can be kept.
    """

    def __init__(self, folder: str) -> None:
        self._first = json.dumps(["visionkit looks", FORMAT, PIL.__version__, folder])
        self._looks: dict[str, tuple[State, Look]] = {}
        self._file: Path | None = None
        try:
            name = blake2b(self._first.encode(), digest_size=16).hexdigest()
            self._file = cache_folder() / "looks" / f"{name}.jsonl"
            self._read(self._file)
        except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
            self._give_up(error)

    def find(self, name: str, state: State) -> Look | None:
        found = self._looks.get(name)
        return found[1] if found is not None and found[0] == state else None

    def add(self, looks: Iterable[tuple[str, State, Look]]) -> None:
        """Remember those that found no fault."""
        new = [(name, state, look) for name, state, look in looks if not look.kind]
        self._looks |= {name: (state, look) for name, state, look in new}
        if self._file is None or not new:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:  # one write, so that none is mixed in
                first = b"" if file.tell() else _line(self._first)
                file.write(first + b"".join(_record(name, *rest) for name, *rest in new))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Note that the file was used, and make room if all such files take too much."""
        if self._file is not None and self._file.exists():
            touch(self._file)
            with suppress(OSError):  # it is another process's turn, or nobody may
                trim(self._file.parent, LIMIT, keep=self._file)

    def _read(self, file: Path) -> None:
        try:
            first, *lines = file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except (ValueError, IsADirectoryError):  # ValueError: it is empty
            first, lines = b"", []
        if first != _line(self._first):
            log.warning("%s: is not what visionkit wrote there; pictures are looked at anew", file)
            remove(file)
            return
        sound = [line for line in lines if self._take(line)]
        if len(sound) < len(lines):
            damaged = len(lines) - len(sound)
            log.warning("%s: %d damaged lines; those pictures are looked at anew", file, damaged)
        if len(sound) < len(lines) or len(sound) > 2 * len(self._looks) + 100:
            self._rewrite(file)

    def _take(self, line: bytes) -> bool:
        """Whether it is a line of ours."""
        if line == _line(self._first):  # two processes began the file
            return True
        try:
            sum_, _, text = line.decode().rstrip("\n").partition(" ")
            if int(sum_, 16) != zlib.crc32(text.encode()) or not line.endswith(b"\n"):
                return False
            name, size, changed, *fields = json.loads(text)
            if type(name) is not str or (type(size), type(changed)) != (int, int):
                return False
            if tuple(map(type, fields)) != _TYPES or fields[0]:
                return False
        except (ValueError, TypeError, RecursionError):
            return False
        self._looks[name] = (size, changed), Look(*fields)
        return True

    def _rewrite(self, file: Path) -> None:
        """With one line for each picture; a line that another process adds meanwhile is lost."""
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with open(handle, "wb") as copy:
                copy.write(_line(self._first))
                for path, (state, look) in self._looks.items():
                    copy.write(_record(path, state, look))
            os.replace(name, file)
        except OSError:
            remove(Path(name))
            raise

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "what was found in pictures cannot be kept in the cache, so each start looks at all "
            "of them [%s]; VISIONKIT_CACHE names another folder",
            error,
        )
        self._file = None


def _record(name: str, state: State, look: Look) -> bytes:
    return _line(json.dumps([name, *state, *look]))


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)
