"""Images with semantic maps: numbers, palettes and colors, pairing, and what is refused."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from support.damaged import dataset_faults
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.errors import DataError
from visionkit.types import Classes

CLASSES = ["background", "cat", "dog"]
PALETTE = {"background": [0, 0, 0], "cat": [255, 0, 0], "dog": [0, 64, 128]}


def image(path, size=(3, 2), exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 8, 7)).save(path, **({"exif": exif} if exif else {}))


def numbers(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if palette:
        image.putpalette([200, 100, 50] * 256)  # all alike: only the stored numbers tell
    image.save(path)


def colors(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    image(tmp_path / "images" / "b.jpg")
    image(tmp_path / "images" / "deep" / "a.png")
    numbers(tmp_path / "labels" / "b.png", [[0, 1, 2], [255, 0, 0]])
    numbers(tmp_path / "labels" / "deep" / "a.png", [[2, 2, 2], [1, 1, 1]], palette=True)
    return tmp_path


def opened(folder, **arguments):
    return LabelMaps(str(folder / "images"), str(folder / "labels"), **arguments)


def test_maps_of_numbers(folder):
    image(folder / "images" / ".hidden.png")
    (folder / "labels" / "notes.txt").write_text("no map")
    data = opened(folder, classes=CLASSES)
    assert data.keys == ("semantic",)
    assert data.classes == {"semantic": Classes(tuple(CLASSES), (0, 1, 2))}
    assert data.file_names == ["b.jpg", "deep/a.png"] and data.image_ids == [0, 1]
    assert data.image_path(1) == folder / "images" / "deep" / "a.png"
    first, second = data
    assert first.image_id == 0 and first.size == first.orig_size == (2, 3)
    assert first.semantic.dtype == torch.uint8
    assert first.semantic.tolist() == [[0, 1, 2], [255, 0, 0]]
    assert second.semantic.tolist() == [[2, 2, 2], [1, 1, 1]]
    assert torch.equal(data.semantic_truth(1), second.semantic)
    with pytest.raises(IndexError):
        data[2]


def test_names_of_the_classes_come_from_a_file_beside_the_maps(folder):
    with pytest.raises(DataError, match=r"give `classes`, or write the names to .*classes.txt"):
        opened(folder)
    (folder / "classes.txt").write_text("background\ncat\n\ndog\n")
    assert opened(folder).classes["semantic"].names == tuple(CLASSES)
    # Another split fixes the order: the numbers follow the names.
    data = opened(folder, classes=["dog", "background", "cat"])
    assert data[0].semantic.tolist() == [[1, 2, 0], [255, 1, 1]]
    with pytest.raises(DataError, match="not expected: 'dog'"):
        opened(folder, classes=["background", "cat"])


def test_ignored_and_first_number(folder):
    numbers(folder / "labels" / "b.png", [[0, 1, 2], [3, 0, 0]])
    data = opened(folder, classes=CLASSES, ignore=0, first=1)
    assert data[0].semantic.tolist() == [[255, 0, 1], [2, 255, 255]]
    numbers(folder / "labels" / "b.png", [[0, 1, 2], [255, 0, 0]])
    with pytest.raises(DataError, match=r"b\.png cannot be used: no class has the value 255; "):
        opened(folder, classes=CLASSES, ignore=None)[0]


def test_values_beyond_the_classes(folder):
    numbers(folder / "labels" / "b.png", [[0, 3, 9], [255, 0, 0]])
    data = opened(folder, classes=CLASSES)
    with pytest.raises(DataError, match=r"b\.png .* no class has the value 3, 9; there are 3"):
        data[0]


def test_maps_of_colors(folder):
    red, blue, black, gray = [255, 0, 0], [0, 64, 128], [0, 0, 0], [224, 224, 192]
    colors(folder / "labels" / "b.png", [[red, blue, black], [gray, red, red]])
    colors(folder / "labels" / "deep" / "a.png", [[blue] * 3, [black] * 3])
    data = opened(folder, palette={"ignore": gray, **PALETTE})
    assert data.classes["semantic"].names == tuple(CLASSES)
    assert data[0].semantic.tolist() == [[1, 2, 0], [255, 1, 1]]
    data = opened(folder, palette={**PALETTE, "ignore": gray}, classes=["dog", "cat", "background"])
    assert data[0].semantic.tolist() == [[1, 0, 2], [255, 1, 1]]
    with pytest.raises(DataError, match=r"1 pixel with colors .* \[224, 224, 192\]"):
        opened(folder, palette=PALETTE)[0]
    with pytest.raises(DataError, match="two names have the same color"):
        opened(folder, palette={**PALETTE, "fox": red})
    with pytest.raises(DataError, match="missing here: 'fox'"):
        opened(folder, palette=PALETTE, classes=[*CLASSES, "fox"])


def test_unpaired_files_are_all_named(folder):
    image(folder / "images" / "lonely.jpg")
    image(folder / "images" / "b.webp")
    numbers(folder / "labels" / "extra.png", [[0]])
    with pytest.raises(DataError) as caught:
        opened(folder, classes=CLASSES)
    message = str(caught.value)
    assert "3 problems" in message
    assert "lonely.jpg: its map lonely.png is not in" in message
    assert "extra.png: its image is not in" in message
    assert "b.webp: b.jpg has the same name except for its suffix" in message


def test_a_split_names_what_is_used(folder):
    image(folder / "images" / "lonely.jpg")
    (folder / "train.txt").write_text("deep/a\n")
    assert opened(folder, classes=CLASSES, split=str(folder / "train.txt")).file_names == [
        "deep/a.png"
    ]
    (folder / "train.txt").write_text("deep/a\nnone\n")
    with pytest.raises(DataError, match="2 problems"):
        opened(folder, classes=CLASSES, split=str(folder / "train.txt"))
    with pytest.raises(DataError, match=r"absent\.txt does not exist"):
        opened(folder, classes=CLASSES, split=str(folder / "absent.txt"))


def test_sizes_that_differ(folder):
    numbers(folder / "labels" / "b.png", [[0, 1], [1, 1]])
    with pytest.raises(DataError, match=r"b\.png is 2x2, but its image .*b\.jpg is 3x2"):
        opened(folder, classes=CLASSES)[0]


def test_exif(folder):
    turned = Image.Exif()
    turned[0x0112] = 6
    image(folder / "images" / "b.jpg", exif=turned)
    with pytest.raises(DataError, match=r"if the map is of the image as it is stored, .*: ignore`"):
        opened(folder, classes=CLASSES)[0]
    assert opened(folder, classes=CLASSES, exif="ignore")[0].size == (2, 3)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match="images does not exist"):
        opened(tmp_path, classes=CLASSES)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="found none"):
        opened(tmp_path, classes=CLASSES)
    with pytest.raises(DataError, match="got 256"):
        opened(tmp_path, classes=[str(k) for k in range(256)])


def test_a_pattern_pairs_maps_with_images(tmp_path):
    for name in ("b", "deep/a"):
        image(tmp_path / "images" / f"{name}.jpg")
        numbers(tmp_path / "labels" / f"{name}_gtFine_labelTrainIds.png", [[0, 1, 2], [0, 0, 0]])
        numbers(tmp_path / "labels" / f"{name}_gtFine_color.png", [[9, 9, 9], [9, 9, 9]])
    pattern = "{stem}_gtFine_labelTrainIds.png"
    data = opened(tmp_path, classes=CLASSES, labels_pattern=pattern)
    assert data.file_names == ["b.jpg", "deep/a.jpg"]
    assert data.map_path(1) == tmp_path / "labels" / "deep" / f"a{pattern.removeprefix('{stem}')}"
    assert data[1].semantic.tolist() == [[0, 1, 2], [0, 0, 0]]
    image(tmp_path / "images" / "lonely.jpg")
    with pytest.raises(
        DataError, match=r"lonely\.jpg: its map lonely_gtFine_labelTrainIds\.png is"
    ):
        opened(tmp_path, classes=CLASSES, labels_pattern=pattern)
    for wrong in ("gtFine.png", "{stem}_gtFine", "a/{stem}.png", "{stem}.txt"):
        with pytest.raises(DataError, match="labels_pattern: got"):
            opened(tmp_path, classes=CLASSES, labels_pattern=wrong)


@pytest.mark.parametrize("given", [{}, {"images_pattern": "{stem}_leftImg8bit.png"}])
def test_the_names_of_cityscapes(tmp_path, given):
    for name in ("aachen/aachen_000000_000019", "bonn/bonn_000001_000019"):
        image(tmp_path / "images" / f"{name}_leftImg8bit.png")
        numbers(tmp_path / "labels" / f"{name}_gtFine_labelTrainIds.png", [[0, 1, 2], [0, 0, 0]])
        numbers(tmp_path / "labels" / f"{name}_gtFine_instanceIds.png", [[0, 0, 0], [0, 0, 0]])
    pattern = "{stem}_gtFine_labelTrainIds.png"
    data = opened(tmp_path, classes=CLASSES, labels_pattern=pattern, **given)
    assert [data.map_path(i).name for i in range(2)] == [
        "aachen_000000_000019_gtFine_labelTrainIds.png",
        "bonn_000001_000019_gtFine_labelTrainIds.png",
    ]
    assert data.image_path(1).name == "bonn_000001_000019_leftImg8bit.png"


@pytest.mark.parametrize(
    ("mode", "color"), [("RGB", (0, 64, 128)), ("1", 1), ("RGBA", (1, 1, 1, 255))]
)
def test_maps_of_another_mode_name_the_palette(folder, mode, color):
    Image.new(mode, (3, 2), color).save(folder / "labels" / "b.png")
    with pytest.raises(DataError, match=r"b\.png has mode .*`palette: \{background: \[0, 0, 0\], "):
        opened(folder, classes=CLASSES)[0]
    if mode == "1":  # as the message says
        palette = {"background": [0, 0, 0], "cat": [255, 255, 255]}
        Image.new("1", (3, 2), 1).save(folder / "labels" / "deep" / "a.png")
        assert opened(folder, palette=palette)[0].semantic.tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_maps_of_numbers_with_alpha_are_not_colors(folder, mode):
    Image.new("LA", (3, 2), (1, 255)).convert(mode).save(folder / "labels" / "b.png", "TIFF")
    with pytest.raises(DataError, match=r"has mode .A.*; save its first channel alone, with 8 bi"):
        opened(folder, classes=CLASSES)[0]


def test_gray_levels_of_no_class_have_an_example(folder):
    numbers(folder / "labels" / "b.png", [[0, 128, 128], [0, 0, 0]])
    palette = "palette: {a: [0, 0, 0], b: [128, 128, 128]}"
    with pytest.raises(DataError, match=f"for example `{re.escape(palette)}`"):
        opened(folder, classes=["a", "b"])[0]
    with pytest.raises(DataError, match=r"\[128, 128, 128\], \.\.\.}`"):
        opened(folder, classes=["a", "b", "c"])[0]


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([[1, 2, 3], [3, 2, 1]], "set `first: 1`; else"),
        ([[1, 2, 3], [0, 0, 0]], "set `first: 1` and `ignore: 0`; else"),
        ([[0, 127, 127], [0, 0, 0]], "or give the gray levels as `palette`"),
    ],
)
def test_values_of_no_class_name_what_may_be_meant(folder, values, hint):
    numbers(folder / "labels" / "b.png", values)
    with pytest.raises(DataError, match=hint) as caught:
        opened(folder, classes=CLASSES)[0]
    assert ("first" in hint) == ("begin at 1" in str(caught.value))


def test_names_in_two_unicode_forms_are_told_apart(folder):
    image(folder / "images" / "caf\u00e9.jpg")  # one character
    numbers(folder / "labels" / "cafe\u0301.png", [[0, 1, 2], [0, 0, 0]])  # two
    with pytest.raises(DataError) as caught:
        opened(folder, classes=CLASSES)
    assert "the same name in another Unicode form (NFC)" in str(caught.value)
    assert "the same name in another Unicode form (NFD)" in str(caught.value)


def test_names_with_other_capitals_and_maps_of_another_suffix_are_told(folder):
    image(folder / "images" / "Cat.jpg")
    numbers(folder / "labels" / "cat.png", [[0, 1, 2], [0, 0, 0]])
    image(folder / "images" / "dog.jpg")
    numbers(folder / "labels" / "dog.tif", [[0, 1, 2], [0, 0, 0]])
    with pytest.raises(DataError) as caught:
        opened(folder, classes=CLASSES)
    assert "its map Cat.png is not in" in str(caught.value) and "problems" in str(caught.value)
    assert "but 'cat', with other capitals, is: rename one of the two" in str(caught.value)
    assert "but 'Cat', with other capitals, is: rename one of the two" in str(caught.value)
    assert "but dog.tif is: set `labels_pattern: '{stem}.tif'`" in str(caught.value)


def test_wrong_values_are_found_before_training(folder):
    numbers(folder / "labels" / "b.png", [[0, 3, 9], [255, 0, 0]])
    (fault,) = dataset_faults(opened(folder, classes=CLASSES))
    assert fault.kind == "values" and "no class has the value 3, 9" in fault.message
    numbers(folder / "labels" / "b.png", [[0, 2, 1], [255, 0, 0]])
    assert dataset_faults(opened(folder, classes=CLASSES)) == []


@pytest.mark.parametrize("values", [np.full((2, 3), 2, np.uint16), np.full((2, 3), 2, np.float32)])
def test_maps_of_deep_numbers_are_not_colors(folder, values):
    (folder / "labels" / "b.png").unlink()
    Image.fromarray(values).save(folder / "labels" / "b.png", format="TIFF")
    with pytest.raises(DataError, match=r"8-bit gray or palette; save its numbers with 8 bits"):
        opened(folder, classes=CLASSES)[0]
