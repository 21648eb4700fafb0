"""Embeddings: vectors of images, near those of the same identity and far from all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Positive
from visionkit.distributed.collectives import all_gather_with_grad
from visionkit.metrics.retrieval import Retrieval
from visionkit.models.head import Head
from visionkit.models.heads.classification import pick_level
from visionkit.ops.layers import masked_mean, valid_cells
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size

Mining = Literal["all", "hard", "semihard"]


def triplet_loss(vectors: Tensor, identities: Tensor, margin: float, mining: Mining) -> Loss:
    """Mean of max(0, d(anchor, positive) - d(anchor, negative) + margin) over triplets.

    The triplets, and what the mean is over, by `mining`:

    - "all": every triplet; the mean is over those that are not zero (Hermans et al. 2017).
    - "hard": for each anchor its farthest positive and its nearest negative (the same paper).
    - "semihard": for each pair of anchor and positive the nearest negative that is farther than
      the positive, or the farthest one where none is (Schroff et al., "FaceNet", 2015).
    """
    distances = 2 - 2 * cosines(vectors)
    positive, negative = _partners(identities)
    if mining == "hard":
        anchors = positive.any(1) & negative.any(1)
        rows = distances[anchors]
        farthest = rows.masked_fill(~positive[anchors], -torch.inf).amax(1)
        nearest = rows.masked_fill(~negative[anchors], torch.inf).amin(1)
        hinges = (farthest - nearest + margin).relu()
        return _sum_and_count(hinges, distances)

    anchor, partner = (positive & negative.any(1, keepdim=True)).nonzero(as_tuple=True)
    near = distances[anchor, partner][:, None]  # (pairs, 1)
    far, is_negative = distances[anchor], negative[anchor]  # (pairs, B)
    if mining == "semihard":
        farther = is_negative & (far > near)
        chosen = torch.where(
            farther.any(1),
            far.masked_fill(~farther, torch.inf).argmin(1),
            far.masked_fill(~is_negative, -torch.inf).argmax(1),
        )
        hinges = (near - far.gather(1, chosen[:, None]) + margin).relu()
        return _sum_and_count(hinges, distances)

    hinges = ((near - far + margin) * is_negative).relu()
    return _sum_and_count(hinges[hinges > 0], distances)


def contrastive_loss(vectors: Tensor, identities: Tensor, temperature: float) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020, their L_out).

    Cross-entropy of picking a positive among all others of the batch by cosine / temperature,
    averaged over the positives of an anchor, then over the anchors that have a positive and a
    negative.
    """
    logits = cosines(vectors) / temperature
    positive, negative = _partners(identities)
    anchors = positive.any(1) & negative.any(1)
    others = (positive | negative)[anchors]
    log_probs = logits[anchors] - logits[anchors].masked_fill(~others, -torch.inf).logsumexp(
        1, keepdim=True
    )
    chosen = positive[anchors]
    per_anchor = -(log_probs * chosen).sum(1) / chosen.sum(1)
    return _sum_and_count(per_anchor, logits)


def cosines(vectors: Tensor) -> Tensor:
    """Dot products of all pairs, (B, B) float32, also where autocast would round them."""
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = vectors.float()
        return vectors @ vectors.T


def _partners(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Which others of a batch are of the same identity, and which are not: (B, B) bool each."""
    same = identities[:, None] == identities
    itself = torch.eye(len(identities), dtype=torch.bool, device=identities.device)
    return same & ~itself, ~same


def _sum_and_count(values: Tensor, graph: Tensor) -> Loss:
    """The loss of these values; without any a zero that depends on `graph`."""
    total = values.sum() if values.numel() else graph.sum() * 0
    return Loss(total, total.new_full((), values.numel()))


class Embedding(Head):
    """Mean pooling of one level over the valid image, a linear layer, and unit length.

    It learns from batches with several images of each of several identities, which a source
    makes with `images_per_identity`. Identities in validation may be others than in training.

    size: numbers in a vector.
    level: the feature map to pool; by default the coarsest.
    hidden: width of a layer with a ReLU between pooling and vector; null is none.
    dropout: probability with which a pooled feature is dropped in training.
    loss: "triplet" (see `mining` and `margin`) or "contrastive" (see `temperature`).
    mining: which triplets of a batch count; see `triplet_loss`.
    margin: by how much a negative's squared distance, 2 - 2 cos, should exceed a positive's.
    temperature: divides the cosines before the softmax; lower weights nearer negatives more.
    """

    required_targets = ("identity",)
    main_metric = "recall@1"
    default_transforms = ("HorizontalFlip", "RandomResizedCrop")

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

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`embedding` (B, size) float32, vectors of unit length."""
        feature = features[self.level]
        pooled = masked_mean(feature, valid_cells(sizes, feature, self.stride))
        vectors = self.project(self.dropout(pooled)).float()
        return {"embedding": F.normalize(vectors, dim=1, eps=1e-6)}

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        vectors = self(features, batch.size_tensor)["embedding"]
        labeled = [i for i, target in enumerate(batch.targets) if "identity" in target]
        found = [batch.targets[i]["identity"].to(vectors.device) for i in labeled]
        identities = torch.stack([*found, vectors.new_zeros((), dtype=torch.int64)])[:-1]
        vectors = all_gather_with_grad(vectors[labeled])
        identities = all_gather_with_grad(identities)
        if not len(vectors):
            return {self.objective: Loss(vectors.sum() * 0, vectors.new_zeros(()))}
        if self.objective == "contrastive":
            return {"contrastive": contrastive_loss(vectors, identities, self.temperature)}
        return {"triplet": triplet_loss(vectors, identities, self.margin, self.mining)}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The outputs as they are."""
        return outputs

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `embedding` (size,) float32 of unit length."""
        found = self.postprocess(outputs, batch.padded_size)
        return [{"embedding": vector} for vector in found["embedding"]]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return Retrieval()
