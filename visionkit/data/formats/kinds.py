"""What kind of annotations one file holds, by its first and last bytes."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

PEEKED = 64 * 1024  # bytes at either end of a file
SMALL = 4 << 20  # bytes of a JSON file that is parsed whole
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
TYPES = {  # of datasets, by the name of --from
    "coco": "Coco",
    "yolo": "Yolo",
    "voc": "Voc",
    "labelme": "LabelMe",
    "cvat": "Cvat",
    "masks": "LabelMaps",
    "folders": "ImageFolder",
    "csv": "Csv",
    "images": "Images",
}


class Kind(NamedTuple):
    """A kind of annotations."""

    name: str  # as a person would say it
    format: str = ""  # the name of --from; "" for one that is not read
    advice: str = ""  # what to do about one that is not read

    @property
    def todo(self) -> str:
        """What to do about it where a COCO file is expected."""
        if not self.format:
            return self.advice
        convert = f"`visionkit data convert SRC OUT.json --from {self.format}`"
        return f"train with `type: {TYPES[self.format]}`, or convert it to COCO with {convert}"


COCO = Kind("COCO", "coco")
YOLO = Kind("YOLO", "yolo")
VOC = Kind("Pascal VOC", "voc")
CVAT = Kind("CVAT", "cvat")
LABELME = Kind("LabelMe", "labelme")
CSV = Kind("CSV", "csv")
RESULTS = Kind(
    "COCO results", advice="they are predictions, not annotations: name the file of annotations"
)
PANOPTIC = Kind(
    "COCO panoptic",
    advice="convert it with `visionkit data convert SRC OUT.json`, or name the instances file of "
    "the same images (instances_*.json)",
)
CAPTIONS = Kind("COCO captions", advice="name the instances file of the same images")

# By the keys of the file, or of the first element of a list.
_BY_KEYS: dict[Kind, set[str]] = {
    LABELME: {"shapes", "imagePath"},
    Kind(
        "VGG Image Annotator",
        advice="export it there with Annotation > Export Annotations (COCO format)",
    ): {"_via_img_metadata"},
    Kind(
        "VGG Image Annotator (regions)",
        advice="export it there with Annotation > Export Annotations (COCO format)",
    ): {"filename", "regions"},
    Kind("CreateML", advice="export COCO or YOLO from the tool that wrote it"): {
        "image",
        "annotations",
    },
    Kind("Label Studio", advice="export it there in the format COCO or YOLO"): {
        "data",
        "annotations",
    },
    Kind("BDD100K", advice="make a COCO file with `python -m bdd100k.label.to_coco`"): {
        "name",
        "labels",
    },
    Kind(
        "Cityscapes",
        advice="train on its label PNGs with `type: LabelMaps` and "
        "`labels_pattern: '{stem}_gtFine_labelTrainIds.png'`",
    ): {"imgHeight", "imgWidth", "objects"},
    Kind("Supervisely", advice="export it there as COCO"): {"size", "objects"},
    Kind("GeoJSON", advice="its coordinates are on a map: export boxes in pixels of the images"): {
        "type",
        "features",
    },
}
_BY_ANNOTATION_KEYS = {PANOPTIC: {"segments_info"}, CAPTIONS: {"caption"}}
_OF_FOLDERS = {".xml": VOC, ".json": LABELME, ".txt": YOLO}
_LISTED = 100  # files of a folder that are checked
_YOLO = re.compile(rb"\s*\d+([ \t]+[\d.eE+-]+){4,}\s*?(\n|$)")
_COCO_KEYS = {"images", "annotations", "categories"}
_FILE_COLUMNS = {  # without capitals and signs
    *("file", "filename", "filepath", "path", "image", "imagefile", "imagename", "imagepath"),
    *("img", "imgname", "imgpath", "fname", "imageid"),
}


def other_format(content: Any, of: Literal["file", "annotations"] = "file") -> str:
    """A clause that names the format of an object with such keys and says what to do; "" for an
    unknown one."""
    kind = kind_of_content(content, of)
    return f"it is in the format of {kind.name}: {kind.todo}" if kind else ""


def other_file(path: Path) -> str:
    """A clause that names the format of a folder or file that is not JSON; "" for others."""
    if path.is_dir():
        for entry in islice(os.scandir(path), _LISTED):
            suffix = os.path.splitext(entry.name)[1].lower()
            if kind := _OF_FOLDERS.get(suffix):
                return f"is a folder of {suffix} files, as {kind.name} has them: {kind.todo}"
    if not path.is_file():
        return ""
    kind = kind_of_start(ends_of(path)[0])
    if kind is None:
        return ""
    noun = "file (XML)" if kind in (VOC, CVAT) else "file"
    return f"looks like a {kind.name} {noun}: {kind.todo}"


def kind_of_content(content: Any, of: Literal["file", "annotations"] = "file") -> Kind | None:
    """The kind of an object with such keys, but for COCO."""
    if not isinstance(content, Mapping):
        return None
    first = next(iter(content.values()), None)
    for kind, keys in (_BY_KEYS if of == "file" else _BY_ANNOTATION_KEYS).items():
        inner = isinstance(first, Mapping) and keys.issubset(first)
        if keys.issubset(content) or inner:
            return kind
    return None


def kind_of_start(start: bytes) -> Kind | None:
    """The kind of a file of XML or of YOLO's lines with these first bytes."""
    if re.search(rb"<annotation[\s>]", start):
        return VOC
    if re.search(rb"<annotations[\s>]", start):
        return CVAT
    return YOLO if _YOLO.match(start) else None


def kind_of_file(path: Path) -> Kind | None:
    """The kind of one file; None for one that is not known, or is unreadable."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return kind_of_json(path)
        if suffix == ".csv":
            return CSV if csv_rows(path) else None
        return kind_of_start(ends_of(path)[0]) if suffix in (".xml", ".txt") else None
    except OSError:
        return None


def kind_of_json(path: Path) -> Kind | None:
    """The kind of a JSON file. A large one is not parsed: the keys near its ends decide."""
    if path.stat().st_size <= SMALL:
        try:
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
        return _kind_of_parsed(content)
    start, end = (text.decode("utf-8", "replace") for text in ends_of(path))
    keys = set(re.findall(r'"(\w+)"\s*:', start + end))
    is_list = start.lstrip("\ufeff \t\r\n").startswith("[")
    if is_list and {"image_id", "category_id"} <= keys:
        return RESULTS
    for kind, wanted in _BY_ANNOTATION_KEYS.items():
        if wanted <= keys:
            return kind
    if not is_list and len(_COCO_KEYS & keys) >= 2:
        return COCO
    return next((kind for kind, wanted in _BY_KEYS.items() if wanted <= keys), None)


def _kind_of_parsed(content: Any) -> Kind | None:
    if isinstance(content, list):
        first = _first(content)
        is_result = {"image_id", "category_id"} <= first.keys()
        return RESULTS if is_result else kind_of_content(first)
    if not isinstance(content, Mapping):
        return None
    if "annotations" in content and _COCO_KEYS & {*content} - {"annotations"}:
        first = _first(content["annotations"])
        return COCO if "category_id" in first else kind_of_content(first, "annotations") or COCO
    return kind_of_content(content)


def _first(records: Any) -> Mapping[str, Any]:
    """The first of a list of objects; {} for anything else."""
    first = records[0] if isinstance(records, list) and records else None
    return first if isinstance(first, Mapping) else {}


def ends_of(path: Path) -> tuple[bytes, bytes]:
    """The first and the last `PEEKED` bytes of a file."""
    with path.open("rb") as file:
        start = file.read(PEEKED)
        file.seek(max(PEEKED, os.path.getsize(path) - PEEKED))
        return start, file.read(PEEKED)


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The first rows of a CSV file that is about images, by column; names of columns are without
    capitals and signs. Empty for another file."""
    text = ends_of(path)[0].decode("utf-8-sig", "replace")
    lines = text.splitlines()[: -1 if len(text) >= PEEKED else None]
    delimiter = max(",;\t", key=(lines or [""])[0].count)
    try:
        header, *rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    except (ValueError, csv.Error):
        return []
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    is_about_images = len(names) > 1 and _FILE_COLUMNS & {*names}
    return [dict(zip(names, row, strict=False)) for row in rows] if is_about_images else []


def archive(path: Path) -> str:
    """A clause if a file is an archive; else ""."""
    if path.name.lower().endswith(ARCHIVES):
        return "is an archive: unpack it, and name the folder"
    return ""
