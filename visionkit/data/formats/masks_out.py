"""Write semantic maps and maps of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from visionkit.data.coco.segmentations import to_rle
from visionkit.data.formats.base import Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.image_files import ImageCopies
from visionkit.data.formats.masks import BACKGROUND
from visionkit.data.formats.writing import NewNames
from visionkit.errors import plural
from visionkit.runs.files import to_json
from visionkit.types import IGNORE

HIDDEN = "objects without a visible pixel: smaller ones cover them, or their mask is empty"
COVERED = "objects of which smaller ones cover pixels"


def write_masks(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write `labels`, 8-bit maps of classes with `classes.txt`, as `LabelMaps` reads them, and
    `instances`, 16-bit maps of objects with `instances.json`, a panoptic COCO file that keeps
    classes, ids and crowds; with `images` if they are at hand. Smaller objects lie on top."""
    names = NewNames(reader)
    records: list[Record] = []
    annotations: list[Record] = []
    with new_folder(out) as folder:
        copies = ImageCopies(options.images, folder / "images", reader.problems)
        labels: dict[Any, int] = {}
        for image, own in reader.records():
            labels = labels or _labels(reader)
            name, stem = names.image(image)
            if not stem:
                continue
            maps = _Maps(reader, names, image)
            segments = maps.paint(own, labels)
            if maps.classes is not None:
                _save(folder / "labels" / f"{stem}.png", maps.classes)
            _save(folder / "instances" / f"{stem}.png", maps.instances)
            copies.add(str(image["file_name"]), name)
            records.append({**image, "file_name": name})
            found = {"image_id": image["id"], "file_name": f"{stem}.png", "segments_info": segments}
            annotations.append(found)
        reader.problems.raise_any()
        if len(labels) > IGNORE:
            classes = plural(len(labels), "class", "classes")
            reader.losses.add(f"semantic maps: {classes} do not fit into 8 bits", "labels")
        else:
            by_number = {number: name for name, number in _named(reader, labels).items()}
            lines = [by_number[number] for number in sorted(by_number)]
            (folder / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {"images": records, "annotations": annotations, "categories": reader.categories}
        text = to_json({**reader.lists, **content})
        (folder / "instances.json").write_text(text + "\n", encoding="utf-8")


def _labels(reader: Reader) -> dict[Any, int]:
    """The number of each category in semantic maps, by its id; 0 is the background."""
    others = [one for one in reader.categories if not _is_background(one)]
    found = {one["id"]: 0 for one in reader.categories if _is_background(one)}
    return found | {one["id"]: number for number, one in enumerate(others, 1)}


def _is_background(category: Record) -> bool:
    return str(category.get("name")).casefold() in BACKGROUND


def _named(reader: Reader, labels: dict[Any, int]) -> dict[str, int]:
    """The number of each name; one for the background is added where it is none of the classes."""
    named = {str(one["name"]): labels[one["id"]] for one in reader.categories}
    return named if 0 in named.values() else {"background": 0, **named}


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


class _Maps:
    """The maps of one image."""

    def __init__(self, reader: Reader, names: NewNames, image: Record):
        self.reader, self.names, self.image = reader, names, image
        self.size = (int(image["height"]), int(image["width"]))
        self.classes: np.ndarray | None = np.zeros(self.size, np.uint8)
        self.instances = np.zeros(self.size, np.uint16)

    def paint(self, own: list[Record], labels: dict[Any, int]) -> list[Record]:
        """Paint the objects of the image. Returns the records of those that can be seen."""
        if len(labels) > IGNORE:
            self.classes = None
        painted, codes = [], []
        for one in own:
            place = self.names.place(self.image, one)
            self.names.note_keys(self.image, (), one)
            if not self.names.category(self.image, one):
                continue
            if found := self.names.attributes(self.image, one):
                self.reader.losses.add("objects with attributes", place, keys=found)
            if not one.get("segmentation"):
                self.reader.losses.add("objects without a mask, whose box is not labeled", place)
                self._ignore(one["bbox"])
                continue
            painted.append(one)
            codes.append(to_rle(one["segmentation"], self.size))
        if len(painted) > 65535:
            what = f"{len(painted)} objects do not fit into 16 bits"
            self.reader.problems.add(str(self.image["file_name"]), what)
            return []
        areas = [int(coco_mask.area(code)) for code in codes]
        for i in sorted(
            range(len(painted)), key=lambda i: (not painted[i].get("iscrowd"), -areas[i])
        ):
            mask = coco_mask.decode(codes[i]).astype(bool)
            self.instances[mask] = i + 1
            if self.classes is not None:
                self.classes[mask] = labels[painted[i]["category_id"]]
        return self._segments(painted, areas)

    def _segments(self, painted: list[Record], areas: list[int]) -> list[Record]:
        counts = np.bincount(self.instances.ravel(), minlength=len(painted) + 1)
        segments = []
        for i, one in enumerate(painted):
            place, visible = self.names.place(self.image, one), int(counts[i + 1])
            if not visible:
                self.reader.losses.add(HIDDEN, place)
                continue
            segment = {"id": i + 1, "category_id": one["category_id"], "bbox": one["bbox"]}
            segment |= {"iscrowd": one.get("iscrowd", 0), "area": visible}
            if visible < areas[i]:
                self.reader.losses.add(COVERED, f"{place}: {areas[i] - visible} pixels")
            elif one.get("area") is not None:
                segment["area"] = one["area"]
            if "id" in one:
                segment["annotation_id"] = one["id"]
            segments.append(segment)
        return segments

    def _ignore(self, box: list[float]) -> None:
        """What is in the box of an object without a mask is not labeled."""
        if self.classes is not None:
            left, top, width, height = box
            rows = slice(max(int(top), 0), max(int(np.ceil(top + height)), 0))
            self.classes[rows, max(int(left), 0) : max(int(np.ceil(left + width)), 0)] = IGNORE
