"""Run directories: never taken by accident, never emptied of what is not ours."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from visionkit.errors import ConfigError
from visionkit.runs import directory as rundir
from visionkit.runs import files
from visionkit.runs.directory import append_metrics, truncate_metrics


def choose(output, resume=False, overwrite=False, name="x"):
    run = rundir.choose(output, name, resume=resume, overwrite=overwrite)
    rundir.release(run)
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


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name",
    [".lock", "config.yaml", "status.json", "metrics.jsonl", "data.json", "checkpoints", "plots",
     "eval", "checkpoints/last.pt", "checkpoints/best.pt"],
)  # fmt: skip
def test_a_run_is_not_written_through_a_link(name, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("theirs")
    run = choose(str(tmp_path / "run"))
    link = run / name
    if link.is_dir():
        link.rmdir()
    link.unlink(missing_ok=True)
    link.symlink_to(theirs if "." not in name else theirs / "notes.txt")
    before = contents(tmp_path)
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=f"has links instead of files of a run: {name};"):
            choose(str(run), **how)
    assert contents(tmp_path) == before
    (tmp_path / "way").symlink_to(run)  # to the directory itself: it is where the user wants it
    link.unlink()
    assert choose(str(tmp_path / "way"), resume=True) == tmp_path / "way"


def test_a_lock_with_another_name_is_not_written_to(tmp_path):
    """A hard link, as `cp -al` makes, is the other file; a pipe is no file."""
    (tmp_path / "theirs").write_text("theirs")
    run = tmp_path / "run"
    run.mkdir()
    os.link(tmp_path / "theirs", run / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock has another name, or is not a regular file"):
        choose(str(run))
    assert (tmp_path / "theirs").read_text() == "theirs"
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock has another name, or is not a regular file"):
        choose(str(run))


FOREIGN = {
    "config and status": {"config.yaml": "model: yolo\n", "status.json": '{"done": true}'},
    "config": {"config.yaml": "model: yolo\n"},
    "status": {"status.json": '["finished"]'},
    "data": {"data.json": '{"rows": []}'},
    "metrics": {"metrics.jsonl": '{"loss": 1}\n{"loss": 2}\n'},
    "corrupt": {"status.json": "\xff\xfe"},
    "a checkpoint": {"checkpoints/last.pt": "theirs"},
    "an image": {"plots/a.png": "theirs"},
    "a note": {"notes.txt": "theirs"},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_directory_with_files_of_another_program_is_refused(what, tmp_path):
    run = tmp_path / "run"
    for name, text in FOREIGN[what].items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    before, named = contents(tmp_path), next(iter(FOREIGN[what])).partition("/")[0]
    for how in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=f"holds files that are not of a run: .*{named}"):
            choose(str(run), **how)
    assert contents(tmp_path) == before


def test_an_empty_directory_and_the_remains_of_a_run_are_taken(tmp_path):
    run = tmp_path / "run"
    (run / "lost+found").mkdir(parents=True)  # of a new disk
    (run / "plots").mkdir()
    (run / ".DS_Store").touch()
    choose(str(run))
    (run / ".lock").unlink()  # as in a copy
    rundir.write_status(run, "failed")
    (run / "config.yaml").write_text("")  # after a power cut
    (run / "data.json").write_text(json.dumps({"version": 1, "sources": {}}))
    append_metrics(run, [{"kind": "train", "step": 1}])
    choose(str(run))
    assert [p.name for p in run.iterdir() if p.suffix] == []


def test_overwriting_leaves_what_no_run_writes(tmp_path):
    run = choose(str(tmp_path / "r"))
    rundir.write_status(run, "finished")
    (run / "plots").mkdir()
    (run / "plots/train_main.jpg").touch()
    mine = [run / "notes.txt", run / "plots/notes.txt", run / "checkpoints/mine.ckpt"]
    for path in mine:
        path.touch()
    (run / "checkpoints/last.pt").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        choose(str(run))
    choose(str(run), overwrite=True)
    assert all(path.exists() for path in mine)
    assert sorted(p.name for p in (run / "plots").iterdir()) == ["notes.txt"]
    assert not (run / "status.json").exists() and not (run / "checkpoints/last.pt").exists()


def test_an_output_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be a directory"):
        choose(str(tmp_path / "file"))


def test_metrics_are_strict_json_and_forget_what_comes_again(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, [{"kind": "train", "step": step, "x": float("nan")}])
        append_metrics(tmp_path, [{"kind": "val", "step": step, "x": float("inf")}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "x"')  # cut off by a crash
    truncate_metrics(tmp_path, 2, 1, log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1), ("val", 1), ("train", 2),
    ]  # fmt: skip
    assert all(line["x"] is None for line in lines)


def test_without_locks_the_process_of_a_run_is_looked_for(tmp_path, monkeypatch):
    run = choose(str(tmp_path / "r"))
    (run / "config.yaml").write_text("a: 1")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with monkeypatched_pid(sleeper.pid):
            rundir.write_status(run, "running")
        monkeypatch.setattr(rundir, "fcntl", None)  # a system without such locks
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


def test_a_run_has_one_process_and_the_lock_dies_with_it(tmp_path):
    """Also a killed one, whose loader workers still live; also another thread of this one."""
    run = tmp_path / "r"
    ours, theirs = multiprocessing.Pipe()

    def train():
        rundir.choose(str(run), "x", resume=False, overwrite=False)
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        theirs.send(worker.pid)
        time.sleep(60)

    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    worker = ours.recv()
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=f"trained by process {child.pid} on .*; stop that"):
            choose(str(run), **how)
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(ConfigError, match=f"trained by process {child.pid}"):
        choose(str(tmp_path / "link"))
    child.kill()
    child.join()
    os.kill(worker, 0)  # still there, as they are for some seconds
    os.kill(worker, signal.SIGKILL)
    rundir.choose(str(run), "x", resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="trained by this process"):
        rundir.choose(str(run), "x", resume=True, overwrite=False)
    rundir.release(run)
    choose(str(run))


def test_strange_names_of_run_directories(tmp_path, monkeypatch):
    for name in ("with spaces", "snö-🦊", "two\nlines", "[x]*?"):
        assert choose(str(tmp_path / name)).is_dir()
    for name, why in (("x" * 300, "File name too long"), ("nul\0", "null (byte|character)")):
        with pytest.raises(ConfigError, match=f"cannot be a directory: .*{why}"):
            choose(str(tmp_path / name))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ConfigError, match="cannot be written to"):
            choose(str(tmp_path / "closed"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(ConfigError, match="cannot be written to: disk full"):
        choose(str(tmp_path / "full"))


def test_what_dead_processes_left_behind_is_removed(tmp_path):
    run = choose(str(tmp_path / "r"))
    (run / "plots").mkdir()
    strays = [run / "status.json.tmp.123", run / "checkpoints/last.pt.tmp.9", run / "plots/a.tmp.1"]
    mine = [run / "notes.tmp.txt", run / "checkpoints/keep.pt"]
    for path in (*strays, *mine):
        path.touch()
    choose(str(run), resume=True)
    assert not any(path.exists() for path in strays) and all(path.exists() for path in mine)


def test_a_number_taken_meanwhile_is_left_to_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/x-001").mkdir(parents=True)
    monkeypatch.setattr(Path, "glob", lambda *_: [])  # it was not there yet
    assert str(choose(None)) == "runs/x-002"


def test_damaged_lines_of_the_metrics_are_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = files.to_json({"kind": "train", "step": 1, "x": 1.0}).encode() + b"\n"
    path.write_bytes(good + b"\0\0\xff\n" + b'{"kind": "train"}\n[1]\n' + good + b'{"kind')
    truncate_metrics(tmp_path, 5, 5, log_every=4)
    assert path.read_bytes() == good + good
    assert "3 damaged lines are dropped" in caplog.text and "are lost" not in caplog.text


def test_lines_of_the_metrics_that_were_lost_are_told(tmp_path, caplog):
    append_metrics(tmp_path, [{"kind": "train", "step": 20, "x": 1.0}])
    truncate_metrics(tmp_path, 65, 60, log_every=20)
    assert "metrics.jsonl: the records of steps 21 to 65 are lost" in caplog.text
    caplog.clear()
    (tmp_path / "metrics.jsonl").unlink()
    truncate_metrics(tmp_path, 19, 0, log_every=20)
    assert not caplog.text
    truncate_metrics(tmp_path, 21, 0, log_every=20)
    assert "the records of steps 1 to 21 are lost" in caplog.text


@contextlib.contextmanager
def monkeypatched_pid(pid):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        yield


def test_a_list_written_item_by_item_is_the_same_text_or_not_there(tmp_path):
    path = tmp_path / "list.json"
    for items in ([], [{"a": 1}], [{"a": float("nan")}, [2], "three"]):
        with files.json_list(path) as add:
            for item in items:
                add(item)
        assert path.read_text() == files.to_json(items) + "\n"
    before = path.read_text()
    with pytest.raises(KeyboardInterrupt), files.json_list(path) as add:
        add("four")
        raise KeyboardInterrupt
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
