"""The Python of docs/guide/python.md and prediction.md, run as it stands with a small model."""

import argparse
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import resolved

import visionkit
from support import small_runs
from support.paths import ROOT
from support.small_runs import quick_settings
from visionkit.cli import main


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and images with the names of the page."""
    folder = tmp_path_factory.mktemp("page")
    settings = {"train.steps": 1, "output": str(folder / "runs/detection-001")}
    visionkit.train(small_runs.SMALL_RUNS["mask_rcnn"], settings)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "images/b.png", "frames/0.png", "frames/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "frames/1.png").write_bytes(b"unreadable")
    return folder


def test_the_python_of_the_prediction_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = blocks("docs/guide/prediction.md")
    assert len(code) == 4
    session = {}
    for number, block in enumerate(code):
        exec(compile(block, f"prediction.md, block {number}", "exec"), session)
    assert Path("a-overlay.jpg").is_file()
    assert "Prediction of a.jpg (64x48 pixels)" in capsys.readouterr().out
    assert [p.path.name for p in session["predictions"]] == ["a.jpg", "b.png"]


def test_the_tables_of_the_page_have_what_a_prediction_has(folder):
    """Every public attribute and method is in a table, and all that are in it exist."""
    page = (ROOT / "docs/guide/prediction.md").read_text().partition("### What a prediction has")[2]
    named = {
        n
        for row in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
        for n in re.findall(r"`(\w+)", row)
    }
    public = {name for name in dir(visionkit.Prediction) if not name.startswith("_")}
    fields = {*visionkit.Prediction.__dataclass_fields__} - {"classes", "draw_threshold"}
    assert named == public - {"draw_threshold", "path"} | fields


PYTHON = "docs/guide/python.md"
# What an option of a command is called in Python; None: it is about the output of the command.
RENAMED = {"gt": "truth", "pred": "results", "type": "iou_type", "json": None, "debug": None}
RENAMED |= {"help": None, "strict": None, "offline": None}
RENAMED |= {"intervals": None, "analysis": None}  # `report` returns them
RENAMED["dynamic"] = "size"  # None


def test_the_python_of_the_python_page(tmp_path, monkeypatch, capsys):
    (code,) = blocks(PYTHON)
    train = visionkit.train

    def quick(config, settings):
        assert settings.pop("train.epochs") == 2
        words = [f"{key}={value}" for key, value in settings.items()]
        return train(config, quick_settings(f"{config}.yaml") + words)

    monkeypatch.setattr(visionkit, "train", quick)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60)).save("a.jpg")
    exec(compile(code, "python.md", "exec"), {"__name__": "__main__"})
    assert "TrainedRun in run\n  " in capsys.readouterr().out


def test_every_command_has_its_function_with_the_same_options():
    """Of each row of the table; a new command needs a row."""
    page = (ROOT / PYTHON).read_text()
    rows = re.findall(r"^\| `([^`|]*)` \| `(visionkit\.\w+)", page, re.MULTILINE)
    parser, names = main._parser()
    listed = {words.split()[0] for words, _ in rows}
    assert listed == {*names} - {"val"}
    actions = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    taken = {name: set() for name in listed}
    for words, function in rows:
        taken[words.split()[0]] |= {*inspect.signature(resolved(function)).parameters}
    for name in listed - {"data", "weights"}:
        for action in actions.choices[name]._actions:
            for option in [o[2:] for o in action.option_strings if o.startswith("--")]:
                parameter = RENAMED.get(option, option.replace("-", "_"))
                assert parameter is None or parameter in taken[name], (name, option)


def test_the_page_of_bare_loops_runs_from_top_to_bottom(capsys):
    session = {}
    for number, block in enumerate(blocks("docs/guide/bare-loop.md")):
        exec(compile(block, f"bare-loop.md, block {number}", "exec"), session)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Half of each square: an IoU of 0.5, which counts at the first of ten thresholds.
    assert printed[0] == ["0.1", "1.0", "0.1"] and len(printed) == 3
    assert session["loss"].isfinite() and session["batch"].images.shape == (1, 3, 96, 96)
