"""Saving and loading: atomic, safe to read, and enough to go on as if nothing had happened.

A checkpoint holds tensors and plain values only and is read with `weights_only=True`, so that
a file from somebody else cannot run code.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from visionkit.errors import CheckpointError

FORMAT = 1


def save(state: dict[str, Any], path: Path) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename.

    A crash at any moment leaves either the old file or the new one, whole.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_root_cause(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that `save` wrote. Tensors arrive on the CPU."""
    state = load_tensors(path)
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: is not a visionkit checkpoint")
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
            damaged = zipfile.ZipFile(path).testzip()  # torch.load does not look at checksums
            if damaged:
                raise CheckpointError(f"{path}: is damaged (checksum of {damaged!r})")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises anything on a file that is not one of its own
        raise CheckpointError(
            f"{path}: cannot be read: it is cut short, no file of weights, or holds more than "
            f"tensors and plain values ({type(error).__name__})"
        ) from error


def checkpoint_of(run: str | Path, *, resume: bool = False) -> Path:
    """The file to load for a run directory or a checkpoint file: best, else last.

    With `resume`, always last.
    """
    run = Path(run)
    if run.is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run directory or checkpoint file")
    names = ["last.pt"] if resume else ["best.pt", "last.pt"]
    for name in names:
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    hint = "; start it again without --resume" if resume else ""
    raise CheckpointError(
        f"{run}: holds no checkpoints/{' or '.join(names)}; nothing to load{hint}"
    )


def _root_cause(error: BaseException) -> str:
    """torch hides a full disk behind a RuntimeError; find the OSError under it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return f"{cause.strerror or cause} (errno {cause.errno})"
        cause = cause.__context__
    return str(error)
