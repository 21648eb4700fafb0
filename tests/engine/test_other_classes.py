"""Training that starts from a run with other classes: the same predictions from the first step."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import visionkit
from visionkit.errors import CheckpointError
from visionkit.runs import checkpoint

SOME = ["cat", "dog"]


def annotated(folder, classes):
    """Two objects in each of four images; the ids of the classes are in that order."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for k, name in enumerate(SOME):
            box = {"bbox": [4 + 30 * k, 8 + i, 20, 24], "area": 480, "iscrowd": 0}
            ids = {"image_id": i, "category_id": classes.index(name) + 1}
            annotations.append({"id": len(annotations) + 1, **ids, **box})
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return {"images": str(folder), "annotations": str(folder / "a.json")}


def config(output, classes, *, head=None, **more):
    split = annotated(output.parent / "images", classes)
    return {
        "task": "detection",
        "backbone": {"type": "TinyCNN", "channels": [8, 8, 8]},
        "neck": {"type": "FPN", "channels": 8, "in_features": ["c3"], "extra_levels": "none"},
        "head": head or {"type": "TaskAligned", "num_convs": 0},
        "data": {"train": split, "val": split, "image_size": 64, "batch_size": 4, "workers": 0,
                 "transforms": []},
        "train": {"steps": 12, "validate": 12, "lr": 0.01, "plots": False, "precision": "fp32",
                  "device": "cpu"},
        "output": str(output),
        **more,
    }  # fmt: skip


def validated(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "val"][-1]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    run = tmp_path_factory.mktemp("first") / "run"
    visionkit.train(config(run, SOME))
    return run


def started(first, how, output, classes, **more):
    """One step that changes nothing, from that run."""
    weights = {"weights": str(first / "checkpoints" / "last.pt")}
    start = {"init_from": str(first)} if how == "init_from" else weights
    spec = config(output, classes, **start, **more)
    if how == "init_from":
        del spec["backbone"], spec["neck"]
    spec["train"] |= {"steps": 1, "validate": 1, "lr": 1e-12}
    visionkit.train(spec)
    return output


@pytest.mark.parametrize("how", ["init_from", "weights"])
@pytest.mark.parametrize(
    "classes", [["dog", "cat"], ["bird", "cat", "dog"]], ids=["reordered", "more"]
)
def test_the_losses_stay_those_of_the_run(first, how, classes, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "visionkit"):
        run = started(first, how, tmp_path / "run", classes)
    before, after = validated(first), validated(run)
    for name in ("loss/box_reg", "bbox/AP/cat", "bbox/AP/dog"):
        name = f"detection/{name}"
        assert after[name] == pytest.approx(before[name], rel=1e-3, abs=1e-6)
    old, new = (checkpoint.load(r / "checkpoints/last.pt")["model"] for r in (first, run))
    name = "heads.detection.classification.predict.bias"
    for k, animal in enumerate(classes):
        if animal in SOME:
            torch.testing.assert_close(new[name][k], old[name][SOME.index(animal)])
    assert "2 classes kept" in caplog.text


def test_another_head_of_the_same_name_is_an_error(first, tmp_path):
    spec = config(tmp_path / "run", SOME, head={"type": "FCOS"}, init_from=str(first))
    del spec["backbone"], spec["neck"]
    with pytest.raises(CheckpointError, match=r"looks like .*detection \(TaskAligned\)") as error:
        visionkit.train(spec)
    assert "this model is detection (FCOS)" in str(error.value)
    visionkit.train({**spec, "partial_weights": True})


def test_rename_needs_weights(tmp_path):
    with pytest.raises(visionkit.ConfigError, match="rename: is for `weights` or `init_from`"):
        visionkit.load_config(config(tmp_path / "run", SOME, rename={"a": "b"}))
