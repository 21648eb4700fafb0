"""Maps of classes and of instances: the layouts of well-known datasets, what is refused, and round
trips."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from visionkit.data.datasets import Coco, LabelMaps
from visionkit.data.formats.color_tables import BUILT_IN, read_classes, table_of, voc_color
from visionkit.data.formats.convert import convert
from visionkit.data.formats.masks import MasksReader
from visionkit.data.formats.masks_out import COVERED, HIDDEN
from visionkit.errors import ConfigError, DataError

MAP = np.array([[0, 1, 1], [2, 2, 255]], np.uint8)


def image(path, size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 8, 7)).save(path)


def save(path, values, mode=None, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    found = Image.fromarray(np.asarray(values))
    if palette:
        found.putpalette([channel for n in range(256) for channel in voc_color(n)])
    (found if mode is None else found.convert(mode)).save(path)


def objects(reader):
    """For each image: its name, and class, pixels (row, column), crowd of each object."""
    found = []
    records = [*reader.records()]
    names = {one["id"]: one["name"] for one in reader.categories}
    for record, own in records:
        shown = []
        for one in own:
            mask = coco_mask.decode(one["segmentation"])
            pixels = [*zip(*(axis.tolist() for axis in mask.nonzero()), strict=True)]
            assert one["area"] == mask.sum() and one["bbox"][2] > 0
            shown.append((names[one["category_id"]], pixels, one["iscrowd"]))
        found.append((record["file_name"], shown))
    return found


WANTED = [("a.jpg", [("cat", [(0, 1), (0, 2)], 0), ("dog", [(1, 0), (1, 1)], 0)])]


def plain(folder, values=MAP, **more):
    image(folder / "images" / "a.jpg")
    save(folder / "labels" / "a.png", values, **more)
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    return folder


# --- Semantic maps -------------------------------------------------------------------------------


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_of_8_and_16_bits_and_of_a_palette(tmp_path, palette, dtype):
    if palette and dtype is np.uint16:
        pytest.skip("a palette has 8 bits")
    reader = MasksReader(plain(tmp_path, MAP.astype(dtype), palette=palette))
    assert objects(reader) == WANTED
    assert reader.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    kinds = {kind.partition(" (")[0]: count for kind, count in reader.losses.counts.items()}
    assert kinds == {
        "regions of a class, of which each becomes one object": 2,
        "maps with pixels that are not labeled, which become background": 1,
    }


COLORS = {"background": [0, 0, 0], "cat": [1, 2, 3], "dog": [4, 5, 6], "ignore": [255, 255, 255]}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors(tmp_path, mode):
    table = np.array([*COLORS.values()], np.uint8)
    places = np.where(MAP == 255, 3, MAP).astype(np.uint8)
    plain(tmp_path, table[places], mode=None if mode == "P" else mode)
    if mode == "P":
        found = Image.fromarray(places)
        found.putpalette(table.ravel().tolist())
        found.save(tmp_path / "labels" / "a.png")
    assert objects(MasksReader(tmp_path, classes=COLORS)) == WANTED


@pytest.mark.parametrize(
    "name, text",
    [
        ("classes.yaml", "background: 0\ncat: 10\ndog: 20\nignore: 255\n"),
        (
            "classes.json",
            '{"names": {"0": "background", "10": "cat", "20": "dog", "255": "ignore"}}',
        ),
        ("classes.csv", "name;number\nbackground;0\ncat;10\ndog;20\nignore;255\n"),
    ],
)
def test_files_of_numbers(tmp_path, name, text):
    plain(tmp_path, np.where(MAP < 255, MAP * np.uint8(10), MAP))
    (tmp_path / "classes.txt").unlink()
    (tmp_path / name).write_text(text)
    reader = MasksReader(tmp_path)
    assert objects(reader) == WANTED and [one["id"] for one in reader.categories] == [10, 20]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.yaml", "cat: [1, 2, 3]\nno: [4, 5, 6]\n"),
        ("a.json", '{"cat": [1, 2, 3], "no": [4, 5, 6]}'),
        ("a.csv", "name,r,g,b\ncat,1,2,3\nno,4,5,6\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\ncat:1,2,3::\nno:4,5,6::\n"),
    ],
)
def test_files_of_colors(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == {"cat": [1, 2, 3], "no": [4, 5, 6]}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "cat: [1, 2]", "'cat' is [1, 2]: must be a number, or [r, g, b]"),
        ("a.yaml", "cat: 1\ndog: [1, 2, 256]", "must be a number, or [r, g, b] from 0 to 255"),
        ("a.yaml", "a: &x [1]\nb: *x", "aliases are not supported"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.json", "3", "expected names"),
        ("a.csv", "cat,1\ncat,2\n", "row 2 is 'cat,2'"),
        ("a.txt", "cat\ncat\n", "a class is there twice"),
        ("a.txt", "cat: 1\ncat: 2\n", "the class 'cat' is there twice"),
        ("a.txt", "cat: 1\ndog\n", "the line 'dog' has no number"),
        ("a.txt", "cat: [1, 2]", "'cat' is [1, 2]: must be a number, or [r, g, b]"),
        ("a.txt", "", "expected names"),
    ],
)
def test_bad_files_of_classes(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_classes(tmp_path / name)


def test_two_classes_of_one_value_are_refused():
    with pytest.raises(DataError, match="'b' has the number 1, as another class has"):
        table_of({"a": 1, "b": 1})
    with pytest.raises(DataError, match=re.escape("'ignore' has the color [1, 2, 3]")):
        table_of({"a": [1, 2, 3], "ignore": [1, 2, 3]})


def test_all_that_is_wrong_is_listed(tmp_path):
    plain(tmp_path)
    for name in ("b", "c", "d", "e"):
        image(tmp_path / "images" / f"{name}.jpg", (3, 2) if name != "c" else (3, 3))
    for name, values in {"c": MAP, "d": MAP + np.uint8(6), "f": MAP}.items():
        save(tmp_path / "labels" / f"{name}.png", values)
    save(tmp_path / "labels" / "e.png", np.zeros((2, 3, 3), np.uint8))
    out = tmp_path.with_name(f"{tmp_path.name}.json")
    with pytest.raises(DataError) as caught:
        convert(tmp_path, out, format="masks")
    text = str(caught.value)
    assert "5 problems" in text or "6 problems" in text
    assert "b.jpg: its map b.png is not in" in text
    assert "f.png: its image is not in" in text
    assert "labels/c.png: the size is 3x2, but the image 'c.jpg' has 3x3" in text
    assert "labels/d.png: has 6 pixels with values of no class: 5, 6, 7, 8" in text
    assert "labels/e.png: it has colors, but the classes have none" in text
    assert not out.exists()
    done = convert(tmp_path, out, format="masks", skip_bad=True)
    assert (done.images, done.dropped) == (1, {"missing-file": 2, "class-map": 3})


def test_maps_of_0_and_255_have_a_hint(tmp_path):
    plain(tmp_path, np.where(MAP == 0, 0, 255).astype(np.uint8))
    with pytest.raises(DataError, match="`background: 0` and `object: 255`"):
        [*MasksReader(tmp_path).records()]
    found = objects(MasksReader(tmp_path, classes={"background": 0, "object": 255}))
    assert [name for name, *_ in found[0][1]] == ["object"]
    save(tmp_path / "labels" / "a.png", MAP > 0)  # of one bit
    assert objects(MasksReader(tmp_path, classes=["background", "object"])) == found


@pytest.mark.parametrize(
    "text",
    ["background: 0\nobject: 255\n", "background: 0, object: 255", "background:0\nobject:255"],
)
def test_maps_of_0_and_255_without_classes_have_the_lines_to_write(tmp_path, text):
    plain(tmp_path, np.where(MAP == 0, 0, 255).astype(np.uint8))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError) as caught:
        convert(tmp_path, tmp_path.with_name(f"{tmp_path.name}.json"))
    file = tmp_path / "classes.txt"
    lines = f"write two lines to {file}: `background: 0` and `object: 255`"
    assert "0 and 255 alone" in str(caught.value) and lines in str(caught.value)
    file.write_text(text)
    pixels = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert objects(MasksReader(tmp_path)) == [("a.jpg", [("object", pixels, 0)])]


def test_other_maps_without_classes_have_the_general_hint(tmp_path):
    plain(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match="names in the order of the numbers"):
        MasksReader(tmp_path)


def test_other_folders_names_and_parts(tmp_path):
    for part in ("train", "val"):
        image(tmp_path / "JPEGImages" / part / "a.jpg")
        save(tmp_path / "Masks" / part / "a_mask.png", MAP)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    assert [name for name, _ in objects(MasksReader(tmp_path))] == ["train/a.jpg", "val/a.jpg"]
    assert [name for name, _ in objects(MasksReader(tmp_path, split="val"))] == ["val/a.jpg"]
    maps, images = tmp_path / "Masks" / "val", tmp_path / "JPEGImages" / "val"
    reader = MasksReader(maps, images=images, classes=["background", "cat", "dog"])
    assert objects(reader) == WANTED
    with pytest.raises(DataError, match="nor a folder test"):
        MasksReader(tmp_path, split="test")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "there are no maps: expected a folder labels or masks"),
        (lambda root: save(root / "labels/a.png", MAP), "there are no images: expected a folder"),
        (lambda root: (plain(root) / "classes.txt").unlink(), "unknown classes"),
    ],
)
def test_what_is_expected_is_said(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        MasksReader(tmp_path)


def test_links_that_lead_out_are_refused(tmp_path):
    plain(tmp_path / "in")
    save(tmp_path / "out.png", MAP)
    (tmp_path / "in" / "labels" / "a.png").unlink()
    (tmp_path / "in" / "labels" / "a.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(DataError, match="leads out"):
        [*MasksReader(tmp_path / "in").records()]
    assert objects(MasksReader(tmp_path / "in", links="any")) == WANTED


# --- Well-known datasets -------------------------------------------------------------------------


def cityscapes(folder, **kinds):
    image(folder / "leftImg8bit" / "val" / "ulm" / "ulm_000000_000019_leftImg8bit.png", (4, 1))
    for kind, values in kinds.items():
        name = f"ulm_000000_000019_gtFine_{kind}.png"
        save(folder / "gtFine" / "val" / "ulm" / name, values)
    return folder


def test_cityscapes_instances_classes_and_colors(tmp_path):
    name = "val/ulm/ulm_000000_000019_leftImg8bit.png"
    instances = np.array([[7, 26001, 26002, 24]], np.uint16)
    folder = cityscapes(tmp_path / "i", instanceIds=instances, labelIds=np.uint8([[7, 26, 26, 24]]))
    wanted = [("road", [(0, 0)], 0), ("person", [(0, 3)], 1)]
    wanted += [("car", [(0, 1)], 0), ("car", [(0, 2)], 0)]
    assert objects(MasksReader(folder)) == [(name, wanted)]
    assert objects(MasksReader(folder, split="val"))
    wanted = [("road", [(0, 0)], 0), ("car", [(0, 2)], 0)]
    folder = cityscapes(tmp_path / "l", labelIds=np.uint8([[7, 0, 26, 3]]))
    reader = MasksReader(folder)
    assert objects(reader) == [(name, wanted)] and reader.categories[3] == {"id": 7, "name": "road"}
    folder = cityscapes(tmp_path / "t", labelTrainIds=np.uint8([[0, 255, 13, 255]]))
    assert objects(MasksReader(folder)) == [(name, wanted)]
    assert objects(MasksReader(folder, classes=BUILT_IN["cityscapes-train"])) == [(name, wanted)]
    colors = np.uint8([[[128, 64, 128], [0, 0, 0], [0, 0, 142], [0, 0, 0]]])
    folder = cityscapes(tmp_path / "c", color=colors)
    assert objects(MasksReader(folder)) == [(name, wanted)]
    folder = cityscapes(tmp_path / "b", instanceIds=np.uint16([[7, 99, 59001, 1]]))
    with pytest.raises(DataError, match="has values of no class: 99, 59001"):
        objects(MasksReader(folder))


def test_ade20k_numbers_begin_at_one(tmp_path):
    image(tmp_path / "images" / "validation" / "ADE_val_00000001.jpg")
    values = np.uint8([[0, 1, 1], [150, 0, 13]])
    save(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", values)
    reader = MasksReader(tmp_path, split="val")
    assert [one[0] for one in objects(reader)[0][1]] == ["wall", "person", "flag"]
    assert len(reader.categories) == 150 and reader.categories[149] == {"id": 150, "name": "flag"}


def voc(folder, classes, instances=None, **more):
    for name in ("a", "unlabeled"):
        image(folder / "JPEGImages" / f"{name}.jpg")
    save(folder / "SegmentationClass" / "a.png", classes, **more)
    if instances is not None:
        save(folder / "SegmentationObject" / "a.png", instances, **more)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "trainval.txt").write_text("a\n")
    return folder


def test_pascal_voc_with_and_without_objects(tmp_path):
    classes = np.uint8([[0, 15, 15], [255, 15, 2]])
    reader = MasksReader(voc(tmp_path / "c", classes, palette=True))
    wanted = [("bicycle", [(1, 2)], 0), ("person", [(0, 1), (0, 2), (1, 1)], 0)]
    assert objects(reader) == [("a.jpg", wanted)]
    assert reader.categories[0] == {"id": 1, "name": "aeroplane"}
    instances = np.uint8([[0, 1, 2], [255, 1, 3]])
    wanted = [("person", [(0, 1), (1, 1)], 0), ("person", [(0, 2)], 0), ("bicycle", [(1, 2)], 0)]
    folder = voc(tmp_path / "i", classes, instances, palette=True)
    assert objects(MasksReader(folder)) == [("a.jpg", wanted)]
    # The same as colors, in the way of CVAT.
    table = np.array([voc_color(n) for n in range(256)], np.uint8)
    folder = voc(tmp_path / "rgb", table[classes], table[instances])
    found = objects(MasksReader(folder))
    assert sorted(found[0][1]) == sorted(wanted)


def test_maps_of_instances_of_one_class(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    save(tmp_path / "instances" / "a.png", np.uint16([[0, 1, 1], [700, 0, 0]]))
    found = objects(MasksReader(tmp_path, classes=["nut"]))
    assert found == [("a.jpg", [("nut", [(0, 1), (0, 2)], 0), ("nut", [(1, 0)], 0)])]
    with pytest.raises(DataError, match="or one class"):
        MasksReader(tmp_path, classes=["nut", "bolt"])


# --- Writing -------------------------------------------------------------------------------------


def overlapping(folder):
    """A large object, a small one on top, a hidden one, a crowd and one without a mask."""

    def square(x, y, side):
        return [[x, y, x + side, y, x + side, y + side, x, y + side]]

    def record(id_, category, mask, box, **more):
        one = {"id": id_, "image_id": 4, "category_id": category, "bbox": box, "iscrowd": 0}
        return one | ({"segmentation": mask, "area": box[2] * box[3]} if mask else {}) | more

    crowd = np.zeros((10, 12), np.uint8)
    crowd[:, 9:] = 1
    code = coco_mask.encode(np.asfortranarray(crowd))
    code = {"size": [10, 12], "counts": code["counts"].decode()}
    data = {
        "images": [{"id": 4, "file_name": "deep/a.jpg", "width": 12, "height": 10, "license": 1}],
        "annotations": [
            record(70000, 90, square(0, 0, 6), [0, 0, 6, 6]),
            record(3, 5, square(2, 2, 2), [2, 2, 2, 2]),
            record(4, 5, square(2, 2, 2), [2, 2, 2, 2]),
            record(5, 90, code, [9, 0, 3, 10], iscrowd=1),
            record(6, 5, None, [7, 7, 1.5, 2]),
        ],
        "categories": [{"id": 90, "name": "cat", "supercategory": "animal"},
                       {"id": 5, "name": "dog"}],
    }  # fmt: skip
    image(folder / "images" / "deep" / "a.jpg", (12, 10))
    (folder / "gt.json").write_text(json.dumps(data))
    return data


def test_written_maps_by_hand(tmp_path):
    data = overlapping(tmp_path)
    done = convert(tmp_path / "gt.json", tmp_path / "out", to="masks", images=tmp_path / "images")
    losses = {one["kind"]: (one["count"], one["first"]) for one in done.losses}
    assert losses == {
        COVERED: (1, ["deep/a.jpg: annotation 70000: 4 pixels"]),
        HIDDEN: (1, ["deep/a.jpg: annotation 3"]),
        "objects without a mask, whose box is not labeled": (1, ["deep/a.jpg: annotation 6"]),
    }
    out = tmp_path / "out"
    assert (out / "classes.txt").read_text().split() == ["background", "cat", "dog"]
    wanted = np.zeros((10, 12), np.uint8)
    wanted[:6, :6], wanted[2:4, 2:4], wanted[:, 9:] = 1, 2, 1
    wanted[7:9, 7:9] = 255
    maps = LabelMaps(out / "images", out / "labels")
    assert maps.file_names == ["deep/a.jpg"]
    np.testing.assert_array_equal(maps[0].semantic.numpy(), wanted)
    with Image.open(out / "instances" / "deep" / "a.png") as opened:
        assert opened.mode.startswith("I;16")
    back = convert(out, tmp_path / "back.json", format="masks")
    assert back.format == "COCO panoptic" and back.losses == []
    read = json.loads((tmp_path / "back.json").read_text())
    assert read["images"] == data["images"] and read["categories"] == data["categories"]
    kept = {one["id"]: one for one in read["annotations"]}
    assert kept.keys() == {70000, 4, 5} and kept[5]["iscrowd"] == 1
    for one in data["annotations"]:
        if one["id"] in kept:
            assert {k: kept[one["id"]][k] for k in ("bbox", "category_id")} == {
                k: one[k] for k in ("bbox", "category_id")
            }
    assert kept[70000]["area"] == 32 and kept[4]["area"] == 4
    assert len(Coco(out / "images", tmp_path / "back.json")[0].boxes) == 3


def test_twice_gives_the_same_bytes_and_nothing_half_written(tmp_path):
    overlapping(tmp_path)
    for name in ("one", "two"):
        convert(tmp_path / "gt.json", tmp_path / name, to="masks")
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert len(files[0]) == 4
    with pytest.raises(ConfigError, match="already exists"):
        convert(tmp_path / "gt.json", tmp_path / "one", to="masks")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="is not in"):  # of the images
        convert(tmp_path / "gt.json", tmp_path / "new", to="masks", images=tmp_path / "one")
    assert sorted(tmp_path.iterdir()) == before


def test_names_cannot_leave_the_new_folder(tmp_path):
    data = overlapping(tmp_path)
    for name in ("../x.jpg", "/tmp/x.jpg", "a\\..\\..\\x.jpg"):
        data["images"][0]["file_name"] = name
        (tmp_path / "bad.json").write_text(json.dumps(data))
        try:
            convert(tmp_path / "bad.json", tmp_path / "out", to="masks")
        except DataError:
            assert not (tmp_path / "out").exists()
        else:
            assert (tmp_path / "out" / "labels" / "x.png").is_file()
            shutil.rmtree(tmp_path / "out")
    assert not [*tmp_path.parent.glob("x.*")]


def best_ious(want, got):
    """For each object its IoU with the one of its id."""
    sizes = {one["id"]: (one["height"], one["width"]) for one in want["images"]}
    by_id = {one["id"]: one for one in got["annotations"]}
    found = {}
    for one in want["annotations"]:
        size = sizes[one["image_id"]]
        mask = one["segmentation"]
        if isinstance(mask, list):
            mask = coco_mask.merge(coco_mask.frPyObjects(mask, *size))
        elif isinstance(mask["counts"], list):
            mask = coco_mask.frPyObjects(mask, *size)
        if one["id"] in by_id:
            other = by_id[one["id"]]["segmentation"]
            found[one["id"]] = float(coco_mask.iou([mask], [other], [0])[0, 0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["coco_mini/annotations/instances_val2017.json", "nuts/annotations/all.json"]
)
def test_real_masks_are_kept_but_for_printed_losses(real_data, tmp_path, source):
    source = real_data / source
    done = convert(source, tmp_path / "out", to="masks")
    counts = {one["kind"]: one["count"] for one in done.losses}
    hidden, covered = counts.get(HIDDEN, 0), counts.get(COVERED, 0)
    back = convert(tmp_path / "out", tmp_path / "back.json", format="masks")
    assert back.objects == done.objects - hidden and back.losses == []
    want, got = (json.loads(path.read_text()) for path in (source, tmp_path / "back.json"))
    ious = best_ious(want, got)
    assert sum(iou < 1 for iou in ious.values()) == covered
    by_id = {one["id"]: one for one in got["annotations"]}
    for one in want["annotations"]:
        if one["id"] in by_id:
            other = by_id[one["id"]]
            assert one["bbox"] == other["bbox"] and one["category_id"] == other["category_id"]
            assert one.get("iscrowd", 0) == other["iscrowd"]
