"""Predictions as files: one JSON list of records for all images, and an overlay of each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from visionkit.data.image_io import is_image_file
from visionkit.engine.predict import BATCH, Prediction, Predictor, predict_each
from visionkit.errors import ConfigError, DataError, DivergedError
from visionkit.metrics.coco.evaluator import coco_results
from visionkit.models.heads.autoencoder import VAE, to_bytes
from visionkit.runs import directory as rundir
from visionkit.types import Classes
from visionkit.visualization.draw import color_of

# --- Images of a variational autoencoder's latent space.

PLANE = 20  # images on a side of the plane
DIMENSIONS = 10  # at most so many traversals
STEPS = 11  # of a traversal; an odd number has 0 in the middle
REACH = 2.5  # standard deviations of the prior: all but one in eighty
CHUNK = 64  # images decoded at once


@torch.inference_mode()
def write_latent_images(
    predictor: Predictor, out: str | Path, *, samples: int = 64, seed: int = 0
) -> list[Path]:
    """For each VAE head of the model, images of what its latent space holds; returns the files.

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
        images = {f"{name}_samples.png": _tiled(head, draws, ceil(sqrt(samples)))}
        if head.latent == 2:
            images[f"{name}_grid.png"] = _tiled(head, plane_points(PLANE), PLANE)
        else:
            images[f"{name}_traversals.png"] = _tiled(head, traversal_points(head.latent), STEPS)
        for file, image in images.items():
            image.save(out / file)
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
        decoded = [head.decode_latent(chunk.to(device)).cpu() for chunk in points.split(CHUNK)]
    grid = to_bytes(make_grid(torch.cat(decoded), nrow=columns, padding=1, pad_value=1.0))
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())


log = logging.getLogger("visionkit")
TOP = 5
PREDICTIONS, VECTORS = "predictions.json", "embeddings.npz"


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    threshold: float | None = None,
    batch_size: int = BATCH,
) -> int:
    """Predict images and folders of images; returns how many could not be read.

    Writes OUT/predictions.json with every prediction and, for each image, an overlay of those
    with a score of at least `threshold` (by default what suits the head), and its class maps;
    OUT/embeddings.npz with the embeddings; images of the latent space of a VAE. A broken image is
    reported and left out. Only the vectors are kept in memory; `predict_each` tells what
    `batch_size` does.
    """
    out = Path(out)
    files = {file: name for file, name in find_images(inputs) if not _is_inside(file, out)}
    prepare_out(out, inputs, marker=PREDICTIONS)
    overlays = _overlays(files, out)

    def drawn(file: Path, prediction: Prediction) -> tuple[Prediction, dict[str, dict[str, Any]]]:
        image = prediction.draw(threshold=threshold).convert("RGB")
        image.save(overlays[file], quality=92)
        return prediction, _write_maps(prediction, overlays[file])

    broken, vectors = 0, EmbeddingWriter()
    with (
        rundir.json_list(out / PREDICTIONS) as add,
        closing(predict_each(predictor, [*files], drawn, batch_size)) as found,
    ):
        for image_id, (file, result) in enumerate(found, start=1):
            if isinstance(result, DataError):
                log.error("skipped: %s", result)
                broken += 1
                continue
            prediction, maps = result
            extra = maps | vectors.add(files[file], prediction)
            for record in to_records(prediction, image_id):
                more = extra.get(record["head"], {})
                add({"file_name": files[file], **record, **more})
    vectors.save(out)
    write_latent_images(predictor, out)
    if broken == len(files):
        raise DataError(f"predict: none of the {len(files)} images could be read")
    return broken


class EmbeddingWriter:
    """Embeddings of many images, on their way to OUT/embeddings.npz."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.rows: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Where in the file the vectors of one image stand, by head."""
        places = {}
        for head, result in prediction.heads.items():
            if "embedding" in result:
                self.names.setdefault(head, []).append(name)
                self.rows.setdefault(head, []).append(result["embedding"].numpy())
                places[head] = {"embeddings": VECTORS, "row": len(self.rows[head]) - 1}
        return places

    def save(self, out: Path) -> None:
        """`<head>` (N, D) float32 and `<head>_names` (N,), if there are any."""
        arrays = {head: np.stack(rows) for head, rows in self.rows.items()}
        arrays |= {f"{head}_names": np.array(names) for head, names in self.names.items()}
        if arrays:
            np.savez(out / VECTORS, **arrays)


def _write_maps(prediction: Prediction, overlay: Path) -> dict[str, dict[str, Any]]:
    """Class maps as palette PNGs, whose pixel values are the classes' numbers."""
    written = {}
    for head, result in prediction.heads.items():
        if "semantic" in result:
            path = overlay.with_name(f"{overlay.stem}_{head}.png")
            image = Image.fromarray(result["semantic"].numpy(), mode="P")
            image.putpalette([part for label in range(256) for part in color_of(label)])
            image.save(path)
            written[head] = {"map": path.name}
    return written


def to_records(prediction: Prediction, image_id: int) -> list[dict[str, Any]]:
    """Plain records of everything that the heads found in one image.

    Detections are COCO results: bbox xywh in the image's pixels, segmentation as RLE. Each
    record names its head and, where it has one, its class. Raises DivergedError for numbers that
    are not finite: they rank at random.
    """
    records = []
    for head, result in prediction.heads.items():
        _check_finite(head, result, image_id)
        classes = prediction.classes[head]
        names = dict(zip(classes.ids, classes.names, strict=True))
        for record in _records_of(result, image_id, classes):
            if "category_id" in record:
                record["category_name"] = names[record["category_id"]]
            records.append({"head": head, **record})
    return records


def _check_finite(head: str, result: dict[str, Any], image_id: int) -> None:
    for name, value in result.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise DivergedError(f"{head}: '{name}' of image {image_id} is not finite")


def _records_of(
    result: dict[str, Any], image_id: int, classes: Classes
) -> Iterable[dict[str, Any]]:
    if "attributes" in result:
        return _attribute_records(result, image_id, classes)
    if "boxes" in result:
        return coco_results(result, image_id, classes)
    record: dict[str, Any] = {"image_id": image_id}
    if "probs" in result:
        scores, labels = result["probs"].sort(descending=True)
        record["category_id"] = classes.ids[int(labels[0])]
        record["score"] = float(scores[0])
        top = zip(labels[:TOP].tolist(), scores[:TOP].tolist(), strict=True)
        record["top"] = {classes.names[label]: score for label, score in top}
    if "box" in result:
        x1, y1, x2, y2 = result["box"].double().tolist()
        record["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    if "semantic" in result:
        labels, counts = result["semantic"].unique(return_counts=True)
        pixels = zip(labels.tolist(), counts.tolist(), strict=True)
        record["pixels"] = {classes.names[label]: count for label, count in pixels}
    if "kl" in result:
        record |= {"kl": float(result["kl"]), "latent_mean": result["latent_mean"].tolist()}
    if len(record) == 1 and not result.keys() & {
        "embedding",
        "reconstruction",
    }:  # a user's own head
        record |= {k: v.tolist() if isinstance(v, Tensor) else v for k, v in result.items()}
    return [record]


def _attribute_records(
    result: dict[str, Any], image_id: int, classes: Classes
) -> list[dict[str, Any]]:
    """The boxes of the head that found them, each with the probability of every attribute."""
    records = []
    for box, score, probs in zip(
        result["boxes"].double(), result["scores"].tolist(), result["attributes"], strict=True
    ):
        x1, y1, x2, y2 = box.tolist()
        answers = dict(zip(classes.names, probs.tolist(), strict=True))
        bbox = [x1, y1, x2 - x1, y2 - y1]
        records.append({"image_id": image_id, "bbox": bbox, "score": score, "attributes": answers})
    return records


def find_images(inputs: Sequence[str | Path]) -> Iterable[tuple[Path, str]]:
    """The images that are meant, each with its name: relative to the folder that was given, as
    in a COCO file. Of those that would have one name, each has its whole path instead."""
    missing = [str(path) for path in map(Path, inputs) if not path.exists()]
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    found = []
    for path in map(Path, inputs):
        inside = sorted(filter(is_image_file, path.rglob("*"))) if path.is_dir() else []
        found += [(file, file.relative_to(path).as_posix()) for file in inside]
        found += [] if path.is_dir() else [(path, path.name)]
    if not found:
        raise DataError(f"no images in {', '.join(map(str, inputs))}")
    files = {(file.resolve(), name) for file, name in found}  # one that is given twice is one
    times = Counter(name for _, name in files)
    return [(file, name if times[name] == 1 else file.as_posix()) for file, name in found]


def _is_inside(file: Path, folder: Path) -> bool:
    return folder.resolve() in file.resolve().parents


def prepare_out(out: Path, inputs: Sequence[str | Path], marker: str) -> None:
    """Make the folder. One that holds anything but earlier results, which the file `marker` tells,
    is refused, so that nothing ever replaces an image of the user's."""
    if any(out.resolve() in (Path(p).resolve(), Path(p).resolve().parent) for p in inputs):
        raise ConfigError(f"--out: {out} is where the images lie; choose another folder")
    try:
        if out.exists() and any(out.iterdir()) and not (out / marker).exists():
            raise ConfigError(f"--out: {out} holds other files; choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be a folder: {error.strerror}") from error


def _overlays(files: Iterable[Path], out: Path) -> dict[Path, Path]:
    """A name for the overlay of each image, which no other has."""
    overlays: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        taken.add(name)
        overlays[file] = out / name
    return overlays
