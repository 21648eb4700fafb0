"""Every image is inspected: each fault is found, named and placed; what is lost is counted."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from support.damaged import (
    PNG,
    Files,
    chunk,
    dataset_faults,
    faults_of,
    flat_png,
    image,
    pillow_reads,
    png,
    tiff,
    tiff_of,
    turned,
)
from visionkit.data.checks.images import (
    duplicate_files,
    image_findings,
    inspect_images,
    narrow_range,
)
from visionkit.data.datasets.coco import Coco, Crops
from visionkit.data.datasets.folder import Images
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.data.image_io import read_image
from visionkit.errors import DataError

JPEG = image("JPEG")
FLOAT = Image.fromarray(np.full((3, 4), 0.5, np.float32))

FAULTS = {
    "empty.jpg": (b"", "empty", "is empty"),
    "page.jpg": (b"<html>not found</html>", "page", "web page"),
    "drawing.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page", "XML"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "pointer", "git lfs pull"),
    "zip.png": (b"PK\x03\x04 and more", "archive", "zip archive"),
    "text.jpg": (b"just some text", "damaged", "another format"),
    "cut.jpg": (JPEG[: len(JPEG) * 6 // 10], "damaged", "cut short"),
    "cut.png": (image("PNG")[:2000], "damaged", "cut short"),
    "sum.png": (flat_png(6, 4, 9, crc_flip=1), "damaged", "check or replace"),
    "extra_sum.png": (flat_png(6, 4, 9, before=chunk(b"tEXt", b"a\0b", 1)), "damaged", "check"),
    "chunk.png": (PNG + chunk(b"IHDR", b"too short"), "damaged", "check or replace"),
    "rows.png": (png(6, 4, b"\0" * 10), "damaged", "check or replace"),
    "bomb.png": (png(60_000, 60_000, b""), "too-large", "make it smaller"),
    "wide.tif": (tiff(50_000, 50_000, 2**31), "too-large", "make it smaller"),
}


@pytest.fixture
def bad(tmp_path):
    """The paths, and the kind and a part of the message of what is wrong with each."""
    expected = {}
    for name, (content, kind, message) in FAULTS.items():
        (tmp_path / name).write_bytes(content)
        expected[tmp_path / name] = (kind, message)
    FLOAT.save(tmp_path / "float.tif")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    expected |= {
        tmp_path / "float.tif": ("values", "floating-point"),
        tmp_path / "pipe.jpg": ("unreadable", "pipe"),
        tmp_path / "folder.jpg": ("folder", "is a folder"),
        tmp_path / "none.jpg": ("missing", "does not exist"),
        tmp_path / ("long" * 100 + ".jpg"): ("unreadable", "too long"),
        tmp_path / "a\0b.jpg": ("missing", "does not exist"),
    }
    return expected


def test_each_fault_is_found_with_its_place(bad, tmp_path):
    good = tmp_path / "good.jpg"
    good.write_bytes(JPEG)
    paths = [good, *bad, good]
    faults = faults_of(paths)
    assert [fault.index for fault in faults] == list(range(1, len(bad) + 1))
    for fault, (path, (kind, message)) in zip(faults, bad.items(), strict=True):
        assert (fault.kind, fault.severity) == (kind, "error"), fault
        assert path.name.replace("\0", "\\x00") in fault.message and message in fault.message


def test_what_the_check_refuses_loading_refuses_too_but_for_a_sum(bad):
    for path in bad:
        if path.name == "sum.png":
            read_image(path)
        else:
            with pytest.raises(DataError):
                read_image(path)


def test_a_jpeg_without_its_end_mark_is_judged_alike(tmp_path):
    """Pillow 13 calls it cut short, others load it whole."""
    for name, content in (("good.jpg", JPEG), ("cut.jpg", JPEG[:-2])):
        (tmp_path / name).write_bytes(content)
    faults = faults_of([tmp_path / "cut.jpg"])
    try:
        assert torch.equal(read_image(tmp_path / "cut.jpg"), read_image(tmp_path / "good.jpg"))
        assert not faults
    except DataError:
        assert [fault.kind for fault in faults] == ["damaged"]


def notes(folder, files, **options):
    paths = []
    for name, content in files.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content) if isinstance(content, bytes) else content(paths[-1])
    faults = faults_of(paths, **options)
    return [(paths[f.index].name, f.kind, f.severity) for f in faults]


def test_what_reading_drops_is_reported(tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime")]
    several = {"save_all": True, "append_images": frames[1:]}
    clear = Image.new("P", (4, 3), 1)
    clear.putpalette([0, 0, 0, 10, 20, 30])
    deep = Image.fromarray(np.full((3, 4), 300, np.uint16))
    found = notes(
        tmp_path,
        {
            "a.gif": lambda path: frames[0].save(path, **several),
            "b.webp": lambda path: frames[0].save(path, **several),
            "c.png": lambda path: frames[0].save(path, **several),
            "d.tif": lambda path: frames[0].save(path, **several),
            "e.png": lambda path: Image.new("RGBA", (4, 3), (1, 2, 3, 254)).save(path),
            "f.png": lambda path: Image.new("RGBA", (4, 3), (1, 2, 3, 255)).save(path),  # opaque
            "g.png": lambda path: Image.new("LA", (4, 3), (1, 0)).save(path),
            "h.png": lambda path: clear.save(path, transparency=0),
            "i.png": deep.save,
            "j.png": flat_png(4, 3, 300, depth=16),
            "k.tif": deep.save,
            "l.png": image("JPEG"),
        },
    )
    assert found == [
        *((name, "frames", "warning") for name in ("a.gif", "b.webp", "c.png", "d.tif")),
        *((name, "alpha", "warning") for name in ("e.png", "g.png", "h.png")),
        *((name, "bits", "warning") for name in ("i.png", "j.png", "k.tif")),
        ("l.png", "suffix", "note"),
    ]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sizes_are_compared_as_exif_turns_images(tmp_path, orientation):
    (tmp_path / "a.jpg").write_bytes(turned(orientation, (40, 60)))
    upright = (60, 40) if orientation == 6 else (40, 60)
    sizes = {"apply": upright, "ignore": (40, 60)}
    for exif, right in sizes.items():
        for size in ((40, 60), (60, 40), (41, 60)):
            faults = faults_of([tmp_path / "a.jpg"], [size], exif)
            kinds = [fault.kind for fault in faults]
            assert kinds == ["exif"] * (orientation != 1) + ["size"] * (size != right)
            if size == right:
                continue
            message = faults[-1].message
            assert f"is {right[1]}x{right[0]}, but the annotations say {size[1]}x" in message
            other = "ignore" if exif == "apply" else "apply"
            assert (f"exif: {other}" in message) == (orientation == 6 and size == right[::-1])
            assert ("if the annotations describe" in message) == (f"exif: {other}" in message)
            assert ("swapped in the annotations" in message) == (size == right[::-1])


@pytest.mark.parametrize("orientation", [0, 9, 274])
def test_an_invalid_orientation_is_ignored(tmp_path, orientation):
    (tmp_path / "a.jpg").write_bytes(turned(orientation, (40, 60)))
    assert faults_of([tmp_path / "a.jpg"], [(40, 60)]) == []


def test_files_of_the_same_bytes_are_found(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for path, seed in zip(paths, (0, 1, 0, 2, 1), strict=True):
        path.write_bytes(image("JPEG", seed=seed))
    paths[3].write_bytes(b"corrupt")
    assert duplicate_files(inspect_images([*paths, paths[3]])) == [[0, 2], [1, 4]]


def test_thousands_of_images_come_out_in_order(tmp_path):
    for i in range(100):
        (tmp_path / f"{i}.png").write_bytes(flat_png(1 + i, 1, i))
    paths = [tmp_path / f"{i % 100}.png" for i in range(1000)]
    assert [info.width for info in inspect_images(paths)] == [1 + i % 100 for i in range(1000)]


def test_real_images_are_without_fault(real_data):
    folder = real_data / "coco_mini"
    data = Coco(folder / "val2017", folder / "annotations/instances_val2017.json")
    assert dataset_faults(data) == []
    assert {f.kind for f in dataset_faults(Images(str(real_data / "nuts/images")))} <= {"exif"}


@pytest.fixture
def shapes(tmp_path):
    generate_shapes(tmp_path / "shapes", images=6, size=48)
    return tmp_path / "shapes"


def test_images_and_semantic_maps_of_coco_data(shapes):
    data = Coco(shapes / "images", shapes / "annotations.json")
    assert dataset_faults(data) == []
    data.image_path(1).write_bytes(b"corrupt")
    Image.new("RGB", (48, 48)).save(data.image_path(3))
    Image.new("L", (47, 48)).save(data.image_path(4))
    Image.new("RGB", (48, 48)).save(data.map_path(2))
    Image.new("L", (48, 47)).save(data.map_path(5))
    data.map_path(1).write_bytes(b"")
    found = [(f.index, f.kind, f.message.split()[0]) for f in dataset_faults(data)]
    assert found == [
        (1, "damaged", "image"),
        (1, "empty", "semantic"),
        (2, "values", "semantic"),
        (4, "size", "image"),
        (5, "size", "semantic"),
    ]
    assert [f.index for f in dataset_faults(data, first=1, step=3)] == [1, 1, 4]


def test_an_unreadable_image_of_several_crops_is_reported_once(shapes):
    data = Crops(str(shapes / "images"), str(shapes / "annotations.json"), min_size=4)
    path = data.image_path(0)
    assert Counter(data.image_path(i) for i in range(len(data)))[path] > 1
    path.write_bytes(b"corrupt")
    assert [(f.index, f.kind) for f in dataset_faults(data)] == [(0, "damaged")]


def test_maps_by_color_may_have_any_mode(tmp_path):
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 6 + i), (9, 9, 9)).save(tmp_path / name / f"{i}.png")
    Image.new("RGB", (8, 5), (9, 9, 9)).save(tmp_path / "maps" / "1.png")
    folders = str(tmp_path / "images"), str(tmp_path / "maps")
    data = LabelMaps(*folders, palette={"a": [9, 9, 9]})
    assert [(f.index, f.kind) for f in dataset_faults(data)] == [(1, "size")]
    data = LabelMaps(*folders, classes=["a"])
    assert [(f.index, f.kind) for f in dataset_faults(data)] == [(0, "values"), (1, "values")]


def deep(path, highest, dtype=np.uint16):
    values = np.linspace(0, highest, 64).reshape(8, 8)
    Image.fromarray(values.astype(dtype)).save(path)


def test_16_bit_images_that_use_a_part_of_the_range_are_told_once(tmp_path):
    for i, highest in enumerate((4000, 3000)):
        deep(tmp_path / f"{i}.png", highest)
    data = Files([tmp_path / f"{i}.png" for i in range(2)], None, "apply")
    found = image_findings(data, "data.train")
    assert [one.kind for one in found] == ["image-bits"] * 2
    (narrow,) = narrow_range(found, "data.train", data)
    assert narrow.kind == "image-range" and narrow.severity == "warning"
    assert "above 4000 of 65535" in narrow.message
    assert "data.value_range=[0,4095]" in narrow.message
    (street,) = narrow_range(found, "data.street.val", data)
    assert "data.street.value_range=[0,4095]" in street.message
    data.value_range = (0, 4095)
    assert narrow_range(found, "data.train", data) == []
    deep(tmp_path / "1.png", 60_000)
    del data.value_range
    assert narrow_range(image_findings(data, "data.train"), "data.train", data) == []


def test_pixels_without_a_fixed_meaning_are_errors_unless_a_range_gives_it(tmp_path):
    deep(tmp_path / "float.tif", 1, np.float32)
    deep(tmp_path / "signed.tif", -1000, np.int32)
    (tmp_path / "color.png").write_bytes(flat_png(4, 3, 300, depth=16))
    paths = [tmp_path / name for name in ("float.tif", "signed.tif", "color.png")]
    for _ in range(2):  # also as remembered
        kinds = [(fault.kind, fault.severity) for fault in faults_of(paths)]
        assert kinds == [("values", "error"), ("values", "error"), ("bits", "warning")]
    data = Files(paths, None, "apply")
    data.value_range = (-1000, 1000)
    kinds = [(fault.index, fault.kind) for fault in dataset_faults(data) if fault.kind != "bits"]
    assert kinds == [(2, "values")]  # Pillow has dropped half of the bits


def test_a_band_that_is_neither_color_nor_alpha_is_told(tmp_path):
    Image.new("RGBX", (4, 3)).save(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff_of(2, 8, 1))
    kinds = [fault.kind for fault in faults_of([tmp_path / "a.tif", tmp_path / "b.tif"])]
    assert kinds == ["bands", "bands" if pillow_reads(tmp_path / "b.tif") else "damaged"]
