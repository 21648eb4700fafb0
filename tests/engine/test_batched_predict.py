"""Many files in turn: the same as one by one, whatever lies between them."""

import json
import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import visionkit
from support.paths import ROOT
from visionkit.config import load_config
from visionkit.data.image_io import read_image
from visionkit.engine.predict import predict_each
from visionkit.engine.results import predict_files
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ConfigError, DataError
from visionkit.models.build import build_model
from visionkit.types import Classes

CONFIG = ROOT / "configs/detection_small.yaml"
SIZES = [(40, 30)] * 3 + [(30, 40)] + [(40, 30)] * 6  # (w, h); at most so many go together


@pytest.fixture
def predictor():
    settings = {"train.precision": "fp32", "data.image_size": 64, "head.score_threshold": 0.001}
    config = load_config(CONFIG, settings)
    classes = {"detection": Classes(("one", "two"), (1, 2))}
    torch.manual_seed(0)
    model = build_model(config, classes)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Predictor(model, config, classes)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(SIZES):
        Image.fromarray(rng.integers(256, size=(h, w, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


class Counting(Predictor):
    """A predictor that remembers the shapes of its batches."""

    draw_threshold = 0.5

    read = staticmethod(read_image)

    def __init__(self, predictor):
        self.predictor, self.batches = predictor, []

    def predict_pixels(self, images):
        self.batches.append([tuple(image.shape) for image in images])
        return self.predictor.predict_pixels(images)


def test_same_as_one_by_one(predictor, files):
    counting = Counting(predictor)
    found = list(predict_each(counting, files, lambda file, prediction: prediction, batch_size=4))
    assert [file for file, _ in found] == files
    assert sorted(len(batch) for batch in counting.batches) == [1, 2, 3, 4]
    assert all(len(set(batch)) == 1 for batch in counting.batches)
    for file, prediction in found:
        alone = predictor.predict(file)
        assert len(alone.boxes) and torch.equal(prediction.image, alone.image)
        assert torch.equal(prediction.labels, alone.labels)
        torch.testing.assert_close(prediction.boxes, alone.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(prediction.scores, alone.scores, atol=1e-5, rtol=0)


def test_the_files_written_do_not_depend_on_the_batch_size(predictor, files, tmp_path, caplog):
    files[1].write_bytes(files[1].read_bytes()[:60])
    records = {}
    for size in (1, 4):
        out = tmp_path / f"out{size}"
        with caplog.at_level(logging.ERROR):
            assert predict_files(predictor, [tmp_path / "in"], out, batch_size=size) == 1
        assert {p.name for p in out.glob("*.jpg")} == {f"{i}.jpg" for i in range(10) if i != 1}
        records[size] = json.loads((out / "predictions.json").read_text())
    assert len(caplog.messages) == 2 and all("1.png" in message for message in caplog.messages)
    ids = [record["image_id"] for record in records[1]]
    assert ids == sorted(ids) and set(ids) == set(range(1, 11)) - {2}  # counted, but left out
    for one, other in zip(records[1], records[4], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        keys = ("image_id", "file_name", "category_id")
        assert [one[key] for key in keys] == [other[key] for key in keys]


@pytest.mark.parametrize("count", [0, 1])
def test_few_files(predictor, files, count):
    found = list(predict_each(predictor, files[:count], lambda file, prediction: prediction))
    assert [file for file, _ in found] == files[:count]


def test_only_broken_images(predictor, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 2 images"):
        predict_files(predictor, [folder], tmp_path / "out")
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []


def test_no_more_is_under_way_than_the_threads_need(predictor, files):
    begun, threads = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        use = lambda file, prediction: begun.append(file)  # noqa: E731
        found = predict_each(predictor, files, use, batch_size=1)
        next(found)
        found.close()  # cancels what has not begun
    finally:
        torch.set_num_threads(threads)
    assert 1 <= len(begun) <= 3


def test_a_fault_of_a_thread_reaches_the_user_and_the_number_of_threads_comes_back(
    predictor, files
):
    def use(file, prediction):
        raise ConfigError("no")

    threads = torch.get_num_threads()
    with pytest.raises(ConfigError, match="no"):
        list(predict_each(predictor, files, use))
    assert torch.get_num_threads() == threads


def test_an_interrupted_run_leaves_the_earlier_predictions_and_no_thread(
    predictor, files, tmp_path
):
    out = tmp_path / "out"
    predict_files(predictor, [tmp_path / "in"], out)
    before = (out / "predictions.json").read_bytes()

    class Interrupted(Counting):
        def predict_pixels(self, images):
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().predict_pixels(images)

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(predictor), [tmp_path / "in"], out)
    assert threading.active_count() == threads
    assert (out / "predictions.json").read_bytes() == before
    assert not list(out.glob("*.tmp*"))


def test_predict_takes_images_folders_and_lists_of_both(predictor, files):
    image = Image.open(files[0])
    found = visionkit.predict(predictor, [image, files[0].parent])
    assert len(found) == 1 + len(files)
    one = visionkit.predict(predictor, str(files[0]))
    assert len(one) == 1
    for prediction in (found[0], found[1]):
        assert torch.equal(prediction.boxes, one[0].boxes)
    with pytest.raises(DataError, match="no such file or directory: nowhere"):
        visionkit.predict(predictor, "nowhere")
