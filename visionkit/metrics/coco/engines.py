"""The engines that match detections with objects: pycocotools, or hotcoco if it is installed.

Both get the same columns and return the same arrays, bit for bit. pycocotools is the reference;
hotcoco (in Rust, extra `fast`) takes a fraction of the time.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, cast

import numpy as np

from visionkit.data.coco.tables import rows_of
from visionkit.errors import ConfigError, install_hint
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.ground_truth import ScoredTruth, log_once

ENGINES = ("hotcoco", "pycocotools")
SETTING = "VISIONKIT_COCO_ENGINE"

Curves = tuple[np.ndarray, np.ndarray]


def pick_engine(name: str | None = None) -> str:
    """`name`, or the environment variable VISIONKIT_COCO_ENGINE, or the fastest installed."""
    source = "engine" if name else SETTING
    name = name or os.environ.get(SETTING)
    if not name:
        return "pycocotools" if _fault_of_hotcoco() else "hotcoco"
    if name not in ENGINES:
        raise ConfigError(f"{source}: unknown COCO engine {name!r}; choose {' or '.join(ENGINES)}")
    fault = _fault_of_hotcoco() if name == "hotcoco" else None
    if fault:
        raise ConfigError(
            f"{source}: hotcoco {fault}: `{install_hint('fast')}`, or use "
            "pycocotools, which computes the same metrics"
        )
    return name


def _fault_of_hotcoco() -> str | None:
    """Why it cannot be used; None if it can. Logs once if it is installed but unusable."""
    if not find_spec("hotcoco"):
        return "is not installed"
    try:
        import_module("hotcoco")
    except Exception as error:  # what a package that does not fit the machine raises
        fault = f"cannot be imported ({type(error).__name__}: {error})"
        log_once(f"hotcoco {fault}; pycocotools computes the same metrics")
        return fault
    return None


def engine_version(name: str) -> str:
    """For example "hotcoco 1.3.0"."""
    return f"{name} {version(name)}"


def match(truth: ScoredTruth, found: Detections, engine: str, most: int = 100) -> Curves:
    """COCO's matching of sound detections at all IoU thresholds, with its default settings.

    Returns precision (T, R, C, A, M) and recall (T, C, A, M): 10 IoU thresholds, 101 recalls,
    categories by id, area ranges (all, small, medium, large), and (1, 10, `most`) detections of a
    category in an image. -1 where there are no objects.
    """
    evaluation = evaluated(truth, found, engine, [1, min(10, most), most])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
    curves = evaluation.eval
    return np.asarray(curves["precision"]), np.asarray(curves["recall"])


def evaluated(
    truth: ScoredTruth, found: Detections, engine: str, limits: list[int], ious: int | None = None
) -> Any:
    """The engine's COCOeval after `evaluate`. Its ids are rows + 1: of the images, categories and
    objects of the truth, and of the detections. With `ious`, at the first so many IoU thresholds
    only, and without regard to the sizes of objects."""
    numbered = replace(
        found,
        image_ids=rows_of(found.image_ids, truth.image_ids) + 1,
        category_ids=rows_of(found.category_ids, truth.category_ids) + 1,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = (_hotcoco if engine == "hotcoco" else _pycocotools)(truth, numbered)
        params = evaluation.params
        params.maxDets = limits
        if ious is not None:
            params.iouThrs = params.iouThrs[:ious]
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def _hotcoco(truth: ScoredTruth, found: Detections) -> Any:
    import hotcoco

    images, categories = _numbered(truth)
    objects = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image + 1,
        truth.category + 1,
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.iscrowd,
        segmentation=truth.masks,
    )
    boxes = np.zeros((len(found), 4)) if found.boxes is None else found.boxes
    table = np.column_stack([found.image_ids, boxes, found.scores, found.category_ids])
    detections = objects.load_res(table, segmentation=cast(Any, found.masks))
    if truth.iou_type == "segm" and len(found):
        detections.update_anns(ids=np.arange(1, len(found) + 1), area=found.areas)
    return hotcoco.COCOeval(objects, detections, truth.iou_type)


def _pycocotools(truth: ScoredTruth, found: Detections) -> Any:
    from pycocotools.cocoeval import COCOeval

    objects = _records(truth.image + 1, truth.category + 1, truth)
    for record, iscrowd in zip(objects, truth.iscrowd.tolist(), strict=True):
        record["iscrowd"] = int(iscrowd)
    detections = _records(found.image_ids, found.category_ids, found)
    for record, score in zip(detections, found.scores.tolist(), strict=True):
        record |= {"score": score, "iscrowd": 0}
    return COCOeval(_indexed(truth, objects), _indexed(truth, detections), truth.iou_type)


def _records(
    image: np.ndarray, category: np.ndarray, found: ScoredTruth | Detections
) -> list[dict[str, Any]]:
    """Annotations numbered from 1: pycocotools treats one with id 0 as unmatched."""
    boxes, areas = found.boxes, found.areas
    assert areas is not None
    key, shapes = "segmentation", found.masks
    if shapes is None:
        assert boxes is not None
        key, shapes = "bbox", boxes.tolist()
    rows = zip(image.tolist(), category.tolist(), areas.tolist(), shapes, strict=True)
    return [
        {"id": number, "image_id": i, "category_id": c, "area": area, key: shape}
        for number, (i, c, area, shape) in enumerate(rows, start=1)
    ]


def _numbered(truth: ScoredTruth) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Image and category records with rows + 1 as ids, which keeps their order."""
    sizes = truth.sizes if truth.iou_type == "segm" else np.zeros_like(truth.sizes)  # not used
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes.tolist(), 1)]
    return images, [{"id": i, "name": name} for i, name in enumerate(truth.names, start=1)]


def _indexed(truth: ScoredTruth, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    images, categories = _numbered(truth)
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco
