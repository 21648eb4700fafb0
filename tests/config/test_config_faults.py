"""What users get wrong in a config: ranges, text that is no file name, files that are none."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.paths import ROOT
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.engine.train import train
from visionkit.errors import CheckpointError, ConfigError, printable

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CONFIG = CONFIGS[0].with_name("mlp_mnist.yaml")

SIDE = "an integer >= 8 and <= 8192"
RANGES = {
    "train.epochs": (["0", "-1", "2.5", "true", "ten", "1e3"], "an integer >= 1 or null"),
    "train.steps": (["0", "1.0"], "an integer >= 1 or null"),
    "train.lr": (["-1", "0", ".nan", ".inf", "-.inf", "fast", "true"], "a number > 0"),
    "train.weight_decay": (["-1", ".nan", ".inf"], "a number >= 0"),
    "train.momentum": (["-0.1", "1.1"], "a number >= 0 and <= 1"),
    "train.seed": (["-1", str(2**32), str(2**64)], "an integer >= 0 and <= 4294967295"),
    "train.accumulate_grad_batches": (["0"], "an integer >= 1"),
    "train.clip_norm": (["0", ".nan"], "a number > 0 or null"),
    "train.warmup_steps": (["-1"], "an integer >= 0 or null"),
    "train.precision": (["fp8", "16"], "'auto' or 'fp32' or 'bf16' or 'fp16'"),
    "train.optimizer": (["sdg", "Adm"], "did you mean"),
    "train.schedule": (["cosin"], "'cosine' or 'multistep' or 'constant'"),
    "data.batch_size": (["0", "-4", "1.5"], "an integer >= 1"),
    "data.workers": (["-1", "100000", "all"], "an integer >= 0 and <= 256"),
    "data.image_size": (
        ["0", "[0, 5]", "10000000", "[64]", "64x"],
        f"{SIDE} or a list of 2",
    ),
    "backbone.hidden": (["[0]", "8"], "a list (each an integer >= 1)"),
    "output": (["''", "[a]"], ""),
    "name": (["a/b", "..", "''"], "a valid directory name"),
}


@pytest.mark.parametrize("key", RANGES)
def test_a_value_out_of_range_is_answered_with_the_range(key):
    values, expected = RANGES[key]
    for value in values:
        with pytest.raises(ConfigError) as caught:
            load_config(CONFIG, [f"{key}={value}"])
        told = str(caught.value)
        assert told.startswith(f"override {key}={value}: {key}: got ") and expected in told


def test_a_fixed_image_size_has_sides_in_the_range():
    assert load_config(CONFIG, ["data.image_size=300x200"]).data["main"].image_size == "300x200"
    for value in ("7x300", "300x8193"):
        with pytest.raises(ConfigError, match=rf"image_size: got '{value}'; expected sides of 8 "):
            load_config(CONFIG, [f"data.image_size={value}"])
    with pytest.raises(ConfigError, match="or 'WIDTHxHEIGHT'"):
        load_config(CONFIG, ["data.image_size=300 x 200"])


def test_a_removed_key_is_answered_with_what_became_of_it():
    with pytest.raises(ConfigError, match=r"data\.cache_gb: removed in 0\.2: decoded images"):
        load_config(CONFIG, ["data.cache_gb=2"])


def test_of_several_mistakes_in_a_file_each_has_its_line(tmp_path):
    text = CONFIG.read_text().replace("size: 28", "size: 0").replace("epochs: 5", "epochs: ten")
    (tmp_path / "c.yaml").write_text(text)
    lines = text.splitlines()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    for wrong in ("size: 0", "epochs: ten"):
        number = next(i for i, line in enumerate(lines, 1) if wrong in line)
        assert f"c.yaml:{number}: " in str(caught.value)


@pytest.mark.parametrize("text", ["${HOME}/x", "$HOME", "~/x", "%(home)s", "{{ home }}"])
def test_nothing_is_expanded(text, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_config(CONFIG, {"output": text}).output == text


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
@pytest.mark.parametrize("key", ["output", "weights", "data.train"])
def test_text_that_can_name_no_file_is_refused(text, key):
    value = {"type": "ImageFolder", "root": text} if key == "data.train" else text
    with pytest.raises(ConfigError, match=rf"{key}.*: got .*; expected"):
        load_config(CONFIG, {key: value})


def test_a_name_in_bytes_of_another_time_is_a_name(tmp_path):
    """Such as a folder in Latin-1, which Python hands over with escapes; it is saved and found."""
    name = os.fsdecode(b"caf\xe9")
    config = load_config(CONFIG, {"output": name})
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml").output == name


SMALL = ["data.workers=0", "data.train.num_images=8", "data.val=null", "train.epochs=null",
         "train.steps=1", "train.plots=false", "data.batch_size=4"]  # fmt: skip


NUMBERS = ["123", "true", "1e3", ".5", "no", "-7", "012", "2026-01-01"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_name_that_reads_as_a_number_is_a_name(name, tmp_path, monkeypatch):
    """Of a directory, a run, a file: wherever only text is expected."""
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIG, [f"output={name}", f"name={name}", f"weights={name}"])
    assert (config.output, config.name, config.weights) == (name, name, name)
    coco = load_config(CONFIG, [f"data.train.images={name}", f"data.train.annotations={name}"])
    assert coco.data["main"].train == {"type": "Coco", "images": name, "annotations": name}
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    with pytest.raises(CheckpointError, match=f"init_from: {re.escape(name)}: not found"):
        load_config(CONFIG, [f"init_from={name}"])


def test_a_name_that_reads_as_a_number_stays_wrong_elsewhere():
    """In Python a number is a number; a later override of the section counts."""
    with pytest.raises(ConfigError, match="output: got 123; expected a string or null"):
        load_config(CONFIG, {"output": 123})
    words = ["data.train.annotations=5", "data.train={type: Coco, images: a, annotations: 7}"]
    with pytest.raises(ConfigError, match="annotations: got 7; expected a path"):
        load_config(CONFIG, words)
    assert load_config(CONFIG, ["output=null"]).output is None


def test_a_run_whose_name_is_not_utf8_is_trained_and_resumed(tmp_path):
    name = str(tmp_path / os.fsdecode(b"caf\xe9"))
    assert str(train(CONFIG, [*SMALL, f"output={name}"]).directory) == name
    again = load_config(f"{name}/config.yaml", ["train.steps=2"])
    assert train(again, resume=True).directory == Path(name) and again.output == name


@pytest.mark.parametrize("name", ["123", "a=b", "c.yaml", "[x]", "'q'"])
def test_a_run_of_any_name_is_resumed(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(CONFIG), *SMALL, "--overwrite", f"output={tmp_path / name}"]) == 0
    assert main(["train", "--resume", name, "train.steps=2"]) == 0
    assert "step 2" in (tmp_path / name / "status.json").read_text().replace('"', "").replace(
        ":", ""
    )
    assert main(["train", "train.steps=3", "--resume", name]) == 0


@pytest.mark.parametrize("name", ["two words", "ü😀", "a\nb", "-x", "${HOME}", "123"])
def test_a_run_may_have_an_odd_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(CONFIG), *SMALL, f"output={name}"]) == 0
    assert (tmp_path / name / "checkpoints" / "last.pt").exists()
    assert f"run: {printable(name)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [("z" * 300, "too long"), ("file", "File exists"), ("file/below", "Not a directory")],
)
def test_a_run_that_cannot_be_there_is_told(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["train", str(CONFIG), *SMALL, f"output={name}"]) == 2
    assert says in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def test_a_config_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("task: detection")
    (tmp_path / "c.yaml").chmod(0)
    if os.access(tmp_path / "c.yaml", os.R_OK):  # root may read anything

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read: Permission denied"):
        load_config(tmp_path / "c.yaml")


def test_a_file_of_5_mb_is_not_read_whole(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\n" * 1_000_000)
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        load_config(tmp_path / "c.yaml")


def test_a_dict_that_holds_itself_is_refused():
    looped = {"task": "classification"}
    looped["data"] = looped
    with pytest.raises(ConfigError, match="more than 50 levels"):
        load_config(looped)


changes = st.fixed_dictionaries(
    {},
    optional={
        "train.lr": st.floats(1e-12, 1e6),
        "train.seed": st.integers(0, 2**32 - 1),
        "train.ema": st.floats(0, 0.999),
        "train.freeze": st.lists(st.sampled_from(["^backbone", "a|b", "x: y", "no", "#"])),
        "data.workers": st.integers(0, 256),
        "name": st.text("abcü -_.😀", min_size=1).filter(lambda name: name not in (".", "..")),
        "output": st.text(min_size=1).filter(lambda t: "\0" not in t and t.isprintable()),
        "weights": st.sampled_from(["no", "1e-3", "~", "a: b", "null", " x ", "2026-01-01"]),
    },
)


@settings(max_examples=15, deadline=None, database=None)
@given(path=st.sampled_from(CONFIGS), given_=changes)
def test_what_a_config_resolves_to_loads_to_the_same(tmp_path_factory, path, given_):
    config = load_config(path, given_)
    again = tmp_path_factory.getbasetemp() / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8", newline="")
    assert load_config(again) == config


def test_a_head_and_data_that_do_not_belong_together_are_both_named(tmp_path, capsys):
    for label in ("cat", "dog"):
        (tmp_path / "d" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "d" / label / "a.png")
    words = ["data.train.type=ImageFolder", f"data.train.root={tmp_path / 'd'}"]
    command = ["train", str(CONFIG.with_name("detection.yaml")), *words, "data.val=null"]
    assert main([*command, f"output={tmp_path / 'run'}"]) == 3
    told = capsys.readouterr().err
    assert "data.train: gives no 'boxes' (needed by head 'detection', FasterRCNN)" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("train.device=cuda:99", 2, "train.device: 'cuda:99' cannot be used here: "),
        ("train.device=gpu", 2, "expected auto, cpu, cuda or mps"),
        ("train.precision=fp16", 0, ""),  # slow on a CPU, but it computes
    ],
)
def test_a_device_that_is_not_there_is_told(word, code, says, tmp_path, capsys):
    words = ["train.device=cpu", word, f"output={tmp_path / 'run'}"]
    assert main(["train", str(CONFIG), *SMALL, *words]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "origin", [{"run": "x"}, {"heads": []}, {}, {"run": 1, "heads": []}, {"run": "x", "heads": [1]}]
)
def test_init_from_is_a_path(origin):
    with pytest.raises(ConfigError, match=r"init_from: got .*: the path of a run or checkpoint"):
        load_config(CONFIG, {"init_from": origin})
