"""The scripts of scripts/bench report a wrong argument in one line, without a traceback."""

import importlib
import re
import subprocess
import sys

import pytest

from support.paths import ROOT

BENCH = ROOT / "scripts/bench"


@pytest.mark.parametrize("script", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_from_visionkit_exists(script):
    """Also in the code that it runs in other processes."""
    imports = re.findall(
        r"^ *from (visionkit[\w.]*) import ([\w, ]+)$", script.read_text(), re.MULTILINE
    )
    for module, names in imports:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name.split(" as ")[0]), (module, name)


def reported(script, *words):
    """What the script writes to standard error before it ends with an error."""
    command = [sys.executable, str(BENCH / script), *map(str, words)]
    env = {"PYTHONPATH": str(BENCH.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode in (1, 2) and not done.stdout
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("annotations.py", ["--file", "nowhere.json"], "--file: got nowhere.json; not found"),
        ("coco_scale.py", [__file__], "error: [Errno"),
        (
            "detectors.py",
            ["train", "--images", "no", "--annotations", "no"],
            "--images: got no",
        ),
        ("export.py", ["nowhere.onnx", BENCH], "model: got nowhere.onnx; not found"),
        ("finetune.py", ["--recipe", "nowhere", "--seeds", "0"], "error: unknown config 'nowhere'"),
        (
            "finetune.py",
            ["--recipe", "vae", "--recipe", "mlp_mnist", "--steps", "1"],
            "--steps: got 1 numbers for 2 recipes",
        ),
        ("joint.py", ["time", "nonsense=1"], "error: override nonsense=1: nonsense: unknown key"),
        ("loader.py", ["nowhere", "no.json"], "images: got nowhere; not found"),
        ("loop.py", [__file__], "a config is a .yaml file"),
        ("loop.py", ["nowhere.yaml"], "config: got nowhere.yaml; not found"),
        ("predict.py", [BENCH, BENCH], "has no checkpoints/best.pt or last.pt"),
        ("small_objects.py", ["nowhere", BENCH, BENCH], "run: got nowhere; not found"),
        ("roi_align.py", ["--rounds", "0"], "--rounds: got 0; expected an integer >= 1"),
        ("time_to_quality.py", ["--train", BENCH, "no"], "--train: got no; not found"),
    ],
)
def test_a_wrong_argument_is_reported(script, words, says):
    message = reported(script, *words)
    assert says in message and "Traceback" not in message


def test_a_wrong_value_is_reported():
    message = reported("coco_eval.py", "--types", "box")
    assert "--types: got box; expected bbox, segm" in message and "Traceback" not in message
    assert "--rounds: got many; expected an integer >= 1" in reported(
        "coco_eval.py", "--rounds", "many"
    )
