"""Arrays in a folder of the cache, one file each, opened as memory maps that processes share."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

META = "index.json"

_BLOCK = 1 << 23  # bytes of a file that are hashed at once
_CHECKED = 1 << 24  # bytes; larger arrays are not compared to their checksum on opening


def content_key(path: Path) -> str:
    """A hash of the bytes of a file: SHA-256 of those of its blocks, which are made in threads."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size

        def digest(start: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), _BLOCK, start)).digest()

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(digest, range(0, size, _BLOCK)))
    return hashlib.sha256(b"".join([str(size).encode(), *digests])).hexdigest()


def save(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write the arrays but those that have their file already, and `meta`, which must be JSON."""

    def write(name: str) -> dict[str, Any]:
        array, path = np.ascontiguousarray(arrays[name]), column_file(folder, name)
        if not path.exists():
            array.tofile(path)
        return {"dtype": array.dtype.str, "shape": array.shape, "crc32": _checksum(array)}

    with ThreadPoolExecutor(2) as pool:
        columns = dict(zip(arrays, pool.map(write, arrays), strict=True))
    text = json.dumps({"columns": columns, "meta": meta})
    (folder / META).write_text(text, encoding="utf-8")


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, read-only and mapped into memory, and the meta data that `save` wrote.

    Raises ValueError or OSError if anything is missing, cut short or of another kind. A changed
    byte is found in all arrays but the largest.
    """
    found = json.loads((folder / META).read_text(encoding="utf-8"))
    try:
        arrays = {name: _map(folder, name, said) for name, said in found["columns"].items()}
        return arrays, found["meta"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / META} is not as it was written: {error!r}") from None


def column_file(folder: Path, name: str) -> Path:
    """Where an array lies, without a header."""
    return folder / f"{name}.bin"


def contents(file: BinaryIO) -> np.ndarray:
    """(N,) uint8, what an open file holds, read-only: mapped, or the memory of a BytesIO."""
    if isinstance(file, BytesIO):
        return np.frombuffer(file.getbuffer(), np.uint8)
    file.flush()
    empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
    return np.frombuffer(b"" if empty else mmap(file.fileno(), 0, access=ACCESS_READ), np.uint8)


def _map(folder: Path, name: str, said: dict[str, Any]) -> np.ndarray:
    path = column_file(folder, name)
    with path.open("rb") as file:
        array = contents(file).view(said["dtype"]).reshape(said["shape"])
    if _checksum(array) != said["crc32"]:
        raise ValueError(f"{path} has changed since it was written")
    return array


def _checksum(array: np.ndarray) -> int | None:
    return zlib.crc32(array.data) if 0 < array.nbytes <= _CHECKED else None
