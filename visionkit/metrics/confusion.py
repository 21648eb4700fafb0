"""Metrics of semantic segmentation, from one confusion matrix over the whole dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.errors import DataError
from visionkit.metrics.accuracy import image_ids_of, nan_mean
from visionkit.metrics.comparison import Subject
from visionkit.metrics.image_reports import semantic_parts, semantic_sentences
from visionkit.metrics.parts import Part, ReportContext
from visionkit.metrics.report import Coverage
from visionkit.types import IGNORE, Batch, Dataset, Target

PIECES = 20  # in which replicates are computed


class ConfusionMatrix:
    """Intersection over union and accuracies, in [0, 1], over all pixels of a dataset.

    The ground truth is that of the dataset's `semantic_truth(image_id)`, (h, w) uint8, if it has
    this method; otherwise `target["semantic"]`, to whose size the prediction is resized. Pixels
    of 255 and images without `semantic` are skipped.

    - `IoU/<class>`: true positives / (true positives + false positives + false negatives). NaN for
      a class that is neither in the ground truth nor predicted.
    - `mIoU`: mean of the IoUs that are not NaN. A class that is predicted but not in the ground
      truth counts as 0.
    - `pixel_accuracy`: share of correct pixels.
    - `mean_accuracy`: mean over the classes in the ground truth of their share of correct pixels.

    The classes that are not labeled in an image (`semantic_labeled`) count as one class there: any
    of them is correct where any of them is true. Such a pixel is in no IoU, except as an error in
    that of a labeled class predicted for it. A class that no image labels has IoU NaN.
    """

    def __init__(self, classes: Sequence[str], dataset: Dataset | None = None):
        self.classes = list(classes)
        self.dataset, self.truth_of = dataset, getattr(dataset, "semantic_truth", None)
        # Rows: ground truth, columns: predictions. The last of each: the classes not labeled.
        self.counts = torch.zeros((len(self.classes) + 1,) * 2, dtype=torch.int64)
        # By image: correct, true and predicted pixels of each class, (3, C + 1) int32.
        self.by_image: list[tuple[int, Tensor]] = []

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            labeled = target.get("semantic_labeled")
            if "semantic" not in target or (labeled is not None and not labeled.any()):
                continue
            index = self._index(labeled)
            if self.truth_of is None:
                truth = target["semantic"].cpu()
            else:
                truth = torch.as_tensor(self.truth_of(target["image_id"]))
            found = prediction["semantic"].cpu()
            if found.shape != truth.shape:
                found = self._resized(found, truth, target)
            rows, columns = index[truth.long()], index[found.long()]
            counted = truth != IGNORE
            if (rows[counted] < 0).any():
                raise DataError(
                    f"image {target.get('image_id')}: the semantic map has the value "
                    f"{int(truth[counted].max())}; expected 0 to {len(self.classes) - 1}"
                )
            pairs = rows[counted] * len(self.counts) + columns[counted]
            counts = pairs.bincount(minlength=self.counts.numel()).view_as(self.counts)
            self.counts += counts
            parts = torch.stack([counts.diag(), counts.sum(1), counts.sum(0)])
            self.by_image.append((target.get("image_id", len(self.by_image)), parts.int()))

    def state(self) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        return self.counts, self.by_image

    def merge(self, states: Sequence[tuple[Tensor, list[tuple[int, Tensor]]]]) -> None:
        self.counts = torch.stack([counts for counts, _ in states]).sum(0)
        self.by_image = sorted((one for _, part in states for one in part), key=itemgetter(0))

    def _index(self, labeled: Tensor | None) -> Tensor:
        """Row and column of each value of a semantic map, (256,) int64; -1 for no class."""
        index = torch.full((IGNORE + 1,), -1)
        known = torch.arange(len(self.classes))
        if labeled is not None:
            known[~labeled.cpu()] = len(self.classes)
        index[: len(known)] = known
        return index

    def _resized(self, found: Tensor, truth: Tensor, target: Target) -> Tensor:
        if self.truth_of is not None:
            raise DataError(
                f"image {target.get('image_id')}: the semantic map has size {tuple(truth.shape)} "
                f"(h, w), the image {tuple(found.shape)}; they must be equal"
            )
        # Nearest pixel: class numbers cannot be interpolated.
        return F.interpolate(found[None, None], tuple(truth.shape), mode="nearest-exact")[0, 0]

    def compute(self) -> dict[str, float]:
        counts = self.counts.double()
        correct, true, found = counts.diag()[:-1], counts.sum(1)[:-1], counts.sum(0)[:-1]
        ious = (correct / (true + found - correct)).tolist()  # 0 / 0 is NaN: class does not occur
        return {
            "mIoU": nan_mean(ious),
            "pixel_accuracy": (counts.trace() / counts.sum()).item(),
            "mean_accuracy": nan_mean((correct / true).tolist()),
            **{f"IoU/{name}": iou for name, iou in zip(self.classes, ious, strict=True)},
        }

    def coverage(self) -> dict[str, Coverage]:
        """`mIoU` is also over the classes that are predicted alone."""
        true, found = self.counts.sum(1)[:-1], self.counts.sum(0)[:-1]
        occurs = (true > 0).tolist()
        scored = int(((true > 0) | (found > 0)).sum())
        return {
            "mIoU": Coverage.of(self.classes, occurs, scored),
            "mean_accuracy": Coverage.of(self.classes, occurs),
        }

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.by_image)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`mIoU`, `pixel_accuracy` and `IoU/<class>` (R,) in replicates with these weights (R, I)
        of the images."""
        parts = [part for _, part in sorted(self.by_image, key=itemgetter(0))]
        table = torch.stack(parts).double().numpy()  # (I, 3, C + 1)
        # Few replicates at once: with 50,000 images all of them are 400 MB.
        sums = [np.tensordot(w.astype(float), table, 1) for w in np.array_split(weights, PIECES)]
        correct, true, found = np.concatenate(sums).transpose(1, 0, 2)
        accuracy = correct.sum(1) / true.sum(1)
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no class is NaN
            ious = (correct / (true + found - correct))[:, :-1]
            mean = np.nanmean(ious, 1)
        by_class = {f"IoU/{name}": ious[:, k] for k, name in enumerate(self.classes)}
        return {"mIoU": mean, "pixel_accuracy": accuracy, **by_class}

    def subject(self) -> Subject:
        """What was scored, to compare it with another model: the pixels of each class."""
        parts = [part[1].tolist() for _, part in sorted(self.by_image, key=itemgetter(0))]
        return Subject(self.image_ids(), self.classes, {"pixels by class": np.array(parts)})

    def report(self, context: ReportContext) -> list[Part]:
        pixels = [(id_, part.numpy()) for id_, part in self.by_image]
        return semantic_parts(self.classes, self.counts.numpy(), pixels, context, self._map_of)

    def _map_of(self, image_id: int) -> Any:
        """The semantic map of an image, also of a dataset that cannot give that alone."""
        if self.truth_of is not None or self.dataset is None:
            return None if self.truth_of is None else self.truth_of(image_id)
        ids = getattr(self.dataset, "image_ids", None)
        place = image_id if ids is None else np.asarray(ids).tolist().index(image_id)
        return self.dataset[place].semantic

    def sentences(self, context: ReportContext) -> list[str]:
        """What stands out in a report."""
        return semantic_sentences(self.classes, self.counts.numpy())
