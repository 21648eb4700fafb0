"""Run directories: never taken by accident, never emptied of what is not ours."""

import contextlib
import json
import os
import subprocess

import pytest

from visionkit import rundir, runlock
from visionkit.errors import ConfigError


def choose(output, resume=False, overwrite=False, name="x"):
    run = rundir.choose(output, name, resume=resume, overwrite=overwrite)
    runlock.release(run)
    return run


def test_without_a_name_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(choose(None)) for _ in range(2)] == ["runs/x-001", "runs/x-002"]
    (tmp_path / "runs/x-041").mkdir()
    assert str(choose(None)) == "runs/x-042"


def test_a_run_is_not_replaced_unless_told_so(tmp_path):
    run = choose(str(tmp_path / "r"))
    (run / "config.yaml").write_text("a: 1")
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints/last.pt").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        choose(str(run))
    assert choose(str(run), resume=True) == run
    assert (run / "checkpoints/last.pt").exists()
    choose(str(run), overwrite=True)
    assert sorted(p.name for p in run.iterdir()) == [".lock", "checkpoints", "notes.txt"]
    assert not list((run / "checkpoints").iterdir())


def test_an_output_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be a directory"):
        choose(str(tmp_path / "file"))


def test_metrics_are_strict_json_and_forget_what_comes_again(tmp_path):
    for step in (1, 2, 3):
        rundir.append_metrics(tmp_path, [{"kind": "train", "step": step, "x": float("nan")}])
        rundir.append_metrics(tmp_path, [{"kind": "val", "step": step, "x": float("inf")}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "x"')  # cut off by a crash
    rundir.truncate_metrics(tmp_path, 2, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1), ("val", 1), ("train", 2),
    ]  # fmt: skip
    assert all(line["x"] is None for line in lines)


def test_a_run_that_is_being_trained_is_left_alone(tmp_path):
    run = choose(str(tmp_path / "r"))
    (run / "config.yaml").write_text("a: 1")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with monkeypatched_pid(sleeper.pid):
            rundir.write_status(run, "running")
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=f"trained by process {sleeper.pid}"):
                choose(str(run), **how)
    finally:
        sleeper.kill()
        sleeper.wait()
    choose(str(run), resume=True)  # its process is gone


def test_a_run_that_saved_nothing_can_be_started_again(tmp_path):
    run = choose(str(tmp_path / "r"))
    (run / "config.yaml").write_text("a: 1")
    rundir.write_status(run, "failed")
    choose(str(run))
    assert not (run / "config.yaml").exists()


@contextlib.contextmanager
def monkeypatched_pid(pid):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        yield


def test_a_list_written_item_by_item_is_the_same_text_or_not_there(tmp_path):
    path = tmp_path / "list.json"
    for items in ([], [{"a": 1}], [{"a": float("nan")}, [2], "three"]):
        with rundir.json_list(path) as add:
            for item in items:
                add(item)
        assert path.read_text() == rundir.to_json(items) + "\n"
    before = path.read_text()
    with pytest.raises(KeyboardInterrupt), rundir.json_list(path) as add:
        add("four")
        raise KeyboardInterrupt
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
