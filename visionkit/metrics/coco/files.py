"""Scoring a COCO result file against an annotation file, without a model."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from visionkit.data.coco.columns import first_non_object, json_type, list_error
from visionkit.data.coco.json_lists import RepeatedKey, elements, read_members
from visionkit.data.files import diagnose
from visionkit.errors import DataError
from visionkit.metrics.coco.detections import DetectionChecker
from visionkit.metrics.coco.engines import pick_engine
from visionkit.metrics.coco.evaluator import figures, paused_collector, tell_engine
from visionkit.metrics.coco.ground_truth import IouType, read_truth

log = logging.getLogger("visionkit")
BLOCK = 1 << 22  # bytes parsed at once: memory for the records of a block, not of the file
BETWEEN = re.compile(rb"\}\s*,\s*\{")


def evaluate_files(
    truth: str | Path, results: str | Path, iou_type: IouType, engine: str | None = None
) -> dict[str, float]:
    """The twelve COCO figures and `AP/<class>` of a result file.

    `truth` is a COCO annotation file, `results` a file in COCO's result format. Raises DataError,
    listing everything that is wrong with one of the files.
    """
    engine = pick_engine(engine)
    tell_engine(engine)
    with paused_collector():
        data = _coco_dict(truth, iou_type)
        objects = read_truth(data, iou_type, source=f"annotation file {truth}")
        if objects.iscrowd.all():
            what = "object with a segmentation" if iou_type == "segm" else "object"
            log.warning("annotation file %s has no %s to score: no figure is defined", truth, what)
        file_names = {image["id"]: image.get("file_name") for image in data["images"]}
        del data
        door = DetectionChecker(objects, iou_type, source=f"{results}: ")
        for records in read_results(results):
            _check_images(records, file_names, results)
            if iou_type == "segm" and not door.seen and _has_boxes(records):
                log.info(
                    "%s has boxes too: they are not used, and APs, APm, APl, ARs, ARm, ARl go by "
                    "the area of the masks; COCO.loadRes would take that of the boxes",
                    results,
                )
            door.add(records)
        return figures(door.truth, door.detections(), iou_type, engine)


def _has_boxes(records: list[Any]) -> bool:
    return any(isinstance(record, dict) and record.get("bbox") for record in records[:1])


def _check_images(records: list[Any], file_names: dict[int, Any], path: str | Path) -> None:
    """Records that name their image must not be scored as those of another one."""
    for record in records:
        if not isinstance(record, dict) or "file_name" not in record:
            continue
        image_id, said = record.get("image_id"), str(record["file_name"])
        known = file_names.get(image_id) if isinstance(image_id, int) else None
        if known is not None and PurePath(said).name != PurePath(str(known)).name:
            raise DataError(
                f"{path}: image_id {image_id} is the image {said!r} there, and {known!r} in the "
                "annotations. `visionkit predict` counts images from 1; `visionkit eval RUN` "
                "writes files to score, with the ids of its data, to RUN/eval"
            )


def _coco_dict(path: str | Path, iou_type: IouType) -> dict[str, Any]:
    """What an annotation file holds; for boxes without its masks, most of its memory."""
    try:
        text = Path(path).read_bytes()
        try:
            data = _members(text, masks=iou_type == "segm")
        except RepeatedKey:
            raise
        except (ValueError, RecursionError):
            data = json.loads(text)  # in another encoding, or what is wrong with its place
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"annotation file {path} {diagnose(path)} [{error}]") from None
    if not isinstance(data, dict):
        raise DataError(
            f"annotation file {path} holds {json_type(data)}, not an object with 'images', "
            "'annotations' and 'categories' (a list is COCO's format for results)"
        )
    for key in ("images", "annotations", "categories"):
        records = data.get(key)
        stranger = first_non_object(records) if isinstance(records, list) else None
        if fault := list_error(key, data, stranger):
            raise DataError(f"annotation file {path}: {fault}; is it a COCO file?")
    return data


def _members(text: bytes, *, masks: bool) -> dict[str, Any]:
    """The members of an annotation file, with the segmentations or without. Raises ValueError if it
    is no plain JSON object in UTF-8."""
    annotations: list[Any] = []

    def take(start: int, stop: int) -> int | None:
        records, end = elements(text[start:stop])
        for record in records if not masks else ():
            if isinstance(record, dict):
                record.pop("segmentation", None)
        annotations.extend(records)
        return end

    members = read_members(text, {"annotations": take})
    return members | {"annotations": annotations} if members.get("annotations") == [] else members


def read_results(path: str | Path, block: int = BLOCK) -> Iterator[list[Any]]:
    """The records of a JSON list, parsed about `block` bytes at a time, in the order of the file.

    A block ends between two records. What looks like such a place inside a record or a text does
    not parse, and is then parsed together with the next block.
    """
    try:
        with open(path, "rb") as file:
            rest, wanted = file.read(block).removeprefix(b"\xef\xbb\xbf").lstrip(), block
            if rest[:1] == b"{":
                raise DataError(
                    f"result file {path} holds an object, not a list of records "
                    '{"image_id", "category_id", "bbox" or "segmentation", "score"}'
                )
            while True:
                cut = _last_end(rest)
                records = _parsed(rest[:cut] + b"]") if cut else None
                if records is not None:
                    yield records
                    rest, wanted = b"[" + rest[cut:].lstrip()[1:], block
                more = file.read(wanted)
                if not more:
                    break
                rest, wanted = rest + more, wanted + block
            before = file.tell() - len(rest)
        records = json.loads(rest)
    except json.JSONDecodeError as error:
        place = before + len(error.doc[: error.pos].encode("utf-8"))
        what = f"{diagnose(path)} [{error.msg}: byte {place}]"
        raise DataError(f"result file {path} {what}") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"result file {path} {diagnose(path)} [{error}]") from None
    if not isinstance(records, list):
        raise DataError(f"result file {path} holds {json_type(records)}, not a list")
    yield records


def _last_end(text: bytes) -> int:
    """Where the last record that another one follows may end; 0 if there is none."""
    for start in (max(0, len(text) - (1 << 16)), 0):
        ends = [match.start() + 1 for match in BETWEEN.finditer(text, start)]
        if ends:
            return ends[-1]
    return 0


def _parsed(text: bytes) -> list[Any] | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
