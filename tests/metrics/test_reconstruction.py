"""Errors of reconstructed images."""

import math

import pytest
import torch

from visionkit.errors import DivergedError
from visionkit.metrics.reconstruction import Reconstruction, psnr
from visionkit.types import Batch


def batch_of(images, *sizes):
    return Batch(images, [{"image_id": 7 + i, "size": size} for i, size in enumerate(sizes)])


def test_hand_worked():
    """Two images of 2 and 4 pixels: one value is off by 51 (a fifth), two are off by 102."""
    images = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    first, second = images[0, :, :1, :2].clone(), images[1, :, :2, :2].clone()
    first[0, 0, 0] -= 51
    second[1, 1, :] -= 102
    evaluator = Reconstruction()
    found = [{"reconstruction": first}, {"reconstruction": second}]
    evaluator.update(found, batch_of(images, (1, 2), (2, 2)))
    metrics = evaluator.compute()
    mse = (0.2**2 + 2 * 0.4**2) / (3 * 6)  # over all values, not a mean of two means
    assert metrics == pytest.approx({"mse": mse, "psnr": 10 * math.log10(1 / mse)})


def test_differences_do_not_wrap_around():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    evaluator = Reconstruction()
    evaluator.update([{"reconstruction": images[0] + 255}], batch_of(images, (2, 2)))
    assert evaluator.compute() == {"mse": 1.0, "psnr": 0.0}


def test_no_error_is_a_hundred_decibels_and_no_image_is_undefined():
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    nothing = Reconstruction(latent=True).compute()
    assert list(nothing) == ["mse", "psnr", "kl"]
    assert all(math.isnan(value) for value in nothing.values())
    evaluator = Reconstruction()
    evaluator.update([{"reconstruction": images[0]}], batch_of(images, (4, 4)))
    assert evaluator.compute() == {"mse": 0.0, "psnr": 100.0}
    assert psnr(1e-30) == 100.0 and psnr(0.01) == pytest.approx(20.0)


def test_parts_merge_to_the_whole():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    sizes = [(8, 8), (3, 5), (8, 1), (2, 2), (7, 8)]
    found = [
        {
            "reconstruction": torch.randint(0, 256, (3, h, w), dtype=torch.uint8),
            "kl": torch.rand(()),
        }
        for h, w in sizes
    ]
    whole, *parts = (Reconstruction(latent=True) for _ in range(3))
    whole.update(found, batch_of(images, *sizes))
    parts[0].update(found[:2], batch_of(images[:2], *sizes[:2]))
    parts[1].update(found[2:], batch_of(images[2:], *sizes[2:]))
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == whole.compute()
    assert whole.compute()["kl"] == pytest.approx(sum(float(p["kl"]) for p in found) / 5)


def test_a_divergence_that_is_not_finite():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    found = [{"reconstruction": images[0], "kl": torch.tensor(math.nan)}]
    with pytest.raises(DivergedError, match="image 7"):
        Reconstruction().update(found, batch_of(images, (2, 2)))
