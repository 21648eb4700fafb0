"""Checkpoint files: written atomically, checked before use; and those of a run.

A checkpoint has tensors and plain values only and is read with `weights_only=True`, so that a file
from somebody else cannot run code.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionkit.errors import ArgumentError, CheckpointError, listed, plural, shorten
from visionkit.runs import files, foreign, hub, safetensors_file

log = logging.getLogger("visionkit")
TO_RESUME = ("last.pt", "prev.pt")
TO_PREDICT = ("best.pt", "last.pt", "prev.pt")
FORMAT = 1
COUNTER = "num_batches_tracked"  # of a BatchNorm
NEAREST = 3  # runs in the answer to one that is not there
MOST = 100  # names of tensors that start at random, for `Fit.lines`
OF_A_RUN = ("config", "classes", "model")
COPIES = ("config.yaml", "classes.json")  # in a bundle, for people, of what model.safetensors has
# Older versions of `weights_only` are unsafe (CVE-2025-32434, GHSA-63cw-57p8-fm3p).
SAFE_TORCH = (2, 10)
# Classes that a file may have: torchvision's training scripts save their options as this one, which
# has attributes and no code of its own. What is in them is checked like everything else.
HARMLESS: list[Any] = [argparse.Namespace]
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
        raise DamagedError(
            f"{path}: is not a visionkit checkpoint: it looks like {foreign.content_kind(state)}; "
            "a config can start from such a file with `weights`, or `backbone.weights`; with that "
            "of a published model: visionkit predict NAME ... weights=FILE"
        )
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']}, this visionkit reads up to {FORMAT}; upgrade it"
        )
    return state


def load_run(path: str | Path) -> dict[str, Any]:
    """`load`, and raise CheckpointError unless the file is of a run: with a config, class lists and
    weights. The config itself is not checked: see `load_config`."""
    state = load(path)
    wrong = [key for key in OF_A_RUN if not isinstance(state.get(key), dict)]
    if wrong:
        raise CheckpointError(f"{path}: is not a checkpoint of a run: {wrong} missing")
    for head, lists in state["classes"].items():
        if not _is_class_list(lists):
            raise CheckpointError(f"{path}: its class list of {head!r} is not names and their ids")
    if not all(isinstance(value, Tensor) for value in state["model"].values()):
        raise CheckpointError(f"{path}: its weights are not all tensors")
    return state


def is_run(content: Any) -> bool:
    """Whether what `load_tensors` returned is a checkpoint of a run, for `check_run`."""
    return isinstance(content, dict) and all(isinstance(content.get(k), dict) for k in OF_A_RUN)


def require_resumable(path: Path, state: dict[str, Any]) -> None:
    """Raise CheckpointError unless the progress of a run is in the state, of the right kinds."""

    def count(value: Any) -> bool:
        return type(value) is int and value >= 0

    best, window, skipped = (state.get(key) for key in ("best", "window", "skipped"))
    train = state["config"].get("train")
    fits = {
        "step": count(state.get("step")),
        "validated_at": count(state.get("validated_at")),
        "world_size": count(state.get("world_size")) and state["world_size"] > 0,
        "metrics": _is_mapping(state.get("metrics"), float),
        "images": _is_mapping(state.get("images"), int),
        "best": isinstance(best, dict)
        and count(best.get("stale"))
        and isinstance(best.get("score", ""), float | int | None),
        "skipped": isinstance(skipped, list) and len(skipped) == 3 and all(map(count, skipped)),
        "window": isinstance(window, dict)
        and count(window.get("steps"))
        and _is_mapping(window.get("sums"), Tensor),
        "config": isinstance(train, dict) and count(train.get("log_every")),
        "optimizer": isinstance(state.get("optimizer"), dict),
        "scaler": isinstance(state.get("scaler"), dict),
    }
    wrong = [f"{key!r} is {shorten(repr(state.get(key)))}" for key, fit in fits.items() if not fit]
    if wrong:
        raise CheckpointError(f"{path}: cannot be resumed: its {', '.join(wrong)}")


def _is_mapping(value: Any, kind: type) -> bool:
    numbers = (kind, int) if kind is float else kind
    return isinstance(value, dict) and all(isinstance(item, numbers) for item in value.values())


def _is_class_list(lists: Any) -> bool:
    match lists:
        case {"names": list(names), "ids": list(ids)} if len(names) == len(ids):
            kinds = {(type(name), type(number)) for name, number in zip(names, ids, strict=True)}
            return kinds <= {(str, int)}
    return False


def load_tensors(path: str | Path) -> Any:
    """Read a file of tensors and plain values, at a path or at a `hf://` address; damage is found
    before anything is used."""
    path = hub.fetch(path) if hub.is_hub(path) else Path(path)
    _require_safe_torch()
    if not path.is_file():
        what = "is a pipe or device, not a file" if path.exists() else "not found"
        if path.is_dir():
            inside = hub.DEFAULT if is_bundle(path) else "checkpoints/best.pt"
            what = f"is a folder; give a file of weights, such as {path / inside}"
        raise CheckpointError(f"{path}: {what}")
    try:
        if safetensors_file.is_safetensors(path):
            return _load_safetensors(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load does not check them
                    raise DamagedError(f"{path}: is damaged (checksum of {damaged!r})")
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {files.reason(error)}") from error
    except Exception as error:  # torch.load raises anything on a file that it did not write
        unknown = "truncated, or has more than tensors and plain values"
        kind = foreign.file_kind(path)
        what = f"looks like {kind}" if kind else f"is {unknown} ({type(error).__name__})"
        raise DamagedError(f"{path}: cannot be read as weights: it {what}") from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors_file.read(path)
    except ValueError as error:
        raise DamagedError(f"{path}: cannot be read as weights: it is {error}") from error


def export(run: str | Path, path: str | Path) -> Path:
    """Write the weights of a run, or of a checkpoint, as a new `.safetensors` file; returns its
    path. With the config and the class lists in its metadata it predicts, is scored and is started
    from like a checkpoint, but cannot be resumed. ArgumentError if the file exists.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArgumentError(f"{path}: expected a file name that ends in .safetensors")
    if path.exists():
        raise ArgumentError(f"{path}: exists; delete it or choose another name")
    safetensors_file.write(portable(*load_latest(run)), path)
    return path


def portable(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a `.safetensors` file keeps of the checkpoint of a run: tensors, config, classes and
    thresholds, but nothing to resume with. CheckpointError for weights that are not finite."""
    wrong = [
        name
        for name, tensor in state["model"].items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if wrong:
        count = plural(len(wrong), "tensor")
        raise CheckpointError(
            f"{path}: {count} of its weights have NaN or infinite values: {listed(wrong, 3)}; "
            "use an earlier checkpoint, or train again"
        )
    kept = {key: state[key] for key in ("format", *OF_A_RUN)}
    # JSON has no numbers as keys.
    return {**kept, "thresholds": json.loads(json.dumps(state.get("thresholds", {})))}


def load_state_dict(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """The state_dict in a file, and the whole content of the file. It may stand under a key such as
    `state_dict`, and all names may have the prefix of a wrapper such as `module.`."""
    content = load_tensors(path)
    state = foreign.state_dict_of(content)
    if state is None:
        kind = foreign.content_kind(content)
        raise CheckpointError(
            f"{path}: has no state_dict: it looks like {kind}; save the state_dict alone with "
            "torch.save"
        )
    return state, content


def _require_safe_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < SAFE_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} may run code from a weights file; install "
            f"torch {'.'.join(map(str, SAFE_TORCH))} or newer"
        )


class Fit(NamedTuple):
    """How tensors of a file fit those of a model, by name."""

    fitting: list[str]
    missing: list[str]
    shapes: list[str]  # of another shape
    surplus: list[str]  # of further layers in a sequence of layers of the model: a deeper network
    others: list[str]  # of parts that the model does not have
    unusable: list[str]  # in their place, but not finite floating-point numbers

    @property
    def is_whole(self) -> bool:
        """Whether the file has all tensors of the model, and no deeper ones."""
        return not (self.missing or self.shapes or self.surplus or self.unusable)

    def lines(self, most: int = 10) -> list[str]:
        """What does not fit, with at most so many names of a kind."""
        found = {
            "missing": self.missing,
            "of another shape": self.shapes,
            "unusable": self.unusable,
            "unexpected": self.surplus + self.others,
        }
        return [f"  {len(n)} {what}: {listed(n, most)}" for what, n in found.items() if n]


def compare(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], optional: tuple[str, ...] = ()
) -> Fit:
    """How the tensors of a file fit a model's `own`; names that begin with one of `optional` may be
    missing. Counters of batches are ignored: some files lack them."""
    own = {name: tensor for name, tensor in own.items() if not name.endswith(COUNTER)}
    modules = {name[: dot.start()] for name in own for dot in re.finditer(r"\.", name)}
    alike = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
    faults = {name: _fault(own[name], tensors[name]) for name in alike}
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        f"{_channels_clause(tensors[name].shape, tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    missing = [n for n in own if n not in tensors and not n.startswith(optional or "\0")]
    unexpected = [n for n in tensors if n not in own and not n.endswith(COUNTER)]
    surplus = [name for name in unexpected if _is_further_layer(name, modules)]
    others = [name for name in unexpected if name not in surplus]
    unusable = [f"{name} ({fault})" for name, fault in faults.items() if fault]
    fitting = [name for name in alike if not faults[name]]
    return Fit(fitting, missing, shapes, surplus, others, unusable)


def has_values(tensor: Tensor) -> bool:
    """Whether it is an array of plain numbers in memory."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def is_finite(tensor: Tensor) -> bool:
    """Whether none of its values is NaN or infinite."""
    return not has_values(tensor) or bool(tensor.isfinite().all())


def _fault(own: Tensor, tensor: Tensor) -> str:
    """What is wrong with the values of a tensor for a model's `own`; empty for nothing."""
    if not has_values(tensor):
        return "has no plain values"
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')}, not floating-point"
    return "" if is_finite(tensor) else "has NaN or infinite values"


def _channels_clause(found: torch.Size, own: torch.Size) -> str:
    """What the shape of a first convolution says if it is for other images than RGB."""
    channels = found[1] if len(found) == len(own) == 4 and own[1] == 3 else 3
    alike = channels != 3 and (found[0], found[2:]) == (own[0], own[2:])
    return f" (it is for images of {plural(channels, 'channel')}, not RGB)" if alike else ""


def _is_further_layer(name: str, modules: set[str]) -> bool:
    """Whether the first module in `name` that is not one of `modules` has a number for a name."""
    parts = name.split(".")
    lacking = (p for i, p in enumerate(parts) if ".".join(parts[: i + 1]) not in modules)
    return next(lacking, "").isdigit()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Load all weights of a model, in any precision. CheckpointError names what does not fit."""
    fit = compare(model.state_dict(), weights)
    lines = fit._replace(unusable=[]).lines()  # what such a model predicts is checked
    if lines:
        raise CheckpointError(f"{where}: does not fit the config:", *lines)
    model.load_state_dict(weights, strict=False)  # counters may be missing


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
    """The path and content of a checkpoint file, of a bundle, or of the best checkpoint of a run
    directory.

    If best.pt is missing or damaged, last.pt and then prev.pt replace it, with a warning; with
    `resume`, last.pt and then prev.pt. Raises CheckpointError if none can be read, with what is
    wrong with each.
    """
    if not isinstance(run, (str, os.PathLike)):
        meant = "; did you mean its .directory?" if hasattr(run, "directory") else ""
        raise ArgumentError(
            f"run: got {shorten(repr(run))}; expected the path of a run directory or a checkpoint "
            f"file{meant}"
        )
    run = hub.fetch(run) if hub.is_hub(run) else Path(run)
    if run.is_file():
        return run, load_run(run)
    if not run.is_dir():
        what = "is a pipe or device" if run.exists() else "not found"
        expected = "expected a run directory or a checkpoint file"
        raise CheckpointError(f"{run}: {what}; {expected}{nearest(run)}")
    if not (resume or folder(run).is_dir()) and is_bundle(run):
        return _load_bundle(run)
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


def nearest(run: str | Path) -> str:
    """A clause with the runs and files of weights next to one that is not there, or else ""."""
    path = Path(run)
    with suppress(OSError, ValueError):  # ValueError: a path with a NUL in it
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=NEAREST)
        found = [path.parent / name for name in near]
        usable = [f for f in found if folder(f).is_dir() or f.suffix.lower() in files.WEIGHTS]
        return f"; next to it: {listed(usable)}" if usable else ""
    return ""


def is_bundle(path: str | Path) -> bool:
    """Whether a folder looks like one that `visionkit export --format bundle` wrote."""
    names = (hub.DEFAULT, *COPIES[1:])
    return any((Path(path) / name).is_file() for name in names)


def digest_copy(text: str) -> str:
    """SHA-256 of a text file of a bundle, whatever its line ends are."""
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()


def _load_bundle(run: Path) -> tuple[Path, dict[str, Any]]:
    """The weights of a bundle, whose other files must be as they were written: somebody who edited
    them would expect an effect."""
    path = run / hub.DEFAULT
    if not path.is_file():
        raise CheckpointError(f"{run}: has no {hub.DEFAULT}; copy the whole bundle again")
    state = load_run(path)
    written = state.pop("files", {})
    for name in COPIES if isinstance(written, dict) and written else ():
        try:
            with files.open_regular(run / name) as file:
                found = digest_copy(file.read().decode("utf-8", "replace"))
        except FileNotFoundError:
            log.warning("%s missing: using what %s has of it", run / name, hub.DEFAULT)
            continue
        except OSError as error:
            raise CheckpointError(f"{run / name}: cannot be read: {files.reason(error)}") from error
        if found != written.get(name):
            raise CheckpointError(
                f"{run / name}: is not the file that was exported with {hub.DEFAULT}; restore it, "
                "or delete it, since the weights have the same content; give other values of the "
                "config as overrides, such as data.image_size=640"
            )
    return path, state


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
