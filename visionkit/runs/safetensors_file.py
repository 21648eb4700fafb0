"""Read and write `.safetensors` files: tensors by name, and a few strings. They hold no code.

Those that visionkit writes hold a config and class lists too, so that they are used like the
checkpoint of a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import CheckpointError, install_hint
from visionkit.runs import files

KEY = "visionkit"  # of the JSON text, in the metadata, with all of a checkpoint but its tensors
CHECKSUM = "sha256"  # of that text and the tensors; files of visionkit 0.1 have none
HEADER = 100_000_000  # bytes that a header may have, as in the package
PLAUSIBLE = 1 << 40  # bytes of a header beyond which the file is another kind of file


def is_safetensors(path: Path) -> bool:
    """Whether the content of a file begins like one, whatever its name."""
    with files.open_regular(path) as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < PLAUSIBLE


def read(path: Path) -> dict[str, Any]:
    """The tensors by name; or the content of a checkpoint, if `write` wrote the file.

    Raises ValueError, with what is wrong, for a damaged file, CheckpointError without the package.
    """
    load = _package().load
    with files.open_regular(path) as file:
        data = file.read()
    strings = _metadata(data)
    stored = strings.get(KEY)
    try:
        tensors = load(data)
    except Exception as error:  # its Rust part raises an exception of its own, and others
        raise ValueError(f"damaged ({error})") from error
    if stored is None:
        return tensors
    if CHECKSUM in strings and strings[CHECKSUM] != _checksum(str(stored), tensors):
        raise ValueError("damaged: its content does not have the checksum that it names")
    try:
        content = json.loads(stored)
    except (ValueError, RecursionError, TypeError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"damaged: its metadata {KEY!r} is not JSON with a config and classes")
    return {**content, "model": tensors}


def _metadata(data: bytes) -> dict[str, Any]:
    """The strings in the header. ValueError if the header or the tensors are not whole."""
    length = int.from_bytes(data[:8], "little")
    if length > HEADER:
        raise ValueError(f"damaged: its header claims {length:,} bytes")
    if len(data) < 8 + length:
        raise ValueError(f"truncated: it ends within its header, after {len(data):,} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
        ends = [one["data_offsets"][1] for n, one in header.items() if n != "__metadata__"]
        wanted = 8 + length + max([0, *map(int, ends)])
        metadata = header.get("__metadata__") or {}
        strings = {str(name): value for name, value in metadata.items()}
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"damaged: its header is not that of tensors ({error!r})") from error
    if len(data) != wanted:
        what = "truncated" if len(data) < wanted else "damaged"
        raise ValueError(f"{what}: it has {len(data):,} bytes, and its header names {wanted:,}")
    return strings


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, whose tensors are under `model`; the rest must be JSON. Whole or not at
    all, as `checkpoint.save`. CheckpointError without the package, or if the disk refuses it."""
    save = _package().save
    tensors: dict[str, Tensor] = content["model"]
    others = {key: value for key, value in content.items() if key != "model"}
    strings = {"format": "pt", KEY: json.dumps(others)}
    if json.loads(strings[KEY]) != others:
        raise CheckpointError(f"{path}: cannot hold a config with keys that are not strings")
    # Two tensors may share memory or be laid out channels last; the file knows neither.
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    data = save(tensors, {**strings, CHECKSUM: _checksum(strings[KEY], tensors)})
    try:
        with files.replacing(path, "wb", durable=True) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {files.reason(error)}") from error


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the text, and of the names, kinds, shapes and values of the tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _package() -> Any:
    try:
        import safetensors.torch
    except Exception as error:  # an incomplete installation may raise anything
        raise CheckpointError(
            f"files of weights in safetensors need its package: {error}; run: "
            f"{install_hint('safetensors')}"
        ) from error
    return safetensors.torch
