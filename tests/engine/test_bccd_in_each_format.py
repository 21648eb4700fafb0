"""Training from a folder in each format gives the losses of training from COCO files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from support.small_runs import PYRAMID, TINY
from visionkit import train
from visionkit.data.formats.convert import convert

DATA = os.environ.get("VISIONKIT_TEST_DATA")
FORMATS = ("yolo", "voc", "labelme", "cvat", "csv")
PARTS = {"train": 24, "val": 8}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """The first images of both parts in folders of their own: annotations/PART.json, PART/."""
    if not DATA:
        pytest.skip("VISIONKIT_TEST_DATA is not set")
    root = tmp_path_factory.mktemp("bccd")
    for part, count in PARTS.items():
        content = json.loads((Path(DATA) / "bccd/annotations" / f"{part}.json").read_text())
        content["images"] = sorted(content["images"], key=lambda one: one["file_name"])[:count]
        content["categories"].sort(key=lambda one: one["name"])  # VOC has names without numbers
        number = {one["id"]: i for i, one in enumerate(content["categories"], 1)}
        for one in content["annotations"]:
            one["category_id"] = number[one["category_id"]]
        content["categories"] = [{**c, "id": number[c["id"]]} for c in content["categories"]]
        known = {one["id"] for one in content["images"]}
        content["annotations"] = [o for o in content["annotations"] if o["image_id"] in known]
        (root / part).mkdir()
        for one in content["images"]:
            shutil.copy(Path(DATA) / "bccd/images" / one["file_name"], root / part)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return root


def losses(data, out):
    config = {
        "task": "detection",
        "backbone": dict(TINY),
        "neck": dict(PYRAMID),
        "head": {"type": "FCOS"},
        "data": {**data, "image_size": 96, "batch_size": 4, "workers": 0},
        "train": {"steps": 6, "log_every": 1, "validate": 6, "precision": "fp32", "plots": False}
        | {"report": False, "warmup_steps": 0},
        "output": str(out),
    }
    lines = (train(config).directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in one.items() if k.startswith(("train/", "detection/")) and v is not None}
        for one in found
    ]


@pytest.fixture(scope="module")
def expected(coco, tmp_path_factory):
    """From a config in the long form."""
    specs = {
        part: {"images": str(coco / part), "annotations": str(coco / f"annotations/{part}.json")}
        for part in PARTS
    }
    return losses(specs, tmp_path_factory.mktemp("long") / "run")


@pytest.mark.slow
def test_the_losses_of_a_folder_are_those_of_its_files(coco, expected, tmp_path):
    assert len(expected) == 7  # of six steps and a validation
    assert losses({"from": str(coco)}, tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_losses_are_those_of_coco(coco, expected, tmp_path, format):
    (tmp_path / "data").mkdir()
    for part in PARTS:
        out, source = tmp_path / "data" / part, coco / "annotations" / f"{part}.json"
        convert(source, out, to=format, images=coco / part)
        for image in (coco / part).iterdir():  # next to the labels, where they are not yet
            if not any(out.rglob(image.name)):
                shutil.copy(image, out)
    found = losses({"from": str(tmp_path / "data")}, tmp_path / "run")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
