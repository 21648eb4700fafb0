"""Losses that draw pictures of one identity together and push those of others away.

All take vectors of unit length, (B, D) of at least one, and identities, (B,) int64. They give
float32 scalars, zero but attached to the graph where no picture has both a partner and a stranger
in the batch. Distances are squared Euclidean: 2 - 2 cos, from 0 to 4, as in FaceNet. There is no
square root, so gradients are finite also for vectors that are equal.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mining = Literal["all", "hard", "semihard"]


def triplet_loss(vectors: Tensor, identities: Tensor, margin: float, mining: Mining) -> Tensor:
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
        return _mean(hinges, distances)

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
        return _mean(hinges, distances)

    hinges = ((near - far + margin) * is_negative).relu()
    return _mean(hinges[hinges > 0], distances)


def contrastive_loss(vectors: Tensor, identities: Tensor, temperature: float) -> Tensor:
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
    return _mean(per_anchor, logits)


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


def _mean(values: Tensor, graph: Tensor) -> Tensor:
    """The mean; of no values a zero that depends on `graph`."""
    return values.mean() if values.numel() else graph.sum() * 0
