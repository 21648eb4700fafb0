"""Images with several classes each: COCO files, loss, metrics, class lists, and what is refused."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from support.coco_files import save, small
from visionkit.config import load_config
from visionkit.data.build import open_sources
from visionkit.data.classes import class_mapped
from visionkit.data.coco.image_classes import class_id_record
from visionkit.data.datasets import Coco
from visionkit.data.formats.convert import convert
from visionkit.errors import DataError
from visionkit.metrics.accuracy import MultiLabelAccuracy
from visionkit.models.heads import Classification
from visionkit.types import Batch, Level

NAN = math.nan


def several(**more):
    sizes = {"width": 4, "height": 4}
    return {
        "images": [
            {"id": 5, "file_name": "a.png", **sizes, **class_id_record([2, 0])},
            {"id": 6, "file_name": "b.png", **sizes, **class_id_record([], [1])},
            {"id": 7, "file_name": "c.png", **sizes},
        ],
        "annotations": [],
        "categories": [],
        "image_classes": ["x", "y", "z"],
    } | more


def test_lists_of_classes_become_one_and_zero_for_each_class(tmp_path):
    data = save(tmp_path, several())
    assert data.keys == ("class_id",) and data.multilabel
    first, second, third = data
    assert first.class_id == [1, 0, 1] and first.boxes is None
    assert second.class_id[0] == second.class_id[2] == 0 and math.isnan(second.class_id[1])
    assert third.class_id is None
    assert data.class_counts()["class_id"].tolist() == [1, 0, 1]
    target = first.target()["class_id"]
    assert target.dtype == torch.float32 and target.tolist() == [1, 0, 1]


def test_objects_and_classes_of_images_are_both_read(tmp_path):
    data = small() | {"image_classes": ["day", "rain"]}
    data["images"][0]["class_id"] = [1]
    read = save(tmp_path, data)
    assert read.keys == ("boxes", "labels", "iscrowd", "area", "masks", "class_id")
    assert read[0].class_id == [0, 1] and len(read[0].boxes) == 2


def test_a_converted_file_is_the_same(tmp_path):
    save(tmp_path, several())
    convert(tmp_path / "a.json", tmp_path / "b.json")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written == several()
    assert Coco(tmp_path / "images", tmp_path / "b.json")[0].class_id == [1, 0, 1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_id": [3]}, "'class_id' is [3]: must be a list of places in 'image_classes', 0"),
        ({"class_id": ["x"]}, "'class_id' is ['x']: must be a list of places"),
        ({"class_id": [True]}, "'class_id' is [True]: must be a list of places"),
        ({"class_id": 1}, "'class_id' is 1, but that of images[1] is a list: write a list"),
        ({"class_id_unknown": 2}, "'class_id_unknown' is 2: must be a list of places"),
        ({"class_id_unknown": [0]}, "'class_id_unknown' is [0], and 'class_id' has some of them"),
    ],
)
def test_bad_lists_are_named(tmp_path, change, message):
    data = several()
    data["images"][0] |= change
    with pytest.raises(DataError, match=re.escape(f"images[0] (id 5): {message}")):
        save(tmp_path, data)


def test_what_is_not_known_has_no_part_in_the_loss():
    torch.manual_seed(0)
    head = Classification({"c": Level(4, 32)}, ["x", "y", "z"], multilabel=True)
    features = {"c": torch.randn(2, 4, 2, 2)}
    truth = torch.tensor([[1, NAN, 0], [NAN, 1, NAN]])
    targets = [{"class_id": row, "size": (64, 64), "image_id": i} for i, row in enumerate(truth)]
    loss = head.loss(features, Batch(torch.zeros(2, 3, 64, 64), targets))["classification"]
    logits = head.linear(features["c"].mean((2, 3)))
    known = ~truth.isnan()
    expected = F.binary_cross_entropy_with_logits(logits[known], truth[known])
    torch.testing.assert_close(loss.value, expected)
    assert loss.count == 3
    loss.value.backward()
    assert head.linear.weight.grad.isfinite().all()


def test_what_is_not_known_has_no_part_in_the_metrics():
    evaluator = MultiLabelAccuracy(["a", "b"])
    truths = [[1.0, NAN], [NAN, 1.0], [0.0, 0.0], [1.0, 0.0]]
    probs = [[0.4, 0.9], [0.9, 0.6], [0.6, 0.1], [0.7, 0.2]]
    targets = [
        {"class_id": torch.tensor(row), "image_id": i, "size": (1, 1)}
        for i, row in enumerate(truths)
    ]
    batch = Batch(torch.zeros(4, 3, 1, 1, dtype=torch.uint8), targets)
    evaluator.update([{"probs": torch.tensor(row)} for row in probs], batch)
    metrics = evaluator.compute()
    # a, without the second image: .7 yes, .6 no, .4 yes. b, without the first: .6 yes.
    assert metrics["AP/a"] == pytest.approx((1 + 2 / 3) / 2) and metrics["AP/b"] == 1
    # From 0.5 on: b of the second image and a of the fourth are right, a of the third is wrong.
    assert metrics["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["top1"] == 1  # the third image has no class
    by_class, pooled = evaluator.curves()
    assert by_class["a"].taken.tolist() == [1, 2, 3] and by_class["a"].positives == 2
    assert pooled.taken[-1] == 6 and pooled.positives == 3
    replicate = evaluator.resampled(np.ones((1, 4)))
    assert replicate["top1"].tolist() == [1]


def test_a_dataset_without_a_class_does_not_say_that_it_is_absent(tmp_path):
    data = save(tmp_path, several())
    mapped = class_mapped("data.val", data, {"class_id": ("new", "z", "y", "x")}, None)
    first, second, third = mapped
    assert first.class_id[1:] == [1, 0, 1] and math.isnan(first.class_id[0])
    assert np.isnan(second.class_id).tolist() == [True, False, True, False]
    assert third.class_id is None


@pytest.mark.parametrize("multilabel", [True, False])
def test_head_and_data_must_agree(tmp_path, multilabel):
    data = several()
    if multilabel:
        data["images"] = [one | {"class_id": 1} for one in data["images"]]
        for one in data["images"]:
            one.pop("class_id_unknown", None)
    save(tmp_path, data)
    paths = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "a.json")}
    spec = {
        "task": "classification",
        "head": {"type": "Classification", "multilabel": multilabel},
        "data": {"train": {"type": "Coco", **paths}, "val": None},
        "output": str(tmp_path / "run"),
    }
    _, errors = open_sources(load_config(spec), ("train",))
    known = "set" if not multilabel else "remove"
    assert len(errors) == 1 and f"{known} `multilabel: true`" in str(errors[0])
