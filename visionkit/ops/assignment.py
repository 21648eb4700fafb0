"""The assignment problem: pairs of rows and columns, each in one pair at most, of the least total
cost. All problems of a batch are solved together, with numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FREE = -1  # a column without a row, a row without a column


def assign(costs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each cost matrix (N, M) the pairs of the least total cost: min(N, M) rows in ascending
    order, and the column of each, both int64.

    Shortest augmenting paths (Jonker and Volgenant 1987; the form of Crouse 2016): rows are added
    one after another, in all problems at once. Costs that are NaN or infinite count as very high.
    """
    upright = [cost if cost.shape[0] <= cost.shape[1] else cost.T for cost in costs]
    num_rows = np.array([len(cost) for cost in upright], dtype=np.int64)
    num_columns = max((cost.shape[1] for cost in upright), default=0)
    padded = np.full((len(costs), num_rows.max(initial=0), num_columns), np.inf)
    for place, cost in zip(padded, upright, strict=True):
        place[: cost.shape[0], : cost.shape[1]] = _finite(cost)
    columns = _solve(padded, num_rows)
    found = []
    for cost, rows, of_rows in zip(costs, num_rows, columns, strict=True):
        first, second = np.arange(rows), of_rows[:rows]
        if cost.shape[0] > cost.shape[1]:
            order = second.argsort()
            first, second = second[order], first[order]
        found.append((first, second))
    return found


def _finite(cost: np.ndarray) -> np.ndarray:
    """Costs in which those that are not finite are higher than any sum of the others."""
    cost = cost.astype(np.float64)
    known = np.isfinite(cost)
    if known.all():
        return cost
    highest = np.abs(cost[known]).max(initial=1.0)
    return np.where(known, cost, 2 * highest * (min(cost.shape) + 1))


def _solve(costs: np.ndarray, num_rows: np.ndarray) -> np.ndarray:
    """The column (P, R) of each of the first `num_rows` (P,) rows of P problems (P, R, C), where
    columns of infinite cost are none."""
    problems, rows, columns = costs.shape
    row_prices, column_prices = np.zeros((problems, rows)), np.zeros((problems, columns))
    column_of = np.full((problems, rows), FREE)
    row_of = np.full((problems, columns), FREE)
    for row in range(rows):
        active = np.flatnonzero(num_rows > row)
        prices = row_prices[active], column_prices[active]
        search = _cheapest_paths(costs, row, active, *prices, row_of)
        distance, previous, visited, ends = search
        place = np.arange(len(active))
        length = distance[place, ends]
        # The prices keep every reduced cost at zero or above, and that of every pair at zero.
        slack = np.where(visited, length[:, None] - distance, 0.0)
        column_prices[active] -= slack
        row_prices[active, row] += length
        problem, column = np.nonzero(visited & (row_of[active] != FREE))
        row_prices[active[problem], row_of[active[problem], column]] += slack[problem, column]
        # Along the path each row takes the column by which it was left.
        while len(active):
            owner = previous[place, ends]
            row_of[active, ends] = owner
            before = column_of[active, owner]
            column_of[active, owner] = ends
            going = owner != row
            active, place, ends = active[going], place[going], before[going]
    return column_of


def _cheapest_paths(
    costs: np.ndarray,
    row: int,
    active: np.ndarray,
    row_prices: np.ndarray,
    column_prices: np.ndarray,
    row_of: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Dijkstra's search in each of the A `active` problems from `row` to a free column.

    Returns by column the distance (A, C), the row it is reached from (A, C) and whether it was
    visited (A, C); and the free column (A,) at which the search ended.
    """
    shape = len(active), costs.shape[2]
    distance, previous = np.full(shape, np.inf), np.full(shape, FREE)
    visited, ends = np.zeros(shape, dtype=bool), np.zeros(len(active), dtype=np.int64)
    going = np.arange(len(active))
    rows, length = np.full(len(active), row), np.zeros(len(active))
    while len(going):
        problem = active[going]
        reduced = costs[problem, rows] - row_prices[going, rows, None] - column_prices[going]
        through = length[:, None] + reduced
        nearer = ~visited[going] & (through < distance[going])
        known = np.where(nearer, through, distance[going])
        distance[going] = known
        previous[going] = np.where(nearer, rows[:, None], previous[going])
        nearest = np.where(visited[going], np.inf, known).argmin(1)
        visited[going, nearest] = True
        ends[going] = nearest
        rows, length = row_of[problem, nearest], known[np.arange(len(going)), nearest]
        searching = rows != FREE
        going, rows, length = going[searching], rows[searching], length[searching]
    return distance, previous, visited, ends
