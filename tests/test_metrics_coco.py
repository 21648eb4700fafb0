"""COCO figures of both engines on what is valid in part, and what is refused."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from coco_scenes import only, rectangle, scene

from visionkit.errors import DataError, DivergedError
from visionkit.metrics.coco import CocoEvaluator, coco_results, evaluate_coco
from visionkit.metrics.coco_truth import read_truth, tell_once
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


def one_object(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30]}
    annotation |= {"area": 1200.0, "iscrowd": 0, **changes}
    return {
        "images": [{"id": 1, "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation],
    }


PERFECT = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "score": 0.9}


def test_a_perfect_detection_scores_one_also_on_annotation_id_zero(engine):
    assert evaluate_coco(one_object(), [PERFECT], "bbox", engine)["AP"] == pytest.approx(1)
    assert evaluate_coco(one_object(id=0), [PERFECT], "bbox", engine)["AP"] == pytest.approx(1)


def test_annotations_with_the_same_id_all_count(engine):
    truth = one_object()
    truth["annotations"].append({**truth["annotations"][0], "bbox": [60, 50, 20, 20]})
    both = [PERFECT, {**PERFECT, "bbox": [60, 50, 20, 20]}]
    assert evaluate_coco(truth, both, "bbox", engine)["AP"] == pytest.approx(1)
    assert evaluate_coco(truth, [PERFECT], "bbox", engine)["AR100"] == pytest.approx(0.5)


def test_no_detections_score_zero_and_no_objects_are_undefined(engine):
    assert evaluate_coco(one_object(), [], "bbox", engine)["AP"] == 0
    empty = {**one_object(), "annotations": []}
    assert math.isnan(evaluate_coco(empty, [PERFECT], "bbox", engine)["AP"])
    assert math.isnan(evaluate_coco(empty, [], "bbox", engine)["AP/cat"])
    only_crowd = one_object(iscrowd=1)
    assert math.isnan(evaluate_coco(only_crowd, [PERFECT], "bbox", engine)["AP"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [10, 10, float("nan"), 30]}, "bbox"),
        ({"bbox": [10, 10, -4, 30]}, "bbox"),
        ({"bbox": [10, 10, 4]}, "bbox"),
        ({"score": float("nan")}, "score"),
        ({"score": 1.5}, "score"),
        ({"image_id": 99}, "no such image"),
        ({"category_id": 7}, "category_id 7"),
        ({"image_id": 1.5}, "no such image"),
        ({"image_id": [1]}, "no such image"),
        ({"image_id": 10**30}, "no such image"),
        ({"category_id": None}, "category_id None"),
        ({"score": "0.5"}, "score '0.5'"),
        ({"score": None}, "score None"),
        ({"bbox": ["1", 2, 3, 4]}, "bbox"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [10, 10, 10**400, 3]}, "bbox"),
    ],
)
def test_what_the_engines_score_wrongly_is_refused(engine, change, says):
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(one_object(), [PERFECT, {**PERFECT, **change}], "bbox", engine)
    assert "result 1" in str(caught.value)


def test_an_object_without_a_mask_is_ignored_when_masks_are_scored(engine):
    truth = one_object(segmentation=rectangle([10, 10, 40, 30], (80, 100)))
    truth["annotations"].append({**one_object()["annotations"][0], "bbox": [60, 50, 20, 20]})
    found = {k: v for k, v in PERFECT.items() if k != "bbox"}
    found["segmentation"] = rectangle([10, 10, 40, 30], (80, 100))
    assert evaluate_coco(truth, [found], "segm", engine)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": True}, "image_id True: no such image"),
        ({"image_id": "1"}, "image_id '1': no such image.*without quotes"),
        ({"category_id": True}, "category_id True"),
        ({"category_id": "1"}, "category_id '1'.*without quotes"),
        ({"score": True}, "score True"),
        ({"score": -0.1}, "score -0.1"),
        ({"score": math.inf}, "score inf"),
        ({"bbox": [True, 10, 40, 30]}, "bbox .True"),
        ({"bbox": [10, 10, 40, -1e-9]}, "bbox"),
        ({"bbox": [-1e308, 10, 1e308, 30]}, "bbox"),
        ({"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, "bbox"),
    ],
)
def test_numbers_of_another_kind_and_far_away_are_refused(engine, change, says):
    for records in ([{**PERFECT, **change}], [PERFECT] * 30 + [{**PERFECT, **change}]):
        with pytest.raises(DataError, match=f"result {len(records) - 1} (.|\n)*{says}"):
            evaluate_coco(one_object(), records, "bbox", engine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iscrowd": "0"}, "'iscrowd' is '0': must be 0 or 1"),
        ({"iscrowd": 2}, "'iscrowd' is 2"),
        ({"iscrowd": math.nan}, "'iscrowd' is nan"),
        ({"image_id": True}, "'image_id' is True"),
        ({"area": True}, "'area' is True"),
        ({"bbox": [True, 10, 40, 30]}, "'bbox' is .True"),
        ({"bbox": [0, 0, 1e300, 1e300]}, "'bbox' is"),
        ({"segmentation": ""}, "'segmentation': must be a list of polygons"),
        ({"segmentation": 0}, "'segmentation': must be a list of polygons"),
        ({"segmentation": [[1, 2, True, 4, 5, 6]]}, "true or false"),
    ],
)
def test_annotations_of_another_kind_are_refused(engine, change, says):
    iou_type = "segm" if "segmentation" in change else "bbox"
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(one_object(**change), [], iou_type, engine)
    assert "annotations[0] (id 1)" in str(caught.value)


def test_categories_need_names():
    for name in (None, "", 7):
        truth = one_object()
        truth["categories"][0]["name"] = name
        with pytest.raises(DataError, match=r"categories\[0\] \(id 1\): 'name' is"):
            evaluate_coco(truth, [], "bbox")


def test_a_negative_area_is_that_of_the_box_and_counted(engine, caplog):
    tell_once.cache_clear()
    found = evaluate_coco(one_object(area=-5), [PERFECT], "bbox", engine)
    assert found["APm"] == pytest.approx(1)
    assert "1 of 1 annotated areas are negative: those of the boxes are taken" in caplog.text


def test_objects_without_a_mask_are_counted(caplog):
    tell_once.cache_clear()
    evaluate_coco(one_object(), [], "segm")
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
        coco_results(prediction, 1, Boxes.vocabularies["labels"])


def test_masks_of_pixels_from_a_head_are_refused():
    prediction = {
        "boxes": torch.ones(2, 4),
        "scores": torch.ones(2),
        "labels": torch.zeros(2).long(),
    }
    with pytest.raises(DataError, match="image 1: predicted 'masks' must be a list of run-length"):
        coco_results({**prediction, "masks": torch.rand(2, 8, 8)}, 1, Boxes.vocabularies["labels"])


def test_all_that_is_wrong_is_listed_by_its_number_in_the_order_of_the_file(engine):
    results = [PERFECT] * 40
    for i in (3, 17):
        results[i] = {**PERFECT, "score": 2}
    results[20] = {k: v for k, v in PERFECT.items() if k != "score"}
    results[21] = "nonsense"
    with pytest.raises(DataError) as caught:
        evaluate_coco(one_object(), results, "bbox", engine)
    said = str(caught.value)
    assert "4 of 40 detections cannot be scored" in said
    assert "result 20 (image_id 1): misses" in said
    order = [said.index(f"result {i}") for i in (3, 17, 20, 21)]
    assert order == sorted(order)
    with pytest.raises(DataError, match=r"40 detections(.|\n)*result 19 (.|\n)* and 20 more"):
        evaluate_coco(one_object(), [{**PERFECT, "image_id": 9}] * 40, "bbox", engine)


def test_whole_numbers_written_otherwise_are_the_same_ids(engine):
    """Some files have 1.0 for 1; numpy's own numbers come from programs."""
    odd = {"image_id": 1.0, "category_id": 1.0, "score": 1, "bbox": (10.0, 10, 40, 30)}
    assert evaluate_coco(one_object(), [odd], "bbox", engine)["AP"] == pytest.approx(1)
    odd = {**PERFECT, "image_id": np.int64(1), "bbox": np.array([10.0, 10, 40, 30])}
    assert evaluate_coco(one_object(), [odd], "bbox", engine)["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=r"^1 of 2 detections(.|\n)*result 1 "):
        evaluate_coco(one_object(), [odd, {**odd, "score": "1"}], "bbox", engine)


SQUARE = rectangle([10, 10, 40, 30], (80, 100))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (rectangle([10, 10, 40, 30], (100, 80)), r"mask of size \[100, 80\] on an image of"),
        ({**SQUARE, "size": "80x100"}, "mask of size '80x100'"),
        ({**SQUARE, "size": None}, "mask of size None"),
        ({**SQUARE, "counts": SQUARE["counts"][:-1]}, "damaged"),
        ({**SQUARE, "counts": SQUARE["counts"][:-3]}, "damaged"),  # ends with the object
        ({**SQUARE, "counts": ""}, "damaged"),
        ({**SQUARE, "counts": SQUARE["counts"] + "1"}, "damaged"),
        ({**SQUARE, "counts": "\x01" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": "é" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": "€" + SQUARE["counts"]}, "damaged"),
        ({**SQUARE, "counts": b"\xe9" + SQUARE["counts"].encode()}, "damaged"),
        ({**SQUARE, "counts": bytearray(SQUARE["counts"].encode())}, "compressed text"),
        ({**SQUARE, "counts": [10, 20]}, "compressed text"),
        ([[10, 10, 50, 10, 50, 40]], "not a run-length code"),
        ({"size": [80, 100]}, "not a run-length code"),
        (None, "not a run-length code"),
    ],
)
def test_masks_that_the_engines_score_wrongly_or_never_end_with_are_refused(engine, mask, says):
    truth = one_object(segmentation=SQUARE)
    found = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": SQUARE}
    assert evaluate_coco(truth, [found], "segm", engine)["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(truth, [found, {**found, "segmentation": mask}, found], "segm", engine)
    assert "1 of 3 detections" in str(caught.value)
    assert "result 1 (image_id 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [10, 10, float("nan"), 30]}, "'bbox' is"),
        ({"bbox": [10, 10, 4]}, "'bbox' is"),
        ({"bbox": None}, "'bbox' is None"),
        ({"image_id": 99}, "'image_id' 99: no such image"),
        ({"image_id": "1"}, "'image_id' is '1': must be a whole number"),
        ({"category_id": 7}, "'category_id' 7: no such category"),
        ({"area": float("nan")}, "'area' is nan"),
        ({"area": "12"}, "'area' is '12'"),
    ],
)
def test_wrong_annotations_are_refused(engine, change, says):
    for iou_type in ("bbox", "segm"):
        with pytest.raises(DataError, match=says) as caught:
            evaluate_coco(one_object(**change), [], iou_type, engine)
        assert "annotations[0] (id 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e6]], "farther away"),
        ([[1, 2, 3, 4, 5, "6"]], "else than numbers"),
        ([1, 2, 3, 4, 5, 6], "list of polygons"),
        ("no", "list of polygons"),
        ({"size": [8, 10], "counts": SQUARE["counts"]}, "RLE size"),
        ({"size": [80, 100], "counts": [10, 20]}, "add up to 30"),
        ({"size": [80, 100], "counts": [-10, 8010]}, "RLE counts must be"),
        ({"size": [80, 100], "counts": SQUARE["counts"][:-1]}, "damaged"),
        ({"size": [80, 100]}, "RLE counts must be"),
    ],
)
def test_wrong_masks_of_annotations_are_refused(engine, mask, says):
    with pytest.raises(DataError, match=says):
        evaluate_coco(one_object(segmentation=mask), [], "segm", engine)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_at_all_is_not_defined(engine, iou_type):
    nothing = {"images": [], "categories": [], "annotations": []}
    assert all(map(math.isnan, evaluate_coco(nothing, [], iou_type, engine).values()))
    truth = {**one_object(segmentation=SQUARE), "images": []}
    with pytest.raises(DataError, match=r"1 problem\n(.*)'image_id' 1: no such image"):
        evaluate_coco(truth, [], iou_type, engine)
    found = {**PERFECT, "segmentation": SQUARE}
    with pytest.raises(DataError, match=r"1 detections(.|\n)*no such image"):
        evaluate_coco({**one_object(), "images": [], "annotations": []}, [found], iou_type, engine)


def test_repeated_ids_and_names_are_refused():
    for kind, change in (("images", {}), ("categories", {}), ("categories", {"id": 2})):
        truth = one_object()
        truth[kind].append({**truth[kind][0], **change})
        with pytest.raises(DataError, match=rf"{kind}\[1\].*must be unique"):
            evaluate_coco(truth, [], "bbox")


def test_a_missing_area_is_that_of_the_mask_or_the_box(engine):
    triangle = [[10, 10, 70, 10, 10, 70]]  # 1,800 pixels: medium; its box of 3,600 is, too
    small = [[10, 10, 50, 10, 10, 50]]  # 800 pixels: small, but its box is medium
    for mask, range_ in ((triangle, "m"), (small, "s")):
        truth = one_object(segmentation=mask, bbox=[10, 10, 40, 40])
        del truth["annotations"][0]["area"]
        scores = evaluate_coco(truth, [], "segm", engine)
        assert scores[f"AP{range_}"] == 0
        assert math.isnan(scores["APs" if range_ == "m" else "APm"])
        assert evaluate_coco(truth, [], "bbox", engine)["APm"] == 0


class Boxes:
    """The part of a data set that the evaluator uses."""

    vocabularies: ClassVar = {"labels": Classes(("cat", "dog"), (90, 5))}

    def coco_truth(self):
        truth = one_object(category_id=5)
        truth["categories"] = [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}]
        return truth


def test_the_evaluator_writes_the_files_own_ids_and_merges_processes(engine, monkeypatch):
    monkeypatch.setenv("VISIONKIT_COCO_ENGINE", engine)
    prediction = {
        "boxes": torch.tensor([[10.0, 10, 50, 40]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([1]),
    }
    record = coco_results(prediction, 1, Boxes.vocabularies["labels"])[0]
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
