"""Signals, and the end of torchrun, before a run begins to train and while Python ends."""

import os
import signal
import subprocess
import sys

from test_stopping import signalling

from support.runs import config, read_status
from visionkit.cli.main import main
from visionkit.engine import setup
from visionkit.engine.train import train
from visionkit.runs import directory as rundir
from visionkit.runs import files


def test_a_killed_run_that_is_stopped_before_it_goes_on_is_preempted(tmp_path, monkeypatch, capsys):
    """It still says `running`, as nobody could tell that it is not."""
    run = tmp_path / "run"
    train(config(run, steps=1, validate=False))
    running = {**read_status(run), "state": "running", "exit_code": None, "pid": 2**22 + 1}

    def stopped(owner, name):
        files.write_text(run / "status.json", files.to_json(running))
        with monkeypatch.context() as patch:
            signalling(patch, owner, name, signal.SIGTERM)
            assert main(["train", "--resume", str(run), "train.steps=2"]) == 75
        assert f"training began; continue with: visionkit train --resume {run}" in (
            capsys.readouterr().err
        )
        found = read_status(run)
        assert (found["state"], found["exit_code"], found["step"]) == ("preempted", 75, 1)
        assert found["reason"] == "SIGTERM" and found["checkpoint_step"] == 1

    stopped(setup, "pick_device")  # before the run directory is taken, and after
    stopped(setup, "Learner")
    monkeypatch.setattr(rundir, "fcntl", None)  # the process of status.json is looked for
    files.write_text(run / "status.json", files.to_json({**running, "pid": os.getppid()}))
    rundir.stopped_before_training(run, "SIGTERM")
    assert read_status(run)["state"] == "running"


def test_a_signal_while_python_ends_does_not_change_the_exit_code():
    code = """
import atexit, os, signal
from visionkit.cli import main as cli
cli.main = lambda: 75
for number in (signal.SIGTERM, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
cli.command()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")


def test_a_process_whose_torchrun_is_gone_is_asked_to_stop(tmp_path):
    code = """
import os, signal, sys, time
from visionkit.distributed import launch
if child := os.fork():
    time.sleep(1)
    os._exit(0)
launch.watch_parent()
signal.signal(signal.SIGTERM, lambda *_: os._exit(open(sys.argv[1], "w").write("asked")))
time.sleep(20)
"""
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        [*words, tmp_path / "a"], env=environment, capture_output=True, text=True, timeout=20
    )
    assert (tmp_path / "a").read_text() == "asked"
    assert done.stderr == "torchrun is gone: this process stops\n"
