"""Classes that never occur: a warning before training and in `check`, whatever the task."""

import json
import logging
import struct
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.checks.findings import class_findings
from visionkit.data.checks.summary import (
    all_class_findings,
    class_lines,
    dataset_class_findings,
)
from visionkit.data.datasets.shapes import Shapes
from visionkit.engine.check import check
from visionkit.types import Classes

TINY = {"type": "TinyCNN", "channels": [4, 4, 4]}


def findings(task, train, val=None, **settings):
    """What is found about the classes, by section of the data."""
    data = {"train": train, "val": val, "image_size": 32, "batch_size": 2, "workers": 0}
    config = load_config({"task": task, "backbone": TINY, "data": {**data, **settings}})
    found = all_class_findings(config, build_sources(config, ("train", "val")))
    return {
        section: [(one.kind, one.value) for one in some if one.severity == "warning"]
        for section, some in found.items()
    }


def images(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    return str(folder)


def maps(root, values, mode="L"):
    """Images, and maps whose left and right halves have these values."""
    images(root / "images", len(values))
    (root / "labels").mkdir()
    for i, (left, right) in enumerate(values):
        pixels = np.full((32, 32), left, np.uint8)
        pixels[:, 16:] = right
        Image.fromarray(pixels).convert(mode).save(root / "labels" / f"{i}.png")
    names = {"images": str(root / "images"), "labels": str(root / "labels")}
    return {"type": "LabelMaps", **names, "classes": ["background", "lesion"]}


def coco(root, labels, **more):
    """A COCO file of three classes; `labels` are those of the objects, one in each image."""
    boxes = [
        {"id": i, "image_id": i, "category_id": label, "bbox": [2, 2, 20, 20], "area": 400}
        for i, label in enumerate(labels, 1)
    ]
    folder = images(root / "images", len(labels) + 1)
    file = {
        "images": [
            {"id": i, "file_name": f"{i - 1}.png", "width": 32, "height": 32}
            for i in range(1, len(labels) + 2)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(["cat", "dog", "hen"], 1)],
        "annotations": boxes,
        **more,
    }
    (root / "file.json").write_text(json.dumps(file))
    return {"type": "Coco", "images": folder, "annotations": str(root / "file.json")}


# --- semantic maps ---


def test_maps_of_0_and_255_are_said_to_have_no_foreground(tmp_path):
    data = maps(tmp_path, [(0, 255)] * 3)
    report = check(
        {"task": "semantic_segmentation", "backbone": TINY,
         "data": {"train": data, "image_size": 32, "batch_size": 2, "workers": 0}}
    )  # fmt: skip
    (found,) = [one for one in report.findings if one.kind == "unused-class"]
    assert found.severity == "warning" and found.file == "data.train"
    assert found.message == (
        "class 'lesion' has no pixel; maps by class: 'background' (3); values in the maps: "
        "0 ('background'), 255 (ignored)"
    )
    palette = "{background: [0, 0, 0], lesion: [255, 255, 255]}"
    assert f"if 255 is a class, set `palette: {palette}`" in found.hint
    colors = {"background": (0, 0, 0), "lesion": (255, 255, 255)}
    data |= {"palette": colors, "classes": None}
    assert findings("semantic_segmentation", data) == {"data.train": []}


@pytest.mark.parametrize("mode", ["L", "P"])
def test_maps_are_looked_at_in_both_splits(tmp_path, mode):
    good = maps(tmp_path / "a", [(0, 1), (255, 255)], mode)
    bare = maps(tmp_path / "b", [(1, 1), (1, 255)], mode)
    if mode == "P":  # stored numbers count, and these are the numbers of a gray palette
        good, bare = (one | {"ignore": 255} for one in (good, bare))
    assert findings("semantic_segmentation", good, bare) == {
        "data.train": [],
        "data.val": [("unused-class", "background")],
    }


def test_colors_are_counted_by_the_palette(tmp_path):
    data = maps(tmp_path, [(0, 255)])
    names = {"road": [0, 0, 0], "sky": [255, 255, 255], "car": [255, 0, 0]}
    data |= {"palette": names, "classes": None}
    assert findings("semantic_segmentation", data) == {"data.train": [("unused-class", "car")]}


def test_semantic_maps_of_a_coco_file(tmp_path):
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.full((32, 32), 1, np.uint8)).save(tmp_path / "maps/0.png")
    data = coco(tmp_path, [1], semantic_classes=["road", "sky"])
    file = json.loads((tmp_path / "file.json").read_text())
    file["images"][0]["semantic"] = "maps/0.png"
    (tmp_path / "file.json").write_text(json.dumps(file))
    assert findings("semantic_segmentation", data)["data.train"] == [("unused-class", "road")]


def test_maps_that_are_not_inspected_are_not_counted(tmp_path):
    data = maps(tmp_path, [(0, 255)])
    assert findings("semantic_segmentation", data, check_images=False) == {"data.train": []}


def test_maps_of_a_single_class(tmp_path):
    data = maps(tmp_path, [(0, 255)]) | {"classes": ["background"]}
    assert findings("semantic_segmentation", data) == {
        "data.train": [("single-class", "background")]
    }


# --- classes of images ---


def test_folders_and_a_class_without_images(tmp_path):
    images(tmp_path / "a/cat", 2), images(tmp_path / "a/dog", 1), images(tmp_path / "b/dog", 1)
    train = {"type": "ImageFolder", "root": str(tmp_path / "a"), "classes": ["cat", "dog", "ox"]}
    val = {"type": "ImageFolder", "root": str(tmp_path / "b"), "classes": ["cat", "dog", "ox"]}
    assert findings("classification", train, val) == {
        "data.train": [("unused-class", "ox")],
        "data.val": [("unused-class", "cat"), ("unused-class", "ox")],
    }


def test_classification_with_a_single_class(tmp_path, caplog):
    images(tmp_path / "a/cat", 4)
    data = {"type": "ImageFolder", "root": str(tmp_path / "a")}
    assert findings("classification", data) == {"data.train": [("single-class", "cat")]}


def test_labels_of_idx_files(tmp_path):
    (tmp_path / "i").write_bytes(struct.pack(">4I", 0x803, 2, 8, 8) + bytes(128))
    (tmp_path / "l").write_bytes(struct.pack(">2I", 0x801, 2) + bytes([0, 2]))
    data = {"type": "Idx", "images": str(tmp_path / "i"), "labels": str(tmp_path / "l")}
    assert findings("classification", data) == {"data.train": [("unused-class", "1")]}


def test_classes_of_whole_images_in_a_coco_file():
    few = {"type": "Shapes", "num_images": 2, "size": 32}
    counts = Shapes(num_images=2, size=32).class_counts()["class_id"]
    found = findings("classification", few)["data.train"]
    assert len(found) == (counts == 0).sum() > 0
    assert {kind for kind, _ in found} == {"unused-class"}


# --- objects and their attributes ---


@pytest.mark.parametrize("task", ["detection", "localization"])
def test_objects(tmp_path, task):
    train = coco(tmp_path / "a", [1, 1, 2])
    val = coco(tmp_path / "b", [2])
    assert findings(task, train, val) == {
        "data.train": [("unused-class", "hen")],
        "data.val": [("unused-class", "cat"), ("unused-class", "hen")],
    }


def test_crops_of_objects(tmp_path):
    data = {**coco(tmp_path, [1, 1]), "type": "Crops"}
    assert findings("classification", data) == {
        "data.train": [("unused-class", "dog"), ("unused-class", "hen")]
    }


def test_a_class_that_is_not_labeled_here_is_not_missed(tmp_path):
    data = coco(tmp_path, [1, 1, 2])
    found = findings("detection", data, labeled_classes=["cat", "dog"])
    assert found == {"data.train": []}


def attribute_findings(tmp_path, *attributes):
    """What is found about the attributes of objects."""
    data = coco(tmp_path, [1] * len(attributes))
    file = json.loads((tmp_path / "file.json").read_text())
    for record, given in zip(file["annotations"], attributes, strict=True):
        record["attributes"] = given
    (tmp_path / "file.json").write_text(json.dumps(file))
    config = load_config(
        {
            "backbone": TINY,
            "neck": {"type": "FPN", "channels": 8},
            "heads": {
                "objects": {"type": "FCOS"},
                "looks": {"type": "Attributes", "boxes_from": "objects"},
            },
            "data": {"x": {"feeds": ["objects", "looks"], "train": data, "image_size": 32}},
        }
    )
    found = all_class_findings(config, build_sources(config, ("train",)))["data.x.train"]
    return [one.message for one in found if one.severity == "warning"]


def test_attributes_that_no_object_has(tmp_path):
    shut = {"open": False}
    found = attribute_findings(
        tmp_path, {"color": "red"} | shut, {"color": "red"} | shut, {"color": "blue"} | shut
    )
    there = "objects by class: 'color=red' (2), 'color=blue' (1)"
    assert f"class 'open' has no object; {there}" in found
    found = attribute_findings(tmp_path, shut, shut)
    assert "class 'open' has no object; objects by class: none" in found


def test_attributes_that_all_objects_have(tmp_path):
    found = attribute_findings(tmp_path, {"open": True, "color": "red"}, {"color": "red"}, {})
    assert [text for text in found if text.startswith("attribute")] == [
        "attribute 'color' is the same for all objects, 'red'",
        "attribute 'open' is the same for all objects, 'yes'",
    ]


# --- other datasets, and the two commands ---


class Counted:
    keys = ("class_id",)
    classes: ClassVar = {"class_id": Classes.numbered(["a", "b"])}

    def class_counts(self):
        return {"class_id": np.array([0, 7])}


def test_a_custom_dataset_that_counts():
    (unused, rare) = dataset_class_findings(Counted(), "data.x", ["class_id"])
    assert unused.message == "class 'a' has no image; images by class: 'b' (7)"
    assert rare.kind == "rare-class"
    assert dataset_class_findings(Counted(), "data.x", ["labels"]) == []


@pytest.fixture
def many(tmp_path):
    """A config with 60 classes, of which one occurs."""
    names = [{"id": i, "name": f"c{i}"} for i in range(1, 61)]
    data = coco(tmp_path, [1, 1], categories=names)
    config = {
        "task": "detection", "backbone": TINY, "neck": {"type": "FPN", "channels": 8},
        "data": {"train": data, "image_size": 32, "batch_size": 2, "workers": 0},
        "train": {"steps": 1, "plots": False, "best_metric": None},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    return tmp_path


def test_training_names_at_most_20_classes_before_it_starts(many, caplog):
    with caplog.at_level(logging.INFO, "visionkit"):
        assert main(["train", str(many / "c.yaml")]) == 0
    said = [record.message for record in caplog.records]
    (line,) = [text for text in said if "has no object" in text]
    assert line.startswith("data.train: class 'c2' has no object; objects by class: 'c1' (2); the ")
    assert "the same holds for 'c3', 'c4'" in line and "'c21' and 39 more: add some" in line
    assert "'c22'" not in line
    first_step = next(i for i, text in enumerate(said) if text.startswith("step "))
    assert said.index(line) < first_step
    used = json.loads((many / "run/data.json").read_text())["sources"]["main"]["train"]
    assert used["kept"]["unused-class"] == 59


def test_check_shows_at_most_20_findings_and_counts_the_others(many, capsys):
    assert main(["check", str(many / "c.yaml"), "--json", str(many / "r.json")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  warning unused-class: ") <= 20 and "59 x unused-class" in shown
    found = json.loads((many / "r.json").read_text())["findings"]
    assert sum(one["kind"] == "unused-class" for one in found) == 59


def test_lines_of_one_class_and_of_several():
    one = class_findings({"a": 20, "b": 0}, "object", "data.x")
    assert class_lines(one) == [
        "data.x: class 'b' has no object; objects by class: 'a' (20): add some, or remove the class"
    ]
    assert class_lines(class_findings({"a": 20, "b": 1}, "object", "data.x")) == []
    (found,) = class_findings({"ox": 20, "OX": 20}, "object", "data.x")
    assert found.message == "classes 'ox', 'OX' differ in case alone"
