"""The report on boxes and masks: its numbers against hotcoco's and counts by hand."""

import copy

import hotcoco
import numpy as np
import pytest

from support.coco_scenes import PERFECT, checked, scene, single_object
from visionkit.metrics.coco.engines import ENGINES
from visionkit.metrics.coco.evaluator import evaluate_coco
from visionkit.metrics.coco.mistakes import find_mistakes
from visionkit.metrics.coco.report import ERRORS, DetectionReport
from visionkit.metrics.parts import Bars, Chart, Gallery, Matrix, Table


def report(truth, results, iou_type="bbox", engine="hotcoco", **options):
    metrics = evaluate_coco(truth, results, iou_type, engine)
    return DetectionReport(*checked(truth, results, iou_type), metrics, engine, **options)


def hotcoco_evaluation(truth, results):
    objects = hotcoco.COCO(copy.deepcopy(truth))
    evaluation = hotcoco.COCOeval(objects, objects.load_res(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_confusion_is_hotcocos_where_there_are_no_crowds(seed):
    truth, results = scene(seed, num_images=12, crowds=False)
    for number, result in enumerate(results):  # or ties would decide
        result["score"] = result["score"] * 0.99 + number / 10**6
    found = find_mistakes(*checked(truth, results), [0.4] * 3).confusion()
    expected = hotcoco_evaluation(truth, results).confusion_matrix(max_det=10**6, min_score=0.4)
    assert np.array_equal(found, expected["matrix"].astype(int))


def test_confusion_by_hand():
    truth = single_object()
    truth["categories"].append({"id": 2, "name": "dog"})
    truth["annotations"] += [
        {**truth["annotations"][0], "id": 2, "bbox": [60, 10, 30, 30], "category_id": 2},
        {**truth["annotations"][0], "id": 3, "bbox": [0, 60, 20, 20], "iscrowd": 1},
    ]
    results = [
        PERFECT,
        {**PERFECT, "score": 0.6},  # a duplicate
        {**PERFECT, "bbox": [60, 10, 30, 30], "category_id": 1},  # a dog as a cat
        {**PERFECT, "bbox": [2, 62, 10, 10]},  # on the crowd
        {**PERFECT, "bbox": [60, 60, 10, 10], "score": 0.4},  # below the threshold
    ]
    found = find_mistakes(*checked(truth, results), [0.5, 0.5])
    assert found.confusion().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert found.images_by_cell() == {(0, 0): [1], (1, 0): [1], (2, 0): [1]}
    assert found.by_image().tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_rows_add_up_to_objects_and_columns_to_detections(iou_type):
    truth, results = scene(4, num_images=20)
    objects, detections = checked(truth, results, iou_type)
    thresholds = np.array([0.2, 0.5, 0.7])
    mistakes = find_mistakes(objects, detections, thresholds)
    counts = mistakes.confusion()
    single = objects.category[~objects.iscrowd]
    assert counts[:-1].sum(1).tolist() == np.bincount(single, minlength=3).tolist()
    taken = np.bincount(mistakes.category, minlength=3)
    assert counts[:, :-1].sum(0).tolist() == taken.tolist()
    above = detections.scores >= thresholds[np.searchsorted([5, 17, 90], detections.category_ids)]
    assert 0 < above.sum() - taken.sum() < above.sum()  # those on crowds


def test_tide_is_hotcocos_and_its_base_is_ap50():
    truth, results = scene(6, num_images=12)
    found = report(truth, results)
    (bars,) = [p for p in found.parts() if isinstance(p, Bars) and p.title == "Error types"]
    expected = hotcoco_evaluation(truth, results).tide_errors()
    for name, text in ERRORS.items():
        assert bars.values[text] == pytest.approx(expected["delta_ap"][name], abs=1e-9)
    assert found.metrics["AP50"] == pytest.approx(expected["ap_base"], abs=1e-9)


def test_pycocotools_alone_gives_all_but_what_is_named():
    truth, results = scene(6, num_images=12)
    few, all_ = (report(truth, results, engine=e) for e in ("pycocotools", "hotcoco"))
    titles = [[part.title for part in one.parts()] for one in (few, all_)]
    missing = set(titles[1]) - set(titles[0])
    assert missing == {"Error types", "Suspected label errors"} and set(titles[0]) < {*titles[1]}
    assert few.without and not all_.without
    assert "Precision and recall" in titles[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_curve_over_all_ious_has_the_area_ap(engine):
    truth, results = scene(8, num_images=12)
    found = report(truth, results, engine=engine)
    chart = next(p for p in found.parts() if p.title == "Precision and recall")
    areas = {line.name: np.mean(line.y) for line in chart.series}
    assert areas["mean of 0.50 to 0.95"] == pytest.approx(found.metrics["AP"], abs=1e-12)
    assert areas["IoU 0.50"] == pytest.approx(found.metrics["AP50"], abs=1e-12)
    assert areas["IoU 0.75"] == pytest.approx(found.metrics["AP75"], abs=1e-12)


def test_the_table_and_the_marks_have_the_thresholds():
    truth, results = scene(2, num_images=40)
    found = report(truth, results)
    table = next(p for p in found.parts() if isinstance(p, Table))
    by_score = next(p for p in found.parts() if p.title == "F1 by score and class")
    marks = {line.name: line.mark for line in by_score.series}
    for name, objects, ap, threshold, *_ in table.rows:
        assert threshold == marks[name] == found.thresholds.best([name])[0]
        assert objects == found.curves[name].positives
        assert ap == found.metrics[f"AP/{name}"]


def test_the_worst_images_come_first_and_show_every_mistake():
    truth, results = scene(2, num_images=20)
    found = report(truth, results, images=5)
    gallery = next(p for p in found.parts() if p.title == "Worst images")
    assert len(gallery.images) == 5
    counts = dict(zip(found.truth.image_ids.tolist(), found.mistakes.by_image(), strict=True))
    scores = []
    for one in gallery.images:
        kinds = [mark.kind for mark in one.marks]
        assert [kinds.count(k) for k in ("right", "wrong", "missed")] == counts[
            one.image_id
        ].tolist()
        right, wrong, missed = counts[one.image_id]
        scores.append(2 * right / (2 * right + wrong + missed))
    assert scores == sorted(scores)


def test_nothing_detected_and_nothing_to_detect():
    truth, results = scene(2, num_images=4)
    for objects, found in ((truth, []), ({**truth, "annotations": []}, results)):
        parts = report(objects, found).parts()
        assert {type(part) for part in parts} == {Table, Chart, Matrix, Bars, Gallery}


def test_of_many_classes_the_most_confused_are_shown():
    truth, results = scene(2, num_images=20)
    more = [{"id": 1000 + i, "name": f"other {i}"} for i in range(1200)]
    truth["categories"] = [*truth["categories"], *more]
    parts = report(truth, results).parts()
    (matrix,) = [part for part in parts if isinstance(part, Matrix)]
    assert matrix.counts.shape == (41, 41)
    assert {"class 5", "class 17", "class 90", "background"} <= {*matrix.rows}
    assert "of 1203" in matrix.note
    assert all(len(part.series) <= 12 for part in parts if isinstance(part, Chart))


def test_sentences_name_the_weakest_classes():
    truth, results = scene(2, num_images=40)
    found = report(truth, results)
    weakest = min(found.truth.names, key=lambda name: found.metrics[f"AP/{name}"])
    assert weakest in found.sentences()[0]
