"""Losses of a batch whose images are spread over several ranks.

A head returns sums and counts of its own images. `loss_values` adds the counts of all ranks and
divides, so that the mean of the ranks' gradients is the gradient of the whole batch. A loss that
needs the vectors or sums of all ranks gathers them with `all_gather_with_grad`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from visionkit.distributed import collectives
from visionkit.types import Batch, Loss

_gathers = False


@contextmanager
def across_ranks() -> Iterator[None]:
    """Let `all_gather_with_grad` gather. The training loop opens it around the losses of a step;
    elsewhere, as in a validation, each rank computes the losses of its own batch."""
    global _gathers
    _gathers = collectives.world_size() > 1
    try:
        yield
    finally:
        _gathers = False


def loss_values(losses: Mapping[str, Mapping[str, Loss]]) -> dict[str, dict[str, Tensor]]:
    """The value of each term by head and by name: sum / (count of all ranks / number of ranks).

    One exchange for all terms. All ranks must call it with the same terms: see `check_terms`.
    """
    counts = [loss.count.float() for terms in losses.values() for loss in terms.values()]
    total = iter(collectives.all_reduce_sum(torch.stack(counts)).unbind())
    ranks = collectives.world_size()
    return {
        head: {
            name: loss.sum / (next(total).clamp(min=loss.min_count) / ranks)
            for name, loss in terms.items()
        }
        for head, terms in losses.items()
    }


def check_terms(losses: Mapping[str, Mapping[str, Loss]]) -> None:
    """Raise ConfigError in all ranks unless each head has the same terms in the same order on all.

    For the first step alone: it costs an exchange of objects.
    """
    collectives.assert_same_on_all_ranks(
        {f"heads.{head}: loss() with the terms": [*terms] for head, terms in losses.items()},
        "a head must return all its terms for every batch, a count of 0 where nothing is labeled",
    )


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all ranks, in the order of the ranks; N may differ between them.

    Only the own rows have a gradient. It counts `world_size` times, because the ranks' gradients
    are averaged. Outside `across_ranks` the result is `rows` itself. Inside, every rank must call
    it equally often, also a rank without rows.
    """
    if not _gathers:
        return rows
    world, rank = collectives.world_size(), collectives.rank()
    counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    lengths = collectives.all_reduce_sum(counts).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in lengths]
    with collectives.wrap_errors():
        dist.all_gather(gathered, padded)
    parts = [part[:length] for part, length in zip(gathered, lengths, strict=True)]
    if rows.is_floating_point():
        scaled = rows * world
        parts[rank] = scaled + (parts[rank] - scaled).detach()  # the value of rows
    return torch.cat(parts)


def pad_to_global_max(batch: Batch) -> Batch:
    """The batch with its images padded to the largest height and width of all ranks.

    As in a single process: batch norms and convolutions also see the zeros beyond an image.
    """
    if collectives.world_size() == 1:
        return batch
    height, width = batch.images.shape[-2:]
    most = collectives.all_reduce_max([height, width])
    padding = (0, most[1] - width, 0, most[0] - height)
    return Batch(F.pad(batch.images, padding), batch.targets) if any(padding) else batch
