"""Average precision in the COCO way (Lin et al. 2014), computed by pycocotools or hotcoco.

Both take malformed input without a word: a NaN box scores as perfect, an annotation with id 0
loses its match, records with the same id are merged, no detections at all raise. One door in
front of both refuses or repairs each of these and leaves the numbers of valid input exactly as
they are; see `coco_truth`, `coco_detections` and `coco_engines`.
"""

from __future__ import annotations

import gc
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.errors import DataError, DivergedError
from visionkit.metrics.coco.detections import DetectionChecker, Detections, all_gather_with_grad
from visionkit.metrics.coco.engines import engine_version, match, pick_engine
from visionkit.metrics.coco.ground_truth import IouType, Truth, read_truth, tell_once

# --- Scoring where not every class is labeled in every image: what is not known is not
# scored.


def labeled_only(truth: dict[str, Any], results: Detections, own_ids: Sequence[int]) -> Detections:
    """The results that can be right or wrong.

    Out go those of the model's own classes (`own_ids`) that are not among the categories of the
    truth, and, in an image with `neg_category_ids` (Gupta et al. 2019, LVIS), those of classes
    that have no object in it and are not in that list. Other unknown classes stay, as errors.
    """
    scored = {category["id"] for category in truth["categories"]}
    left_out = set(own_ids) - scored
    checked: dict[int, set[int]] = {
        image["id"]: set(image["neg_category_ids"])
        for image in truth["images"]
        if image.get("neg_category_ids") is not None
    }
    if not left_out and not checked:
        return results
    for annotation in truth["annotations"]:
        if annotation["image_id"] in checked:
            checked[annotation["image_id"]].add(annotation["category_id"])
    pairs = zip(results.image_ids.tolist(), results.category_ids.tolist(), strict=True)
    kept = [
        category not in left_out and category in checked.get(image, (category,))
        for image, category in pairs
    ]
    return results[np.array(kept, bool)]


def with_incomplete_as_crowds(truth: dict[str, Any]) -> dict[str, Any]:
    """The truth with one crowd region more, all of the image, for each class of which only some
    objects are labeled in it (`not_exhaustive_category_ids`): a detection of that class that
    matches no labeled object is then ignored, as LVIS does."""
    regions: dict[int, list[int]] = defaultdict(list)
    scored = {category["id"] for category in truth["categories"]}
    for image in truth["images"]:
        for id_ in image.get("not_exhaustive_category_ids") or ():
            regions[image["id"]] += [id_] * (id_ in scored)
    if not regions:
        return truth
    crowds = []
    for image in truth["images"]:
        w, h = image["width"], image["height"]
        for id_ in regions[image["id"]]:
            crowds.append(
                {
                    "image_id": image["id"],
                    "category_id": id_,
                    "bbox": [0, 0, w, h],
                    "area": w * h,
                    "iscrowd": 1,
                    "segmentation": [[0, 0, w, 0, w, h, 0, h]],
                }
            )
    numbered = [{**r, "id": i} for i, r in enumerate([*truth["annotations"], *crowds], start=1)]
    return {**truth, "annotations": numbered}


# --- Python's garbage collector, held back while many objects are made.


@contextmanager
def paused_collector() -> Iterator[None]:
    """It would walk growing data again and again, for more than the time the work itself takes."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


if TYPE_CHECKING:
    from visionkit.types import Batch, Classes

log = logging.getLogger("visionkit")
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoEvaluator:
    """Collects the detections of a data set and scores them against its original annotations.

    Detections of classes that the data set, or an image of it, does not label are left out.

    Metrics are named `bbox/AP`, `bbox/AP50`, ..., `bbox/AR100`, and `bbox/AP/<class>`; the same
    with `segm/` where masks are scored. `engine` names the program that computes them.
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
        tell_engine(self.engine)
        truth = self.dataset.coco_truth()
        scored = with_incomplete_as_crowds(truth)
        metrics = {}
        for iou_type in self.types:
            results = labeled_only(
                truth, all_gather_with_grad(self.results, iou_type), self.classes.ids
            )
            scores = evaluate_coco(scored, results, iou_type, self.engine)
            metrics |= {f"{iou_type}/{name}": value for name, value in scores.items()}
        return metrics

    def result_file(self, iou_type: IouType) -> list[dict[str, Any]]:
        """The records to score, as `COCO.loadRes` reads them from a file.

        Mask records carry no box: with one, pycocotools sorts them into the small, medium and
        large ranges by the area of the box instead of the mask's.
        """
        return all_gather_with_grad(self.results, iou_type).records()


def detections_of(prediction: dict[str, Any], image_id: int, classes: Classes) -> Detections:
    """One image's detections with the data set's ids: boxes xywh, masks RLE, original pixels.

    Raises DivergedError for boxes or scores that are not finite, which a model computed, and
    DataError where a part is missing or masks are no run-length codes.
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


def coco_results(
    prediction: dict[str, Any], image_id: int, classes: Classes
) -> list[dict[str, Any]]:
    """One image's detections as COCO result records: box xywh and mask RLE in original pixels."""
    return detections_of(prediction, image_id, classes).records()


def evaluate_coco(
    truth: dict[str, Any] | Truth,
    results: Sequence[dict[str, Any]] | Detections,
    iou_type: IouType,
    engine: str | None = None,
) -> dict[str, float]:
    """The twelve COCO figures and `AP/<class>`, equal to pycocotools' on valid input.

    `truth` is a COCO dict, or, to score several results against it, what
    `read_truth(truth, iou_type).rasterized()` made of one. `results` are COCO result records. NaN
    where there is no ground truth to score. Raises DataError, naming the records, for values that
    must not be scored. `engine` is "hotcoco" or "pycocotools"; by default the first, where it is
    installed.
    """
    engine = pick_engine(engine)
    with paused_collector():
        opened = truth if isinstance(truth, Truth) else read_truth(truth, iou_type)
        if opened.iou_type != iou_type:
            raise DataError(f"the truth was read for {opened.iou_type}, not for {iou_type}")
        door = DetectionChecker(opened, iou_type)
        door.add(results)
        return figures(door.truth, door.detections(), iou_type, engine)


def figures(truth: Truth, found: Detections, iou_type: IouType, engine: str) -> dict[str, float]:
    """The metrics of detections that went through the door."""
    precision, recall = match(truth, found, iou_type, engine)
    by_area = [precision[..., area, 2] for area in range(4)]
    stats = [by_area[0], by_area[0][0], by_area[0][5], *by_area[1:]]  # IoU 0.50 and 0.75
    stats += [recall[..., 0, most] for most in range(3)]
    stats += [recall[..., area, 2] for area in (1, 2, 3)]
    metrics = dict(zip(STATS, map(_mean, stats), strict=True))
    for row, name in enumerate(truth.names):
        metrics[f"AP/{name}"] = _mean(by_area[0][:, :, row])
    _tell_undefined(metrics, iou_type)
    return metrics


def _tell_undefined(metrics: dict[str, float], iou_type: IouType) -> None:
    """Why a figure is NaN: pycocotools would say -1 and nothing else."""
    missing = [name for name, value in metrics.items() if math.isnan(value)]
    if "AP" in missing:
        tell_once(f"COCO's {iou_type} figures are not defined: there is no object to score")
    elif missing:
        shown = ", ".join(missing[:20]) + (f", ... {len(missing) - 20} more" * (len(missing) > 20))
        tell_once(
            f"COCO's {iou_type} figures {shown} are not defined: there is no object of the class, "
            "or of the size (small, medium, large)"
        )


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined; NaN for nothing."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


@cache
def tell_engine(engine: str) -> None:
    """Once in the life of the process."""
    log.info("COCO figures are computed by %s", engine_version(engine))
