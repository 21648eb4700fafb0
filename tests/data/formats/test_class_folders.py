"""Class folders, alone and below folders of parts, and semantic maps of converted files."""

import json
import re

import pytest
from PIL import Image

from visionkit.data.datasets import Coco, ImageFolder
from visionkit.data.formats.convert import convert
from visionkit.errors import ConfigError, DataError


def image(path, size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 8, 7)).save(path)


def read(path):
    return json.loads(path.read_text())


def test_each_image_has_the_class_of_its_folder(tmp_path):
    for name in ("dog/b.jpg", "dog/deep/a.png", "cat/b.jpg", "loose.jpg"):
        image(tmp_path / "in" / name)
    done = convert(tmp_path / "in", tmp_path / "o.json", format="folders")
    assert done.losses == [
        {"kind": "images outside of class folders", "count": 1, "first": ["loose.jpg"]}
    ]
    data = read(tmp_path / "o.json")
    assert data["image_classes"] == ["cat", "dog"]
    found = [(one["file_name"], one["class_id"]) for one in data["images"]]
    assert found == [("cat/b.jpg", 0), ("dog/b.jpg", 1), ("dog/deep/a.png", 1)]
    one, other = Coco(tmp_path / "in", tmp_path / "o.json"), ImageFolder(tmp_path / "in")
    assert [a.class_id for a in one] == [b.class_id for b in other]
    assert [a.identity for a in one] == [b.identity for b in other]
    convert(tmp_path / "o.json", tmp_path / "csv", to="csv")
    assert (tmp_path / "csv" / "labels.csv").read_text().split() == [
        *("file,label", "cat/b.jpg,cat", "dog/b.jpg,dog", "dog/deep/a.png,dog")
    ]


def test_parts_have_one_list_of_classes(tmp_path):
    for name in ("train/cat/a.jpg", "train/dog/a.jpg", "valid/dog/b.jpg"):
        image(tmp_path / "in" / name)
    convert(tmp_path / "in", tmp_path / "all.json", format="folders")
    names = [one["file_name"] for one in read(tmp_path / "all.json")["images"]]
    assert names == ["train/cat/a.jpg", "train/dog/a.jpg", "valid/dog/b.jpg"]
    convert(tmp_path / "in", tmp_path / "val.json", format="folders", split="val")
    (one,) = read(tmp_path / "val.json")["images"]
    assert one["file_name"] == "valid/dog/b.jpg"
    assert read(tmp_path / "val.json")["image_classes"] == ["dog"]
    with pytest.raises(DataError, match="there is no part test"):
        convert(tmp_path / "in", tmp_path / "x.json", format="folders", split="test")


def test_bad_images_empty_folders_and_unknown_classes_are_listed(tmp_path):
    image(tmp_path / "in" / "cat" / "a.jpg")
    image(tmp_path / "in" / "fox" / "a.jpg")
    (tmp_path / "in" / "dog").mkdir()
    (tmp_path / "in" / "cat" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        names = ["cat", "dog"]
        convert(tmp_path / "in", tmp_path / "x.json", format="folders", classes=names)
    text = str(caught.value)
    assert "3 problems" in text and "dog: has no images" in text
    assert "fox/a.jpg: class 'fox' is not among the classes" in text
    assert "cat/b.jpg: the image 'cat/b.jpg' is damaged" in text
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="there are no class folders"):
        convert(tmp_path / "none", tmp_path / "x.json", format="folders")


@pytest.mark.parametrize("to", ["labelme", "masks", "voc", "yolo"])
def test_formats_without_classes_of_images_are_refused_if_there_are_no_objects(tmp_path, to):
    for name in ("cat/a.jpg", "dog/b.jpg"):
        image(tmp_path / "in" / name)
    message = "2 images have classes, and there are no objects.*use --to coco or csv or cvat"
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "in", tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not convert(tmp_path / "in", tmp_path / "out", to="csv").losses


def test_classes_of_images_next_to_objects_are_counted_as_lost(tmp_path):
    image(tmp_path / "a.jpg")
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 3, "height": 2, "class_id": [0, 1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 1, "name": "x"}], "image_classes": ["wet", "dark"],
    }  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps(data))
    done = convert(tmp_path / "gt.json", tmp_path / "out", to="yolo")
    assert {one["kind"]: one["count"] for one in done.losses} == {
        "ids of images and objects: both are numbered again": 2,
        "classes of images": 2,
    }


# --- Semantic maps that the records of images name -----------------------------------------------


def with_maps(folder):
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 3, "height": 2, "semantic": "m/a.png"}],
        "annotations": [], "categories": [{"id": 1, "name": "x"}], "semantic_classes": ["x", "y"],
    }  # fmt: skip
    image(folder / "images" / "a.jpg")
    (folder / "m").mkdir()
    Image.new("L", (3, 2), 1).save(folder / "m" / "a.png")
    (folder / "gt.json").write_text(json.dumps(data))


def test_names_of_semantic_maps_stay_valid_in_other_folders(tmp_path):
    (tmp_path / "in").mkdir()
    with_maps(tmp_path / "in")
    (tmp_path / "other").mkdir()
    for out in ("in/new.json", "above.json", "other/new.json"):
        done = convert(tmp_path / "in" / "gt.json", tmp_path / out)
        sample = Coco(tmp_path / "in" / "images", tmp_path / out)[0]
        assert sample.semantic.tolist() == [[1, 1, 1], [1, 1, 1]], out
    assert read(tmp_path / "above.json")["images"][0]["semantic"] == "in/m/a.png"
    assert done.notes == [f"copied 1 semantic map into the folder of {tmp_path / 'other/new.json'}"]
    with pytest.raises(ConfigError, match="already exists, where the semantic map"):
        convert(tmp_path / "in" / "gt.json", tmp_path / "other" / "again.json")
    (tmp_path / "in" / "m" / "a.png").unlink()
    (tmp_path / "third").mkdir()
    with pytest.raises(DataError, match=re.escape("m/a.png does not exist")):
        convert(tmp_path / "in" / "gt.json", tmp_path / "third" / "new.json")
    assert not [*(tmp_path / "third").iterdir()]
