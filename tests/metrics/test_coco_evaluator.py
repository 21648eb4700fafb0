"""COCO figures of both engines on what is repaired or not defined, and the evaluator."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from support.coco_scenes import PERFECT, SQUARE, only, rectangle, scene, single_object
from visionkit.data.coco.ground_truth import ground_truth
from visionkit.data.coco.index import index_of
from visionkit.errors import DataError, DivergedError
from visionkit.metrics.coco.arrays import detections_of
from visionkit.metrics.coco.evaluator import CocoEvaluator, evaluate_coco
from visionkit.metrics.coco.ground_truth import log_once, read_truth
from visionkit.types import Batch, Classes


@pytest.fixture(params=["pycocotools", "hotcoco"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_truth_that_was_read_once_scores_the_same_again_and_again(engine, iou_type):
    truth, results = scene(5)
    for annotation in truth["annotations"][::2]:
        x, y, w, h = annotation["bbox"]
        halves = [[x, y, x + w / 2, y, x, y + h], [x + w, y + h, x + w / 3, y, x, y + h]]
        annotation["segmentation"] = halves
    opened = read_truth(truth, iou_type).rasterized()
    for some in (results, results[::2]):
        expected = evaluate_coco(truth, only(some, iou_type), iou_type, engine)
        found = evaluate_coco(opened, only(some, iou_type), iou_type, engine)
        assert found == pytest.approx(expected, abs=0, rel=0, nan_ok=True) and found["AP"] > 0
    other = "segm" if iou_type == "bbox" else "bbox"
    with pytest.raises(DataError, match=f"read for {iou_type}, not for {other}"):
        evaluate_coco(opened, results, other, engine)


def test_a_perfect_detection_scores_one_also_on_annotation_id_zero(engine):
    assert evaluate_coco(single_object(), [PERFECT], "bbox", engine)["AP"] == pytest.approx(1)
    assert evaluate_coco(single_object(id=0), [PERFECT], "bbox", engine)["AP"] == pytest.approx(1)


def test_annotations_with_the_same_id_all_count(engine):
    truth = single_object()
    truth["annotations"].append({**truth["annotations"][0], "bbox": [60, 50, 20, 20]})
    both = [PERFECT, {**PERFECT, "bbox": [60, 50, 20, 20]}]
    assert evaluate_coco(truth, both, "bbox", engine)["AP"] == pytest.approx(1)
    assert evaluate_coco(truth, [PERFECT], "bbox", engine)["AR100"] == pytest.approx(0.5)


def test_no_detections_score_zero_and_no_objects_are_undefined(engine):
    assert evaluate_coco(single_object(), [], "bbox", engine)["AP"] == 0
    empty = {**single_object(), "annotations": []}
    assert math.isnan(evaluate_coco(empty, [PERFECT], "bbox", engine)["AP"])
    assert math.isnan(evaluate_coco(empty, [], "bbox", engine)["AP/cat"])
    only_crowd = single_object(iscrowd=1)
    assert math.isnan(evaluate_coco(only_crowd, [PERFECT], "bbox", engine)["AP"])


def test_an_object_without_a_mask_is_ignored_when_masks_are_scored(engine):
    truth = single_object(segmentation=rectangle([10, 10, 40, 30], (80, 100)))
    truth["annotations"].append({**single_object()["annotations"][0], "bbox": [60, 50, 20, 20]})
    found = {k: v for k, v in PERFECT.items() if k != "bbox"}
    found["segmentation"] = rectangle([10, 10, 40, 30], (80, 100))
    assert evaluate_coco(truth, [found], "segm", engine)["AP"] == pytest.approx(1)


@pytest.mark.parametrize("box", [[1, 2, 3], [math.nan, 1, math.inf, 2], [0, 0, 1e12, 5]])
def test_the_box_of_an_object_with_a_mask_does_not_matter_when_masks_are_scored(engine, box):
    truth = single_object(segmentation=SQUARE, bbox=box)
    found = {**PERFECT, "segmentation": SQUARE}
    assert evaluate_coco(truth, [found], "segm", engine)["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match="'bbox' is"):
        evaluate_coco(truth, [PERFECT], "bbox", engine)


def test_a_negative_area_is_that_of_the_box_and_counted(engine, caplog):
    log_once.cache_clear()
    found = evaluate_coco(single_object(area=-5), [PERFECT], "bbox", engine)
    assert found["APm"] == pytest.approx(1)
    assert "1 of 1 areas are negative: those of the boxes are used" in caplog.text


def test_objects_without_a_mask_are_counted(caplog):
    log_once.cache_clear()
    evaluate_coco(single_object(), [], "segm")
    assert "1 of 1 annotated objects have no segmentation" in caplog.text


@pytest.mark.parametrize("key", ["boxes", "scores"])
def test_what_a_model_computed_must_be_finite(key):
    prediction = {
        "boxes": torch.ones(2, 4),
        "scores": torch.ones(2),
        "labels": torch.zeros(2).long(),
    }
    prediction[key].view(-1)[-1] = math.nan
    with pytest.raises(DivergedError, match=f"image 1: the predicted {key} are not finite"):
        detections_of(prediction, 1, Boxes.classes["labels"])


def test_masks_without_boxes_from_a_head_are_refused():
    with pytest.raises(DataError, match="image 1: the predictions lack boxes, labels"):
        detections_of({"scores": torch.ones(1), "masks": []}, 1, Boxes.classes["labels"])


def test_whole_numbers_written_otherwise_are_the_same_ids(engine):
    """Some files have 1.0 for 1; numpy's own numbers come from programs."""
    odd = {"image_id": 1.0, "category_id": 1.0, "score": 1, "bbox": (10.0, 10, 40, 30)}
    assert evaluate_coco(single_object(), [odd], "bbox", engine)["AP"] == pytest.approx(1)
    odd = {**PERFECT, "image_id": np.int64(1), "bbox": np.array([10.0, 10, 40, 30])}
    assert evaluate_coco(single_object(), [odd], "bbox", engine)["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=r"^1 of 2 detections(.|\n)*result 1 "):
        evaluate_coco(single_object(), [odd, {**odd, "score": "1"}], "bbox", engine)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_at_all_is_not_defined(engine, iou_type):
    nothing = {"images": [], "categories": [], "annotations": []}
    assert all(map(math.isnan, evaluate_coco(nothing, [], iou_type, engine).values()))
    truth = {**single_object(segmentation=SQUARE), "images": []}
    with pytest.raises(
        DataError, match=r"1 problem\n(.*)'image_id' is 1, which is not in 'images'"
    ):
        evaluate_coco(truth, [], iou_type, engine)
    found = {**PERFECT, "segmentation": SQUARE}
    with pytest.raises(DataError, match=r"1 detections(.|\n)*image_id 1 is not in"):
        evaluate_coco(
            {**single_object(), "images": [], "annotations": []}, [found], iou_type, engine
        )


def test_a_missing_area_is_that_of_the_mask_or_the_box(engine):
    triangle = [[10, 10, 70, 10, 10, 70]]  # 1,800 pixels: medium; its box of 3,600 is, too
    small = [[10, 10, 50, 10, 10, 50]]  # 800 pixels: small, but its box is medium
    for mask, range_ in ((triangle, "m"), (small, "s")):
        truth = single_object(segmentation=mask, bbox=[10, 10, 40, 40])
        del truth["annotations"][0]["area"]
        scores = evaluate_coco(truth, [], "segm", engine)
        assert scores[f"AP{range_}"] == 0
        assert math.isnan(scores["APs" if range_ == "m" else "APm"])
        assert evaluate_coco(truth, [], "bbox", engine)["APm"] == 0


class Boxes:
    """The part of a data set that the evaluator uses."""

    classes: ClassVar = {"labels": Classes(("cat", "dog"), (90, 5))}

    def ground_truth(self):
        truth = single_object(category_id=5)
        truth["categories"] = [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}]
        index = index_of(truth, "truth")
        return ground_truth(index, self.classes["labels"], index.objects.masks, index.objects.area)


def test_the_evaluator_writes_the_files_own_ids_and_merges_processes(engine, monkeypatch):
    monkeypatch.setenv("VISIONKIT_COCO_ENGINE", engine)
    prediction = {
        "boxes": torch.tensor([[10.0, 10, 50, 40]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([1]),
    }
    record = detections_of(prediction, 1, Boxes.classes["labels"]).records()[0]
    assert record == {"image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 30], "score": 0.5}
    batch = Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [{"image_id": 1}])
    first, second = CocoEvaluator(Boxes()), CocoEvaluator(Boxes())
    first.update([prediction], batch)
    second.merge([second.state(), first.state()])
    assert second.compute()["bbox/AP"] == pytest.approx(1)
    assert second.compute()["bbox/AP/dog"] == pytest.approx(1)
    assert second.engine == engine
    assert second.result_file("bbox") == [record]
    with pytest.raises(DataError, match="image_id 1 have no masks"):
        second.result_file("segm")


def test_mask_results_have_no_boxes():
    prediction = {
        "boxes": torch.tensor([[10.0, 10, 50, 40]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([0]),
        "masks": [{"size": [80, 100], "counts": SQUARE["counts"].encode()}],
    }
    evaluator = CocoEvaluator(Boxes(), types=("bbox", "segm"))
    evaluator.update([prediction], Batch(torch.zeros(1, 3, 32, 32), [{"image_id": 1}]))
    record = {"image_id": 1, "category_id": 90, "score": 0.5, "segmentation": SQUARE}
    assert evaluator.result_file("segm") == [record]
    assert "segmentation" not in evaluator.result_file("bbox")[0]


def test_the_evaluator_says_over_how_many_classes_it_is():
    """`cat` has no object; `fox` is a class of the model that the dataset does not have."""
    evaluator = CocoEvaluator(Boxes())
    assert evaluator.coverage() == {}
    evaluator.classes = Classes(("cat", "dog", "fox"), (90, 5, 7))
    evaluator.compute()
    assert evaluator.coverage() == {"bbox/AP": (1, 3, ("cat", "fox"))}
    assert evaluator.rule.startswith("COCO: at most 100 detections of a class in an image")
