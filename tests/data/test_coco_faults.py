"""Broken COCO files: one error that lists the faults with their places and what to do."""

import gzip
import json

import numpy as np
import pytest

from support.coco_files import SQUARE, save, small
from visionkit.data.datasets.coco import Coco
from visionkit.errors import DataError

NAN, INFINITY = float("nan"), float("inf")


def fault(tmp_path, content, **options):
    with pytest.raises(DataError) as caught:
        save(tmp_path, content, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "parts"),
    [
        ("annotations", {"bbox": [1, 2, NAN, 3]}, ["'bbox'", "nan", "finite"]),
        ("annotations", {"bbox": [1, 2, INFINITY, 3]}, ["'bbox'", "inf"]),
        ("annotations", {"bbox": [1, 2, 1e308, 3]}, ["'bbox'", "10x the image size"]),
        ("annotations", {"bbox": [1, 2, 3]}, ["'bbox'", "four numbers"]),
        ("annotations", {"bbox": ["1", 2, 3, 4]}, ["'bbox'", "four numbers"]),
        ("annotations", {"bbox": [[1, 2, 3, 4]]}, ["'bbox'", "four numbers"]),
        ("annotations", {"bbox": [10**400, 2, 3, 4]}, ["'bbox'", "four numbers"]),
        ("annotations", {"bbox": [True, 2, 3, 4]}, ["'bbox' is [True, 2, 3, 4]: must be four"]),
        ("annotations", {"area": True}, ["'area' is True: must be a number"]),
        ("annotations", {"bbox": None, "segmentation": []}, ["'bbox'", "None"]),
        ("annotations", {"bbox": ..., "segmentation": ...}, ["'bbox' is missing: must be four"]),
        ("annotations", {"image_id": 4}, ["'image_id' is 4", "not in 'images'"]),
        ("annotations", {"image_id": "70"}, ["'image_id' is '70'", "without quotes"]),
        ("annotations", {"image_id": ...}, ["'image_id' is missing"]),
        ("annotations", {"category_id": 2}, ["'category_id' 2 is not in"]),
        ("annotations", {"category_id": None}, ["'category_id' is None"]),
        ("annotations", {"area": NAN}, ["'area' is nan"]),
        ("annotations", {"area": INFINITY}, ["'area' is inf"]),
        ("annotations", {"area": "12"}, ["'area' is '12'"]),
        ("annotations", {"iscrowd": 2}, ["'iscrowd' is 2"]),
        ("annotations", {"iscrowd": "no"}, ["'iscrowd' is 'no'"]),
        ("annotations", {"segmentation": [[1, 1, NAN, 5, 3, 3]]}, ["'segmentation'", "finite"]),
        ("annotations", {"segmentation": [[1, 1, 1e9, 5, 3, 3]]}, ["'segmentation'", "10x"]),
        ("annotations", {"segmentation": [[1, 1, 5, 5]]}, ["'segmentation'", "4 numbers"]),
        ("annotations", {"segmentation": [[1, 1, 5, 5, 3]]}, ["has 5 numbers", "even count"]),
        ("annotations", {"segmentation": [[1, 1, 5, 5, 3, 3, 2]]}, ["has 7 numbers"]),
        ("annotations", {"segmentation": True}, ["must be a list of polygons"]),
        ("annotations", {"segmentation": [[[]]]}, ["has 1 numbers"]),
        ("annotations", {"segmentation": [1, 2, 3, 4, 5, 6]}, ["list of polygons"]),
        ("annotations", {"segmentation": {"a": 1}}, ["RLE size is None"]),
        ("annotations", {"segmentation": [[1, 1, "5", 5, 3, 3]]}, ["'5' where a number must be"]),
        ("annotations", {"segmentation": {"size": [20, 10], "counts": [200]}}, ["[10, 20] (h, w)"]),
        ("annotations", {"segmentation": {"size": [10, 20], "counts": [9]}}, ["add up to 9"]),
        ("images", {"file_name": ...}, ["'file_name' is missing"]),
        ("images", {"file_name": 5}, ["'file_name' is 5"]),
        ("images", {"file_name": "/etc/passwd"}, ["relative"]),
        ("images", {"file_name": "C:/a.png"}, ["relative"]),
        ("images", {"file_name": "https://x.org/a.png"}, ["relative"]),
        ("images", {"file_name": "../a.png"}, ["leave the image folder"]),
        ("images", {"file_name": "sub/../../a.png"}, ["leave the image folder"]),
        ("images", {"file_name": "no\\a.png"}, ["'no/a.png', but it is not in"]),
        ("images", {"file_name": "a\0.png"}, ["zero byte"]),
        ("images", {"semantic": "../a.png"}, ["'semantic'", "leave the image folder"]),
        ("images", {"width": 0}, ["'width' is 0", "at least 1"]),
        ("images", {"width": "20"}, ["'width' is '20'"]),
        ("images", {"height": 10.5}, ["'height' is 10.5"]),
        ("images", {"height": ...}, ["'height' is missing"]),
        ("images", {"width": 10**6, "height": 10**6}, ["limit"]),
        ("images", {"id": 3}, ["'id' 3 is also that of images[0]"]),
        ("images", {"id": True}, ["'id' is True"]),
        ("images", {"id": "3"}, ["'id' is '3'", "without quotes"]),
        ("images", {"id": 10**30}, ["'id' is 1000", "integer from -4611686018427387904 to 46"]),
        ("annotations", {"image_id": 2**62 + 1}, ["must be an integer from -4611686018427387904"]),
        ("images", {"id": None}, ["'id' is None"]),
        ("images", {"id": ...}, ["'id' is missing"]),
        ("images", {"class_id": 2}, ["'class_id' is 2", "0 names"]),
        ("images", {"identity": -1}, ["'identity' is -1"]),
        ("categories", {"id": 90}, ["'id' 90 is also that of categories[0]"]),
        ("categories", {"id": 1, "name": "dog"}, ["'name' 'dog' is also that of categories[0]"]),
        ("categories", {"name": ""}, ["'name' is ''"]),
        ("categories", {"name": "a\ud800"}, ["'name' is 'a\\ud800': must not contain half"]),
    ],
)
def test_each_fault_has_a_place_and_a_reason(tmp_path, kind, change, parts):
    content = small()
    content["images"].reverse()  # so that the changed one is the image with objects
    for key, value in change.items():
        content[kind][1].pop(key, None)
        if value is not ...:
            content[kind][1][key] = value
    save(tmp_path, small())
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Coco(str(tmp_path / "images"), str(path))
    message = str(caught.value)
    assert str(path) in message and f"{kind}[1]" in message
    for part in parts:
        assert part in message


def test_faults_are_listed_together_and_counted(tmp_path):
    content = small()
    content["categories"][0]["name"] = None
    content["images"][1]["width"] = -3
    content["annotations"] = [
        {"id": 88121, "image_id": 70, "category_id": 1, "bbox": [1, NAN, 3, 3]},
        {"image_id": 70, "category_id": 7, "bbox": [1, 1, 3, 3], "segmentation": SQUARE},
        {"image_id": 3, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": [[1, 2, 3]]},
    ]
    with pytest.raises(DataError) as caught:
        (tmp_path / "a.json").write_text(json.dumps(content))
        Coco(str(tmp_path), str(tmp_path / "a.json"))
    message = str(caught.value)
    assert "7 problems" in message  # the two images are missing, too
    for place in ("categories[0]", "images[1] (id 3)", "annotations[0] (id 88121)"):
        assert place in message
    assert "annotations[1]: 'category_id' 7 is not in" in message

    content = small()
    content["annotations"] = [{**content["annotations"][0], "bbox": [0]} for _ in range(50)]
    message = fault(tmp_path, content)
    assert "50 problems" in message and "and 30 more" in message
    assert message.count("annotations[") == 20


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty"]),
        ('{"images": [', ["cut short", "char"]),
        ("<html>404</html>", ["web page"]),
        ("version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        ("[]", ["is a list, not", "format for results"]),
        ("3", ["is a number, not"]),
        ("[" * 100_000, ["bad.json"]),
        ('{"images": [], "annotations": [], "categories": []}', ["'images' is empty"]),
        ('{"images": [{}], "annotations": []}', ["'categories' is missing"]),
        ('{"images": null, "annotations": [], "categories": []}', ["'images' is None, not a"]),
        ('{"images": {}, "annotations": [], "categories": []}', ["'images' is {}, not a list"]),
        ('{"images": [1], "annotations": [], "categories": []}', ["images[0] is 1, not an object"]),
        ('{"images": [], "annotations": [{}, [], 3], "categories": []}', ["annotations[1] is []"]),
        ('{"images": [], "annotations": [], "categories": [{}, "a"]}', ["categories[1] is 'a'"]),
    ],
)
def test_files_that_are_not_coco(tmp_path, text, parts):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Coco(str(tmp_path), str(path))
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_files_that_are_packed_or_hold_a_list_twice(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(gzip.compress(json.dumps(small()).encode()))
    with pytest.raises(DataError, match=r"a\.json is gzip-compressed: unpack it first"):
        Coco(str(tmp_path), str(path))
    path.write_text(json.dumps(small())[:-1] + ', "images": []}')
    with pytest.raises(DataError, match=r"a\.json .*the key 'images' is there twice"):
        Coco(str(tmp_path), str(path))


def test_ids_of_any_order_and_sign_and_boxes_of_any_size(tmp_path):
    content = small()
    for record, id_ in zip(content["categories"], (-7, 10**12, 0), strict=True):
        record["id"] = id_
    content["images"][1] |= {"id": -3.0, "width": 1, "height": 1}
    first = {**content["annotations"][0], "segmentation": None, "category_id": 0}
    boxes = [[5.1, 5.1, 0.3, 0.3], [0, 0, 20, 10], [0, 0, 1, 1]]
    content["annotations"] = [
        {**first, "id": i, "bbox": box, "area": box[2] * box[3], "image_id": 70 if i < 2 else -3}
        for i, box in enumerate(boxes)
    ]
    content["annotations"] += [{**first, "id": 9 + i, "area": 30} for i in range(20_000)]
    data = save(tmp_path, content)
    assert data.classes["labels"].ids == (-7, 0, 10**12) and data.image_ids == [70, -3]
    sample = data[0]
    assert len(sample.boxes) == 20_002 and set(sample.labels.tolist()) == {1}
    assert np.allclose(sample.boxes[0], [5.1, 5.1, 5.4, 5.4])
    assert sample.boxes[1].tolist() == [0, 0, 20, 10]
    assert data[1].boxes.tolist() == [[0, 0, 1, 1]] and data[1].size == (1, 1)
    assert [f.place.id for f in data.findings() if f.kind == "tiny-box"] == [0]
    assert data.counts()["dropped"] == {} and data.counts()["kept"]["duplicate-box"] == 19_999


def test_missing_annotation_file(tmp_path):
    with pytest.raises(DataError, match=r"none.json does not exist"):
        Coco(str(tmp_path), str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="is a folder"):
        Coco(str(tmp_path), str(tmp_path))


def test_missing_images_are_all_reported_at_once(tmp_path):
    data = save(tmp_path, small())
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "sub" / "b.png").unlink()
    with pytest.raises(DataError, match=r"2 problems[\s\S]*a.png[\s\S]*sub/b.png"):
        Coco(str(data.images), str(data.annotations))
    with pytest.raises(DataError, match="nowhere"):
        Coco(str(tmp_path / "nowhere"), str(data.annotations))


def test_missing_semantic_maps_are_reported(tmp_path):
    content = small()
    content["images"][0]["semantic"] = "maps/a.png"
    assert "maps/a.png" in fault(tmp_path, content)


def test_a_broken_image_names_the_file(tmp_path):
    data = save(tmp_path, small())
    (tmp_path / "images" / "a.png").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"a\.png"):
        data[0]
