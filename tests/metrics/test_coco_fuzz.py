"""COCO figures against pycocotools itself: the same bits where the input is valid, and a plain
error or the same bits where it is not."""

import copy
import json
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.coco_scenes import dirty, only, raw_pycocotools, scene, tidy
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import STATS, evaluate_coco, evaluate_files

SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=["pycocotools", "hotcoco"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


def assert_pycocotools_figures(found, truth, results, iou_type):
    """All twelve, and the average precision of each class, bit for bit."""
    expected = raw_pycocotools(tidy(truth, iou_type), results, iou_type)
    figures = dict(zip(STATS, expected.stats, strict=True))
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for k, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
        scored = precision[:, :, k][precision[:, :, k] > -1]
        figures[f"AP/{category['name']}"] = scored.mean() if scored.size else -1
    assert found.keys() == figures.keys()
    for name, value in figures.items():
        assert found[name] == value or (math.isnan(found[name]) and value == -1), name


def check_valid(seed, iou_type, engine):
    truth, results = dirty(seed)
    results = only(results, iou_type)
    found = evaluate_coco(copy.deepcopy(truth), results, iou_type, engine, trust=True)
    assert_pycocotools_figures(found, truth, results, iou_type)


@settings(max_examples=100, deadline=None, suppress_health_check=SHARED)
@given(st.integers(0, 10**6), st.sampled_from(["bbox", "segm"]))
def test_every_figure_is_pycocotools_bit_for_bit(engine, seed, iou_type):
    check_valid(seed, iou_type, engine)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5000, deadline=None, suppress_health_check=SHARED)
@given(st.integers(0, 10**9), st.sampled_from(["bbox", "segm"]))
def test_five_thousand_scenes_are_scored_as_by_pycocotools(engine, seed, iou_type):
    check_valid(seed, iou_type, engine)


def test_the_comparison_notices_the_smallest_difference():
    truth, results = scene(3)
    results = only(results, "bbox")
    found = evaluate_coco(truth, results, "bbox")
    assert_pycocotools_figures(found, truth, results, "bbox")
    for name in ("AR1", "AP/class 5"):
        with pytest.raises(AssertionError, match=name):
            wrong = {**found, name: math.nextafter(found[name], 2)}
            assert_pycocotools_figures(wrong, truth, results, "bbox")


VALUES = [
    *(None, True, False, "1", "", "NaN", [], {}, [1], [[]], [[1, 2]], {"a": 1}),
    *(-1, 0, 1, 2, 1.0, 1.5, 1e-320, -(2**63), 2**63, 10**30, 10**400),
    *(math.nan, math.inf, -math.inf, 1e308, -1e308, 1e9, 1e12),
]


def places(value, path=()):
    """Where something stands in the first records of a file."""
    children = {}
    if isinstance(value, dict):
        children = value
    elif isinstance(value, list):
        children = dict(enumerate(value[:3]))
    for key, child in children.items():
        yield (*path, key)
        yield from places(child, (*path, key))


def mutate(file, path, value):
    for key in path[:-1]:
        file = file[key]
    if value is ...:
        del file[path[-1]]
    else:
        file[path[-1]] = copy.deepcopy(value)


def check_invalid(tmp_path, data, engine):
    """Put something wrong, or something else that is right, into one place of sound files."""
    iou_type = data.draw(st.sampled_from(["bbox", "segm"]))
    truth, results = scene(data.draw(st.integers(0, 30)), num_images=3)
    files = {"truth": truth, "results": only(results, iou_type)}
    name = data.draw(st.sampled_from(list(files)))
    path = data.draw(st.sampled_from(list(places(files[name])) or [("images", 0)]))
    if name == "results" and not files[name]:
        return
    mutate(files[name], path, data.draw(st.sampled_from([*VALUES, ...])))
    for each, contents in files.items():
        (tmp_path / f"{each}.json").write_text(json.dumps(contents))
    try:
        paths = tmp_path / "truth.json", tmp_path / "results.json"
        found = evaluate_files(*paths, iou_type, engine, trust=True)
    except DataError as error:
        assert_told(str(error), name, path)
    else:
        kept = only(files["results"], iou_type)
        assert_pycocotools_figures(found, files["truth"], kept, iou_type)


def assert_told(message, name, path):
    """The file, the record and the key are named; those of others where they do not fit any more
    to what was changed."""
    keys = [key for key in path if isinstance(key, str)]
    is_referred_to = name == "truth" and (len(path) < 3 or path[0] != "annotations")
    if is_referred_to:
        assert re.search(r"(truth|results)\.json", message)
        assert re.search(r"'\w+' is |\w+\[\d+\] |result \d+ ", message), message
    else:
        record = f"result {path[0]}" if name == "results" else f"annotations[{path[1]}]"
        assert f"{name}.json" in message and record in message, message
        assert len(path) == 1 or any(key in message for key in keys), message


@settings(max_examples=120, deadline=None, suppress_health_check=SHARED)
@given(st.data())
def test_one_wrong_value_gives_the_right_figures_or_a_plain_error(tmp_path, engine, data):
    check_invalid(tmp_path, data, engine)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5000, deadline=None, suppress_health_check=SHARED)
@given(st.data())
def test_five_thousand_wrong_values(tmp_path, engine, data):
    check_invalid(tmp_path, data, engine)
