"""Read regular files only; write files atomically and through no link; tolerate and count the ones
that a run can do without."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from visionkit.errors import other_case, other_form

log = logging.getLogger("visionkit")


WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".onnx", ".h5", ".tar", ".zip")


def means_file(weights: str) -> bool:
    """Whether a value that can be a file of weights or the name of published ones means a file: one
    that is there, or that has a folder or a suffix of such files. A folder is none."""
    path = Path(weights)
    named = path.name != weights or path.suffix.lower() in WEIGHTS
    return named or path.is_file()


def open_regular(path: str | Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; `follow`: also through a link. OSError for anything else:
    opening a named pipe waits for a writer, and a device may never end."""
    return open(_regular(os.fspath(path), os.O_RDONLY, follow=follow), "rb")


def _regular(path: str, flags: int, *, follow: bool = True) -> int:
    """An `opener` of `open` that refuses all but regular files."""
    with suppress(FileNotFoundError):  # a new file, or reported next
        _require_regular(os.stat(path, follow_symlinks=follow), path)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _require_regular(os.fstat(descriptor), path)  # another one since
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "named pipe", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device or socket")
        raise OSError(errno.EINVAL, f"it is a {kind}, not a regular file", path)


@contextmanager
def replacing(
    path: Path, mode: str = "w", *, durable: bool = False, previous: Path | None = None
) -> Iterator[IO]:
    """Open a temporary file that replaces `path` atomically at the end.

    If anything is raised before, `path` is unchanged and nothing else remains. `durable`: the new
    content is on the disk, not only in memory, before the old one is removed. `previous`: the name
    that the old content gets; at every moment one of the two names leads to a whole file.
    """
    temporary = _temporary(path)
    try:
        if os.path.lexists(temporary):  # of a dead process, or a link
            temporary.unlink()
        mode = mode.replace("w", "x")
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            _swap(temporary, path, previous)
        else:
            os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    finally:
        with suppress(OSError):  # also where it is not there and the file system read-only
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    with replacing(path) as file:
        file.write(text)


def write_new(path: Path, text: str) -> None:
    """Write a small file that is not there yet, as a whole or not at all. FileExistsError if there
    is something of that name, such as a link."""
    with open(path, "x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except BaseException:
            path.unlink()
            raise


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines to a file, or nothing if there is no room for all of them."""
    rest = lines.encode()
    with open(path, "ab", buffering=0, opener=partial(_regular, follow=False)) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)  # half a line would spoil the next one
            raise


def remove_strays(folder: Path) -> None:
    """Remove the temporary files of processes that died while writing. Nobody may be writing."""
    for stray in folder.glob("*.tmp.*"):
        if stray.name.rpartition(".")[2].isdecimal():
            stray.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Why something could not be written. torch wraps a full disk in a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            words = "disk full: " if cause.errno == errno.ENOSPC else ""
            return f"{words}{cause.strerror} (errno {cause.errno})" if cause.errno else str(cause)
        cause = cause.__context__
    return str(error)


class WriteErrors:
    """Counts failed writes of files that a run can do without."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def tolerated(self, path: Path) -> Iterator[None]:
        """Log the first OSError of a file, count all, and raise none."""
        try:
            yield
        except OSError as error:
            self.counts[path.name] += 1
            if self.counts[path.name] == 1:
                log.warning("%s: cannot be written: %s; training continues", path, reason(error))

    def report(self) -> None:
        for name, count in self.counts.items():
            log.warning("%s could not be written %d times", name, count)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp.{threading.get_native_id()}")


def _swap(temporary: Path, path: Path, previous: Path) -> None:
    spare = _temporary(previous)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links: for a moment only `previous` is there
        os.replace(path, previous)
        os.replace(temporary, path)
        return
    try:
        os.replace(temporary, path)
        os.replace(spare, previous)
    finally:
        with suppress(OSError):
            spare.unlink()


def _flush_folder(folder: Path) -> None:
    """Write a rename to the disk: it, too, is only in memory at first."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not supported there
            raise
    finally:
        os.close(descriptor)


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds one item to a JSON list. The file appears at the end as a whole, or not
    at all if anything is raised before."""
    before = "["

    def add(item: Any) -> None:
        nonlocal before
        file.write(before + to_json(item))
        before = ", "

    with replacing(path) as file:
        yield add
        file.write("[]\n" if before == "[" else "]\n")


_STRICT = json.JSONEncoder(allow_nan=False)


def to_json(record: Any) -> str:
    """Strict JSON: a number that is not finite becomes null."""
    try:
        return _STRICT.encode(record)
    except ValueError:
        return _STRICT.encode(_finite(record))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def twin_clause(path: str | Path) -> str:
    """A clause about a file that is not there, if its folder has the same name in another Unicode
    form or with other capitals; else ""."""
    with suppress(OSError, ValueError):
        name, names = Path(path).name, os.listdir(Path(path).parent)
        return other_form(name, names) or other_case(name, {n.casefold(): n for n in names})
    return ""
