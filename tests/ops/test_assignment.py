"""Pairs of the least total cost, against scipy and against all permutations."""

import itertools

import numpy as np
import pytest

from visionkit.ops.assignment import assign


def total(cost, rows, columns):
    return cost[rows, columns].sum()


def test_by_hand():
    """The cheapest column of both rows is the first; the second row loses less by another."""
    ((rows, columns),) = assign([np.array([[1.0, 9.0, 5.0], [2.0, 3.0, 8.0]])])
    assert rows.tolist() == [0, 1] and columns.tolist() == [0, 1]


def test_more_rows_than_columns():
    ((rows, columns),) = assign([np.array([[4.0], [1.0], [3.0]])])
    assert rows.tolist() == [1] and columns.tolist() == [0]


def test_nothing_to_assign():
    assert assign([]) == []
    for shape in ((0, 4), (4, 0), (0, 0)):
        (found,) = assign([np.zeros(shape)])
        assert [len(part) for part in found] == [0, 0]


def test_against_all_permutations():
    rng = np.random.default_rng(0)
    costs = [rng.normal(size=(3, 5)) for _ in range(30)]
    for cost, found in zip(costs, assign(costs), strict=True):
        best = min(total(cost, range(3), p) for p in itertools.permutations(range(5), 3))
        assert total(cost, *found) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["normal", "whole numbers", "equal", "huge range"])
def test_against_scipy_in_one_batch_of_all_shapes(kind):
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(1)
    costs = []
    for _ in range(200):
        shape = rng.integers(0, 40, 2)
        cost = rng.normal(size=shape)
        if kind == "whole numbers":
            cost = rng.integers(0, 4, shape).astype(float)  # many solutions
        elif kind == "equal":
            cost = np.ones(shape)
        elif kind == "huge range":
            cost = np.exp(8 * cost)
        costs.append(cost)
    for cost, (rows, columns) in zip(costs, assign(costs), strict=True):
        expected = optimize.linear_sum_assignment(cost)
        assert len(rows) == len(columns) == min(cost.shape)
        assert (np.diff(rows) > 0).all() and len({*columns.tolist()}) == len(columns)
        assert total(cost, rows, columns) == pytest.approx(total(cost, *expected), rel=1e-9)
        if kind in ("normal", "huge range"):  # of which there is one solution
            assert np.array_equal(rows, expected[0]) and np.array_equal(columns, expected[1])


def test_a_problem_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    costs = [rng.normal(size=(n, 20)) for n in (1, 7, 20, 33)]
    for cost, found in zip(costs, assign(costs), strict=True):
        (alone,) = assign([cost])
        assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))


def test_costs_that_are_not_finite_are_the_last_resort():
    cost = np.array([[np.nan, 5.0, np.inf], [1.0, np.inf, np.nan], [np.nan, 2.0, np.nan]])
    ((_, columns),) = assign([cost])
    assert columns.tolist()[1] == 0 and columns.tolist()[2] == 1
    ((_, columns),) = assign([np.full((2, 2), np.nan)])
    assert sorted(columns.tolist()) == [0, 1]
