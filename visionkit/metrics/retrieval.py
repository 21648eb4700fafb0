"""How well the images nearest to an image are those of its identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.types import Batch

BUDGET = 2**22  # similarities at a time: some 200 MB with all that is made of them


def checked_vector(prediction: dict[str, Any], image: Any) -> Tensor:
    """The prediction's `vector` on the CPU. Raises for NaN and infinity, which rank at random."""
    vector = prediction["embedding"].detach().float().cpu().clone()  # not a view of the whole batch
    if not vector.isfinite().all():
        raise DivergedError(f"image {image}: the predicted vector is not finite")
    return vector


class Retrieval:
    """Every image is a query, all other images are the gallery, ranked by cosine.

    `recall@1` and `recall@5` are the shares of queries with an image of their identity among the
    nearest one and five. `mAP@R` (Musgrave et al. 2020) is the mean of the precisions at the ranks
    of the right ones among the nearest R, summed and divided by R, the number of right ones there
    are. An image whose identity has no other is in the gallery and no query; images without
    `identity` are in neither. All are NaN without a query.

    Cosines that agree in six decimals are ties, ranked by `image_id`, so that the order in which
    the images came plays no part.
    """

    def __init__(self) -> None:
        self.records: list[tuple[int, int, Tensor]] = []  # image_id, identity, vector

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "identity" in target:
                vector = checked_vector(prediction, target["image_id"])
                self.records.append((target["image_id"], int(target["identity"]), vector))

    def state(self) -> list[tuple[int, int, Tensor]]:
        return self.records

    def merge(self, states: Sequence[list[tuple[int, int, Tensor]]]) -> None:
        self.records = [record for records in states for record in records]

    def compute(self) -> dict[str, float]:
        names = ("recall@1", "recall@5", "mAP@R")
        if len(self.records) < 2:
            return dict.fromkeys(names, math.nan)
        records = sorted(self.records, key=lambda record: record[:2])
        identities = torch.tensor([identity for _, identity, _ in records])
        vectors = F.normalize(torch.stack([vector for _, _, vector in records]), dim=1)
        totals, queries = torch.zeros(3, dtype=torch.float64), 0
        for rows in torch.arange(len(records)).split(max(1, BUDGET // len(records))):
            scores = _scores(vectors, identities, rows)
            totals += scores.sum(0)
            queries += len(scores)
        means = (totals / queries).tolist()  # 0 / 0 is NaN
        return dict(zip(names, means, strict=True))


def _scores(vectors: Tensor, identities: Tensor, rows: Tensor) -> Tensor:
    """Recall at 1 and at 5, and AP at R, of those rows that are queries: (Q, 3) float64.

    `vectors` (N, D) of unit length in the order in which ties are broken, `identities` (N,).
    """
    same = identities[rows, None] == identities
    right = same.sum(1) - 1
    rows, same, right = rows[right > 0], same[right > 0], right[right > 0]
    if not len(rows):
        return torch.zeros(0, 3, dtype=torch.float64)
    count = len(vectors)
    decimals = (vectors[rows] @ vectors.T * 1e6).round().long()
    keys = decimals * count - torch.arange(count)  # all different, so topk has no choice
    keys[torch.arange(len(rows)), rows] = torch.iinfo(torch.int64).min  # itself comes last
    depth = min(count - 1, max(5, int(right.max())))
    nearest = keys.topk(depth, dim=1).indices
    hits = same.gather(1, nearest).double()
    precision = hits.cumsum(1) / torch.arange(1, depth + 1)
    counted = torch.arange(depth) < right[:, None]
    average = (precision * hits * counted).sum(1) / right
    return torch.stack([hits[:, 0], hits[:, :5].amax(1), average], 1)
