"""A checkpoint file: whole or not there, safe to read, and checked before it is used.

A checkpoint holds tensors and plain values only and is read with `weights_only=True`, so that
a file from somebody else cannot run code.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionkit import files
from visionkit.errors import CheckpointError

FORMAT = 1
PLAIN = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device)


class DamagedError(CheckpointError):
    """A file that is no whole checkpoint, so that an older one may be used in its place."""


def save(state: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename.

    A crash at any moment leaves either the old file or the new one, whole. The old one stays as
    `previous`, if that is given. Raises CheckpointError where the disk does not take it, TypeError
    for a state that could not be loaded again.
    """
    _check_plain(state, path.name)
    try:
        with files.replacing(path, "wb", durable=True, previous=previous) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written: {files.reason(error)}") from error


def load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that `save` wrote. Tensors arrive on the CPU."""
    state = load_tensors(path)
    if not isinstance(state, dict) or "format" not in state:
        raise DamagedError(f"{path}: is not a visionkit checkpoint")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']}, this visionkit reads up to {FORMAT}; upgrade it"
        )
    return state


def load_tensors(path: str | Path) -> Any:
    """Any file of tensors and plain values; damage is found before anything is used."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not look at checksums
            if damaged:
                raise DamagedError(f"{path}: is damaged (checksum of {damaged!r})")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {files.reason(error)}") from error
    except Exception as error:  # torch.load raises anything on a file that is not one of its own
        raise DamagedError(
            f"{path}: cannot be read: it is cut short, no file of weights, or holds more than "
            f"tensors and plain values ({type(error).__name__})"
        ) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """All weights of a model, in any precision. CheckpointError names what does not fit."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": shapes,
    }
    if any(problems.values()):
        found = [
            f"{len(names)} {what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for what, names in problems.items()
            if names
        ]
        raise CheckpointError(f"{where}: does not fit the config: " + "\n  ".join(["", *found]))
    model.load_state_dict(weights)


def _check_plain(value: Any, where: str) -> None:
    """What `weights_only` would refuse must be told when it is saved, not when it is needed."""
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"{where}: the key {key!r}")
            _check_plain(item, f"{where}/{key}")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}/{index}")
    else:
        raise TypeError(
            f"{where}: is a {type(value).__module__}.{type(value).__qualname__}, which a "
            f"checkpoint cannot hold; use numbers, text, lists, dicts and tensors"
        )
