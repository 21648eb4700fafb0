"""Divide images into parts with equal shares of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, cycle, islice

import numpy as np

VISITS = 1500  # of pairs of parts, at most, in which rows are exchanged
SAMPLE = 128  # rows of each part that are tried in one visit
KICK = 3  # rows that are moved at random when no exchange helps any more
PATIENCE = 100  # such moves in a row that led to nothing better
OFTEN = 50  # objects from which a class counts in full
BOOST = 30.0  # how much a class of so many objects counts, compared with one that has some fewer
OF_ALL = 40.0  # how much the number of images counts


def stratified(
    labels: np.ndarray,
    shares: Sequence[float],
    groups: np.ndarray | None = None,
    seed: int = 0,
    *,
    refine: bool = True,
) -> np.ndarray:
    """Divide rows into parts so that each part has its share of each label: (N,) part numbers.

    labels: (N, K) how often each row has each label, such as the objects of K classes in N images.
    shares: of each part, positive numbers whose sum is 1.
    groups: (N,) numbers; rows with the same one stay together.
    refine: False leaves out what follows the algorithm of the paper; then the result is the same
        on every machine, whatever its sums are rounded to.

    The iterative stratification of Sechidis, Tsoumakas and Vlahavas (2011), over counts: rows of
    the label that the fewest rows have come first, the largest first, each to the part that lacks
    most of the label. Then rows move between parts as long as that brings the shares closer. Both
    the sums of the counts and the numbers of rows with each label are divided, and rows without any
    label. The result depends on the order of the rows, and on nothing else but the arguments. A
    part may be empty if there are too few groups.
    """
    counts = np.asarray(labels, np.float64)
    present = counts > 0
    kinds = [present, ~present.any(1, keepdims=True), np.ones((len(counts), 1))]
    if counts.max(initial=0) > 1:
        kinds.insert(0, counts)
    columns = np.concatenate(kinds, 1)
    of_row = np.arange(len(columns))
    if groups is not None:
        of_row = np.unique(groups, return_inverse=True)[1]
        order = np.argsort(of_row, kind="stable")
        starts = np.searchsorted(of_row[order], np.arange(of_row.max(initial=-1) + 1))
        columns = np.add.reduceat(columns[order], starts, 0) if len(columns) else columns
    columns = columns[:, columns.any(0)]  # (G, C), the last one counts rows
    if not len(columns):
        return np.zeros(0, int)
    rng, parts = np.random.default_rng(seed), np.asarray(shares, np.float64)
    found = _assigned(columns, parts, rng)
    return (_exchanged(columns, found, parts, rng) if refine else found)[of_row]


def _assigned(columns: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) the parts by the algorithm of the paper."""
    has = columns[:, :-1] > 0
    left, rows_with = np.ones(len(columns), bool), has.sum(0)
    order = rng.permutation(len(columns))
    wanted = shares[:, None] * columns.sum(0)  # (P, C)
    found = np.zeros(len(columns), int)
    while left.any():
        label = int(np.where(rows_with > 0, rows_with, len(columns) + 1).argmin())
        rows = order[left[order] & has[order, label]]
        rows = rows[np.argsort(-columns[rows, label], kind="stable")]
        for row in rows.tolist():
            found[row] = part = _neediest(wanted[:, label].tolist(), wanted[:, -1].tolist())
            wanted[part] -= columns[row]
        left[rows] = False
        rows_with -= has[rows].sum(0)
    return found


def _neediest(of_label: list[float], of_rows: list[float]) -> int:
    """The part that lacks most of a label; of equal ones that which lacks most rows."""
    near = max(of_label) - 1e-9
    return max((p for p, lack in enumerate(of_label) if lack >= near), key=of_rows.__getitem__)


def _exchanged(
    columns: np.ndarray, part: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(G,) the parts after moves and exchanges that bring the shares closer.

    What decreases is the sum over parts and columns of the squared deviations from the part's
    share, weighted and divided by that share. Where no exchange helps, some rows move at random and
    the search continues from there; the best parts are kept.
    """
    totals = columns.sum(0)
    weight = np.where(totals < OFTEN, (totals / OFTEN) ** 2, BOOST)
    weight[-1] = OF_ALL
    x = columns / totals * np.sqrt(weight)  # (G, C)
    rest = -shares[:, None] * np.sqrt(weight)  # (P, C) what each part has too much of
    for p in range(len(shares)):
        rest[p] += x[part == p].sum(0)
    best, least = (part, rest), np.inf
    in_vain, kicks, pairs = 0, 0, [*combinations(range(len(shares)), 2)]
    for a, b in islice(cycle(pairs), VISITS if pairs else 0):
        moves = _exchange(x, part, rest, shares, (a, b), rng)
        in_vain = 0 if moves else in_vain + 1
        if in_vain == len(pairs):
            now = _cost(rest, shares)
            kicks += 1
            if now < least:
                best, least, kicks = (part, rest), now, 0
            if kicks == PATIENCE:
                break
            part, rest = best[0].copy(), best[1].copy()
            some = rng.integers(len(x), size=KICK).tolist()
            moves = [(row, int(rng.integers(len(shares)))) for row in some]
            in_vain = 0
        for row, to in moves:
            rest[part[row]] -= x[row]
            rest[to] += x[row]
            part[row] = to
    return part if _cost(rest, shares) < least else best[0]


def _cost(rest: np.ndarray, shares: np.ndarray) -> float:
    return float(((rest * rest).sum(1) / shares).sum())


def _exchange(
    x: np.ndarray,
    part: np.ndarray,
    rest: np.ndarray,
    shares: np.ndarray,
    pair: tuple[int, int],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """The best exchange of a row of one part for one of another, or move of one row, among some:
    (row, new part) of each; none if that would not help."""
    a, b = pair
    pull = rest[a] / shares[a] - rest[b] / shares[b]
    scale = 1 / shares[a] + 1 / shares[b]
    rows_a, rows_b = (_some(np.flatnonzero(part == p), rng) for p in pair)
    nothing = np.zeros((1, x.shape[1]))
    of_a, of_b = np.concatenate([x[rows_a], nothing]), np.concatenate([x[rows_b], nothing])
    change = (scale * (of_a * of_a).sum(1) - 2 * of_a @ pull)[:, None]  # u and v are exchanged:
    change = change + scale * (of_b * of_b).sum(1) + 2 * of_b @ pull  # -2 (u - v) pull
    change -= 2 * scale * (of_a @ of_b.T)  # + |u - v|^2 scale
    i, j = divmod(int(change.argmin()), len(of_b))
    if change[i, j] > -1e-9:
        return []
    return [(int(r), b) for r in rows_a[i : i + 1]] + [(int(r), a) for r in rows_b[j : j + 1]]


def _some(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= SAMPLE else rng.choice(rows, SAMPLE, replace=False)


def connected(count: int, together: Iterator[Sequence[int]]) -> np.ndarray:
    """(count,) group numbers of the numbers below `count`, so that all that are in one sequence of
    `together`, directly or through others, have the same; counted by their first members."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for members in together:
        for other in members[1:]:
            a, b = find(members[0]), find(other)
            root[max(a, b)] = min(a, b)
    return np.array([find(i) for i in range(count)], int)
