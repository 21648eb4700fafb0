"""Saving and loading: atomic, safe to read, and enough to go on as if nothing had happened.

A checkpoint holds tensors and plain values only and is read with `weights_only=True`, so that
a file from somebody else cannot run code.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from visionkit.errors import CheckpointError

FORMAT = 1
SAFE_TORCH = (2, 10)  # before it, `weights_only` had holes (CVE-2025-32434, GHSA-63cw-57p8-fm3p)


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
    if type(state["format"]) is not int:
        raise CheckpointError(f"{path}: is not a visionkit checkpoint")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']}, this visionkit reads up to {FORMAT}; upgrade it"
        )
    return state


def load_run(path: str | Path) -> dict[str, Any]:
    """`load`; a CheckpointError too where the file is not that of a run, with its config, its class
    lists and its weights. The config is not yet checked: see `load_config`."""
    state = load(path)
    kinds = {"config": dict, "classes": dict, "model": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path}: is not a checkpoint of a run; it lacks {wrong}")
    for head, lists in state["classes"].items():
        if not _is_class_list(lists):
            raise CheckpointError(f"{path}: its class list of {head!r} is not names and their ids")
    if not all(isinstance(value, torch.Tensor) for value in state["model"].values()):
        raise CheckpointError(f"{path}: its weights are not all tensors")
    return state


def _is_class_list(lists: Any) -> bool:
    if not isinstance(lists, dict):
        return False
    names, ids = lists.get("names"), lists.get("ids")
    return (
        isinstance(names, list)
        and isinstance(ids, list)
        and len(names) == len(ids)
        and all(isinstance(name, str) for name in names)
        and all(type(number) is int for number in ids)
    )


def load_tensors(path: str | Path) -> Any:
    """Any file of tensors and plain values; damage is found before anything is used."""
    path = Path(path)
    _require_safe_torch()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        _require_state(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises anything on a file that is not one of its own
        raise CheckpointError(
            f"{path}: cannot be read: it is cut short, no file of weights, or holds more than "
            f"tensors and plain values ({type(error).__name__})"
        ) from error


def _require_state(path: Path) -> None:
    """CheckpointError if a file is damaged, or a program instead of weights."""
    exported = path.suffix.lower() == ".onnx"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at checksums
                raise CheckpointError(f"{path}: is damaged (checksum of {damaged!r})")
            exported |= any(name.endswith("/constants.pkl") for name in archive.namelist())
    if exported:  # ONNX or TorchScript
        raise CheckpointError(
            f"{path}: cannot be read: an exported model is a program, which visionkit does not "
            f"run; give the state_dict"
        )


def _require_safe_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < SAFE_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} can be made to run code by a file of weights; install "
            f"torch {'.'.join(map(str, SAFE_TORCH))} or newer"
        )


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
