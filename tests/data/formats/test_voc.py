"""Pascal VOC, read and written."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from support.coco_files import save, small
from support.format_files import image, names, objects, records, to_coco, voc
from visionkit.data.datasets import Voc
from visionkit.data.formats.convert import convert
from visionkit.errors import DataError

FLAGS = "<pose>Left</pose><truncated>1</truncated><difficult>0</difficult><occluded>1</occluded>"


def lines_of(error):
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def devkit(root):
    """Two images of three."""
    image(root / "JPEGImages" / "a.png")
    image(root / "JPEGImages" / "b.png")
    voc(root / "Annotations" / "a.xml", objects("dog", (1, 1, 40, 30), FLAGS))
    voc(root / "Annotations" / "b.xml", objects("cat", (3, 5, 3, 9)))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "dog_val.txt").write_text("a  1\nb -1\n")
    return root


def test_corners_are_pixels_that_count_from_1(tmp_path):
    """xmin 1 is the left edge, xmax 40 the right one of 40 pixels; xmin = xmax is one pixel."""
    reader, found = records("voc", devkit(tmp_path))
    assert names(reader) == ["cat", "dog"]
    (dog,), (cat,) = found["a.png"][1], found["b.png"][1]
    assert (dog["bbox"], dog["area"], dog["category_id"]) == ([0, 0, 40, 30], 1200, 2)
    assert (cat["bbox"], cat["area"], cat["category_id"]) == ([2, 4, 1, 5], 5, 1)
    assert dog["attributes"] == {
        "difficult": False, "truncated": True, "occluded": True, "pose": "Left"
    }  # fmt: skip
    assert "attributes" not in cat and dog["source"] == "Annotations/a.xml:2"


def test_what_is_not_known_is_no_attribute(tmp_path):
    more = "<pose>Unspecified</pose><truncated>Unspecified</truncated><difficult></difficult>"
    more += "<attributes><attribute><name>age</name><value>7</value></attribute></attributes>"
    voc(tmp_path / "a.xml", objects("dog", (1.5, 2, 3.25, 4), more))
    (dog,) = records("voc", tmp_path)[1]["a.png"][1]
    assert dog["attributes"] == {"age": 7} and dog["bbox"] == [0.5, 1, 2.75, 3]


def test_layouts(tmp_path):
    devkit(tmp_path / "VOCdevkit" / "VOC2012")
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        reader, found = records("voc", root)
        assert list(found) == ["a.png", "b.png"] and reader.images.name == "JPEGImages"
    devkit(tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(DataError, match=r"has VOC2007, VOC2012; name one of these folders"):
        records("voc", tmp_path / "VOCdevkit")
    for part in ("train", "valid"):  # as Roboflow writes it
        image(tmp_path / "flat" / part / "x y.png")
        voc(tmp_path / "flat" / part / "x y.xml", objects("dog", (1, 1, 9, 9)))
    assert list(records("voc", tmp_path / "flat")[1]) == ["train/x y.png", "valid/x y.png"]
    reader, found = records("voc", tmp_path / "flat", split="val")
    assert list(found) == ["x y.png"] and reader.images == tmp_path / "flat" / "valid"


def test_splits_are_lists(tmp_path):
    root = devkit(tmp_path)
    assert list(records("voc", root, split="train")[1]) == ["a.png"]
    assert list(records("voc", root, split="dog_val")[1]) == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"list ImageSets/Main/test.txt nor.*: dog_val, train"):
        records("voc", root, split="test")
    (root / "ImageSets" / "Main" / "test.txt").write_text("a\n\nc\na.jpg\n")
    with pytest.raises(DataError) as caught:
        records("voc", root, split="test")
    assert lines_of(caught) == [
        "ImageSets/Main/test.txt:3: 'c' has no XML file in Annotations",
        "ImageSets/Main/test.txt:4: 'a.jpg' is listed twice",
    ]


@pytest.mark.parametrize(
    ("stem", "filename", "file"),
    [
        ("a", "a.jpg", "a.png"),  # another suffix
        ("a", "C:\\data\\A.PNG", "a.png"),  # a path of Windows, and capitals
        ("a", "other.png", "a.png"),  # renamed since
        ("a", "", "a.png"),
        ("a", "../../a.png", "a.png"),  # only its last part counts
        ("Ä b", "x/y/Ä b.jpeg", "Ä b.PNG"),
        ("sub/a", "a.png", "sub/a.png"),
    ],
)
def test_images_that_are_named_otherwise(tmp_path, stem, filename, file):
    image(tmp_path / "JPEGImages" / file)
    voc(tmp_path / "Annotations" / f"{stem}.xml", objects("dog", (1, 1, 9, 9)), filename=filename)
    assert list(records("voc", tmp_path)[1]) == [file]


def test_sizes(tmp_path):
    """That of the image counts where the file has none."""
    image(tmp_path / "a.png")
    for size in ((0, 0), None, (40, 30)):
        voc(tmp_path / "a.xml", objects("dog", (1, 1, 9, 9)), size=size)
        record, _ = records("voc", tmp_path)[1]["a.png"]
        assert (record["height"], record["width"]) == (30, 40)
    voc(tmp_path / "a.xml", size=(30, 40))
    with pytest.raises(DataError, match=r"a.xml: the size is 30x40, but the image 'a.png' has"):
        records("voc", tmp_path)
    (tmp_path / "a.png").unlink()
    voc(tmp_path / "a.xml", size=None)
    with pytest.raises(DataError, match=r"there is no <size> with a width and height"):
        records("voc", tmp_path)


def test_an_image_turned_by_its_exif_record_has_both_sizes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    for size in ((40, 30), (30, 40), None):
        voc(tmp_path / "a.xml", filename="a.jpg", size=size)
        record, _ = records("voc", tmp_path)[1]["a.jpg"]
        assert (record["width"], record["height"]) == (size or (30, 40))


def test_all_that_is_malformed_is_listed(tmp_path):
    image(tmp_path / "a.png")
    text = objects("dog", (5, 1, 3, 9)) + objects("", (1, 1, "x", "12,5"))
    text += "<object><name>dog</name></object>\n" + objects("cat", (1, 1, 2, 2))
    text += "<object><name>dog</name><robndbox><cx>1</cx></robndbox></object>\n"
    text += objects("dog", (1, 1, 2, 2), "<difficult>2</difficult>")
    voc(tmp_path / "a.xml", text)
    voc(tmp_path / "b.xml", objects("dog", (1, 1, 2, 2)))
    voc(tmp_path / "c.xml", head="<!DOCTYPE annotation>\n")
    (tmp_path / "d.xml").write_text("<annotations></annotations>")
    voc(tmp_path / "e.xml", filename="a.png")
    with pytest.raises(DataError) as caught:
        records("voc", tmp_path)
    assert lines_of(caught) == [
        "a.xml:2: object: xmax 3 is less than xmin 5: exchange them",
        "a.xml:3: object: it has no <name>; <xmax>: 'x' is not a number; <ymax>: '12,5' is not a "
        "number: write a point instead of the comma",
        "a.xml:4: object: it has no <bndbox>",
        "a.xml:6: object: its box is rotated (<robndbox>)",
        "a.xml:7: object: <difficult> is '2': must be 0 or 1",
        f"b.xml: the image 'b.png' (<filename>) is not in {tmp_path}",
        "c.xml:1: has a document type declaration (DTD), which could define entities: remove the "
        "declaration",
        "d.xml:1: the root element is <annotations>: must be <annotation>",
        "e.xml: the image 'a.png' is also that of a.xml",
    ]
    reader, found = records("voc", tmp_path, skip_bad=True)
    assert [one["bbox"] for one in found["a.png"][1]] == [[0, 0, 2, 2]]
    assert dict(reader.skipped) == {"value": 5, "image": 2, "file": 2}


def test_what_has_no_place_is_counted(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc(tmp_path / "a.xml", objects("person", (0, 1, 5, 5), part + "<actions/><deleted/>"))
    reader, _ = records("voc", tmp_path)
    assert reader.losses.counts == {
        "corners at 0, where pixels count from 1 (if they count from 0, boxes are off by one)": 1,
        "parts of objects (<part>)": 1,
        "lists of actions (<actions>)": 1,
        "elements that are not known": 1,
        "images without an XML file": 1,
    }
    assert reader.losses.places["images without an XML file"] == ["b.png"]


def test_classes_that_are_given(tmp_path):
    root = devkit(tmp_path)
    reader, _ = records("voc", root, classes=["dog", "ox", "cat"])
    assert names(reader) == ["dog", "ox", "cat"]
    with pytest.raises(DataError, match=r"a.xml:2: class 'dog' is not among the classes; did you"):
        records("voc", root, classes=["dogs", "cat"])


def test_masks_of_instances(tmp_path):
    """The pixels of the second object are 2; 255 is the border of objects."""
    image(tmp_path / "JPEGImages" / "a.png", (6, 4))
    boxes = objects("dog", (1, 1, 2, 2)) + objects("cat", (3, 1, 6, 4))
    voc(tmp_path / "Annotations" / "a.xml", boxes, size=(6, 4))
    pixels = np.zeros((4, 6), np.uint8)
    pixels[:2, :2], pixels[1:, 3:], pixels[0, 5] = 1, 2, 255
    path = tmp_path / "SegmentationObject" / "a.png"
    path.parent.mkdir()
    Image.fromarray(pixels).convert("P").save(path)
    dog, cat = records("voc", tmp_path)[1]["a.png"][1]
    assert (coco_mask.decode(dog["segmentation"]) == (pixels == 1)).all() and dog["area"] == 4
    assert (coco_mask.decode(cat["segmentation"]) == (pixels == 2)).all() and cat["area"] == 9
    assert cat["bbox"] == [2, 0, 4, 4]  # the file's
    for bad, words in (
        (pixels * 3, "has the value 6, but Annotations/a.xml has 2 objects"),
        (pixels[:3], "is 6x3, but its image 6x4"),
        (np.zeros((4, 6, 3), np.uint8), "has mode RGB"),
    ):
        Image.fromarray(np.where(bad == 253, 0, bad)).save(path)
        with pytest.raises(DataError, match=f"SegmentationObject/a.png: {words}"):
            records("voc", tmp_path)


def test_links_that_lead_out_are_refused(tmp_path):
    image(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    voc(tmp_path / "voc" / "a.xml", objects("dog", (1, 1, 9, 9)))
    with pytest.raises(DataError, match="leads out to"):
        records("voc", tmp_path / "voc")
    assert len(records("voc", tmp_path / "voc", links="any")[1]) == 1


def test_what_is_not_voc(tmp_path):
    (tmp_path / "a.txt").write_text("0 0 0 0 0")
    for source, words in (
        (tmp_path, "there are no XML files"),
        (tmp_path / "a.txt", "name the folder"),
        (tmp_path / "none", "is not a folder"),
    ):
        with pytest.raises(DataError, match=words):
            records("voc", source)


@pytest.mark.parametrize(
    ("box", "corners", "read"),
    [
        ([0, 0, 20, 10], (1, 1, 20, 10), [0, 0, 20, 10]),
        ([2, 3, 1, 1], (3, 4, 3, 4), [2, 3, 1, 1]),
        ([2.4, 3.5, 4.2, 2], (3, 5, 7, 6), [2, 4, 5, 2]),  # ends at 6.6 and 5.5
        ([2.6, 3, 0.2, 1], (3, 4, 3, 4), [2, 3, 1, 1]),  # less than a pixel
    ],
)
def test_corners_that_are_written(tmp_path, box, corners, read):
    data = small()
    data["annotations"] = [data["annotations"][0] | {"bbox": box, "segmentation": []}]
    save(tmp_path, data)
    convert(tmp_path / "a.json", tmp_path / "voc", to="voc", images=tmp_path / "images")
    text = (tmp_path / "voc" / "Annotations" / "a.xml").read_text()
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        assert f"<{tag}>{value}</{tag}>" in text
    assert to_coco("voc", tmp_path / "voc", tmp_path / "b.json")["annotations"][0]["bbox"] == read


def test_what_is_written(tmp_path):
    data = small()
    data["annotations"][0] |= {"attributes": {"truncated": True, "color": "red", "ages": ["a"]}}
    save(tmp_path, data)
    done = convert(tmp_path / "a.json", tmp_path / "voc", to="voc", images=tmp_path / "images")
    assert {loss["kind"]: loss["count"] for loss in done.losses} == {
        "ids of images and objects: both are numbered again": 4,
        "attributes that are not one value": 1,
        "masks, of which the box remains": 2,
        "crowd regions, which become difficult objects": 1,
        "classes without objects": 1,
    }
    files = [p for p in sorted((tmp_path / "voc").rglob("*")) if p.is_file()]
    assert [str(p.relative_to(tmp_path / "voc")) for p in files] == [
        "Annotations/a.xml", "Annotations/sub/b.xml", "ImageSets/Main/all.txt",
        "JPEGImages/a.png", "JPEGImages/sub/b.png",
    ]  # fmt: skip
    assert (tmp_path / "voc/ImageSets/Main/all.txt").read_text() == "a\nsub/b\n"
    back = to_coco("voc", tmp_path / "voc", tmp_path / "b.json")
    dog, ox = back["annotations"]
    plain = {"difficult": False, "truncated": False}
    assert dog["attributes"] == plain | {"truncated": True, "color": "red"}
    assert ox["attributes"] == plain | {"difficult": True}
    assert [each["file_name"] for each in back["images"]] == ["a.png", "sub/b.png"]


def test_names_that_cannot_be_written_are_all_listed(tmp_path):
    data = small()
    data["categories"][0]["name"], data["categories"][2]["name"] = "do\x07g", " ox"
    save(tmp_path, data)
    with pytest.raises(DataError, match=r"(?s)2 problems.*'do\\x07g' cannot.*' ox' cannot"):
        convert(tmp_path / "a.json", tmp_path / "voc", to="voc", images=tmp_path / "images")
    assert not (tmp_path / "voc").exists()


def test_images_with_one_name_and_another_suffix(tmp_path):
    data = small()
    data["images"][1]["file_name"] = "a.bmp"
    save(tmp_path, data)
    convert(tmp_path / "a.json", tmp_path / "voc", to="voc", images=tmp_path / "images")
    found = records("voc", tmp_path / "voc")[1]
    assert [(name, len(own)) for name, (_, own) in found.items()] == [("a.png", 2), ("a.bmp", 0)]


def test_images_that_are_missing_are_listed(tmp_path):
    save(tmp_path, small())
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"image a.png is not in .*images: name the folder"):
        convert(tmp_path / "a.json", tmp_path / "voc", to="voc", images=tmp_path / "images")
    assert not (tmp_path / "voc").exists()


def test_training_reads_it(tmp_path):
    data = Voc(str(devkit(tmp_path)))
    sample = data[0]
    assert data.classes["labels"].names == ("cat", "dog")
    assert sample.boxes.tolist() == [[0, 0, 40, 30]] and sample.labels.tolist() == [1]
    assert data.classes["attributes"].names == ("difficult", "occluded", "pose=Left", "truncated")
    assert len(Voc(str(tmp_path), split="train")) == 1
