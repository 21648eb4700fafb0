"""The page docs/guide/add-a-head.md, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

PAGE = ROOT / "docs/guide/add-a-head.md"


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "counting.py").write_text(block("python"))
    (folder / "counting.yaml").write_text(block("yaml"))
    return folder


def visionkit(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "visionkit", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_head_is_short():
    assert len(block("python").splitlines()) < 65
    assert sum(bool(line.strip()) for line in block("python").splitlines()) < 60


@pytest.mark.slow
def test_the_pages_commands_train_evaluate_and_predict(folder):
    words = [line[2:].split()[1:] for line in block("console").splitlines()]
    assert [w[0] for w in words] == ["config", "train", "eval", "predict"]
    for command in words:
        if command[0] == "predict":
            cache = Path(os.environ["VISIONKIT_CACHE"])
            image = next(p for p in cache.rglob("*") if p.suffix in (".jpg", ".png"))
            command[2] = str(image)
        if command[0] == "train":
            command += ["train.validate=100", "train.report=false"]
        result = visionkit(folder, *command)
        assert result.returncode == 0, result.stderr
        if command[0] == "eval":
            assert "count/exact" in result.stdout
    assert '"counts": [' in (folder / "predictions/predictions.json").read_text()


@pytest.mark.slow
def test_the_part_of_the_report_is_on_the_page(folder, tmp_path):
    method = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "counting.py").write_text(block("python") + "\n" + method)
    settings = ["output=run", "train.epochs=1", "data.shapes.train.num_images=16"]
    (tmp_path / "counting.yaml").write_text(block("yaml"))
    result = visionkit(tmp_path, "train", "counting.yaml", *settings)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "run/report.html").read_text()
    assert "Mean error by class" in page and "found: [" in page and "not shown" not in page


@pytest.mark.slow
def test_a_typing_mistake_is_reported(folder):
    (folder / "wrong.yaml").write_text(block("yaml").replace("beta:", "bta:"))
    result = visionkit(folder, "config", "wrong.yaml")
    assert result.returncode == 2
    assert "wrong.yaml:3: heads.count.bta: unknown key" in result.stderr
    assert "beta" in result.stderr
