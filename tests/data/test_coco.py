"""COCO files: what a sample and the ground truth hold, and how classes and oddities are handled."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from support.coco_files import save, small
from support.coco_scenes import truth_records
from visionkit.data.datasets.coco import Coco
from visionkit.errors import DataError
from visionkit.types import Classes


def test_a_sample(tmp_path):
    data = save(tmp_path, small())
    assert data.keys == ("boxes", "labels", "iscrowd", "area", "masks")
    assert data.classes == {"labels": Classes(("cat", "ox", "dog"), (0, 1, 90))}
    assert data.image_ids == [70, 3] and data.file_names == ["a.png", "sub/b.png"]
    assert data.image_path(1) == tmp_path / "images" / "sub" / "b.png"
    assert len(data) == len(list(data)) == 2
    sample = data[0]
    assert sample.image_id == 70 and sample.size == sample.orig_size == (10, 20)
    assert sample.boxes.tolist() == [[2, 2, 8, 8], [0, 0, 10, 10]]
    assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
    assert sample.labels.tolist() == [2, 1] and sample.iscrowd.tolist() == [False, True]
    assert sample.area.tolist() == [33.5, 10]
    target = sample.target()
    square = torch.zeros(10, 20, dtype=torch.bool)
    square[2:8, 2:8] = True
    assert torch.equal(target["masks"], torch.stack([square, torch.eye(10, 20).bool()]))
    assert data[-1].image_id == 3
    with pytest.raises(IndexError):
        data[2]


def test_images_without_objects_stay(tmp_path):
    target = save(tmp_path, small())[1].target()
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, 10, 20) and target["masks"].dtype == torch.bool


def test_a_file_without_any_objects(tmp_path):
    content = small()
    content["annotations"] = []
    data = save(tmp_path, content)
    assert data.keys == ("boxes", "labels", "iscrowd", "area")
    assert [len(sample.boxes) for sample in data] == [0, 0]
    assert len(data.ground_truth()) == 0


def test_objects_are_sorted_by_image_in_the_order_of_the_file(tmp_path):
    content = small()
    first = content["annotations"][0]
    content["annotations"] = [
        {**first, "image_id": image, "bbox": [i, 0, 1, 1], "segmentation": [[i, 0, 9, 0, 9, 9]]}
        for i, image in enumerate([3, 70, 3, 3, 70])
    ]
    data = save(tmp_path, content)
    assert data[0].boxes[:, 0].tolist() == [1, 4] and data[1].boxes[:, 0].tolist() == [0, 2, 3]
    assert [outline.points[0, 0] for outline in data[1].segmentations] == [0, 2, 3]


def test_classes_are_matched_by_name(tmp_path):
    data = save(tmp_path, small(), classes=["dog", "cat", "ox"])
    assert data.classes["labels"] == Classes(("dog", "cat", "ox"), (90, 0, 1))
    assert data[0].labels.tolist() == [0, 2]
    renumbered = small()
    for record in renumbered["annotations"]:
        record["category_id"] += 5
    for record in renumbered["categories"]:
        record["id"] += 5
    other = save(tmp_path, renumbered, classes=["dog", "cat", "ox"])
    assert other[0].labels.tolist() == [0, 2]
    assert other.classes["labels"].ids == (95, 5, 6)


def test_other_classes_are_an_error_with_both_lists(tmp_path):
    with pytest.raises(DataError) as caught:
        save(tmp_path, small(), classes=["dog", "Cat", "ox"])
    message = str(caught.value)
    assert "expected (3): 'dog', 'Cat', 'ox'" in message and "found (3)" in message
    assert "missing here: 'Cat'" in message and "not expected: 'cat'" in message
    with pytest.raises(DataError, match="more than once"):
        save(tmp_path, small(), classes=["dog", "cat", "ox", "ox"])
    with pytest.raises(DataError, match="missing here: 'bird'"):
        save(tmp_path, small(), classes=["dog", "bird"], other_classes="ignore")


def test_other_classes_can_be_left_out(tmp_path):
    data = save(tmp_path, small(), classes=["ox"], other_classes="ignore")
    assert data[0].labels.tolist() == [0] and data[0].iscrowd.tolist() == [True]
    assert data.dropped["objects of other classes"] == 1
    truth = data.ground_truth()
    assert truth.category.tolist() == [0] and truth.boxes.tolist() == [[0, 0, 10, 10]]
    assert truth.category_ids.tolist() == [1] and truth.names == ("ox",)


def test_missing_area_and_iscrowd(tmp_path):
    content = small()
    for record in content["annotations"]:
        del record["area"], record["iscrowd"]
    plain = {"image_id": 70, "category_id": 1, "bbox": [1, 1, 3, 4]}
    content["annotations"].append(plain)
    data = save(tmp_path, content)
    assert data[0].area.tolist() == [36, 10, 12]  # the masks', and the box's where there is none
    assert not data[0].iscrowd.any()
    truth = data.ground_truth()
    assert truth.areas.tolist() == [36, 10, 12]
    assert truth.iscrowd.tolist() == [False] * 3
    without = save(tmp_path, content, masks=False)
    assert without[0].area.tolist() == [36, 100, 12]


def test_unusable_boxes_are_left_out_counted_and_logged_once(tmp_path, caplog):
    content = small()
    base = content["annotations"][0]
    boxes = [[2, 2, 0, 5], [2, 2, 5, -1], [30, 2, 5, 5], [-4, -4, 4, 4], [15, 5, 10, 10]]
    content["annotations"] = [{**base, "bbox": box, "segmentation": None} for box in boxes]
    with caplog.at_level(logging.WARNING, logger="visionkit"):
        data = save(tmp_path, content)
    assert data[0].boxes.tolist() == [[15, 5, 20, 10]]
    assert data.dropped == {
        "boxes without area": 2,
        "boxes outside their image": 2,
        "objects of other classes": 0,
    }
    assert len(caplog.records) == 1 and "2 boxes without area dropped" in caplog.text
    assert "are they [x, y, width, height]" in caplog.text
    assert data.ground_truth().boxes.tolist() == boxes


def test_clean_files_log_nothing(tmp_path, caplog):
    save(tmp_path, small())
    assert not caplog.records


def test_objects_without_a_segmentation_get_an_empty_mask(tmp_path, caplog):
    content = small()
    content["annotations"].append(
        {"id": 9, "image_id": 70, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": []}
    )
    data = save(tmp_path, content)
    assert data[0].target()["masks"].sum((1, 2)).tolist() == [36, 10, 0]
    assert "1 objects without a segmentation" in caplog.text
    assert truth_records(data.ground_truth())[2]["segmentation"] is None
    cropped = data[0].crop(0, 0, 10, 3).target()  # its box ends at x = 4
    assert [1, 1, 3, 4] in cropped["boxes"].tolist()


def test_masks_can_be_demanded_or_left_unread(tmp_path):
    assert "masks" not in save(tmp_path, small(), masks=False).keys
    assert "masks" not in save(tmp_path, small(), masks=False)[0].target()
    boxes_only = small()
    for record in boxes_only["annotations"]:
        record["segmentation"] = []
    assert "masks" not in save(tmp_path, boxes_only).keys
    with pytest.raises(DataError, match="requires masks"):
        save(tmp_path, boxes_only, masks=True)


def test_truth_is_the_file(tmp_path):
    content = small()
    content["annotations"][0]["bbox"] = [2.123456789012, 2, 6, 6]
    truth = save(tmp_path, content).ground_truth()
    assert [{"id": i, **r} for i, r in zip((0, 5), truth_records(truth), strict=True)] == (
        content["annotations"]
    )
    assert truth.image_ids.tolist() == [70, 3] and truth.sizes.tolist() == [[10, 20]] * 2
    assert truth.category_ids.tolist() == [0, 1, 90] and truth.names == ("cat", "ox", "dog")


def test_whole_image_labels(tmp_path):
    content = small()
    content["image_classes"] = ["day", "night"]
    content["semantic_classes"] = ["ground", "sky", "sea"]
    content["images"][0] |= {"class_id": 1, "identity": 12, "semantic": "maps/a.png"}
    (tmp_path / "maps").mkdir()
    numbers = np.random.default_rng(0).choice([0, 1, 2, 255], (10, 20)).astype(np.uint8)
    Image.fromarray(numbers).save(tmp_path / "maps" / "a.png")
    data = save(tmp_path, content)
    assert data.keys[-3:] == ("class_id", "semantic", "identity")
    assert data.classes["class_id"] == Classes(("day", "night"), (0, 1))
    assert data.classes["semantic"].names == ("ground", "sky", "sea")
    target = data[0].target()
    assert target["class_id"] == 1 and target["identity"] == 12
    assert target["semantic"].tolist() == numbers.tolist()
    assert not {"class_id", "identity", "semantic"} & data[1].target().keys()

    Image.fromarray(numbers.T.copy()).save(tmp_path / "maps" / "a.png")
    with pytest.raises(DataError, match=r"a.png is 10x20, but its image 20x10"):
        data[0]
    Image.new("L", (20, 10), 3).save(tmp_path / "maps" / "a.png")
    with pytest.raises(DataError, match=r"value 3.*3 names"):
        data[0]


def test_size_mismatch_names_both_and_hints_at_exif(tmp_path):
    data = save(tmp_path, small())
    Image.new("L", (10, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"10x20.*20x10 \(height and width are swapped in the ann"):
        data[0]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (20, 10)).save(tmp_path / "images" / "a.png", exif=turned)
    with pytest.raises(DataError, match=r"10x20.*if the annotations describe.*exif: ignore"):
        data[0]
    Image.new("L", (21, 10)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"21x10.*20x10.*annotations are of another image"):
        data[0]


def test_exif_policy_decides_which_frame_the_boxes_are_in(tmp_path):
    save(tmp_path, small())
    image = Image.new("L", (10, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "images" / "a.png", exif=exif)
    paths = (str(tmp_path / "images"), str(tmp_path / "a.json"))
    assert Coco(*paths)[0].size == (10, 20)
    with pytest.raises(DataError, match="exif: apply"):
        Coco(*paths, exif="ignore")[0]


def test_byte_order_marks_and_utf16_are_read(tmp_path):
    data = save(tmp_path, small())
    truth = truth_records(data.ground_truth())
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(small()), encoding=encoding)
        assert truth_records(Coco(str(data.images), str(path)).ground_truth()) == truth


def test_samples_do_not_share_what_they_hold(tmp_path):
    data = save(tmp_path, small())
    target = data[0].target()
    target["boxes"] += 100
    target["area"] += 1
    again = data[0].target()
    assert again["boxes"].max() == 10 and again["area"].tolist() == [33.5, 10]


def test_reading_leaves_no_python_object_for_each_annotation(tmp_path):
    import gc

    content = small()
    content["annotations"] = content["annotations"][:1] * 5000
    data = save(tmp_path, copy.deepcopy(content))
    gc.collect()
    before = len(gc.get_objects())
    keep = [Coco(str(data.images), str(data.annotations)) for _ in range(3)]
    gc.collect()
    assert len(keep) == 3 and len(gc.get_objects()) - before < 1000
