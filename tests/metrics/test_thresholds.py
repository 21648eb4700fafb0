"""The score of the best F1, by hand and against trying every score."""

import numpy as np
import pytest

from support.coco_scenes import checked, scene
from visionkit.metrics.coco.matches import match_objects
from visionkit.metrics.thresholds import Curve, Thresholds, at_score, detection_curves


def curve(scores, hit, positives):
    return Curve.of(np.array(scores, float), np.array(hit, bool), positives)


def test_curve_by_hand():
    found = curve([0.2, 0.9, 0.5, 0.5], [False, True, True, False], 3)
    assert found.scores.tolist() == [0.9, 0.5, 0.2]  # equal scores count together
    assert found.hits.tolist() == [1, 2, 2] and found.taken.tolist() == [1, 3, 4]
    assert found.precision.tolist() == [1, 2 / 3, 2 / 4]
    assert found.recall.tolist() == [1 / 3, 2 / 3, 2 / 3]
    assert found.f1.tolist() == pytest.approx([2 / 4, 4 / 6, 4 / 7])
    assert found.best() == 0.5


def test_of_equal_f1_the_higher_score_counts():
    # F1 is 2/3 with the first alone, and 4/6 with all four.
    found = curve([0.9, 0.7, 0.6, 0.5], [True, False, False, True], 2)
    assert found.f1.tolist() == pytest.approx([2 / 3, 2 / 4, 2 / 5, 4 / 6])
    assert found.best() == 0.9


def test_the_lowest_score_of_a_precision():
    found = curve([0.9, 0.8, 0.7, 0.6], [True, False, True, True], 4)
    assert found.at_precision(75) == 0.6
    assert found.at_precision(76) == 0.9
    assert curve([0.9], [False], 1).at_precision(50) is None


def test_nothing_right_has_no_threshold():
    assert curve([0.9], [False], 1).best() is None
    assert curve([], [], 1).best() is None
    assert Thresholds.of({"a": curve([0.9], [False], 20)}, curve([0.9], [False], 20)) is None


def test_classes_with_fewer_than_ten_objects_have_the_common_threshold():
    rare = curve([0.9, 0.1], [True, False], 9)
    known = curve([0.9, 0.3], [True, True], 10)
    pooled = curve([0.9, 0.9, 0.3, 0.1], [True, True, True, False], 19)
    found = Thresholds.of({"rare": rare, "known": known, "none": curve([0.7], [0], 50)}, pooled)
    assert found.classes == {"known": 0.3}
    assert found.best(["known", "rare", "none", "other"]) == [0.3, 0.3, 0.3, 0.3]
    assert found.common == 0.3


def test_thresholds_survive_a_checkpoint():
    pooled = curve([0.9, 0.3], [True, True], 10)
    found = Thresholds.of({"a": pooled}, pooled)
    assert Thresholds(**found.to_dict()) == found
    assert found.at_precision(99, ["a", "other"]) == [0.3, 0.3]
    assert Thresholds(0.5, {}, {"": {}}).at_precision(90, ["a"]) == [None]


def test_no_score_has_a_better_f1_at_iou_one_half():
    truth, results = scene(2, num_images=40)
    matches = match_objects(*checked(truth, results), "hotcoco", ious=1)
    curves, pooled = detection_curves(matches)
    found = Thresholds.of(curves, pooled)
    assert len(found.classes) == 3  # each has ten objects
    for name, one in curves.items():
        (threshold,) = found.best([name])
        best = at_score(one, threshold)[2]
        tried = [at_score(one, score)[2] for score in (*np.linspace(0, 1, 101), 0.5)]
        assert best >= max(tried) and best > 0


def test_curves_count_what_coco_counts():
    truth, results = scene(2, num_images=40)
    objects, detections = checked(truth, results)
    matches = match_objects(objects, detections, "pycocotools", ious=1)
    curves, pooled = detection_curves(matches)
    singles = [a for a in truth["annotations"] if not a["iscrowd"]]
    assert pooled.positives == sum(c.positives for c in curves.values()) == len(singles)
    assert pooled.taken[-1] == np.count_nonzero(~matches.ignored[0]) < len(results)
    assert pooled.hits[-1] == sum(c.hits[-1] for c in curves.values())
