"""Real data sets, read as pycocotools reads them."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from support.coco_scenes import truth_records
from visionkit.data.datasets.coco import Coco

SETS = {
    "coco_train": ("coco_mini/train2017", "coco_mini/annotations/instances_train2017.json", 80),
    "coco_val": ("coco_mini/val2017", "coco_mini/annotations/instances_val2017.json", 80),
    "nuts": ("nuts/images", "nuts/annotations/all.json", 3),
    "bccd": ("bccd/images", "bccd/annotations/val.json", 3),
    "raccoon": ("raccoon/images", "raccoon/annotations/val.json", 1),
}


def load(real_data, name):
    images, annotations, num_classes = SETS[name]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(real_data / annotations))
    data = Coco(str(real_data / images), str(real_data / annotations))
    assert len(data.classes["labels"].names) == num_classes
    assert sorted(data.image_ids) == sorted(reference.getImgIds())
    return data, reference


@pytest.mark.parametrize("name", SETS)
def test_boxes_labels_and_areas(real_data, name):
    data, reference = load(real_data, name)
    classes = data.classes["labels"]
    for sample in data:
        records = reference.loadAnns(reference.getAnnIds(sample.image_id))
        assert len(records) == len(sample.boxes)
        for record, box, label, crowd, area in zip(
            records, sample.boxes, sample.labels, sample.iscrowd, sample.area, strict=True
        ):
            x, y, w, h = record["bbox"]
            assert np.abs(box - [x, y, x + w, y + h]).max() < 0.02  # some overhang by rounding
            assert classes.ids[label] == record["category_id"]
            assert reference.cats[record["category_id"]]["name"] == classes.names[label]
            assert crowd == record["iscrowd"] and area == pytest.approx(record["area"])


@pytest.mark.parametrize("name", ["coco_train", "coco_val", "nuts"])
def test_masks_equal_those_of_pycocotools(real_data, name):
    data, reference = load(real_data, name)
    crowds = 0
    for sample in data:
        records = reference.loadAnns(reference.getAnnIds(sample.image_id))
        found = iter(sample.target()["masks"].numpy())
        for record in records:
            if min(record["bbox"][2:]) < 1:  # too small for a target
                continue
            crowds += record["iscrowd"]
            assert (next(found) == reference.annToMask(record)).all()
        assert next(found, None) is None
    assert crowds or name == "nuts"


def test_truth_holds_all_records_unchanged(real_data):
    data, reference = load(real_data, "coco_val")
    truth = data.ground_truth()
    records = truth_records(truth)
    for record, expected in zip(records, reference.dataset["annotations"], strict=True):
        mask = expected["segmentation"]
        if isinstance(mask, dict) and isinstance(mask["counts"], list):
            mask = coco_mask.frPyObjects(mask, *mask["size"])
            mask["counts"] = mask["counts"].decode()
        assert {**expected, "segmentation": mask} == {"id": expected["id"], **record}
    categories = sorted(reference.dataset["categories"], key=lambda category: category["id"])
    assert truth.category_ids.tolist() == [category["id"] for category in categories]
    assert list(truth.names) == [category["name"] for category in categories]
