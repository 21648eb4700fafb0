"""Parts with equal shares of each class."""

from __future__ import annotations

import numpy as np
import pytest

from visionkit.data.tools.stratify import connected, stratified


def shares_of(labels: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
    """(P, K) the share of each label in each part."""
    return np.stack([labels[part == p].sum(0) for p in range(parts)]) / labels.sum(0)


def many(images: int = 600) -> np.ndarray:
    """Objects of 40 classes, the first 40 times as frequent as the last, in some images none."""
    rng = np.random.default_rng(3)
    frequency = 1 / np.arange(1, 41)
    objects = rng.poisson(6, images)
    objects[::9] = 0
    return np.stack([rng.multinomial(n, frequency / frequency.sum()) for n in objects])


def test_halves_of_single_labels_are_exact() -> None:
    labels = np.eye(2, dtype=int)[[0] * 6 + [1] * 4]
    part = stratified(labels, [0.5, 0.5])
    assert labels[part == 0].sum(0).tolist() == labels[part == 1].sum(0).tolist() == [3, 2]


@pytest.mark.parametrize("shares", [[0.8, 0.1, 0.1], [0.7, 0.3], [0.2] * 5])
def test_frequent_classes_get_their_share_of_objects_and_images(shares: list[float]) -> None:
    labels = many()
    part = stratified(labels, shares, seed=1)
    for counted in (labels, labels > 0):
        frequent = counted.sum(0) >= 50
        assert frequent.sum() > 10
        off = shares_of(counted[:, frequent], part, len(shares)) - np.array(shares)[:, None]
        assert np.abs(off).max() <= 0.02
    sizes = np.bincount(part) / len(labels)
    assert np.abs(sizes - shares).max() < 0.01
    rng = np.random.default_rng(0)
    by_chance = rng.choice(len(shares), len(labels), p=shares)
    frequent = labels.sum(0) >= 50
    off = shares_of(labels[:, frequent], by_chance, len(shares)) - np.array(shares)[:, None]
    assert np.abs(off).max() > 0.02  # so it is no accident


def test_images_without_objects_are_divided_too() -> None:
    labels = np.zeros((100, 2), int)
    labels[:50, 0], labels[50:70, 1] = 1, 3
    part = stratified(labels, [0.8, 0.1, 0.1])
    empty = part[70:]
    assert np.bincount(empty, minlength=3).tolist() == [24, 3, 3]
    assert np.bincount(part).tolist() == [80, 10, 10]


def test_a_rare_class_is_in_both_parts() -> None:
    labels = np.zeros((200, 2), int)
    labels[:, 0] = 4
    labels[[5, 150], 1] = 1
    part = stratified(labels, [0.5, 0.5])
    assert part[5] != part[150]


def test_groups_are_never_torn() -> None:
    labels = many(300)
    groups = np.arange(300) // 7 * 13
    part = stratified(labels, [0.7, 0.3], groups, seed=2)
    for group in np.unique(groups):
        assert len(set(part[groups == group].tolist())) == 1
    off = shares_of(labels[:, :5], part, 2) - np.array([[0.7], [0.3]])
    assert np.abs(off).max() <= 0.02


def test_the_seed_decides() -> None:
    labels = many(200)
    first, again, other = (stratified(labels, [0.8, 0.2], seed=seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_nothing_to_choose() -> None:
    assert stratified(np.zeros((0, 3)), [0.5, 0.5]).tolist() == []
    assert stratified(np.ones((3, 1)), [1.0]).tolist() == [0, 0, 0]
    assert stratified(np.ones((1, 1)), [0.3, 0.7]).tolist() == [1]
    assert sorted(stratified(np.zeros((4, 0)), [0.5, 0.5]).tolist()) == [0, 0, 1, 1]
    one_group = stratified(np.ones((4, 2)), [0.5, 0.5], np.full(4, 7))
    assert len(set(one_group.tolist())) == 1


def test_connected_joins_through_others() -> None:
    assert connected(7, iter([[5, 2], [1, 4], [2, 4], [6]])).tolist() == [0, 1, 1, 3, 1, 1, 6]
