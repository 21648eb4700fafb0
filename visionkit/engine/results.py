"""Write the predictions for many images: a JSON list of records, overlays, semantic maps and
embeddings; and images of the latent space of a VAE."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from visionkit.engine.predict import (
    BATCH,
    Overrides,
    Predictor,
    find_images,
    loaded,
    predict_each,
)
from visionkit.engine.prediction import Prediction, to_records
from visionkit.errors import ConfigError, DataError, check_counts
from visionkit.models.heads.autoencoder import VAE, to_bytes
from visionkit.ops.inference import autocast
from visionkit.runs.files import json_list, remove_strays, replacing, write_text
from visionkit.visualization.draw import as_image, color_of, save_image

log = logging.getLogger("visionkit")
PREDICTIONS, EMBEDDINGS = "predictions.json", "embeddings.npz"
UNFINISHED = ".{}.unfinished"  # a file in the folder of results that are not complete yet
# Images of the latent space of a variational autoencoder.
PLANE = 20  # images on a side of the plane
DIMENSIONS = 10  # at most so many traversals
STEPS = 11  # of a traversal; an odd number has 0 in the middle
REACH = 2.5  # standard deviations of the prior: 79 of 80 samples are within
CHUNK = 64  # images decoded at once


def predict_files(
    model: str | Path | Predictor,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    overrides: Overrides = (),
    *,
    threshold: float | str | None = None,
    batch_size: int = BATCH,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
) -> int:
    """Predict images and folders of images and write the results to the folder `out`, as `visionkit
    predict` does; returns how many images could not be read.

    `model` is a run directory, a checkpoint file or a loaded `Predictor`; `overrides`, `heads` and
    `allow_plugins` as for `load`. `batch_size` images of equal size go through the model together.

    Writes OUT/predictions.json with every prediction; for each image an overlay of those with a
    score of at least `threshold` (see `Predictor.use_threshold`), and its semantic maps, in the
    subfolder that it has; OUT/embeddings.npz; images of the latent space of a VAE. An unreadable
    image is reported and skipped. Only the embeddings are kept in memory.

    Raises ConfigError if `out` has other content than earlier results, DataError if an input does
    not exist or no image can be read, DivergedError for numbers that are not finite.
    """
    check_counts(batch_size=batch_size)
    predictor = loaded(model, overrides, heads=heads, allow_plugins=allow_plugins)
    _use_threshold(predictor, threshold)
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    out = Path(out)
    found = find_images(inputs)
    files = {file: name for file, name in found if out.resolve() not in file.resolve().parents}
    overlays = _overlays(files, out)

    def drawn(file: Path, prediction: Prediction) -> tuple[Prediction, dict[str, dict[str, Any]]]:
        image = prediction.draw().convert("RGB")
        overlays[file].parent.mkdir(parents=True, exist_ok=True)
        save_image(image, overlays[file], quality=92)
        return prediction, _write_maps(prediction, overlays[file], out)

    unreadable, embeddings = 0, EmbeddingWriter()
    with (
        results_folder(out, inputs, PREDICTIONS),
        json_list(out / PREDICTIONS) as add,
        closing(predict_each(predictor, [*files], drawn, batch_size)) as results,
    ):
        for image_id, (file, result) in enumerate(results, start=1):
            if isinstance(result, DataError):
                log.error("skipped: %s", result)
                unreadable += 1
                continue
            prediction, maps = result
            extra = maps | embeddings.add(files[file], prediction)
            names = {"file_name": files[file], "overlay": _below(out, overlays[file])}
            for record in to_records(prediction, image_id):
                add({**names, **record, **extra.get(record["head"], {})})
    embeddings.save(out)
    write_latent_images(predictor, out)
    if unreadable == len(files):
        raise DataError(f"predict: none of the {len(files)} images could be read")
    return unreadable


def _use_threshold(predictor: Predictor, threshold: float | str | None) -> None:
    """Set what is drawn, and say so."""
    if threshold is not None:
        predictor.use_threshold(threshold)
    for line in predictor.describe_thresholds():
        log.info("objects are drawn from these scores on: %s", line)


@contextmanager
def results_folder(out: Path, inputs: Sequence[str | Path], last: str) -> Iterator[None]:
    """Create the folder for results that are complete with the file `last`. One with other content
    than earlier results is refused, so that nothing ever replaces a user's image; a file marks one
    that is not complete, so that an interrupted command can be repeated."""
    if any(out.resolve() in (Path(p).resolve(), Path(p).resolve().parent) for p in inputs):
        raise ConfigError(f"--out: {out} contains the input images; choose another folder")
    mark = out / UNFINISHED.format(last)
    try:
        interrupted = mark.is_file()
        if out.exists() and any(out.iterdir()) and not interrupted and not (out / last).exists():
            raise ConfigError(f"--out: {out} contains other files; choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
        for folder in (out, *out.rglob("*/")) if interrupted else ():
            remove_strays(folder)
        write_text(mark, "")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be created: {error.strerror}") from error
    yield
    mark.unlink(missing_ok=True)


def _overlays(files: Mapping[Path, str], out: Path) -> dict[Path, Path]:
    """A unique path for the overlay of each image: that of its name, or for names that would lead
    out of the folder, the path below the folder that holds all of these images."""
    names = {file: Path(name) for file, name in files.items()}
    astray = {f: os.path.abspath(f) for f, n in names.items() if n.anchor or ".." in n.parts}
    for file, path in astray.items():
        common = os.path.commonpath(map(os.path.dirname, astray.values()))
        names[file] = Path(os.path.relpath(path, common))
    overlays: dict[Path, Path] = {}
    taken = {folder for name in names.values() for folder in name.parents}
    for file, name in names.items():
        unique, number = name.with_name(f"{name.stem}.jpg"), 1
        while unique in taken:
            number += 1
            unique = name.with_name(f"{name.stem}_{number}.jpg")
        taken.add(unique)
        overlays[file] = out / unique
    return overlays


def _below(out: Path, path: Path) -> str:
    return path.relative_to(out).as_posix()


class EmbeddingWriter:
    """Collects embeddings for OUT/embeddings.npz."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.rows: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Add those of one image; returns their place in the file by head."""
        places = {}
        for head, result in prediction.heads.items():
            if "embedding" in result:
                self.names.setdefault(head, []).append(name)
                self.rows.setdefault(head, []).append(result["embedding"].numpy())
                places[head] = {"embeddings": EMBEDDINGS, "row": len(self.rows[head]) - 1}
        return places

    def save(self, out: Path) -> None:
        """`<head>` (N, D) float32 and `<head>_names` (N,), if there are any."""
        arrays = {head: np.stack(rows) for head, rows in self.rows.items()}
        arrays |= {f"{head}_names": np.array(names) for head, names in self.names.items()}
        if arrays:
            with replacing(out / EMBEDDINGS, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # all of them


def _write_maps(prediction: Prediction, overlay: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Semantic maps as palette PNGs, whose pixel values are class indices."""
    written = {}
    for head, result in prediction.heads.items():
        if "semantic" in result:
            path = overlay.with_name(f"{overlay.stem}_{head}.png")
            image = Image.fromarray(result["semantic"].numpy(), mode="P")
            image.putpalette([part for label in range(256) for part in color_of(label)])
            save_image(image, path)
            written[head] = {"map": _below(out, path)}
    return written


@torch.inference_mode()
def write_latent_images(
    predictor: Predictor, out: str | Path, *, samples: int = 64, seed: int = 0
) -> list[Path]:
    """Write images of the latent space of each VAE head of the model; returns the files.

    OUT/<head>_samples.png: decoded samples of the prior, the same for the same `seed`.
    OUT/<head>_grid.png, for a latent of two dimensions: 20 x 20 points, equally spaced in
    probability; the first dimension increases to the right, the second upwards.
    OUT/<head>_traversals.png, for any other: one row for each of the first 10 dimensions, from
    -2.5 to 2.5 while all others are 0.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, head in predictor.model.heads.items():
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
