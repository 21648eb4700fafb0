"""LabelMe: a JSON file for each image (https://github.com/wkentaro/labelme)."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionkit.data.checks.findings import short
from visionkit.data.coco.tables import FARTHEST
from visionkit.data.files import find_fault, visible_files
from visionkit.data.formats.base import Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.image_files import (
    ImageCopies,
    ImageFiles,
    base_name,
    check_pixels,
    part_of,
)
from visionkit.data.formats.named import numbered
from visionkit.data.formats.outlines import (
    Part,
    ellipse,
    fault_of,
    joined,
    note_other_box,
    outline_of,
    window_of,
    window_rle,
)
from visionkit.data.formats.writing import IDS, NewNames, warn_without
from visionkit.data.formats.xml import fits
from visionkit.data.image_io import Size
from visionkit.errors import DataError, is_blank, listed, printable
from visionkit.runs.files import open_regular, to_json

LARGEST = 512 << 20  # bytes of a file, which may have its image in it
LABELS = "labels.txt"  # class names, one a line, as `labelme --labels` reads them
_NO_CLASSES = ("__ignore__", "_background_")  # lines of it
CROWD = "iscrowd"  # the flag of crowd regions
_READ = {"label", "points", "shape_type", "group_id", "flags", "mask", "description"}
_READ |= {"attributes", "difficult"}  # of X-AnyLabeling
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_POLYGONS = ("polygon", "rotation", "quadrilateral")  # the last two are X-AnyLabeling's


class LabelMeReader(Reader):
    """LabelMe: a folder of JSON files, next to their images or not; or one such file.

    Shapes with one `group_id` and label are one object. Flags of a shape are its attributes. A
    circle becomes a polygon of 64 points. `split` is a folder.
    """

    name = "LabelMe"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        is_file = self.source.is_file()
        if not is_file and not self.source.is_dir():
            raise DataError(f"{self.problems.source}: is not a folder or a file: check the path")
        self.root = self.source.parent if is_file else self.source
        if self.split is not None:
            self.root /= self._part_folder()
        self._json = [self.source.name] if is_file else self._find_files()
        if not self._json:
            hint = "expected JSON files next to images"
            raise DataError(f"{self.problems.source}: there are no JSON files; {hint}")
        if options.get("images") is None:
            self.images = self.root

    @cached_property
    def _images(self) -> ImageFiles:
        return ImageFiles(self.images, self.links, self.exif)

    def files(self) -> list[Path]:
        """The JSON files, and what else the records depend on."""
        labels = [LABELS] if (self.root / LABELS).is_file() else []
        return [*(self.root / name for name in (*labels, *self._json)), *self._images.paths()]

    def _part_folder(self) -> str:
        folders = sorted(e.name for e in os.scandir(self.root) if e.is_dir())
        if (found := part_of(folders, str(self.split))) is not None:
            return found
        known = listed([printable(name) for name in folders])
        what = f"there is no folder {self.split}; there are: {known}"
        raise DataError(f"{self.problems.source}: {what}")

    def _find_files(self) -> list[str]:
        paths = (os.path.join(*found) for found in visible_files(self.root))
        names = (os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths)
        return sorted(name for name in names if name.lower().endswith(".json"))

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        return numbered(self, self._read(), self._labels())

    def _labels(self) -> list[str] | None:
        """The classes in `labels.txt`, if it is there."""
        path = self.root / LABELS
        if not path.is_file():
            return None
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{printable(path)} cannot be read [{error}]") from None
        names = dict.fromkeys(line.strip() for line in lines if not is_blank(line))
        return [name for name in names if name not in _NO_CLASSES]

    def _read(self) -> Iterator[tuple[Record, list[Record]]]:
        images = self._images
        file_of: dict[str, str] = {}  # the JSON file by image
        for file in self._json:
            try:
                content = _load(self.root / file)
                image = self._image(file, content, images)
                if (other := file_of.setdefault(image["file_name"], file)) != file:
                    raise ValueError(f"the image {image['file_name']!r} is also that of {other}")
            except ValueError as error:
                self.bad(file, str(error), kind="file")
                continue
            yield image, self._objects(file, content["shapes"], image)
        if self.source.is_dir():
            for name in images.names:
                if name not in file_of:
                    self.losses.add("images without a JSON file", name)

    def _image(self, file: str, content: Record, images: ImageFiles) -> Record:
        """The record of the image. ValueError if it cannot be found or has no size."""
        path = content.get("imagePath") or ""
        if not isinstance(path, str):
            raise ValueError(f"'imagePath' is {short(path)}: must be a file name")
        folder, base = os.path.split(file)[0], base_name(path)
        names = [os.path.join(folder, base)] if base else []
        relative = path.replace("\\", "/")
        if not relative.startswith("/") and relative[1:2] != ":":
            inside = os.path.normpath(os.path.join(folder, relative))
            names[:0] = [] if inside.split("/")[0] in ("..", ".") else [inside]
        stem = os.path.splitext(file)[0] + os.path.splitext(base)[1]
        name = images.find(*names, *([base, f"images/{base}"] if base else []), stem)
        size = _given_size(content)
        if name is not None:
            size = images.size(name, size)
        elif images.names or not names:
            wanted = f"{path!r} ('imagePath')" if path else f"{stem!r} (there is no 'imagePath')"
            inside = " (it is in the file as 'imageData', which is not read)"
            more = inside if content.get("imageData") else ""
            raise ValueError(f"the image {wanted} is not in {self.images}{more}")
        if size is None:
            raise ValueError("there is no 'imageHeight' and 'imageWidth', and the image is missing")
        check_pixels(size)
        record = {"file_name": name or names[0], "height": size[0], "width": size[1]}
        flags = content.get("flags")
        return record | ({"flags": flags} if flags and isinstance(flags, dict) else {})

    def _objects(self, file: str, shapes: list[Any], image: Record) -> list[Record]:
        """The objects of an image: a shape each, or all with one label and `group_id`."""
        size = image["height"], image["width"]
        parts: list[Part] = []
        for i, shape in enumerate(shapes):
            where = f"{file}: shape {i + 1}"
            try:
                parts.append(_part(shape, size, where))
            except ValueError as error:
                kind = shape.get("shape_type") if isinstance(shape, dict) else None
                self.bad(where, str(error), kind=kind if kind in _WITHOUT_AREA else "shape")
                continue
            if more := sorted(map(str, shape.keys() - _READ)):
                self.losses.add("shapes with other keys", f"{where}: {', '.join(more)}")
        return joined(parts, size, CROWD)


def _load(path: Path) -> Record:
    """The content of a file. ValueError if it is not LabelMe's."""
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST + 1)
    except OSError:
        raise ValueError(find_fault(path).clause) from None
    if len(data) > LARGEST:
        raise ValueError(f"has more than {LARGEST >> 20} MB: is it one image's?")
    if not data.strip():
        raise ValueError("is empty: download or write it again")
    try:
        content = json.loads(data)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8: save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON [{error}]") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError("is not a LabelMe file: there is no list 'shapes'")
    return content


def _given_size(content: Record) -> Size | None:
    """(h, w) as the file says; None if it does not."""
    found = []
    for key in ("imageHeight", "imageWidth"):
        value = content.get(key)
        if value in (None, 0):
            return None
        if type(value) not in (int, float) or not 1 <= value < 2**31 or value % 1:
            raise ValueError(f"'{key}' is {short(value)}: must be an integer of at least 1")
        found.append(int(value))
    return found[0], found[1]


def _part(shape: Any, size: Size, source: str) -> Part:
    """A shape of an image of `size` (h, w). ValueError if it is malformed or has no area."""
    if not isinstance(shape, dict):
        raise ValueError(f"is {short(shape)}: must be an object")
    label, group = shape.get("label"), shape.get("group_id")
    if not isinstance(label, str) or is_blank(label):
        raise ValueError(f"'label' is {short(label)}: must be a name")
    if isinstance(group, bool) or not isinstance(group, int | str | None):
        raise ValueError(f"'group_id' is {short(group)}: must be an integer or null")
    for key in ("flags", "attributes"):
        if not isinstance(shape.get(key) or {}, dict):
            raise ValueError(f"{key!r} is {short(shape[key])}: must be an object")
    kind = shape.get("shape_type") or "polygon"  # LabelMe before 3 has no other
    if kind in _WITHOUT_AREA:
        raise ValueError(f"a {kind} has no area: draw a polygon or a box")
    points = _points(shape.get("points"))
    box = polygon = rle = None
    if kind in _POLYGONS or (kind == "rectangle" and len(points) == 4):
        polygon = [value for point in points for value in point]
    elif kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"'shape_type' is {short(kind)}, which is not known")
    elif len(points) != 2:
        raise ValueError(f"a {kind} has {len(points)} points: must be 2")
    else:
        (x1, y1), (x2, y2) = points
        left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        if kind == "rectangle":
            box = left, top, right, bottom
        elif kind == "circle":
            radius = math.hypot(x2 - x1, y2 - y1)
            polygon = ellipse(x1, y1, radius, radius)
        else:
            rle = _rle(shape.get("mask"), (left, top, right, bottom), size)
    if polygon is not None and (fault := fault_of(polygon, size)):
        raise ValueError(fault)
    text = shape.get("description")
    more = {"description": text} if isinstance(text, str) and text else {}
    return Part(label, group, box, polygon, rle, _attributes(shape), more, source)


def _points(points: Any) -> list[list[float]]:
    if not isinstance(points, list):
        raise ValueError(f"'points' is {short(points)}: must be a list of points [x, y]")
    for point in points:
        is_pair = isinstance(point, list) and len(point) == 2
        if not is_pair or not all(type(v) in (int, float) and abs(v) <= FARTHEST for v in point):
            raise ValueError(f"a point is {short(point)}: must be two numbers [x, y]")
    return points


def _rle(text: Any, box: tuple[float, float, float, float], size: Size) -> Record:
    """The RLE of a mask, a PNG in base64 of the pixels from (left, top) to (right, bottom)."""
    left, top, right, bottom = map(round, box)
    expected = right - left + 1, bottom - top + 1
    if not isinstance(text, str):
        raise ValueError(f"'mask' is {short(text)}: must be a PNG in base64")
    if expected[0] > size[1] or expected[1] > size[0]:
        raise ValueError(f"its points are not within the image {size[1]}x{size[0]}")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as png:
            found, mode = png.size, png.mode
            is_read = found == expected and mode in ("1", "L", "P")
            bitmap = np.array(png) != 0 if is_read else None
    except Exception as error:  # decoders raise nearly anything on corrupt bytes
        raise ValueError(f"'mask' is not a PNG in base64 [{error}]") from None
    if bitmap is None:
        shown = f"{found[0]}x{found[1]} ({mode})"
        what = f"{expected[0]}x{expected[1]} pixels, as its points say, in gray"
        raise ValueError(f"'mask' has {shown}: must have {what}")
    return window_rle(bitmap, left, top, size)


def _attributes(shape: Record) -> Record:
    """The flags of a shape, and what X-AnyLabeling adds."""
    difficult = shape.get("difficult")
    more = {"difficult": difficult} if isinstance(difficult, bool) else {}
    return (shape.get("attributes") or {}) | (shape.get("flags") or {}) | more


def write_labelme(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write a JSON file for each image, copies of the images next to them, and the classes in
    `labels.txt`.

    Polygons of one object have one `group_id`; RLEs become shapes of the kind `mask`. Attributes
    that are true or false become flags, others are in `attributes` of the shape. Crowd regions get
    the flag `iscrowd`.
    """
    names = NewNames(reader, fits)
    with new_folder(out) as folder:
        copies = ImageCopies(options.images, folder, reader.problems)
        for image, own in reader.records():
            name, stem = names.image(image)
            if not name:
                continue
            names.note_keys(image, ("flags",))
            reader.losses.add(IDS, name, 1 + len(own))
            shapes: list[Record] = []
            groups = 0
            for one in own:
                found = _shapes(names, image, one)
                groups += len(found) > 1
                shapes += [s | {"group_id": groups if len(found) > 1 else None} for s in found]
            content = {
                "version": "5.4.1",
                "flags": image.get("flags", {}),
                "shapes": shapes,
                "imagePath": os.path.basename(name),
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            }
            path = folder / f"{stem}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(content) + "\n", encoding="utf-8")
            copies.add(image["file_name"], name)
        classes = [str(each["name"]) for each in reader.categories]
        (folder / LABELS).write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")
    warn_without(options.images, f"next to the JSON files in {out}")


def _shapes(names: NewNames, image: Record, one: Record) -> list[Record]:
    """The shapes of one object."""
    losses, place = names.reader.losses, names.place(image, one)
    label = names.category(image, one)
    names.note_keys(image, ("description",), one)
    attributes = one.get("attributes")
    attributes = dict(attributes) if isinstance(attributes, dict) else {}
    flags = {key: value for key, value in attributes.items() if isinstance(value, bool)}
    if one.get("iscrowd"):
        losses.add("crowd regions, which become shapes with a flag", place)
        flags[CROWD] = True
    shape: Record = {"label": label, "flags": flags, "description": one.get("description", "")}
    if more := {key: value for key, value in attributes.items() if key not in flags}:
        shape["attributes"] = more
    mask, (x, y, w, h) = outline_of(one, image)
    if mask:
        note_other_box(mask, [x, y, w, h], losses, place)
    if isinstance(mask, list):
        parts = [[part[i : i + 2] for i in range(0, len(part), 2)] for part in mask]
        return [shape | {"shape_type": "polygon", "points": part} for part in parts]
    if isinstance(mask, dict):
        if (window := window_of(mask)) is not None:
            bitmap, left, top = window
            file = io.BytesIO()
            Image.fromarray(bitmap).save(file, "PNG")
            code = base64.b64encode(file.getvalue()).decode("ascii")
            points = [[left, top], [left + bitmap.shape[1] - 1, top + bitmap.shape[0] - 1]]
            return [shape | {"shape_type": "mask", "points": points, "mask": code}]
        losses.add("empty masks, which become boxes", place)
    return [shape | {"shape_type": "rectangle", "points": [[x, y], [x + w, y + h]]}]
