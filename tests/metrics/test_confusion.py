"""Metrics of semantic maps against loops and numbers worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visionkit.errors import DataError
from visionkit.metrics.confusion import ConfusionMatrix
from visionkit.metrics.parts import Gallery, ReportContext
from visionkit.types import Batch

CLASSES = ["background", "cat", "dog"]


def update(metric, truth, found, **more):
    truth, found = (torch.as_tensor(x, dtype=torch.uint8) for x in (truth, found))
    target = {"image_id": 1, "size": truth.shape, "semantic": truth, **more}
    batch = Batch(torch.zeros(1, 3, *truth.shape, dtype=torch.uint8), [target])
    metric.update([{"semantic": found}], batch)


def test_by_hand():
    metric = ConfusionMatrix([*CLASSES, "emu"])
    update(metric, [[0, 0, 1, 1], [0, 0, 1, 255]], [[0, 1, 1, 1], [0, 0, 2, 3]])
    metrics = metric.compute()
    assert metrics["IoU/background"] == pytest.approx(3 / 4)
    assert metrics["IoU/cat"] == pytest.approx(2 / 4)
    assert metrics["IoU/dog"] == 0  # predicted, never there
    assert math.isnan(metrics["IoU/emu"])  # predicted on an ignored pixel only
    assert metrics["mIoU"] == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(5 / 7)
    assert metrics["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_one_matrix_over_all_images_and_no_mean_of_means():
    metric = ConfusionMatrix(CLASSES)
    update(metric, [[1, 1, 1, 1]], [[1, 1, 1, 1]])
    update(metric, [[1, 0]], [[0, 0]])
    assert metric.compute()["IoU/cat"] == pytest.approx(4 / 5)  # and not (1 + 0) / 2


def naive(pairs, classes):
    """IoU of each class: sets of pixels in loops, one image after the other."""
    ious = []
    for k in range(classes):
        both = either = 0
        for truth, found, labeled in pairs:
            if not labeled[k]:
                continue
            for t, p in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
                both += t == p == k
                either += t != 255 and k in (t, p)
        ious.append(both / either if either else math.nan)
    return ious


def random_pairs(partial):
    rng = np.random.default_rng(4)
    pairs = []
    for h, w in [(5, 7), (9, 4), (6, 6)]:
        truth = rng.choice([0, 1, 2, 255], (h, w)).astype(np.uint8)
        found = rng.integers(0, 3, (h, w)).astype(np.uint8)
        labeled = rng.permutation([True, False, True]) if partial else np.ones(3, bool)
        pairs.append((truth, found, labeled))
    return pairs


@pytest.mark.parametrize("partial", [False, True])
def test_iou_is_that_of_loops_and_processes_merge(partial):
    pairs = random_pairs(partial)
    whole, parts = ConfusionMatrix(CLASSES), [ConfusionMatrix(CLASSES) for _ in pairs]
    for (truth, found, labeled), part in zip(pairs, parts, strict=True):
        more = {"semantic_labeled": torch.from_numpy(labeled)} if partial else {}
        update(whole, truth, found, **more)
        update(part, truth, found, **more)
    metrics = whole.compute()
    ious = [metrics[f"IoU/{name}"] for name in CLASSES]
    assert ious == pytest.approx(naive(pairs, 3), nan_ok=True)
    merged = ConfusionMatrix(CLASSES)
    merged.merge([part.state() for part in parts])
    assert merged.compute() == metrics


@pytest.mark.parametrize("count", [1, 255])
def test_of_one_class_and_of_as_many_as_there_can_be(count):
    metric = ConfusionMatrix([str(i) for i in range(count)])
    update(metric, [[0, count - 1, 255]], [[0, count - 1, 0]])
    metrics = metric.compute()
    assert metrics["mIoU"] == metrics["pixel_accuracy"] == 1  # absent classes do not count
    assert sum(map(math.isnan, metrics.values())) == count - len({0, count - 1})
    assert len(metrics) == count + 3


def test_nothing_but_ignored_pixels_is_not_defined():
    metric = ConfusionMatrix(CLASSES)
    update(metric, [[255, 255]], [[0, 2]])
    assert all(map(math.isnan, metric.compute().values()))


def test_partial_labels_by_hand():
    """Only cat is labeled: dog for background is right, cat for background is an error."""
    metric = ConfusionMatrix(CLASSES)
    labeled = torch.tensor([False, True, False])
    update(metric, [[0, 0, 0, 1, 1]], [[2, 0, 1, 1, 2]], semantic_labeled=labeled)
    metrics = metric.compute()
    assert metrics["IoU/cat"] == metrics["mIoU"] == pytest.approx(1 / 3)
    assert math.isnan(metrics["IoU/background"]) and math.isnan(metrics["IoU/dog"])
    assert metrics["pixel_accuracy"] == pytest.approx(3 / 5)
    assert metrics["mean_accuracy"] == pytest.approx(1 / 2)


def test_unlabeled_images_are_skipped():
    metric = ConfusionMatrix(CLASSES)
    batch = Batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [{"image_id": 1, "size": (2, 2)}])
    metric.update([{"semantic": torch.zeros(2, 2, dtype=torch.uint8)}], batch)
    update(metric, [[0, 1]], [[1, 1]], semantic_labeled=torch.tensor([False] * 3))
    assert int(metric.counts.sum()) == 0
    metrics = metric.compute()
    assert all(math.isnan(value) for value in metrics.values())
    assert list(metrics) == ["mIoU", "pixel_accuracy", "mean_accuracy"] + [
        f"IoU/{name}" for name in CLASSES
    ]


class Truth:
    """A dataset with semantic maps in their original size."""

    def __init__(self, truth):
        self.truth = torch.tensor(truth, dtype=torch.uint8)

    def semantic_truth(self, image_id):
        assert image_id == 1
        return self.truth


def test_the_datasets_own_maps_count_at_their_own_size():
    metric = ConfusionMatrix(CLASSES, Truth([[0, 1], [0, 1]]))
    update(metric, [[2]], [[0, 1], [1, 1]])  # the map of the batch, of 1x1, plays no part
    assert metric.compute()["pixel_accuracy"] == pytest.approx(3 / 4)
    with pytest.raises(DataError, match="image 1: the semantic map has size"):
        update(metric, [[2]], [[0, 1, 1]])


def test_without_them_the_prediction_is_brought_to_the_map_of_the_batch():
    metric = ConfusionMatrix(CLASSES)
    update(metric, [[0, 2]], [[0, 0, 0, 2, 2, 2]] * 3)
    assert metric.compute()["pixel_accuracy"] == 1


def test_a_value_beyond_the_classes_is_an_error():
    with pytest.raises(DataError, match="image 1: the semantic map has the value 7"):
        update(ConfusionMatrix(CLASSES), [[0, 7]], [[0, 0]])


class Maps:
    """A dataset of one image; its map is that of a sample unless it can give that alone."""

    def __init__(self, truth, *, alone):
        self.truth, self.image_ids = torch.as_tensor(truth, dtype=torch.uint8), np.array([1])
        if alone:
            self.semantic_truth = lambda id_: {1: self.truth}[id_]

    def __getitem__(self, index):
        return SimpleNamespace(semantic=[self.truth][index])


def difference(dataset, truth, found, **more):
    """The difference map of the only image in the report."""
    metric = ConfusionMatrix(CLASSES, dataset)
    update(metric, truth, found, **more)
    prediction = {"semantic": torch.as_tensor(found, dtype=torch.uint8)}
    context = ReportContext(lambda _: (None, prediction))
    (gallery,) = (part for part in metric.report(context) if isinstance(part, Gallery))
    (shown,) = gallery.images
    return shown, gallery.note


@pytest.mark.parametrize("alone", [True, False])
def test_the_report_shows_which_pixels_are_right(alone):
    truth, found = [[0, 1, 2, 255]], [[0, 1, 1, 1]]
    shown, note = difference(Maps(truth, alone=alone), truth, found)
    assert shown.label_map.tolist() == [[1, 1, 2, 0]]
    assert shown.caption == "66.7% of the pixels are right" and "one class" not in note


def test_classes_that_are_not_labeled_are_one_in_the_difference_map():
    """As they are counted: only cat is labeled, so dog for background is right."""
    truth, found = [[0, 0, 0, 1, 1, 255]], [[2, 0, 1, 1, 2, 0]]
    labeled = torch.tensor([False, True, False])
    shown, note = difference(Maps(truth, alone=True), truth, found, semantic_labeled=labeled)
    assert shown.label_map.tolist() == [[1, 1, 2, 1, 2, 0]]
    assert shown.caption == "60.0% of the pixels are right"
    assert "Classes that are not labeled in an image count as one class there." in note


def test_without_a_dataset_the_image_is_shown_alone():
    assert difference(None, [[0, 1]], [[0, 2]])[0].label_map is None
