"""What an ONNX file says of itself: its metadata, read from the file without its weights.

So a file of another tool or of a newer format is named as such, also where onnxruntime cannot load
it. The format is a protobuf message, `ModelProto` of onnx.proto3.
"""

from __future__ import annotations

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
    return read_info(read_metadata(path), path)


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
