"""What `visionkit.predict` takes: all forms give the same; lists, streams, unreadable images."""

import io
import logging
from types import GeneratorType

import numpy as np
import pytest
import torch
from PIL import Image

import visionkit
from support import small_runs
from visionkit.config import load_config
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ArgumentError, DataError
from visionkit.models.build import build_model
from visionkit.types import Classes

PIXELS = np.random.default_rng(0).integers(256, size=(24, 36, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor():
    config = load_config(small_runs.SMALL_RUNS["classification"])
    classes = {"classification": Classes(("one", "two"), (0, 1))}
    torch.manual_seed(0)
    return Predictor(build_model(config, classes), config, classes)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        Image.fromarray(np.roll(PIXELS, i, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_every_form_of_one_image_gives_the_same(predictor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms = [path, str(path), Image.fromarray(PIXELS), PIXELS, tensor, PIXELS.astype("u2") * 257]
    want = predictor.predict(path)
    for form in forms:
        (found,) = visionkit.predict(predictor, form)
        assert torch.equal(found.probs, want.probs) and torch.equal(found.image, want.image)
        assert found.path == (path if isinstance(form, (str, type(path))) else None)
    many = visionkit.predict(predictor, forms)
    assert [found.path for found in many] == [path, path, *[None] * 4]
    assert all(torch.equal(found.probs, want.probs) for found in many)


def test_pil_images_are_turned_as_files_are(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in (("rgb.png", Image.fromarray(PIXELS)), ("p.png", Image.fromarray(PIXELS))):
        image = image.quantize(16) if name == "p.png" else image
        image.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as opened:
            (found,) = visionkit.predict(predictor, opened)
        (want,) = visionkit.predict(predictor, tmp_path / name)
        assert want.size == (36, 24) and torch.equal(found.image, want.image)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"]
)
def test_pil_modes_are_converted(mode, predictor):
    gray = mode in ("1", "L", "LA", "I;16")
    image = Image.fromarray(PIXELS).convert("L")
    image = image.point(lambda v: v * 257, "I").convert("I;16") if mode == "I;16" else image
    image = image if mode == "I;16" else (image if gray else Image.fromarray(PIXELS)).convert(mode)
    found = predictor.predict(image).image
    assert found.shape == (3, 24, 36)
    assert not gray or torch.equal(found[0], found[2])


def blank(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


CONVERSIONS = {  # what is given, and what makes an image of it as the message says
    "array, channels first": (blank(3, 8, 9), "image.transpose(1, 2, 0)"),
    "gray array, channels first": (blank(1, 8, 9), "image.transpose(1, 2, 0)"),
    "tensor, channels last": (torch.zeros(8, 9, 3).byte(), "image.permute(2, 0, 1)"),
    "array of RGBA": (blank(8, 9, 4), "image[..., :3]"),
    "tensor of RGBA": (torch.zeros(4, 8, 9).byte(), "image[:3]"),
    "array of gray and alpha": (blank(8, 9, 2), "image[..., 0]"),
    "tensor of gray and alpha": (torch.zeros(2, 8, 9).byte(), "image[0]"),
    "floats of an array": (np.full((8, 9, 3), 0.5), "(image * 255).round().astype(np.uint8)"),
    "floats of a tensor": (torch.full((3, 8, 9), 0.5), "(image * 255).round().byte()"),
    "floats to 255": (np.full((8, 9, 3), 99.5), "image.round().astype(np.uint8)"),
}


@pytest.mark.parametrize("case", CONVERSIONS)
def test_what_is_refused_comes_with_its_conversion(case, predictor):
    image, how = CONVERSIONS[case]
    with pytest.raises((ArgumentError, DataError)) as caught:
        predictor.predict(image)
    assert how in str(caught.value)
    predictor.predict(eval(how, {"image": image, "np": np}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (blank(2, 8, 9, 3), "for several images: visionkit.predict(model, list(images))"),
        (torch.zeros(2, 3, 8, 9).byte(), "for several images: visionkit.predict(model, list("),
        ({"image": PIXELS}, "got dict"),
        (b"\x89PNG", "PIL.Image.open(io.BytesIO(content))"),
        (np.full((8, 9, 3), -1.5), "normalized, give the pixels before: the model normalizes"),
        (torch.full((3, 8, 9), torch.nan), "not finite: replace them"),
    ],
)
def test_what_else_is_refused(given, says, predictor):
    with pytest.raises((ArgumentError, DataError)) as caught:
        visionkit.predict(predictor, given)
    told = str(caught.value)
    assert says in told and "image 0" not in told
    assert "not finite" not in says or "normalized" not in told


def test_an_open_file_is_refused_with_what_opens_it(predictor):
    with pytest.raises(ArgumentError, match=r"got BytesIO .*PIL\.Image\.open\(file\)"):
        predictor.predict(io.BytesIO())
    with pytest.raises(ArgumentError, match=r"got list .*visionkit\.predict\(model, images\)"):
        predictor.predict([PIXELS])


def test_a_generator_is_taken_one_at_a_time(predictor):
    taken = []

    def stream():
        for i in range(10**9):
            taken.append(i)
            yield PIXELS

    found = visionkit.predict(predictor, stream())
    assert isinstance(found, GeneratorType) and not taken
    for i in range(3):
        assert len(next(found).probs) == 2 and len(taken) == i + 1
    two = visionkit.predict(predictor, stream(), batch_size=2)
    taken.clear()
    next(two)
    assert len(taken) == 2
    assert len([*visionkit.predict(predictor, (p for p in [PIXELS] * 3), batch_size=2)]) == 3


def test_a_stream_may_have_folders(predictor, folder):
    found = [*visionkit.predict(predictor, iter([PIXELS, folder, str(folder / "1.png")]))]
    assert [p.path and p.path.name for p in found] == [
        None,
        *(f"{i}.png" for i in range(5)),
        "1.png",
    ]


def test_batches_predict_the_same(predictor, folder):
    alone = visionkit.predict(predictor, folder)
    together = visionkit.predict(predictor, [folder], batch_size=4)
    assert [p.path for p in alone] == [p.path for p in together] == sorted(folder.iterdir())
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.probs, other.probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_wrong_batch_sizes(size, predictor):
    with pytest.raises(ArgumentError, match=r"batch_size: got .*; expected an integer >= 1"):
        visionkit.predict(predictor, PIXELS, batch_size=size)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_unreadable_image_is_named_or_skipped(batch_size, predictor, folder, caplog):
    (folder / "2.png").write_bytes(b"no image")
    images = [PIXELS, folder, np.full((4, 4), 0.5)]
    with pytest.raises(DataError, match=r"^image \S*2\.png "):
        visionkit.predict(predictor, images, batch_size=batch_size)
    stream = visionkit.predict(predictor, iter(images), batch_size=batch_size)
    assert [next(stream).path is None for _ in range(3)] == [True, False, False]
    with pytest.raises(DataError, match=r"2\.png "):
        next(stream)
    with caplog.at_level(logging.ERROR):
        found = visionkit.predict(predictor, images, batch_size=batch_size, skip_unreadable=True)
    assert [p is None for p in found] == [False] + [i == 2 for i in range(5)] + [True]
    assert len(caplog.messages) == 2 and "2.png" in caplog.messages[0]
    assert caplog.messages[1].startswith("skipped: image 2 (from 0): ndarray has floating-point")
    with pytest.raises(
        ArgumentError, match=r"^image 1 \(from 0\): got ndarray of shape \(3, 8, 9\)"
    ):
        visionkit.predict(predictor, [PIXELS, blank(3, 8, 9)], skip_unreadable=True)
    with pytest.raises(ArgumentError, match="skip_unreadable: got 1; expected True or False"):
        visionkit.predict(predictor, PIXELS, skip_unreadable=1)


def test_missing_files_of_a_list_are_named_together_before_anything_is_predicted(predictor):
    with pytest.raises(DataError, match=r"no such file or directory: no1\.png, no2\.png"):
        visionkit.predict(predictor, [PIXELS, "no1.png", "no2.png"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_missing_file_of_a_stream_is_named_or_skipped_at_its_place(
    batch_size, predictor, folder, tmp_path, caplog
):
    (tmp_path / "empty").mkdir()
    images = [PIXELS, folder / "no.png", folder / "1.png", tmp_path / "empty", PIXELS]
    stream = visionkit.predict(predictor, iter(images), batch_size=batch_size)
    assert len(next(stream).probs) == 2  # the one before it is not lost
    with pytest.raises(DataError, match=r"no such file or directory: .*no\.png"):
        next(stream)
    for given in (iter(images), images):
        caplog.clear()
        found = [*visionkit.predict(predictor, given, batch_size=batch_size, skip_unreadable=True)]
        assert [p is None for p in found] == [False, True, False, True, False]
        no, empty = caplog.messages
        assert "no.png" in no and empty.startswith(f"skipped: no images in {tmp_path / 'empty'}")
    with pytest.raises(ArgumentError, match="got an empty file name"):
        [*visionkit.predict(predictor, iter([PIXELS, ""]), skip_unreadable=True)]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("http://x.org/a.jpg", "images are not downloaded: give files"),
        ("images/*.jpg", "patterns are not expanded: give files or a folder"),
    ],
)
def test_urls_and_patterns_are_explained(name, hint, predictor):
    with pytest.raises(DataError, match=f"no such file or directory: .*; {hint}"):
        visionkit.predict(predictor, name)


def test_overrides_are_those_of_load(predictor):
    with pytest.raises(ArgumentError, match="overrides: do not apply to a loaded model"):
        visionkit.predict(predictor, PIXELS, {"data.image_size": 64})


def test_the_repr_of_a_predictor(predictor):
    assert repr(predictor).splitlines() == [
        "Predictor of 'run' (cpu, float32)",
        "  TinyCNN",
        "  classification: Classification, image size 32, 2 classes: one, two",
    ]


@pytest.mark.parametrize(
    "given", [[PIXELS], PIXELS, Image.fromarray(PIXELS), None, [None], (path for path in ["a.png"])]
)
def test_predict_files_takes_files_alone(given, predictor, tmp_path):
    with pytest.raises(ArgumentError, match="expected files and folders, each a str or Path"):
        visionkit.predict_files(predictor, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
