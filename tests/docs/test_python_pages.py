"""The Python of docs/guide/prediction.md, run as it stands with a small model."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visionkit
from support import small_runs
from support.paths import ROOT


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
    assert len(code) == 3
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
