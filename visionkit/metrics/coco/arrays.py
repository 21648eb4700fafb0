"""Predictions and targets as tensors or arrays, in COCO's form: boxes xywh, masks as run lengths.

Torch is not imported: a tensor is whatever has `detach`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.errors import DataError, DivergedError, listed
from visionkit.metrics.coco.detections import Detections

if TYPE_CHECKING:
    from visionkit.types import Classes

LabelKind = Literal["index", "id"]  # what labels are: places in the class list, or category ids


def as_array(value: Any, dtype: Any = np.float64) -> np.ndarray:
    """A tensor, an array or a list of numbers as a numpy array of that type."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return np.asarray(value).astype(dtype)


def detections_of(
    prediction: Mapping[str, Any], image_id: int, classes: Classes, labels: LabelKind = "index"
) -> Detections:
    """One image's detections with the dataset's ids: boxes xywh, masks RLE, original pixels.

    `prediction` has `boxes` (N, 4) xyxy, `scores` (N,), `labels` (N,) and perhaps `masks`, see
    `run_lengths`. Raises DivergedError for boxes or scores that are not finite, which a model
    computed, and DataError where a part is missing or has another form.
    """
    where = f"image {image_id}"
    if not isinstance(prediction, Mapping):
        found = type(prediction).__name__
        raise DataError(f"{where}: the prediction is a {found}; expected a dict with boxes, ...")
    if missing := {"boxes", "scores", "labels"} - prediction.keys():
        raise DataError(f"{where}: the predictions lack {', '.join(sorted(missing))}")
    boxes = _boxes(prediction, f"{where}: the predicted")
    scores = _column(prediction, "scores", len(boxes), f"{where}: the predicted", np.float64)
    for name, values in (("boxes", boxes), ("scores", scores)):
        if not np.isfinite(values).all():
            raise DivergedError(f"{where}: the predicted {name} are not finite")
    masks = prediction.get("masks")
    return Detections(
        np.full(len(boxes), image_id, np.int64),
        category_ids(prediction, len(boxes), classes, labels, f"{where}: the predicted"),
        scores,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        None if masks is None else run_lengths(masks, len(boxes), f"{where}: the predicted"),
    )


def category_ids(
    values: Mapping[str, Any], count: int, classes: Classes, kind: LabelKind, where: str
) -> np.ndarray:
    """(N,) int64: the category ids of the `labels`."""
    labels, ids = _column(values, "labels", count, where, np.int64), np.array(classes.ids, np.int64)
    if kind == "id":
        if (unknown := np.setdiff1d(labels, ids)).size:
            known = f"the ids are {listed(classes.ids)}"
            raise DataError(f"{where} labels have the id {unknown[0]}, which is unknown; {known}")
        return labels
    wrong = (labels < 0) | (labels >= len(ids))
    if wrong.any():
        hint = ""
        if labels.max() == len(ids) and (labels > 0).all():
            hint = "; do they count from 1? Subtract 1, or begin the classes with '__background__'"
        last = f"0 to {len(ids) - 1}, the places in the list of classes"
        raise DataError(f"{where} labels have {labels[wrong][0]}; expected {last}{hint}")
    return ids[labels]


def objects_of(
    target: Mapping[str, Any], classes: Classes, labels: LabelKind, where: str, *, masks: bool
) -> list[dict[str, Any]]:
    """The annotated objects of a target as COCO annotations without ids.

    `target` has `boxes` (N, 4) xyxy, `labels` (N,), with `masks` also these, and perhaps `iscrowd`
    (N,) and `area` (N,). Raises DataError where a part is missing or has another form.
    """
    needed = {"boxes", "labels", *(["masks"] if masks else [])}
    if missing := needed - target.keys():
        raise DataError(f"{where}: the target lacks {', '.join(sorted(missing))}")
    where = f"{where}: the target's"
    boxes = _boxes(target, where)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not np.isfinite(boxes).all():
        raise DataError(f"{where} boxes are not finite")
    if (sides < 0).any():
        row = int(np.flatnonzero((sides < 0).any(1))[0])
        hint = 'convert them with torchvision.ops.box_convert(boxes, "xywh", "xyxy")'
        raise DataError(
            f"{where} box {row} is {boxes[row].tolist()}; expected x1, y1, x2, y2; {hint}"
        )
    columns: dict[str, list[Any]] = {
        "category_id": category_ids(target, len(boxes), classes, labels, where).tolist(),
        "bbox": np.concatenate([boxes[:, :2], sides], 1).tolist(),
    }
    if target.get("iscrowd") is not None:
        columns["iscrowd"] = _column(target, "iscrowd", len(boxes), where, np.int64).tolist()
    if target.get("area") is not None:
        columns["area"] = _column(target, "area", len(boxes), where, np.float64).tolist()
    if masks:
        columns["segmentation"] = run_lengths(target["masks"], len(boxes), where)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def run_lengths(masks: Any, count: int, where: str) -> list[dict[str, Any]]:
    """N masks as compressed run-length codes: from such codes; or from pixels (N, h, w) or
    (N, 1, h, w), true or false, or numbers of 0 to 1 that are set from 0.5 on."""
    if isinstance(masks, (list, tuple)) and all(isinstance(rle, Mapping) for rle in masks):
        found = [{"size": list(rle["size"]), "counts": _text(rle["counts"])} for rle in masks]
    else:
        found = [
            {"size": list(pixels.shape), "counts": _text(coco_mask.encode(pixels)["counts"])}
            for pixels in _pixels(masks, where)
        ]
    if len(found) != count:
        raise DataError(f"{where} masks are {len(found)}; expected {count}, one for each box")
    return found


def _pixels(masks: Any, where: str) -> Iterator[np.ndarray]:
    """Each mask (h, w) uint8 in the order of columns."""
    wanted = "expected (N, h, w) pixels of 0 and 1, or run-length codes as of pycocotools"
    shape = tuple(getattr(masks, "shape", ()))
    if len(shape) == 4 and shape[1] == 1:  # torchvision's
        masks = masks[:, 0]
    elif len(shape) != 3:
        found = f"the shape {shape}" if shape else f"the type {type(masks).__name__}"
        raise DataError(f"{where} masks have {found}; {wanted}")
    for mask in masks.detach().cpu() if hasattr(masks, "detach") else masks:
        values = as_array(mask, np.float32)
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise DataError(f"{where} masks have values from {low:g} to {high:g}; {wanted}")
        yield np.asfortranarray(values >= 0.5, np.uint8)


def _text(counts: Any) -> Any:
    return counts.decode() if isinstance(counts, bytes) else counts


def _boxes(values: Mapping[str, Any], where: str) -> np.ndarray:
    """(N, 4) float64; none at all may have any shape."""
    boxes = as_array(values["boxes"])
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where} boxes have the shape {boxes.shape}; expected (N, 4)")
    return boxes


def _column(values: Mapping[str, Any], key: str, count: int, where: str, dtype: Any) -> np.ndarray:
    """(N,) numbers of that type."""
    column = as_array(values[key], dtype)
    if column.shape != (count,):
        raise DataError(
            f"{where} {key} have the shape {column.shape}; expected ({count},), one for each box"
        )
    return column
