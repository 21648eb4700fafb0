"""The model of every task: a backbone, perhaps a neck, and named heads on their features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from visionkit.types import Batch, Head


class VisionModel(nn.Module):
    """One backbone under one or several heads.

    The features of a batch are computed once, for all the heads that it feeds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        heads: dict[str, Head],
        loss_weights: dict[str, float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = nn.ModuleDict(heads)
        self.loss_weights = loss_weights

    def train(self, mode: bool = True) -> VisionModel:
        """As usual, except that batch norms whose weights are frozen keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.train(mode and module.weight.requires_grad)
        return self

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Named feature maps (B, C, h, w), from fine to coarse."""
        features = self.backbone(batch.images, batch.sizes)
        return features if self.neck is None else self.neck(features)

    def losses(
        self, features: dict[str, Tensor], batch: Batch, heads: Iterable[str]
    ) -> dict[str, dict[str, Tensor]]:
        """Unweighted loss terms by head and by name."""
        return {name: self.heads[name].loss(features, batch) for name in heads}

    def predictions(
        self, features: dict[str, Tensor], batch: Batch, heads: Iterable[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Each head's predictions, a list with one dict for each image."""
        return {name: self.heads[name].predict(features, batch) for name in heads}

    def weighted_sum(self, losses: dict[str, dict[str, Tensor]]) -> Tensor:
        """The one number to minimize."""
        return sum(self.loss_weights[name] * sum(terms.values()) for name, terms in losses.items())
