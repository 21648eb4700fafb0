"""A vector for a whole picture: near those of the same identity, far from all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.global_batch import joined
from visionkit.heads.classification import pick_level
from visionkit.heads.embedding_losses import Mining, contrastive_loss, triplet_loss
from visionkit.metrics.retrieval import Retrieval
from visionkit.ops.pooling import masked_mean, valid_cells
from visionkit.types import Batch, Count, Dataset, Evaluator, Fraction, Head, Level, Positive


class Embedding(Head):
    """Mean pooling of one level over the picture alone, a linear layer, and unit length.

    It learns from batches with several pictures of each of several identities, which a source
    makes with `per_identity`. Identities in validation may be others than in training.

    size: numbers in a vector.
    level: the feature map to pool; by default the coarsest.
    hidden: width of a layer with a ReLU between pooling and vector; null is none.
    dropout: probability with which a pooled feature is dropped in training.
    loss: "triplet" (see `mining` and `margin`) or "contrastive" (see `temperature`).
    mining: which triplets of a batch count; see `triplet_loss`.
    margin: by how much a negative's squared distance, 2 - 2 cos, should exceed a positive's.
    temperature: cosines are divided by it before the softmax; lower looks at nearer negatives.
    """

    needs = ("identity",)
    vocabulary = None
    main_metric = "recall@1"

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        size: Count = 64,
        level: str | None = None,
        hidden: Count | None = None,
        dropout: Fraction = 0.0,
        loss: Literal["triplet", "contrastive"] = "triplet",
        mining: Mining = "all",
        margin: Positive = 0.2,
        temperature: Positive = 0.1,
    ):
        super().__init__()
        self.level = pick_level(levels, level, default=list(levels)[-1])
        channels, self.stride = levels[self.level]
        self.objective, self.mining = loss, mining
        self.margin, self.temperature = margin, temperature
        self.dropout = nn.Dropout(dropout)
        self.project = (
            nn.Linear(channels, size)
            if hidden is None
            else nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, size))
        )

    def forward(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        """Vectors of unit length (B, size) in float32."""
        cells = features[self.level]
        pooled = masked_mean(cells, valid_cells(batch.sizes, cells, self.stride))
        return F.normalize(self.project(self.dropout(pooled)).float(), dim=1, eps=1e-6)

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        vectors = self(features, batch)
        labelled = [i for i, target in enumerate(batch.targets) if "identity" in target]
        nothing = vectors.sum() * 0
        found = [batch.targets[i]["identity"].to(vectors.device) for i in labelled]
        identities = torch.stack([*found, vectors.new_zeros((), dtype=torch.int64)])[:-1]
        vectors, identities = joined(vectors[labelled]), joined(identities)
        if not len(vectors):
            return {self.objective: nothing}
        if self.objective == "contrastive":
            return {"contrastive": contrastive_loss(vectors, identities, self.temperature)}
        return {"triplet": triplet_loss(vectors, identities, self.margin, self.mining)}

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
        """Each picture's `vector` (size,) float32 of unit length."""
        return [{"vector": vector} for vector in self(features, batch)]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return Retrieval()
