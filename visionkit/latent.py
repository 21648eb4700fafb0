"""Pictures of a variational autoencoder's latent space."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from visionkit.heads.autoencoder import VAE, to_bytes
from visionkit.predict import Predictor

PLANE = 20  # pictures on a side of the plane
DIMENSIONS = 10  # at most so many traversals
STEPS = 11  # of a traversal; an odd number has 0 in the middle
REACH = 2.5  # standard deviations of the prior: all but one in eighty
CHUNK = 64  # pictures decoded at once


@torch.inference_mode()
def write_latent_pictures(
    predictor: Predictor, out: str | Path, *, samples: int = 64, seed: int = 0
) -> list[Path]:
    """For each VAE head of the model, pictures of what its latent space holds; returns the files.

    OUT/<head>_samples.png: decoded draws from the prior, the same for the same `seed`.
    OUT/<head>_grid.png, for a latent of two dimensions: 20 x 20 points, even in probability; the
    first dimension rises to the right, the second upwards.
    OUT/<head>_traversals.png, for any other: one row for each of the first 10 dimensions, which
    goes from -2.5 to 2.5 while all the others are 0.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, head in predictor.model.heads.items():
        if not isinstance(head, VAE):
            continue
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(samples, head.latent, generator=generator)
        pictures = {f"{name}_samples.png": _tiled(head, draws, ceil(sqrt(samples)))}
        if head.latent == 2:
            pictures[f"{name}_grid.png"] = _tiled(head, plane_points(PLANE), PLANE)
        else:
            pictures[f"{name}_traversals.png"] = _tiled(head, traversal_points(head.latent), STEPS)
        for file, picture in pictures.items():
            picture.save(out / file)
            files.append(out / file)
    return files


def plane_points(side: int) -> Tensor:
    """(side², 2): points of the plane in the order of reading, even in the prior's probability."""
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
    """The decoded points side by side, with a white line between."""
    device, dtype = head.from_latent.weight.device, head.from_latent.weight.dtype
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        decoded = [head.decode(chunk.to(device)).cpu() for chunk in points.split(CHUNK)]
    grid = to_bytes(make_grid(torch.cat(decoded), nrow=columns, padding=1, pad_value=1.0))
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
