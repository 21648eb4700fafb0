"""Write YOLO's text files and data.yaml."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from visionkit.data.coco.segmentations import mask_box
from visionkit.data.formats.base import Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.image_files import ImageCopies
from visionkit.data.formats.polygons import clipped, parts_of
from visionkit.data.formats.writing import IDS, NewNames

log = logging.getLogger("visionkit")

MOVED = 0.0101  # pixels; a smaller change of a box is rounding to two decimals
CROWD = "crowd regions that become objects"
CUT = "objects whose part outside of the image is cut off"
OUT = "objects outside of the image, which are dropped"
OTHER_BOX = "boxes that become those of their masks"
BOX = "boxes without a mask that become polygons, as their image has masks"
ATTRIBUTES = "objects with attributes"
HEAD = """\
# A YOLO dataset of one part. Name another part as `val` to validate with.
train: images
val: images
"""


def write_yolo(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write `labels/`, a text file for each image, `data.yaml` and, if the images are at hand,
    copies of them in `images/`. Objects with a mask become polygons, others boxes.

    Class numbers count from 0 in the order of the ids of the categories, which data.yaml keeps.
    """
    names = NewNames(reader)
    with new_folder(out) as folder:
        (folder / "labels").mkdir()
        copies = ImageCopies(options.images, folder / "images", reader.problems)
        numbers: dict[int, int] = {}
        for image, own in reader.records():
            numbers = numbers or _class_numbers(reader)
            name, stem = names.image(image)
            if not name:  # a problem
                continue
            if stem != os.path.splitext(name)[0]:
                what = f"{name}: another image has the label file {stem.rpartition('.')[0]}.txt"
                reader.problems.add("images", what, "rename one of them", kind="repeated")
                continue
            names.note_keys(image, ())
            reader.losses.add(IDS, name, 1 + len(own))
            path = folder / "labels" / f"{stem}.txt"
            lines = _lines(names, image, own, options, numbers)
            if "/" in name:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
            copies.add(str(image["file_name"]), name)
        (folder / "data.yaml").write_text(_data_yaml(reader), encoding="utf-8")
    if options.images is None:
        log.warning("the images are not at hand (--images DIR): put them into %s/images", out)


def _lines(
    names: NewNames,
    image: Record,
    own: list[Record],
    options: WriteOptions,
    numbers: dict[int, int],
) -> Iterator[str]:
    """The lines of a label file. `numbers` has class numbers by category id."""
    reader = names.reader
    size = int(image["height"]), int(image["width"])
    found = []
    for one in own:
        place = names.place(image, one)
        if not names.category(image, one):
            continue
        names.note_keys(image, (), one)
        if one.get("iscrowd"):
            reader.losses.add(CROWD, place)
        if attributes := one.get("attributes"):
            reader.losses.add(ATTRIBUTES, place, keys=map(str, attributes))
        polygon = parts_of(one, size, options.parts, reader, place)
        found.append((numbers[one["category_id"]], one, polygon, place))
    has_masks = any(polygon for _, _, polygon, _ in found)
    for number, one, polygon, place in found:
        box = one.get("bbox") or mask_box(one.get("segmentation"))
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        x1, y1, x2, y2 = corners
        if polygon is None and has_masks:
            reader.losses.add(BOX, place)
        shape = polygon or [x1, y1, x2, y1, x2, y2, x1, y2]
        bounds = _bounds(shape)
        if _differ(bounds, corners):
            reader.losses.add(OTHER_BOX, place)
        if min(bounds) < 0 or bounds[2] > size[1] or bounds[3] > size[0]:
            shape = clipped(shape, size)
            if not shape:
                reader.losses.add(OUT, place)
                continue
            if _differ(bounds, inside := _bounds(shape)):
                reader.losses.add(CUT, place)
            bounds = inside
        if has_masks:
            values = [value / size[1 - i % 2] for i, value in enumerate(shape)]
        else:
            x1, y1, x2, y2 = bounds
            height, width = size
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
            values += [(x2 - x1) / width, (y2 - y1) / height]
        yield " ".join([str(number), *map(_decimal, values)])


def _class_numbers(reader: Reader) -> dict[int, int]:
    """Class numbers by category id."""
    ids = sorted(one["id"] for one in reader.categories if type(one.get("id")) is int)
    return {id_: number for number, id_ in enumerate(ids)}


def _bounds(polygon: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2."""
    x, y = polygon[::2], polygon[1::2]
    return [min(x), min(y), max(x), max(y)]


def _differ(box: Sequence[float], other: Sequence[float]) -> bool:
    return any(abs(a - b) > MOVED for a, b in zip(box, other, strict=True))


def _decimal(value: float) -> str:
    """Ten digits, without zeros at the end."""
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _data_yaml(reader: Reader) -> str:
    """Names by class number; JSON strings are YAML's."""
    numbers = _class_numbers(reader)
    named = {numbers[one["id"]]: one["name"] for one in reader.categories}
    lines = [f"  {number}: {json.dumps(named[number])}\n" for number in sorted(named)]
    ids = f"visionkit:\n  category_ids: {json.dumps([*numbers])}  # in the order of the names\n"
    return f"{HEAD}nc: {len(named)}\nnames:\n{''.join(lines)}{ids}"
