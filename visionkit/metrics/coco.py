"""Average precision in the COCO way (Lin et al. 2014), computed by pycocotools behind one door.

pycocotools takes malformed input without a word: a NaN box scores as perfect, an annotation with
id 0 loses its match, records with the same id are merged, no detections at all raise. The door
refuses or repairs each of these and leaves the numbers of valid input exactly as they are.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area as rle_area
from pycocotools.mask import toBbox as rle_to_box

from visionkit.errors import DataError
from visionkit.metrics.coco_partial import labelled_only, with_incomplete_as_crowds
from visionkit.types import Batch, Classes

IouType = Literal["bbox", "segm"]
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoEvaluator:
    """Collects the detections of a data set and scores them against its original annotations.

    Detections of classes that the data set, or a picture of it, does not label are left out.

    Metrics are named `bbox/AP`, `bbox/AP50`, ..., `bbox/AR100`, and `bbox/AP/<class>`; the same
    with `segm/` where masks are scored.
    """

    def __init__(self, dataset: Any, types: Sequence[IouType] = ("bbox",)) -> None:
        self.dataset = dataset
        self.types = tuple(types)
        self.classes: Classes = dataset.vocabularies["labels"]
        self.results: list[dict[str, Any]] = []

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            self.results += coco_results(prediction, target["image_id"], self.classes)

    def state(self) -> list[dict[str, Any]]:
        return self.results

    def merge(self, states: Sequence[list[dict[str, Any]]]) -> None:
        self.results = [result for state in states for result in state]

    def compute(self) -> dict[str, float]:
        truth = self.dataset.coco_truth()
        metrics = {}
        for iou_type in self.types:
            results = labelled_only(truth, self.result_file(iou_type), self.classes.ids)
            scores = evaluate_coco(with_incomplete_as_crowds(truth), results, iou_type)
            metrics |= {f"{iou_type}/{name}": value for name, value in scores.items()}
        return metrics

    def result_file(self, iou_type: IouType) -> list[dict[str, Any]]:
        """The records to score, as `COCO.loadRes` reads them from a file.

        Mask records carry no box: with one, pycocotools sorts them into the small, medium and
        large ranges by the area of the box instead of the mask's.
        """
        leave_out = "bbox" if iou_type == "segm" else "segmentation"
        return [{k: v for k, v in record.items() if k != leave_out} for record in self.results]


def coco_results(
    prediction: dict[str, Any], image_id: int, classes: Classes
) -> list[dict[str, Any]]:
    """One image's detections as COCO result records: box xywh and mask RLE in original pixels."""
    x1, y1, x2, y2 = prediction["boxes"].double().cpu().unbind(1)
    boxes = np.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
    labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
    records: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": classes.ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    for record, rle in zip(records, prediction.get("masks", ()), strict=False):
        record["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    return records


def evaluate_coco(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType
) -> dict[str, float]:
    """The twelve COCO figures and `AP/<class>`, equal to pycocotools' on valid input.

    `truth` is a COCO dict, `results` are COCO result records. NaN where there is no ground truth
    to score. Raises DataError, naming the records, for values that must not be scored.
    """
    check_results(truth, results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _index(_truth_records(truth, iou_type)),
            _index({**truth, "annotations": _detection_records(results, iou_type)}),
            iou_type,
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(
        zip(STATS, (_nan_if_undefined(value) for value in evaluation.stats), strict=True)
    )
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area range, detections)
    for k, category_id in enumerate(evaluation.params.catIds):
        scored = precision[:, :, k, 0, -1]
        scored = scored[scored > -1]
        metrics[f"AP/{names[category_id]}"] = float(scored.mean()) if scored.size else math.nan
    return metrics


def check_results(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType
) -> None:
    """Raise DataError listing results that pycocotools would score wrongly instead of refusing."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    problems = []
    for index, record in enumerate(results):
        problem = _problem(record, sizes, categories, iou_type)
        if problem:
            where = f"result {index} (image_id {record.get('image_id')!r})"
            problems.append(f"{where}: {problem}")
    if problems:
        shown = "\n  ".join(problems[:20])
        raise DataError(f"{len(problems)} detections cannot be scored:\n  {shown}")


def _problem(record: dict[str, Any], sizes: dict, categories: set, iou_type: str) -> str | None:
    key = "bbox" if iou_type == "bbox" else "segmentation"
    missing = [k for k in ("image_id", "category_id", "score", key) if k not in record]
    if missing:
        return f"misses the key {missing[0]!r}"
    if record["image_id"] not in sizes:
        return "no such image in the annotations"
    if record["category_id"] not in categories:
        return f"category_id {record['category_id']!r} is not in the annotations"
    score = record["score"]
    if not _is_number(score) or not 0 <= score <= 1:
        return f"score {score!r} is not a number from 0 to 1"
    if iou_type == "segm":
        size = list(record["segmentation"]["size"])
        expected = sizes[record["image_id"]]
        return None if size == expected else f"mask of size {size} on an image of {expected} (h, w)"
    box = record["bbox"]
    if len(box) != 4 or not all(map(_is_number, box)) or box[2] < 0 or box[3] < 0:
        return f"bbox {box!r} is not [x, y, width, height] with finite numbers"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _nan_if_undefined(value: float) -> float:
    return math.nan if value == -1 else float(value)


def _truth_records(truth: dict[str, Any], iou_type: IouType) -> dict[str, Any]:
    """Annotations numbered from 1; for masks, an object without one becomes a region to ignore."""
    annotations = []
    for number, annotation in enumerate(truth["annotations"], start=1):
        record = {**annotation, "id": number}
        if iou_type == "segm" and not record.get("segmentation"):
            x, y, w, h = record["bbox"]
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            record["iscrowd"] = 1
        annotations.append(record)
    return {**truth, "annotations": annotations}


def _detection_records(
    results: Sequence[dict[str, Any]], iou_type: IouType
) -> list[dict[str, Any]]:
    """Results with the fields that `COCO.loadRes` would add."""
    records = []
    for number, result in enumerate(results, start=1):
        record = {**result, "id": number, "iscrowd": 0}
        if iou_type == "segm":
            record["area"] = float(rle_area(record["segmentation"]))
            record["bbox"] = rle_to_box(record["segmentation"]).tolist()
        else:
            record["area"] = record["bbox"][2] * record["bbox"][3]
        records.append(record)
    return records


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
