"""Scripts without `if __name__ == "__main__"`: no loader worker runs one again."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from visionkit.data.loading import workers
from visionkit.errors import ConfigError

CONFIG = """{
    "task": "classification", "backbone": {"type": "TinyCNN", "channels": [4]}, "name": "det",
    "data": {"train": {"type": "Shapes", "num_images": 8, "size": 32}, "image_size": 32,
             "batch_size": 4, "workers": WORKERS},
    "train": {"steps": 1, "plots": False, "device": "cpu"},
}"""
BARE = "import visionkit\n\nvisionkit.train(CONFIG)\n"
GUARDED = 'import visionkit\n\nif __name__ == "__main__":\n    visionkit.train(CONFIG)\n'


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, workers=1):
        text = text.replace("CONFIG", CONFIG.replace("\n", "").replace("WORKERS", str(workers)))
        Path("own.py").write_text(text)
        return "own.py"

    return write


@pytest.fixture(params=["spawn", "forkserver"])
def method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BARE, 3),
        ("import visionkit\nif 1 > 0:\n    visionkit.train(CONFIG)\n", 3),
        ("import visionkit\n\ndef main():\n    visionkit.train(CONFIG)\n\nmain()\n", 6),
    ],
)
def test_a_script_without_a_guard_is_refused_before_anything_is_written(script, method, text, line):
    with pytest.raises(ConfigError) as error:
        runpy.run_path(script(text), run_name="__main__")
    told = str(error.value)
    assert f"own.py, line {line}, calls visionkit outside of `if __name__ ==" in told
    assert f"(start method {method})" in told and "data.workers=0" in told
    assert not Path("runs").exists()


def test_without_workers_nothing_is_run_again(script, method):
    runpy.run_path(script(BARE, workers=0), run_name="__main__")
    assert os.listdir("runs") == ["det-001"]


def test_forked_workers_run_nothing_again(script):
    assert multiprocessing.get_start_method() == "fork"
    runpy.run_path(script(BARE), run_name="__main__")
    assert os.listdir("runs") == ["det-001"]


def test_in_a_worker_all_calls_are_refused(script, method, monkeypatch):
    """Where the line cannot be found, as in a thread, the worker notices it."""
    current = multiprocessing.current_process()
    monkeypatch.setattr(current, "_inheriting", True, raising=False)
    with pytest.raises(ConfigError, match="calls visionkit outside of"):
        runpy.run_path(script(GUARDED), run_name="__main__")


def test_a_worker_that_fails_in_the_script_points_to_its_error(method):
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,))
    process.start()
    process.join()
    told = workers._describe_dead_worker([process], workers.WorkerStatus(1), None)
    assert told == (
        "a loader worker before its first image (it imports the script first; its own error is "
        "above): exited with code 3"
    )


@pytest.mark.slow  # a process of its own, and a worker, import torch: some seconds
def test_a_guarded_script_trains_once_under_spawn(script):
    text = f"import multiprocessing\n{GUARDED}".replace(
        "    visionkit", '    multiprocessing.set_start_method("spawn")\n    visionkit'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script(text)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir("runs") == ["det-001"]
