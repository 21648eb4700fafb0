"""Loss values and gathered rows, by hand."""

import pytest
import torch

from support.ranks import on_ranks
from visionkit.distributed import collectives
from visionkit.distributed.collectives import across_ranks, all_gather_with_grad, loss_values
from visionkit.types import Loss


def terms(total, count, min_count=1.0):
    return {"head": {"term": Loss(torch.tensor(total), torch.tensor(count), min_count)}}


@pytest.mark.parametrize(
    ("total", "count", "min_count", "expected"),
    [(6.0, 4, 1.0, 1.5), (0.5, 0, 1.0, 0.5), (0.3, 0.1, 1.0, 0.3), (0.3, 0.1, 1e-12, 3.0)],
)
def test_a_value_is_the_sum_over_the_count_and_the_divisor_has_a_minimum(
    total, count, min_count, expected
):
    found = loss_values(terms(total, count, min_count))
    assert found["head"]["term"].item() == pytest.approx(expected)


def on_each_rank():
    """Of rank 0 a sum of 1 over 1, of rank 1 one of 2 over 3; one row and two rows."""
    collectives.setup()
    rank = collectives.rank()
    value = loss_values(terms([1.0, 2.0][rank], [1.0, 3.0][rank]))["head"]["term"].item()
    rows = torch.full((rank + 1, 2), float(rank + 1), requires_grad=True)
    alone = all_gather_with_grad(rows) is rows
    with across_ranks():
        gathered = all_gather_with_grad(rows)
    (gathered * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    return value, alone, gathered.tolist(), rows.grad.tolist()


def test_two_ranks_divide_by_their_share_of_the_whole_count(tmp_path):
    """So the mean of both values is 3 / 4, the loss of the whole batch; and the mean of both
    gradients, each of which counts twice, is that of the whole batch."""
    first, second = on_ranks(2, on_each_rank, folder=tmp_path)
    assert (first[0], second[0]) == (1 / 2, 2 / 2)
    assert first[1] and second[1]  # outside the context nothing is gathered
    assert first[2] == second[2] == [[1, 1], [2, 2], [2, 2]]
    assert first[3] == [[2, 2]] and second[3] == [[20, 20], [200, 200]]
