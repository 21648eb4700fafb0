import io

import numpy as np
import pytest
from PIL import Image

from visionkit.data.image_io import FORMATS, Refused, read_array
from visionkit.data.image_size import HEADER, _jpeg_size, read_size


def saved(path, size=(70, 50), **options):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_the_size_of_the_decoded_image(tmp_path, format):
    path = saved(tmp_path / f"a{FORMATS[format][0]}")
    assert read_size(path) == read_array(path).shape[1:] == (50, 70)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"icc_profile": b"x" * 20_000}, {"comment": b"y" * 50}]
)
def test_jpegs(tmp_path, options):
    path = saved(tmp_path / "a.jpg", **options)
    assert read_size(path) == (50, 70)
    is_quick = _jpeg_size(path.read_bytes()[:HEADER]) == (50, 70)
    assert is_quick == ("icc_profile" not in options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", exif=exif)
    assert read_size(path) == read_array(path).shape[1:]
    assert read_size(path, "ignore") == (50, 70)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for name in ("a.jpg", "none.jpg", "."):
        with pytest.raises(Refused):
            read_size(tmp_path / name)


def test_changed_bytes_give_the_size_that_pillow_reads_or_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    content, path = bytearray(saved(tmp_path / "a.jpg").read_bytes()), tmp_path / "b.jpg"
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, 700, 2):
            changed[place] = rng.integers(256)
        found = _jpeg_size(bytes(changed[:HEADER]))
        try:
            with Image.open(io.BytesIO(changed), formats=["JPEG"]) as image:
                expected = image.height, image.width
        except Exception:
            continue
        assert found in (None, expected)
    path.write_bytes(content[:100])
    with pytest.raises(Refused):
        read_size(path)
