"""Every exit code that docs/guide/config.md lists, with no traceback unless `--debug` is given."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT
from visionkit.cli.main import main, report
from visionkit.errors import DataError, listed

OWN = """
import os, signal, sys, time
from visionkit.data.datasets.shapes import Shapes
from visionkit.models.heads import Classification

class Data(Shapes):
    def __init__(self, *, ends: str = "", seed: int = 0):
        super().__init__(num_images=8, size=32, seed=seed)
        self.ends = ends
        if ends == "interrupted":
            raise KeyboardInterrupt
    def __getitem__(self, index):
        if self.ends == "asked to stop" and os.path.exists("run"):  # in training
            self.ends = os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)

class Leaves(Classification):
    def loss(self, features, batch):
        sys.exit(0)

class Bug(Classification):
    def loss(self, features, batch):
        return {}["not there"]
"""
WAITING = "import sys, time\nprint('ready', flush=True)\ntime.sleep(60)\n"

CONFIG = {
    "task": "classification",
    "backbone": {"type": "MLP", "size": 16, "hidden": [8]},
    "data": {
        "train": {"type": "exits.Data"},
        "val": {"type": "exits.Data", "seed": 1},
        "image_size": 16,
        "batch_size": 4,
        "workers": 0,
    },
    "train": {"steps": 3, "plots": False, "device": "cpu", "precision": "fp32"},
}
TRAIN = ["train", "own.yaml", "output=run"]
CASES = {  # words of the command, what it says, the state of the run
    "0": (["eval", "good"], "", None),
    "1": ([*TRAIN, "head.type=exits.Bug"], "error: KeyError: 'not there', raised in Bug", "failed"),
    "2": ([*TRAIN, "train.lrr=1"], "error: override train.lrr=1: train.lrr: unknown key", None),
    "3": (["eval", "--gt", "cut.json", "--pred", "cut.json"], "cut.json is damaged", None),
    "4": (["eval", "nowhere"], "error: nowhere: not found", None),
    "5": ([*TRAIN, "train.lr=1e38", "train.clip_norm=null"], "error: ", "diverged"),
    "75": ([*TRAIN, "data.train.ends=asked to stop"], "SIGTERM", "preempted"),
    "130": ([*TRAIN, "data.train.ends=interrupted"], "", None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits")
    (folder / "exits.py").write_text(OWN)
    (folder / "waiting.py").write_text(WAITING)
    (folder / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "cut.json").write_text('{"images": [')
    return folder


@pytest.fixture(autouse=True)
def here(place, tmp_path, monkeypatch):
    """A folder with the files, and a good run of the class there."""
    monkeypatch.setenv("VISIONKIT_ALLOW_PLUGINS", "1")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    if not (place / "good").exists():
        assert main(["train", "own.yaml", "output=good"]) == 0
    for file in place.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


def documented():
    page = (ROOT / "docs/guide/config.md").read_text()
    return re.findall(r"^\| (\d+) \|", page[page.index("## Exit codes") :], re.MULTILINE)


def test_the_page_lists_the_codes_that_are_tried_here():
    assert documented() == list(CASES)


@pytest.mark.parametrize("code", CASES)
def test_every_exit_code_is_that_of_the_page(code, capsys):
    words, says, state = CASES[code]
    assert main(words) == int(code)
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert "--debug" in shown if code == "1" else "unexpected" not in shown
    if state:
        assert json.loads(Path("run/status.json").read_text())["state"] == state


@pytest.mark.parametrize("code", ["1", "2", "3", "4", "5"])
def test_debug_shows_the_traceback_and_keeps_the_code(code, capsys):
    words, says, _ = CASES[code]
    assert main([*words, "--debug"]) == int(code)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and says in shown


def test_a_mistake_of_the_code_names_file_and_line(capsys, place):
    main(CASES["1"][0])
    shown = capsys.readouterr().err
    line = OWN[: OWN.index("return {}")].count("\n") + 1
    assert f"exits.py, line {line}); --debug" in shown and shown.count("\n") == 1
    assert "report it" not in shown


def test_custom_code_that_exits_is_an_error(capsys):
    """Else a script would take the exit code, often 0, for the end of the work."""
    assert main([*TRAIN, "head.type=exits.Leaves"]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("error: SystemExit: 0, raised in Leaves.loss (")


def test_a_mistake_of_visionkit_asks_for_a_report(capsys):
    with pytest.raises(TypeError) as caught:
        listed(3)
    assert report(caught.value) == 1
    shown = capsys.readouterr().err.strip()
    assert (
        shown.startswith("unexpected error: TypeError: ") and "visionkit/errors.py, line" in shown
    )
    assert shown.endswith("please report it")


def test_names_from_files_do_not_steer_the_terminal(capsys):
    assert report(DataError("class a\x1b[2J\x07\u202eb, ü\nerror: forged", "  second line")) == 3
    shown = "error: class a\\x1b[2J\\x07\\u202eb, ü\\nerror: forged\n  second line\n"
    assert capsys.readouterr().err == shown


def test_a_missing_package_is_named(capsys):
    assert report(ModuleNotFoundError("No module named 'torch'")) == 1
    assert (
        capsys.readouterr().err
        == f"error: No module named 'torch'; install it for {sys.executable}\n"
    )


def test_ctrl_c_of_a_real_process_is_130():
    Path("slow.yaml").write_text(yaml.safe_dump({**CONFIG, "head": {"type": "waiting.Head"}}))
    command = [sys.executable, "-m", "visionkit", "config", "slow.yaml"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and not shown and not out


def test_json_is_one_strict_object(capsys):
    """Also where a metric is not defined: NaN is not JSON."""
    Path("truth.json").write_text('{"images": [], "annotations": [], "categories": []}')
    Path("found.json").write_text("[]")
    files = ["--gt", "truth.json", "--pred", "found.json"]
    for words in (["eval", "good"], ["eval", *files]):
        assert main([*words, "--json"]) == 0
        printed = capsys.readouterr().out
        found = json.loads(printed, parse_constant=lambda name: pytest.fail(name))
        assert isinstance(found, dict) and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["eval", "nowhere"], 4, "nowhere: not found; expected a run directory"),
        (["eval", "good", "train.lrr=1"], 2, "override train.lrr=1: train.lrr: unknown key"),
        (["eval", "good", "--heads="], 2, "heads: got []; expected a list of one or more of"),
        (["eval", "--gt", "cut.json", "--pred", "cut.json"], 3, "cut.json is damaged"),
        (["eval", "good", "--what"], 2, "unknown argument '--what'"),
        (["eval", "good", "--type", "\x1b"], 2, "argument --type: invalid choice: '\\x1b'"),
        (["evil", "good"], 2, "unknown command 'evil'; did you mean 'eval'?"),
        (["bench", "own.yaml", "--steps", "q\n"], 2, "got q\\n; expected an integer >= 1"),
        (["bench", "own.yaml", "head.type=exits.Bug"], 1, "KeyError: 'not there', raised in Bug"),
        (["check", "nowhere.json", "data.batch_size=1"], 2, "overrides do not apply"),
    ],
)
def test_with_json_an_error_is_an_object_too(words, code, says, capsys):
    assert main([*words, "--json", *(["found.json"] if words[0] == "check" else [])]) == code
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found.keys() == {"error", "exit_code"} and found["exit_code"] == code
    assert says in found["error"] and found["error"] in shown.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--offline", "predict"], "--offline belongs after the command: visionkit predict --off"),
        (
            ["--json", "eval", "a b"],
            "--json belongs after the command: visionkit eval 'a b' --json",
        ),
        (["predict"], "required: RUN, IMAGE_OR_DIR, --out; `visionkit predict --help` explains"),
        (["--what"], "required: COMMAND; `visionkit --help` explains them"),
    ],
)
def test_a_command_line_that_is_not_whole_says_how_it_is_written(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_a_mistyped_run_is_answered_with_those_next_to_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("detection-001", "detection-002"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "detection-01.txt").touch()
    (tmp_path / "runs" / "detection-01.pt").touch()
    runs = [f"runs/detection-{end}" for end in ("01.pt", "001", "002")]
    for words in (["eval", "runs/detection-01"], ["train", "--resume", "runs/detection-01"]):
        assert main(words) == (4 if words[0] == "eval" else 2)
        _, _, near = capsys.readouterr().err.partition("next to it: ")
        assert {*near.strip().split(", ")} == {*runs}
    monkeypatch.chdir(tmp_path / "runs")
    assert main(["eval", "detection-01"]) == 4
    said = capsys.readouterr().err
    assert "detection-001" in said and "; nearest: rtdetr_r101vd, deeplabv3_" in said
    assert main(["eval", "elsewhere/detection-01"]) == 4
    assert "next to it" not in capsys.readouterr().err


@pytest.mark.parametrize("heads", ["--heads=", "--heads= , "])
def test_no_heads_at_all(heads, capsys):
    assert main(["predict", "good", ".", "--out", "out", heads]) == 2
    assert "expected a list of one or more of classification" in capsys.readouterr().err
    assert not Path("out").exists()


COMMANDS = ["train", "eval", "val", "predict", "search", "bench", "check", "config", "list", "data"]
HELP = """
import contextlib, io, sys
from visionkit.cli.main import main
helps = [[name, "--help"] for name in sys.argv[1:]]
for words in (["-V"], ["--help"], *helps, ["data", "shapes", "-h"]):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            main(words)
        except SystemExit as ended:
            assert ended.code == 0, words
    assert "visionkit" in shown.getvalue(), words
assert main([]) == 2
heavy = {"torch", "numpy", "yaml", "PIL", "torchvision", "pycocotools"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_help_of_every_command_imports_nothing_heavy():
    command = [sys.executable, "-c", HELP, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stderr for name in COMMANDS)  # the help without arguments


@pytest.mark.parametrize(
    ("word", "says"), [("trian", "did you mean 'train'?"), ("xyz", "valid: bench, check, ")]
)
def test_an_unknown_command_is_answered_with_the_known_ones(word, says, capsys):
    assert main([word, "x.yaml"]) == 2
    assert f"unknown command {word!r}" in (shown := capsys.readouterr().err) and says in shown
