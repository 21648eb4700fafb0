"""Recall and mAP@R against hand-worked values and a plain loop."""

import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from visionkit.errors import DivergedError
from visionkit.metrics import retrieval
from visionkit.metrics.parts import ReportContext
from visionkit.metrics.retrieval import Retrieval
from visionkit.types import Batch


def feed(evaluator, vectors, identities, ids=None):
    ids = range(len(identities)) if ids is None else ids
    targets = [{"image_id": i} for i in ids]
    for target, identity in zip(targets, identities, strict=True):
        if identity is not None:
            target["identity"] = torch.tensor(int(identity))
    predictions = [{"embedding": torch.as_tensor(v, dtype=torch.float32)} for v in vectors]
    evaluator.update(predictions, Batch(torch.zeros(len(targets), 3, 1, 1), targets))
    return evaluator


def scores(vectors, identities, ids=None):
    return feed(Retrieval(), vectors, identities, ids).compute()


def at(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_by_hand():
    """Images on a circle; only the angles between them count."""
    # 0: nearest b (10), then a (15), a (40).   15: b (5), a (15), a (25).   40: a, b, a.
    # 10 is the only b: in the gallery, no query.
    found = scores(at(0, 15, 40, 10), [0, 0, 0, 1])
    assert found["recall@1"] == pytest.approx(1 / 3)
    assert found["recall@5"] == 1
    # R = 2: (0 + 1/2) / 2, (0 + 1/2) / 2, (1 + 0) / 2.
    assert found["mAP@R"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)


def looped(vectors, identities):
    vectors = np.asarray(vectors, np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, five, average = [], [], []
    for q in range(len(vectors)):
        others = [i for i in range(len(vectors)) if i != q]
        right = sum(identities[i] == identities[q] for i in others)
        if not right:
            continue
        # Six decimals and then the number of the image, as the docstring says.
        others.sort(key=lambda i: (-round(float(vectors[q] @ vectors[i]), 6), i))
        hits = [identities[i] == identities[q] for i in others]
        first.append(hits[0])
        five.append(any(hits[:5]))
        precisions = [sum(hits[: r + 1]) / (r + 1) for r in range(right) if hits[r]]
        average.append(sum(precisions) / right)
    return {name: np.mean(x) for name, x in zip(NAMES, (first, five, average), strict=True)}


NAMES = ("recall@1", "recall@5", "mAP@R")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [2**22, 100])
def test_equals_a_loop_over_queries(seed, limit, monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_SIMILARITIES", limit)
    rng = np.random.default_rng(seed)
    identities = rng.integers(0, 12, 70)
    vectors = rng.normal(size=(70, 4)) + 0.8 * np.eye(4)[identities % 4]
    found, expected = scores(vectors, identities), looped(vectors, identities)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.02 < found["mAP@R"] < found["recall@1"] < found["recall@5"] < 1


def test_length_and_order_and_processes_play_no_part():
    rng = np.random.default_rng(0)
    identities = rng.integers(0, 5, 40)
    vectors = np.round(rng.normal(size=(40, 3)))  # many equal ones
    vectors[np.abs(vectors).sum(1) == 0] = 1
    whole = scores(vectors, identities)
    order = list(range(40))
    random.Random(0).shuffle(order)
    shuffled = scores(vectors[order] * 7, identities[order], order)
    assert shuffled == whole
    parts = [feed(Retrieval(), vectors[k::3], identities[k::3], range(k, 40, 3)) for k in range(3)]
    all_gather_with_grad = Retrieval()
    all_gather_with_grad.merge([part.state() for part in parts] + [Retrieval().state()])
    assert all_gather_with_grad.compute() == whole


def test_one_vector_for_all_scores_by_chance():
    """A collapsed model: the ties are broken by number, whatever the identity."""
    found = scores(np.ones((6, 3)), [0, 1, 2, 0, 1, 2])
    assert found["recall@1"] == pytest.approx(1 / 6)  # 0 is nearest to all, and right for 3 alone


def test_images_without_identity_are_not_there():
    vectors = at(0, 10, 11, 30)
    assert scores(vectors, [0, None, None, 0])["recall@1"] == 1
    assert scores(vectors, [0, 1, 1, 0])["mAP@R"] == 0.5


@pytest.mark.parametrize("identities", [[], [3], [1, 2, 3], [None, None]])
def test_nothing_to_find_is_not_a_number(identities):
    found = scores(at(*range(len(identities))), identities)
    assert list(found) == list(NAMES) and all(map(math.isnan, found.values()))


def test_a_vector_that_is_not_finite_stops_the_evaluation():
    with pytest.raises(DivergedError, match="image 1: "):
        feed(Retrieval(), [[1.0, 0.0], [math.nan, 0.0]], [0, 0])


def test_predictions_are_copied():
    vectors = torch.eye(2)
    evaluator = feed(Retrieval(), vectors, [0, 0])
    stored = [vector for _, _, vector in evaluator.state()]
    assert all(vector.untyped_storage().nbytes() == 8 for vector in stored)


def test_thousands_of_images_take_seconds():
    rng = np.random.default_rng(0)
    identities = rng.integers(0, 300, 3000)
    centers = rng.normal(size=(300, 32))
    start = time.perf_counter()
    found = scores(centers[identities] + 0.1 * rng.normal(size=(3000, 32)), identities)
    assert found["recall@1"] == 1 and time.perf_counter() - start < 10


def test_the_report_has_failed_queries_or_those_that_another_model_shows():
    """On a circle the query 0 (a) and 40 (a) find b first; both b find each other."""
    evaluator = feed(Retrieval(), at(0, 10, 15, 40), [0, 1, 1, 0])
    (failed,) = evaluator.report(ReportContext(lambda _: None))
    assert [(one.image_id, one.neighbors[0]) for one in failed.images] == [(0, 1), (3, 2)]
    (chosen,) = evaluator.report(ReportContext(lambda _: None, only=frozenset({1, 3})))
    assert [(one.image_id, one.neighbors[0]) for one in chosen.images] == [(3, 2), (1, 2)]
    assert chosen.note.startswith("2 of 4 queries.")


def test_neighbors_are_found_once_and_again_after_an_update(monkeypatch):
    calls = []
    found = retrieval._scores
    monkeypatch.setattr(retrieval, "_scores", lambda *a: calls.append(1) or found(*a))
    evaluator = feed(Retrieval(), at(0, 10, 15, 40), [0, 1, 1, 0])
    first = evaluator.compute()
    evaluator.resampled(np.ones((2, 4), np.int32))
    evaluator.report(ReportContext(lambda _: None))
    assert len(calls) == 1
    feed(evaluator, at(41), [0], ids=[9])
    assert evaluator.compute() != first and len(calls) == 2
    evaluator.merge([evaluator.state()[:4]])
    assert evaluator.compute() == first and len(calls) == 3


MANY = """
import resource, torch
from visionkit.metrics.retrieval import Retrieval
evaluator = Retrieval()
vectors = torch.randn(50_000, 8, generator=torch.Generator().manual_seed(0))
evaluator.records = [(i, i // 10, vector) for i, vector in enumerate(vectors)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluator.compute()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow  # a minute: 2.5 billion pairs
def test_many_images_need_little_memory():
    """Half a gigabyte, and not 14 for 50,000 images."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
