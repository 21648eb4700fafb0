"""Matches and the bootstrap: weights of images give what the images, copied so often, give."""

from types import SimpleNamespace

import numpy as np
import pytest

from support.coco_scenes import checked, scene
from visionkit.errors import DataError
from visionkit.metrics.coco import matches as matches_of
from visionkit.metrics.coco.engines import ENGINES
from visionkit.metrics.coco.evaluator import evaluate_coco
from visionkit.metrics.coco.matches import IOUS, Matches, match_objects
from visionkit.metrics.coco.report import resampled
from visionkit.metrics.comparison import Subject, check_same, differences, intervals
from visionkit.metrics.intervals import (
    GROUPS,
    Samples,
    average_precision,
    interval,
    mean_over,
    replicate_weights,
    weights_without,
)


def copied(truth, results, weights):
    """The scene with each image as often as its weight, in the order of the ids."""
    images, objects, found = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            id_ = len(images) + 1
            images.append({**image, "id": id_})
            own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            objects += [
                {**a, "image_id": id_, "id": len(objects) + i} for i, a in enumerate(own, 1)
            ]
            found += [{**r, "image_id": id_} for r in results if r["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": objects}, found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_weights_of_one_give_cocos_metrics(iou_type, engine):
    truth, results = scene(3, num_images=8)
    matches = match_objects(*checked(truth, results, iou_type), engine)
    expected = evaluate_coco(truth, results, iou_type, engine)
    found = resampled(matches, np.ones((1, 8), np.int32))
    for name, value in found.items():
        assert value[0] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_counts_an_image_so_often(engine):
    truth, results = scene(5, num_images=8)
    matches = match_objects(*checked(truth, results), engine)
    weights = replicate_weights(8, 5, seed=1)
    found = resampled(matches, weights)
    for row, of_images in enumerate(weights.tolist()):
        expected = evaluate_coco(*copied(truth, results, of_images), "bbox", engine)
        for name in ("AP", "AP50", "AP75", *(n for n in expected if n.startswith("AP/"))):
            assert found[name][row] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def test_both_engines_match_the_same_objects():
    truth, results = scene(11, num_images=10)
    a, b = (match_objects(*checked(truth, results), engine) for engine in ENGINES)
    for name in ("row", "image", "category", "score", "ignored"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert np.array_equal(a.hit, b.hit)
    assert a.ignored.any() and a.hit.any() and a.wrong.any()  # or the scene shows nothing


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_many_images_are_matched_in_pieces_with_the_same_result(monkeypatch, iou_type, engine):
    truth, results = scene(11, num_images=10)
    parts = checked(truth, results, iou_type)
    whole = match_objects(*parts, engine)
    assert len(whole) and whole.hit.any()
    monkeypatch.setattr(matches_of, "RECORDS", 3 * len(whole.truth.names))
    pieces = match_objects(*parts, engine)
    for name in ("row", "image", "category", "score", "matched", "ignored"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name)), name


def test_no_detections_match_nothing():
    truth, _ = scene(3)
    matches = match_objects(*checked(truth, []), "pycocotools")
    assert len(matches) == 0
    found = average_precision(matches, np.ones((2, 6), np.int32))
    assert (found[~np.isnan(found)] == 0).all() and not np.isnan(found).all()


def test_replicates_have_as_many_images_as_the_dataset_and_follow_the_seed():
    weights = replicate_weights(30, 50, seed=4)
    assert weights.shape == (50, 30) and (weights.sum(1) == 30).all()
    assert np.array_equal(weights, replicate_weights(30, 50, seed=4))
    assert not np.array_equal(weights, replicate_weights(30, 50, seed=5))


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 400)
    weights = replicate_weights(400, 4000), weights_without(400)
    found = interval(
        values.mean(), Samples(*(mean_over(w, values, np.ones(400)) for w in weights), 400)
    )
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.04)
    assert found.high == pytest.approx(values.mean() + error, abs=0.04)


def test_intervals_contain_the_value_and_skip_undefined_replicates():
    def of(value, *replicates, **options):
        return interval(value, Samples(np.array(replicates), np.array([np.nan]), 50), **options)

    assert of(0.5, 0.5, 0.5, np.nan) == (0.5, 0.5, 0.5)
    low, high = of(0.1, *np.linspace(0.5, 0.9, 100))[1:]
    assert 0 < low < 0.1 < high < 0.6
    assert np.isnan(of(0.5, np.nan)[1:]).all()
    assert np.isnan(of(np.nan, 1.0)[1:]).all()
    assert np.isnan(of(1.0, 1.0, 1.0)[1:]).all()  # as certain as the next image
    assert of(0.0, 0.0, 0.0, bounded=False) == (0, 0, 0)  # a difference
    assert of(30.0, 29.0, 31.0)[1] < 29 and of(30.0, 29.0, 31.0)[2] > 31  # decibels


def test_an_interval_by_hand():
    """The mean of the replicates is 0.01 too high, so the center is 0.58."""
    replicates, without = np.array([0.51, 0.71, 0.61, 0.61]), np.array([0.61, 0.59])
    found = interval(0.6, Samples(replicates, without, 50))
    error = np.sqrt(0.02 / 4 * 50 / 49)  # the jackknife's is 0.01
    reach = students_t(49) * error / (0.58 * 0.42)
    logit = np.log(0.58 / 0.42)
    assert found.low == pytest.approx(1 / (1 + np.exp(reach - logit)), abs=1e-5)
    assert found.high == pytest.approx(1 / (1 + np.exp(-reach - logit)), abs=1e-5)
    other = interval(0.6, Samples(replicates, np.array([0.8, 0.4]), 50), bounded=False)
    assert other.high == pytest.approx(0.58 + students_t(49) * 0.2, abs=1e-5)


def students_t(freedom):
    """scipy.stats.t.ppf(0.975, freedom)."""
    return {49: 2.0095752, 19: 2.0930241}[freedom]


def test_the_jackknife_leaves_out_each_image_once():
    weights = weights_without(50)
    assert weights.shape == (GROUPS, 50) and (weights.sum(0) == GROUPS - 1).all()
    values = np.random.default_rng(0).random(GROUPS * 3)
    means = mean_over(weights_without(len(values)), values, np.ones(len(values)))
    groups = values.reshape(3, GROUPS).mean(0)  # the error of a mean of equal groups
    found = Samples(np.zeros(1), means, len(values)).error()
    assert found == pytest.approx(groups.std(ddof=1) / np.sqrt(GROUPS))


def test_a_mean_leaves_out_images_that_do_not_count():
    weights = np.array([[1, 2, 0], [0, 0, 3]])
    found = mean_over(weights, np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))
    assert found[0] == pytest.approx(1 / 3) and np.isnan(found[1])


class Constant:
    """An evaluator whose metric is a mean of values of the images."""

    def __init__(self, values):
        self.values = np.asarray(values, float)

    def image_ids(self):
        return np.arange(len(self.values))

    def resampled(self, weights):
        return {"m": mean_over(weights, self.values, np.ones(len(self.values)))}


def test_a_model_against_itself_has_no_difference():
    one = Constant(np.arange(50) % 3)
    (found,) = differences(one, one, {"m": 0.98}, {"m": 0.98}, replicates=200)
    assert found.interval == (0, 0, 0)
    assert found.verdict.startswith("A and B are equal")


def test_a_paired_difference_is_narrower_than_its_models():
    rng = np.random.default_rng(0)
    a = Constant(rng.normal(0, 1, 200))
    b = Constant(a.values + 0.1)
    means = [{"m": one.values.mean()} for one in (a, b)]
    (found,) = differences(a, b, *means, replicates=500)
    assert found.interval.low == pytest.approx(0.1) and found.verdict.startswith("B is better")
    (back,) = differences(b, a, *reversed(means), replicates=500)
    assert back.verdict.startswith("A is better: -0.100 m")
    assert intervals(a, means[0], 500)["m"].high > 0.1  # alone each is as uncertain as that


def test_fewer_than_twenty_images_have_no_interval():
    one = Constant(np.arange(19))
    assert intervals(one, {"m": 9.0}, 100) == {}
    assert differences(one, one, {"m": 9.0}, {"m": 9.0}, 100) == []
    assert intervals(Constant(np.arange(20)), {"m": 9.5}, 100)["m"].value == 9.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["cat", "ox"]}, "A has 'dog', B has not"),
        ({"image_ids": np.array([1, 2, 4])}, "image_id 3 is in only one of them"),
        ({"truth": {"boxes": np.ones((1, 4))}}, "other ground truth.*boxes"),
    ],
)
def test_what_was_evaluated_on_other_data_is_not_compared(change, message):
    same = {
        "image_ids": np.array([1, 2, 3]),
        "classes": ["cat", "dog"],
        "truth": {"boxes": np.zeros((1, 4))},
    }
    check_same(Subject(**same), Subject(**same))
    with pytest.raises(DataError, match=message):
        check_same(Subject(**same), Subject(**{**same, **change}))


def simulated(images, rng, detected=0.8, iou=0.78):
    """Detections of three classes in images of different difficulty, as if they were matched."""
    parts = []
    for rate in (2.0, 1.0, 4.0):
        ease = rng.normal(0, 0.7, images)
        there = np.repeat(np.arange(images), rng.poisson(rate, images))
        found = there[rng.random(len(there)) < detected]
        ious = rng.normal(iou, 0.12, len(found)) + 0.05 * ease[found]
        wrong = np.repeat(np.arange(images), rng.poisson(1.5, images))
        scores = [rng.normal(1, 1, len(found)) + ease[found] / 2, rng.normal(-0.5, 1, len(wrong))]
        hits = np.zeros((len(IOUS), len(found) + len(wrong)), bool)
        hits[:, : len(found)] = ious >= IOUS[:, None]
        order = np.argsort(-np.concatenate(scores))
        image = np.concatenate([found, wrong])
        parts.append((there, image[order], np.concatenate(scores)[order], hits[:, order]))
    objects, image, scores, hits = zip(*parts, strict=True)
    truth = SimpleNamespace(
        names=("a", "b", "c"),
        image=np.concatenate(objects),
        category=np.repeat(np.arange(3), [*map(len, objects)]),
        iscrowd=np.zeros(sum(map(len, objects)), bool),
        areas=np.ones(sum(map(len, objects))),
    )
    category = np.repeat(np.arange(3), [*map(len, image)])
    matched = np.where(np.concatenate(hits, 1), 0, -1)
    none = np.zeros(matched.shape, bool)
    rows = np.arange(len(category))
    return Matches(
        truth, rows, np.concatenate(image), category, np.concatenate(scores), matched, none
    )


class Simulated:
    """An evaluator of simulated detections."""

    def __init__(self, matches, images):
        self.matches, self.images = matches, images

    def image_ids(self):
        return np.arange(self.images)

    def resampled(self, weights):
        return resampled(self.matches, weights)


def metrics_of(matches, images):
    found = resampled(matches, np.ones((1, images), np.int32))
    return {name: values[0] for name, values in found.items()}


def contained(images, name, replicates, **quality):
    """The share of 200 simulated datasets whose interval of a metric contains the true value, and
    the mean width."""
    rng, large, inside, widths = np.random.default_rng(0), 60_000, 0, []
    # The mean of some large sets: in one alone the last of COCO's recalls is reached by chance.
    many = [metrics_of(simulated(large, rng, **quality), large)[name] for _ in range(8)]
    true = np.mean(many)
    for seed in range(200):
        matches = simulated(images, rng, **quality)
        metrics = metrics_of(matches, images)
        found = intervals(Simulated(matches, images), metrics, replicates, seed)[name]
        inside += found.low <= true <= found.high
        widths.append(found.high - found.low)
    return inside / 200, np.mean(widths)


@pytest.mark.slow
def test_95_percent_of_intervals_contain_the_true_ap():
    share, width = contained(100, "AP", 400)
    assert 0.92 <= share <= 0.98
    assert 0.05 < width < 0.075  # 1.1 times that of percentiles, of which 86 % do


@pytest.mark.slow
@pytest.mark.parametrize("images", [30, 100, 300])
@pytest.mark.parametrize("name", ["AP", "AP50", "AP/c"])
@pytest.mark.parametrize("quality", [{}, {"detected": 0.5, "iou": 0.66}])
def test_they_do_for_small_and_larger_datasets(images, name, quality):
    """With three standard errors of 200 datasets: of more, 92 to 98 % do."""
    assert 0.9 <= contained(images, name, 200, **quality)[0] <= 0.99


@pytest.mark.parametrize(("images", "true"), [(20, 0.4), (20, 0.9), (50, 0.97)])
def test_95_percent_of_intervals_contain_the_true_accuracy(images, true):
    """Also of one near 1, of which percentiles contain half."""
    rng, inside, given = np.random.default_rng(3), 0, 0
    for seed in range(200):
        one = Constant(rng.random(images) < true)
        found = intervals(one, {"m": one.values.mean()}, 200, seed)["m"]
        inside += found.low <= true <= found.high
        given += found.low == found.low
    assert 0.92 <= inside / given <= 0.99


def test_many_images_are_resampled_in_pieces_with_the_same_result(monkeypatch):
    from visionkit.metrics import comparison

    class Mean:
        values = np.random.default_rng(0).random(30)

        def image_ids(self):
            return np.arange(30)

        def resampled(self, weights):
            return {"mean": mean_over(weights, self.values, np.ones(30))}

    metrics = {"mean": Mean.values.mean()}
    whole = comparison.intervals(Mean(), metrics, 100)
    monkeypatch.setattr(comparison, "BLOCK", 30 * 7)
    assert comparison.intervals(Mean(), metrics, 100) == whole
