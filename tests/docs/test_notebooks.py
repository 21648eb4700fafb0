"""The Python of the core tasks' pages runs from top to bottom, and so do the notebooks of it."""

import importlib.util
import re

import nbclient
import nbformat
import pytest
from PIL import Image
from test_docs_blocks import blocks

import visionkit
from support.paths import ROOT
from support.small_runs import quick_settings
from visionkit.config.shipped import shipped_configs

SCRIPT = ROOT / "docs/site/notebooks.py"
SPEC = importlib.util.spec_from_file_location("notebooks", SCRIPT)
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)


def python(task):
    return blocks(ROOT / f"docs/tasks/{task}.md", "python")


@pytest.mark.parametrize(
    "task",
    [notebooks.TASKS[0], *(pytest.param(t, marks=pytest.mark.slow) for t in notebooks.TASKS[1:])],
)
def test_the_python_of_the_page_runs(task, monkeypatch, tmp_path):
    """As it stands, but for settings that make it quick. Its last value is an image."""
    train = visionkit.train

    def quick(config, settings=()):
        path = shipped_configs()[config]
        return train(path, [*(f"{k}={v}" for k, v in dict(settings).items()), *words(path)])

    def words(path):
        kept = [w for w in quick_settings(path.name) if "plots" not in w]  # it shows them
        return [*kept, "train.log_every=1"]

    monkeypatch.setattr(visionkit, "train", quick)
    monkeypatch.chdir(tmp_path)
    session = {}
    for number, code in enumerate(python(task), start=1):
        *lines, last = code.strip().splitlines()
        exec(compile("\n".join(lines), f"{task}.md, block {number}", "exec"), session)
        value = eval(last, session)
        kind = (float, Image.Image, Image.Image)[number - 1]
        assert isinstance(value, kind) and session["run"].directory.is_dir()
    assert number == 3


@pytest.mark.parametrize("task", notebooks.TASKS)
def test_a_notebook_is_its_page(task):
    made = notebooks.notebook(task)
    nbformat.validate(made)
    cells = [cell.source for cell in made.cells if cell.cell_type == "code"]
    assert cells == [code.strip() for code in python(task)]
    text = "".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert "pip install visionkit-torch" in text and not re.search(r"\]\((?!http)", text)
    assert nbformat.writes(made) == nbformat.writes(notebooks.notebook(task))


def test_the_script_writes_all(tmp_path):
    notebooks.main(tmp_path / "new")
    written = {path.stem for path in (tmp_path / "new").iterdir()}
    assert written == {*notebooks.TASKS}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", notebooks.TASKS)
def test_a_notebook_runs_and_shows_images(task, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = notebooks.notebook(task)
    nbclient.NotebookClient(
        made, timeout=1500, resources={"metadata": {"path": tmp_path}}
    ).execute()
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    shown = [{kind for out in cell.outputs for kind in out.get("data", ())} for cell in cells]
    assert ["image/png" in kinds for kinds in shown] == [False, True, True]
    assert 0 < float(cells[0].outputs[-1]["data"]["text/plain"]) <= 1
