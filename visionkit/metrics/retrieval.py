"""Metrics of embeddings: whether the nearest images have the same identity."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.metrics.accuracy import Records, finite
from visionkit.types import Batch

MAX_SIMILARITIES = 2**22  # computed at once; about 200 MB with all intermediate results


class Retrieval(Records):
    """Image retrieval: each image is a query; the gallery is all other images, ranked by cosine.

    `recall@1` and `recall@5` are the shares of queries with an image of their identity among the
    first one and five. `mAP@R` (Musgrave et al. 2020) is the mean over queries of the sum of the
    precisions at the ranks of the relevant images among the first R, divided by R, the number of
    relevant images. An image with a unique identity is in the gallery but not a query; images
    without `identity` are in neither. Without a query all metrics are NaN.

    Cosines equal to six decimals are ties, ranked by `image_id`, so the result does not depend on
    the order of the images.
    """

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "identity" in target:
                embedding = finite(prediction, "embedding", target["image_id"])
                self.records.append((target["image_id"], int(target["identity"]), embedding))

    def compute(self) -> dict[str, float]:
        names = ("recall@1", "recall@5", "mAP@R")
        if len(self.records) < 2:
            return dict.fromkeys(names, math.nan)
        records = sorted(self.records, key=lambda record: record[:2])
        identities = torch.tensor([identity for _, identity, _ in records])
        embeddings = F.normalize(torch.stack([row for _, _, row in records]), dim=1)
        totals, queries = torch.zeros(3, dtype=torch.float64), 0
        for rows in torch.arange(len(records)).split(max(1, MAX_SIMILARITIES // len(records))):
            scores = _scores(embeddings, identities, rows)
            totals += scores.sum(0)
            queries += len(scores)
        means = (totals / queries).tolist()  # 0 / 0 is NaN
        return dict(zip(names, means, strict=True))


def _scores(embeddings: Tensor, identities: Tensor, rows: Tensor) -> Tensor:
    """recall@1, recall@5 and AP@R of the rows that are queries, (Q, 3) float64.

    `embeddings` (N, D) have unit length; ties are ranked in their order. `identities` (N,).
    """
    same = identities[rows, None] == identities
    relevant = same.sum(1) - 1
    rows, same, relevant = rows[relevant > 0], same[relevant > 0], relevant[relevant > 0]
    if not len(rows):
        return torch.zeros(0, 3, dtype=torch.float64)
    count = len(embeddings)
    decimals = (embeddings[rows] @ embeddings.T * 1e6).round().long()
    keys = decimals * count - torch.arange(count)  # unique, so the result of topk is too
    keys[torch.arange(len(rows)), rows] = torch.iinfo(torch.int64).min  # the query itself is last
    depth = min(count - 1, max(5, int(relevant.max())))
    nearest = keys.topk(depth, dim=1).indices
    hits = same.gather(1, nearest).double()
    precision = hits.cumsum(1) / torch.arange(1, depth + 1)
    within = torch.arange(depth) < relevant[:, None]
    average = (precision * hits * within).sum(1) / relevant
    return torch.stack([hits[:, 0], hits[:, :5].amax(1), average], 1)
