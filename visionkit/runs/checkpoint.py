"""Checkpoint files: written atomically, checked before use; and those of a run.

A checkpoint has tensors and plain values only and is read with `weights_only=True`, so that a file
from somebody else cannot run code.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.errors import ArgumentError, CheckpointError, shorten
from visionkit.runs import files

log = logging.getLogger("visionkit")
TO_RESUME = ("last.pt", "prev.pt")
TO_PREDICT = ("best.pt", "last.pt", "prev.pt")
FORMAT = 1
# Older versions of `weights_only` are unsafe (CVE-2025-32434, GHSA-63cw-57p8-fm3p).
SAFE_TORCH = (2, 10)
PLAIN = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device)


class DamagedError(CheckpointError):
    """A file that is not a whole checkpoint; an older one may replace it."""


def save(state: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write to a temporary file next to `path`, flush it to the disk, then rename.

    A crash at any moment leaves either the old file or the new one, whole. The old one is kept as
    `previous`, if that is given. Raises CheckpointError if the disk refuses it, TypeError for a
    state that could not be loaded again.
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
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise DamagedError(f"{path}: is not a visionkit checkpoint")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']}, this visionkit reads up to {FORMAT}; upgrade it"
        )
    return state


def load_run(path: str | Path) -> dict[str, Any]:
    """`load`, and raise CheckpointError unless the file is of a run: with a config, class lists and
    weights. The config itself is not checked: see `load_config`."""
    state = load(path)
    wrong = [k for k in ("config", "classes", "model") if not isinstance(state.get(k), dict)]
    if wrong:
        raise CheckpointError(f"{path}: is not a checkpoint of a run: {wrong} missing")
    for head, lists in state["classes"].items():
        if not _is_class_list(lists):
            raise CheckpointError(f"{path}: its class list of {head!r} is not names and their ids")
    if not all(isinstance(value, Tensor) for value in state["model"].values()):
        raise CheckpointError(f"{path}: its weights are not all tensors")
    return state


def _is_class_list(lists: Any) -> bool:
    match lists:
        case {"names": list(names), "ids": list(ids)} if len(names) == len(ids):
            kinds = {(type(name), type(number)) for name, number in zip(names, ids, strict=True)}
            return kinds <= {(str, int)}
    return False


def load_tensors(path: str | Path) -> Any:
    """Read a file of tensors and plain values; damage is found before anything is used."""
    path = Path(path)
    _require_safe_torch()
    if not path.is_file():
        hint = " (a directory; use RUN/checkpoints/best.pt)" if path.is_dir() else ""
        what = "is a pipe or device, not a file" if path.exists() and not hint else "not found"
        raise CheckpointError(f"{path}: {what}{hint}")
    try:
        _require_state(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises anything on a file that it did not write
        why = files.reason(error) if isinstance(error, OSError) else type(error).__name__
        raise DamagedError(
            f"{path}: cannot be read: it is truncated, not a weights file, or has more than "
            f"tensors and plain values ({why})"
        ) from error


def _require_state(path: Path) -> None:
    """Raise CheckpointError if a file is damaged, or an exported program instead of weights."""
    exported = path.suffix.lower() == ".onnx"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not check them
                raise DamagedError(f"{path}: is damaged (checksum of {damaged!r})")
            exported |= any(name.endswith("/constants.pkl") for name in archive.namelist())
    if exported:  # ONNX or TorchScript
        raise CheckpointError(
            f"{path}: cannot be read: an exported model is a program, which visionkit does not "
            f"run; use a file with the state_dict"
        )


def _require_safe_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < SAFE_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} may run code from a weights file; install "
            f"torch {'.'.join(map(str, SAFE_TORCH))} or newer"
        )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Load all weights of a model, in any precision. CheckpointError names what does not fit."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "with another shape": shapes,
    }
    if any(problems.values()):
        found = [
            f"  {len(names)} {what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for what, names in problems.items()
            if names
        ]
        raise CheckpointError(f"{where}: does not fit the config:", *found)
    model.load_state_dict(weights)


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError now for what `weights_only` would refuse when it is loaded."""
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
            f"checkpoint cannot have; use numbers, strings, lists, dicts and tensors"
        )


def folder(run: Path) -> Path:
    return run / "checkpoints"


def save_last(run: Path, state: dict[str, Any]) -> None:
    """Write last.pt; the one before becomes prev.pt."""
    save(state, folder(run) / "last.pt", previous=folder(run) / "prev.pt")


def load_latest(run: str | Path, *, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    """The path and content of a checkpoint file, or of the best checkpoint of a run directory.

    If best.pt is missing or damaged, last.pt and then prev.pt replace it, with a warning; with
    `resume`, last.pt and then prev.pt. Raises CheckpointError if none can be read, with what is
    wrong with each.
    """
    if not isinstance(run, (str, os.PathLike)):
        raise ArgumentError(
            f"run: got {shorten(repr(run))}; expected the path of a run directory or a checkpoint "
            "file"
        )
    run = Path(run)
    if run.is_file():
        return run, load_run(run)
    if not run.is_dir():
        what = "is a pipe or device" if run.exists() else "not found"
        raise CheckpointError(f"{run}: {what}; expected a run directory or a checkpoint file")
    names = TO_RESUME if resume else TO_PREDICT
    damage: list[str] = []
    absent: list[str] = []
    for path in (folder(run) / name for name in names):
        if not path.is_file():
            absent.append(path.name)
            continue
        try:
            state = load_run(path)
        except DamagedError as error:
            log.warning("%s", error)
            damage.append(f"  {error}")
            continue
        if damage or absent:
            why = f"{' and '.join(absent)} missing: " if absent else ""
            log.warning("%susing %s of step %s instead", why, path, state.get("step", "?"))
        return path, state
    if damage:
        raise CheckpointError(f"{run}: no checkpoint can be read:", *damage)
    hint = "; start again without --resume" if resume else ""
    raise CheckpointError(f"{run}: has no checkpoints/{' or '.join(names)}{hint}")


def quarantine_damaged(run: Path, used: Path) -> bool:
    """Before a run is resumed from the file `used`: rename damaged ones to *.damaged, so that they
    never replace a good one. Returns whether best.pt exists and is whole."""
    last, best = folder(run) / "last.pt", folder(run) / "best.pt"
    if used.name == "prev.pt" and last.exists():
        _rename(last)
    if not best.exists():
        return False
    try:
        load_run(best)
    except DamagedError as error:
        log.warning("%s; the next validation writes a new one", error)
        _rename(best)
        return False
    return True


def _rename(path: Path) -> None:
    os.replace(path, path.with_name(f"{path.name}.damaged"))
    log.warning("%s is kept as %s.damaged", path, path.name)
