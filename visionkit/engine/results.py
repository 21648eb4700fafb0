"""Write the predictions for many images: a JSON list of records, overlays, semantic maps and
embeddings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionkit.engine.inputs import find_images
from visionkit.engine.predict import BATCH, Overrides, loaded, predict_each
from visionkit.engine.prediction import Prediction, to_records
from visionkit.engine.predictor import BasePredictor
from visionkit.errors import ConfigError, DataError, check_counts, plural
from visionkit.ops.views import Tta
from visionkit.runs.files import json_list, remove_strays, replacing, write_text
from visionkit.types import as_numpy
from visionkit.visualization.draw import color_of, save_image

log = logging.getLogger("visionkit")
PREDICTIONS, EMBEDDINGS = "predictions.json", "embeddings.npz"
UNFINISHED = ".{}.unfinished"  # a file in the folder of results that are not complete yet


@dataclass
class Counts:
    """How much was predicted: `objects` are those drawn, None if no head finds objects; `highest`
    is the highest score of an object, drawn or not, None without any."""

    images: int = 0
    unreadable: int = 0
    objects: int | None = None
    highest: float | None = None

    def add(self, prediction: Prediction) -> None:
        self.images += 1
        shown = prediction.above().heads
        for head, result in prediction.heads.items():
            if "boxes" in result and "attributes" not in result:  # those describe others' boxes
                self.objects = (self.objects or 0) + len(shown[head]["boxes"])
                if len(result["scores"]):
                    self.highest = max(self.highest or 0.0, float(result["scores"].max()))

    def __str__(self) -> str:
        """`60 images, 0 objects; the highest score is 0.04`."""
        text = plural(self.images, "image")
        if self.objects is None:
            return text
        text = f"{text}, {plural(self.objects, 'object')}"
        if self.objects or self.highest is None:
            return text
        return f"{text}; the highest score is {self.highest:.2g}"


def predict_files(
    model: str | Path | BasePredictor,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    overrides: Overrides = (),
    *,
    threshold: float | str | None = None,
    batch_size: int = BATCH,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> int:
    """Predict images and folders of images and write the results to the folder `out`, as `visionkit
    predict` does; returns how many images could not be read.

    `model` is a path as for `load`, or what that returned; `overrides`, `heads`, `allow_plugins`,
    `tta`, `tiles` and `overlap` as for `load`. `batch_size` images of equal size go through the
    model together.

    Writes OUT/predictions.json with every prediction; for each image an overlay of those with a
    score of at least `threshold` (see `Predictor.use_threshold`), and its semantic maps, in the
    subfolder that it has; OUT/embeddings.npz; images of the latent space of a VAE. An unreadable
    image is reported and skipped. Only the embeddings are kept in memory.

    Raises ConfigError if `out` has other content than earlier results, DataError if an input does
    not exist or no image can be read, DivergedError for numbers that are not finite.
    """
    check_counts(batch_size=batch_size)
    views = tta, tiles, overlap
    predictor = loaded(model, overrides, heads=heads, allow_plugins=allow_plugins, views=views)
    return write_predictions(predictor, inputs, out, threshold, batch_size).unreadable


def write_predictions(
    predictor: BasePredictor,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    threshold: float | str | None = None,
    batch_size: int = BATCH,
) -> Counts:
    """As `predict_files`, of a loaded model; returns the counts."""
    check_counts(batch_size=batch_size)
    _use_threshold(predictor, threshold)
    if predictor.views is not None:
        log.info("each image is predicted from several views: %s", predictor.views)
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

    counts, embeddings = Counts(), EmbeddingWriter()
    with (
        results_folder(out, inputs, PREDICTIONS),
        json_list(out / PREDICTIONS) as add,
        closing(predict_each(predictor, [*files], drawn, batch_size)) as results,
    ):
        for image_id, (file, result) in enumerate(results, start=1):
            if isinstance(result, DataError):
                log.error("skipped: %s", result)
                counts.unreadable += 1
                continue
            prediction, maps = result
            counts.add(prediction)
            extra = maps | embeddings.add(files[file], prediction)
            names = {"file_name": files[file], "overlay": _below(out, overlays[file])}
            for record in to_records(prediction, image_id):
                add({**names, **record, **extra.get(record["head"], {})})
    embeddings.save(out)
    predictor.write_latent_images(out)
    if counts.unreadable == len(files):
        raise DataError(f"predict: none of the {len(files)} images could be read")
    return counts


def _use_threshold(predictor: BasePredictor, threshold: float | str | None) -> None:
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
                self.rows.setdefault(head, []).append(as_numpy(result["embedding"]))
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
            image = Image.fromarray(as_numpy(result["semantic"]), mode="P")
            image.putpalette([part for label in range(256) for part in color_of(label)])
            save_image(image, path)
            written[head] = {"map": _below(out, path)}
    return written
