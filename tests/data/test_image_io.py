"""Images of every mode become the right 8-bit RGB values; every fault names the file."""

import os
import pickle
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from support.damaged import flat_png, pillow_reads, png, tiff_of
from visionkit.data.image_io import (
    PLUGINS,
    _import_plugin,
    is_image_file,
    read_image,
    read_label_map,
    to_pixels,
)
from visionkit.errors import ArgumentError, ConfigError, DataError

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
    if name == "ycbcr.tif" and not pillow_reads(tmp_path / name):
        pytest.skip("this Pillow does not read what it wrote")
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


def same_everywhere(tmp_path, values, name="a.png", value_range=None):
    """The pixels by path, as PIL image, array and tensor, which must be equal."""
    image = Image.fromarray(values)
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        ways = [to_pixels(opened, value_range), to_pixels(image, value_range)]
    ways += [to_pixels(values, value_range), to_pixels(torch.from_numpy(values), value_range)]
    if values.ndim == 2:
        ways += [to_pixels(values[..., None], value_range)]
        ways += [to_pixels(torch.from_numpy(values)[None], value_range)]
    expected = read_image(tmp_path / name, value_range=value_range)
    for way in ways:
        assert way.dtype == torch.uint8 and torch.equal(way, expected)
    return expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 200, 255]], np.uint8), [0, 200, 255]),
        (np.array([[0, 25700, 65535]], np.uint16), [0, 100, 255]),
        (np.array([[1, 128, 129]], np.uint16), [0, 0, 1]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[False, True, True]]), [0, 255, 255]),
    ],
)
def test_one_rule_for_path_pil_array_and_tensor(tmp_path, values, expected):
    name = "a.tif" if values.dtype == np.int32 else "a.png"
    assert same_everywhere(tmp_path, values, name).tolist() == [[expected]] * 3


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.array([[0, 2048, 4095, 5000]], np.uint16), (0, 4095), [0, 128, 255, 255]),
        (np.array([[0, 1000, 1500, 2000]], np.uint16), (1000, 2000), [0, 0, 128, 255]),
        (np.array([[-1000, 0, 500, 1000]], np.int32), (-1000, 1000), [0, 128, 191, 255]),
        (np.array([[0.0, 0.25, 1.0, 1.5]], np.float32), (0, 1), [0, 64, 255, 255]),
        (np.array([[0, 100, 200, 255]], np.uint8), (0, 4095), [0, 100, 200, 255]),  # 8 bits stay
    ],
)
def test_a_value_range_maps_deep_pixels(tmp_path, values, value_range, expected):
    found = same_everywhere(tmp_path, values, "a.tif", value_range)
    assert found.tolist() == [[expected]] * 3


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 3), 0.5, np.float32),
        np.full((2, 3), 200, np.int32),  # 8 bits or 16?
        np.full((2, 3), 70_000, np.int32),
        np.full((2, 3), -1, np.int32),
    ],
)
def test_what_has_no_fixed_meaning_is_refused_everywhere(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    for given in (Image.fromarray(values), values, torch.from_numpy(values)):
        with pytest.raises(DataError, match=r"no fixed meaning .*data\.value_range="):
            to_pixels(given)
    with pytest.raises(DataError, match=r"a\.tif has .*no fixed meaning .*data\.value_range="):
        read_image(tmp_path / "a.tif")


def test_pixels_that_are_not_finite_are_refused_with_any_range(tmp_path):
    values = np.array([[0.5, np.nan]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_image, lambda path, **options: to_pixels(values, **options)):
        with pytest.raises(DataError, match="not finite"):
            read(tmp_path / "a.tif", value_range=(0, 1))


def test_a_value_range_is_refused_for_16_bit_colors_of_which_half_is_lost(tmp_path):
    (tmp_path / "deep.png").write_bytes(flat_png(4, 3, 0x0FFF, depth=16))
    with pytest.raises(DataError, match="colors of 16 bits"):
        read_image(tmp_path / "deep.png", value_range=(0, 4095))
    values = np.full((3, 4, 3), 4095, np.uint16)  # an array has both halves
    assert to_pixels(values, (0, 4095)).unique().tolist() == [255]
    assert to_pixels(values).unique().tolist() == [16]


def test_arrays_and_tensors_of_gray_and_rgb():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    expected = torch.from_numpy(rgb).permute(2, 0, 1)
    for given in (rgb, rgb.astype(">u2") * 257, expected, torch.from_numpy(rgb.T.copy()).mT):
        assert torch.equal(to_pixels(given), expected)
    assert torch.equal(to_pixels(np.asmatrix(rgb[..., 0])), expected[:1].expand(3, 2, 4))
    found = to_pixels(rgb)
    found += 1
    assert rgb[0, 0, 0] == 0  # a copy
    assert to_pixels(torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16), (0, 1)).unique() == 128


def test_four_channels_may_be_rgba_or_cmyk_so_they_are_refused():
    ink = Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    assert to_pixels(ink).flatten(1)[:, 0].tolist() == [0, 255, 255]
    with pytest.raises(ArgumentError, match=r"if they are RGBA, give image\[\.\.\., :3\]; if CMYK"):
        to_pixels(np.array(ink))
    with pytest.raises(ArgumentError, match=r"if they are RGBA, give image\[:3\]; if CMYK"):
        to_pixels(torch.zeros(4, 3, 5, dtype=torch.uint8))


@pytest.mark.parametrize(
    "given", [torch.zeros(3, 5, 5).to_sparse(), torch.zeros(3, 5, 5, device="meta")]
)
def test_tensors_without_plain_values_are_told(given):
    with pytest.raises(ArgumentError, match="expected a dense tensor"):
        to_pixels(given)


@pytest.mark.parametrize(
    "given",
    [
        *(
            np.zeros(shape, np.uint8)
            for shape in ((0, 0, 3), (0, 4), (3,), (2, 4, 4, 3), (3, 4, 8))
        ),
        np.full((4, 4, 3), None),
        np.zeros((4, 4, 3), complex),
        torch.zeros(4, 4, 3, 3),
        None,
        7,
        [1, 2],
    ],
)
def test_anything_else_is_told_with_what_is_accepted(given):
    with pytest.raises(ConfigError, match=r"got .*; expected a file name, a PIL image, an array"):
        to_pixels(given)


def test_a_closed_pil_image_is_told(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ConfigError, match="closed or cannot be decoded"):
        to_pixels(image)


@pytest.mark.parametrize(
    ("bands", "bits", "sample", "says"),
    [
        (6, 16, 1, "6 bands of 16-bit unsigned integers"),
        (8, 8, 1, "8 bands of 8-bit unsigned integers"),
        (3, 32, 3, "3 bands of 32-bit floats"),
        (3, 16, 2, "3 bands of 16-bit signed integers"),
        (1, 64, 3, "1 band of 64-bit floats"),
    ],
)
def test_a_tiff_of_other_bands_or_values_is_told_as_such(tmp_path, bands, bits, sample, says):
    (tmp_path / "many.tif").write_bytes(tiff_of(bands, bits, sample))
    with pytest.raises(DataError, match=rf"is a TIFF of {says}, which .*save 1 \(gray\) or 3"):
        read_image(tmp_path / "many.tif")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", r"HEIC \(HEIF\), .* or install pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0", "JPEG XL, .* or install pillow-jxl-plugin"),
        (b"\xff\x0a\0\0\0\0\0\0\0\0\0\0", "JPEG XL, .* or install pillow-jxl-plugin"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "AVIF.*convert it"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14", "JPEG 2000, .*convert it"),
        (b"%PDF-1.7", "PDF.*convert it"),
        (b"8BPS\0\1", "Photoshop.*convert it"),
        (b"\0" * 128 + b"DICM", "DICOM.*convert it"),
        (b"\x93NUMPY\1\0", "NumPy.*convert it"),
    ],
)
def test_other_formats_are_named_with_the_way_out(tmp_path, monkeypatch, content, says):
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr("visionkit.data.image_io.import_module", Mock(side_effect=ImportError))
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"has the format {says}"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(("suffix", "feature"), [("avif", "avif"), ("jp2", "jpg_2000")])
def test_formats_that_pillow_reads_work(tmp_path, suffix, feature):
    if not features.check(feature):
        pytest.skip(f"this Pillow lacks {feature}")
    Image.new("RGB", (16, 8), (10, 200, 30)).save(tmp_path / f"a.{suffix}", quality=100)
    assert np.abs(np.subtract(pixel(tmp_path / f"a.{suffix}"), [10, 200, 30])).max() <= 4
    assert is_image_file(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("name", "module"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_installed_plugins_work(tmp_path, name, module):
    pytest.importorskip(module)
    suffix = PLUGINS[name].suffixes[0]
    _import_plugin(name)
    Image.new("RGB", (16, 8), (10, 200, 30)).save(tmp_path / f"a{suffix}")
    assert np.abs(np.subtract(pixel(tmp_path / f"a{suffix}"), [10, 200, 30])).max() <= 6


def test_a_plugin_is_imported_when_a_file_needs_it(tmp_path, monkeypatch):
    content = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic"
    (tmp_path / "a.heic").write_bytes(content)

    def register(module):
        assert module == "pillow_heif.HeifImagePlugin"
        opener = Mock(return_value=Image.new("RGB", (4, 3), (10, 20, 30)))
        monkeypatch.setitem(Image.OPEN, "HEIF", (opener, None))

    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr("visionkit.data.image_io.import_module", register)
    assert pixel(tmp_path / "a.heic") == [10, 20, 30]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff_of(3, 16, 1, planar=2), "separate bands of 16 bits, which Pillow misreads"),
        (tiff_of(1, 8, 2), "signed 8-bit pixels"),
        (tiff_of(3, 8, 1, compression=50002), "compression 50002, which Pillow does not read"),
    ],
)
def test_what_pillow_misreads_in_a_tiff_is_refused(tmp_path, content, says):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_image(tmp_path / "a.tif")


def test_16_bits_of_a_format_that_has_no_more_are_sure(tmp_path):
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + bytes([0, 128, 0, 129]))
    assert read_image(tmp_path / "dark.pgm").tolist() == [[[0, 1]]] * 3
    (tmp_path / "12.pgm").write_bytes(b"P5 2 1 4095\n" + bytes([8, 0, 15, 255]))  # has its range
    assert read_image(tmp_path / "12.pgm").tolist() == [[[128, 255]]] * 3
