"""Weighted sums over rows of a table against a plain loop, forward and backward."""

import pytest
import torch

from visionkit.ops import roi_align
from visionkit.ops.roi_align import weighted_sums


def by_loop(table, rows, weights, counts):
    sums, at = [], 0
    for count in counts.tolist():
        picked = range(at, at + count)
        terms = [weights[i] * table[rows[i]] for i in picked]
        sums.append(sum(terms, torch.zeros(table.shape[1], dtype=table.dtype)))
        at += count
    return torch.stack(sums)


def some(num_rows, num_bags, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 5, (num_bags,), generator=generator)
    counts[0] = 0  # an empty bag
    rows = torch.randint(0, num_rows, (int(counts.sum()),), generator=generator)
    return rows, torch.rand(len(rows), generator=generator), counts


def test_sums_and_gradients_equal_a_loop():
    table = torch.randn(9, 3, requires_grad=True)
    rows, weights, counts = some(7, 20)  # rows 7 and 8 are in no bag
    ours, loop = weighted_sums(table, rows, weights, counts), by_loop(table, rows, weights, counts)
    torch.testing.assert_close(ours, loop)
    upstream = torch.randn_like(ours)
    (our_gradient,) = torch.autograd.grad(ours, table, upstream)
    (loop_gradient,) = torch.autograd.grad(loop, table, upstream)
    torch.testing.assert_close(our_gradient, loop_gradient)
    assert not our_gradient[7:].any()


def test_gradients_of_long_sums_in_bfloat16_are_rounded_once():
    counts = torch.ones(4096, dtype=torch.int64)
    table = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    sums = weighted_sums(table, torch.zeros(4096, dtype=torch.int64), torch.ones(4096), counts)
    sums.sum().backward()
    assert table.grad.tolist() == [[4096, 4096]]  # added up in bfloat16 it would stop at 256


@pytest.mark.parametrize("most", [10, 2**16 - 1, 2**16, 2**20])
def test_the_order_is_stable_for_tables_of_any_size(most):
    rows = torch.randint(0, most + 1, (500,))
    rows[:3] = torch.tensor([most, 0, most])
    rows = torch.cat([rows, rows])
    assert torch.equal(roi_align._stable_order(rows), torch.argsort(rows, stable=True))


def test_no_bags_and_no_rows():
    table = torch.ones(4, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert weighted_sums(table, nothing, torch.zeros(0), nothing).shape == (0, 2)
    empty = weighted_sums(table, nothing, torch.zeros(0), torch.zeros(3, dtype=torch.int64))
    assert empty.tolist() == [[0, 0]] * 3
    empty.sum().backward()
    assert not table.grad.any()
