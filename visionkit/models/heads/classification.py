"""The class of a whole image: global average pooling, dropout, linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Fraction, Positive
from visionkit.errors import ConfigError, unknown
from visionkit.metrics.accuracy import Accuracy, MultiLabelAccuracy
from visionkit.models.head import Head
from visionkit.ops.layers import masked_mean, valid_cells
from visionkit.ops.views import View
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size

TINY = 1e-12  # least sum of class weights


class Classification(Head):
    """One class per image (softmax), or with `multilabel` any number of them (sigmoids).

    `class_id` of a target is () int64, or with `multilabel` (K,) float with 1 for each class that
    the image shows, 0 for the others and NaN for those that are not known. Mixed images have (K,)
    float shares in both cases (Zhang et al. 2018). Padding is excluded from the pooling.

    level: the feature map to pool; by default the coarsest.
    dropout: probability with which a pooled feature is dropped in training.
    label_smoothing: share of the truth that is spread evenly over the classes (Szegedy et al.
        2016); with `multilabel`, 1 and 0 become 1 - s/2 and s/2.
    class_weights: factor of a class in the loss, by its name; 1 where none is given.
    threshold: with `multilabel`, the probability from which a class counts as present.
    """

    required_targets = ("class_id",)
    class_key = "class_id"
    class_layers: ClassVar[dict[str, int]] = {"linear": 1}
    main_metric = "top1"
    default_transforms = ("HorizontalFlip", "RandomResizedCrop")
    class_weights: Tensor

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        dropout: Fraction = 0.0,
        multilabel: bool = False,
        label_smoothing: Fraction = 0.0,
        class_weights: dict[str, Positive] | None = None,
        threshold: Fraction = 0.5,
    ):
        super().__init__()
        self.classes = list(classes)
        self.level = pick_level(levels, level, default=list(levels)[-1])
        self.stride = levels[self.level].stride
        self.multilabel = multilabel
        self.main_metric = self.main_metric_of({"multilabel": multilabel})
        self.label_smoothing = label_smoothing
        self.threshold = threshold
        # Of each class, or of all, instead of `threshold`; never those of the evaluation.
        self.class_thresholds: float | tuple[float, ...] | None = None
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(levels[self.level].channels, len(self.classes))
        weights = weights_in_order(self.classes, class_weights or {})
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)

    @classmethod
    def main_metric_of(cls, arguments: Mapping[str, Any]) -> str:
        return "mAP" if arguments.get("multilabel") else cls.main_metric

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, K) in float32."""
        feature = features[self.level]
        pooled = masked_mean(feature, valid_cells(sizes, feature, self.stride))
        return {"logits": self.linear(self.dropout(pooled)).float()}

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        logits = self(features, batch.size_tensor)["logits"]
        labeled = [i for i, target in enumerate(batch.targets) if "class_id" in target]
        if not labeled:
            return {"classification": Loss(logits.sum() * 0, logits.new_zeros(()))}
        truth = torch.stack([batch.targets[i]["class_id"] for i in labeled]).to(logits.device)
        logits, weights, smoothing = logits[labeled], self.class_weights, self.label_smoothing
        if self.multilabel:
            known = ~truth.isnan()
            soft = truth.nan_to_num().float() * (1 - smoothing) + smoothing / 2
            weights = weights * known
            total = F.binary_cross_entropy_with_logits(logits, soft, weights, reduction="sum")
            return {"classification": Loss(total, known.sum().to(total.dtype))}
        total = F.cross_entropy(logits, truth, weights, label_smoothing=smoothing, reduction="sum")
        weight = weights @ truth.T if truth.is_floating_point() else weights[truth]
        return {"classification": Loss(total, weight.sum(), TINY)}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """`probs` (B, K)."""
        logits = outputs["logits"]
        return {"probs": logits.sigmoid() if self.multilabel else logits.softmax(1)}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `probs` (K,), `label` () and its `score` ().

        With `multilabel` instead of the last two: `labels` (M,), the classes whose probability is
        at least `threshold`, the most probable first.
        """
        found = self.postprocess(outputs, batch.padded_size)["probs"]
        if self.multilabel:
            return [{"probs": probs, "labels": self._present(probs)} for probs in found]
        return [{"probs": probs, "label": probs.argmax(), "score": probs.max()} for probs in found]

    def merge(self, found: Sequence[HeadPrediction], views: Sequence[View]) -> HeadPrediction:
        """The mean of the probabilities, and the classes by that."""
        merged = super().merge([{"probs": one["probs"]} for one in found], views)
        if not self.multilabel:
            return merged
        probs = torch.as_tensor(merged["probs"])
        return {"probs": probs, "labels": self._present(probs)}

    def _present(self, probs: Tensor) -> Tensor:
        ranked = probs.argsort(descending=True)
        lowest = self.threshold if self.class_thresholds is None else self.class_thresholds
        return ranked[(probs >= torch.tensor(lowest, device=probs.device))[ranked]]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        if self.multilabel:
            return MultiLabelAccuracy(self.classes, threshold=self.threshold)
        return Accuracy(self.classes)


def pick_level(levels: dict[str, Level], level: str | None, *, default: str) -> str:
    """`level`, or `default` if it is None; ConfigError if the model does not have it."""
    if level is None:
        return default
    if level not in levels:
        raise ConfigError(f"level: feature map {level!r} not found; choose one of {[*levels]}")
    return level


def coarsest_useful(levels: dict[str, Level], max_stride: int = 32) -> str:
    """The coarsest level with cells of at most `max_stride` pixels; the finest, where all are
    larger."""
    fine_enough = [name for name, level in levels.items() if level.stride <= max_stride]
    return fine_enough[-1] if fine_enough else next(iter(levels))


def weights_in_order(classes: Sequence[str], weights: dict[str, float]) -> list[float]:
    """The weight of each class, 1 where none is given."""
    for name in weights:
        if name not in classes:
            raise ConfigError(unknown(name, classes, f"class_weights: unknown class {name!r}"))
    return [float(weights.get(name, 1.0)) for name in classes]
