"""SIGKILL at random moments: nothing that was saved is ever lost, and the end is the same."""

import random
import signal
import time

import pytest

from support.runs import config, lines, read_status, same, start, state
from visionkit.runs import checkpoint, files
from visionkit.runs import directory as rundir
from visionkit.runs.directory import truncate_metrics


def killed_and_resumed(folder, rounds, steps, seed):
    """Kill a run that saves after every step `rounds` times, then let it end.

    Returns how many kills hit it while it trained, and the steps that each of them cost.
    """
    run, spec = folder / "run", folder / "c.yaml"
    files.write_text(spec, files.to_json(config(run, steps=steps, save_every=0)))
    moments, kills, lost = random.Random(seed), 0, []
    while kills < rounds:
        saved = run.exists() and any((run / "checkpoints").glob("*.pt"))
        child = start(["train", spec, *(["--resume"] if saved else [])], folder / "log")
        while child.is_alive() and not trains(run, child.pid):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.2))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, (folder / "log").read_text()
        kills += 1
        path, state = checkpoint.load_latest(run, resume=True)  # one of them can be read
        checkpoint.load_latest(run)
        assert path.name == "last.pt"
        logged = [line["step"] for line in lines_so_far(run) if line["kind"] == "train"]
        lost.append(max(logged, default=0) - state["step"])
    child = start(["train", spec, *(["--resume"] if rounds else [])], folder / "log")
    child.join()
    assert child.exitcode == 0, (folder / "log").read_text()
    assert not list(run.rglob("*.tmp.*"))
    return run, kills, lost


def trains(run, pid):
    """Whether that process has begun, and there is a first checkpoint."""
    return rundir.read_status(run).get("pid") == pid and (run / "checkpoints/last.pt").exists()


def lines_so_far(run):
    """The log of a run that was cut off: its last line may be half."""
    truncate_metrics(run, 10**9, 10**9, 10**9)
    return lines(run)


def check(tmp_path, rounds, steps, seed):
    (tmp_path / "once").mkdir()
    whole, _, _ = killed_and_resumed(tmp_path / "once", 0, steps, seed)
    (tmp_path / "killed").mkdir()
    run, kills, lost = killed_and_resumed(tmp_path / "killed", rounds, steps, seed)
    for name in ("last.pt", "best.pt"):
        equal = same(state(run, name), state(whole, name))
        assert equal, name
    assert lines(run) == lines(whole) and read_status(run)["state"] == "finished"
    assert max(lost) <= 1
    print(f"{kills} kills, steps lost by each: {lost}; the end equal bit for bit")


def test_a_run_that_is_killed_three_times_ends_the_same(tmp_path):
    check(tmp_path, rounds=3, steps=30, seed=5)


@pytest.mark.slow
def test_a_run_that_is_killed_twelve_times_ends_the_same(tmp_path):
    check(tmp_path, rounds=12, steps=150, seed=6)


@pytest.mark.slow
def test_the_workers_of_a_killed_run_end_by_themselves(tmp_path):
    """torch's workers look for their parent every five seconds."""
    from test_stopping import appeared, ended, launch, within_step

    marker = tmp_path / "in step"

    def work():
        import multiprocessing

        marker.write_text(" ".join(str(c.pid) for c in multiprocessing.active_children()))
        time.sleep(60)

    with pytest.MonkeyPatch.context() as patch:
        within_step(patch, 1, work)
        child = launch(tmp_path, lambda: None, workers=2)
    appeared(marker)
    child.kill()
    child.join()
    workers, end = marker.read_text().split(), time.monotonic() + 20
    while not all(map(ended, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(workers) == 2 and all(map(ended, workers))
