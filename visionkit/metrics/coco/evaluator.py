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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionkit.data.coco.index import CocoIndex, open_index
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
from visionkit.errors import ArgumentError, DataError, install_hint, listed, plural
from visionkit.metrics import comparison
from visionkit.metrics.coco.arrays import LabelKind, detections_of
from visionkit.metrics.coco.detections import DetectionChecker, Detections, concatenate
from visionkit.metrics.coco.engines import engine_version, match, pick_engine
from visionkit.metrics.coco.ground_truth import IouType, ScoredTruth, log_once, read_truth
from visionkit.metrics.coco.matches import match_objects
from visionkit.metrics.coco.names import NameCheck
from visionkit.metrics.coco.report import DetectionReport, resampled, subject_of
from visionkit.metrics.coco.sanity import judge
from visionkit.metrics.coco.truths import BACKGROUND, DatasetTruth, ImageResult, truth_of
from visionkit.metrics.comparison import Subject
from visionkit.metrics.intervals import REPLICATES
from visionkit.metrics.parts import Part, ReportContext, Text
from visionkit.metrics.report import Coverage
from visionkit.metrics.thresholds import Thresholds, detection_curves

if TYPE_CHECKING:
    from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MOST = 100  # detections of a category in an image that COCO scores


class Scored(NamedTuple):
    """What was scored, and the metrics."""

    truth: ScoredTruth
    detections: Detections
    metrics: dict[str, float]


class CocoEvaluator:
    """Collects detections and scores them in the COCO way, as pycocotools does.

    In any loop: `update(predictions, targets)` after each batch, `compute()` at the end. `truth` is

    - a list of class names: then the targets of `update` have the ground truth;
    - a COCO annotation file (path) or dict: then targets say which image it is;
    - a dataset with `ground_truth()`, as the heads of visionkit use it.

    types: what is scored, `"bbox"`, `"segm"` or both.
    classes: with a file, the names of the classes in the order of the labels, by default all of the
        file in its order. Only these are scored.
    labels: `"index"`, labels are places in the list of classes, from 0; or `"id"`, they are the
        category ids of the file, as those of torchvision's published models are.

    A class `__background__`, the first of torchvision's lists, is never an object. Detections of
    classes that the ground truth, or one of its images, is not labeled for are ignored. `engine` is
    the name of the engine that computes the metrics.

    Raises ArgumentError for a wrong argument, DataError for a file that cannot be scored against.
    """

    def __init__(
        self,
        truth: Any,
        types: IouType | Sequence[IouType] = ("bbox",),
        *,
        classes: Sequence[str] | None = None,
        labels: LabelKind = "index",
    ) -> None:
        self.types: tuple[IouType, ...] = tuple([types] if isinstance(types, str) else types)
        if not self.types or {*self.types} - {"bbox", "segm"}:
            raise ArgumentError(f"types: got {types!r}; expected 'bbox', 'segm' or a list of both")
        self.truth, self.labels = truth_of(truth, self.types, classes, labels), labels
        self.classes: Classes = self.truth.classes
        self.engine = pick_engine()
        self.images: list[ImageResult] = []
        self.seen: set[int] = set()  # image ids
        self.rule = ""  # that applied, from `compute`
        self.covered: dict[str, Coverage] = {}  # the same
        self.scored: dict[IouType, Scored] = {}  # the same

    def __repr__(self) -> str:
        kinds = plural(len(self.classes.names), "class", "classes")
        images = plural(len(self.images), "image")
        return f"CocoEvaluator({', '.join(self.types)}; {kinds}, {images} so far)"

    def update(
        self, predictions: Sequence[Mapping[str, Any]], batch: Batch | Sequence[Any]
    ) -> None:
        """Take in the predictions for a batch of images.

        predictions: for each image a dict of `boxes` (N, 4) xyxy, `scores` (N,) from 0 to 1,
            `labels` (N,), and with `segm` also `masks`: (N, h, w) pixels, (N, 1, h, w)
            probabilities, or a list of COCO's run-length codes. Tensors on any device, or arrays.
        batch: for each image its target: a dict with `image_id`, and, if the targets are the ground
            truth, `boxes`, `labels`, perhaps `iscrowd`, `area` (pixels), and with `segm` `masks`.
            Without any `image_id` images are numbered. With a file, image ids alone will do. Or a
            `visionkit.Batch`.

        Boxes and masks are in pixels of the same image: the original one, if sizes (`APs`, `APm`,
        `APl`) are to be comparable with published numbers.

        Raises DataError for what has another form and for an image that was given before,
        DivergedError for boxes and scores that are not finite.
        """
        targets = batch.targets if hasattr(batch, "targets") else batch
        if len(predictions) != len(targets):
            counts = f"{plural(len(predictions), 'prediction')}, {plural(len(targets), 'target')}"
            raise DataError(f"CocoEvaluator.update: got {counts}; expected one for each image")
        for prediction, target in zip(predictions, targets, strict=True):
            image = self.truth.take(target, self.images)
            if image.image_id in self.seen and not isinstance(self.truth, DatasetTruth):
                hint = "call reset() before another validation"
                raise DataError(f"image_id {image.image_id} was given before; {hint}")
            found = detections_of(prediction, image.image_id, self.classes, self.labels)
            self.seen.add(image.image_id)
            self.images.append(image._replace(detections=found))

    def reset(self) -> None:
        """Forget all images, for another validation."""
        self.images, self.seen = [], set()

    def state(self) -> list[ImageResult]:
        """What other processes need for `merge`: picklable."""
        return self.images

    def merge(self, states: Sequence[list[ImageResult]]) -> None:
        """Replace the own images by those of all ranks, for example as
        `torch.distributed.all_gather_object` collects their `state()`. An image that multiple ranks
        have, as distributed samplers pad, counts once."""
        self.images = self.truth.merged(states)
        self.seen = {one.image_id for one in self.images}

    def coverage(self) -> dict[str, Coverage]:
        """Over how many classes each AP of the last `compute` is."""
        return self.covered

    def compute(self) -> dict[str, float]:
        """The twelve metrics of COCO by name, `bbox/AP`, `bbox/AP50`, ..., `bbox/AR100`, and
        `bbox/AP/<class>`; the same with `segm/` where masks are scored. 0 to 1; NaN where there is
        no ground truth. Raises DataError for detections that cannot be scored."""
        log_once(f"COCO metrics are computed by {engine_version(self.engine)}", logging.INFO)
        metrics: dict[str, float] = {}
        with paused_collector():
            for iou_type in self.types:
                found = concatenate([one.detections for one in self.images], iou_type)
                checker = DetectionChecker(self.truth.scored(iou_type, self.images))
                names = [name for name in self.classes.names if name != BACKGROUND]
                self.covered[f"{iou_type}/AP"] = class_coverage(checker.truth, names)
                self.rule = scoring_rule(checker.truth)
                # Of the model's own classes that are not categories of the truth: never errors.
                others = np.setdiff1d(self.classes.ids, checker.truth.category_ids)
                checker.add(found[~np.isin(found.category_ids, others)])
                detections = labeled_only(checker.truth, checker.detections())
                scores = compute_metrics(checker.truth, detections, self.engine)
                self.scored[iou_type] = Scored(checker.truth, detections, scores)
                metrics |= {f"{iou_type}/{name}": value for name, value in scores.items()}
        return metrics

    def thresholds(self) -> Thresholds | None:
        """The scores of the best F1 of the last `compute`: of the masks, if any are scored."""
        truth, found, _ = self.scored[self.types[-1]]
        return Thresholds.of(*detection_curves(match_objects(truth, found, self.engine, ious=1)))

    def image_ids(self) -> np.ndarray:
        """(I,) the images of the last `compute`."""
        return self.scored[self.types[0]].truth.image_ids

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """AP, AP50, AP75 and AP by class of each type (R,) in replicates with these weights (R, I)
        of the images."""
        return {
            f"{iou_type}/{name}": values
            for iou_type, (truth, found, _) in self.scored.items()
            for name, values in resampled(match_objects(truth, found, self.engine), weights).items()
        }

    def subject(self) -> Subject:
        """What was scored, to compare it with another model."""
        return subject_of(self.scored[self.types[0]].truth)

    def reports(self, context: ReportContext) -> dict[str, DetectionReport]:
        """By type, what a report says of the last `compute`."""
        return {
            iou_type: DetectionReport(
                *one,
                self.engine,
                context.thresholds,
                images=context.images,
                iou=context.iou,
                only=context.only,
            )
            for iou_type, one in self.scored.items()
        }

    def report(self, context: ReportContext) -> list[Part]:
        """The parts of a report: of masks, if any are scored, then of boxes."""
        reports = self.reports(context)
        found: list[Part] = []
        for iou_type, one in reversed(reports.items()):
            note = [f"Without {one.without}: {install_hint('fast')}"] if one.without else []
            if len(reports) > 1 or note:
                title = "Masks" if iou_type == "segm" else "Boxes"
                found.append(Text(title, note))
            found += one.parts()
        return found

    def sentences(self, context: ReportContext) -> list[str]:
        """What stands out in a report, of the masks, if any are scored."""
        return self.reports(context)[self.types[-1]].sentences()

    def result_file(self, iou_type: IouType) -> list[dict[str, Any]]:
        """The records to score, as `COCO.loadRes` reads them from a file.

        Mask records carry no box: with one, pycocotools sorts them into the small, medium and
        large ranges by the area of the box instead of the mask's.
        """
        return concatenate([one.detections for one in self.images], iou_type).records()


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
    intervals: bool = False,
    analysis: bool = False,
) -> tuple[dict[str, float], dict[str, Any]]:
    """`evaluate_files`, and facts: `coco_engine`, the engine with its version, `scoring`, the rule
    that applied, and `classes`, a `Coverage` for each metric that is a mean over classes. With
    `intervals`, 95 % intervals by metric; with `analysis`, the parts of a report."""
    engine = pick_engine(engine)
    log_once(f"COCO metrics are computed by {engine_version(engine)}", logging.INFO)
    index = open_index(truth)
    objects = open_truth(index, iou_type, trust=trust, ignore_categories=ignore_categories)
    found = open_results(index, objects, results, trust=trust)
    metrics = compute_metrics(objects, found, engine, max_detections)
    facts: dict[str, Any] = {
        "coco_engine": engine_version(engine),
        "scoring": scoring_rule(objects, max_detections, trust=trust),
        "classes": {"AP": class_coverage(objects)},
    }
    if intervals or analysis:
        one = DetectionReport(objects, labeled_only(objects, found), metrics, engine, images=0)
        if intervals:
            around = comparison.intervals(one, metrics, REPLICATES)
            facts["intervals"] = {name: [low, high] for name, (_, low, high) in around.items()}
        if analysis:
            facts["analysis"] = {iou_type: one.parts()}
    return metrics, facts


def open_truth(
    index: CocoIndex,
    iou_type: IouType,
    *,
    trust: bool = False,
    ignore_categories: Collection[str] = (),
) -> ScoredTruth:
    """The ground truth of an annotation file; warns if there is nothing to score."""
    objects = read_truth(index, iou_type, trust=trust, ignore_categories=ignore_categories)
    if objects.iscrowd.all():
        what = "object with a segmentation" if iou_type == "segm" else "object"
        log.warning(
            "annotation file %s has no %s to score: metrics are undefined", index.path, what
        )
    return objects


def open_results(
    index: CocoIndex, objects: ScoredTruth, results: str | Path, *, trust: bool = False
) -> Detections:
    """The detections of a result file, checked; DataError lists those that cannot be scored."""
    checker = DetectionChecker(objects, source=f"{results}: ", trust=trust)
    names = NameCheck(index, objects)

    def add(records: list[Any]) -> None:
        first = records[0] if records and not checker.seen else None
        if objects.iou_type == "segm" and isinstance(first, dict) and first.get("bbox"):
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
    return found


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
