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
CALL = "from visionkit.data.loading.workers import refuse_unguarded\n"
MAIN = f"{CALL}def main():\n    refuse_unguarded(1)\n"
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
        (f"{BARE}\nif __name__ == '__main__':\n    print('done')\n", 3),
        (f"import logging\nlog = logging.getLogger(__name__)\n{BARE}", 5),
    ],
)
def test_a_script_without_a_guard_is_refused_before_anything_is_written(script, method, text, line):
    with pytest.raises(ConfigError) as error:
        runpy.run_path(script(text), run_name="__main__")
    told = str(error.value)
    assert f"own.py, line {line}, calls visionkit outside of `if __name__ ==" in told
    assert f"(start method {method})" in told and "data.workers=0" in told
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "text",
    [
        "is_main = __name__ == '__main__'\nif is_main:\n    main()\n",
        "main() if __name__ == '__main__' else None\n",
        "__name__ == '__main__' and main()\n",
        "match __name__:\n    case '__main__':\n        main()\n",
        "if __name__ != '__main__':\n    raise SystemExit\nmain()\n",
        "if __name__ == '__main__':\n    go = main\nelse:\n    go = print\ngo()\n",
        "def run(name):\n    name.strip('_') == 'main' and main()\n\nrun(__name__)\n",
        "if globals()['__name__'] == '__main__':\n    main()\n",
        "import sys\nif vars(sys.modules['__main__']) is globals():\n    main()\n",
        "def run():\n    if __name__ == '__main__':\n        main()\n\nrun()\n",
        "def if_main(f):\n    __name__ == '__main__' and f()\n\n@if_main\ndef go():\n    main()\n",
        "while __name__ == '__main__':\n    main()\n    break\n",
        "for _ in range(__name__ == '__main__'):\n    main()\n",
        "from multiprocessing import parent_process as parent\nparent() or main()\n",
        "import multiprocessing as mp\nmp.current_process().name == 'MainProcess' and main()\n",
    ],
)
def test_a_script_that_may_have_a_guard_is_not_refused(script, method, text):
    runpy.run_path(script(f"{MAIN}\n{text}"), run_name="__main__")


def test_the_main_file_of_a_folder_needs_no_guard(tmp_path, method):
    """Nor does that of a package: multiprocessing does not import it in a worker."""
    (tmp_path / "__main__.py").write_text(f"{MAIN}\nmain()\n")
    runpy.run_path(str(tmp_path), run_name="__main__")


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
