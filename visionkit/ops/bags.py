"""Weighted sums over rows of a table, on a CPU: embedding bags with a fast backward.

torch's own backward of `embedding_bag` sorts and adds in float32 on one thread. The gradient of a
row is itself a weighted sum, over the bags that it is in; so the forward kernel computes it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def weighted_sums(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Sums (B, C) of rows of `table` (T, C), in its dtype; added up in float32.

    `rows` (N,) int64 and their `weights` (N,) stand bag by bag; `counts` (B,) int64 says how many
    each bag has. Gradients reach the table only.
    """
    return _WeightedSums.apply(table, rows, weights.to(table.dtype), counts)


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, counts)
        ctx.num_rows = len(table)
        return _sums(table, rows, weights, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, counts = ctx.saved_tensors
        order = _stable_order(rows)
        bags = torch.repeat_interleave(counts)[order]
        per_row = torch.bincount(rows, minlength=ctx.num_rows)
        return _sums(gradient.contiguous(), bags, weights[order], per_row), None, None, None


def _sums(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    if not len(rows):
        return table.new_zeros(len(counts), table.shape[1])
    starts = counts.cumsum(0) - counts
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _stable_order(rows: Tensor) -> Tensor:
    """The order (N,) that sorts non-negative `rows` (N,) int64, equal ones as they are.

    numpy sorts 16-bit numbers by radix, several times faster than torch sorts any.
    """
    keys = rows.numpy()
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if len(keys) and keys.max() >= 2**16:
        high = (keys >> 16).astype(np.uint16)  # enough for 2**32 rows
        order = order[np.argsort(high[order], kind="stable")]
    return torch.from_numpy(order)
