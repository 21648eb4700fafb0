"""The two COCO engines give the same arrays, bit for bit, on all valid input."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from support.coco_scenes import only, rectangle, wild
from support.run_lengths import run_lengths
from visionkit.data.coco.ground_truth import ground_truth
from visionkit.data.coco.index import index_of
from visionkit.data.coco.segmentations import rle_totals
from visionkit.errors import ConfigError
from visionkit.metrics.coco import engines
from visionkit.metrics.coco.detections import DetectionChecker
from visionkit.metrics.coco.engines import match, pick_engine
from visionkit.metrics.coco.evaluator import evaluate_coco, labeled_only
from visionkit.metrics.coco.ground_truth import read_truth, scored

H, W = 100, 120


def both(truth, detections):
    pytest.importorskip("hotcoco")
    checker = DetectionChecker(truth)
    checker.add(detections)
    found = checker.detections()
    return [match(truth, found, name) for name in ("pycocotools", "hotcoco")]


def assert_equal(truth, results):
    for expected, found in zip(*both(truth, results), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["bbox", "segm"]))
def test_the_engines_are_equal_bit_for_bit(seed, iou_type):
    truth, results = wild(seed)
    opened = read_truth(truth, iou_type)
    assert_equal(opened, only(results, iou_type))
    assert_equal(opened, [])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_they_are_equal_with_polygons_turned_into_masks_before(seed):
    pytest.importorskip("hotcoco")
    truth, results = wild(seed)
    opened = read_truth(truth, "segm")
    checker = DetectionChecker(opened)
    checker.add(only(results, "segm"))
    found = checker.detections()
    expected = match(opened, found, "pycocotools")
    for engine in ("pycocotools", "hotcoco"):
        curves = match(opened.rasterized(), found, engine)
        for ours, theirs in zip(curves, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["bbox", "segm"]))
def test_they_are_equal_where_images_are_labeled_in_part(seed, iou_type):
    truth, results = wild(seed)
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in truth["categories"]]
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if rng.random() < 0.6:
                image[key] = [i for i in ids if rng.random() < 0.4]
    index = index_of(truth, "truth")
    classes = [category["name"] for category in truth["categories"]], ids
    columns = ground_truth(index, classes, index.objects.masks, index.objects.area)
    opened = scored(columns, iou_type)
    assert len(opened) > len(columns) or not any(columns.incomplete.values())
    checker = DetectionChecker(opened)
    checker.add(only(results, iou_type))
    assert_equal(opened, labeled_only(opened, checker.detections()))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_scene_scores_something_and_the_scores_are_not_trivial(iou_type):
    """That the equality above compares more than zeros."""
    truth, results = wild(4)
    scores = evaluate_coco(truth, only(results, iou_type), iou_type)
    assert 0.05 < scores["AP"] < 0.95 and scores["AP50"] > scores["AP75"]


def test_the_engine_is_chosen_by_argument_then_environment_then_what_is_there(monkeypatch):
    monkeypatch.delenv("VISIONKIT_COCO_ENGINE", raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    assert pick_engine() == "hotcoco"
    monkeypatch.setenv("VISIONKIT_COCO_ENGINE", "pycocotools")
    assert pick_engine() == "pycocotools" and pick_engine("hotcoco") == "hotcoco"
    monkeypatch.setenv("VISIONKIT_COCO_ENGINE", "detectron")
    with pytest.raises(ConfigError, match="VISIONKIT_COCO_ENGINE: unknown COCO engine 'detectron'"):
        pick_engine()


def test_without_hotcoco_pycocotools_is_used_and_asking_for_it_is_an_error(monkeypatch):
    monkeypatch.delenv("VISIONKIT_COCO_ENGINE", raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # importing it fails
    assert pick_engine() == "pycocotools"
    truth, results = wild(4)
    assert evaluate_coco(truth, only(results, "bbox"), "bbox")["AP"] > 0.05
    with pytest.raises(ConfigError, match=r"hotcoco is not installed.*visionkit-torch\[fast\]"):
        evaluate_coco(truth, [], "bbox", "hotcoco")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5000), min_size=1, max_size=12), min_size=0, max_size=5))
def test_totals_of_run_lengths(objects):
    codes = []
    for lengths in objects:
        rle = {"size": [1, sum(lengths)], "counts": lengths}
        codes.append(coco_mask.frPyObjects(rle, 1, sum(lengths))["counts"])
    covered, filled = rle_totals(codes)
    assert covered.tolist() == [sum(lengths) for lengths in objects]
    assert filled.tolist() == [sum(lengths[1::2]) for lengths in objects]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("0123>?@OPQnoP~/", max_size=12), max_size=9))
def test_totals_of_any_text_are_those_of_the_decoder_for_one(codes):
    covered, filled = rle_totals(codes)
    for code, cover, fill in zip(codes, covered, filled, strict=True):
        try:
            lengths = run_lengths(code.encode())
        except ValueError:
            assert cover == -1
            continue
        sound = lengths.min() >= 0 and lengths.max() <= 2**32
        assert cover == (lengths.sum() if sound else -1)
        assert fill == lengths[1::2].sum() or not sound


def test_a_damaged_code_does_not_touch_its_neighbours(monkeypatch):
    good = rectangle([10, 10, 40, 30], (H, W))["counts"]
    cut = good[:-1]  # its last number goes on: into the next code, if that were not prevented
    codes = [good, cut, good, "", good, "~" + good, good, "o" * 12 + "0", good, "\x00", good]
    for chunk in (1, 2, 3, 1024):
        monkeypatch.setattr("visionkit.data.coco.segmentations.CHUNK", chunk)
        covered, filled = rle_totals(codes)
        assert (covered[::2] == H * W).all() and (filled[::2] == 1200).all()
        assert (covered[1::2] < H * W).all()
    assert rle_totals([])[0].tolist() == []


def test_codes_as_str_and_bytes_and_what_is_not_ascii():
    good = rectangle([10, 10, 40, 30], (H, W))["counts"]
    assert "?" not in good
    odd = coco_mask.frPyObjects({"size": [1, 25], "counts": [15, 10]}, 1, 25)["counts"]
    assert odd[:1] == b"?"
    covered, filled = rle_totals([good, odd, good.encode(), odd.decode().replace("?", "€")])
    assert covered.tolist() == [H * W, 25, H * W, -1] and filled.tolist()[:3] == [1200, 10, 1200]
    with pytest.raises(TypeError):
        rle_totals([good, [1, 2]])


def test_a_sum_beyond_64_bits_does_not_come_out_as_the_size():
    rest, steps = 2**64, []
    for weight in range(2**16, 0, -1):  # so often the step is part of a run length
        steps.append(min(rest // weight, 2**34 - 1))
        rest -= steps[-1] * weight
    assert rest == 0
    code = encoded([7, 0, 0, *(number for step in steps for number in (0, step))])
    assert rle_totals([code, encoded([1, 2, 3])])[0].tolist() == [-1, 6]


def encoded(numbers):
    """The text of numbers from 0 to 2^34 as they are, without differences."""
    text = ""
    for number in numbers:
        while number > 15:
            text += chr(48 + 32 + number % 32)
            number //= 32
        text += chr(48 + number)
    return text
