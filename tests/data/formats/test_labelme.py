"""LabelMe, read and written."""

import base64
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from support.coco_files import save, small
from support.format_files import image, labelme, names, png, records, shape, to_coco
from visionkit.data.datasets import LabelMe
from visionkit.data.formats.convert import convert
from visionkit.errors import DataError

SQUARE = [[2, 2], [8, 2], [8, 8], [2, 8]]
BOX = [[10, 20], [4, 5]]  # corners in any order


def read(tmp_path, *shapes, **more):
    """The annotations of one image with those shapes, and the reader."""
    image(tmp_path / "a.png")
    labelme(tmp_path / "a.json", list(shapes), **more)
    reader, found = records("labelme", tmp_path)
    return found["a.png"][1], reader


def test_polygons_and_rectangles(tmp_path):
    (polygon, box), reader = read(tmp_path, shape("dog", SQUARE), shape("cat", BOX, "rectangle"))
    assert names(reader) == ["cat", "dog"]
    assert polygon["segmentation"] == [[2, 2, 8, 2, 8, 8, 2, 8]]
    assert (polygon["bbox"], polygon["area"], polygon["iscrowd"]) == ([2, 2, 6, 6], 36, 0)
    assert (box["bbox"], box["area"], "segmentation" in box) == ([4, 5, 6, 15], 90, False)
    assert box["source"] == "a.json: shape 2"


def test_a_circle_is_a_polygon_of_64_points(tmp_path):
    """Its two points are the center and one on it."""
    ((circle,), _) = read(tmp_path, shape("dog", [[20, 15], [26, 23]], "circle"))
    points = np.reshape(circle["segmentation"][0], (-1, 2))
    assert len(points) == 64 and np.allclose(np.hypot(*(points - [20, 15]).T), 10)
    assert circle["bbox"] == [10, 5, 20, 20] and abs(circle["area"] - np.pi * 100) < 4


def test_a_mask_is_a_png_of_the_pixels_between_its_points(tmp_path):
    bitmap = np.array([[1, 0, 1], [0, 1, 0]])
    found = shape("dog", [[5, 7], [7, 8]], "mask", mask=png(bitmap))
    ((mask,), _) = read(tmp_path, found)
    expected = np.zeros((30, 40))
    expected[7:9, 5:8] = bitmap
    assert (coco_mask.decode(mask["segmentation"]) == expected).all()
    assert mask["bbox"] == [5, 7, 3, 2] and mask["area"] == 3
    assert read(tmp_path, found | {"mask": png(bitmap * 255)})[0][0]["area"] == 3


def test_a_group_is_one_object(tmp_path):
    """If the labels are the same. Attributes of the first part count."""
    parts = [
        shape("dog", SQUARE, group_id=1, flags={"wet": True}),
        shape("cat", BOX, "rectangle", group_id=1),
        shape("dog", BOX, "rectangle", group_id=1, flags={"wet": False, "old": True}),
        shape("dog", SQUARE, group_id=2),
    ]
    (dog, cat, other), _ = read(tmp_path, *parts)
    assert dog["segmentation"] == [[2, 2, 8, 2, 8, 8, 2, 8], [4, 5, 10, 5, 10, 20, 4, 20]]
    assert dog["bbox"] == [2, 2, 8, 18] and dog["attributes"] == {"wet": True, "old": True}
    assert cat["bbox"] == [4, 5, 6, 15] and len(other["segmentation"]) == 1
    parts.append(shape("dog", [[0, 0], [0, 0]], "mask", mask=png([[1]]), group_id=1))
    (dog, *_), _ = read(tmp_path, *parts)
    assert coco_mask.decode(dog["segmentation"]).sum() == dog["area"] > 100
    assert coco_mask.decode(dog["segmentation"])[0, 0] == 1 and dog["bbox"] == [0, 0, 10, 20]


def test_attributes(tmp_path):
    found = shape("dog", SQUARE, flags={"wet": True, "iscrowd": True}, description="on the left")
    found |= {"difficult": False, "attributes": {"color": "red"}, "score": None}
    ((dog,), reader) = read(tmp_path, found, flags={"night": True})
    assert dog["attributes"] == {"wet": True, "difficult": False, "color": "red"}
    assert dog["iscrowd"] == 1 and dog["description"] == "on the left"
    assert reader.losses.counts == {"shapes with other keys": 1}
    assert records("labelme", tmp_path)[1]["a.png"][0]["flags"] == {"night": True}


@pytest.mark.parametrize(
    ("json_", "path", "file"),
    [
        ("a.json", "a.jpg", "a.png"),  # another suffix
        ("a.json", "C:\\data\\A.PNG", "a.png"),
        ("a.json", "other.png", "a.png"),
        ("a.json", "", "a.png"),
        ("a.json", None, "a.png"),
        ("labels/a.json", "../images/a.png", "images/a.png"),
        ("labels/a.json", "..\\images\\a.png", "images/a.png"),
        ("labels/a.json", "../../../a.png", "labels/a.png"),
        ("sub/Ä b.json", "Ä b.png", "sub/Ä b.png"),
    ],
)
def test_images_that_are_named_otherwise(tmp_path, json_, path, file):
    image(tmp_path / file)
    labelme(tmp_path / json_, [shape("dog", SQUARE)], imagePath=path)
    assert list(records("labelme", tmp_path)[1]) == [file]


def test_sizes(tmp_path):
    for size in (None, 0):
        read(tmp_path, shape("dog", SQUARE), imageWidth=size, imageHeight=size)
        record, _ = records("labelme", tmp_path)[1]["a.png"]
        assert (record["height"], record["width"]) == (30, 40)
    with pytest.raises(DataError, match=r"the size is 30x40, but the image 'a.png' has 40x30"):
        read(tmp_path, size=(30, 40))
    with pytest.raises(DataError, match=r"'imageHeight' is -1: must be an integer"):
        read(tmp_path, size=(40, -1))


def test_parts_and_single_files(tmp_path):
    for name in ("train/a", "val/b"):
        image(tmp_path / f"{name}.png")
        labelme(tmp_path / f"{name}.json", [shape("dog", SQUARE)])
    assert list(records("labelme", tmp_path)[1]) == ["train/a.png", "val/b.png"]
    assert list(records("labelme", tmp_path, split="val")[1]) == ["b.png"]
    assert list(records("labelme", tmp_path / "val" / "b.json")[1]) == ["b.png"]
    with pytest.raises(DataError, match=r"there is no folder test; there are: train, val"):
        records("labelme", tmp_path, split="test")
    with pytest.raises(DataError, match=r"there are no JSON files"):
        image(tmp_path / "empty" / "a.png")
        records("labelme", tmp_path / "empty")


def test_classes_of_labels_txt(tmp_path):
    """In its order; others follow."""
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\ndog\n")
    _, reader = read(tmp_path, shape("dog", SQUARE), shape("ant", SQUARE))
    assert names(reader) == ["zebra", "dog", "ant"]


MALFORMED = {
    "a point has no area": shape("dog", [[1, 1]], "point"),
    "a linestrip has no area: draw a polygon or a box": shape("dog", SQUARE, "linestrip"),
    "a line has no area": shape("dog", BOX, "line"),
    "a polygon has 2 points: needs at least 3": shape("dog", BOX),
    "a rectangle has 3 points: must be 2": shape("dog", SQUARE[:3], "rectangle"),
    "'shape_type' is 'cube', which is not known": shape("dog", BOX, "cube"),
    "'label' is None: must be a name": shape(None, SQUARE),
    "'group_id' is \\[\\]": shape("dog", SQUARE, group_id=[]),
    "'flags' is 3: must be an object": shape("dog", SQUARE, flags=3),
    "a point is \\[1\\]: must be two numbers": shape("dog", [[1], *SQUARE]),
    "a point is \\['1', 2\\]": shape("dog", [["1", 2], *SQUARE]),
    "a point is \\[nan, 2\\]": shape("dog", [[float("nan"), 2], *SQUARE]),
    "'points' is None": shape("dog", None),
    "a point is not within 10x the image size": shape("dog", [[1e6, 2], *SQUARE]),
    "is 7: must be an object": 7,
    "'mask' is None: must be a PNG": shape("dog", BOX, "mask"),
    "'mask' is not a PNG in base64": shape("dog", BOX, "mask", mask="*"),
    "'mask' is not a PNG in base64 \\[": shape(
        "dog", BOX, "mask", mask=base64.b64encode(b"GIF89a").decode()
    ),
    "'mask' has 2x1 \\(L\\): must have 7x16 pixels": shape(
        "dog", BOX, "mask", mask=png([[1, 1]])
    ),
    "a mask of 2x1 pixels at \\(39, 0\\) is not within the image 40x30": shape(
        "dog", [[39, 0], [40, 0]], "mask", mask=png([[1, 1]])
    ),
    "its points are not within the image": shape("dog", [[0, 0], [9e8, 1]], "mask", mask="A"),
}  # fmt: skip


@pytest.mark.parametrize("words", MALFORMED)
def test_malformed_shapes(tmp_path, words):
    with pytest.raises(DataError, match=f"1 problem\n  a.json: shape 2: {words}"):
        read(tmp_path, shape("dog", SQUARE), MALFORMED[words])


def test_all_that_is_malformed_is_listed(tmp_path):
    image(tmp_path / "a.png")
    labelme(tmp_path / "a.json", [shape("dog", BOX, "line"), shape("", SQUARE)])
    labelme(tmp_path / "b.json", [], imageData="aGk=")
    (tmp_path / "c.json").write_text('{"images": []}')
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "e.json").write_text("[" * 100_000)
    (tmp_path / "f.json").write_bytes('{"shapes": "ü"}'.encode("latin-1"))
    labelme(tmp_path / "g.json", [], filename="a.png")
    (tmp_path / "h.json").write_text("")
    (tmp_path / "i.json").write_text('{"shapes": [], "imageHeight": ' + "9" * 5000 + "}")
    with pytest.raises(DataError) as caught:
        records("labelme", tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(": 10 problems")
    for line, start in zip(
        lines[1:],
        [
            "a.json: shape 1: a line has no area: draw a polygon or a box",
            "a.json: shape 2: 'label' is '': must be a name",
            "b.json: the image 'b.png' ('imagePath') is not in",
            "c.json: is not a LabelMe file: there is no list 'shapes'",
            "d.json: is not JSON [Expecting",
            "e.json: is not JSON [maximum recursion",
            "f.json: is not UTF-8: save it as UTF-8",
            "g.json: the image 'a.png' is also that of a.json",
            "h.json: is empty",
            "i.json: is not JSON [Exceeds the limit (4300 digits)",
        ],
        strict=True,
    ):
        assert line.strip().startswith(start)
    assert "'imageData', which is not read" in lines[3]
    reader, found = records("labelme", tmp_path, skip_bad=True)
    assert list(found) == ["a.png"] and not found["a.png"][1]
    assert dict(reader.skipped) == {"line": 1, "shape": 1, "file": 8}


def test_what_is_written(tmp_path):
    data = small()
    data["annotations"][0]["segmentation"] = 2 * data["annotations"][0]["segmentation"]
    data["annotations"][0] |= {"attributes": {"wet": False, "age": 3, "of": ["a"]}, "score": 0.5}
    data["annotations"].append({"id": 6, "image_id": 70, "category_id": 90, "bbox": [1, 2, 3, 4.5]})
    save(tmp_path, data)
    done = convert(tmp_path / "a.json", tmp_path / "out", to="labelme", images=tmp_path / "images")
    assert {loss["kind"]: loss["count"] for loss in done.losses} == {
        "ids of images and objects: both are numbered again": 5,
        "annotation records with other keys (score)": 1,
        "crowd regions, which become shapes with a flag": 1,
    }
    files = [str(p.relative_to(tmp_path / "out")) for p in sorted((tmp_path / "out").rglob("*.*"))]
    assert files == ["a.json", "a.png", "labels.txt", "sub/b.json", "sub/b.png"]
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    first, second, crowd, box = content["shapes"]
    assert first["points"] == SQUARE and first["group_id"] == second["group_id"] == 1
    assert first["flags"] == {"wet": False} and crowd["flags"] == {"iscrowd": True}
    assert crowd["points"] == [[0, 0], [9, 9]] and crowd["group_id"] is None
    assert box["points"] == [[1, 2], [4, 6.5]] and box["shape_type"] == "rectangle"
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == (
        *("a.png", 10, 20),
    )
    back = to_coco("labelme", tmp_path / "out", tmp_path / "b.json")
    assert [each["name"] for each in back["categories"]] == ["dog", "cat", "ox"]
    dog, ox, other = back["annotations"]
    assert dog["segmentation"] == data["annotations"][0]["segmentation"]
    assert dog["attributes"] == {"wet": False, "age": 3, "of": ["a"]}
    assert ox["iscrowd"] == 1 and ox["segmentation"] == data["annotations"][1]["segmentation"]
    assert other["bbox"] == [1, 2, 3, 4.5] and "segmentation" not in other


def test_training_reads_it(tmp_path):
    read(tmp_path, shape("dog", SQUARE), shape("cat", SQUARE))
    data = LabelMe(str(tmp_path))
    assert data.classes["labels"].names == ("cat", "dog") and data.has_masks
    assert data[0].boxes.tolist() == [[2, 2, 8, 8]] * 2 and data[0].labels.tolist() == [1, 0]
