"""Predictions of the reader of ONNX files against those of the eager model, for each kind of head:
the graph, the resizing and all that follows the outputs."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visionkit
from support.exported import RUNS, random_predictor, write_exported
from visionkit.engine.export.compare import agreement

SIDE = 96
DATA = os.environ.get("VISIONKIT_TEST_DATA")
GAIN = {"ssd": 1.0}  # or many scores would be exactly one
SIZES = {"data.street.image_size": SIDE, "data.places.image_size": SIDE}


def images_of(folder):
    """Of the size of the network, so that nothing is resized but the odd ones at the end."""
    folder.mkdir()
    if DATA:
        files = sorted(Path(DATA, "bccd").rglob("*.jpg"))[:6]
        images = [Image.open(file).convert("RGB") for file in files]
    else:
        images = [Image.effect_noise((200, 150), 80).convert("RGB") for _ in range(6)]
    for i, image in enumerate(images):
        width, height = (SIDE, 72) if i % 2 else (72, SIDE)
        image.resize((width, height)).save(folder / f"{i}.png")
    tags = Image.Exif()
    tags[0x0112] = 8
    images[0].resize((SIDE, 72)).save(folder / "turned.png", exif=tags)
    Image.new("RGB", (1, 1), (90, 200, 30)).save(folder / "dot.png")
    images[0].resize((SIDE, 60)).convert("L").save(folder / "gray.png")
    return folder


def compared(ours, theirs):
    """Of each head the share of what is the same in both lists of predictions."""
    counts = {head: np.zeros(2, int) for head in ours[0].heads}
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.image.numpy(), other.image) and one.path == other.path
        assert one.heads.keys() == other.heads.keys()
        for head, expected in one.heads.items():
            found = other.heads[head]
            assert [*expected] == [*found]
            for key, value in expected.items():
                if key != "masks":
                    assert found[key].dtype == value.numpy().dtype, key
                    assert found[key].ndim == value.ndim, key
            # In one color, all cells have the same scores: rounding decides which objects stay.
            if one.path.stem != "dot":
                counts[head] += agreement(expected, found)[1:]
    return {head: same / max(count, 1) for head, (same, count) in counts.items()}


@pytest.mark.slow  # torch takes about 10 s to export a model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_the_reader_finds_what_the_model_finds(name, tmp_path):
    sizes = SIZES if name == "joint" else {"data.image_size": SIDE}
    predictor = random_predictor(RUNS[name], GAIN.get(name, 1.5), **sizes)
    path = write_exported(predictor, tmp_path / "model.onnx")
    images = images_of(tmp_path / "images")
    model = visionkit.load(path)
    for batch_size in (1, 3):
        ours = visionkit.predict(predictor, images, batch_size=batch_size)
        shares = compared(ours, visionkit.predict(model, images, batch_size=batch_size))
        # Scores of random weights are close to each other: a few suppress others by rounding.
        assert min(shares.values()) >= 0.98, shares
    for heads in [[head] for head in predictor.heads] if name == "joint" else ():
        alone = visionkit.load(path, heads=heads)
        expected = [prediction.head(heads[0]) for prediction in ours]
        found = visionkit.predict(alone, images, batch_size=3)
        for one, other in zip(expected, found, strict=True):
            assert agreement(one.heads[heads[0]], other.heads[heads[0]])[1] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_input_of_fixed_size_and_batch(tmp_path):
    predictor = random_predictor(RUNS["fcos"], **{"data.image_size": SIDE})
    path = write_exported(predictor, tmp_path / "model.onnx", size=(SIDE, SIDE), batch=2)
    images = images_of(tmp_path / "images")
    Image.open(images / "0.png").resize((4000, 3000)).save(images / "large.png")
    ours = visionkit.predict(predictor, images)
    theirs = visionkit.predict(visionkit.load(path), images, batch_size=3)
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size and len(other)
        assert (other.boxes <= np.array([*other.size[::-1]] * 2) + 0.01).all()
