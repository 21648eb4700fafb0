"""The directory of a run: where it is, what lies in it, and who may write to it.

config.yaml          the resolved config; `visionkit train config.yaml` repeats the run
metrics.jsonl        one JSON object for each logged step and each validation
data.json            what is used of the data, and what was left out, fixed, or looks wrong
status.json          running, finished, preempted, failed or diverged, and at which step
checkpoints/         last.pt to resume from, prev.pt the one before it, best.pt to predict with
plots/               curves, training images, validation images
eval/                figures and result files of `visionkit eval`
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from visionkit.distributed import launch
from visionkit.errors import ConfigError, Preempted
from visionkit.runs import files
from visionkit.runs.files import to_json, write_text

# --- One process to a run directory: a lock that ends with its process, however that ends.

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, int] = {}  # descriptors of the locks of this process


class Locked(Exception):
    """Another process, or another thread of this one, trains there; says which."""


def acquire(run: Path) -> bool:
    """Take the directory; False where there are no locks. Raises Locked and OSError."""
    key = run.resolve()
    if key in _held:
        raise Locked("this process")
    if fcntl is None:
        return False
    descriptor = os.open(key / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise Locked(holder or "another process") from error
        log.warning("%s: its file system has no locks (%s)", run, error.strerror)
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    _held[key] = descriptor
    return True


def release(run: Path) -> None:
    descriptor = _held.pop(run.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


log = logging.getLogger("visionkit")
CONTENT = (
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    "status.json",
    "checkpoints",
    "plots",
    "eval",
)


def choose(output: str | None, name: str, *, resume: bool, overwrite: bool) -> Path:
    """The directory of a new or resumed run, created and locked until `runlock.release`;
    `runs/<name>-NNN` if none is named.

    A directory that already holds a run is refused, unless it is to be resumed or overwritten, or
    ended before it saved anything. Overwriting deletes what a run leaves there and nothing else.
    A run that is being trained is never touched.
    """
    try:
        run = _next_free(Path("runs"), name) if output is None else Path(output)
        run.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        where = "runs" if output is None else repr(output)
        raise ConfigError(f"output: {where} cannot be a directory: {why}") from error
    if not os.access(run, os.W_OK):
        raise ConfigError(f"output: {run} cannot be written to")
    try:
        _lock(run)
        _make_room(run, resume=resume, overwrite=overwrite)
        (run / "checkpoints").mkdir(exist_ok=True)
        for folder in (run, run / "checkpoints", run / "plots"):
            files.remove_strays(folder)
    except OSError as error:
        release(run)
        raise ConfigError(f"output: {run} cannot be written to: {files.reason(error)}") from error
    except ConfigError:
        release(run)
        raise
    return run


def _make_room(run: Path, *, resume: bool, overwrite: bool) -> None:
    if resume or not holds_run(run):
        return
    if not overwrite and not _saved_nothing(run):
        raise ConfigError(
            f"output: {run} already holds a run; choose another directory, continue it with "
            f"--resume, or replace it with --overwrite"
        )
    for item in CONTENT:
        path = run / item
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def of_launch(output: str | None, name: str) -> Path | None:
    """The run that an earlier attempt of this launch of torchrun began, if it did."""
    if launch.name() is None:
        return None
    runs = Path("runs").glob(f"{name}-*") if output is None else [Path(output)]
    began = {run: read_status(run) for run in runs}
    ours = [run for run, status in began.items() if status.get("launch") == launch.name()]
    return max((run for run in ours if began[run].get("pid") != os.getpid()), default=None)


def holds_run(directory: Path) -> bool:
    return (directory / "config.yaml").exists() or (directory / "metrics.jsonl").exists()


def write_status(run: Path, state: str, **details: Any) -> None:
    status = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), **details}
    if launch.name() is not None:
        status["launch"] = launch.name()
    write_text(run / "status.json", to_json(status) + "\n")


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty if there is none."""
    try:
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def stopped_before_training(run: str | Path | None, signal_name: str) -> Preempted:
    """The error to raise when a signal came while all was being prepared. A run that was to go on,
    and of which status.json still says `running`, though that process is gone, is `preempted`."""
    told = f"stopped by {signal_name} before training began"
    if run is None or not holds_run(Path(run)):
        return Preempted(f"{told}; start it again")
    status = read_status(Path(run))
    if status.get("state") == "running" and launch.rank() == 0:
        kept = {k: v for k, v in status.items() if k not in ("state", "host", "pid", "launch")}
        with suppress(OSError, ConfigError):  # another process trains it now
            _lock(Path(run))
            try:
                code, reason = Preempted.exit_code, signal_name
                write_status(Path(run), "preempted", **kept | {"exit_code": code, "reason": reason})
            finally:
                release(Path(run))
    return Preempted(f"{told}; continue with: visionkit train --resume {run}")


def _lock(run: Path) -> None:
    try:
        if not acquire(run):
            _refuse_running(run)
    except Locked as error:
        raise ConfigError(
            f"output: {run} is being trained by {error}; stop that one first"
        ) from error


def _refuse_running(run: Path) -> None:
    """Where there are no locks: whether the process that wrote status.json is still there."""
    status = read_status(run)
    pid = status.get("pid")
    here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    if here and isinstance(pid, int) and pid != os.getpid() and _is_alive(pid):
        raise Locked(f"process {pid}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _saved_nothing(run: Path) -> bool:
    saved = [*(run / "checkpoints").glob("*.pt"), *(run / "checkpoints").glob("*.damaged")]
    return bool(read_status(run)) and not saved


def append_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    """Add all of them to metrics.jsonl, or none if that fails."""
    files.append_lines(run / "metrics.jsonl", "".join(to_json(r) + "\n" for r in records))


def truncate_metrics(run: Path, step: int, validated_at: int, log_every: int) -> None:
    """Forget what was logged after that step, and what was validated after the other, because
    it is about to be computed again."""
    last = {"train": step, "val": validated_at}
    path, kept = run / "metrics.jsonl", []
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        records = [_record(line) for line in lines]
        damaged = records[:-1].count(None)  # the last line may be cut off
        if damaged:
            log.warning("%s: %d lines are damaged and left out", path, damaged)
        kept = [r for r in records if r is not None and r["step"] <= last[r["kind"]]]
        write_text(path, "".join(to_json(record) + "\n" for record in kept))
    reached = max((record["step"] for record in kept if record["kind"] == "train"), default=0)
    if step - reached > log_every:
        log.warning(
            "%s: what was logged after step %d, up to step %d, is lost", path, reached, step
        )


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if a crash or a disk has damaged it."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    whole = isinstance(record, dict) and record.get("kind") in ("train", "val")
    return record if whole and isinstance(record.get("step"), int) else None


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """Hands out a function that adds one item to a file. The file appears at the end, as a whole;
    if anything is raised before, it does not."""
    before = "["

    def add(item: Any) -> None:
        nonlocal before
        file.write(before + to_json(item))
        before = ", "

    with files.replacing(path) as file:
        yield add
        file.write("[]\n" if before == "[" else "]\n")


def _next_free(parent: Path, name: str) -> Path:
    """A new directory with the next number, also if another process takes one meanwhile."""
    taken = [0]
    for entry in parent.glob(f"{name}-*"):
        match = re.fullmatch(re.escape(name) + r"-(\d+)", entry.name)
        taken += [int(match[1])] if match else []
    number = max(taken)
    while True:
        number += 1
        run = parent / f"{name}-{number:03d}"
        with suppress(FileExistsError):
            run.mkdir(parents=True)
            return run
