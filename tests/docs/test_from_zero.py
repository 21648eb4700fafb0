"""The page docs/guide/from-zero.md: its code runs as it stands, its commands are right."""

import re
import shlex

import pytest

from support.paths import ROOT
from visionkit.config import load_config

TEXT = (ROOT / "docs" / "guide" / "from-zero.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    """The words of each command of the page, without the program's name."""
    text = "".join(blocks("console")).replace("\\\n", "")
    return [shlex.split(line.removeprefix("$ visionkit ")) for line in text.splitlines()]


def test_every_block_runs_and_every_promise_holds():
    session = {}
    for number, code in enumerate(blocks("python"), start=1):
        exec(compile(code, f"from-zero.md, block {number}", "exec"), session)
    assert session["step"] == 39  # the last block has trained to its end


def test_each_idea_is_checked():
    """Only the blocks that set the stage for the next one may do without an assert."""
    unchecked = [code for code in blocks("python") if "assert" not in code]
    assert len(unchecked) == 2 and len(blocks("python")) >= 12


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("y[image, j] = b1[j]", "y[image, j] = 0"),
        ("+= W1[j, i]", "-= W1[j, i]"),
        ("h = np.maximum(0, y)", "h = y"),
        (".sum(1, keepdims=True)", ".sum()"),
        ("-np.mean([", "-np.sum(["),
        ("range(6)) / 24", "range(6)) / 4"),
        ("(p - right) / 4", "p - right"),
        ("dh * (y > 0)", "dh"),
        ("dW2[1, 3], atol", "dW2[1, 2], atol"),
        (".mean(0), head", ".sum(0), head"),
        ("if parameter.ndim > 1 else 0.0", ""),
        ("0.9 * v[name] + g", "0.9 * v[name] + 0.1 * g"),
        ("g = parameter.grad + decay * w[name]", "g = parameter.grad"),
        ("r : r + 3", "r : r + 3][:, ::-1, :][:, :"),
        (".max((1, 2))", ".mean((1, 2))"),
    ],
)
def test_a_wrong_formula_is_noticed(right, wrong):
    """The comparisons are not so loose that anything passes."""
    code = "".join(blocks("python")[:-1])  # without the training at the end
    assert right in code
    with pytest.raises(AssertionError):
        exec(code.replace(right, wrong, 1), {})


def test_the_pages_commands_are_good_configs(monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = [load_config(words[1], words[2:]) for words in commands() if words[0] == "train"]
    assert [config.backbone["type"] for config in trained] == ["MLP", "TinyCNN"]
    for config in trained:
        assert config.data["main"].train["type"] == "Idx"
        assert config.data["main"].val["labels"] == "t10k-labels-idx1-ubyte.gz"


def test_the_settings_it_suggests_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    suggested = re.findall(r"`'?((?:backbone|train)\.[^`']+)'?`", TEXT)
    assert len(suggested) >= 4
    for settings in suggested:
        load_config("configs/mlp_mnist.yaml", settings.split())
