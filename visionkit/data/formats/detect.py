"""Which formats there are, and which one a folder or file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visionkit.data.formats.base import Reader, Writer
from visionkit.data.formats.coco import CocoReader
from visionkit.data.formats.csv_file import CsvReader, write_csv
from visionkit.data.formats.cvat import CvatReader, write_cvat
from visionkit.data.formats.folders import FolderReader
from visionkit.data.formats.kinds import TYPES
from visionkit.data.formats.labelme import LabelMeReader, write_labelme
from visionkit.data.formats.masks import MasksReader
from visionkit.data.formats.masks_out import write_masks
from visionkit.data.formats.panoptic import PanopticReader, is_panoptic
from visionkit.data.formats.recognize import NAMES, Recognized, looks_like, part_of, recognize
from visionkit.data.formats.voc import VocReader, write_voc
from visionkit.data.formats.yolo import YoloReader
from visionkit.data.formats.yolo_writer import write_yolo
from visionkit.errors import DataError, listed, printable

__all__ = ["READERS", "WRITERS", "Recognized", "hinted", "open_reader", "recognize"]

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


def open_reader(format: str, source: Path, **options: Any) -> Reader:
    """The reader of that format. DataError, which says what it looks like, for another one."""
    if format not in READERS:
        raise DataError(f"{printable(source)}: {NAMES[format]}: there are no annotations to read")
    if format == "coco" and source.is_dir():
        source, images = _coco_file(source, options.pop("split", None))
        options["images"] = options.get("images") or images
    try:
        if format == "coco" and is_panoptic(source):
            return PanopticReader(source, **options)
        if format == "masks" and (source / "instances.json").is_file():  # of `write_masks`
            return PanopticReader(source / "instances.json", **options)
        return READERS[format](source, **options)
    except DataError as error:
        raise hinted(error, source, format) from error


def _coco_file(folder: Path, split: str | None) -> tuple[Path, Path]:
    """The COCO file of a part in a folder, and the folder of its images."""
    found = recognize(folder)
    if found.format != "coco":
        raise DataError(f"{printable(folder)}: it is {found.words}: use --from {found.format}")
    parts = found.parts
    chosen = parts.get(part_of(split)) if split else next(iter(parts.values()))
    if chosen is None or (split is None and len(parts) > 1):
        what = f"has the parts {listed(parts)}: name one with --split, or its file"
        raise DataError(f"{printable(folder)}: {what}")
    return Path(chosen["annotations"]), Path(chosen["images"])


def hinted(error: DataError, source: Path, format: str) -> DataError:
    """The same error, and what the source looks like if that is another format."""
    hint = looks_like(source, TYPES[format])
    lines = error.lines if not hint or hint in error.lines else [*error.lines, hint]
    return DataError(*lines, findings=error.findings, others=error.others)
