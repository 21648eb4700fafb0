"""Metrics of embeddings: whether the nearest images have the same identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.metrics.accuracy import Records, finite, image_ids_of
from visionkit.metrics.comparison import Subject
from visionkit.metrics.intervals import mean_over
from visionkit.metrics.parts import Gallery, Part, ReportContext, Shown
from visionkit.types import Batch

NAMES = ("recall@1", "recall@5", "mAP@R")
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

    _computed: tuple[Tensor, Tensor] | None = None

    def merge(self, states: Sequence[list[Any]]) -> None:
        super().merge(states)
        self._computed = None

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        self._computed = None
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "identity" in target:
                embedding = finite(prediction, "embedding", target["image_id"])
                self.records.append((target["image_id"], int(target["identity"]), embedding))

    def compute(self) -> dict[str, float]:
        if len(self.records) < 2:
            return dict.fromkeys(NAMES, math.nan)
        scores = self._ranked()[0]
        means = scores[~scores[:, 0].isnan()].mean(0).tolist()  # of nothing: NaN
        return dict(zip(NAMES, means, strict=True))

    def _ranked(self) -> tuple[Tensor, Tensor]:
        """For each image by id: recall@1, recall@5 and AP@R (I, 3), NaN if it is not a query, and
        the places of its five nearest (I, 5). Computed once, since the time grows with the
        square of the number of images."""
        if self._computed is not None:
            return self._computed
        records = sorted(self.records, key=lambda record: record[:2])
        identities = torch.tensor([identity for _, identity, _ in records])
        embeddings = F.normalize(torch.stack([row for _, _, row in records]), dim=1)
        count = len(records)
        # Filled piece by piece: small tensors kept between the large ones of each piece would
        # keep the memory of these from being used again, gigabytes with 50,000 images.
        scores = torch.empty(count, 3, dtype=torch.float64)
        nearest = torch.empty(count, min(5, count - 1), dtype=torch.int64)
        for rows in torch.arange(count).split(max(1, MAX_SIMILARITIES // count)):
            scores[rows], nearest[rows] = _scores(embeddings, identities, rows)
        self._computed = scores, nearest
        return self._computed

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.records)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """All metrics (R,) in replicates with these weights (R, I) of the queries; the gallery
        stays the same."""
        few = len(self.records) < 2
        scores = np.full((len(self.records), 3), np.nan) if few else self._ranked()[0].numpy()
        known = ~np.isnan(scores[:, 0])
        values = np.nan_to_num(scores)
        return {n: mean_over(weights, values[:, k], known) for k, n in enumerate(NAMES)}

    def subject(self) -> Subject:
        """What was scored, to compare it with another model."""
        records = sorted(self.records, key=lambda record: record[:2])
        identities = np.array([identity for _, identity, _ in records])
        return Subject(self.image_ids(), (), {"the identity": identities})

    def report(self, context: ReportContext) -> list[Part]:
        """The queries whose nearest image is of another identity, with what was retrieved."""
        if len(self.records) < 2:
            return []
        scores, nearest = self._ranked()
        records = sorted(self.records, key=lambda record: record[:2])
        queries = (~scores[:, 0].isnan()).nonzero()[:, 0].tolist()
        quality = scores[:, [0, 2]].tolist()  # recall@1, AP
        queries.sort(key=lambda row: (quality[row], records[row][0]))
        failed = [quality[row][0] == 0 for row in queries]
        shown = []
        for place in context.picked([records[row][0] for row in queries], failed):
            row = queries[place]
            found = [records[i] for i in nearest[row].tolist()]
            same = [k + 1 for k, one in enumerate(found) if one[1] == records[row][1]]
            where = f"first at rank {same[0]}" if same else "none in the first five"
            ids = [one[0] for one in found[:3]]
            shown.append(Shown(records[row][0], f"its identity: {where}", neighbors=ids))
        counts = f"{sum(failed)} of {len(queries)} queries."
        note = f"{counts} Left: the query. Then: the three nearest images."
        return [Gallery("Failed queries", shown, note)]


def _scores(embeddings: Tensor, identities: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """recall@1, recall@5 and AP@R of these rows, (Q, 3) float64, NaN of those that are not queries;
    and the up to five rows nearest to each, (Q, 5).

    `embeddings` (N, D) have unit length; ties are ranked in their order. `identities` (N,).
    """
    same = identities[rows, None] == identities
    relevant = same.sum(1) - 1
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
    scores = torch.stack([hits[:, 0], hits[:, :5].amax(1), average], 1)
    return scores.masked_fill((relevant == 0)[:, None], math.nan), nearest[:, :5]
