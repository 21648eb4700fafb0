"""Train, evaluate and resume from `data: DIR`: every command sees the same images."""

import json
from pathlib import Path

import pytest

from support import exports, small_runs
from visionkit import check, evaluate, train
from visionkit.cli.main import main

SETTINGS = {"steps": 2, "validate": 2, "plots": False, "report": False, "warmup_steps": 0}
HEADS = {"detection": "FCOS", "classification": "Classification"}
HEADS |= {"semantic_segmentation": "SemanticFPN"}


def config(task, data, output):
    short = small_runs.config(task, HEADS[task], pyramid=task != "classification")
    data = {"from": str(data), "image_size": 32, "batch_size": 4, "workers": 0}
    return {**short, "data": data, "train": {**short["train"], **SETTINGS}, "output": str(output)}


def coco(root):
    exports.text(root / "all.json", exports.coco(exports.images(root / "images", 10)))
    return root


CASES = {
    "coco": ("detection", coco, {"train": 8, "val": 2}),
    "yolo": ("detection", exports.roboflow_yolo, {"train": 3, "val": 3}),
    "voc": ("detection", exports.voc_flat, {"train": 2, "val": 1}),
    "roboflow": ("detection", exports.roboflow_coco, {"train": 2, "val": 2}),
    "class folders": (
        "classification",
        lambda root: exports.class_folders(root, 5),
        {"train": 8, "val": 2},
    ),
    "masks": ("semantic_segmentation", exports.masks, {"train": 3, "val": 1}),
    "painted": ("semantic_segmentation", coco, {"train": 8, "val": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_train_eval_and_check_see_the_same_images(tmp_path, name):
    task, make, counts = CASES[name]
    spec = config(task, make(tmp_path / "data"), tmp_path / "run")
    run = train(spec)
    used = json.loads((run.directory / "data.json").read_text())
    assert {k: one["images"] for k, one in used["sources"]["main"].items()} == counts
    assert not {"train-val-overlap", "same-data", "same-content"} & used["cross_split"].keys()
    saved = (run.directory / "config.yaml").read_text()
    assert "\n    from:" not in saved
    report = check(spec)
    assert [str(one) for one in report.findings if one.severity == "error"] == []
    mine = report.used["sources"]["main"]
    assert {k: one["fingerprint"] for k, one in mine.items()} == {
        k: one["fingerprint"] for k, one in used["sources"]["main"].items()
    }
    metrics = evaluate(run.directory)
    assert metrics == pytest.approx(run.metrics, abs=0, rel=0, nan_ok=True) and metrics
    again = [f"--resume={run.directory}", "--strict", "train.steps=3"]
    assert main(["train", *again]) == 0


def test_the_short_form_trains_as_the_long_form(tmp_path):
    root = exports.roboflow_coco(tmp_path / "data")
    short = config("detection", root, tmp_path / "a")
    long = {**short, "output": str(tmp_path / "b")}
    long["data"] = {key: value for key, value in short["data"].items() if key != "from"} | {
        split: {"images": str(root / part), "annotations": f"{root / part}/_annotations.coco.json"}
        for split, part in (("train", "train"), ("val", "valid"))
    }
    assert losses(train(short).directory) == losses(train(long).directory)


def losses(run: Path):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = [
        {k: v for k, v in r.items() if k.startswith(("train/", "detection/"))} for r in records
    ]
    assert any(k.startswith("train/") for one in chosen for k in one)
    return chosen


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"type": "ImageFolder", "root": "."}, "looks like a YOLO dataset (data.yaml with 2 cla"),
        ({"type": "Coco", "images": ".", "annotations": "."}, "is a folder: it looks like a YOLO"),
    ],
)
def test_a_wrong_type_is_answered_with_the_right_one(tmp_path, spec, says):
    root = exports.roboflow_yolo(tmp_path / "pets")
    given = {k: v if k == "type" else str(root) for k, v in spec.items()}
    task = "classification" if spec["type"] == "ImageFolder" else "detection"
    short = config(task, root, tmp_path / "run")
    short["data"] = {"train": given, "workers": 0, "image_size": 32}
    (error,) = [str(one) for one in check(short).findings if one.severity == "error"]
    assert says in error and f"{{type: Yolo, root: {root}, split: train}}" in error
