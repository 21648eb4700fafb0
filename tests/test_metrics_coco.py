"""COCO figures: equal to raw pycocotools on valid input, and right where pycocotools is not."""

import contextlib
import copy
import io
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionkit.errors import DataError
from visionkit.metrics.coco import STATS, CocoEvaluator, coco_results, evaluate_coco
from visionkit.types import Batch, Classes


def rectangle(box, size):
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


def scene(seed, num_images=6, num_categories=3, detections=True, crowds=True):
    """Truth with sparse ids and crowds; detections near it, far from it, and of wrong classes."""
    rng = np.random.default_rng(seed)
    ids = [5, 17, 90][:num_categories]
    truth = {
        "images": [{"id": 3 * i + 7, "width": 120, "height": 100} for i in range(num_images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(rng.integers(0, 6)):
            w, h = rng.integers(4, 60, 2)
            box = [int(rng.integers(0, 120 - w)), int(rng.integers(0, 100 - h)), int(w), int(h)]
            category = int(rng.choice(ids))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": float(w * h),
                    "iscrowd": int(crowds and rng.random() < 0.15),
                    "segmentation": rectangle(box, (100, 120)),
                }
            )
            for _ in range(rng.integers(0, 4) if detections else 0):
                moved = [max(0.0, float(v + rng.normal(0, 3))) for v in box[:2]]
                shape = [max(1.0, float(v + rng.normal(0, 3))) for v in box[2:]]
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.8 else int(rng.choice(ids)),
                        "bbox": moved + shape,
                        "score": round(float(rng.random()), 2),  # with ties
                        "segmentation": rectangle(moved + shape, (100, 120)),
                    }
                )
    return truth, results


def raw_pycocotools(truth, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def only(results, iou_type):
    leave_out = "segmentation" if iou_type == "bbox" else "bbox"
    return [{k: v for k, v in r.items() if k != leave_out} for r in results]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["bbox", "segm"]))
def test_every_figure_equals_pycocotools_bit_for_bit(seed, num_categories, iou_type):
    truth, results = scene(seed, num_categories=num_categories)
    results = only(results, iou_type)
    if not results:
        return
    expected = raw_pycocotools(truth, results, iou_type)
    found = evaluate_coco(truth, results, iou_type)
    for name, value in zip(STATS, expected.stats, strict=True):
        assert (math.isnan(found[name]) and value == -1) or found[name] == value, name
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for k, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
        scored = precision[:, :, k][precision[:, :, k] > -1]
        value = found[f"AP/{category['name']}"]
        assert value == scored.mean() if scored.size else math.isnan(value)


def one_object(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30]}
    annotation |= {"area": 1200.0, "iscrowd": 0, **changes}
    return {
        "images": [{"id": 1, "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation],
    }


PERFECT = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "score": 0.9}


def test_a_perfect_detection_scores_one_also_on_annotation_id_zero():
    assert evaluate_coco(one_object(), [PERFECT], "bbox")["AP"] == pytest.approx(1)
    assert evaluate_coco(one_object(id=0), [PERFECT], "bbox")["AP"] == pytest.approx(1)


def test_annotations_with_the_same_id_all_count():
    truth = one_object()
    truth["annotations"].append({**truth["annotations"][0], "bbox": [60, 50, 20, 20]})
    both = [PERFECT, {**PERFECT, "bbox": [60, 50, 20, 20]}]
    assert evaluate_coco(truth, both, "bbox")["AP"] == pytest.approx(1)
    assert evaluate_coco(truth, [PERFECT], "bbox")["AR100"] == pytest.approx(0.5)


def test_no_detections_score_zero_and_no_objects_are_undefined():
    assert evaluate_coco(one_object(), [], "bbox")["AP"] == 0
    empty = {**one_object(), "annotations": []}
    assert math.isnan(evaluate_coco(empty, [PERFECT], "bbox")["AP"])
    assert math.isnan(evaluate_coco(empty, [], "bbox")["AP/cat"])
    only_crowd = one_object(iscrowd=1)
    assert math.isnan(evaluate_coco(only_crowd, [PERFECT], "bbox")["AP"])


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
    ],
)
def test_what_pycocotools_scores_wrongly_is_refused(change, says):
    with pytest.raises(DataError, match=says) as caught:
        evaluate_coco(one_object(), [PERFECT, {**PERFECT, **change}], "bbox")
    assert "result 1" in str(caught.value)


def test_an_object_without_a_mask_is_ignored_when_masks_are_scored():
    truth = one_object(segmentation=rectangle([10, 10, 40, 30], (80, 100)))
    truth["annotations"].append({**one_object()["annotations"][0], "bbox": [60, 50, 20, 20]})
    found = {k: v for k, v in PERFECT.items() if k != "bbox"}
    found["segmentation"] = rectangle([10, 10, 40, 30], (80, 100))
    assert evaluate_coco(truth, [found], "segm")["AP"] == pytest.approx(1)


class Boxes:
    """The part of a data set that the evaluator uses."""

    vocabularies: ClassVar = {"labels": Classes(("cat", "dog"), (90, 5))}

    def coco_truth(self):
        truth = one_object(category_id=5)
        truth["categories"] = [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}]
        return truth


def test_the_evaluator_writes_the_files_own_ids_and_merges_processes():
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
