"""Average precision in the COCO way (Lin et al. 2014), computed by pycocotools or hotcoco.

Both accept malformed input silently: a NaN box scores as perfect, an annotation with id 0 loses
its match, records with the same id are merged, no detections at all raise. `ground_truth` and
`detections` refuse or fix each of these and leave the metrics of valid input exactly as they are.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.data.coco.ground_truth import ground_truth_of
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
from visionkit.metrics.coco.names import NameCheck
from visionkit.metrics.coco.sanity import judge
from visionkit.metrics.report import Coverage

if TYPE_CHECKING:
    from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MOST = 100  # detections of a category in an image that COCO scores


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
        self.rule = ""  # that applied, from `compute`
        self.covered: dict[str, Coverage] = {}  # the same

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            self.results.append(detections_of(prediction, target["image_id"], self.classes))

    def state(self) -> list[Detections]:
        return self.results

    def merge(self, states: Sequence[list[Detections]]) -> None:
        results = [result for state in states for result in state if len(result)]
        self.results = sorted(results, key=lambda result: int(result.image_ids[0]))

    def coverage(self) -> dict[str, Coverage]:
        """Over how many classes each AP of the last `compute` is."""
        return self.covered

    def compute(self) -> dict[str, float]:
        log_once(f"COCO metrics are computed by {engine_version(self.engine)}", logging.INFO)
        truth = ground_truth_of(self.dataset)
        metrics: dict[str, float] = {}
        with paused_collector():
            for iou_type in self.types:
                found = concatenate(self.results, iou_type)
                checker = DetectionChecker(scored(truth, iou_type))
                self.covered[f"{iou_type}/AP"] = class_coverage(checker.truth, self.classes.names)
                self.rule = scoring_rule(checker.truth)
                # Of the model's own classes that are not categories of the truth: never errors.
                others = np.setdiff1d(self.classes.ids, truth.category_ids)
                checker.add(found[~np.isin(found.category_ids, others)])
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
    *,
    max_detections: int = MOST,
    trust: bool = False,
) -> dict[str, float]:
    """The twelve COCO metrics and `AP/<class>`, equal to pycocotools' on valid input.

    `truth` is a COCO dict, or, to score several results against it, what
    `read_truth(truth, iou_type).rasterized()` returned. `results` are COCO result records. NaN
    where there is no ground truth to score. Raises DataError, naming the records, for values that
    must not be scored, and for results that look like something else (`trust` scores them all the
    same, see `visionkit.metrics.coco.sanity`). `engine` is "hotcoco" or "pycocotools"; by default
    the first, if it is installed. `max_detections` of a category are scored in an image.
    """
    engine = pick_engine(engine)
    with paused_collector():
        opened = truth
        if not isinstance(opened, ScoredTruth):
            opened = read_truth(opened, iou_type, trust=trust)
        if opened.iou_type != iou_type:
            raise DataError(f"the truth was read for {opened.iou_type}, not for {iou_type}")
        checker = DetectionChecker(opened, trust=trust)
        checker.add(results)
        found = checker.detections()
        judge("results", opened, found, trust=trust)
        return compute_metrics(opened, found, engine, max_detections)


def evaluate_files(
    truth: str | Path,
    results: str | Path,
    iou_type: IouType,
    engine: str | None = None,
    *,
    max_detections: int = MOST,
    trust: bool = False,
    ignore_categories: Collection[str] = (),
) -> dict[str, float]:
    """The twelve COCO metrics and `AP/<class>` of a result file.

    `truth` is a COCO annotation file, `results` a file in COCO's result format. The other arguments
    are those of `evaluate_coco` and `Coco`. Raises DataError, listing everything that is wrong with
    one of the files.
    """
    options: Any = {"max_detections": max_detections, "trust": trust}
    options["ignore_categories"] = ignore_categories
    return score_files(truth, results, iou_type, engine, **options)[0]


def score_files(
    truth: str | Path,
    results: str | Path,
    iou_type: IouType,
    engine: str | None = None,
    *,
    max_detections: int = MOST,
    trust: bool = False,
    ignore_categories: Collection[str] = (),
) -> tuple[dict[str, float], dict[str, Any]]:
    """`evaluate_files`, and facts: `coco_engine`, the engine with its version, `scoring`, the rule
    that applied, and `classes`, a `Coverage` for each metric that is a mean over classes."""
    engine = pick_engine(engine)
    log_once(f"COCO metrics are computed by {engine_version(engine)}", logging.INFO)
    index = open_index(truth)
    objects = read_truth(index, iou_type, trust=trust, ignore_categories=ignore_categories)
    if objects.iscrowd.all():
        what = "object with a segmentation" if iou_type == "segm" else "object"
        log.warning("annotation file %s has no %s to score: metrics are undefined", truth, what)
    checker = DetectionChecker(objects, source=f"{results}: ", trust=trust)
    names = NameCheck(index, objects)

    def add(records: list[Any]) -> None:
        first = records[0] if records and not checker.seen else None
        if iou_type == "segm" and isinstance(first, dict) and first.get("bbox"):
            log.info(
                "%s has boxes too: they are not used, and APs, APm, APl, ARs, ARm, ARl use the "
                "area of the masks; COCO.loadRes would use that of the boxes",
                results,
            )
        names.add(records)
        checker.add(records)

    read_results(results, add)
    found = checker.detections()
    judge(str(results), objects, found, names.doubts(), trust=trust)
    metrics = compute_metrics(objects, found, engine, max_detections)
    return metrics, {
        "coco_engine": engine_version(engine),
        "scoring": scoring_rule(objects, max_detections, trust=trust),
        "classes": {"AP": class_coverage(objects)},
    }


def scoring_rule(truth: ScoredTruth, max_detections: int = MOST, *, trust: bool = False) -> str:
    """How detections are scored, in words."""
    in_part = "of the classes labeled in an image (LVIS), " if truth.in_part else ""
    lost = "count as missed" if trust else "are ignored"
    return (
        f"COCO: at most {max_detections} detections of a class in an image, {in_part}and objects "
        f"that nothing can match {lost}"
    )


def class_coverage(truth: ScoredTruth, names: Sequence[str] = ()) -> Coverage:
    """Which classes of the ground truth, and of these `names`, have an object to score."""
    present = {truth.names[row] for row in np.unique(truth.category[~truth.iscrowd]).tolist()}
    names = list(dict.fromkeys([*truth.names, *names]))
    return Coverage.of(names, [name in present for name in names])


def compute_metrics(
    truth: ScoredTruth, found: Detections, engine: str, max_detections: int = MOST
) -> dict[str, float]:
    """The metrics of checked detections; those of classes not labeled in an image do not count."""
    _warn_crowded(truth, max_detections)
    precision, recall = match(truth, labeled_only(truth, found), engine, max_detections)
    by_area = [precision[..., area, 2] for area in range(4)]
    stats = [by_area[0], by_area[0][0], by_area[0][5], *by_area[1:]]  # IoU 0.50 and 0.75
    stats += [recall[..., 0, most] for most in range(3)]
    stats += [recall[..., area, 2] for area in (1, 2, 3)]
    names = [name.replace("AR100", f"AR{max_detections}") for name in STATS]
    metrics = dict(zip(names, map(_mean, stats), strict=True))
    for row, name in enumerate(truth.names):
        metrics[f"AP/{name}"] = _mean(by_area[0][:, :, row])
    _warn_undefined(metrics, truth.iou_type)
    return metrics


def labeled_only(truth: ScoredTruth, results: Detections) -> Detections:
    """Without those of classes that are not labeled in their image."""
    if not truth.labeled:
        return results
    pairs = zip(results.image_ids.tolist(), results.category_ids.tolist(), strict=True)
    kept = [category in truth.labeled.get(image, (category,)) for image, category in pairs]
    return results[np.array(kept, bool)]


def _warn_crowded(truth: ScoredTruth, most: int) -> None:
    """Images with more objects of a class than detections of it are scored."""
    single = ~truth.iscrowd
    keys = truth.image[single] * len(truth.names) + truth.category[single]
    groups, counts = np.unique(keys, return_counts=True)
    if not (counts > most).any():
        return
    image, category = divmod(int(groups[counts.argmax()]), len(truth.names))
    log_once(
        f"{np.count_nonzero(counts > most)} times an image has more than {most} objects of one "
        f"class (image_id {truth.image_ids[image]}: {counts.max()} {truth.names[category]!r}), but "
        f"at most {most} detections of a class in an image are scored, so that not even perfect "
        f"results reach AP 1: score a result file with `visionkit eval --gt GT.json --pred "
        f"PRED.json --max-detections {counts.max()}`"
    )


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
