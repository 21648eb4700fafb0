"""Predictions as files: one JSON list of records for all pictures, and an overlay of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from visionkit import rundir
from visionkit.data.images import is_image_file
from visionkit.errors import ConfigError, DataError
from visionkit.metrics.coco import coco_results
from visionkit.predict import Prediction, Predictor
from visionkit.types import Classes

log = logging.getLogger("visionkit")
TOP = 5


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, *, threshold: float = 0.5
) -> int:
    """Predict pictures and folders of pictures; returns how many could not be read.

    Writes OUT/predictions.json with every prediction and, for each picture, an overlay of those
    with a score of at least `threshold`. A broken picture is reported and left out.
    """
    out = Path(out)
    files = {file: name for file, name in _find(inputs) if not _is_inside(file, out)}
    _prepare(out, inputs)
    records, taken, broken = [], set(), 0
    for image_id, (file, name) in enumerate(files.items(), start=1):
        try:
            prediction = predictor.predict(file)
        except DataError as error:
            log.error("skipped: %s", error)
            broken += 1
            continue
        for record in to_records(prediction, image_id):
            records.append({"file_name": name, **record})
        _save(prediction.draw(threshold=threshold), out / _free_name(file, taken))
    rundir.write_text(out / "predictions.json", rundir.to_json(records) + "\n")
    if broken == len(files):
        raise DataError(f"predict: none of the {len(files)} pictures could be read")
    return broken


def to_records(prediction: Prediction, image_id: int) -> list[dict[str, Any]]:
    """Plain records of everything that the heads found in one picture.

    Detections are COCO results: bbox xywh in the picture's pixels, segmentation as RLE. Each
    record names its head and, where it has one, its class.
    """
    records = []
    for head, result in prediction.heads.items():
        classes = prediction.classes[head]
        names = dict(zip(classes.ids, classes.names, strict=True))
        for record in _records_of(result, image_id, classes):
            if "category_id" in record:
                record["category_name"] = names[record["category_id"]]
            records.append({"head": head, **record})
    return records


def _records_of(
    result: dict[str, Any], image_id: int, classes: Classes
) -> Iterable[dict[str, Any]]:
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
    if len(record) == 1:  # a head of the user's own
        record |= {k: v.tolist() if isinstance(v, Tensor) else v for k, v in result.items()}
    return [record]


def _find(inputs: Sequence[str | Path]) -> Iterable[tuple[Path, str]]:
    """The pictures that are meant, each with its name: relative to the folder that was given, as
    in a COCO file."""
    missing = [str(path) for path in map(Path, inputs) if not path.exists()]
    if missing:
        raise DataError(f"predict: no such file or folder: {', '.join(missing)}")
    found = []
    for path in map(Path, inputs):
        inside = sorted(filter(is_image_file, path.rglob("*"))) if path.is_dir() else []
        found += [(file, file.relative_to(path).as_posix()) for file in inside]
        found += [] if path.is_dir() else [(path, path.name)]
    if not found:
        raise DataError(f"predict: no pictures in {', '.join(map(str, inputs))}")
    return found


def _is_inside(file: Path, folder: Path) -> bool:
    return folder.resolve() in file.resolve().parents


def _prepare(out: Path, inputs: Sequence[str | Path]) -> None:
    """Make the folder. One that holds anything but earlier predictions is refused, so that no
    overlay ever replaces a picture of the user's."""
    if any(out.resolve() in (Path(p).resolve(), Path(p).resolve().parent) for p in inputs):
        raise ConfigError(f"--out: {out} is where the pictures lie; choose another folder")
    try:
        if out.exists() and any(out.iterdir()) and not (out / "predictions.json").exists():
            raise ConfigError(f"--out: {out} holds other files; choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be a folder: {error.strerror}") from error


def _free_name(file: Path, taken: set[str]) -> str:
    name, number = f"{file.stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{file.stem}_{number}.jpg"
    taken.add(name)
    return name


def _save(picture: Image.Image, path: Path) -> None:
    picture.convert("RGB").save(path, quality=92)
