"""CVAT for images 1.1, read and written. The fixture is made by hand after the documentation."""

import shutil

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from support.coco_files import save, small
from support.format_files import cvat, image, names, records, to_coco
from support.paths import ROOT
from visionkit.data.datasets import Cvat
from visionkit.data.formats.convert import convert
from visionkit.errors import DataError

SAMPLE = ROOT / "tests" / "fixtures" / "cvat"
BOX = '<box label="car" occluded="0" xtl="1" ytl="2" xbr="3" ybr="4.5"></box>'


def read(tmp_path, shapes, head="", **options):
    """The annotations of one image 40x30 with those shapes, and the reader."""
    image = f'<image id="5" name="a.png" width="40" height="30">{shapes}</image>'
    cvat(tmp_path / "annotations.xml", head + image)
    reader, found = records("cvat", tmp_path, **options)
    return found["a.png"][1], reader


def test_the_sample_of_a_project():
    reader, found = records("cvat", SAMPLE)
    assert names(reader) == ["car", "bicycle & rider"]
    assert list(found) == ["a.png", "sub/b.png", "c.png"]
    # Tasks of a project count images from 0 each.
    assert [record["id"] for record, _ in found.values()] == [1, 2, 3]
    record, (box, turned, joined, other) = found["a.png"]
    assert record == {"file_name": "a.png", "height": 30, "width": 40, "subset": "Train",
                      "id": 1, "class_id": [1]}  # fmt: skip
    assert box["bbox"] == [4.5, 6, 10, 10] and box["z_order"] == 2 and "segmentation" not in box
    assert box["attributes"] == {"parked": True, "model": "1", "doors": 4, "occluded": True}
    # Turned by 90 degrees around (20, 15), 20x10 is 10x20.
    assert np.allclose(turned["segmentation"], [[25, 5, 25, 25, 15, 25, 15, 5]])
    assert np.allclose(turned["bbox"], [15, 5, 10, 20])
    assert turned["attributes"] == {"parked": False, "occluded": False}
    assert joined["segmentation"] == [[2, 2, 8, 2, 8, 8], [20, 2, 26, 2, 26, 8]]
    assert joined["category_id"] == 2 and joined["bbox"] == [2, 2, 24, 6]
    assert other["category_id"] == 1 and other["source"] == "annotations.xml:88"


def test_the_masks_of_the_sample():
    reader, found = records("cvat", SAMPLE)
    mask, ellipse = found["sub/b.png"][1]
    expected = np.zeros((30, 40))
    expected[7:9, 5:9] = [[0, 1, 1, 0], [1, 1, 1, 0]]  # runs 1, 2, 1, 3, 1
    assert (coco_mask.decode(mask["segmentation"]) == expected).all() and mask["area"] == 5
    assert np.allclose(ellipse["bbox"], [15, 5, 10, 20])
    assert reader.lists["image_classes"] == ["night", "day"]
    assert found["sub/b.png"][0]["class_id"] == [0, 1] and "class_id" not in found["c.png"][0]


def test_a_subset_is_a_split():
    assert list(records("cvat", SAMPLE, split="val")[1]) == ["c.png"]
    assert list(records("cvat", SAMPLE, split="train")[1]) == ["a.png", "sub/b.png"]
    with pytest.raises(DataError, match=r"no subset 'test'; there are: Train, Validation"):
        records("cvat", SAMPLE, split="test")


def test_ids_of_a_task_are_kept(tmp_path):
    cvat(tmp_path / "x.xml", f'<image id="7" name="a.png" width="9" height="9">{BOX}</image>')
    (record, (box,)) = records("cvat", tmp_path)[1]["a.png"]
    assert record["id"] == box["image_id"] == 7 and box["bbox"] == [1, 2, 2, 2.5]


@pytest.mark.parametrize("folder", ["", "images", "images/Train"])
def test_where_images_are(tmp_path, folder):
    """Next to the file, in `images`, or there in the folder of their subset."""
    shutil.copy(SAMPLE / "annotations.xml", tmp_path)
    for name, size in (("a.png", (40, 30)), ("sub/b.png", (40, 30)), ("c.png", (20, 10))):
        image(tmp_path / folder.replace("Train", "Validation" if name == "c.png" else "Train")
              / name, size)  # fmt: skip
    reader, found = records("cvat", tmp_path)
    prefix = "Train/" if "Train" in folder else ""
    assert list(found)[:2] == [f"{prefix}a.png", f"{prefix}sub/b.png"]
    assert all((reader.images / name).is_file() for name in found)
    image(reader.images / "d.png")
    assert records("cvat", tmp_path)[0].losses.counts["images that are not in the file"] == 1


MALFORMED = {
    'points points="1,2;3,4" label="car"': "points: has no area in the image: draw",
    'polyline points="1,2;3,4" label="car"': "polyline: has no area",
    'cuboid label="car"': "cuboid: has no area",
    'blob label="car"': "blob: is not a shape of CVAT for images 1.1",
    'box xtl="1" ytl="2" xbr="3" ybr="4"': "box: has no label",
    'box label="car" xtl="1" ytl="x" xbr="3"': "box: ytl: 'x' is not a number; ybr: a number is m",
    'box label="car" xtl="5" ytl="2" xbr="3" ybr="4"': "box: xbr, ybr \\(3, 4\\) are less than",
    'box label="car" xtl="1" ytl="2" xbr="3" ybr="4" occluded="2"': "box: occluded is '2'",
    'box label="car" xtl="1" ytl="2" xbr="3" ybr="4" z_order="x"': "box: z_order: 'x' is not",
    'polygon label="car" points="1,2;3,4"': "polygon: a polygon has 2 points",
    'polygon label="car" points="1,2;3;4,5"': "polygon: a point is '3': must be x,y",
    'polygon label="car" points=""': "polygon: a point is '': must be x,y",
    'polygon label="car" points="1,2;3,4;9999,5"': "polygon: a point is not within 10x",
    'mask label="car" rle="1,2" left="0" top="0" width="2" height="2"': "mask: the run lengths add "
    "up to 3, but 2x2 pixels need 4",
    'mask label="car" rle="1,-3" left="0" top="0" width="2" height="1"': "mask: a run length is",
    'mask label="car" rle="2" left="39" top="0" width="2" height="1"': "mask: a mask of 2x1 pixels",
    'mask label="car" rle="2" left="0" top="0" width="50" height="1"': "mask: 50x1 is larger than",
    'mask label="car" rle="2" left="0" top="0" width="2.5" height="1"': "mask: width is 2.5: must",
}  # fmt: skip


@pytest.mark.parametrize("shape", MALFORMED)
def test_malformed_shapes(tmp_path, shape):
    with pytest.raises(DataError, match=f"1 problem\n  annotations.xml:3: {MALFORMED[shape]}"):
        read(tmp_path, f"{BOX}\n<{shape}/>")


def test_all_that_is_malformed_is_listed(tmp_path):
    text = f'<image id="0" name="../a.png" width="4" height="3">{BOX}</image>\n'
    text += '<image id="1" name="b.png" width="0"></image>\n'
    text += '<image id="2" name="c.png" width="4" height="3"><points label="a"/></image>\n'
    text += '<image id="2" name="d.png" width="4" height="3"></image>\n'
    text += '<image id="4" name="c.png" width="4" height="3"></image>\n'
    cvat(tmp_path / "annotations.xml", text)
    with pytest.raises(DataError) as caught:
        records("cvat", tmp_path)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "annotations.xml:2: image: the file name '../a.png' leaves its folder",
        "annotations.xml:3: image: height: a number is missing",
        "annotations.xml:4: points: has no area in the image: draw a polygon or a box",
        "annotations.xml:5: image: the id 2 is also that of annotations.xml:4",
        "annotations.xml:6: image: the name 'c.png' is also that of annotations.xml:4",
    ]
    reader, found = records("cvat", tmp_path, skip_bad=True)
    assert list(found) == ["c.png"] and dict(reader.skipped) == {"image": 4, "points": 1}


def test_attributes_that_are_not_of_their_kind(tmp_path):
    text = (SAMPLE / "annotations.xml").read_text()
    for old, new, words in (
        ('"parked">true', '"parked">maybe', "'parked' is 'maybe': must be true or false"),
        ('"doors">4', '"doors">four', "'doors' is 'four': must be a number"),
    ):
        (tmp_path / "annotations.xml").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=f"annotations.xml:75: box: attribute {words}"):
            records("cvat", tmp_path)


def test_what_is_not_cvat_for_images(tmp_path):
    cvat(tmp_path / "video.xml", '<track id="0" label="car"><box frame="0"/></track>')
    with pytest.raises(DataError, match=r'CVAT for video, with 1 track.*as "CVAT for images 1.1"'):
        records("cvat", tmp_path)
    (tmp_path / "video.xml").unlink()
    (tmp_path / "job.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"has no XML file: unpack the zip archive in it"):
        records("cvat", tmp_path)
    for source in (tmp_path / "job.zip", tmp_path / "none.zip"):
        with pytest.raises(DataError, match=r"is a zip archive: unpack it"):
            records("cvat", source)
    (tmp_path / "x.xml").write_text("<annotation></annotation>")
    with pytest.raises(DataError, match=r"x.xml:1: the root element is <annotation>"):
        records("cvat", tmp_path)
    (tmp_path / "y.xml").write_text("<!DOCTYPE a []><annotations></annotations>")
    with pytest.raises(DataError, match=r"has several XML files: x.xml, y.xml; name one"):
        records("cvat", tmp_path)
    with pytest.raises(DataError, match=r"y.xml:1: has a document type declaration"):
        records("cvat", tmp_path / "y.xml")
    (tmp_path / "y.xml").write_text("<annotations></annotations>")
    with pytest.raises(DataError, match=r"no images"):
        records("cvat", tmp_path / "y.xml")


def test_what_is_written(tmp_path):
    data = small()
    data["annotations"][0]["segmentation"] = 2 * data["annotations"][0]["segmentation"]
    data["annotations"][0]["attributes"] = {"occluded": True, "wet": False, "age": 3, "of": "x & y"}
    other = {"id": 6, "image_id": 70, "category_id": 90, "bbox": [1, 2, 3, 4.5], "z_order": 2}
    data["annotations"].append(other | {"attributes": {"age": 5, "of": ["list"]}})
    data["image_classes"], data["images"][1]["class_id"] = ["day", "night"], 1
    save(tmp_path, data)
    done = convert(tmp_path / "a.json", tmp_path / "out", to="cvat", images=tmp_path / "images")
    assert {loss["kind"]: loss["count"] for loss in done.losses} == {
        "ids of objects, which are numbered again": 3,
        "attributes that are not one value": 1,
    }
    files = [str(p.relative_to(tmp_path / "out")) for p in sorted((tmp_path / "out").rglob("*.*"))]
    assert files == ["annotations.xml", "images/a.png", "images/sub/b.png"]
    text = (tmp_path / "out" / "annotations.xml").read_text()
    assert 'points="2,2;8,2;8,8;2,8" z_order="0" group_id="1"' in text
    assert 'rle="0, 1, 10, 1, 10, 1,' in text and '<attribute name="is_crowd">true<' in text
    assert "<values>3;5;1</values>" in text and "<values>x &amp; y</values>" in text
    back = to_coco("cvat", tmp_path / "out", tmp_path / "b.json")
    assert [each["name"] for each in back["categories"]] == ["dog", "cat", "ox"]
    assert back["image_classes"] == ["night"]
    assert [(each["id"], each["file_name"], each.get("class_id")) for each in back["images"]] == [
        (70, "a.png", None), (3, "sub/b.png", 0)
    ]  # fmt: skip
    dog, ox, box = back["annotations"]
    assert dog["segmentation"] == data["annotations"][0]["segmentation"]
    assert dog["attributes"] == data["annotations"][0]["attributes"]
    assert ox["iscrowd"] == 1 and ox["segmentation"] == data["annotations"][1]["segmentation"]
    assert box["bbox"] == [1, 2, 3, 4.5] and box["z_order"] == 2
    assert box["attributes"] == {"age": 5, "occluded": False}


def test_training_reads_it(tmp_path):
    shutil.copy(SAMPLE / "annotations.xml", tmp_path)
    for name in ("a.png", "sub/b.png"):
        image(tmp_path / "images" / name)
    data = Cvat(str(tmp_path / "annotations.xml"), split="Train")
    assert data.classes["labels"].names == ("car", "bicycle & rider") and len(data) == 2
    assert data[0].labels.tolist() == [0, 0, 1, 0] and data[0].boxes[0].tolist() == [
        *(4.5, 6, 14.5, 16)
    ]
