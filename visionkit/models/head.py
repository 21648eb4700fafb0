"""The base class of all heads: what a task computes from the shared features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visionkit.ops import merging
from visionkit.ops.views import View
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Loss, Size


class Head(nn.Module):
    """Base of all heads: what a task computes from the shared features.

    A head is built as `SomeHead(levels, classes, *, its own arguments)`: `levels` describes the
    feature maps it gets, `classes` are the names of the classes it predicts; the keyword-only
    arguments are what a config may set. It then implements `loss`, `forward`, `decode` and
    `evaluator`.
    """

    required_targets: ClassVar[tuple[str, ...]]  # the target keys that training needs
    class_key: ClassVar[str | None] = None  # target key whose class list it predicts
    # Layers with outputs for each class, and how many; outputs before these are of no class. By
    # these, weights of a model with other classes are loaded by class name.
    class_layers: ClassVar[Mapping[str, int]] = {}
    # Of such a layer that repeats its outputs, as one set for each anchor of a cell: how often.
    class_groups: Mapping[str, int] = {}
    boxes_from: str | None = None  # head whose boxes it describes
    single_object: ClassVar[bool] = False  # it wants images with a single object
    cell: int | None = None  # input pixels of the side of its smallest cell, if cells find objects
    draw_threshold: ClassVar[float] = 0.5  # score from which its objects are drawn by default
    main_metric: str  # of the class: the metric that selects the best checkpoint by default
    default_transforms: ClassVar[tuple[str, ...]] = ()  # types: the augmentation that suits it

    @classmethod
    def main_metric_of(cls, arguments: Mapping[str, Any]) -> str:
        """The `main_metric` of a head with these arguments, by default that of all."""
        return cls.main_metric

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Loss terms by name: the same names for any batch, also without a labeled image."""
        raise NotImplementedError

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by name, from which `decode` makes predictions.

        `sizes` (B, 2) int64 are the valid (h, w) of the images; None: nothing is padding. All
        outputs are tensors, for any batch size, and no shape depends on values (a detector
        returns a fixed number of candidates), so that the model can be exported. A head with
        `boxes_from` takes a third argument, `boxes` (B, N, 4), padded with zeros.
        """
        raise NotImplementedError

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The part of `decode` that is about tensors: the outputs of an exported model, by name.

        `size` is the (h, w) of the batch's images, with padding. Boxes are in input pixels, and
        again no shape depends on values. A head without it exports its `forward` alone.
        """
        raise NotImplementedError

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """One prediction for each image, boxes and masks in the *original* image's pixels."""
        raise NotImplementedError

    def predict(self, features: Features, batch: Batch) -> list[HeadPrediction]:
        """`decode` of `forward`. The boxes to describe are the `boxes` of the targets."""
        arguments = [batch.size_tensor]
        if self.boxes_from is not None:
            none = torch.zeros(0, 4, device=batch.images.device)
            boxes = [target.get("boxes", none) for target in batch.targets]
            arguments.append(pad_sequence(boxes, batch_first=True))
        return self.decode(self(features, *arguments), batch)

    def predict_view(self, features: Features, batch: Batch) -> list[HeadPrediction]:
        """`predict` for views of images, several of each: what `merge` takes."""
        return self.predict(features, batch)

    def merge(self, found: Sequence[HeadPrediction], views: Sequence[View]) -> HeadPrediction:
        """One prediction for an image of those for its `views`, each in the pixels of its view;
        tensors on the CPU, or arrays. ArgumentError for what cannot be merged: all but objects,
        semantic maps, probabilities and embeddings; see `visionkit.ops.merging`."""
        merged: Any = merging.merged(found, views)
        return merged

    def evaluator(self, dataset: Dataset) -> Evaluator:
        """A fresh evaluator of this head's predictions on that dataset."""
        raise NotImplementedError
