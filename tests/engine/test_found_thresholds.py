"""The scores of the best F1: found by validation, kept in best.pt, used to draw."""

import copy
import math

import pytest
import torch

from support.small_runs import SMALL_RUNS, joint
from visionkit.cli.main import main
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.engine.evaluate import evaluated_run, find_thresholds
from visionkit.engine.predict import load
from visionkit.engine.train import train
from visionkit.errors import ArgumentError
from visionkit.metrics.thresholds import Thresholds, at_score
from visionkit.runs import checkpoint
from visionkit.visualization.draw import at_least


def trained(tmp_path, name="task_aligned", **settings):
    config = copy.deepcopy(SMALL_RUNS[name])
    config["train"] |= {"steps": 100, "lr": 0.05, "validate": 100} | settings
    config["data"]["val"]["num_images"] = 20
    return train(config, {"output": str(tmp_path / "run")}).directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("thresholds"))


def saved(run, name="best"):
    return checkpoint.load(run / "checkpoints" / f"{name}.pt")["thresholds"]


def test_best_pt_has_the_thresholds_that_its_evaluation_finds(run):
    found = find_thresholds(evaluated_run(run).evaluators)
    assert saved(run) == saved(run, "last") == {"detection": found["detection"].to_dict()}


def test_f1_is_not_lower_than_at_one_half_on_the_data_they_were_found_on(run):
    (evaluator,) = evaluated_run(run).evaluators.values()
    thresholds = Thresholds(**saved(run)["detection"])
    from visionkit.metrics.coco.matches import match_objects
    from visionkit.metrics.thresholds import detection_curves

    truth, found, _ = evaluator.scored["bbox"]
    curves, _ = detection_curves(match_objects(truth, found, "pycocotools", ious=1))
    assert thresholds.classes  # some class has ten objects
    for name, threshold in thresholds.classes.items():
        assert at_score(curves[name], threshold)[2] >= at_score(curves[name], 0.5)[2]


def test_predictions_are_drawn_from_them_on(run):
    predictor = load(run)
    thresholds = Thresholds(**saved(run)["detection"])
    names = predictor.classes["detection"].names
    lowest = tuple(thresholds.best(names))
    prediction = predictor.predict(torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8))
    assert prediction.draw_threshold == {"detection": lowest}
    result = prediction.heads["detection"]
    expected = [s >= lowest[k] for k, s in zip(result["labels"], result["scores"], strict=True)]
    assert at_least(result, lowest).tolist() == expected
    assert len(prediction.above()) == sum(expected)


def test_a_precision_or_a_number_replace_them(run):
    predictor = load(run)
    predictor.use_threshold(0.25)
    assert predictor.draw_threshold == 0.25
    predictor.use_threshold("p=0.5")
    thresholds = Thresholds(**saved(run)["detection"])
    names = predictor.classes["detection"].names
    wanted = [math.inf if s is None else s for s in thresholds.at_precision(50, names)]
    assert predictor.draw_threshold == {"detection": tuple(wanted)}
    predictor.use_threshold("best")
    assert predictor.draw_threshold == {"detection": tuple(thresholds.best(names))}


@pytest.mark.parametrize("wanted", ["p=0.4", "p=1", "p=0.999", "p=x", "most", -1, 2, True])
def test_other_thresholds_are_refused(run, wanted):
    with pytest.raises(ArgumentError, match="threshold: got"):
        load(run).use_threshold(wanted)


def test_without_a_validation_all_is_as_before(tmp_path):
    run = trained(tmp_path, validate=False, steps=2)
    assert saved(run) == {}
    predictor = load(run)
    assert predictor.draw_threshold == {"detection": 0.4}
    with pytest.raises(ArgumentError, match="no validation of it found any"):
        predictor.use_threshold("best")


def test_a_checkpoint_of_an_earlier_version_has_none(run, tmp_path):
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    del state["thresholds"]
    torch.save(state, tmp_path / "old.pt")
    assert load(tmp_path / "old.pt").draw_threshold == {"detection": 0.4}


@pytest.mark.slow
def test_they_survive_resume_init_from_and_a_choice_of_heads(tmp_path):
    config = joint(steps=150, validate=100, lr=0.05)
    for source in ("street", "places"):
        config["data"][source]["val"]["num_images"] = 20
    first = train(config, {"output": str(tmp_path / "first")}).directory
    known = saved(first)
    assert "objects" in known
    chosen = load(first, heads=["objects", "looks"])
    lowest = Thresholds(**known["objects"])
    names = chosen.classes["objects"].names
    assert chosen.draw_threshold["objects"] == tuple(lowest.best(names))
    assert chosen.draw_threshold["looks"] == lowest.common  # it describes these objects
    train(config, {"output": str(first), "train.steps": 152, "train.validate": False}, resume=True)
    assert saved(first) == known
    more = {**config, "init_from": {"run": str(first), "heads": ["objects"]}}
    again = {"output": str(tmp_path / "second"), "train.validate": False, "train.steps": 2}
    assert saved(train(more, again).directory) == {"objects": known["objects"]}


def test_the_command_says_from_which_scores_it_draws(run, tmp_path, caplog):
    generate_shapes(tmp_path / "shapes", images=2, size=32, seed=3)
    words = ["predict", str(run), str(tmp_path / "shapes" / "images"), "--out"]
    caplog.set_level("INFO", logger="visionkit")
    assert main([*words, str(tmp_path / "a")]) == 0
    assert "objects are drawn from these scores on: detection: circle 0." in caplog.text
    assert main([*words, str(tmp_path / "b"), "--threshold", "0.9"]) == 0
    assert "score at least 0.9" in caplog.text
    assert main([*words, str(tmp_path / "c"), "--threshold", "p=2"]) == 2


def test_multilabel_classes_count_from_their_thresholds_on(tmp_path):
    probs = torch.tensor([[0.9, 0.2], [0.8, 0.3], [0.1, 0.6]] * 10)
    truth = torch.tensor([[1, 0], [1, 1], [0, 1]] * 10)
    from visionkit.metrics.accuracy import MultiLabelAccuracy
    from visionkit.models.heads import Classification
    from visionkit.types import Batch, Level

    evaluator = MultiLabelAccuracy(["a", "b"])
    targets = [{"image_id": i, "class_id": row} for i, row in enumerate(truth)]
    images = torch.zeros(len(targets), 3, 8, 8, dtype=torch.uint8)
    evaluator.update([{"probs": row} for row in probs], Batch(images, targets))
    found = evaluator.thresholds()
    assert found.best(["a", "b"]) == pytest.approx([0.8, 0.3])
    head = Classification({"c2": Level(4, 4)}, ["a", "b"], multilabel=True)
    logits = torch.tensor([[0.25, 0.35]]).logit()
    assert (
        head.decode({"logits": logits}, Batch(images[:1], targets[:1]))[0]["labels"].tolist() == []
    )
    head.class_thresholds = (0.8, 0.3)
    found = head.decode({"logits": logits}, Batch(images[:1], targets[:1]))
    assert found[0]["labels"].tolist() == [1]
