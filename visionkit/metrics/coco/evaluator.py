"""Average precision in the COCO way (Lin et al. 2014), computed by pycocotools or hotcoco.

Both accept malformed input silently: a NaN box scores as perfect, an annotation with id 0 loses
its match, records with the same id are merged, no detections at all raise. `ground_truth` and
`detections` refuse or fix each of these and leave the metrics of valid input exactly as they are.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.data.coco.ground_truth import GroundTruth, ground_truth_of
from visionkit.data.coco.index import open_index
from visionkit.data.coco.reader import (
    CHUNK,
    elements,
    expect_end,
    json_file,
    json_type,
    paused_collector,
    read_list,
    skip,
)
from visionkit.errors import DataError, DivergedError, listed
from visionkit.metrics.coco.detections import DetectionChecker, Detections, concatenate
from visionkit.metrics.coco.engines import engine_version, match, pick_engine
from visionkit.metrics.coco.ground_truth import IouType, ScoredTruth, log_once, read_truth, scored

if TYPE_CHECKING:
    from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoEvaluator:
    """Collects the detections of a dataset and scores them against its original annotations.

    Detections of classes that the dataset, or one of its images, is not labeled for are ignored.

    Metrics are named `bbox/AP`, `bbox/AP50`, ..., `bbox/AR100`, and `bbox/AP/<class>`; the same
    with `segm/` where masks are scored. `engine` is the name of the engine that computes them.
    """

    def __init__(self, dataset: Any, types: Sequence[IouType] = ("bbox",)) -> None:
        self.dataset = dataset
        self.types = tuple(types)
        self.classes: Classes = dataset.classes["labels"]
        self.engine = pick_engine()
        self.results: list[Detections] = []  # one for each image

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            self.results.append(detections_of(prediction, target["image_id"], self.classes))

    def state(self) -> list[Detections]:
        return self.results

    def merge(self, states: Sequence[list[Detections]]) -> None:
        results = [result for state in states for result in state if len(result)]
        self.results = sorted(results, key=lambda result: int(result.image_ids[0]))

    def compute(self) -> dict[str, float]:
        log_once(f"COCO metrics are computed by {engine_version(self.engine)}", logging.INFO)
        truth = ground_truth_of(self.dataset)
        metrics: dict[str, float] = {}
        with paused_collector():
            for iou_type in self.types:
                found = concatenate(self.results, iou_type)
                checker = DetectionChecker(scored(truth, iou_type))
                checker.add(labeled_only(truth, found, self.classes.ids))
                scores = compute_metrics(checker.truth, checker.detections(), self.engine)
                metrics |= {f"{iou_type}/{name}": value for name, value in scores.items()}
        return metrics

    def result_file(self, iou_type: IouType) -> list[dict[str, Any]]:
        """The records to score, as `COCO.loadRes` reads them from a file.

        Mask records carry no box: with one, pycocotools sorts them into the small, medium and
        large ranges by the area of the box instead of the mask's.
        """
        return concatenate(self.results, iou_type).records()


def detections_of(prediction: dict[str, Any], image_id: int, classes: Classes) -> Detections:
    """One image's detections with the dataset's ids: boxes xywh, masks RLE, original pixels.

    Raises DivergedError for boxes or scores that are not finite, which a model computed, and
    DataError where a part is missing or a mask is not a run-length code.
    """
    if missing := {"boxes", "scores", "labels"} - prediction.keys():
        raise DataError(f"image {image_id}: the predictions lack {', '.join(sorted(missing))}")
    boxes = prediction["boxes"].double().cpu().numpy()
    scores = prediction["scores"].double().cpu().numpy()
    for name, values in (("boxes", boxes), ("scores", scores)):
        if not np.isfinite(values).all():
            raise DivergedError(f"image {image_id}: the predicted {name} are not finite")
    masks = prediction.get("masks")
    if masks is not None and not all(isinstance(rle, dict) for rle in masks):
        raise DataError(
            f"image {image_id}: predicted 'masks' must be a list of run-length codes, as of "
            f"pycocotools.mask.encode, not a {type(masks).__name__}"
        )
    return Detections(
        np.full(len(boxes), image_id, np.int64),
        np.array(classes.ids, np.int64)[prediction["labels"].cpu().numpy()],
        scores,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        None
        if masks is None
        else [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in masks],
    )


def evaluate_coco(
    truth: Mapping[str, Any] | ScoredTruth,
    results: Sequence[dict[str, Any]] | Detections,
    iou_type: IouType,
    engine: str | None = None,
) -> dict[str, float]:
    """The twelve COCO metrics and `AP/<class>`, equal to pycocotools' on valid input.

    `truth` is a COCO dict, or, to score several results against it, what
    `read_truth(truth, iou_type).rasterized()` returned. `results` are COCO result records. NaN
    where there is no ground truth to score. Raises DataError, naming the records, for values that
    must not be scored. `engine` is "hotcoco" or "pycocotools"; by default the first, if it is
    installed.
    """
    engine = pick_engine(engine)
    with paused_collector():
        opened = truth if isinstance(truth, ScoredTruth) else read_truth(truth, iou_type)
        if opened.iou_type != iou_type:
            raise DataError(f"the truth was read for {opened.iou_type}, not for {iou_type}")
        checker = DetectionChecker(opened)
        checker.add(results)
        return compute_metrics(opened, checker.detections(), engine)


def evaluate_files(
    truth: str | Path, results: str | Path, iou_type: IouType, engine: str | None = None
) -> dict[str, float]:
    """The twelve COCO metrics and `AP/<class>` of a result file.

    `truth` is a COCO annotation file, `results` a file in COCO's result format. Raises DataError,
    listing everything that is wrong with one of the files.
    """
    engine = pick_engine(engine)
    log_once(f"COCO metrics are computed by {engine_version(engine)}", logging.INFO)
    index = open_index(truth)
    objects = read_truth(index, iou_type)
    if objects.iscrowd.all():
        what = "object with a segmentation" if iou_type == "segm" else "object"
        log.warning("annotation file %s has no %s to score: metrics are undefined", truth, what)
    names = dict(zip(index.images.ids.tolist(), index.images.names.texts(), strict=True))
    checker = DetectionChecker(objects, source=f"{results}: ")

    def add(records: list[Any]) -> None:
        _check_images(records, names, results)
        first = records[0] if records and not checker.seen else None
        if iou_type == "segm" and isinstance(first, dict) and first.get("bbox"):
            log.info(
                "%s has boxes too: they are not used, and APs, APm, APl, ARs, ARm, ARl use the "
                "area of the masks; COCO.loadRes would use that of the boxes",
                results,
            )
        checker.add(records)

    read_results(results, add)
    return compute_metrics(objects, checker.detections(), engine)


def compute_metrics(truth: ScoredTruth, found: Detections, engine: str) -> dict[str, float]:
    """The metrics of checked detections."""
    precision, recall = match(truth, found, engine)
    by_area = [precision[..., area, 2] for area in range(4)]
    stats = [by_area[0], by_area[0][0], by_area[0][5], *by_area[1:]]  # IoU 0.50 and 0.75
    stats += [recall[..., 0, most] for most in range(3)]
    stats += [recall[..., area, 2] for area in (1, 2, 3)]
    metrics = dict(zip(STATS, map(_mean, stats), strict=True))
    for row, name in enumerate(truth.names):
        metrics[f"AP/{name}"] = _mean(by_area[0][:, :, row])
    _warn_undefined(metrics, truth.iou_type)
    return metrics


def labeled_only(truth: GroundTruth, results: Detections, own_ids: Sequence[int]) -> Detections:
    """The results that can be right or wrong.

    Drops those of the model's own classes (`own_ids`) that are not categories of the truth, and,
    in an image with `negatives`, those of classes that are neither in that list nor annotated in
    the image. Other unknown classes stay, as errors.
    """
    kept = ~np.isin(results.category_ids, np.setdiff1d(own_ids, truth.category_ids))
    if truth.negatives:
        labeled = {image: set(ids) for image, ids in truth.negatives.items()}
        images, categories = truth.image_ids[truth.image], truth.category_ids[truth.category]
        for image, category in zip(images.tolist(), categories.tolist(), strict=True):
            if image in labeled:
                labeled[image].add(category)
        pairs = zip(results.image_ids.tolist(), results.category_ids.tolist(), strict=True)
        is_labeled = [category in labeled.get(image, (category,)) for image, category in pairs]
        kept &= np.array(is_labeled, bool)
    return results[kept]


def read_results(path: str | Path, add: Callable[[list[Any]], None], chunk: int = CHUNK) -> None:
    """Pass the records of a JSON list to `add`, about `chunk` bytes at once."""

    def take(text: bytes) -> int | None:
        records, end = elements(text)
        add(records)
        return end

    with json_file(path, "result file") as data:
        start = skip(data)
        if data[start : start + 1] != b"[":
            raise DataError(
                f"result file {path} is {json_type(json.loads(data[:]))}, not a list of records "
                '{"image_id", "category_id", "bbox" or "segmentation", "score"}'
            )
        expect_end(data, read_list(data, start, take, chunk))


def _check_images(records: list[Any], names: dict[int, str], path: str | Path) -> None:
    """Records that name their image must not be scored as those of another one."""
    for record in records:
        if not isinstance(record, dict) or "file_name" not in record:
            continue
        image_id, name = record.get("image_id"), str(record["file_name"])
        known = names.get(image_id) if isinstance(image_id, int) else None
        if known and PurePath(name).name != PurePath(known).name:
            raise DataError(
                f"{path}: image_id {image_id} is the image {name!r} there, and {known!r} in the "
                "annotations. `visionkit predict` counts images from 1; `visionkit eval RUN` "
                "writes files to score, with the ids of its data, to RUN/eval"
            )


def _warn_undefined(metrics: dict[str, float], iou_type: IouType) -> None:
    """Say why a metric is NaN: pycocotools would only print -1."""
    missing = [name for name, value in metrics.items() if math.isnan(value)]
    if "AP" in missing:
        log_once(f"COCO's {iou_type} metrics are undefined: there is no object to score")
    elif missing:
        log_once(
            f"COCO's {iou_type} metrics {listed(missing, 20)} are undefined: there is no object "
            "of the class, or of the size (small, medium, large)"
        )


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined; NaN for nothing."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
