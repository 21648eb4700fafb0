"""What an ONNX file says of itself: its metadata, read from the file without its weights.

So a file of another tool or of a newer format is named as such, also where onnxruntime cannot load
it. The format is a protobuf message, `ModelProto` of onnx.proto3.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from visionkit.engine.export.metadata import ModelInfo, read_info
from visionkit.errors import CheckpointError
from visionkit.runs.files import open_regular, reason, twin_clause

VERSION, GRAPH, METADATA = 1, 7, 14  # field numbers of ModelProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}  # wire types; of fixed length: how many bytes
DIGEST = "visionkit_sha256"  # the last metadata: the SHA-256 of all bytes before it


def is_onnx(path: object) -> bool:
    """Whether a path means an ONNX file: by its suffix, or by how the file begins; no folder."""
    if not isinstance(path, (str, Path)) or Path(path).is_dir():
        return False
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        return True
    try:
        with open_regular(path) as file:
            start = file.read(3)
    except OSError:
        return False
    # The version, below 32, then another field. In a .safetensors file the third byte is 0.
    return len(start) == 3 and start[0] == VERSION << 3 and 0 < start[1] < 32 and start[2] > 0


def read_onnx_info(path: str | Path) -> ModelInfo:
    """The model of an ONNX file. CheckpointError for one that does not exist, is damaged, is of
    another tool, or is of a newer format."""
    metadata = read_metadata(path)
    info = read_info(metadata, path)
    if DIGEST in metadata:
        _check_digest(Path(path), metadata[DIGEST])
    return info


def add_digest(path: Path) -> None:
    """Add the digest of a finished file to its metadata: in a protobuf message, an entry at the end
    is one more of them."""
    with open(path, "r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(_digest_entry(digest))


def _digest_entry(digest: str) -> bytes:
    entry = b"".join(
        bytes([number << 3 | BYTES, len(text)]) + text.encode()
        for number, text in ((KEY, DIGEST), (VALUE, digest))
    )
    return bytes([METADATA << 3 | BYTES, len(entry)]) + entry


def _check_digest(path: Path, digest: str) -> None:
    """CheckpointError for a file whose bytes are not those that were exported."""
    with open_regular(path) as file:
        content = file.read()
    before = memoryview(content)[: -len(_digest_entry(digest))]
    if hashlib.sha256(before).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: is damaged, or another program changed it: its bytes are not those that were "
            f"exported; export it again, or remove the metadata {DIGEST!r}"
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of an ONNX file. CheckpointError if it does not exist or is damaged."""
    try:
        with open_regular(Path(path)) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("it is empty")
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                return _metadata(data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found{twin_clause(Path(path))}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not an ONNX file, or is damaged ({error})") from error


def _metadata(data: mmap) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: set[int] = set()
    for number, start, end in _fields(data, 0, len(data)):
        if not seen and number != VERSION:
            raise ValueError("it does not begin with a version")
        seen.add(number)
        if number == METADATA:
            entry = {n: data[a:b].decode() for n, a, b in _fields(data, start, end)}
            found[entry.get(KEY, "")] = entry.get(VALUE, "")
    if GRAPH not in seen:
        raise ValueError("it has no graph")
    return found


def _fields(data: mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a message, and where its value starts and ends."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            length = _varint(data, at, end)[1] - at
        elif wire == BYTES:
            length, at = _varint(data, at, end)
        elif wire in FIXED:
            length = FIXED[wire]
        else:
            raise ValueError(f"byte {at} begins no field")
        if at + length > end:
            raise ValueError("it is cut off")
        yield number, at, at + length
        at += length


def _varint(data: mmap, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"byte {at} is in a number of too many bytes")
