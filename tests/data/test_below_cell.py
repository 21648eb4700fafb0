"""How many objects are smaller than a cell of the network or a pixel, and which size would do."""

import json
import logging

import numpy as np
import pytest
import yaml
from PIL import Image

import visionkit
from visionkit.data.checks.summary import below_cell
from visionkit.data.datasets.coco import Coco
from visionkit.data.resize import fit


def dataset(tmp_path, sides, size=(64, 128)):
    """An image of that (h, w) with a square of each of those sides."""
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [i, 0, side, side + 4], "area": side**2}
        for i, side in enumerate(sides, 1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": size[1], "height": size[0]}
    content = {"images": [image], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    return Coco(str(tmp_path), str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "image_size, sides, found",
    [
        (128, [8, 9, 20], None),  # a cell or more
        (64, [8, 20, 30], "1 of 3 objects smaller than a cell of head 'detection', 8 pixels, at "
                          "image_size=64"),
        ([32, 64], [8, 20, 30], "1 of 3 objects smaller than a cell of head 'detection', 8 pixels, "
                                "at image_size=[32, 64]"),
        (128, [3] * 10, "10 of 10 objects smaller"),
        # At 64 the sides are halved: 0.5, 0.75, 1 and 10.
        (64, [1, 1.5, 2, 20], "2 of 4 objects below one pixel and 1 other smaller than a cell of "
                              "head 'detection', 8 pixels, at image_size=64"),
    ],
)  # fmt: skip
def test_small_objects_are_counted_in_pixels_of_the_network(tmp_path, image_size, sides, found):
    result = below_cell(dataset(tmp_path, sides), image_size, "detection", 8)
    assert (result is None) == (found is None)
    if result is not None:
        assert result.message.startswith(found) and result.severity == "warning"


@pytest.mark.parametrize(
    "image_size, sides, size, share",
    [
        # The side of 3 has 1.5 pixels at 64: 8 / 1.5 = 5.3 times as large, in steps of 32.
        (64, [3] * 20, "image_size=352", "95 %"),
        ([32, 64], [3] * 20, "image_size=[192, 352]", "95 %"),
        ("64x64", [3] * 20, "image_size=352x352", "95 %"),
        # One of 30: for all of them.
        (128, [4] + [20] * 29, "image_size=256", "all"),
    ],
)
def test_a_size_that_would_do_is_named(tmp_path, image_size, sides, size, share):
    data = dataset(tmp_path, sides)
    found = below_cell(data, image_size, "detection", 8)
    assert f"{size} would do for {share} of the objects" in found.hint
    assert found.severity == ("note" if share == "all" else "warning")
    numbers = yaml.safe_load(size.partition("=")[2])
    assert below_cell(data, numbers, "detection", 8) is None


def test_objects_below_one_pixel_are_not_said_to_be_learned(tmp_path):
    """Of 0.25 pixels: 4 times as large for one pixel, 32 times for a cell."""
    data = dataset(tmp_path, [0.5] * 10)
    unused = (
        "an object below one pixel is not used in training; "
        "image_size=256 would do for 95 % of the objects"
    )
    found = below_cell(data, 64, "detection", 8)
    assert found.message == (
        "10 of 10 objects below one pixel and 0 others smaller than a cell of head 'detection', "
        "8 pixels, at image_size=64"
    )
    assert found.hint == (
        f"{unused}; another one below a cell is learned from its nearest cell alone; "
        "image_size=2048 would do for 95 % of the objects"
    )
    found = below_cell(data, 64)  # heads without cells
    assert found.message == "10 of 10 objects below one pixel at image_size=64"
    assert found.hint == unused
    assert below_cell(data, 256) is None


def test_each_count_has_its_own_size(tmp_path):
    """Of 40, one of 0.5 pixels: all of them need twice the size, 95 % of them are no smaller than
    one pixel, but of 4 pixels, half a cell."""
    found = below_cell(dataset(tmp_path, [1] + [8] * 39), 64, "detection", 8)
    assert "1 of 40 objects below one pixel and 39 others smaller than a cell" in found.message
    unused, learned = found.hint.split("; another")
    assert unused.endswith("image_size=128 would do for all of the objects")
    assert learned.endswith("image_size=128 would do for 95 % of the objects")
    assert found.severity == "warning"


@pytest.mark.parametrize(
    "sides, end",
    [
        ([4] + [20] * 19, "image_size=256 would do for all of the objects"),  # just 5 %
        ([0.05] + [20] * 30, "no usual image_size would do for all of the objects"),
    ],
)
def test_no_size_is_named_that_would_not_do(tmp_path, sides, end):
    found = below_cell(dataset(tmp_path, sides), 128, "detection", 8)
    assert found.hint.endswith(end)
    assert found.severity == "note"


@pytest.mark.parametrize("image_size", [64, 96, [32, 64]])
def test_what_is_below_one_pixel_is_what_samples_drop(tmp_path, image_size):
    sides = [0.5, 1, 1.3, 1.4, 1.9, 2, 2.1, 9]
    data = dataset(tmp_path, sides)
    sample = data[0]
    used = len(sample.resize(fit(sample.size, image_size)).target()["boxes"])
    dropped = len(sides) - used
    assert 0 < dropped < len(sides)
    assert below_cell(data, image_size).message.startswith(f"{dropped} of 8 objects below")


def test_the_start_of_a_training_and_check_tell_it(tmp_path, caplog):
    dataset(tmp_path, [3] * 12)
    split = {"images": str(tmp_path), "annotations": str(tmp_path / "a.json")}
    config = {
        "task": "detection",
        "backbone": {"type": "TinyCNN", "channels": [8, 8, 8]},
        "neck": {"type": "FPN", "channels": 8, "in_features": ["c3"], "extra_levels": "none"},
        "head": {"type": "TaskAligned", "num_convs": 0},
        "data": {"train": split, "val": None, "image_size": 64, "batch_size": 1, "workers": 0},
        "train": {"steps": 1, "plots": False, "precision": "fp32", "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    report = visionkit.check(config)
    found = [one for one in report.findings if one.kind == "below-cell"]
    assert len(found) == 1 and found[0].file == "data.train"
    assert "12 of 12 objects" in found[0].message
    with caplog.at_level(logging.WARNING, "visionkit"):
        visionkit.train(config)
    assert "data.train: 12 of 12 objects smaller than a cell" in caplog.text
    assert "image_size=352 would do" in caplog.text


@pytest.mark.parametrize(
    "head",
    [
        {"type": "TaskAligned", "num_convs": 0},
        {"type": "FCOS", "num_convs": 0},
        {"type": "FasterRCNN", "box_hidden": 8},
        {"type": "Localization"},
    ],
    ids=lambda head: head["type"],
)
def test_check_counts_objects_below_one_pixel_for_all_heads_with_boxes(tmp_path, head):
    dataset(tmp_path, [1] * 12)
    split = {"images": str(tmp_path), "annotations": str(tmp_path / "a.json")}
    config = {
        "task": "localization" if head["type"] == "Localization" else "detection",
        "backbone": {"type": "TinyCNN", "channels": [8, 8, 8]},
        "neck": {"type": "FPN", "channels": 8, "in_features": ["c2", "c3"]},
        "head": head,
        "data": {"train": split, "val": None, "image_size": 64, "batch_size": 1, "workers": 0},
        "train": {"device": "cpu"},
    }
    (found,) = [one for one in visionkit.check(config).findings if one.kind == "below-cell"]
    assert found.message.startswith("12 of 12 objects below one pixel ")
    assert "not used in training; image_size=128 would do" in found.hint
    assert ("cell" in found.hint) == (head["type"] in ("TaskAligned", "FCOS"))
