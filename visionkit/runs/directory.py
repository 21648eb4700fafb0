"""The directory of a run: choose or create it, lock it, read and write its status and metrics.

config.yaml          the resolved config; `visionkit train config.yaml` repeats the run
metrics.jsonl        one JSON object for each logged step and each validation
data.json            the data that is used; what was dropped, fixed, or looks wrong
status.json          running, finished, preempted, failed or diverged, and at which step
checkpoints/         last.pt to resume from, prev.pt the one before it, best.pt to predict with
plots/               curves, training images, validation images
eval/                metrics and result files of `visionkit eval`
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from visionkit.distributed import launch
from visionkit.errors import ConfigError, Preempted, listed
from visionkit.runs import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # on Windows

log = logging.getLogger("visionkit")
# Of a run directory; no other file is ever deleted.
FILES = ("config.yaml", "data.json", "metrics.jsonl", "status.json")
FOLDERS = ("checkpoints", "plots", "eval")
SUFFIXES = (".pt", ".damaged", ".png", ".jpg", ".json")  # of files in the folders
CHECKPOINTS = ("last", "prev", "best")
HOLDER = "process "  # the beginning of `.lock`
MAX_OWN = 16_000_000  # bytes of a file of a run that are read to recognize it
KEYS = {"data.json": {"version", "sources"}, "status.json": {"state", "host", "pid"}}
_locks: dict[Path, int] = {}  # descriptors of the locks that this process holds


def choose(output: str | None, name: str, *, resume: bool, overwrite: bool) -> Path:
    """Create and lock the directory of a new or resumed run: `output`, or `runs/<name>-NNN`.
    `release` unlocks it.

    A directory that already holds a run is refused, unless the run is to be resumed or
    overwritten, or ended before it saved anything. Overwriting deletes the files of a run and
    nothing else. A directory with files of another program, and one with links in the place of a
    run's files, is refused. A run that is being trained is never touched.
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
    _refuse_links(run)
    if not resume:
        _refuse_foreign(run)
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
    for item in FILES:
        (run / item).unlink(missing_ok=True)
    for item in FOLDERS:
        for path in (run / item).glob("*"):
            if path.suffix in SUFFIXES:
                path.unlink()
        with suppress(OSError):  # it does not exist, or holds other files
            (run / item).rmdir()


def _refuse_links(run: Path) -> None:
    """Nothing of a run is read or written through a link, which may lead to somebody's file."""
    names = [".lock", *FILES, *FOLDERS, *(f"checkpoints/{name}.pt" for name in CHECKPOINTS)]
    if links := [name for name in names if (run / name).is_symlink()]:
        raise ConfigError(
            f"output: {run} has links instead of files of a run: {listed(links)}; move what they "
            "lead to here, or choose another directory"
        )


def _refuse_foreign(run: Path) -> None:
    """Raise ConfigError if there are files of another program that a new run would replace, or any
    files where there was no run."""
    if _is_ours(run / ".lock"):  # every run makes it
        return
    found = [name for name in FILES if (run / name).exists()]
    foreign = [name for name in found if not _is_ours(run / name)]
    if not found:
        foreign = [
            path.name
            for path in run.iterdir()
            if path.name[0] != "." and path.name != "lost+found"
            if path.name not in FOLDERS or not path.is_dir() or any(path.iterdir())
        ]
    if foreign:
        raise ConfigError(
            f"output: {run} holds files that are not of a run: {listed(sorted(foreign))}; choose a "
            "new or empty directory"
        )


def _is_ours(path: Path) -> bool:
    """Whether a run wrote that file; an empty one is what a power cut may leave."""
    try:
        with files.open_regular(path, follow=False) as file:
            text = file.read(MAX_OWN).decode("utf-8", "replace").strip("\0 \n")
        if path.name == ".lock":
            return text.startswith(HOLDER)
        if path.suffix == ".yaml":
            ours = all(re.search(rf"^{key}:", text, re.MULTILINE) for key in ("heads", "train"))
        elif path.suffix == ".jsonl":
            ours = any(_parse_record(f"{line}\n") for line in text.splitlines())
        else:
            ours = KEYS[path.name] <= json.loads(text or "{}").keys()
        return ours or not text
    except (OSError, ValueError, AttributeError):  # AttributeError: JSON, but no object
        return False


def find_restarted(output: str | None, name: str) -> Path | None:
    """The run that an earlier attempt of this launch of torchrun began, if any."""
    if launch.launch_id() is None:
        return None
    runs = Path("runs").glob(f"{name}-*") if output is None else [Path(output)]
    statuses = {run: read_status(run) for run in runs}
    ours = [run for run, status in statuses.items() if status.get("launch") == launch.launch_id()]
    return max((run for run in ours if statuses[run].get("pid") != os.getpid()), default=None)


def holds_run(directory: Path) -> bool:
    names = ("config.yaml", "metrics.jsonl", *(f"checkpoints/{name}.pt" for name in CHECKPOINTS))
    return any((directory / name).exists() for name in names)


def write_status(run: Path, state: str, **details: Any) -> None:
    status = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), **details}
    if launch.launch_id() is not None:
        status["launch"] = launch.launch_id()
    files.write_text(run / "status.json", files.to_json(status) + "\n")


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty if it is missing or corrupt."""
    return _read_record(run / "status.json")


def read_data(run: Path) -> dict[str, Any]:
    """The content of data.json, what was used and dropped; empty if it is missing or corrupt."""
    return _read_record(run / "data.json")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        with files.open_regular(path, follow=False) as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def append_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    """Add all records to metrics.jsonl, or none if that fails."""
    files.append_lines(run / "metrics.jsonl", "".join(files.to_json(r) + "\n" for r in records))


def truncate_metrics(run: Path, step: int, validated_at: int, log_every: int) -> None:
    """Remove from metrics.jsonl the training records after `step` and the validations after
    `validated_at`, and lines that a crash damaged."""
    last = {"train": step, "val": validated_at}
    path, kept = run / "metrics.jsonl", []
    if path.exists():
        with files.open_regular(path, follow=False) as file:
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
        records = [_parse_record(line) for line in lines]
        damaged = records[:-1].count(None)  # the last line may be cut off
        if damaged:
            log.warning("%s: %d damaged lines are dropped", path, damaged)
        kept = [r for r in records if r is not None and r["step"] <= last[r["kind"]]]
        files.write_text(path, "".join(files.to_json(record) + "\n" for record in kept))
    reached = max((record["step"] for record in kept if record["kind"] == "train"), default=0)
    if step - reached > log_every:
        log.warning("%s: the records of steps %d to %d are lost", path, reached + 1, step)


def _parse_record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if a crash or a disk has damaged it."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("kind") not in ("train", "val"):
        return None
    return record if isinstance(record.get("step"), int) else None


def stopped_before_training(run: str | Path | None, signal_name: str | None) -> Preempted:
    """The error to raise for a signal before the first step. The run that was to be resumed becomes
    `preempted` if its status.json is still `running`, as after a kill."""
    message = f"stopped by {signal_name} before training began"
    if run is None or not holds_run(Path(run)):
        return Preempted(f"{message}; start it again")
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
    return Preempted(f"{message}; continue with: visionkit train --resume {run}")


def _lock(run: Path) -> None:
    """Lock the directory until `release`, or until this process ends, however it ends. ConfigError
    if another process, or another thread of this one, trains there."""
    key = run.resolve()
    if key in _locks:
        raise _in_use(run, "this process")
    if fcntl is None:
        _refuse_running(run)
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(key / ".lock", flags, 0o644)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # whose content is another's too
        os.close(descriptor)
        raise ConfigError(
            f"output: {run}/.lock has another name, or is not a regular file; remove it"
        )
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(run, holder or "another process") from error
        log.warning("%s: its file system has no locks (%s)", run, error.strerror)
        _refuse_running(run)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{HOLDER}{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    _locks[key] = descriptor


def release(run: Path) -> None:
    descriptor = _locks.pop(run.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _in_use(run: Path, holder: str) -> ConfigError:
    return ConfigError(f"output: {run} is being trained by {holder}; stop that run first")


def _refuse_running(run: Path) -> None:
    """The check without locks: whether the process that wrote status.json is alive."""
    status = read_status(run)
    pid = status.get("pid")
    here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    if here and isinstance(pid, int) and pid != os.getpid() and _is_alive(pid):
        raise _in_use(run, f"process {pid}")


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


def _next_free(parent: Path, name: str) -> Path:
    """Create a directory with the next free number, also while other processes do the same."""
    ours = [re.fullmatch(re.escape(name) + r"-(\d+)", e.name) for e in parent.glob(f"{name}-*")]
    number = max((int(match[1]) for match in ours if match), default=0)
    while True:
        number += 1
        run = parent / f"{name}-{number:03d}"
        with suppress(FileExistsError):
            run.mkdir(parents=True)
            return run
