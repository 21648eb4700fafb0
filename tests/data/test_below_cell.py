"""How many objects are smaller than a cell of the network, and which image size would do."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

import visionkit
from visionkit.data.checks.summary import below_cell
from visionkit.data.datasets.coco import Coco


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
        # One of 30: for all of them.
        (128, [4] + [20] * 29, "image_size=256", "all"),
    ],
)
def test_a_size_that_would_do_is_named(tmp_path, image_size, sides, size, share):
    data = dataset(tmp_path, sides)
    found = below_cell(data, image_size, "detection", 8)
    assert f"{size} would do for {share} of the objects" in found.hint
    assert found.severity == ("note" if share == "all" else "warning")
    numbers = json.loads(size.partition("=")[2])
    assert below_cell(data, numbers, "detection", 8) is None


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
