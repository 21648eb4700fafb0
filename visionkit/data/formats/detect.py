"""Which formats there are, and which one a folder or file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from visionkit.data.formats.base import Reader, Writer
from visionkit.data.formats.coco import CocoReader
from visionkit.data.formats.csv_file import CsvReader, write_csv
from visionkit.data.formats.cvat import CvatReader, write_cvat
from visionkit.data.formats.folders import FolderReader
from visionkit.data.formats.labelme import LabelMeReader, write_labelme
from visionkit.data.formats.masks import MasksReader
from visionkit.data.formats.masks_out import write_masks
from visionkit.data.formats.panoptic import PanopticReader, is_panoptic
from visionkit.data.formats.voc import VocReader, write_voc
from visionkit.data.formats.yolo import YoloReader
from visionkit.data.formats.yolo_writer import write_yolo
from visionkit.errors import DataError, printable

READERS: dict[str, type[Reader]] = {
    "coco": CocoReader,
    "csv": CsvReader,
    "cvat": CvatReader,
    "folders": FolderReader,
    "labelme": LabelMeReader,
    "masks": MasksReader,
    "voc": VocReader,
    "yolo": YoloReader,
}  # by the name of --from
WRITERS: dict[str, Writer] = {
    "csv": write_csv,
    "cvat": write_cvat,
    "labelme": write_labelme,
    "masks": write_masks,
    "voc": write_voc,
    "yolo": write_yolo,
}  # by the name of --to


class Recognized(NamedTuple):
    """What a folder or file looks like."""

    format: str  # a key of `READERS`
    words: str  # such as "a YOLO dataset (data.yaml, 3 classes, parts train and val)"


def recognize(source: Path) -> Recognized:
    """What `source` looks like. DataError, which says what was expected, for anything else."""
    if source.is_file() and source.suffix.lower() == ".json":
        return Recognized("coco", "a COCO annotation file")
    raise DataError(f"{printable(source)}: the format is not recognized; name it with --from")


def open_reader(format: str, source: Path, **options: Any) -> Reader:
    """The reader of that format."""
    if format == "coco" and is_panoptic(source):
        return PanopticReader(source, **options)
    if format == "masks" and (source / "instances.json").is_file():  # as `write_masks` writes them
        return PanopticReader(source / "instances.json", **options)
    return READERS[format](source, **options)
