"""The checkpoints of a run, and which one is used where another is damaged.

last.pt   the newest state; the one before it stays as
prev.pt   until the next one is written
best.pt   the weights with the best validation

A file's own checksums tell whether it is whole, so no list of them is kept beside.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from visionkit import checkpoint
from visionkit.checkpoint import DamagedError
from visionkit.errors import CheckpointError

log = logging.getLogger("visionkit")
TO_RESUME = ("last.pt", "prev.pt")
TO_PREDICT = ("best.pt", "last.pt", "prev.pt")


def folder(run: Path) -> Path:
    return run / "checkpoints"


def keep_last(run: Path, state: dict[str, Any]) -> None:
    """Write last.pt; what was there becomes prev.pt."""
    checkpoint.save(state, folder(run) / "last.pt", previous=folder(run) / "prev.pt")


def load_run(run: str | Path, *, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    """A checkpoint file, or the best one of a run directory, and its content.

    Where best.pt is missing or damaged it is last.pt, and then prev.pt, with a warning; with
    `resume`, last.pt and then prev.pt. Raises CheckpointError if there is none that can be read,
    which names each and what is wrong with it.
    """
    run = Path(run)
    if run.is_file():
        return run, checkpoint.load_run(run)
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run directory or checkpoint file")
    names = TO_RESUME if resume else TO_PREDICT
    damage: list[str] = []
    absent: list[str] = []
    for path in (folder(run) / name for name in names):
        if not path.is_file():
            absent.append(path.name)
            continue
        try:
            state = checkpoint.load_run(path)
        except DamagedError as error:
            log.warning("%s", error)
            damage.append(str(error))
            continue
        if damage or absent:
            why = f"there is no {' and no '.join(absent)}: " if absent else ""
            log.warning("%s%s, of step %s, is used instead", why, path, state.get("step", "?"))
        return path, state
    if damage:
        raise CheckpointError("\n  ".join([f"{run}: no checkpoint can be read:", *damage]))
    hint = "; start it again without --resume" if resume else ""
    raise CheckpointError(
        f"{run}: holds no checkpoints/{' or '.join(names)}; nothing to load{hint}"
    )


def set_aside(run: Path, used: Path) -> bool:
    """Before a run goes on from the file `used`: rename damaged ones to *.damaged, so that no
    good one makes room for them. Whether best.pt is there and whole."""
    last, best = folder(run) / "last.pt", folder(run) / "best.pt"
    if used.name == "prev.pt" and last.exists():
        _rename(last)
    if not best.exists():
        return False
    try:
        checkpoint.load_run(best)
    except DamagedError as error:
        log.warning("%s; the next validation gives a new one", error)
        _rename(best)
        return False
    return True


def _rename(path: Path) -> None:
    os.replace(path, path.with_name(f"{path.name}.damaged"))
    log.warning("%s is kept as %s.damaged", path, path.name)
