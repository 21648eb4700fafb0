"""Images of the latent space of a VAE: samples, and the plane or a traversal of each dimension."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from visionkit.models.heads.autoencoder import VAE, to_bytes
from visionkit.ops.inference import autocast
from visionkit.visualization.draw import as_image, save_image

PLANE = 20  # images on a side of the plane
DIMENSIONS = 10  # at most so many traversals
STEPS = 11  # of a traversal; an odd number has 0 in the middle
REACH = 2.5  # standard deviations of the prior: 79 of 80 samples are within
CHUNK = 64  # images decoded at once


@torch.inference_mode()
def write_latent_images(
    heads: Mapping[str, nn.Module], out: str | Path, *, samples: int = 64, seed: int = 0
) -> list[Path]:
    """Write images of the latent space of each VAE among the heads; returns the files.

    OUT/<head>_samples.png: decoded samples of the prior, the same for the same `seed`.
    OUT/<head>_grid.png, for a latent of two dimensions: 20 x 20 points, equally spaced in
    probability; the first dimension increases to the right, the second upwards.
    OUT/<head>_traversals.png, for any other: one row for each of the first 10 dimensions, from
    -2.5 to 2.5 while all others are 0.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, head in heads.items():
        if not isinstance(head, VAE):
            continue
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(samples, head.latent, generator=generator)
        images = {f"{name}_samples.png": _tiled(head, draws, ceil(sqrt(samples)))}
        if head.latent == 2:
            images[f"{name}_grid.png"] = _tiled(head, plane_points(PLANE), PLANE)
        else:
            images[f"{name}_traversals.png"] = _tiled(head, traversal_points(head.latent), STEPS)
        for file, image in images.items():
            save_image(image, out / file)
            files.append(out / file)
    return files


def plane_points(side: int) -> Tensor:
    """(side², 2): points of the plane in reading order, equally spaced in probability."""
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    rows, columns = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([columns, rows], 2).flatten(0, 1)


def traversal_points(latent: int) -> Tensor:
    """(rows * STEPS, latent): one row of steps along each of the first dimensions."""
    rows = min(latent, DIMENSIONS)
    steps = torch.linspace(-REACH, REACH, STEPS)
    points = steps[None, :, None] * torch.eye(latent)[:rows, None]  # (rows, STEPS, latent)
    return points.flatten(0, 1)


def _tiled(head: VAE, points: Tensor, columns: int) -> Image.Image:
    """The decoded points in rows, with a white line between."""
    device = head.from_latent.weight.device
    with autocast(device, head.from_latent.weight.dtype):
        decoded = [head.decode_latent(chunk.to(device)).cpu() for chunk in points.split(CHUNK)]
    grid = to_bytes(make_grid(torch.cat(decoded), nrow=columns, padding=1, pad_value=1.0))
    return as_image(grid)
