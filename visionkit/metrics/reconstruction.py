"""Metrics of autoencoders: how well images are reconstructed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionkit.metrics.accuracy import finite, image_ids_of
from visionkit.metrics.image_reports import reconstruction_parts
from visionkit.metrics.intervals import mean_over
from visionkit.metrics.parts import Part, ReportContext
from visionkit.types import Batch

PEAK = 255
MAX_PSNR = 100.0  # dB; that of a perfect image would be infinite


class Reconstruction:
    """`mse`, `psnr` and, of a variational autoencoder (`latent`), `kl`.

    `mse` is the mean squared error over all valid pixels and channels of the dataset, for values in
    [0, 1]. `psnr` is 10 log10(1 / mse) in decibels, at most 100; it is computed from this `mse`,
    not averaged over images. `kl` is the mean over images, in nats. Compares `reconstruction`
    (3, h, w) uint8 with the image in the batch without padding.
    """

    def __init__(self, *, latent: bool = False) -> None:
        self.latent = latent
        # Integer sums do not depend on the order of the images or the number of ranks.
        self.errors: list[tuple[int, int, int]] = []  # image id, sum of squares, number of values
        self.divergences: list[float] = []

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, image, target in zip(predictions, batch.images, batch.targets, strict=True):
            h, w = target["size"]
            truth = image[:, :h, :w].int()
            found = prediction["reconstruction"].to(truth.device).int()
            squares = int((found - truth).square().sum(dtype=torch.int64))
            self.errors.append((target.get("image_id", len(self.errors)), squares, truth.numel()))
            if "kl" in prediction:
                self.divergences.append(finite(prediction, "kl", target.get("image_id")).item())

    def state(self) -> tuple[list[tuple[int, int, int]], list[float]]:
        return self.errors, self.divergences

    def merge(self, states: Sequence[tuple[list[tuple[int, int, int]], list[float]]]) -> None:
        self.errors = sorted(one for errors, _ in states for one in errors)
        self.divergences = [kl for _, divergences in states for kl in divergences]

    def compute(self) -> dict[str, float]:
        values = sum(values for _, _, values in self.errors)
        squares = sum(squares for _, squares, _ in self.errors)
        mse = squares / values / PEAK**2 if values else math.nan
        metrics = {"mse": mse, "psnr": psnr(mse)}
        if self.latent:
            count = len(self.divergences)
            metrics["kl"] = math.fsum(self.divergences) / count if count else math.nan
        return metrics

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.errors)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`mse` and `psnr` (R,) in replicates with these weights (R, I) of the images."""
        squares, values = np.array(sorted(self.errors), float).reshape(-1, 3)[:, 1:].T
        mse = mean_over(weights, squares, values) / PEAK**2
        return {"mse": mse, "psnr": np.array([psnr(float(one)) for one in mse])}

    def report(self, context: ReportContext) -> list[Part]:
        return reconstruction_parts(self.errors, context)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error of values in [0, 1]."""
    if math.isnan(mse):
        return mse
    return MAX_PSNR if mse == 0 else min(MAX_PSNR, 10 * math.log10(1 / mse))
