"""The snippets of docs/guide/export.md: Python runs, JavaScript is parsed, C++ is compiled, where
this machine has what it takes."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import visionkit
from support.paths import ROOT
from support.small_runs import SMALL_RUNS
from visionkit.engine.export.compare import match_rows

pytest.importorskip("onnxruntime")
TEXT = (ROOT / "docs/guide/export.md").read_text()
EVERYTHING = {"box_score_threshold": 0.0, "box_hidden": 32}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a Mask R-CNN that has learned next to nothing, and an image."""
    folder = tmp_path_factory.mktemp("export")
    spec = SMALL_RUNS["mask_rcnn"]
    spec = {**spec, "head": {**spec["head"], **EVERYTHING}, "output": str(folder / "run")}
    visionkit.train(spec)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((90, 60)).save(folder / "a.jpg")
    visionkit.export(folder / "run", folder / "model.onnx", check=2)
    return folder


@pytest.mark.slow
def test_python_with_onnxruntime_alone_finds_what_visionkit_finds(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    snippets = [code for code in blocks("python") if "import visionkit" not in code]
    assert len(snippets) == 2 and not any("torch" in code for code in snippets)
    names = {}
    for code in snippets:
        exec(compile(code, "docs/guide/export.md", "exec"), names)
    expected = visionkit.load("run", {"train.precision": "fp32"}).predict("a.jpg")
    (result,) = expected.heads.values()
    (head,) = names["info"]["heads"]
    rows = {key: names["found"][f"{head}_{key}"][0] for key in ("scores", "labels")}
    found = {"boxes": names["boxes"], **{k: v[: names["count"]] for k, v in rows.items()}}
    match = match_rows(found, {key: np.asarray(result[key]) for key in found})
    assert len(match) > 50 and (match >= 0).mean() > 0.8  # pixels are rounded in another way
    last = coco_mask.encode(np.asfortranarray(names["mask"], np.uint8))
    pair = result["masks"][match[match >= 0][-1]] if match[-1] >= 0 else None
    assert pair is None or coco_mask.iou([last], [pair], [False])[0, 0] > 0.9
    assert capsys.readouterr().out.count("[") == (result["scores"] >= 0.5).sum()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript_is_parsed(tmp_path):
    code = "\n".join(blocks("js"))
    assert "onnxruntime-web" in code
    (tmp_path / "page.mjs").write_text(code)
    command = ["node", "--check", str(tmp_path / "page.mjs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cpp_is_compiled(tmp_path):
    """Its names of inputs and outputs are those of the page; compiled where the header is."""
    (code,) = blocks("cpp")
    assert '"images", "sizes"' in code and '"objects_count"' in code
    (tmp_path / "page.cpp").write_text(code)
    compiler = shutil.which("g++") or shutil.which("clang++")
    probe = "#include <onnxruntime_cxx_api.h>\n"
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-x", "c++"]
    if (
        compiler is None
        or subprocess.run(
            [compiler, *options, "-"], input=probe, text=True, capture_output=True
        ).returncode
    ):
        pytest.skip("needs a C++ compiler and the header of onnxruntime")
    done = subprocess.run(
        [compiler, *options, str(tmp_path / "page.cpp")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
