"""Download a file: under its name whole and checked, or not at all, by one process of a machine.

`--offline` and VISIONKIT_OFFLINE forbid it.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from visionkit.errors import CheckpointError, printable, shorten
from visionkit.runs import files, foreign
from visionkit.runs.terminal import progress_bar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # where two processes may download the same file

log = logging.getLogger("visionkit")

SETTING = "VISIONKIT_WEIGHTS"  # environment variable: a folder, or the URL of one, searched first
OFFLINE = "VISIONKIT_OFFLINE"  # environment variable; "1" forbids downloads
TIMEOUT = 30  # seconds without an answer or a byte
BLOCK = 1 << 20  # bytes that are written at once
SPARE = 1 << 20  # bytes that a file may be larger than its size, which is published rounded
MEGABYTE = 1 << 20
STATUS = {
    401: "it needs a login",
    403: "it refuses the download",
    404: "the file is not there",
    407: "the proxy needs a login",
    429: "too many downloads; try again later",
}


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "") not in ("", "0")


def is_url(text: str) -> bool:
    return bool(re.match(r"(https?|file)://", text))


def sha256(path: Path) -> str:
    """The SHA-256 of a whole file, as hex digits."""
    digest = hashlib.sha256()
    with files.open_regular(path) as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, path: Path, checksum: str, size: float) -> None:
    """Write what `url` serves to `path`, whose folder exists.

    `checksum` begins its SHA-256; `size` is its size in megabytes. Raises CheckpointError with why
    it failed, and then nothing is left of it, as after an interruption.
    """
    log.info("downloading %s to %s (%.0f MB)", without_login(url), path, size)
    try:
        with files.replacing(path, "wb", durable=True) as file:
            found = _transfer(url, file, int(size * MEGABYTE) + SPARE)
            if not found.startswith(checksum):
                file.flush()
                kind = foreign.file_kind(Path(file.name))
                looks = f"it is {kind}" if kind else f"its SHA-256 begins with {found[:8]}"
                raise CheckpointError(f"wrong checksum: {looks}, expected {checksum}")
    except (OSError, HTTPException, ValueError) as error:
        raise CheckpointError(_why(error, url)) from error


def _transfer(url: str, file: IO, most: int) -> str:
    """Copy the content to a file, at most so many bytes; returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "visionkit"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        given = answer.headers.get("Content-Length") or ""
        total = int(given) if given.isdecimal() else None
        bar = progress_bar(
            what=Path(urlsplit(url).path).name,
            total=total,
            unit="B",
            unit_scale=True,
            hidden=os.environ.get("LOCAL_RANK", "0") != "0",
        )
        with bar:
            while block := answer.read(BLOCK):
                done += len(block)
                if done > most:
                    raise CheckpointError(f"more than the {most / MEGABYTE:.0f} MB of the file")
                digest.update(block)
                file.write(block)
                bar.update(len(block))
        if total is not None and done < total:
            raise CheckpointError(f"the download was cut after {done} of {total} bytes")
    return digest.hexdigest()


def _why(error: Exception, url: str) -> str:
    """Why a download failed, in words."""
    proxy = _proxy(url)
    through = f" through the proxy {without_login(proxy)}" if proxy else ""
    if isinstance(error, HTTPError):
        meaning = STATUS.get(error.code, error.reason)
        return f"the server answers {error.code}{through}: {meaning}"
    if isinstance(error, URLError):
        reason = error.reason
        text = getattr(reason, "strerror", None) or str(reason)
        return f"no connection{through}: {shorten(printable(text), 200)}"
    if isinstance(error, TimeoutError):
        return f"no answer{through} for {TIMEOUT} seconds"
    if isinstance(error, (HTTPException, ConnectionError)):
        return f"the connection broke{through}: {type(error).__name__}: {shorten(str(error), 200)}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written: {files.reason(error)}"
    return files.reason(error)


def _proxy(url: str) -> str:
    """The proxy that urllib uses for a URL; empty without one."""
    with suppress(OSError, ValueError):  # ValueError: it is not a URL
        parts = urlsplit(url)
        if parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
            return urllib.request.getproxies().get(parts.scheme, "")
    return ""


def without_login(url: str) -> str:
    """The URL without user and password, which belong in no message."""
    return re.sub(r"//[^/@]*@", "//", url)


def remove_strays(path: Path) -> None:
    """Remove what a killed process left of its download to `path`; within `one_process`."""
    for stray in path.parent.glob(f"{glob.escape(path.name)}.tmp.*"):
        with suppress(OSError):
            stray.unlink()


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Within, no other process of this machine downloads into the folder; the others wait.

    The lock is on the folder itself and leaves no file. Where the file system has none, processes
    may download the same file, each under a temporary name of its own.
    """
    descriptor = None
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process downloads to %s: waiting for it", folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
