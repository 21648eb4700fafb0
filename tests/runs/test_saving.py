"""Full, read-only or failing disks: what is there stays, and training continues if it can."""

import errno
import logging
import os
import resource
from pathlib import Path

import pytest

from support.runs import config, lines, read_status, same, start, state
from visionkit.engine.train import train
from visionkit.errors import CheckpointError
from visionkit.runs import checkpoint, files
from visionkit.runs.directory import append_metrics
from visionkit.visualization import plots


def failing_saves(monkeypatch, fails):
    """Saving to a file fails where `fails(number of the save, name)` says so; numbers from 1."""
    fsync, numbers = os.fsync, {"last.pt": 0, "best.pt": 0}

    def full(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".tmp")[0]
        if name in numbers:
            numbers[name] += 1
            if fails(numbers[name], name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return numbers


def test_a_disk_that_is_full_for_a_while_changes_nothing(tmp_path, monkeypatch, caplog):
    """Two saves of best.pt fail, later two of last.pt; then there is room again."""
    settings = {"steps": 9, "save_every": 0}
    whole = train(config(tmp_path / "whole", **settings)).directory
    with monkeypatch.context() as patch:
        failing_saves(patch, lambda n, name: n in ((6, 7) if name == "last.pt" else (1, 2)))
        run = train(config(tmp_path / "run", **settings)).directory
    warnings = [r.getMessage() for r in caplog.records if "will retry" in r.getMessage()]
    assert len(warnings) == 4
    for text in warnings:
        assert "disk full" in text and ".pt: cannot be written" in text
    assert "best.pt: " in warnings[0] and "the last checkpoint is of step 3; will" in warnings[0]
    assert "(attempt 2 of 3)" in warnings[1] and "last.pt: " in warnings[2]
    for name in ("last.pt", "best.pt"):
        assert same(state(run, name), state(whole, name))
    assert not list(run.rglob("*.tmp.*"))


def test_best_is_on_the_disk_before_last_speaks_of_it(tmp_path, monkeypatch):
    """The first best.pt cannot be written, then the process is killed: what is there agrees, and
    the run that goes on from it ends like one that was not disturbed."""
    settings = {"steps": 9, "save_every": 0}
    whole = train(config(tmp_path / "whole", **settings)).directory
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        failing_saves(patch, lambda n, name: name == "best.pt")
        with pytest.raises(CheckpointError, match=r"best\.pt.*disk full.*of step 3"):
            train(config(run, **settings))
    assert state(run)["best"]["score"] is None and state(run)["step"] == 3
    train(config(run, **settings), resume=True)
    for name in ("last.pt", "best.pt"):
        assert same(state(run, name), state(whole, name))
    assert lines(run) == lines(whole)


def test_three_failures_in_a_row_end_the_run(tmp_path, monkeypatch, capfd):
    numbers = failing_saves(monkeypatch, lambda n, name: n > 2)
    with pytest.raises(CheckpointError, match=r"last\.pt.*disk full.*last checkpoint is of step 2"):
        train(config(tmp_path, steps=9, save_every=0, validate=False))
    assert numbers["last.pt"] == 5
    assert state(tmp_path)["step"] == 2 and not list(tmp_path.rglob("*.tmp.*"))
    found = read_status(tmp_path)
    assert (found["state"], found["exit_code"], found["step"]) == ("failed", 4, 5)
    assert found["checkpoint_step"] == 2 and "disk full" in found["reason"]


def test_the_last_save_must_succeed(tmp_path, monkeypatch):
    failing_saves(monkeypatch, lambda n, name: n == 2)
    with pytest.raises(CheckpointError, match="disk full"):
        train(config(tmp_path, validate=False))
    assert state(tmp_path)["step"] == 1


def test_a_file_system_that_takes_no_checkpoint(tmp_path):
    """A real limit, in a process of its own: exit code 4, and nothing half-written is left."""
    files.write_text(tmp_path / "c.yaml", files.to_json(config(tmp_path / "run", save_every=0)))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    child = start(["train", tmp_path / "c.yaml"], tmp_path / "log", limit)
    child.join(60)
    told = (tmp_path / "log").read_text()
    assert child.exitcode == 4, told
    assert told.count("will retry at the next checkpoint") == 2
    assert "last.pt: cannot be written: File too large" in told and "Traceback" not in told
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_files_beside_the_checkpoints_end_nothing(tmp_path, monkeypatch, caplog):
    """The log cannot be written for two steps, status.json and config.yaml never, no image can
    be drawn."""
    caplog.set_level(logging.WARNING, "visionkit")
    append, calls = files.append_lines, []

    def sometimes(path, text):
        calls.append(path)
        if len(calls) in (2, 3):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        append(path, text)

    def never(path, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def broken(*_, **__):
        raise ZeroDivisionError("no image today")

    whole = train(config(tmp_path / "whole")).directory
    monkeypatch.setattr(files, "append_lines", sometimes)
    monkeypatch.setattr(files, "write_text", never)
    monkeypatch.setattr(plots, "contact_sheet", broken)
    monkeypatch.setattr(plots, "write_plots", broken)
    run = train(config(tmp_path / "run", plots=True)).directory
    assert lines(run) == lines(whole)  # what was missed is written later
    assert same(state(run)["model"], state(whole)["model"])
    told = [record.getMessage() for record in caplog.records]
    assert sum("metrics.jsonl: cannot be written: Disk quota" in text for text in told) == 1
    assert sum("metrics.jsonl could not be written 2 times" in text for text in told) == 1
    assert sum("status.json: cannot be written: Read-only" in text for text in told) == 1
    assert sum("config.yaml: cannot be written: Read-only" in text for text in told) == 1
    assert sum("no image today" in text for text in told) == 3


def test_half_a_line_is_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(tmp_path, [{"kind": "train", "step": 1}])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_metrics(tmp_path, [{"kind": "train", "step": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    append_metrics(tmp_path, [{"kind": "train", "step": 3}])
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_device_that_is_full_is_named():
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as file:
        file.write("x")
    assert files.reason(caught.value) == "disk full: No space left on device (errno 28)"


def test_a_state_that_cannot_be_saved_ends_the_run_at_once(tmp_path, monkeypatch):
    """Not a matter of the disk: trying again would not help."""
    monkeypatch.setattr(checkpoint, "PLAIN", (int,))
    with pytest.raises(TypeError, match="which a checkpoint cannot have"):
        train(config(tmp_path))
    assert read_status(tmp_path)["state"] == "failed"
