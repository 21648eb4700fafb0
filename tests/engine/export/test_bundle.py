"""Bundles: what a hub takes, loads as the run did, and says what is wrong with it."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import visionkit
from support.backbones import pixels
from support.small_runs import SMALL_RUNS
from visionkit.engine.export.bundle import write_bundle
from visionkit.errors import ArgumentError, CheckpointError
from visionkit.metrics.thresholds import Thresholds
from visionkit.runs import checkpoint

pytest.importorskip("safetensors.torch")
FOUND = Thresholds(0.3, {"ring": 0.25}, {"": {90: 0.6}, "ring": {90: 0.55}})
NAMES = ["README.md", "classes.json", "config.yaml", "model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose validation found thresholds."""
    folder = tmp_path_factory.mktemp("run")
    run = visionkit.train({**SMALL_RUNS["fcos"], "output": str(folder / "run")}).directory
    state = checkpoint.load(run / "checkpoints/best.pt")
    state["thresholds"] = {"detection": FOUND.to_dict()}
    state["metrics"]["detection/bbox/AP"] = 0.1234
    checkpoint.save(state, run / "checkpoints/best.pt")
    return run


@pytest.fixture
def bundle(run, tmp_path):
    return write_bundle(run, tmp_path / "bundle")


def test_it_predicts_as_the_run_with_the_same_thresholds(run, bundle):
    assert sorted(path.name for path in bundle.iterdir()) == NAMES
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    image = pixels(1, 3, 32, 48)[0]
    want, got = visionkit.load(run), visionkit.load(bundle)
    before, after = want.predict_batch([image])[0], got.predict_batch([image])[0]
    for key in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(before, key), getattr(after, key))
    assert got.model.thresholds == {"detection": FOUND} == want.model.thresholds
    assert got.draw_threshold == want.draw_threshold
    assert got.config == want.config and got.classes == want.classes
    assert visionkit.load_config(bundle / "config.yaml") == want.config
    lists = json.loads((bundle / "classes.json").read_text())
    assert tuple(lists["detection"]["names"]) == want.classes["detection"].names


def test_one_file_of_it_is_enough_also_from_a_hub(run, bundle, tmp_path, monkeypatch):
    """`hf://` takes only model.safetensors."""
    folder = tmp_path / "hub/us/shapes"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((bundle / "model.safetensors").read_bytes())
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(tmp_path / "hub"))
    for place in ("hf://us/shapes", bundle / "model.safetensors", folder):
        assert visionkit.load(place).model.thresholds == {"detection": FOUND}


def test_weights_export_keeps_the_thresholds_too(run, tmp_path):
    path = checkpoint.export(run, tmp_path / "w.safetensors")
    assert visionkit.load(path).model.thresholds == {"detection": FOUND}


def test_the_card_has_metrics_thresholds_data_and_gaps_to_fill_in(run, bundle):
    card = (bundle / "README.md").read_text()
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "\npipeline_tag: object-detection\n" in front and front.startswith("# license: fill in")
    assert re.search(r"detection/bbox/AP +0\.1234\n", body) and "/loss/" not in body
    assert "| detection | ring | 0.250 |" in body and "after 3 steps" in body
    data = json.loads((run / "data.json").read_text())["sources"]["main"]["train"]
    assert f"| main.train | 12 | {data['objects']} | 0 | {data['fingerprint']} |" in body
    assert "| detection | FCOS | 32 | circle, ring, square, star, triangle |" in body
    assert body.count("Fill in:") == 3 and 'visionkit.load("hf://owner/name")' in body


@pytest.mark.parametrize("record", [None, "", "[1]", '{"sources": {"main": 3}}'])
def test_a_card_without_a_record_of_the_data_says_so(run, tmp_path, record):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    best = tmp_path / "run/checkpoints/best.pt"
    best.write_bytes((run / "checkpoints/best.pt").read_bytes())
    if record is not None:
        (tmp_path / "run/data.json").write_text(record)
    card = (write_bundle(best, tmp_path / "b") / "README.md").read_text()
    assert "record of its data was not at hand" in card and "0.1234" in card


def test_names_in_the_card_have_no_effect_on_its_markdown(run, tmp_path):
    state = checkpoint.load(run / "checkpoints/best.pt")
    state["classes"]["detection"]["names"][0] = "a|b\n# <c>"
    state["config"]["name"] = "x`y"
    checkpoint.save(state, tmp_path / "best.pt")
    card = (write_bundle(tmp_path / "best.pt", tmp_path / "b") / "README.md").read_text()
    assert r"| 32 | a\|b\\n# \<c\>, ring, square, star, triangle |" in card
    assert "# x\\`y\n" in card


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("classification", "image-classification"),
        ("semantic", "image-segmentation"),
        ("embedding", "image-feature-extraction"),
        ("vae", None),
    ],
)
def test_the_hub_lists_it_by_its_task(tmp_path, name, task):
    run = visionkit.train({**SMALL_RUNS[name], "output": str(tmp_path / "run")}).directory
    card = (write_bundle(run, tmp_path / "b") / "README.md").read_text()
    assert (f"\npipeline_tag: {task}\n" in card) if task else ("pipeline_tag" not in card)
    visionkit.load(tmp_path / "b").predict(pixels(1, 3, 32, 32)[0])


def test_an_existing_output_is_refused_and_nothing_is_left(run, bundle, tmp_path):
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for out in (bundle, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ArgumentError, match="exists; delete it or choose another name"):
            write_bundle(run, out)
    with pytest.raises(ArgumentError, match=r"the folder .*no does not exist"):
        write_bundle(run, tmp_path / "no/b")
    with pytest.raises(CheckpointError, match="nowhere: not found"):
        write_bundle(tmp_path / "nowhere", tmp_path / "b")
    assert before == {path: path.read_bytes() for path in bundle.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "file", "link"]


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    state = checkpoint.load(run / "checkpoints/best.pt")
    first = next(name for name in state["model"] if name.endswith("weight"))
    state["model"][first].flatten(end_dim=0)[0] = float("nan")
    checkpoint.save(state, tmp_path / "nan.pt")
    words = f"nan.pt: 1 tensor of its weights have NaN or infinite values: {re.escape(first)}"
    with pytest.raises(CheckpointError, match=words):
        write_bundle(tmp_path / "nan.pt", tmp_path / "b")
    with pytest.raises(CheckpointError, match=words):
        checkpoint.export(tmp_path / "nan.pt", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pt"]


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: (b / "model.safetensors").unlink(), "has no model.safetensors; copy the whole"),
        (lambda b: edit(b / "config.yaml", b"lr: 0.02", b"lr: 0.03"), "config.yaml: is not the fi"),
        (lambda b: edit(b / "classes.json", b"ring", b"rink"), "classes.json: is not the file"),
        (lambda b: (b / "classes.json").write_bytes(b"\xff\0"), "classes.json: is not the file"),
        (lambda b: edit(b / "model.safetensors", b"0.02", b"0.03"), "checksum that it names"),
        (lambda b: flip(b / "model.safetensors"), "checksum that it names"),
        (lambda b: cut(b / "model.safetensors"), "truncated"),
        (lambda b: (b / "model.safetensors").write_text("x"), "cannot be read as weights"),
    ],
    ids=["no weights", "config", "classes", "bytes", "metadata", "flipped", "cut", "foreign"],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused(bundle, change, says):
    change(bundle)
    with pytest.raises(CheckpointError, match=says):
        visionkit.load(bundle)


def flip(path):
    """One bit of the last weight, as on a disk that fails."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def test_a_named_pipe_in_place_of_a_file_is_refused(bundle):
    (bundle / "config.yaml").unlink()
    os.mkfifo(bundle / "config.yaml")
    with pytest.raises(CheckpointError, match=r"config.yaml: cannot be read: it is a named pipe"):
        visionkit.load(bundle)


def test_what_people_may_change_changes_nothing(bundle, caplog):
    (bundle / "README.md").write_text("mine")
    config = bundle / "config.yaml"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))  # as Git does on Windows
    visionkit.load(bundle)
    assert not caplog.records
    (bundle / "classes.json").unlink()
    visionkit.load(bundle)
    assert "classes.json missing: using what model.safetensors has of it" in caplog.text


def test_runs_and_other_folders_are_as_before(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model.safetensors").write_text("mine")
    (tmp_path / "checkpoints/best.pt").write_bytes((run / "checkpoints/best.pt").read_bytes())
    assert visionkit.load(tmp_path).model.thresholds
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no checkpoints/best\.pt or last\.pt"):
        visionkit.load(tmp_path / "empty")


def test_another_run_starts_from_it(bundle, tmp_path):
    config = {**SMALL_RUNS["fcos"], "output": str(tmp_path / "new")}
    with pytest.raises(CheckpointError, match=r"give a file of weights, such as .*safetensors"):
        visionkit.train({**config, "weights": str(bundle)})
    visionkit.train({**config, "weights": str(bundle / "model.safetensors")})


def test_a_bundle_of_a_bundle_has_the_same_weights(bundle, tmp_path):
    again = write_bundle(bundle, tmp_path / "again")
    assert visionkit.load(again).model.thresholds == {"detection": FOUND}
    assert "The run was not validated." in (Path(again) / "README.md").read_text()
