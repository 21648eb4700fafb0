"""The directory of a run: where it is, what lies in it, and who may write to it.

config.yaml          the resolved config; `visionkit train config.yaml` repeats the run
metrics.jsonl        one JSON object for each logged step and each validation
status.json          running, finished, preempted, failed or diverged, and at which step
checkpoints/         last.pt to resume from, best.pt to predict with
plots/               curves, training pictures, validation pictures
eval/                figures and result files of `visionkit eval`
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionkit import launch
from visionkit.errors import ConfigError

CONTENT = ("config.yaml", "metrics.jsonl", "status.json", "checkpoints", "plots", "eval")


def choose(output: str | None, name: str, *, resume: bool, overwrite: bool) -> Path:
    """The directory of a new or resumed run, created; `runs/<name>-NNN` if none is named.

    A directory that already holds a run is refused, unless it is to be resumed or overwritten, or
    ended before it saved anything. Overwriting deletes what a run leaves there and nothing else.
    A run that a living process of this machine is training is never touched.
    """
    run = _next_free(Path("runs"), name) if output is None else Path(output)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output: {run} cannot be a directory: {error.strerror}") from error
    if not os.access(run, os.W_OK):
        raise ConfigError(f"output: {run} cannot be written to")
    _refuse_running(run)
    if holds_run(run) and not resume:
        if not overwrite and not _saved_nothing(run):
            raise ConfigError(
                f"output: {run} already holds a run; choose another directory, continue it with "
                f"--resume, or replace it with --overwrite"
            )
        for item in CONTENT:
            path = run / item
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (run / "checkpoints").mkdir(exist_ok=True)
    return run


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


def _refuse_running(run: Path) -> None:
    status = read_status(run)
    pid = status.get("pid")
    here = status.get("state") == "running" and status.get("host") == socket.gethostname()
    if here and isinstance(pid, int) and pid != os.getpid() and _is_alive(pid):
        raise ConfigError(f"output: {run} is being trained by process {pid}; stop that one first")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _saved_nothing(run: Path) -> bool:
    return bool(read_status(run)) and not list((run / "checkpoints").glob("*.pt"))


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(to_json(record) + "\n")


def truncate_metrics(run: Path, step: int, validated_at: int) -> None:
    """Forget what was logged after that step, and what was validated after the other, because
    it is about to be computed again."""
    last = {"train": step, "val": validated_at}
    path = run / "metrics.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        kept = [
            to_json(record) + "\n" for record in records if record["step"] <= last[record["kind"]]
        ]
        write_text(path, "".join(kept))


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """Hands out a function that adds one item to a file. The file appears at the end, as a whole;
    if anything is raised before, it does not."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    before = "["

    def add(item: Any) -> None:
        nonlocal before
        file.write(before + to_json(item))
        before = ", "

    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield add
            file.write("[]\n" if before == "[" else "]\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(record: Any) -> str:
    """Strict JSON: a number that is not finite becomes null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _next_free(parent: Path, name: str) -> Path:
    taken = [0]
    for entry in parent.glob(f"{name}-*"):
        match = re.fullmatch(re.escape(name) + r"-(\d+)", entry.name)
        taken += [int(match[1])] if match else []
    return parent / f"{name}-{max(taken) + 1:03d}"
