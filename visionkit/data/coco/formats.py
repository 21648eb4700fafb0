"""Recognize annotations in other formats than COCO's, to name them in an error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

CONVERT = "convert it to one COCO JSON file, for example with datumaro"

# Formats by keys of the file, or of the first element of a list.
_BY_KEYS: dict[str, set[str]] = {
    "LabelMe": {"shapes", "imagePath"},
    "VGG Image Annotator": {"_via_img_metadata"},
    "VGG Image Annotator (regions)": {"filename", "regions"},
    "CreateML": {"image", "annotations"},
    "Label Studio": {"data", "annotations"},
    "BDD100K": {"name", "labels"},
    "Cityscapes": {"imgHeight", "imgWidth", "objects"},
    "Supervisely": {"size", "objects"},
    "GeoJSON": {"type", "features"},
}
_BY_ANNOTATION_KEYS = {
    "COCO panoptic": {"segments_info"},
    "COCO captions": {"caption"},
}
_OF_FOLDERS = {".xml": "Pascal VOC", ".json": "LabelMe", ".txt": "YOLO"}
_LISTED = 100  # files of a folder that are checked
_YOLO = re.compile(rb"\s*\d+([ \t]+[\d.eE+-]+){4,}\s*?(\n|$)")


def other_format(content: Any, of: Literal["file", "annotations"] = "file") -> str:
    """A clause that names the format of an object with such keys; "" for an unknown one."""
    if not isinstance(content, Mapping):
        return ""
    first = next(iter(content.values()), None)
    for name, keys in (_BY_KEYS if of == "file" else _BY_ANNOTATION_KEYS).items():
        inner = isinstance(first, Mapping) and keys.issubset(first)
        if keys.issubset(content) or inner:
            return f"it is in the format of {name}: {CONVERT}"
    return ""


def other_file(path: Path) -> str:
    """A clause that names the format of a folder or file that is not JSON; "" for others."""
    if path.is_dir():
        for entry in islice(os.scandir(path), _LISTED):
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in _OF_FOLDERS:
                name = _OF_FOLDERS[suffix]
                return f"is a folder of {suffix} files, as {name} has them: {CONVERT}"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        start = file.read(512)
    if b"<annotation>" in start or b"<annotation " in start:
        return f"is a Pascal VOC file (XML): {CONVERT}"
    if b"<annotations>" in start:
        return f"is a CVAT file (XML): export it as COCO, or {CONVERT}"
    return f"looks like a YOLO file: {CONVERT}" if _YOLO.match(start) else ""
