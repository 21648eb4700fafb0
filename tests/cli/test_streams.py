"""Standard streams that are closed, full, or cannot show a name never end a command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from support.paths import ROOT
from visionkit.runs.checkpoint import load
from visionkit.runs.terminal import progress_bar

FORGED = "a\x1b[31m\x07\nerror: forged\u202eb"
VERBS = [
    ["check", "c.yaml"],
    ["train", "c.yaml", "output=run"],
    ["eval", "run"],
    ["eval", "run", "--json"],
    ["predict", "run", "data/val", "--out", "out"],
    ["config", "c.yaml", f"data.train.only=[Tür, {json.dumps(FORGED)}]"],
    ["list", "necks"],
    ["eval", "nowhere ü\n"],
]
CODES = [0] * 7 + [4]
# All in one process, since torch takes seconds to import; then as the interpreter would end.
ALL = """
import json, sys
from visionkit.cli.main import main
from visionkit.runs.terminal import open_streams
open_streams()
codes = [main(words) for words in json.load(open("verbs.json"))]
json.dump(codes, open("codes.json", "w"))
"""


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("Tür", FORGED):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(256, size=(20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}\x1bü.png")
    data = {split: {"type": "ImageFolder", "root": f"data/{split}"} for split in ("train", "val")}
    config = {
        "task": "classification",
        "backbone": {"type": "MLP", "size": 16, "hidden": [8]},
        "data": {**data, "image_size": 16, "batch_size": 4, "workers": 0},
        "train": {"steps": 2, "device": "cpu", "precision": "fp32", "plots": False},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "verbs.json").write_text(json.dumps(VERBS))
    return tmp_path


def run_all(place, **options):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    done = subprocess.run([sys.executable, "-c", ALL], cwd=place, env=env, **options)
    assert done.returncode == 0
    assert json.loads((place / "codes.json").read_text()) == CODES
    assert json.loads((place / "run/status.json").read_text())["state"] == "finished"
    assert load(place / "run/checkpoints/last.pt")["step"] == 2
    return done


def close_all():
    for descriptor in range(3):
        os.close(descriptor)


@pytest.mark.slow
def test_closed_streams(place):
    run_all(place, preexec_fn=close_all)
    for file in [file for file in place.rglob("*") if file.is_file()]:
        assert b"no such file" not in (content := file.read_bytes()), file
        assert b"the best so far" not in content, file


def test_a_terminal_of_other_characters_gets_escapes(place):
    env = {"PYTHONIOENCODING": "ascii"}
    done = run_all(place, env=env, capture_output=True, text=True)
    for printed in (done.stdout, done.stderr):
        assert printed.isascii() and all(line.isprintable() for line in printed.split("\n"))
        assert "\nerror: forged" not in printed
    assert r"accuracy/T\xfcr " in done.stdout and r"\x1b[31m\x07\nerror: forged" in done.stdout
    assert r"error: nowhere \xfc\n: not found" in done.stderr
    metrics = next(line for line in done.stdout.split("\n") if line.startswith("{"))
    assert "classification/accuracy/Tür" in json.loads(metrics)
    begin = done.stdout.index("name: c\n")
    shown = yaml.safe_load(done.stdout[begin : done.stdout.index("FPN\n")])
    assert shown["data"]["main"]["train"]["only"] == ["Tür", FORGED]
    records = json.loads((place / "out/predictions.json").read_text())
    assert {Path(r["file_name"]).parts[0] for r in records} == {"Tür", FORGED}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk, where there is one")
@pytest.mark.parametrize("stderr", ["/dev/full", None])
def test_an_error_keeps_its_code_though_nobody_can_read_it(stderr):
    command = [sys.executable, "-m", "visionkit", "trian", "--json"]
    with open("/dev/full", "w") as full:
        options = {"stdout": full, "stderr": full} if stderr else {"preexec_fn": close_all}
        assert subprocess.run(command, cwd=ROOT, **options).returncode == 2


class Terminal(io.TextIOWrapper):
    """A terminal of ASCII alone, or one that raises an error."""

    def __init__(self, error=None):
        super().__init__(io.BytesIO(), "ascii", "backslashreplace", write_through=True)
        self.error = error

    def isatty(self):
        return True

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)


GONE = OSError(5, "Input/output error"), BrokenPipeError(), ValueError("I/O on a closed file")
CANNOT = UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range(128)")


@pytest.mark.parametrize("error", [None, *GONE, CANNOT])
def test_a_progress_bar_survives_its_terminal(error, monkeypatch):
    terminal = Terminal(error)
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress_bar([1, 2, 3], "checking Tür\x1b[2J")
    assert not bar.disable and [*bar] == [1, 2, 3]
    shown = terminal.buffer.getvalue().decode("ascii")
    assert bool(shown) == (error is None) and "\x1b[2J" not in shown
    assert error or r"checking T\xfcr\x1b[2J" in shown


@pytest.mark.parametrize("stream", ["none", "closed", "file"])
def test_there_is_no_bar_without_a_terminal(stream, monkeypatch):
    stderr = {"none": None, "closed": io.StringIO(), "file": io.StringIO()}[stream]
    if stream == "closed":
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert [*progress_bar([1, 2], "x", total=2)] == [1, 2]
    assert stream != "file" or not stderr.getvalue()
