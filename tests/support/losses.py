"""Values of a head's loss terms, as the training loop computes them."""

from __future__ import annotations

from torch import Tensor

from visionkit.distributed.collectives import loss_values
from visionkit.models.head import Head
from visionkit.types import Batch, Loss


def value(loss: Loss) -> Tensor:
    return loss_values({"head": {"term": loss}})["head"]["term"]


def losses_of(head: Head, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return loss_values({"head": head.loss(features, batch)})["head"]
