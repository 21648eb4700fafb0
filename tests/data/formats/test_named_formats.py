"""Formats with names of classes, on real data: what is kept is counted, what is lost is printed."""

import filecmp
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from support.coco_files import small
from support.format_files import to_coco
from visionkit.cli.main import main
from visionkit.data.datasets.coco import Coco
from visionkit.data.formats.convert import convert
from visionkit.data.formats.writing import IDS, OBJECT_IDS
from visionkit.errors import DataError

SETS = {
    "coco_mini": ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017"),
    "nuts": ("nuts/annotations/all.json", "nuts/images"),
    "bccd": ("bccd/annotations/val.json", "bccd/images"),
}
MASKS, ROUNDED = "masks, of which the box remains", "boxes rounded to whole pixels"
OTHER_BOX = "boxes that become those of their masks"
LOST = {
    ("coco_mini", "voc"): {
        IDS: 1241,
        MASKS: 1121,
        ROUNDED: 1119,
        "image records with other keys (coco_url, license)": 120,
        "crowd regions, which become difficult objects": 13,
        "classes without objects": 5,
    },
    ("coco_mini", "labelme"): {
        IDS: 1241,
        OTHER_BOX: 316,
        "image records with other keys (coco_url, license)": 120,
        "crowd regions, which become shapes with a flag": 13,
    },
    ("coco_mini", "cvat"): {
        OBJECT_IDS: 1121,
        OTHER_BOX: 316,
        "image records with other keys (coco_url, license)": 120,
    },
    ("nuts", "voc"): {IDS: 183, MASKS: 165, ROUNDED: 165},
    ("nuts", "labelme"): {IDS: 183, OTHER_BOX: 165},
    ("nuts", "cvat"): {OBJECT_IDS: 165, OTHER_BOX: 165},
}


def by_image(data):
    """The annotations of each image, by its file name, with the names of their classes."""
    names = {each["id"]: each["name"] for each in data["categories"]}
    files = {each["id"]: each["file_name"] for each in data["images"]}
    found = {name: [] for name in files.values()}
    for one in data["annotations"]:
        found[files[one["image_id"]]].append(one | {"name": names[one["category_id"]]})
    return found


def corners(one):
    x, y, w, h = one["bbox"]
    return np.array([x, y, x + w, y + h])


def to_rle(one, size):
    mask = one["segmentation"]
    if isinstance(mask, dict):
        return mask if isinstance(mask["counts"], str) else coco_mask.frPyObjects(mask, *size)
    return coco_mask.merge(coco_mask.frPyObjects(mask, *size))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "format"), LOST)
def test_round_trips(tmp_path, real_data, data, format):
    source, images = (real_data / name for name in SETS[data])
    done = convert(source, tmp_path / "out", to=format, images=images)
    assert {loss["kind"]: loss["count"] for loss in done.losses} == LOST[data, format]
    before = json.loads(source.read_text())
    after = to_coco(format, tmp_path / "out", tmp_path / "b.json")
    old, new = by_image(before), by_image(after)
    assert old.keys() == new.keys()
    assert sum(map(len, new.values())) == len(before["annotations"])
    sizes = {each["file_name"]: (each["height"], each["width"]) for each in before["images"]}
    differ = 0
    for name in old:
        for one, two in zip(old[name], new[name], strict=True):
            off = np.abs(corners(one) - corners(two)).max()
            assert one["name"] == two["name"] and off <= (0.5 if format == "voc" else 2)
            differ += off > 0.01 + 1e-9
            if format == "voc":
                assert (two["attributes"]["difficult"]) == bool(one["iscrowd"])
                continue
            assert one["iscrowd"] == two["iscrowd"]
            rles = [to_rle(each, sizes[name]) for each in (one, two)]
            assert coco_mask.iou(rles[:1], rles[1:], [0])[0, 0] == 1
            if isinstance(one["segmentation"], list):
                assert one["segmentation"] == two["segmentation"]
    if format != "voc":
        assert differ <= LOST[data, format][OTHER_BOX]
    if format == "cvat":
        ids = [{each["file_name"]: each["id"] for each in d["images"]} for d in (before, after)]
        assert ids[0] == ids[1]
    folder = {"voc": "JPEGImages", "cvat": "images", "labelme": ""}[format]
    arguments = ["check", str(tmp_path / "b.json"), "--images", str(tmp_path / "out" / folder)]
    assert main(arguments) == 0


@pytest.mark.parametrize("format", ["voc", "labelme", "cvat"])
def test_twice_the_same_bytes(tmp_path, real_data, format):
    for out in ("one", "two"):
        convert(real_data / SETS["nuts"][0], tmp_path / out, to=format)
    compared = filecmp.dircmp(tmp_path / "one", tmp_path / "two")
    assert not compared.left_only and not compared.right_only and not compared.diff_files
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    same, other, errors = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)
    assert len(same) == len(files) and not other and not errors


def test_boxes_of_whole_pixels_are_the_same_as_voc(tmp_path, real_data):
    source, images = (real_data / name for name in SETS["bccd"])
    done = convert(source, tmp_path / "voc", to="voc")
    assert [loss["kind"] for loss in done.losses] == [IDS]
    after = by_image(to_coco("voc", tmp_path / "voc", tmp_path / "b.json", images=images))
    before = by_image(json.loads(source.read_text()))
    assert before.keys() == after.keys()
    for name, own in before.items():
        assert [(one["name"], one["bbox"]) for one in own] == [
            (one["name"], one["bbox"]) for one in after[name]
        ]
    assert len(Coco(str(images), str(tmp_path / "b.json"))) == len(before)


@pytest.mark.parametrize("format", ["voc", "labelme", "cvat"])
def test_bad_input_exits_with_3_and_leaves_nothing(tmp_path, capsys, format):
    (tmp_path / "in").mkdir()
    name, text = {
        "voc": ("a.xml", "<annotation><object/></annotation>"),
        "labelme": ("a.json", '{"shapes": [1], "imagePath": "a.png"}'),
        "cvat": ("annotations.xml", '<annotations><image id="1" name="a.png"/></annotations>'),
    }[format]
    (tmp_path / "in" / name).write_text(text)
    out = tmp_path / "out.json"
    arguments = ["data", "convert", str(tmp_path / "in"), str(out), "--from", format]
    assert main(arguments) == 3 and "1 problem" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


FAULTS = [
    {"bbox": None},  # no fault: that of the mask
    {"bbox": [1, 2, 3]},
    {"bbox": [0, 0, float("nan"), 1]},
    {"bbox": None, "segmentation": {"size": [10, 20], "counts": [0, 200]}},  # no fault
    {"segmentation": [[1, 2]]},
    {"segmentation": [["a"] * 6]},
    {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    {"segmentation": "x"},
    {"segmentation": {"size": [10, 20], "counts": "~~"}},
    {"segmentation": {"size": [10, 20], "counts": [5]}},
    {"segmentation": {"size": [99999, 99999], "counts": [99999 * 99999]}},
    {"segmentation": [[0, 0, 1e30, 0, 1e30, 1e30]]},
    {"category_id": 77},
    {"category_id": "a"},
    {"image_id": 1e300},
    {"attributes": [1]},  # no fault
    {"iscrowd": "x"},
]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
@pytest.mark.parametrize("format", ["voc", "labelme", "cvat"])
def test_faults_of_a_coco_file(tmp_path, format, fault):
    """Those that its reader finds are listed, and nothing is written."""
    data = small()
    data["annotations"][0] |= FAULTS[fault]
    (tmp_path / "a.json").write_text(json.dumps(data))
    if fault in (0, 3, 15):
        convert(tmp_path / "a.json", tmp_path / "out", to=format)
        box = to_coco(format, tmp_path / "out", tmp_path / "b.json")["annotations"][0]["bbox"]
        assert box == ([0, 0, 20, 10] if fault == 3 else [2, 2, 6, 6])
        return
    with pytest.raises(DataError, match="annotations"):
        convert(tmp_path / "a.json", tmp_path / "out", to=format)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
