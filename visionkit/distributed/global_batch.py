"""Losses of a batch whose images are shared by several processes.

The processes average their gradients. So that the mean is the gradient of the whole batch, each
divides the sums of its own images by what the whole batch counts, per process. All here takes
effect within `shared`, which the training loop opens around the losses; elsewhere, and in a single
process, a batch is a batch. Within it every process must make the same calls in the same order,
also one without a labeled image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visionkit.distributed import collectives
from visionkit.types import Batch

_is_shared = False


@contextmanager
def shared() -> Iterator[None]:
    global _is_shared
    _is_shared = collectives.world_size() > 1
    try:
        yield
    finally:
        _is_shared = False


def pad_to_global_max(batch: Batch) -> Batch:
    """With its images padded to the largest size among all processes, as in one process: zeros
    beyond an image's border count in its features there, and in batch norms."""
    if collectives.world_size() == 1:
        return batch
    height, width = batch.images.shape[-2:]
    all_reduce_max = collectives.all_reduce_max([height, width])
    padding = (0, all_reduce_max[1] - width, 0, all_reduce_max[0] - height)
    return Batch(F.pad(batch.images, padding), batch.targets) if any(padding) else batch


def global_count(count: Tensor, *, least: float = 1.0) -> Tensor:
    """What to divide a sum over the own images by: the `count` of the whole batch, at least
    `least`, per process. Of any shape, without a gradient."""
    if not _is_shared:
        return count.clamp(min=least)
    everywhere = collectives.all_reduce_sum(count.detach().to(torch.float32, copy=True))
    return everywhere.clamp_(min=least) / collectives.world_size()


def join_in(device: torch.device, times: int = 1) -> None:
    """Make as many calls of `global_count` as the others, with nothing to count."""
    for _ in range(times):
        global_count(torch.zeros((), device=device))


def total(own: Tensor) -> Tensor:
    """The sum over all processes of what each found in its own images, for losses that are no
    plain means. Its gradient for the own part counts as often as there are processes, because
    gradients are averaged."""
    if not _is_shared:
        return own
    return _weighted(own, collectives.all_reduce_sum(own.detach().clone()))


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes, one process after the other; N may differ. Gradients as
    of `total`, for the own rows alone."""
    if not _is_shared:
        return rows
    world, rank = collectives.world_size(), collectives.rank()
    counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    counts = collectives.all_reduce_sum(counts).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    everywhere = [torch.empty_like(padded) for _ in counts]
    with collectives.wrap_errors():
        dist.all_gather(everywhere, padded)
    parts = [part[:count] for part, count in zip(everywhere, counts, strict=True)]
    parts[rank] = _weighted(rows, parts[rank]) if rows.is_floating_point() else rows
    return torch.cat(parts)


def _weighted(own: Tensor, value: Tensor) -> Tensor:
    """`value`, with a gradient for `own` of the number of processes."""
    scaled = own * collectives.world_size()
    return scaled + (value - scaled).detach()
