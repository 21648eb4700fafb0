"""Metrics of class maps, from one confusion matrix over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.errors import DataError
from visionkit.metrics.accuracy import nan_mean
from visionkit.types import IGNORE, Batch, Dataset, Target


class ConfusionMatrix:
    """Intersection over union and accuracies, in [0, 1], of all pixels of a data set together.

    Scored at the resolution of the data set's own class maps, which come from its method
    `semantic_truth(image_id)`, (h, w) uint8, if it has one; otherwise from `target["semantic"]`,
    to whose size the prediction is then brought. Pixels of 255 and images without `semantic`
    are left out.

    - `IoU/<class>`: pixels that are of the class and predicted so, among those that are or are
      predicted so. NaN for a class that is neither in the truth nor in a prediction.
    - `mIoU`: mean of the IoUs that are not NaN. A class that is predicted and never there counts,
      with 0.
    - `pixel_accuracy`: share of the pixels that are predicted right.
    - `mean_accuracy`: mean over the classes that occur in the truth of the share of their pixels
      that are predicted right.

    Classes that are not labeled in an image (`semantic_labeled`) are one class there: any of
    them is right where any of them is true. Such pixels take part in no class's IoU except, where
    a labeled class is predicted, in that one's, as an error. A class that is labeled in no
    image has IoU NaN.
    """

    def __init__(self, classes: Sequence[str], dataset: Dataset | None = None):
        self.classes = list(classes)
        self.truth_of = getattr(dataset, "semantic_truth", None)
        # Rows are the truth, columns predictions; the last of each is "a class not labeled".
        self.counts = torch.zeros((len(self.classes) + 1,) * 2, dtype=torch.int64)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            labeled = target.get("semantic_labeled")
            if "semantic" not in target or (labeled is not None and not labeled.any()):
                continue
            slots = self._slots(labeled)
            truth = self._truth(target)
            found = prediction["semantic"].cpu()
            if found.shape != truth.shape:
                found = self._brought_to(found, truth, target)
            rows, columns = slots[truth.long()], slots[found.long()]
            counted = truth != IGNORE
            if (rows[counted] < 0).any():
                raise DataError(
                    f"image {target.get('image_id')}: its class map has the value "
                    f"{int(truth[counted].max())}, but there are {len(self.classes)} classes"
                )
            all_gather_with_grad = rows[counted] * len(self.counts) + columns[counted]
            self.counts += all_gather_with_grad.bincount(minlength=self.counts.numel()).view_as(
                self.counts
            )

    def _slots(self, labeled: Tensor | None) -> Tensor:
        """Row and column of each value of a class map, (256,) int64; -1 for no class."""
        slots = torch.full((IGNORE + 1,), -1)
        known = torch.arange(len(self.classes))
        if labeled is not None:
            known[~labeled.cpu()] = len(self.classes)
        slots[: len(known)] = known
        return slots

    def _truth(self, target: Target) -> Tensor:
        if self.truth_of is None:
            return target["semantic"].cpu()
        return torch.as_tensor(self.truth_of(target["image_id"]))

    def _brought_to(self, found: Tensor, truth: Tensor, target: Target) -> Tensor:
        if self.truth_of is not None:
            raise DataError(
                f"image {target.get('image_id')}: its class map is {tuple(truth.shape)} (h, w), "
                f"the image {tuple(found.shape)}; they must be of one size"
            )
        # Bytes as they are: the nearest pixel, never a mixture of class numbers.
        return F.interpolate(found[None, None], tuple(truth.shape), mode="nearest-exact")[0, 0]

    def state(self) -> list[list[int]]:
        return self.counts.tolist()

    def merge(self, states: Sequence[list[list[int]]]) -> None:
        self.counts = torch.tensor(states).sum(0)

    def compute(self) -> dict[str, float]:
        counts = self.counts.double()
        right, true, found = counts.diag()[:-1], counts.sum(1)[:-1], counts.sum(0)[:-1]
        ious = (right / (true + found - right)).tolist()  # 0 / 0 is NaN: not there, not predicted
        return {
            "mIoU": nan_mean(ious),
            "pixel_accuracy": (counts.trace() / counts.sum()).item(),
            "mean_accuracy": nan_mean((right / true).tolist()),
            **{f"IoU/{name}": iou for name, iou in zip(self.classes, ious, strict=True)},
        }
