"""CocoEvaluator in a loop that is not visionkit's, against pycocotools and files of results."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import visionkit
from support.coco_scenes import only, raw_pycocotools, scene
from visionkit.errors import ArgumentError, ConfigError, DataError, DivergedError
from visionkit.metrics.coco.evaluator import STATS, CocoEvaluator, evaluate_coco
from visionkit.metrics.coco.ground_truth import log_once
from visionkit.types import Classes

TYPES = ("bbox", "segm")
NAMES = ["class 5", "class 17", "class 90"]
LABEL = {5: 0, 17: 1, 90: 2}


def corners(records):
    boxes = np.array([r["bbox"] for r in records], float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def pixels(records, size=(100, 120)):
    masks = [coco_mask.decode(r["segmentation"]) for r in records]
    return np.stack(masks) if masks else np.zeros((0, *size), np.uint8)


def loop(truth, results, *, label=LABEL, kind=torch.from_numpy, with_ids=True):
    """Predictions and targets of each image, as torchvision's models and references have them."""
    for image in truth["images"]:
        mine = [r for r in results if r["image_id"] == image["id"]]
        theirs = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        prediction = {
            "boxes": kind(corners(mine)),
            "scores": kind(np.array([r["score"] for r in mine], float)),
            "labels": kind(np.array([label[r["category_id"]] for r in mine], np.int64)),
            "masks": kind(pixels(mine)[:, None].astype(np.float32)),
        }
        target = {
            "boxes": kind(corners(theirs)),
            "labels": kind(np.array([label[a["category_id"]] for a in theirs], np.int64)),
            "masks": kind(pixels(theirs).astype(bool)),
            "iscrowd": kind(np.array([a["iscrowd"] for a in theirs], np.int64)),
            "area": kind(np.array([a["area"] for a in theirs], float)),
        }
        if with_ids:
            target["image_id"] = kind(np.array([image["id"]]))
        yield prediction, target


def expected(truth, results):
    return {
        f"{t}/{name}": value
        for t in TYPES
        for name, value in evaluate_coco(truth, only(results, t), t).items()
    }


def evaluated(evaluator, pairs, batch=2):
    pairs = list(pairs)
    for start in range(0, len(pairs), batch):
        predictions, targets = zip(*pairs[start : start + batch], strict=True)
        evaluator.update(predictions, list(targets))
    return evaluator.compute()


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=0, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensors", "arrays"])
def test_the_truth_comes_with_the_targets(seed, kind):
    truth, results = scene(seed)
    found = evaluated(CocoEvaluator(NAMES, TYPES), loop(truth, results, kind=kind))
    same(found, expected(truth, results))
    assert found["bbox/AP"] > 0


@pytest.mark.parametrize("iou_type", TYPES)
def test_the_metrics_are_those_of_pycocotools(iou_type):
    truth, results = scene(7)
    found = evaluated(CocoEvaluator(NAMES, iou_type), loop(truth, results))
    raw = raw_pycocotools(truth, only(results, iou_type), iou_type)
    wanted = [math.nan if value == -1 else value for value in raw.stats.tolist()]  # not defined
    assert [found[f"{iou_type}/{name}"] for name in STATS] == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("form", ["dict", "path"])
def test_the_truth_is_a_file(form, tmp_path):
    truth, results = scene(3)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    source = truth if form == "dict" else tmp_path / "gt.json"
    pairs = list(loop(truth, results))
    wanted = expected(truth, results)
    same(evaluated(CocoEvaluator(source, TYPES), pairs), wanted)
    ids = [(p, image["id"]) for (p, _), image in zip(pairs, truth["images"], strict=True)]
    same(evaluated(CocoEvaluator(source, TYPES), ids), wanted)
    by_id = loop(truth, results, label={5: 5, 17: 17, 90: 90})
    same(evaluated(CocoEvaluator(source, TYPES, labels="id"), by_id), wanted)
    order = ["__background__", *reversed(NAMES)]
    turned = loop(truth, results, label={90: 1, 17: 2, 5: 3})
    evaluator = CocoEvaluator(source, TYPES, classes=order)
    same(evaluated(evaluator, turned), wanted)
    assert evaluator.coverage()["bbox/AP"].total == 3


def test_only_some_classes_of_a_file_are_scored():
    truth, results = scene(3)
    some = [r for r in results if r["category_id"] != 17]
    pairs = [(p, t["image_id"]) for p, t in loop_of_predictions(truth, some, {90: 0, 5: 1})]
    found = evaluated(CocoEvaluator(truth, TYPES, classes=["class 90", "class 5"]), pairs)
    without = {**truth, "categories": [c for c in truth["categories"] if c["id"] != 17]}
    without["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 17]
    same(found, expected(without, some))


def loop_of_predictions(truth, results, label):
    """With targets of which only the id is read."""
    empty = {**truth, "annotations": []}
    return loop(empty, results, label=label)


def test_torchvisions_labels_from_one_with_a_background_first():
    truth, results = scene(5)
    pairs = list(loop(truth, results, label={5: 1, 17: 2, 90: 3}))
    found = evaluated(CocoEvaluator(["__background__", *NAMES], TYPES), pairs)
    same(found, expected(truth, results))
    pairs[0][0]["labels"][:] = 0  # never an object
    evaluator = CocoEvaluator(["__background__", *NAMES])
    assert evaluated(evaluator, pairs)["bbox/AP"] <= found["bbox/AP"]
    with pytest.raises(DataError, match=r"count from 1.*'__background__'"):
        evaluated(CocoEvaluator(NAMES), pairs[1:])


def test_classes_with_ids_and_labels_that_are_ids():
    truth, results = scene(5)
    classes = Classes(tuple(NAMES), (5, 17, 90))
    pairs = loop(truth, results, label={5: 5, 17: 17, 90: 90})
    evaluator = CocoEvaluator(classes, TYPES, labels="id")
    same(evaluated(evaluator, pairs), expected(truth, results))
    assert {r["category_id"] for r in evaluator.result_file("bbox")} <= {5, 17, 90}


def test_images_without_ids_are_numbered():
    truth, results = scene(2)
    pairs = list(loop(truth, results, with_ids=False))
    same(evaluated(CocoEvaluator(NAMES, TYPES), pairs), expected(truth, results))
    mixed = CocoEvaluator(NAMES)
    mixed.update([pairs[0][0]], [pairs[0][1]])
    with pytest.raises(DataError, match="some targets have an image_id and some have not"):
        mixed.update([pairs[1][0]], [{**pairs[1][1], "image_id": 3}])


@pytest.mark.parametrize("with_ids", [True, False])
def test_processes_are_joined_and_images_of_several_count_once(with_ids):
    truth, results = scene(6, num_images=7)
    pairs = list(loop(truth, results, with_ids=with_ids))
    wanted = expected(truth, results)
    shares = [pairs[0::3], pairs[1::3], pairs[2::3], []]
    if with_ids:
        shares[2] = [*shares[2], pairs[0]]  # as a distributed sampler fills up
    parts = [CocoEvaluator(NAMES, TYPES) for _ in shares]
    for part, share in zip(parts, shares, strict=True):
        for prediction, target in share:
            part.update([prediction], [target])
    states = [part.state() for part in parts]
    for part in parts:
        part.merge(states)
        same(part.compute(), wanted)


def test_after_a_reset_the_next_validation_begins():
    truth, results = scene(1)
    pairs = list(loop(truth, results))
    evaluator = CocoEvaluator(NAMES)
    first = evaluated(evaluator, pairs)
    assert repr(evaluator) == "CocoEvaluator(bbox; 3 classes, 6 images so far)"
    with pytest.raises(DataError, match=r"image_id 7 was given before; call reset\(\)"):
        evaluator.update([pairs[0][0]], [pairs[0][1]])
    evaluator.reset()
    same(evaluated(evaluator, pairs), first)
    evaluator.reset()
    assert math.isnan(evaluator.compute()["bbox/AP"])


def test_images_of_a_file_without_predictions_are_reported(caplog):
    truth, results = scene(1)
    log_once.cache_clear()
    pairs = [(p, t["image_id"]) for p, t in loop(truth, results)]
    evaluated(CocoEvaluator(truth), pairs[:4])
    assert (
        "2 of 6 images of the ground truth got no predictions: their objects count" in caplog.text
    )


def test_masks_as_pixels_probabilities_and_run_lengths_are_the_same():
    truth, results = scene(4)
    wanted = expected(truth, results)
    for change in (
        lambda masks: masks[:, 0] > 0.5,
        lambda masks: masks * 0.4 + 0.2,  # probabilities
        lambda masks: masks.bfloat16(),
        lambda masks: [
            coco_mask.encode(np.asfortranarray(mask[0].numpy().astype(np.uint8))) for mask in masks
        ],
    ):
        pairs = [({**p, "masks": change(p["masks"])}, t) for p, t in loop(truth, results)]
        same(evaluated(CocoEvaluator(NAMES, TYPES), pairs), wanted)


PREDICTION = {
    "boxes": torch.tensor([[10.0, 10, 50, 40]]),
    "scores": torch.tensor([0.5]),
    "labels": torch.tensor([1]),
}
TARGET = {"boxes": PREDICTION["boxes"], "labels": PREDICTION["labels"], "image_id": 4}


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        ({"scores": None}, {}, "image 4: the predicted scores have the shape ()"),
        ({"boxes": torch.zeros(4)}, {}, "the predicted boxes have the shape (4,); expected (N, 4)"),
        ({"scores": torch.ones(2)}, {}, "scores have the shape (2,); expected (1,), one for each"),
        ({"labels": torch.tensor([2])}, {}, "labels have 2; expected 0 to 1, the places in the"),
        ({"labels": torch.tensor([-1])}, {}, "labels have -1; expected 0 to 1"),
        ({"masks": torch.rand(1, 2, 8, 8)}, {}, "masks have the shape (1, 2, 8, 8); expected (N"),
        ({"masks": torch.full((1, 8, 8), 3.0)}, {}, "masks have values from 0 to 3; expected (N"),
        ({"masks": torch.full((1, 8, 8), -3.0)}, {}, "masks have values from -3 to 0; expected (N"),
        ({"masks": torch.ones(2, 8, 8)}, {}, "masks are 2; expected 1, one for each box"),
        ({"masks": "abc"}, {}, "masks have the type str; expected"),
        ({}, {"boxes": torch.tensor([[10.0, 10, 5, 40]])}, 'box_convert(boxes, "xywh", "xyxy")'),
        ({}, {"boxes": torch.full((1, 4), math.nan)}, "image 4: the target's boxes are not finite"),
        ({}, {"labels": torch.tensor([2])}, "image 4: the target's labels have 2; expected 0 to 1"),
        ({}, {"iscrowd": torch.zeros(3)}, "the target's iscrowd have the shape (3,)"),
        ({}, {"image_id": "7"}, "image_id: got '7'; expected an integer"),
        ({}, {"image_id": True}, "image_id: got True; expected an integer"),
        ({}, {"image_id": 7.5}, "image_id: got 7.5; expected an integer"),
        ({}, {"image_id": torch.tensor([1, 2])}, "image_id: got tensor([1, 2]); expected an int"),
    ],
)  # fmt: skip
def test_what_has_another_form_is_named(prediction, target, says):
    evaluator = CocoEvaluator(["cat", "dog"])
    with pytest.raises(DataError) as caught:
        evaluator.update([{**PREDICTION, **prediction}], [{**TARGET, **target}])
    assert says in str(caught.value)
    assert not evaluator.images


def test_what_is_missing_is_named():
    evaluator = CocoEvaluator(["cat", "dog"], "segm")
    with pytest.raises(DataError, match="image 4: the target lacks masks"):
        evaluator.update([PREDICTION], [TARGET])
    with pytest.raises(DataError, match="got 1 prediction, 2 targets; expected one for each image"):
        evaluator.update([PREDICTION], [TARGET, TARGET])
    with pytest.raises(DataError, match="a target is a int; expected a dict with boxes and labels"):
        evaluator.update([PREDICTION], [4])
    with pytest.raises(DataError, match="the predictions lack boxes, labels"):
        CocoEvaluator(["a", "b"]).update([{"scores": torch.ones(1)}], [TARGET])
    with pytest.raises(DataError, match="image 4: the prediction is a list; expected a dict"):
        CocoEvaluator(["a", "b"]).update([[]], [TARGET])
    with pytest.raises(DivergedError, match="image 4: the predicted scores are not finite"):
        wrong = {**PREDICTION, "scores": torch.tensor([math.nan])}
        CocoEvaluator(["a", "b"]).update([wrong], [TARGET])
    with pytest.raises(DataError, match="image_id 4 is not in the ground truth; it has 6 images"):
        CocoEvaluator(scene(1)[0]).update([PREDICTION], [TARGET])
    with pytest.raises(DataError, match="a target lacks 'image_id'"):
        CocoEvaluator(scene(1)[0]).update([PREDICTION], [{}])


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ([3], {}, "got 3; expected a dataset, a COCO file or dict, or a list of class names"),
        ([[]], {}, "got []; expected a dataset"),
        ([[1, 2]], {}, "got [1, 2]; expected a dataset"),
        ([["a"], "boxes"], {}, "types: got 'boxes'; expected 'bbox', 'segm' or a list of both"),
        ([["a"], ()], {}, "types: got ()"),
        ([["a"]], {"labels": "ids"}, "labels: got 'ids'; expected 'index' or 'id'"),
        ([["a"]], {"classes": ["a"]}, "classes: does not apply"),
        (
            [scene(1)[0]],
            {"classes": ["class 9", "class 5"]},
            "classes: 'class 9' is not a category of the ground truth; did you mean 'class",
        ),
    ],
)
def test_wrong_arguments(arguments, options, says):
    with pytest.raises(ArgumentError) as caught:
        CocoEvaluator(*arguments, **options)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_scored_is_refused_at_once(tmp_path):
    truth, _ = scene(1)
    truth["annotations"][0]["category_id"] = 4
    with pytest.raises(DataError, match="'category_id' 4 is not in 'categories'"):
        CocoEvaluator(truth)
    with pytest.raises((DataError, ConfigError), match=r"nowhere\.json"):
        CocoEvaluator(tmp_path / "nowhere.json")


def test_a_target_that_a_transform_has_resized_is_refused():
    evaluator = CocoEvaluator(["cat", "dog"])
    sizes = {"size": (20, 30), "orig_size": (40, 60)}
    with pytest.raises(DataError, match=r"resized from \(40, 60\) to \(20, 30\) .* before the tra"):
        evaluator.update([PREDICTION], [{**TARGET, **sizes}])
    evaluator.update([PREDICTION], [{**TARGET, "size": (40, 60), "orig_size": (40, 60)}])


def test_it_is_imported_without_torch():
    code = (
        "import sys, visionkit; visionkit.CocoEvaluator; visionkit.evaluate_files\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert visionkit.CocoEvaluator is CocoEvaluator
