"""Predictions from several views of an image, of every kind of head: `--tta` and `--tiles`."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import decode

import visionkit
from support.exported import RUNS, random_predictor, write_exported
from support.onnx_files import (
    OBJECTS,
    head_info,
    model_info,
    model_of_all_kinds,
    noise,
    outputs_of,
    write_onnx,
)
from support.small_runs import SMALL_RUNS
from visionkit import Head, Loss
from visionkit.cli.main import main
from visionkit.data.build import build_sources
from visionkit.engine.onnx_model import OnnxPredictor
from visionkit.engine.prediction import to_records
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ArgumentError, ConfigError
from visionkit.metrics.accuracy import Accuracy
from visionkit.types import Classes, as_numpy, prediction_kinds

OF_THE_IMAGE = {"classes", "box", "embedding"}  # which a tile does not show
IMAGE = np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8)


@pytest.fixture(scope="module")
def predictors():
    """A model of each kind of head, made when it is asked for."""
    made = {}
    return lambda name: made.setdefault(name, random_predictor(copy.deepcopy(RUNS[name])))


def used(predictor, *args, **kwargs):
    predictor.use_views(*args, **kwargs)
    return predictor


def arrays(result):
    return {key: as_numpy(value) for key, value in result.items() if key != "masks"}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for head in one:
        own, other = arrays(one[head]), arrays(two[head])
        assert own.keys() == other.keys()
        for key in own:
            assert own[key].dtype == other[key].dtype and np.array_equal(own[key], other[key])
        assert one[head].get("masks") == two[head].get("masks")


# --- heads ---


@pytest.mark.parametrize("name", RUNS)
def test_every_head_works_or_says_why_not(name, predictors):
    predictor = predictors(name)
    plain = used(predictor).predict(IMAGE)
    kinds = {kind for result in plain.heads.values() for kind in prediction_kinds(result)}
    if "reconstruction" in kinds:
        with pytest.raises(ArgumentError, match="it reconstructs the image that it is given"):
            predictor.use_views("flip")
        return
    merged = used(predictor, "flip,0.5").predict(IMAGE)
    assert to_records(merged) is not None
    for head, result in plain.heads.items():
        assert merged.heads[head].keys() == result.keys()
        for key, value in arrays(result).items():
            assert arrays(merged.heads[head])[key].dtype == value.dtype
            assert arrays(merged.heads[head])[key].ndim == value.ndim
    if kinds & OF_THE_IMAGE:
        with pytest.raises(ArgumentError, match="it describes the whole image") as error:
            predictor.use_views(tiles=64)
        assert "head 'scene'" in str(error.value) or len(plain.heads) == 1
        return
    tiled = used(predictor, tiles=64, overlap=0.1).predict(IMAGE)
    assert to_records(tiled) is not None and tiled.size == (70, 100)


@pytest.mark.parametrize("name", ["fcos", "mask_rcnn", "semantic", "task_aligned"])
def test_an_image_no_larger_than_a_tile_is_as_without_tiles(name, predictors):
    """Bit for bit, alone and beside a larger one."""
    images = [IMAGE, IMAGE[:64, :60]]
    plain = used(predictors(name)).predict_batch(images)
    alone = predictors(name).predict(images[1])
    tiled = used(predictors(name), tiles=64).predict_batch(images)
    assert_same(plain[1].heads, tiled[1].heads)
    assert_same(alone.heads, predictors(name).predict(images[1]).heads)
    with pytest.raises(AssertionError):
        assert_same(plain[0].heads, tiled[0].heads)


def test_a_mirrored_symmetric_image_changes_no_probability(predictors):
    both = np.concatenate([IMAGE, IMAGE[:, ::-1]], 1)
    for name in ("classification", "embedding"):
        plain = used(predictors(name)).predict(both).heads[name]
        merged = used(predictors(name), "flip").predict(both).heads[name]
        for key, value in plain.items():
            np.testing.assert_allclose(as_numpy(merged[key]), as_numpy(value), atol=1e-6)


@pytest.mark.parametrize("name", ["semantic", "localization"])
def test_mirroring_a_symmetric_image_makes_predictions_symmetric(name, predictors):
    both = np.concatenate([IMAGE, IMAGE[:, ::-1]], 1)
    merged = used(predictors(name), "flip").predict(both)
    plain = used(predictors(name)).predict(both)
    if name == "semantic":
        shares = [
            np.mean(m == m[:, ::-1]) for m in map(as_numpy, (plain.semantic, merged.semantic))
        ]
        assert shares[0] < 0.995 < 0.999 < shares[1]
        return
    x1, _, x2, _ = merged.boxes[0].tolist()
    assert x1 + x2 == pytest.approx(200, abs=1e-3) and sum(plain.boxes[0, ::2].tolist()) != 200


def test_scales_are_of_the_image_size(predictors):
    """At half the size one view alone is the prediction of a model with half the image size."""
    predictor = predictors("classification")
    merged = used(predictor, [0.5]).predict(IMAGE).probs
    plain = used(predictor).predict(IMAGE).probs
    half = random_predictor(copy.deepcopy(RUNS["classification"]), **{"data.image_size": 16})
    expected = (plain + half.predict(IMAGE).probs) / 2
    assert torch.allclose(merged, expected, atol=1e-6) and not torch.allclose(merged, plain)


def test_a_backbone_for_one_size_takes_no_scales():
    spec = copy.deepcopy(SMALL_RUNS["classification"])
    spec["backbone"] = {"type": "MLP", "size": 32}
    predictor = random_predictor(spec)
    used(predictor, "flip").predict(IMAGE[:50, :50])
    with pytest.raises(ArgumentError, match="tta: MLP: got an image of 16x16"):
        predictor.use_views("0.5")


def test_several_classes_of_an_image_are_named_by_the_mean():
    spec = copy.deepcopy(SMALL_RUNS["classification"])
    spec["head"]["multilabel"] = True
    predictor = random_predictor(spec)
    merged = used(predictor, "flip,1.5").predict(IMAGE)
    assert set(merged.labels.tolist()) == set(np.flatnonzero(merged.probs >= 0.5).tolist())
    probs = [used(predictor).predict(part).probs for part in (IMAGE, IMAGE[:, ::-1].copy())]
    mirrored = used(predictor, "flip").predict(IMAGE).probs
    assert torch.allclose(mirrored, (probs[0] + probs[1]) / 2, atol=1e-6)


def test_several_classes_of_an_exported_model(tmp_path):
    outputs = {"probs": np.array([0.6, 0.2, 0.9], np.float32)}
    info = model_info({"head": head_info("Classification", outputs, threshold=0.5)})
    path = write_onnx(tmp_path / "model.onnx", info, outputs_of("head", outputs))
    found = used(OnnxPredictor(path), "flip").predict(noise()).heads["head"]
    assert found["labels"].tolist() == [2, 0] and found.keys() == {"probs", "labels"}


def test_attributes_are_those_of_the_merged_objects(predictors):
    predictor = predictors("joint")
    found = used(predictor, "flip").predict(IMAGE).heads
    assert torch.equal(found["looks"]["boxes"], found["objects"]["boxes"])
    assert len(found["looks"]["attributes"]) == len(found["objects"]["boxes"]) > 0
    assert not {"attributes", "labels"} & found["looks"].keys() - {"attributes"}
    alone = Predictor(predictor.model, predictor.config, predictor.classes, heads=["looks"])
    described = used(alone, "flip").predict(IMAGE).heads
    assert [*described] == ["looks"]
    assert torch.allclose(described["looks"]["boxes"], found["looks"]["boxes"], atol=1e-3)
    used(alone, tiles=64).predict(IMAGE)  # its objects can be in tiles, without the class head


# --- exported models ---


def test_an_exported_model_sees_the_same_views(tmp_path):
    """Of one that finds the same in every view: what is merged is known."""
    model = OnnxPredictor(model_of_all_kinds(tmp_path / "model.onnx"))
    found = used(model, "flip").predict(noise(128, 64)).heads
    boxes = [[8, 4, 40, 24], [88, 4, 120, 24], [0, 0, 64, 32], [64, 0, 128, 32]]
    assert found["objects"]["boxes"].tolist() == boxes
    assert found["objects"]["scores"].tolist() == pytest.approx([0.45, 0.45, 0.2, 0.2])
    assert found["objects"]["labels"].tolist() == [2, 2, 0, 0]
    masks = [decode(mask) for mask in found["objects"]["masks"]]
    assert np.array_equal(masks[1], masks[0][:, ::-1]) and masks[0].sum() > 600
    assert found["look"]["boxes"].tolist() == boxes
    np.testing.assert_allclose(found["look"]["attributes"], np.full((4, 3), 0.7))
    np.testing.assert_allclose(found["scene"]["probs"], [0.2, 0.7, 0.1])
    assert found["scene"]["label"] == 1
    np.testing.assert_allclose(found["vector"]["embedding"], [0.6, 0.8])
    semantic = found["map"]["semantic"]
    assert np.array_equal(semantic, semantic[:, ::-1]) and len(np.unique(semantic)) > 1


def test_an_exported_model_sees_tiles(tmp_path):
    """Its head of the whole image is refused; two images of 64 pixels of the same content each."""
    path = model_of_all_kinds(tmp_path / "model.onnx")
    with pytest.raises(ArgumentError, match="head 'scene' cannot use them: it describes the whole"):
        visionkit.load(path, tiles=64)
    model = visionkit.load(path, heads=["objects", "look", "map"], tiles=64, overlap=0)
    found = model.predict(noise(128, 64)).heads
    tiles = [[4, 2, 20, 12], [68, 2, 84, 12]]  # in each tile, at its own scale
    assert [box for box in found["objects"]["boxes"].tolist() if box in tiles] == tiles
    assert found["look"]["boxes"].tolist() == found["objects"]["boxes"].tolist()
    assert found["map"]["semantic"].shape == (64, 128)
    plain = visionkit.load(path).predict(noise(64, 64)).heads
    alone = model.predict(noise(64, 64)).heads
    assert_same({head: plain[head] for head in alone}, alone)


def test_an_exported_model_of_one_size_takes_no_scales(tmp_path):
    info = model_info({"objects": head_info("FCOS", OBJECTS)}, size=(32, 64))
    outputs = outputs_of("objects", OBJECTS)
    model = OnnxPredictor(write_onnx(tmp_path / "model.onnx", info, outputs, size=(32, 64)))
    used(model, "flip", 64).predict(noise(128, 64))
    with pytest.raises(ArgumentError, match=r"exported for images of 32x64 .* --dynamic"):
        model.use_views("0.5")


def test_an_exported_autoencoder_is_refused(tmp_path):
    outputs = {"reconstruction": np.zeros((3, 64, 64), np.uint8)}
    info = model_info({"again": head_info("Autoencoder", outputs, classes=Classes((), ()))})
    path = write_onnx(tmp_path / "model.onnx", info, outputs_of("again", outputs))
    with pytest.raises(ArgumentError, match="head 'again' cannot use them: it reconstructs"):
        visionkit.load(path, tta="flip")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos", "mask_rcnn", "semantic", "embedding", "joint"])
def test_exported_models_merge_as_eager_ones(name, predictors, tmp_path):
    predictor = used(predictors(name))
    exported = OnnxPredictor(write_exported(predictor, tmp_path / "model.onnx"))
    whole = name in ("embedding", "joint")
    options = {"tta": "flip,1.5"} if whole else {"tta": "flip", "tiles": 64}
    eager, theirs = (used(one, **options).predict(IMAGE).heads for one in (predictor, exported))
    for head in eager:
        own, other = arrays(eager[head]), arrays(theirs[head])
        assert own.keys() == other.keys()
        for key, value in own.items():
            if key == "semantic":
                assert np.mean(value == other[key]) > 0.99
            elif len(value) == len(other[key]):
                assert np.isclose(value, other[key], rtol=1e-2, atol=1e-2).mean() > 0.9
            else:  # boxes whose scores are next to the threshold
                assert abs(len(value) - len(other[key])) <= 0.05 * len(value)


# --- custom heads ---


class Counting(Head):
    """Finds how many objects there are."""

    required_targets = ()
    main_metric = "error"

    def __init__(self, levels, classes):
        super().__init__()
        self.level = list(levels)[-1]
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, features, sizes=None):
        return {"counts": features[self.level].float().mean((1, 2, 3)) * self.weight}

    def loss(self, features, batch):
        counts = self(features)["counts"]
        return {"count": Loss(counts.sum(), counts.new_tensor(len(counts)))}

    def decode(self, outputs, batch):
        return [{"counts": counts} for counts in outputs["counts"]]

    def evaluator(self, dataset):
        return Accuracy([])


class MergedCounting(Counting):
    def merge(self, found, views):
        assert len(found) == len(views)
        return {"counts": torch.stack([one["counts"] for one in found]).mean()}


class BrokenCounting(Counting):
    def merge(self, found, views):
        return {"boxes": torch.zeros(3)}


def counting(head):
    spec = copy.deepcopy(SMALL_RUNS["classification"])
    del spec["task"]
    data = spec["data"]
    del spec["head"]
    spec["heads"] = {"count": {"type": f"{__name__}.{head.__name__}"}}
    spec["data"] = {"workers": 0, "main": {**data, "feeds": ["count"]}}
    spec["data"]["main"].pop("workers")
    return random_predictor(spec)


def test_a_custom_head_says_how_it_is_merged():
    predictor = counting(MergedCounting)
    parts = [
        predictor.predict(part).heads["count"]["counts"] for part in (IMAGE, IMAGE[:, ::-1].copy())
    ]
    merged = used(predictor, "flip").predict(IMAGE).heads["count"]["counts"]
    assert torch.allclose(merged, torch.stack(parts).mean(), atol=1e-6)
    used(predictor, tiles=64).predict(IMAGE)


def test_a_custom_head_without_a_rule_is_refused():
    with pytest.raises(ArgumentError) as error:
        counting(Counting).use_views("flip")
    assert str(error.value) == (
        "tta, tiles: head 'count' cannot use them: there is no rule to merge predictions of "
        "counts; a custom head can have one: its method merge()"
    )


def test_what_a_custom_head_merges_is_checked():
    with pytest.raises(ConfigError, match=r"heads.count: merge\(\): got"):
        counting(BrokenCounting).use_views("flip")


# --- eval and the command line ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    spec = copy.deepcopy(SMALL_RUNS["fcos"])
    spec["head"] |= {"score_threshold": 0.0, "max_detections": 10}
    spec["data"]["val"]["size"] = 72
    return visionkit.train(
        {**spec, "output": str(tmp_path_factory.mktemp("views") / "run")}
    ).directory


def test_eval_scores_what_predict_finds(run):
    """And losses stay those of the images alone; what was done is written beside the metrics."""
    plain = visionkit.evaluate(run)
    assert "views" not in json.loads((run / "eval/metrics.json").read_text())
    metrics = visionkit.evaluate(run, tta="flip", tiles=64, overlap=0.3)
    losses = {name for name in plain if "/loss/" in name}
    assert losses and all(metrics[name] == plain[name] for name in losses)
    written = json.loads((run / "eval/metrics.json").read_text())
    assert written["views"] == {"tta": ["flip"], "tiles": 64, "overlap": 0.3}
    scored = json.loads((run / "eval/detection_bbox.json").read_text())

    model = visionkit.load(run, fold=False, tta=["flip"], tiles=64, overlap=0.3)
    (source,) = build_sources(model.config, ("val",), model.classes)
    ids = np.asarray(source.val.image_ids).tolist()
    found = [
        {key: record[key] for key in ("image_id", "category_id", "bbox", "score")}
        for index, image_id in enumerate(ids)
        for record in to_records(model.predict(source.val[index].image), image_id)
    ]
    own = [{key: record[key] for key in found[0]} for record in scored]
    assert sorted(own, key=str) == sorted(found, key=str) and len(found) > 20


def test_eval_of_images_no_larger_than_a_tile_equals_that_without_tiles(run):
    assert visionkit.evaluate(run, tiles=72) == pytest.approx(
        visionkit.evaluate(run), nan_ok=True, rel=0, abs=0
    )


def test_commands(run, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    words = [str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    views = ["--tta", "flip", "--tiles", "64", "--overlap", "0.5"]
    assert main(["predict", *words, *views]) == 0
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    found = visionkit.predict(run, tmp_path / "a.png", tta="flip", tiles=64, overlap=0.5)
    assert [record["score"] for record in written] == found[0].scores.tolist()
    assert (
        visionkit.predict_files(
            run, tmp_path / "a.png", tmp_path / "again", tta="flip", tiles=64, overlap=0.5
        )
        == 0
    )
    assert json.loads((tmp_path / "again/predictions.json").read_text()) == [
        {**record, "overlay": record["overlay"]} for record in written
    ]
    capsys.readouterr()
    assert main(["eval", str(run), *views]) == 0
    assert "from several views: tta ['flip'], tiles 64, overlap 0.5" in capsys.readouterr().out
    assert main(["eval", str(run), "--json", "--tta", "1.5"]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == {"tta": [1.5]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tiles", "32"], "tiles: got 32; expected the side of a tile"),
        (["--tiles", "640", "--overlap", "0.9"], "overlap: got 0.9"),
        (["--overlap", "0.5"], "overlap: got 0.5 without tiles"),
        (["--tta", "mirror"], "tta: got mirror; expected flip and scales"),
        (["--tta", ""], "tta: got ''"),
        (["--tiles", "x"], "--tiles: got x; expected an integer >= 1"),
    ],
)
def test_wrong_options_of_commands(words, says, run, tmp_path, capsys):
    out = tmp_path / "out"
    for command in (["eval", str(run)], ["predict", str(run), __file__, "--out", str(out)]):
        assert main([*command, *words]) == 2
        assert says in capsys.readouterr().err
    assert not out.exists()


def test_options_that_do_not_apply(run, capsys):
    model = visionkit.load(run)
    for options in ({"tta": "flip"}, {"tiles": 64}):
        with pytest.raises(ArgumentError, match="do not apply to a loaded model"):
            visionkit.predict(model, IMAGE, **options)
    assert main(["eval", "--gt", "a.json", "--pred", "b.json", "--tiles", "64"]) == 2
    assert "need a model, not --gt and --pred" in capsys.readouterr().err
