"""Attributes of objects (color, state, parts) for the boxes of another head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Range
from visionkit.data.attributes import groups
from visionkit.metrics.accuracy import AttributeAccuracy
from visionkit.models.head import Head
from visionkit.models.heads.rcnn.roi_heads import BoxHead, RoIPooler, pad_rows, used_rows
from visionkit.ops.boxes import clip
from visionkit.ops.layers import noise_of
from visionkit.ops.roi_align import flatten_boxes
from visionkit.types import (
    Batch,
    Dataset,
    Evaluator,
    Features,
    HeadPrediction,
    Level,
    Loss,
    Size,
    Target,
)


class Attributes(Head):
    """Attributes of the objects that another head finds, from the features within their boxes.

    Each region is pooled (RoIAlign, He et al. 2017) and read by two hidden layers. Classes are
    named as `visionkit.data.attributes` explains: a softmax over the values of a one-of attribute,
    a sigmoid for every other class. It learns from the labeled boxes that are not crowd regions;
    attributes that are NaN, not known, are excluded.

    Loss terms: `one_of/<attribute>`, the cross-entropy of each one-of attribute per object where it
    is known, and `binary`, the binary cross-entropy per known answer of all others.

    boxes_from: name of the head whose boxes are described.
    roi_levels: levels that regions are read from; by default those of stride 32 and finer.
    pool_size, sampling_ratio: bins per region side; samples per bin side.
    hidden: width of the two hidden layers; by default 4 times the channels of the levels.
    jitter: in the loss each side of a box moves by up to this share of its width or height, as
        detections, unlike labeled boxes, are never exact.
    max_regions: most objects of an image in the loss, sampled at random.
    """

    required_targets = ("boxes", "attributes")
    class_key = "attributes"
    class_layers: ClassVar[dict[str, int]] = {"linear": 1}
    main_metric = "accuracy"
    default_transforms = ("HorizontalFlip", "ScaleJitter")

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        boxes_from: str,
        roi_levels: list[str] | None = None,
        pool_size: Count = 7,
        sampling_ratio: Count = 2,
        hidden: Count | None = None,
        jitter: Annotated[float, Range(low=0, high=0.5)] = 0.1,
        max_regions: Count = 64,
    ):
        super().__init__()
        self.boxes_from = boxes_from
        self.classes = list(classes)
        found = groups(self.classes)
        self.one_of = {name: g.columns for name, g in found.items() if g.kind == "one_of"}
        self.binary = [c for g in found.values() if g.kind != "one_of" for c in g.columns]
        self.jitter = jitter
        self.max_regions = max_regions
        self.pool = RoIPooler(levels, roi_levels, pool_size, sampling_ratio)
        hidden = hidden or 4 * self.pool.channels
        self.region_head = BoxHead(self.pool.channels, pool_size, hidden)
        self.linear = nn.Linear(hidden, len(self.classes))

    def forward(
        self, features: Features, sizes: Tensor | None = None, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`probs` (B, N, A) of each class for the `boxes` (B, N, 4) in input pixels.

        Rows of zeros are padding: their probabilities are zero too.
        """
        if boxes is None:
            batch = features[self.pool.names[0]].shape[0]
            boxes = self.linear.weight.new_zeros(batch, 0, 4)
        used = boxes.any(-1)  # (B, N)
        rows = used_rows(used)
        regions, image = flatten_boxes(boxes)
        logits = self.logits(features, regions[rows], image[rows])
        probs = logits.sigmoid()
        for columns in self.one_of.values():
            probs[:, columns] = logits[:, columns].softmax(1)
        return {"probs": pad_rows(probs, rows, used) * used[..., None]}

    def logits(self, features: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """Logits (R, A) in float32 of the boxes (R, 4) of the images (R,)."""
        return self.linear(self.region_head(self.pool(features, boxes, image))).float()

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        device = features[self.pool.names[0]].device
        boxes, truth = [], [torch.empty(0, len(self.classes), device=device)]
        for target in batch.targets:
            if not all(key in target for key in self.required_targets):
                boxes.append(torch.empty(0, 4, device=device))
                continue
            noise = noise_of(target, device)
            rows = sample_objects(target, self.max_regions, noise)
            boxes.append(jittered(target["boxes"][rows], self.jitter, target["size"], noise))
            truth.append(target["attributes"][rows])
        logits = self.logits(features, *flatten_boxes(boxes))
        return self._losses(logits, torch.cat(truth))

    def _losses(self, logits: Tensor, truth: Tensor) -> dict[str, Loss]:
        """From logits and truth (R, A)."""
        known = ~truth.isnan()
        truth = truth.nan_to_num()
        losses = {}
        for name, columns in self.one_of.items():
            values = truth[:, columns]
            entropy = F.cross_entropy(logits[:, columns], values.argmax(1), reduction="none")
            losses[f"one_of/{name}"] = sum_where(entropy, values.amax(1) > 0)
        if columns := self.binary:
            entropy = F.binary_cross_entropy_with_logits(
                logits[:, columns], truth[:, columns], reduction="none"
            )
            losses["binary"] = sum_where(entropy, known[:, columns])
        return losses

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """`attributes` (B, N, A): the probabilities."""
        return {"attributes": outputs["probs"]}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `attributes` (N, A), the probabilities of each class for its N `boxes`.

        The boxes are those in the image's target, in input pixels; without any, N is 0.
        """
        found = self.postprocess(outputs, batch.padded_size)["attributes"]
        return [
            {"attributes": probs[: len(target.get("boxes", ()))]}
            for probs, target in zip(found, batch.targets, strict=True)
        ]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return AttributeAccuracy(self.classes)


def sample_objects(target: Target, count: int, noise: torch.Generator | None = None) -> Tensor:
    """Indices (R,) of at most `count` objects with a known attribute, sampled at random.

    Crowd regions are excluded.
    """
    useful = ~target["attributes"].isnan().all(1)
    if "iscrowd" in target:
        useful &= ~target["iscrowd"]
    rows = torch.where(useful)[0]
    return rows[torch.randperm(len(rows), device=rows.device, generator=noise)[:count]]


def jittered(
    boxes: Tensor, share: float, size: Size, noise: torch.Generator | None = None
) -> Tensor:
    """Boxes (N, 4) whose sides have moved by up to `share`, at most 0.5, of width or height.

    Clipped to the image's (h, w). They keep an extent: no side moves beyond the middle.
    """
    extent = boxes[:, 2:] - boxes[:, :2]
    sampled = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device, generator=noise)
    moves = (sampled * 2 - 1) * share
    return clip(boxes + moves * torch.cat([extent, extent], 1), size)


def sum_where(values: Tensor, known: Tensor) -> Loss:
    """The sum of the values that are `known` (bool, of the same shape), and their number."""
    return Loss((values * known).sum(), known.sum())
