"""Score a COCO result file against an annotation file, without a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from visionkit.data.coco.columns import json_type
from visionkit.data.coco.index import open_index
from visionkit.data.coco.reader import CHUNK, elements, expect_end, json_file, read_list, skip
from visionkit.errors import DataError
from visionkit.metrics.coco.detections import DetectionChecker
from visionkit.metrics.coco.engines import pick_engine
from visionkit.metrics.coco.evaluator import compute_metrics, log_engine
from visionkit.metrics.coco.ground_truth import IouType, read_truth

log = logging.getLogger("visionkit")


def evaluate_files(
    truth: str | Path, results: str | Path, iou_type: IouType, engine: str | None = None
) -> dict[str, float]:
    """The twelve COCO metrics and `AP/<class>` of a result file.

    `truth` is a COCO annotation file, `results` a file in COCO's result format. Raises DataError,
    listing everything that is wrong with one of the files.
    """
    engine = pick_engine(engine)
    log_engine(engine)
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
