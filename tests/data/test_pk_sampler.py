"""Batches of several identities with several images each, a function of seed and number."""

import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from visionkit.data.loading.samplers import PKBatchSampler
from visionkit.distributed import collectives
from visionkit.errors import ConfigError, DataError

TWELVE = np.arange(120) % 12  # 12 identities with 10 images each


def batches(identities, batch_size, images_per_identity, count, *, seed=0, start=0):
    stream = PKBatchSampler(identities, batch_size, images_per_identity, seed, start)
    return list(islice(stream, count))


def images(batch):
    return [index for index, _ in batch]


def test_a_batch_holds_different_images_of_different_identities():
    for number, batch in enumerate(batches(TWELVE, 20, 4, 30)):
        indices = images(batch)
        counts = Counter(TWELVE[indices].tolist())
        assert len(counts) == 5 and set(counts.values()) == {4}
        assert len(set(indices)) == 20
        assert [p for _, p in batch] == list(range(20 * number, 20 * number + 20))


def test_identities_and_their_images_come_equally_often():
    found = batches(TWELVE, 24, 2, 50)  # all twelve in every batch
    assert set(Counter(i for b in found for i in images(b)).values()) == {10}
    found = batches(TWELVE, 8, 2, 30)  # four to a batch, three batches to a pass
    for k in range(0, 30, 3):
        seen = [TWELVE[i] for batch in found[k : k + 3] for i in images(batch)]
        assert set(Counter(seen).values()) == {2}
    assert set(Counter(i for b in found[:15] for i in images(b)).values()) == {1}


def test_a_pass_that_does_not_come_out_even_is_filled_up():
    """Five to a batch: three batches show all twelve, three of them twice."""
    found = batches(TWELVE, 10, 2, 300)
    for k in range(0, 300, 3):
        visits = Counter(int(TWELVE[i]) for batch in found[k : k + 3] for i in images(batch))
        assert sorted(visits.values()) == [2] * 9 + [4] * 3
    total = Counter(int(TWELVE[i]) for batch in found for i in images(batch))
    assert max(total.values()) < 1.25 * min(total.values())
    shown = Counter(i for batch in found for i in images(batch))
    assert len(shown) == 120 and max(shown.values()) < 1.6 * min(shown.values())


def test_a_batch_depends_on_seed_and_number_alone():
    whole = batches(TWELVE, 10, 2, 40)
    for start in (1, 7, 33):
        assert batches(TWELVE, 10, 2, 5, start=start) == whole[start : start + 5]
    assert batches(TWELVE, 10, 2, 40) == whole
    assert batches(TWELVE, 10, 2, 40, seed=1) != whole
    assert whole[0] != [(i, p) for (i, _), (_, p) in zip(whole[12], whole[0], strict=True)]


def test_processes_share_a_batch_by_whole_identities(monkeypatch):
    whole = batches(TWELVE, 16, 2, 10)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        parts.append(batches(TWELVE, 16, 2, 10))
    for batch, one, two in zip(whole, *parts, strict=True):
        assert sorted(one + two) == sorted(batch) and len(one) == len(two)
        assert not set(TWELVE[images(one)]) & set(TWELVE[images(two)])


def test_few_images_are_repeated_at_other_positions():
    identities = np.array([0, 0, 1, 1, 1])
    for batch in batches(identities, 8, 4, 10):
        counts = Counter(images(batch))
        assert sorted(counts.values()) == [1, 1, 2, 2, 2]  # two twice; three, one of them twice
        assert len({p for _, p in batch}) == 8


def test_few_identities_fill_a_batch_with_more_images():
    two = np.arange(40) % 2
    for batch in batches(two, 12, 3, 20):
        assert Counter(two[images(batch)].tolist()) == {0: 6, 1: 6}
        assert len(set(images(batch))) == 12
    three = np.arange(300) % 3
    found = batches(three, 16, 4, 60)
    assert all(len(set(three[images(batch)])) == 3 for batch in found)
    total = Counter(int(three[i]) for batch in found for i in images(batch))
    assert max(total.values()) < 1.2 * min(total.values())


def test_single_images_are_not_used_where_other_identities_suffice():
    identities = np.array([0, 0, 1, 1, 2, 3, -1, -1])
    seen = {i for batch in batches(identities, 4, 2, 20) for i in images(batch)}
    assert seen == {0, 1, 2, 3}
    lonely = np.array([0, 0, 1, 2, -1])
    seen = {i for batch in batches(lonely, 4, 2, 20) for i in images(batch)}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("identities", [[], [-1, -1, -1], [4, 4, 4], [-1, 4, 4]])
def test_an_embedding_needs_two_identities(identities):
    with pytest.raises(DataError, match="at least two"):
        PKBatchSampler(np.array(identities, np.int64), 8, 4, 0)


@pytest.mark.parametrize(
    ("batch_size", "images_per_identity", "world"), [(10, 4, 1), (4, 4, 1), (12, 4, 2), (8, 4, 2)]
)
def test_batches_that_cannot_be_shared(batch_size, images_per_identity, world, monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    unit = images_per_identity * world
    with pytest.raises(ConfigError, match=f"multiple of {unit}, at least {2 * unit}"):
        PKBatchSampler(TWELVE, batch_size, images_per_identity, 0)


def test_a_hundred_thousand_images_take_no_time():
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    found = batches(rng.integers(0, 5000, 100_000), 128, 4, 200)
    assert len(found) == 200 and time.perf_counter() - start < 5
