"""`visionkit export`: its options, what it prints, and how it ends."""

import json
import os
import signal

import pytest

from support.small_runs import SMALL_RUNS
from visionkit.cli.main import main
from visionkit.engine.export import export as module
from visionkit.engine.export import verify

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    import visionkit

    folder = tmp_path_factory.mktemp("runs") / "run"
    visionkit.train({**SMALL_RUNS["classification"], "output": str(folder)})
    return folder


def export(run, *words):
    return main(["export", str(run), *words])


def test_export_predict_and_eval_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    """One file: the text, the object, and the same metrics as those of the run."""
    monkeypatch.chdir(tmp_path)
    assert export(run, "--out", "model.onnx", "--check", "3") == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith("wrote model.onnx: ") and "any number at once" in text[0]
    assert text[1].endswith(" on 3 images of data.val")
    rows = [line.split() for line in text[2:]]
    assert rows[0] == ["head", "compared", "difference"]
    assert rows[1][:4] == ["classification", "largest", "of", "probs"] and float(rows[1][4]) < 1e-5
    assert rows[2] == ["classification", "images", "3", "of", "3", "are", "the", "same"]

    assert main(["eval", str(run), "train.precision=fp32", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["eval", "model.onnx", "--json", "--intervals", "--analysis"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = [name for name in found if name.startswith("classification/")]
    assert metrics and {name: expected[name] for name in metrics} == {n: found[n] for n in metrics}
    assert {*expected} - {*found} == {n for n in expected if "/loss/" in n}
    assert "intervals" in found

    assert main(["eval", "model.onnx", "backbone.channels=[8]"]) == 2
    assert "model.onnx: backbone: fixed in an exported file" in capsys.readouterr().err
    assert main(["report", "model.onnx"]) == 2
    assert "a report needs its run" in capsys.readouterr().err
    assert export("model.onnx", "--out", "again.onnx") == 4
    assert "Traceback" not in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "32,32", "--dynamic"], "--size fixes the input size, --dynamic leaves it open"),
        (["--size", "32"], "--size: got 32; expected H,W such as 480,640"),
        (["--size", "33,64"], "the nearest are 32,64 and 64,64"),
        (["--batch", "0"], "--batch: got 0; expected an integer >= 1, or dynamic"),
        (["--check", "0"], "--check: got 0; expected an integer >= 1"),
        (["--max-drop", "2"], "--max-drop: got 2; expected a number from 0 to 1"),
        (["--format", "engine"], "argument --format: invalid choice: 'engine'"),
        (["--heads", "clasification"], "did you mean 'classification'"),
        (["--out", "gone/model.onnx"], "the folder "),
        (["--out", "model.txt"], "model.txt: expected a file name that ends in .onnx"),
        (["--format", "bundle", "--precision", "int8"], "precision: not for a bundle, which"),
        (["--format", "torch-export", "--precision", "fp16"], "a torch-export file has fp32"),
        (["data.image_size=big"], "data.image_size"),
    ],
)
def test_mistakes_are_usage_errors_in_a_line(run, words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words or "bundle" in words else ["--out", "model.onnx"]
    assert export(run, *out, *words) == 2
    printed = capsys.readouterr()
    assert says in printed.err and "Traceback" not in printed.err and not printed.out
    assert not os.listdir(tmp_path)


def test_an_error_is_an_object_with_json(run, tmp_path, capsys):
    assert export(run, "--out", str(tmp_path / "a.txt"), "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2 and "ends in .onnx" in found["error"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_file(run, tmp_path, monkeypatch, capsys, number, code):
    def stopped(*_, **__):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not handled")

    monkeypatch.setattr(module, "exported_program", stopped)
    assert export(run, "--out", str(tmp_path / "model.onnx")) == code
    assert not os.listdir(tmp_path)
    if number == signal.SIGTERM:
        assert "export: stopped by SIGTERM; nothing is written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_fails_its_check_ends_with_exit_code_1(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "problems_of", lambda *_: ["scene: 1 of 5 images are the same"])
    assert export(run, "--out", str(tmp_path / "model.onnx"), "--check", "1") == 1
    told = capsys.readouterr().err
    assert "error: export: the file does not find what the model finds" in told
    assert "  scene: 1 of 5" in told and not os.listdir(tmp_path)


def test_the_two_exports_name_each_other(capsys):
    for words, other in ((["export"], "visionkit weights export"), (["weights", "export"], "ONNX")):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert other in " ".join(capsys.readouterr().out.split())
