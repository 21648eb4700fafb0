"""Wrong arguments from Python: one error, a TypeError and a ValueError, says what is accepted."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionkit
from support import small_runs
from support.coco_files import save, small
from visionkit.config import load_config
from visionkit.data.datasets.folder import ImageFolder
from visionkit.data.datasets.idx import Idx
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.engine.prediction import Prediction
from visionkit.engine.torch_model import Predictor
from visionkit.engine.train import TrainedRun
from visionkit.errors import ArgumentError, ConfigError
from visionkit.metrics.coco.evaluator import evaluate_files
from visionkit.models.build import build_model
from visionkit.types import Classes

SHORT = small_runs.SMALL_RUNS["classification"]
PATH, OVERRIDES = "expected the path of a run", "expected strings such as"
CALLS = {  # function and arguments, and what the error says
    "load None": (visionkit.load, [None], {}, f"run: got None; {PATH}"),
    "load bytes": (visionkit.load, [b"run"], {}, PATH),
    "load a model": (visionkit.load, [torch.nn.Linear(1, 1)], {}, PATH),
    "load fold": (
        visionkit.load,
        ["run"],
        {"fold": None},
        "fold: got None; expected True or False",
    ),
    "evaluate": (visionkit.evaluate, [3], {}, f"run: got 3; {PATH}"),
    "evaluate a trained run": (
        visionkit.evaluate,
        [TrainedRun(Path("run"), {})],
        {},
        "did you mean its .directory?",
    ),
    "predict with": (visionkit.predict, [None, "a.jpg"], {}, PATH),
    "train": (visionkit.train, [None], {}, "expected a config file or a dict, got a NoneType"),
    "train overrides": (visionkit.train, [SHORT, None], {}, f"overrides: got None; {OVERRIDES}"),
    "train flag": (visionkit.train, [SHORT], {"resume": 1}, "resume: got 1; expected True or"),
    "train both": (visionkit.train, [SHORT], {"resume": "run"}, "config: does not apply to resume"),
    "train twice": (
        visionkit.train,
        [SHORT],
        {"resume": True, "overwrite": True},
        "resume continues a run, overwrite replaces it",
    ),
    "check images": (visionkit.check, [SHORT], {"images": "a"}, "images need an annotation file"),
    "check a file": (visionkit.check, ["a.json", ["x=1"]], {}, "overrides do not apply to an ann"),
    "search": (visionkit.search, ["run", "a", "b"], {"top": 0}, "top: got 0; expected an integer"),
    "train strict": (visionkit.train, [SHORT], {"strict": 1}, "strict: got 1; expected True"),
    "check": (visionkit.check, [5], {}, "expected a config file or a dict, got a int"),
    "check overrides": (visionkit.check, [SHORT, 5], {}, f"overrides: got 5; {OVERRIDES}"),
    "config": (visionkit.load_config, [b"a.yaml"], {}, "got a bytes"),
    "overrides": (visionkit.load_config, [SHORT, ["train.lr=1", None]], {}, "got None; expected"),
    "pairs": (visionkit.load_config, [SHORT, [("train.lr", 1)]], {}, OVERRIDES),
    "bytes": (visionkit.load_config, [SHORT, b"train.lr=1"], {}, OVERRIDES),
    "plugins": (visionkit.load_config, [SHORT], {"allow_plugins": "no"}, "allow_plugins: got 'no'"),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_arguments(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, arguments, options, says = CALLS[case]
    with pytest.raises(ArgumentError) as caught:
        function(*arguments, **options)
    assert says in str(caught.value)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
    assert not list(tmp_path.iterdir())


def test_overrides_of_a_checked_config_are_not_forgotten():
    with pytest.raises(ArgumentError, match="overrides: do not apply"):
        visionkit.train(load_config(SHORT), {"train.steps": 1})


@pytest.fixture(scope="module")
def model():
    config = load_config(SHORT)
    classes = {"classification": Classes(("one", "two"), (0, 1))}
    return build_model(config, classes), config, classes


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(*model)


def closed():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    image = Image.open(file)
    image.close()
    return image


def cut_short():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:900]))


ROWS = np.zeros((8, 9, 3), np.uint8)
IMAGES = {
    "none": (None, "got NoneType"),
    "number": (5, "got int"),
    "bytes": (b"a.jpg", "got bytes"),
    "list": ([ROWS], "got list"),
    "empty array": (np.zeros((0, 9, 3), np.uint8), "got ndarray of shape (0, 9, 3) and type uint8"),
    "no array": (np.array([]), "got ndarray of shape (0,) and type float64"),
    "0-D": (np.array(3, np.uint8), "got ndarray of shape ()"),
    "4-D": (ROWS[None], "(1, 8, 9, 3)"),
    "channels first": (np.zeros((3, 8, 9), np.uint8), "(3, 8, 9)"),
    "objects": (np.full((8, 9, 3), None), "got ndarray of shape (8, 9, 3) and type object"),
    "text": (np.full((8, 9, 3), "a"), "and type <U1"),
    "empty tensor": (torch.zeros(3, 0, 9, dtype=torch.uint8), "got Tensor of shape (3, 0, 9)"),
    "channels last": (torch.zeros(8, 9, 3, dtype=torch.uint8), "(8, 9, 3)"),
    "4-D tensor": (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "(1, 3, 8, 9)"),
    "empty image": (Image.new("RGB", (0, 5)), "the PIL image"),
    "closed image": (closed(), "the PIL image is closed or cannot be decoded [Operation on closed"),
    "cut short": (cut_short(), "the PIL image is closed or cannot be decoded ["),
}


@pytest.mark.parametrize("case", IMAGES)
def test_what_is_no_image(case, predictor):
    image, says = IMAGES[case]
    for predict in (predictor.predict, lambda one: predictor.predict_batch([ROWS, one])):
        with pytest.raises(ArgumentError) as caught:
            predict(image)
        told = str(caught.value)
        assert says in told and ("expected a file name, a PIL image" in told or "open it" in told)


def test_arrays_in_any_memory_order(predictor):
    pixels = np.random.default_rng(0).integers(256, size=(8, 9, 3), dtype=np.uint8)
    want = predictor.predict(pixels).probs
    turned = np.asfortranarray(pixels)[::-1][::-1]
    turned.flags.writeable = False
    assert torch.equal(predictor.predict(turned).probs, want)
    assert torch.equal(predictor.predict(torch.from_numpy(pixels).movedim(-1, 0)).probs, want)
    assert torch.equal(predictor.predict_batch(pixels[None])[0].probs, want)


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 8, 9, 3), np.uint8)])
def test_a_batch_without_images(images, predictor):
    with pytest.raises(ArgumentError, match="got no images; expected at least one"):
        predictor.predict_batch(images)


@pytest.mark.parametrize("images", ["a.jpg", None, 3, Image.new("RGB", (8, 8))])
def test_a_batch_that_is_no_list(images, predictor):
    with pytest.raises(ArgumentError, match=r"predict_batch: got .*; expected a list"):
        predictor.predict_batch(images)


def test_predict_with_a_model(predictor):
    with pytest.raises(ArgumentError, match="predict: got no images"):
        visionkit.predict(predictor, [])
    with pytest.raises(ArgumentError, match=r"^image 0 \(from 0\): got NoneType \(cv2"):
        visionkit.predict(predictor, [None])
    with pytest.raises(ArgumentError, match=r"heads: do not apply to a loaded model"):
        visionkit.predict(predictor, [ROWS], heads=["classification"])


@pytest.mark.parametrize("heads", [[], "classification", 5])
def test_heads_that_are_no_list_of_names(heads, model):
    with pytest.raises(ArgumentError, match="expected a list of one or more of classification"):
        Predictor(*model, heads=heads)


def test_a_head_that_there_is_not(model):
    with pytest.raises(ConfigError, match="the model has no head 'x'; valid: classification"):
        Predictor(*model, heads=("x",))


@pytest.mark.parametrize("key", ["classes", "ignore_categories", "attributes", "only"])
def test_a_string_is_no_list_of_names(key, tmp_path):
    calls = [
        lambda **given: save(tmp_path, small(), **given),
        lambda **given: LabelMaps("images", "maps", **given),
        lambda **given: ImageFolder("images", **given),
        lambda **given: Idx("images", "labels", **given),
        lambda **given: evaluate_files(tmp_path / "a.json", [], "bbox", **given),
    ]
    takes = {"classes": (0, 1, 2, 3), "ignore_categories": (0, 4), "attributes": (0,)}
    takes["only"] = (2, 3)
    for place in takes[key]:
        with pytest.raises(ArgumentError, match=rf"{key}: got 'dog'; expected a list of names"):
            calls[place](**{key: "dog"})


@pytest.mark.parametrize("threshold", ["a", True, float("nan"), -0.1, 1.1, [0.5]])
def test_thresholds(threshold):
    prediction = Prediction({}, {}, torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"threshold: got .*; expected None or a number"):
        prediction.draw(threshold=threshold)
    prediction.draw(threshold=np.float32(0.5))
    prediction.draw(threshold=torch.tensor(0.5))
