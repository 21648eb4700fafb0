"""Images of every mode become the right 8-bit RGB values; every fault names the file."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from support.damaged import flat_png, png
from visionkit.data.image_io import is_image_file, read_image, read_label_map
from visionkit.errors import DataError

ORIENTATION = 0x0112


def pixel(path, **options):
    return read_image(path, **options)[:, 0, 0].tolist()


def with_info(image, transparency):
    image.info["transparency"] = transparency
    return image


def palette_image(mode="P", transparency=None):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparency is not None:
        return with_info(image, transparency)
    if mode == "PA":
        return image.convert("PA")
    return image


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("rgb.png", Image.new("RGB", (4, 3), (10, 20, 30)), [10, 20, 30]),
        ("rgba.png", Image.new("RGBA", (4, 3), (10, 20, 30, 0)), [10, 20, 30]),
        ("l.png", Image.new("L", (4, 3), 77), [77] * 3),
        ("la.png", Image.new("LA", (4, 3), (77, 0)), [77] * 3),
        ("bits.png", Image.new("1", (4, 3), 1), [255] * 3),
        ("palette.png", palette_image(), [10, 20, 30]),
        ("palette.gif", palette_image(), [10, 20, 30]),
        ("clear.png", palette_image(transparency=1), [10, 20, 30]),
        ("clear_rgb.png", with_info(Image.new("RGB", (4, 3), (1, 2, 3)), (1, 2, 3)), [1, 2, 3]),
        ("ycbcr.tif", Image.new("YCbCr", (4, 3), (150, 128, 128)), [150] * 3),
        ("one.ppm", Image.new("RGB", (1, 1), (10, 20, 30)), [10, 20, 30]),
        ("one.webp", Image.new("RGB", (1, 1), (0, 0, 0)), [0] * 3),
        ("one.jpg", Image.new("L", (1, 1), 99), [99] * 3),
        ("palette_alpha.tif", palette_image("PA"), [10, 20, 30]),
        ("cmyk.tif", Image.new("CMYK", (4, 3), (255, 0, 0, 0)), [0, 255, 255]),
        ("cmyk_black.tif", Image.new("CMYK", (4, 3), (0, 0, 0, 255)), [0, 0, 0]),
        ("i16_low.png", Image.fromarray(np.full((3, 4), 257, np.uint16)), [1] * 3),
        ("i16_mid.png", Image.fromarray(np.full((3, 4), 32896, np.uint16)), [128] * 3),
        ("i16_high.tif", Image.fromarray(np.full((3, 4), 65535, np.uint16)), [255] * 3),
        ("i16_big.tif", Image.fromarray(np.full((3, 4), 25700, ">u2")), [100] * 3),
        ("i32.tif", Image.fromarray(np.full((3, 4), 25700, np.int32)), [100] * 3),
    ],
)
def test_each_mode_has_exact_values(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    loaded = read_image(tmp_path / name)
    assert loaded.shape == (3, image.height, image.width) and loaded.dtype == torch.uint8
    assert loaded[:, 0, 0].tolist() == expected
    assert (loaded == loaded[:, :1, :1]).all()


def test_cmyk_and_ycbcr_jpegs(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("YCbCr", (8, 8), (76, 85, 255)).save(tmp_path / "ycbcr.jpg", quality=100)
    for name in ("cmyk.jpg", "ycbcr.jpg"):
        assert np.abs(np.subtract(pixel(tmp_path / name), [255, 0, 0])).max() <= 3


@pytest.mark.parametrize(
    ("lab", "expected"),  # white, L* = 50, a brick red
    [((255, 128, 128), [255] * 3), ((128, 128, 128), [119] * 3), ((111, 177, 168), [180, 60, 40])],
)
def test_lab(tmp_path, lab, expected):
    Image.new("LAB", (4, 3), lab).save(tmp_path / "lab.tif")
    assert np.abs(np.subtract(pixel(tmp_path / "lab.tif"), expected)).max() <= 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 4), 70_000, np.int32), "70000"),
        (np.full((3, 4), -1, np.int32), "-1"),
        (np.full((3, 4), 0.5, np.float32), "floating-point"),
    ],
)
def test_values_without_meaning_are_refused_not_clipped(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "wide.tif")
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "wide.tif")


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    for suffix in ("webp", "gif", "png"):
        assert pixel(tmp_path / f"moving.{suffix}") == [255, 0, 0]


@pytest.mark.parametrize(("value", "color"), [(0x1234, 2), (0x1234, 6), (300, 0)])
def test_16_bits_are_scaled_not_clipped(tmp_path, value, color):
    """Colors of 16 bits lose their lower byte in Pillow, gray is rounded."""
    (tmp_path / "deep.png").write_bytes(flat_png(4, 3, value, depth=16, color=color))
    assert pixel(tmp_path / "deep.png") == [0x12 if color else 1] * 3


@pytest.mark.parametrize("profile", [b"no profile", ImageCms.createProfile("sRGB")])
def test_color_profiles_change_nothing(tmp_path, profile):
    profile = profile if isinstance(profile, bytes) else ImageCms.ImageCmsProfile(profile).tobytes()
    for suffix in ("png", "tif"):
        Image.new("RGB", (4, 3), (9, 90, 200)).save(tmp_path / f"a.{suffix}", icc_profile=profile)
        assert pixel(tmp_path / f"a.{suffix}") == [9, 90, 200]


def test_a_corrupt_exif_record_is_ignored(tmp_path):
    for record in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""):
        Image.new("L", (5, 4), 7).save(tmp_path / "a.jpg", exif=record)
        assert read_image(tmp_path / "a.jpg").shape == (3, 4, 5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    stored = torch.arange(24, dtype=torch.uint8).view(4, 6) * 10
    image = Image.fromarray(stored.numpy()).convert("RGB")
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = {
        1: stored,
        2: stored.flip(1),
        3: stored.rot90(2),
        4: stored.flip(0),
        5: stored.T,
        6: stored.rot90(-1),
        7: stored.rot90(2).T,
        8: stored.rot90(1),
    }[orientation]
    assert torch.equal(read_image(tmp_path / "turned.png")[0], upright)
    assert torch.equal(read_image(tmp_path / "turned.png", exif="ignore")[0], stored)
    for suffix in ("jpg", "webp", "tif"):
        image.save(tmp_path / f"turned.{suffix}", exif=exif)
        shape = read_image(tmp_path / f"turned.{suffix}").shape[1:]
        assert shape == (upright.shape if orientation > 1 else stored.shape)


def test_memory_is_channels_last_and_writable(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image[None].is_contiguous(memory_format=torch.channels_last)
    image += 1


def test_size_is_checked_before_decoding(tmp_path, monkeypatch):
    for side in (20_000, 60_000):
        bomb = tmp_path / f"{side}.png"
        bomb.write_bytes(png(side, side, b""))
        with pytest.raises(DataError, match=rf"{side}.png.*smaller"):
            read_image(bomb)
    Image.new("RGB", (11, 10)).save(tmp_path / "small.png")
    monkeypatch.setattr("visionkit.data.image_io.MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"11x10.*limit of 100"):
        read_image(tmp_path / "small.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"just some text", "another format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "XML"),
    ],
)
def test_files_that_are_not_images(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_what_is_not_a_regular_file_is_not_an_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.jpg", "pipe"),
        (tmp_path / ("a" * 300), "name too long"),
        (tmp_path / "a\0.jpg", "does not exist"),
        (tmp_path / "none" / "a.jpg", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_image(path)


def test_no_name_can_forge_a_line_of_the_log(tmp_path):
    for name in ("a\nerror: all is lost.jpg", "\x1b[2J.jpg", "\x9b\u202egpj.exe", "b\udcff.jpg"):
        (tmp_path / name).write_bytes(b"corrupt")
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).isprintable()
        assert name.encode("unicode_escape").decode() in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_damaged_files_give_data_errors_only(tmp_path, suffix):
    rng = np.random.default_rng(0)
    good = tmp_path / f"good.{suffix}"
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(good)
    whole = good.read_bytes()
    damaged = [whole[: int(len(whole) * part)] for part in (0.1, 0.3, 0.6)]
    for place in rng.integers(8, len(whole), 40):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        damaged.append(bytes(flipped))
    failures = 0
    for content in damaged:
        bad = tmp_path / f"bad.{suffix}"
        bad.write_bytes(content)
        try:
            read_image(bad)
        except DataError as error:
            failures += 1
            assert "bad." in str(error)
    assert failures >= 2


def test_image_files_are_known_by_name(tmp_path):
    for name in ("a.jpg", "b.PNG", ".hidden.png", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert {p.name for p in tmp_path.iterdir() if is_image_file(p)} == {"a.jpg", "b.PNG"}


def test_the_content_decides_not_the_suffix(tmp_path):
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / "a.jpg", format="PNG")
    assert pixel(tmp_path / "a.jpg") == [10, 20, 30]


def test_errors_survive_the_way_out_of_a_loader_worker(tmp_path):
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "none.jpg")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_label_maps_keep_their_numbers(tmp_path):
    numbers = np.array([[0, 1, 255], [2, 3, 4]], np.uint8)
    Image.fromarray(numbers).save(tmp_path / "gray.png")
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([9] * 768)
    palette.save(tmp_path / "palette.png")
    for name in ("gray.png", "palette.png"):
        assert read_label_map(tmp_path / name).tolist() == numbers.tolist()
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="mode RGB"):
        read_label_map(tmp_path / "rgb.png")
