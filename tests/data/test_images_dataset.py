"""Folders of images without labels."""

import pytest
from PIL import Image

from visionkit.config.components import components
from visionkit.data.datasets.folder import Images
from visionkit.errors import DataError


def put(root, *names, value=50, size=(6, 4)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, value).save(path, format="PNG")


def test_every_image_below_the_folder(tmp_path):
    put(tmp_path, "b.png", "a/z.JPG", "a/deep/1.webp", "c.jpeg")
    put(tmp_path, ".hidden.png", ".git/x.png", "__MACOSX/x.png", "a/.b.png", "a/__MACOSX/y.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = Images(str(tmp_path))
    assert data.file_names == ["a/deep/1.webp", "a/z.JPG", "b.png", "c.jpeg"]
    assert data.keys == () and data.classes == {} and data.image_ids == [0, 1, 2, 3]
    assert len(data) == 4 and [sample.image_id for sample in data] == [0, 1, 2, 3]
    sample = data[-1]
    assert sample.image_id == 3 and sample.size == sample.orig_size == (4, 6)
    assert sample.image.tolist() == [[[50] * 6] * 4] * 3
    assert set(sample.target()) == {"image_id", "size", "orig_size"}
    assert data.image_path(1) == tmp_path / "a" / "z.JPG"
    with pytest.raises(IndexError):
        data[4]


def test_images_are_turned_upright_unless_told_not_to(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert Images(str(tmp_path))[0].size == (6, 4)
    assert Images(str(tmp_path), exif="ignore")[0].size == (4, 6)


def test_faults(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Images(str(tmp_path / "none"))
    with pytest.raises(DataError, match="has no images"):
        Images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"broken")
    data = Images(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.png"):
        data[0]


def test_a_config_finds_it():
    assert components("datasets")["Images"] is Images
