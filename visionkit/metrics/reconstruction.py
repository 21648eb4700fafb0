"""How well images were given back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.types import Batch

PEAK = 255
HIGHEST_PSNR = 100.0  # dB; no error at all would be infinite


class Reconstruction:
    """`mse`, `psnr` and, of a variational autoencoder (`latent`), `kl`.

    `mse` is the mean squared error over all valid pixels and channels of the data set, in units
    of the whole range: 0 to 1. `psnr` is 10 log10(1 / mse) in decibels, of that one number and
    not a mean over images, at most 100. `kl` is the mean over images, in nats. All compare
    `reconstruction` (3, h, w) uint8 with the image in the batch, padding left out.
    """

    def __init__(self, *, latent: bool = False) -> None:
        self.latent = latent
        # Integers, so that the order of the images and the number of processes change nothing.
        self.squares = 0
        self.values = 0
        self.divergences: list[float] = []

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, image, target in zip(predictions, batch.images, batch.targets, strict=True):
            h, w = target["size"]
            truth = image[:, :h, :w].int()
            found = prediction["reconstruction"].to(truth.device).int()
            self.squares += int((found - truth).square().sum(dtype=torch.int64))
            self.values += truth.numel()
            if "kl" in prediction:
                self.divergences.append(_finite(prediction["kl"], target.get("image_id")))

    def state(self) -> tuple[int, int, list[float]]:
        return self.squares, self.values, self.divergences

    def merge(self, states: Sequence[tuple[int, int, list[float]]]) -> None:
        self.squares = sum(squares for squares, _, _ in states)
        self.values = sum(values for _, values, _ in states)
        self.divergences = [kl for _, _, divergences in states for kl in divergences]

    def compute(self) -> dict[str, float]:
        mse = self.squares / self.values / PEAK**2 if self.values else math.nan
        metrics = {"mse": mse, "psnr": psnr(mse)}
        if self.latent:
            count = len(self.divergences)
            metrics["kl"] = math.fsum(self.divergences) / count if count else math.nan
        return metrics


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]."""
    if math.isnan(mse):
        return mse
    return HIGHEST_PSNR if mse == 0 else min(HIGHEST_PSNR, 10 * math.log10(1 / mse))


def _finite(value: Tensor, image_id: int | None) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise DivergedError(f"image {image_id}: the divergence of its latent is not finite")
    return number
