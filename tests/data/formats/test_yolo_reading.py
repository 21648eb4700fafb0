import os

import numpy as np
import pytest
from PIL import Image

from support.yolo_files import write
from visionkit.data.datasets import Yolo
from visionkit.data.formats.yolo import EXTRA, KEYPOINTS, YoloReader
from visionkit.errors import DataError

BOX = "1 0.5 0.5 0.2 0.4\n"  # 100x50: center 50, 25; 20 wide and 20 high
YAML = "train: images\nnames: [cat, dog]\n"


def read(root, **options):
    """The reader, and the records of the images by file name."""
    reader = YoloReader(root, **options)
    return reader, {image["file_name"]: (image, own) for image, own in reader.records()}


def problems(root, **options):
    with pytest.raises(DataError) as error:
        read(root, **options)
    return [str(found) for found in error.value.findings] or [str(error.value)]


def one(tmp_path, text, **more):
    """The objects of one label file."""
    files = {"images/a.png": None, "labels/a.txt": text, "data.yaml": YAML, **more}
    return read(write(tmp_path, files))[1]["a.png"][1]


def test_a_box(tmp_path):
    (found,) = one(tmp_path, BOX)
    box = [40, 15, 20, 20]
    same = {"id": 1, "image_id": 1, "category_id": 2, "bbox": box, "area": 400, "iscrowd": 0}
    assert found == same


def test_a_polygon_and_its_box(tmp_path):
    (found,) = one(tmp_path, "0 0.1 0.2 0.5 0.2 0.3 0.6\n")
    assert found["segmentation"] == [[10, 10, 50, 10, 30, 30]]
    assert found["bbox"] == [10, 10, 40, 20] and found["area"] == 400


def test_an_oriented_box_is_a_polygon_of_its_corners(tmp_path):
    (found,) = one(tmp_path, "0 0.5 0.2 0.7 0.6 0.5 1 0.3 0.6")
    assert found["segmentation"] == [[50, 10, 70, 30, 50, 50, 30, 30]]
    assert found["bbox"] == [30, 10, 40, 40] and found["area"] == 800


def test_a_sixth_number_is_a_printed_loss(tmp_path):
    files = {"images/a.png": None, "labels/a.txt": BOX.strip() + " 0.87", "data.yaml": YAML}
    reader, found = read(write(tmp_path, files))
    assert found["a.png"][1][0]["bbox"] == [40, 15, 20, 20]
    assert reader.losses.counts == {EXTRA: 1}


def test_keypoints_are_no_polygon(tmp_path):
    text = "1 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 2\n"
    yaml = YAML + "kpt_shape: [2, 3]\n"
    files = {"images/a.png": None, "labels/a.txt": text, "data.yaml": yaml}
    reader, found = read(write(tmp_path, files))
    assert found["a.png"][1][0]["bbox"] == [40, 15, 20, 20]
    assert "segmentation" not in found["a.png"][1][0]
    assert reader.losses.counts == {KEYPOINTS: 1}


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf1 0.5 0.5 0.2 0.4",  # BOM
        b"1 0.5 0.5 0.2 0.4\r\n\r\n",
        b"\r\n  1\t0.5  0.5 0.2 0.4 \r",
        b"1.0 5e-1 .5 0.20 4E-1\n",
    ],
)
def test_windows_and_other_programs(tmp_path, text):
    assert [found["bbox"] for found in one(tmp_path, text)] == [[40, 15, 20, 20]]


LAYOUTS = {
    "images and labels": ("images/{}.png", "labels/{}.txt"),
    "capitals": ("Images/{}.PNG", "Labels/{}.TXT"),
    "side by side": ("{}.png", "{}.txt"),
    "side by side, deeper": ("obj_train_data/{}.png", "obj_train_data/{}.txt"),
    "one part below images": ("images/train/{}.png", "labels/train/{}.txt"),
    "images below the part": ("train/images/{}.png", "train/labels/{}.txt"),
    "a part, side by side": ("train/{}.png", "train/{}.txt"),
}


@pytest.mark.parametrize("images, labels", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_alone(tmp_path, images, labels):
    files = {images.format("a"): None, images.format("s/b"): None, labels.format("s/b"): BOX}
    reader, found = read(write(tmp_path, {**files, "classes.txt": "cat\ndog\n"}))
    suffix = images[-4:]
    assert list(found) == [f"a{suffix}", f"s/b{suffix}"] or reader.images == tmp_path
    by_name = {os.path.basename(name): own for name, (_, own) in found.items()}
    assert not by_name[f"a{suffix}"]
    assert by_name[f"b{suffix}"][0]["bbox"] == [40, 15, 20, 20]
    assert [one["name"] for one in reader.categories] == ["cat", "dog"]
    assert all((reader.images / name).is_file() for name in found)


YAMLS = {
    "relative": "train: images/train\nval: images/val",
    "in path": "path: .\ntrain: ./images/train\nval: images/val/",
    "absolute of another machine": "path: /content/nowhere\ntrain: images/train\nval: images/val",
    "as Roboflow": "train: ../images/train\nvalid: ../images/val",
    "backslashes": "train: images\\train\nval: images\\val",
    "lists": "train: [images/train]\nval: [images/val]",
    "list files": "train: train.txt\nval: val.txt",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
@pytest.mark.parametrize("names", ["[cat, dog]", "{1: dog, 0: cat}"])
def test_data_yaml(tmp_path, text, names):
    files = {
        "images/train/a.png": None,
        "labels/train/a.txt": BOX,
        "images/val/b.png": None,
        "labels/val/b.txt": "",
        "train.txt": "\ufeff./images/train/a.png\r\n",
        "val.txt": "somewhere\\images\\val\\b.png\n\n",
        "data.yaml": f"{text}\nnames: {names}\nnc: 2\n",
    }
    write(tmp_path, files)
    for source in (tmp_path, tmp_path / "data.yaml"):
        reader, found = read(source)
        assert list(found) == ["train/a.png", "val/b.png"]
        assert reader.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        assert list(read(source, split="train")[1]) == ["a.png"]
        assert list(read(source, split="valid")[1]) == ["b.png"]
    assert "no part 'test'; parts: train, val" in problems(tmp_path, split="test")[0]


def test_parts_that_share_images_have_each_once(tmp_path):
    yaml = "train: images\nval: images\nnames: [cat, dog]\n"
    files = {"images/a.png": None, "labels/a.txt": BOX, "data.yaml": yaml}
    assert list(read(write(tmp_path, files))[1]) == ["a.png"]


def test_labels_without_names_have_numbers(tmp_path):
    files = {"images/a.png": None, "labels/a.txt": "2" + BOX[1:], "notes.md": "x"}
    reader, _ = read(write(tmp_path, files))
    assert [one["name"] for one in reader.categories] == ["0", "1", "2"]
    reader, found = read(tmp_path, classes=["x", "y", "z"])
    assert [one["name"] for one in reader.categories] == ["x", "y", "z"]
    assert found["a.png"][1][0]["category_id"] == 3


def test_names_that_yaml_would_change(tmp_path):
    yaml = "train: images\nnames: [no, 007, 1.0]\n"
    reader, _ = read(write(tmp_path, {"images/a.png": None, "labels/a.txt": "", "d.yaml": yaml}))
    assert [one["name"] for one in reader.categories] == ["no", "007", "1.0"]


def test_ids_of_categories_come_back(tmp_path):
    yaml = YAML + "visionkit: {category_ids: [90, 3]}\n"
    (found,) = one(tmp_path, BOX, **{"data.yaml": yaml})
    assert found["category_id"] == 3


def test_images_elsewhere(tmp_path):
    write(tmp_path / "labels", {"val/s/a.txt": BOX, "classes.txt": "cat\ndog"})
    write(tmp_path / "photos", {"val/s/a.png": None, "val/b.png": None})
    _, found = read(tmp_path / "labels", images=tmp_path / "photos")
    assert list(found) == ["val/b.png", "val/s/a.png"] and found["val/s/a.png"][1]
    write(tmp_path / "photos", {"other.png": None})
    _, found = read(tmp_path / "labels", images=tmp_path / "photos", split="val")
    assert list(found) == ["val/b.png", "val/s/a.png"] and found["val/s/a.png"][1]


def test_an_image_that_exif_turns(tmp_path):
    write(tmp_path, {"images/b.png": None, "labels/a.txt": BOX, "data.yaml": YAML})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "images/a.jpg", exif=exif)
    (image, (found,)) = read(tmp_path)[1]["a.jpg"]
    assert (image["height"], image["width"]) == (100, 50)
    assert found["bbox"] == [20, 30, 10, 40]
    (image, _) = read(tmp_path, exif="ignore")[1]["a.jpg"]
    assert (image["height"], image["width"]) == (50, 100)
    assert Yolo(str(tmp_path))[0].boxes.tolist() == [[20, 30, 30, 70]]
    assert Yolo(str(tmp_path), exif="ignore")[0].boxes.tolist() == [[40, 15, 60, 35]]


LINES = {  # bad line -> what the message says
    "0 0.5 0.5 0.2": "has 4 numbers: a line has a class and 4 numbers",
    "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7": "has 8 numbers",
    "cat 0.5 0.5 0.2 0.4": "'cat' is not a number",
    "0,0.5,0.5,0.2,0.4": "separate numbers by spaces",
    "0 nan 0.5 0.2 0.4": "nan is not in 0..1",
    "0 inf 0.5 0.2 0.4": "inf is not in 0..1",
    "0 320 240 64 80": "320 is not in 0..1: pixels, it seems: divide x and width by",
    "0 0.5 -0.5 0.2 0.4": "-0.5 is not in 0..1",
    "0 0.5 0.5 -0.005 0.4": "negative width",
    "2 0.5 0.5 0.2 0.4": "the class is 2, but the names are 0 cat, 1 dog",
    "-1 0.5 0.5 0.2 0.4": "the class is -1",
    "1.5 0.5 0.5 0.2 0.4": "the class is 1.5, not an integer",
    "nan 0.5 0.5 0.2 0.4": "the class is nan",
    "\u00e9 0.5 0.5 0.2 0.4": "'\u00e9' is not a number",
    "99999999999999999999 0 0 0 0": "the class is 99999999999999999999",
}


def test_all_bad_lines_are_listed_and_can_be_skipped(tmp_path):
    text = BOX + "".join(f"{line}\n" for line in LINES)
    files = {"images/a.png": None, "labels/a.txt": text, "data.yaml": YAML}
    found = problems(write(tmp_path, files))
    assert len(found) == len(LINES)
    for number, (message, says) in enumerate(zip(found, LINES.values(), strict=True), 2):
        assert message.startswith(f"labels/a.txt:{number}: ") and says in message
    reader, records = read(tmp_path, skip_bad=True)
    assert len(records["a.png"][1]) == 1 and sum(reader.skipped.values()) == len(LINES)


def test_faults_of_files_are_listed_together(tmp_path):
    files = {
        "images/a.jpg": None,
        "images/a.png": None,
        "images/b.png": b"no image",
        "images/c.png": None,
        "labels/a.txt": BOX,
        "labels/b.txt": BOX,
        "labels/c.txt": BOX.encode("utf-16"),
        "labels/none.txt": BOX,
        "labels/classes.txt": "cat\ndog\n",
        "data.yaml": YAML + "nc: 3\n",
    }
    found = problems(write(tmp_path, files))
    assert len(found) == 5
    for says in (
        "images/a.png: has the same label file as 'a.jpg', 'labels/a.txt'",
        "labels/none.txt: has no image of its name",
        "data.yaml: nc is '3', but there are 2 names",
        "b.png: is damaged",
        "labels/c.txt: is UTF-16",
    ):
        assert any(says in message for message in found), says
    reader, records = read(tmp_path, skip_bad=True)
    assert list(records) == ["a.jpg", "c.png"] and sum(reader.skipped.values()) == 5


def test_text_next_to_images_is_no_label(tmp_path):
    files = {"a.png": None, "a.txt": BOX, "README.txt": "hello", "todo.txt": "buy milk\n"}
    assert len(read(write(tmp_path, files))[1]) == 1
    write(tmp_path, {"b.txt": BOX})
    assert problems(tmp_path) == ["b.txt: has no image of its name: remove it, or add its image"]


WRONG = {
    "nothing": ({"a.md": "x"}, "no images in"),
    "no labels": ({"images/a.png": None, "other/a.txt": BOX}, "none of 1 image has a label file"),
    "missing folders": ({"data.yaml": "train: x\nnames: [a]", "a.png": None}, "train: x"),
    "no yaml": ({"data.yaml": "a: [", "a.png": None}, "is not YAML"),
    "a list": ({"data.yaml": "- a", "a.png": None}, "not a mapping"),
    "names": ({"data.yaml": "names: 3", "a.png": None, "a.txt": ""}, "names is '3', not a list"),
    "latin": ({"classes.txt": b"caf\xe9", "a.png": None, "a.txt": ""}, "not UTF-8 (byte 0xe9"),
    "two": ({"a.yaml": "names: [a]", "b.yaml": "names: [b]"}, "several files may be data.yaml"),
}


@pytest.mark.parametrize("files, says", WRONG.values(), ids=WRONG)
def test_other_folders_are_refused_with_what_was_found(tmp_path, files, says):
    assert says in problems(write(tmp_path, files))[0]


def test_the_message_has_what_is_there_and_what_was_expected(tmp_path):
    write(tmp_path, {"photos/a.jpg.part": "", "x.md": ""})
    (message,) = problems(tmp_path)
    assert (
        "has: photos/, x.md" in message and "expected data.yaml, or images/ and labels/" in message
    )


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    write(tmp_path / "other", {"images/a.png": None, "labels/a.txt": BOX})
    inside = write(tmp_path / "data", {"data.yaml": "train: ../other/images\nnames: [a, b]"})
    assert "outside of its folder" in problems(inside)[0]
    assert list(read(inside / "data.yaml")[1]) == ["a.png"]  # named by the user

    write(
        inside, {"data.yaml": "train: list.txt\nnames: [a, b]", "list.txt": "../other/images/a.png"}
    )
    assert "list.txt:1: the image '../other/images/a.png' is" in problems(inside)[0]


def test_links_that_lead_out_are_refused(tmp_path):
    write(tmp_path / "other", {"a.png": None, "a.txt": BOX})
    data = write(tmp_path / "data", {"images/b.png": None, "labels/b.txt": "", "data.yaml": YAML})
    write(data, {"images/d.png": None, "labels/a.txt": BOX})
    for folder, name in (("images", "a.png"), ("labels", "d.txt"), ("images", "c.png")):
        (data / folder / name).symlink_to(tmp_path / "other" / ("a" + name[1:]))
    found = problems(data)
    assert len(found) == 3 and all("leads out" in message for message in found)
    assert list(read(data, links="any")[1]) == ["a.png", "b.png", "c.png", "d.png"]


def test_duplicate_and_blank_names(tmp_path):
    yaml = "train: images\nnames: {0: cat, 1: cat, x: dog, 3: ' '}\n"
    files = {"images/a.png": None, "labels/a.txt": "", "data.yaml": yaml}
    found = problems(write(tmp_path, files))
    assert len(found) == 3
    for says in ("'x' is not a class number", "classes 0 and 1 have", "class 3 has the name ' '"):
        assert any(says in message for message in found)


def test_a_dataset_of_boxes_and_polygons(tmp_path):
    text = BOX + "0 0.1 0.2 0.5 0.2 0.3 0.6\n"
    write(tmp_path, {"images/a.png": None, "labels/a.txt": text, "data.yaml": YAML})
    dataset = Yolo(str(tmp_path), split="train")
    assert dataset.classes["labels"].names == ("cat", "dog")
    sample = dataset[0]
    assert sample.labels.tolist() == [1, 0]
    assert sample.boxes.tolist() == [[40, 15, 60, 35], [10, 10, 50, 30]]
    assert [mask.known for mask in sample.segmentations] == [False, True]
    canvas = np.zeros((50, 100), np.uint8)
    sample.segmentations[1].paint(canvas)
    assert abs(int(canvas.sum()) - 400) < 40


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of Unix")
@pytest.mark.parametrize("name", ["data.yaml", "labels/a.txt", "images/b.png", "images/c.txt"])
def test_a_pipe_does_not_block(tmp_path, name):
    files = {"images/a.png": None, "labels/a.txt": BOX, "labels/b.txt": BOX, "data.yaml": YAML}
    write(tmp_path, files)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert problems(tmp_path)
