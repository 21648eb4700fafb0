"""What an export looks like, and what to do about one that cannot be read."""

import json
import os
import zipfile

import pytest

from support import exports
from visionkit.data.formats import recognize as module
from visionkit.data.formats.detect import open_reader
from visionkit.data.formats.recognize import recognize
from visionkit.errors import DataError

BOTH = ("train", "val")


def relative(found, root):
    """The arguments of each part, with paths below the root."""
    return {
        part: {key: os.path.relpath(v, root) if os.path.isabs(v) else v for key, v in spec.items()}
        for part, spec in found.parts.items()
    }


def coco_part(images, annotations):
    return {"type": "Coco", "images": images, "annotations": annotations}


def usual_coco(root):
    """annotations/instances_*.json, with files of other tasks next to them."""
    for part in ("train2017", "val2017"):
        names = exports.images(root / "images" / part, 2, part)
        for task in ("instances", "person_keypoints"):
            content = exports.coco(names)
            exports.text(root / "annotations" / f"{task}_{part}.json", content)
    captions = {**exports.coco(["x.jpg"]), "annotations": [{"image_id": 0, "caption": "a cat"}]}
    exports.text(root / "annotations" / "captions_train2017.json", captions)
    return root


def one_json(root):
    exports.text(root / "labels.json", exports.coco(exports.images(root / "images", 2)))
    return root


def parts_of_one_folder(root):
    """All images in one folder, a JSON file for each part."""
    names = exports.images(root / "images", 4)
    exports.text(root / "annotations" / "train.json", exports.coco(names[:3]))
    exports.text(root / "annotations" / "val.json", exports.coco(names[3:]))
    return root


def yolo_without_yaml(root):
    exports.yolo_pair(root / "images", 3)
    exports.text(root / "classes.txt", "cat\ndog\n")
    exports.text(root / "notes.json", {"categories": [], "info": {"contributor": "Label Studio"}})
    return root


def darknet(root):
    exports.yolo_pair(root, 3, labels=root)
    return root


def split_masks(root):
    for part in BOTH:
        exports.label_maps(root / "images" / part, root / "labels" / part)
    return root


def split_csv(root):
    """Boxes, other capitals, and a column of the part."""
    rows = ["File Name;Class;xmin;ymin;xmax;ymax;Split"]
    for i, name in enumerate(exports.images(root, 3)):
        rows.append(f"{name};cat;4;4;16;14;{'TRAIN' if i else 'validation'}")
    exports.text(root / "all.csv", "\n".join(rows) + "\n")
    return root


def yolo_in_each_part(root):
    """Each part is a dataset of its own, whose YAML file names its images twice."""
    for part in BOTH:
        exports.yolo_pair(root / part / "images", 2)
        text = "train: images\nval: images\nnames: [cat, dog]\n"
        exports.text(root / part / "data.yaml", text)
    return root


def one_class_in_a_part(root):
    for name in ("train/cat", "train/dog", "val/cat"):
        exports.images(root / name, 2)
    return root


def unlabeled(root):
    exports.images(root, 2)
    return root


YOLO = {"type": "Yolo", "root": "."}
VOC = {"type": "Voc", "root": "VOCdevkit/VOC2012"}
CASES = {
    "roboflow coco": (
        exports.roboflow_coco,
        "a COCO dataset (in each part _annotations.coco.json; parts train, val and test)",
        {
            part: coco_part(folder, f"{folder}/_annotations.coco.json")
            for part, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
        },
    ),
    "usual coco": (
        usual_coco,
        "a COCO dataset (annotations/instances_train2017.json, "
        "annotations/instances_val2017.json; parts train and val)",
        {
            part: coco_part(f"images/{part}2017", f"annotations/instances_{part}2017.json")
            for part in BOTH
        },
    ),
    "one json": (
        one_json,
        "a COCO dataset (labels.json)",
        {"all": coco_part("images", "labels.json")},
    ),
    "parts of one folder": (
        parts_of_one_folder,
        "a COCO dataset (annotations/train.json, annotations/val.json; parts train and val)",
        {part: coco_part("images", f"annotations/{part}.json") for part in BOTH},
    ),
    "label studio": (
        exports.label_studio,
        "a COCO dataset (result.json)",
        {"all": coco_part("images", "result.json")},
    ),
    "roboflow yolo": (
        exports.roboflow_yolo,
        "a YOLO dataset (data.yaml with 2 classes, without the folder of test; parts train and "
        "val)",
        {part: {**YOLO, "split": part} for part in BOTH},
    ),
    "ultralytics": (
        exports.ultralytics,
        "a YOLO dataset (pets.yaml with 2 classes; parts train and val)",
        {part: {"type": "Yolo", "root": "pets.yaml", "split": part} for part in BOTH},
    ),
    "yolo without yaml": (
        yolo_without_yaml,
        "a YOLO dataset (labels/*.txt next to images/)",
        {"all": YOLO},
    ),
    "yolo in each part": (
        yolo_in_each_part,
        "a YOLO dataset (in each part data.yaml with 2 classes; parts train and val)",
        {part: {"type": "Yolo", "root": part, "split": "train"} for part in BOTH},
    ),
    "one class in a part": (
        one_class_in_a_part,
        "class folders (in each part 2: cat, dog; parts train and val)",
        {part: {"type": "ImageFolder", "root": part} for part in BOTH},
    ),
    "darknet": (darknet, "a YOLO dataset (*.txt next to each image)", {"all": YOLO}),
    "voc": (
        exports.voc_devkit,
        "a Pascal VOC dataset (Annotations/*.xml; parts train and val)",
        {part: {**VOC, "split": part} for part in BOTH},
    ),
    "voc flat": (
        exports.voc_flat,
        "a Pascal VOC dataset (*.xml)",
        {"all": {"type": "Voc", "root": "."}},
    ),
    "roboflow voc": (
        exports.roboflow_voc,
        "a Pascal VOC dataset (in each part *.xml; parts train and val)",
        {"train": {"type": "Voc", "root": "train"}, "val": {"type": "Voc", "root": "valid"}},
    ),
    "cvat": (
        exports.cvat,
        "a CVAT export (annotations.xml)",
        {"all": {"type": "Cvat", "root": "."}},
    ),
    "labelme": (
        exports.labelme,
        "a LabelMe folder (*.json, one for each image)",
        {"all": {"type": "LabelMe", "root": "."}},
    ),
    "class folders": (
        exports.class_folders,
        "class folders (2: cat, dog)",
        {"all": {"type": "ImageFolder", "root": "."}},
    ),
    "split class folders": (
        exports.split_class_folders,
        "class folders (in each part 2: cat, dog; parts train and val)",
        {part: {"type": "ImageFolder", "root": part} for part in BOTH},
    ),
    "masks": (
        exports.masks,
        "images with semantic maps (masks/*.png next to images/)",
        {"all": {"type": "LabelMaps", "images": "images", "labels": "masks"}},
    ),
    "split masks": (
        split_masks,
        "images with semantic maps (labels/*.png next to images/; parts train and val)",
        {
            part: {"type": "LabelMaps", "images": f"images/{part}", "labels": f"labels/{part}"}
            for part in BOTH
        },
    ),
    "csv": (
        exports.csv,
        "images with a CSV file (labels.csv with the columns file, label)",
        {"all": {"type": "Csv", "root": "labels.csv"}},
    ),
    "csv with parts": (
        split_csv,
        "images with a CSV file (all.csv with the columns filename, class, xmin, ymin and 3 more; "
        "parts train and val)",
        {
            "train": {"type": "Csv", "root": "all.csv", "split": "TRAIN"},
            "val": {"type": "Csv", "root": "all.csv", "split": "validation"},
        },
    ),
    "images": (
        unlabeled,
        "images without labels (*.jpg)",
        {"all": {"type": "Images", "root": "."}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_exports_are_recognized(tmp_path, name):
    make, words, parts = CASES[name]
    root = make(tmp_path / "export")
    found = recognize(root)
    assert found.words == words
    assert relative(found, root) == parts
    exports.left_by_systems(root)
    assert recognize(root) == found
    (tmp_path / "outer").mkdir()
    inner = root.rename(tmp_path / "outer" / "export")  # as archives unpack
    assert relative(recognize(tmp_path / "outer"), inner) == parts


def test_several_formats_are_an_error_that_names_each(tmp_path):
    exports.yolo_pair(tmp_path / "images", 2)
    exports.text(tmp_path / "all.json", exports.coco(["p0.jpg", "p1.jpg"]))
    with pytest.raises(DataError, match="several formats fit") as caught:
        recognize(tmp_path)
    first, *choices = str(caught.value).split("\n")
    assert "a COCO dataset (all.json)" in first and "a YOLO dataset (labels/*.txt" in first
    images = f"images: {tmp_path}/images, annotations: {tmp_path}/all.json"
    assert choices == [
        f"  for coco write {{type: Coco, {images}}} in a config, --from coco in a command",
        f"  for yolo write {{type: Yolo, root: {tmp_path}}} in a config, --from yolo in a command",
    ]


def test_several_coco_files_of_one_part_are_an_error(tmp_path):
    names = exports.images(tmp_path / "images", 2)
    for stem in ("first", "second"):
        exports.text(tmp_path / f"{stem}.json", exports.coco(names))
    with pytest.raises(DataError, match=r"one part: first\.json, second\.json; name one"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", {"shapes": [], "imagePath": "a.png"}, "LabelMe file of one image: name the fol"),
        ("a.json", {"_via_img_metadata": {}}, "VGG Image Annotator: export it there with"),
        ("a.json", [{"image": "a.png", "annotations": []}], "CreateML: export COCO or YOLO"),
        ("a.json", [{"id": 1, "data": {}, "annotations": []}], "Label Studio: export it there"),
        (
            "a.json",
            [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}],
            "COCO results: they are predictions",
        ),
        ("a.xml", exports.VOC, "Pascal VOC file of one image: name the folder"),
        ("a.txt", "0 0.5 0.5 0.1 0.1\n", "YOLO file of one image: name the folder"),
        ("a.zip", "PK", "is an archive: unpack it"),
        ("a.tar.gz", "x", "is an archive: unpack it"),
        ("a.doc", "x", "is not recognized"),
    ],
)
def test_a_file_is_answered_with_what_it_is_and_what_to_do(tmp_path, name, content, says):
    path = exports.text(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        recognize(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_one_file_that_names_a_dataset(tmp_path):
    yaml = exports.ultralytics(tmp_path / "u") / "pets.yaml"
    assert recognize(yaml).format == "yolo" and list(recognize(yaml).parts) == ["train", "val"]
    xml = exports.cvat(tmp_path / "c") / "annotations.xml"
    assert recognize(xml).format == "cvat"
    file = one_json(tmp_path / "j") / "labels.json"
    (spec,) = recognize(file).parts.values()
    assert spec["images"] == str(tmp_path / "j" / "images")
    broken = exports.text(tmp_path / "broken.json", "{")
    assert recognize(broken).format == "coco"  # whose reader says what is wrong


def test_what_is_not_recognized_is_described(tmp_path):
    exports.text(tmp_path / "notes" / "a.doc", "x")
    exports.text(tmp_path / "more" / "a.doc", "x")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as file:
        file.writestr("a", "x")
    with pytest.raises(DataError) as caught:
        recognize(tmp_path)
    says = str(caught.value)
    assert "pets.zip is an archive: unpack it" in says and "the folders more, notes" in says
    with pytest.raises(DataError, match="does not exist"):
        recognize(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has the folders none and the files none"):
        recognize(tmp_path / "empty")


def test_a_large_coco_file_is_known_by_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("visionkit.data.formats.kinds.SMALL", 0)
    monkeypatch.setattr("visionkit.data.formats.kinds.PEEKED", 300)
    names = exports.images(tmp_path / "images", 2)
    content = {**exports.coco(names), "images": [], "annotations": []}
    long = "[" + ",".join(["{}"] * 2000) + "]"
    text = json.dumps(content).replace('"images": []', f'"images": {long}')
    exports.text(tmp_path / "a.json", text)
    assert recognize(tmp_path).format == "coco"
    exports.text(tmp_path / "a.json", text.replace('"annotations"', '"segments_info"'))
    assert recognize(tmp_path / "a.json").words == "a COCO panoptic file"


def test_few_entries_of_a_large_folder_are_looked_at(tmp_path, monkeypatch):
    names = [f"{i:06}.jpg" for i in range(500)]
    for name in names:
        (tmp_path / name).touch()
    exports.text(tmp_path / "_annotations.coco.json", exports.coco(names[:2]))
    looked_at = []
    monkeypatch.setattr(module, "ENTRIES", 50)
    monkeypatch.setattr(module, "is_visible", lambda name: looked_at.append(name) or True)
    assert recognize(tmp_path).parts["all"]["images"] == str(tmp_path)
    assert len(looked_at) < 500


def test_a_folder_of_coco_files_is_read_by_part(tmp_path):
    root = exports.roboflow_coco(tmp_path / "pets")
    reader = open_reader("coco", root, split="val")
    assert reader.source == root / "valid" / "_annotations.coco.json"
    assert reader.images == root / "valid"
    assert [image["file_name"] for image, _ in reader.records()] == sorted(
        path.name for path in (root / "valid").glob("*.jpg")
    )
    with pytest.raises(DataError, match="has the parts train, val, test: name one with --split"):
        open_reader("coco", root)
    with pytest.raises(DataError, match="has the parts all"):
        open_reader("coco", one_json(tmp_path / "one"), split="test")
    with pytest.raises(DataError, match=r"it is a YOLO dataset .*: use --from yolo"):
        open_reader("coco", exports.roboflow_yolo(tmp_path / "y"))
    with pytest.raises(DataError, match="images without labels: there are no annotations"):
        open_reader("images", tmp_path)


def test_a_device_is_neither_a_file_nor_a_folder():
    with pytest.raises(DataError, match="/dev/null is neither a file nor a folder"):
        recognize("/dev/null")


def test_names_are_escaped(tmp_path):
    root = exports.class_folders(tmp_path / "a")
    (root / "cat").rename(root / "c\nat")
    assert "\n" not in recognize(root).words


@pytest.mark.parametrize("named", ["", "data.yaml"])
def test_parts_with_the_same_images_are_one(tmp_path, named):
    """YOLO needs a `val`, so data of one part name it twice."""
    exports.yolo_pair(tmp_path / "images", 3)
    exports.text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    found = recognize(tmp_path / named)
    assert [*found.parts] == ["train"] and "train and val" not in found.words
