import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from support.coco_files import SQUARE, small
from visionkit.data.formats import yolo_writer
from visionkit.data.formats.convert import convert
from visionkit.errors import DataError


def saved(folder, data):
    """The path of a COCO file with its images in `folder/images`."""
    for record in data["images"]:
        path = folder / "images" / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (record["width"], record["height"]), 50).save(path)
    (folder / "a.json").write_text(json.dumps(data))
    return folder / "a.json"


def written(tmp_path, data, **options):
    """What `convert` reports, the folder, and the records that are read from it."""
    done = convert(saved(tmp_path, data), tmp_path / "out", to="yolo", **options)
    convert(tmp_path / "out", tmp_path / "back.json", format="yolo", images=options.get("images"))
    lost = {loss["kind"]: loss["count"] for loss in done.losses}
    return lost, tmp_path / "out", json.loads((tmp_path / "back.json").read_text())


def content(folder):
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_and_numbers(tmp_path):
    data = small()
    del data["annotations"][1]
    del data["annotations"][0]["segmentation"]
    lost, out, back = written(tmp_path, data, images=tmp_path / "images")
    assert sorted(content(out)) == [
        "data.yaml",
        "images/a.png",
        "images/sub/b.png",
        "labels/a.txt",
        "labels/sub/b.txt",
    ]
    assert (out / "labels/a.txt").read_text() == "2 0.25 0.5 0.3 0.6\n"  # of 20x10: 5, 5, 6, 6
    assert (out / "labels/sub/b.txt").read_text() == ""
    assert (out / "images/a.png").read_bytes() == (tmp_path / "images/a.png").read_bytes()
    assert 'names:\n  0: "cat"\n  1: "ox"\n  2: "dog"\n' in (out / "data.yaml").read_text()
    assert lost == {yolo_writer.IDS: 3}
    assert [one["file_name"] for one in back["images"]] == ["a.png", "sub/b.png"]
    assert back["categories"] == [
        {"id": 0, "name": "cat"},
        {"id": 1, "name": "ox"},
        {"id": 90, "name": "dog"},
    ]
    assert back["annotations"][0]["bbox"] == [2, 2, 6, 6]


def test_masks_come_back_and_crowds_are_a_loss(tmp_path):
    lost, _, back = written(tmp_path, small(), images=tmp_path / "images")
    polygon, diagonal = back["annotations"]
    assert polygon["segmentation"] == SQUARE and polygon["bbox"] == [2, 2, 6, 6]
    painted = coco_mask.decode(coco_mask.frPyObjects(diagonal["segmentation"], 10, 20))
    assert (painted[..., 0] == np.eye(10, 20)).all()
    assert lost == {yolo_writer.IDS: 4, yolo_writer.CROWD: 1}


def test_a_box_in_an_image_with_masks_becomes_a_polygon(tmp_path):
    data = small()
    data["annotations"][1] = {"id": 5, "image_id": 70, "category_id": 1, "bbox": [1, 2, 3, 4]}
    lost, out, back = written(tmp_path, data, images=tmp_path / "images")
    assert lost[yolo_writer.BOX] == 1
    assert back["annotations"][1]["segmentation"] == [[1, 2, 4, 2, 4, 6, 1, 6]]
    lines = (out / "labels/a.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [9, 9]


def test_what_is_outside_is_cut_or_dropped(tmp_path):
    data = small()
    data["annotations"] = [
        {"id": 1, "image_id": 70, "category_id": 1, "bbox": [-2, 2, 6, 20]},
        {"id": 2, "image_id": 70, "category_id": 1, "bbox": [30, 2, 6, 2]},
        {"id": 3, "image_id": 70, "category_id": 1, "bbox": [15, 2, 5.001, 2]},
    ]
    lost, _, back = written(tmp_path, data, images=tmp_path / "images")
    assert lost == {yolo_writer.IDS: 5, yolo_writer.CUT: 1, yolo_writer.OUT: 1}
    assert [one["bbox"] for one in back["annotations"]] == [[0, 2, 4, 8], [15, 2, 5, 2]]


def test_attributes_and_other_boxes_are_lost(tmp_path):
    data = small()
    data["annotations"][0] |= {"attributes": {"old": True}, "bbox": [1, 2, 7, 6], "track_id": 4}
    data["images"][0]["license"] = 3
    lost, _, _ = written(tmp_path, data, images=tmp_path / "images")
    assert lost.pop(f"{yolo_writer.ATTRIBUTES} (old)") == lost.pop(yolo_writer.OTHER_BOX) == 1
    assert lost == {
        yolo_writer.IDS: 4,
        yolo_writer.CROWD: 1,
        "annotation records with other keys (track_id)": 1,
        "image records with other keys (license)": 1,
    }


def test_two_images_of_one_stem_are_an_error(tmp_path):
    data = small()
    data["images"][1]["file_name"] = "a.jpg"
    with pytest.raises(DataError, match=r"a.jpg: another image has the label file a.txt"):
        convert(saved(tmp_path, data), tmp_path / "out", to="yolo", images=tmp_path / "images")
    assert not (tmp_path / "out").exists()


def test_labels_alone(tmp_path, caplog):
    source = saved(tmp_path, small())
    convert(source, tmp_path / "out", to="yolo")
    assert "the images are not at hand" in caplog.text
    assert not (tmp_path / "out" / "images").exists()
    convert(tmp_path / "out", tmp_path / "b.json", format="yolo", images=tmp_path / "images")
    assert len(json.loads((tmp_path / "b.json").read_text())["annotations"]) == 2


def test_twice_gives_the_same_bytes(tmp_path):
    source = saved(tmp_path, small())
    for name in ("one", "two"):
        convert(source, tmp_path / name, to="yolo", images=tmp_path / "images")
        convert(tmp_path / name, tmp_path / f"{name}.json", format="yolo")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def masks_of(data):
    """By file name, the category, box and RLE of each object, in order."""
    found = {one["id"]: [] for one in data["images"]}
    sizes = {one["id"]: (one["height"], one["width"]) for one in data["images"]}
    for one in data["annotations"]:
        mask, size = one["segmentation"], sizes[one["image_id"]]
        if isinstance(mask, list):
            mask = coco_mask.merge(coco_mask.frPyObjects(mask, *size))
        elif isinstance(mask["counts"], list):
            mask = coco_mask.frPyObjects(mask, *size)
        found[one["image_id"]].append((one["category_id"], one["bbox"], mask))
    return {one["file_name"]: found[one["id"]] for one in data["images"]}


@pytest.mark.parametrize(
    "annotations, images, objects, other_boxes",
    [
        ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017", 1121, 18),
        ("nuts/annotations/all.json", "nuts/images", 165, 165),
    ],
)
def test_round_trip_of_real_data(real_data, tmp_path, annotations, images, objects, other_boxes):
    source = real_data / annotations
    done = convert(source, tmp_path / "out", to="yolo", images=real_data / images)
    convert(tmp_path / "out", tmp_path / "back.json", format="yolo")
    before = json.loads(source.read_text())
    after = json.loads((tmp_path / "back.json").read_text())
    pairs = masks_of(before), masks_of(after)
    assert [*pairs[0]] != [] and sorted(pairs[0]) == sorted(pairs[1])
    names = [{one["id"]: one["name"] for one in data["categories"]} for data in (before, after)]
    assert names[0] == names[1]
    count, moved = 0, 0
    for name, own in pairs[0].items():
        for (category, box, mask), other in zip(own, pairs[1][name], strict=True):
            count += 1
            moved += np.abs(np.subtract(box, other[1])).max() > 0.0101
            assert category == other[0]
            assert coco_mask.iou([mask], [other[2]], [0])[0, 0] == 1
    lost = {loss["kind"]: loss["count"] for loss in done.losses}
    assert count == objects == done.objects
    assert moved == other_boxes == lost[yolo_writer.OTHER_BOX]


@pytest.mark.parametrize("to", ["cvat", "csv", "labelme", "masks", "voc", "yolo"])
def test_classes_without_names_have_their_numbers_in_each_format(tmp_path, to):
    for i in range(2):
        for folder in ("images", "labels"):
            (tmp_path / "y" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "y" / "images" / f"{i}.png")
        line = f"{i} .2 .2 .6 .2 .6 .6 .2 .6\n"
        (tmp_path / "y" / "labels" / f"{i}.txt").write_text(line)
    done = convert(tmp_path / "y", tmp_path / "out", to=to)
    assert (done.objects, done.categories) == (2, 2)
    source = tmp_path / "out" / "boxes.csv" if to == "csv" else tmp_path / "out"
    images = tmp_path / "y" / "images"
    convert(source, tmp_path / "back.json", format=to, images=images)
    back = json.loads((tmp_path / "back.json").read_text())
    assert [one["name"] for one in back["categories"]] == ["0", "1"]
    assert [one["category_id"] for one in back["annotations"]] == [
        one["id"] for one in back["categories"]
    ]
