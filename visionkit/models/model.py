"""The model of every task: a backbone, perhaps a neck, and named heads on their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from visionkit.errors import ConfigError, unknown
from visionkit.metrics.thresholds import Thresholds, draw_thresholds
from visionkit.models import contracts
from visionkit.models.head import Head
from visionkit.ops.boxes import rescale_boxes
from visionkit.ops.inference import autocast
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Loss, Target


class VisionModel(nn.Module):
    """One backbone under one or several heads.

    The features of a batch are computed once, for all the heads that it feeds. `loss_weights` are
    the factors of the heads' losses; with `learned_weights` each is also divided by a variance
    that is learned (Kendall et al. 2018).
    """

    kind = "a model"  # of which types, for messages

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        heads: dict[str, Head],
        loss_weights: dict[str, float],
        *,
        learned_weights: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.heads = nn.ModuleDict(heads)
        self.loss_weights = loss_weights
        self.class_names: dict[str, Sequence[str]] = {}  # of heads with classes
        self.thresholds: dict[str, Thresholds] = {}  # found by a validation, by head
        self.log_variances = nn.ParameterDict()
        if learned_weights:
            self.log_variances.update({name: nn.Parameter(torch.zeros(())) for name in heads})
        with_boxes = [name for name, head in heads.items() if _finds_boxes(head)]
        for name, head in heads.items():
            on = head.boxes_from
            if on is not None and on not in with_boxes:
                what = f"heads.{name}.boxes_from: got {on!r}; expected a head with boxes"
                raise ConfigError(unknown(on, with_boxes, what))

    def train(self, mode: bool = True) -> VisionModel:
        """As usual, except that batch norms whose weights are frozen keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.train(mode and module.weight.requires_grad)
        return self

    @property
    def draw_threshold(self) -> dict[str, float | tuple[float, ...]]:
        """For each head, the score from which its objects, or those it describes, are drawn: the
        same for all, or for each class that of the best F1 which the last validation found."""
        heads = {name: self.head(name) for name in self.heads}
        defaults = {name: (head.boxes_from, head.draw_threshold) for name, head in heads.items()}
        return draw_thresholds(defaults, self.class_names, self.thresholds)

    def head(self, name: str) -> Head:
        return cast(Head, self.heads[name])

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Named feature maps (B, C, h, w), from fine to coarse."""
        version = None if batch.images.is_inference() else batch.images._version
        found = self.backbone(batch.images, batch.sizes)
        if version is not None and batch.images._version != version:
            name = type(self.backbone).__name__
            raise ConfigError(f"backbone: {name}.forward() changes `images` in place; copy them")
        features = contracts.checked_features("backbone", self.backbone, found, batch.images)
        if self.neck is None:
            return features
        return contracts.checked_features("neck", self.neck, self.neck(features), batch.images)

    def losses(
        self, features: Features, batch: Batch, heads: Iterable[str]
    ) -> dict[str, dict[str, Loss]]:
        """Unweighted loss terms by head and by name."""
        return {
            name: contracts.checked_losses(name, self.head(name).loss(features, batch))
            for name in heads
        }

    def predictions(
        self, features: Features, batch: Batch, heads: Iterable[str], *, views: bool = False
    ) -> dict[str, list[HeadPrediction]]:
        """Each head's predictions, a list with one dict for each image; with `views`, those that
        its `merge` takes.

        A head that describes the boxes of another one gets the boxes that that one predicts; they
        are in its own predictions too.
        """
        heads = list(heads)
        boxes_from = {name: self.head(name).boxes_from for name in heads}
        bases = [on or name for name, on in boxes_from.items()]
        found = {n: self._predicted(n, features, batch, views) for n in dict.fromkeys(bases)}
        for name, on in boxes_from.items():
            if on is not None:
                objects = contracts.boxes_of(name, on, found[on])
                described = self._predicted(name, features, _with_boxes(batch, objects), views)
                found[name] = [
                    {**more, "boxes": one["boxes"], "scores": one["scores"]}
                    for more, one in zip(described, objects, strict=True)
                ]
        return {name: found[name] for name in heads}

    def infer(
        self,
        batch: Batch,
        heads: Iterable[str],
        dtype: torch.dtype,
        *,
        with_losses: bool = False,
        views: bool = False,
    ) -> tuple[dict[str, list[HeadPrediction]], dict[str, dict[str, Loss]]]:
        """Each head's predictions for a batch on the model's device, computed in that precision;
        and its losses, from the same features. `views` as for `predictions`."""
        with autocast(batch.images.device, dtype):
            features = self.features(batch)
            predictions = self.predictions(features, batch, heads, views=views)
            return predictions, self.losses(features, batch, heads) if with_losses else {}

    def _predicted(
        self, head: str, features: Features, batch: Batch, views: bool
    ) -> list[HeadPrediction]:
        own = self.head(head)
        found = own.predict_view(features, batch) if views else own.predict(features, batch)
        return contracts.checked_predictions(head, found, len(batch))

    def evaluator(self, head: str, dataset: Dataset) -> Evaluator:
        """A new evaluator of the head's predictions on a dataset."""
        return contracts.checked_evaluator(head, self.head(head).evaluator(dataset))

    def weighted(self, values: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """What each head adds to the one number to minimize, from the values of its terms."""
        parts: dict[str, Tensor] = {}
        for name, terms in values.items():
            first, *others = terms.values()
            parts[name] = self.loss_weights[name] * sum(others, start=first)
            if name in self.log_variances:
                log_variance = self.log_variances[name]
                parts[name] = parts[name] * torch.exp(-log_variance) + log_variance / 2
        return parts

    def effective_weights(self) -> dict[str, float]:
        """The current factor of each head's loss."""
        learned = {name: float(torch.exp(-s.detach())) for name, s in self.log_variances.items()}
        return {name: w * learned.get(name, 1.0) for name, w in self.loss_weights.items()}


def _finds_boxes(head: Head) -> bool:
    return head.boxes_from is None and "boxes" in head.required_targets and not head.single_object


def _with_boxes(batch: Batch, predictions: list[HeadPrediction]) -> Batch:
    """The batch with predicted boxes instead of all labels."""
    targets: list[Target] = []
    for target, found in zip(batch.targets, predictions, strict=True):
        sizes = {key: target[key] for key in ("image_id", "size", "orig_size")}
        boxes = rescale_boxes(found["boxes"], target["orig_size"], target["size"])
        targets.append({**sizes, "boxes": boxes})  # type: ignore[typeddict-item]  # of Target
    return Batch(batch.images, targets)


def wrap_calls(model: VisionModel, wrap: Callable[[str, Callable], Callable]) -> None:
    """Replace `call`, each method of backbone, neck and heads that a step calls, by
    `wrap(key, call)`, with the key of the part in the config. For a model that is thrown away."""
    parts: dict[str, nn.Module] = {"backbone": model.backbone}
    if model.neck is not None:
        parts["neck"] = model.neck
    for key, module in parts.items():
        module.forward = wrap(key, module.forward)
    for name, head in model.heads.items():
        for method in ("loss", "predict"):
            setattr(head, method, wrap(f"heads.{name}", getattr(head, method)))
