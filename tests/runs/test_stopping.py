"""Signals at every moment of a run: it ends soon, and goes on as if it had not been stopped."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from support.runs import config, lines, read_status, same, start, state
from visionkit.cli.main import main
from visionkit.data.loading.source import Source
from visionkit.engine import setup
from visionkit.engine import train as training
from visionkit.engine.train import train
from visionkit.errors import Preempted
from visionkit.models.model import VisionModel
from visionkit.runs import checkpoint, files
from visionkit.runs.signals import STOPPING
from visionkit.visualization import plots

SETTINGS = {"plots": True}


@pytest.fixture(scope="module", autouse=True)
def _small_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "MAX_IMAGES", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("whole") / "run", **SETTINGS)).directory


def signalling(monkeypatch, where, name, number, *, call=1, hangs=True):
    """The process gets that signal as it enters a function for the `call`-th time, which then takes
    a minute or goes on."""
    function, count = getattr(where, name), []

    def entered(*args, **kwargs):
        count.append(1)
        if len(count) == call:
            os.kill(os.getpid(), number)
            if hangs:
                time.sleep(60)
        return function(*args, **kwargs)

    monkeypatch.setattr(where, name, entered)


MOMENTS = {  # what is entered, and after which step the run stops; None: before it began
    "building": (setup, "build_training", None),
    "reading": (setup, "build_sources", None),
    "first batch": (Source, "train_batches", 1),
    "step": (VisionModel, "features", 2),
    "validation": (training, "evaluate_model", 3),
    "save": (torch, "save", 3),
    "last save": (torch, "save", 4),
    "plots": (plots, "write_plots", 3),
}
LASTING = ("building", "reading", "validation", "plots")  # what is not waited for
CALL = {"step": 2, "save": 2, "last save": 5}


QUICK = ("step", "save", "validation")


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=[pytest.mark.slow] * (m not in QUICK)) for m in MOMENTS]
)
def test_a_signal_at_any_moment(moment, whole, tmp_path, monkeypatch):
    where, name, step = MOMENTS[moment]
    number = signal.Signals([*STOPPING][list(MOMENTS).index(moment) % len(STOPPING)])
    handlers = [signal.getsignal(n) for n in STOPPING]
    spec = config(tmp_path / "run", **SETTINGS)
    with monkeypatch.context() as patch:
        hangs = moment in LASTING
        signalling(patch, where, name, number, call=CALL.get(moment, 1), hangs=hangs)
        began = time.monotonic()
        with pytest.raises(Preempted, match=f"stopped by {number.name}") as caught:
            train(spec)
    assert time.monotonic() - began < 30 and caught.value.exit_code == 75
    assert [signal.getsignal(n) for n in STOPPING] == handlers
    assert signal.set_wakeup_fd(-1) == -1 and not multiprocessing.active_children()
    run = tmp_path / "run"
    if step is None:
        assert not run.exists() and "start it again" in str(caught.value)
    else:
        found = read_status(run)
        assert (found["state"], found["exit_code"], found["step"]) == ("preempted", 75, step)
        assert found["reason"] == number.name and found["checkpoint_step"] == step
        assert f"visionkit train --resume {run}" in str(caught.value)
    train(spec, resume=step is not None)
    for file in ("last.pt", "best.pt"):
        assert same(state(run, file), state(whole, file))
    assert lines(run) == lines(whole) and read_status(run)["state"] == "finished"
    assert not list(run.rglob("*.tmp.*"))


def test_a_signal_while_the_program_is_still_loading(tmp_path, capsys, monkeypatch):
    def loading(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("visionkit.config.load_config", loading)
    assert main(["train", "config.yaml"]) == 75
    assert "stopped by SIGTERM before training began" in capsys.readouterr().err


def test_a_run_that_is_stopped_before_its_first_step_blocks_nothing(tmp_path, monkeypatch):
    """The directory is there already, but nothing in it that could be lost."""
    spec = config(tmp_path / "run", steps=1)
    with monkeypatch.context() as patch:
        signalling(patch, setup, "Learner", signal.SIGTERM)
        with pytest.raises(Preempted, match="before training began"):
            train(spec)
    with monkeypatch.context() as patch:
        patch.setattr(Source, "train_batches", broken)
        with pytest.raises(ZeroDivisionError):
            train(spec)
    assert read_status(tmp_path / "run")["state"] == "failed"
    train(spec)


def broken(*_, **__):
    return 1 / 0


def launch(tmp_path, prepare, **settings):
    """A run in a process group of its own."""
    files.write_text(tmp_path / "c.yaml", files.to_json(config(tmp_path / "run", **settings)))

    def lead():
        os.setpgid(0, 0)
        prepare()

    return start(["train", tmp_path / "c.yaml"], tmp_path / "log", lead)


def within_step(monkeypatch, number, work):
    """`work()` is done in the midst of that step, for what is forked."""
    features, calls = VisionModel.features, []

    def slow(self, batch):
        calls.append(1)
        if len(calls) == number:
            work()
        return features(self, batch)

    monkeypatch.setattr(VisionModel, "features", slow)


def appeared(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def ended(pid):
    """Whether a process is gone; what nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_signal_that_comes_twice_to_the_whole_group_is_one_request(tmp_path, monkeypatch):
    """A terminal and torchrun both pass it on; loader workers must outlive it too."""
    marker = tmp_path / "in step"

    def work():
        marker.write_text(" ".join(str(c.pid) for c in multiprocessing.active_children()))
        time.sleep(0.5)

    within_step(monkeypatch, 2, work)
    child = launch(tmp_path, lambda: None, workers=2)
    appeared(marker)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(child.pid, number)
        time.sleep(0.05)
    child.join(30)
    assert child.exitcode == 75, (tmp_path / "log").read_text()
    assert state(tmp_path / "run")["step"] == 2
    assert "stopped by SIGINT after step 2" in (tmp_path / "log").read_text()
    workers = marker.read_text().split()
    assert len(workers) == 2 and all(map(ended, workers))


def test_a_second_signal_leaves_at_once(tmp_path, monkeypatch):
    """Also while the main thread computes, when Python runs no handler for seconds."""
    marker = tmp_path / "in step"

    def work():
        marker.write_text(" ".join(str(c.pid) for c in multiprocessing.active_children()))
        torch.mm(torch.rand(9000, 9000), torch.rand(9000, 9000))  # fifteen seconds and more

    within_step(monkeypatch, 3, work)
    child = launch(tmp_path, lambda: None, workers=1, save_every=0)
    appeared(marker)
    os.kill(child.pid, signal.SIGTERM)
    time.sleep(1.2)
    assert child.is_alive()
    began = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    took = time.monotonic() - began
    told = (tmp_path / "log").read_text()
    assert child.exitcode == 143 and took < 5, (took, told)
    assert "second signal (SIGTERM): exiting immediately; the last checkpoint is of step 2" in told
    found = read_status(tmp_path / "run")
    assert (found["state"], found["exit_code"], found["step"]) == ("preempted", 143, 2)
    assert state(tmp_path / "run")["step"] == 2
    workers = marker.read_text().split()
    time.sleep(0.1)
    assert len(workers) == 1 and all(map(ended, workers))


def test_forked_children_get_neither_handlers_nor_the_wakeup_pipe(tmp_path, monkeypatch):
    """Or a plugin's own processes could not be terminated, and their signals counted as ours."""
    exit_codes = []

    def work():
        other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        other.start()
        time.sleep(0.1)
        for _ in range(2):
            other.terminate()
        other.join(5)
        exit_codes.append(other.exitcode)

    within_step(monkeypatch, 1, work)
    train(config(tmp_path / "run", steps=1, validate=False))
    assert exit_codes == [-signal.SIGTERM]


def test_what_was_ignored_stays_ignored(tmp_path, monkeypatch):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signalling(monkeypatch, VisionModel, "features", signal.SIGHUP, hangs=False)
        train(config(tmp_path / "run", steps=1, validate=False))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    spec = config(tmp_path / "run", validate=False, steps=1, workers=1)
    thread = threading.Thread(target=train, args=(spec,))
    thread.start()
    thread.join()
    assert read_status(tmp_path / "run")["state"] == "finished"
    assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["step"] == 1
    assert signal.getsignal(signal.SIGTERM) is before
