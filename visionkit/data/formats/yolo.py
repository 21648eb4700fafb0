"""YOLO's text files: a line for each object, in parts of the width and height of the image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.checks.findings import short
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.polygons import signed_area
from visionkit.data.formats.yolo_files import find_files
from visionkit.data.image_io import Refused, Size
from visionkit.data.image_size import read_size
from visionkit.errors import DataError, is_blank, listed, plural
from visionkit.runs.files import open_regular

OUTSIDE = 0.01  # how far a coordinate may be outside of 0..1, as by rounding
DIGITS = 5  # of pixels that are kept: numbers of 10 digits then come back as they were
UNNAMED = 10_000  # classes at most where none has a name
BLOCK = 256  # images of a thread's task
THREADS = 4  # that read the sizes of images

LINE = "a line has a class and 4 numbers (center x, y, width, height) or 3 or more points x, y"
PIXELS = "divide x and width by the width of the image, y and height by its height"
EXTRA = "sixth numbers of lines (a confidence or a track)"
KEYPOINTS = "objects whose keypoints are dropped"


class YoloReader(Reader):
    """A folder of YOLO labels, or its data.yaml; docs/guide/formats.md shows the layouts.

    A line with a class and 4 numbers is a box. One with 3 or more points is a polygon, and its box
    the one around it; oriented boxes are polygons of four points. Images without a label file have
    no objects. Only the part `split` is read, by default all.
    """

    name = "YOLO"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        given = None if options.get("images") is None else self.images
        try:
            self.found = find_files(self.source, given, self.split, self.bad, self.links)
        except DataError:
            self.problems.raise_any()  # these are the reason
            raise
        self.images, self.source = self.found.images, self.found.home
        self.keypoints = self._keypoints()  # numbers of an object's keypoints; 0: there are none
        names = self._names()
        self.named = names is not None
        own = self._category_ids(len(names or ()))
        # COCO's ids by class number
        self.ids = {k: own[i] if own else k + 1 for i, k in enumerate(sorted(names or {}))}
        self.categories = [{"id": self.ids[k], "name": name} for k, name in (names or {}).items()]

    def files(self) -> list[Path]:
        found = self.found
        images = (os.path.join(found.images, name) for name in found.names)
        return [*found.lists, *(Path(path) for path in (*filter(None, found.labels), *images))]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        found, count = self.found, 0
        rows = zip(found.names, found.labels, self._sizes(), strict=True)
        for image_id, (name, label, size) in enumerate(rows, 1):
            if isinstance(size, str):
                self.bad(name, size, kind="file")
                continue
            own = self._objects(label, size) if label else []
            for one in own:
                count += 1
                one["id"], one["image_id"] = count, image_id
            height, width = size
            yield {"id": image_id, "file_name": name, "height": height, "width": width}, own
        if not self.named:
            numbers = range(max(self.ids, default=-1) + 1)
            self.categories = [{"id": k + 1, "name": str(k)} for k in numbers]

    def _objects(self, path: str, size: Size) -> list[Record]:
        """The objects of a label file. Bad lines go to `bad`."""
        try:
            with open_regular(path) as file:
                text = file.read()
        except OSError as error:
            self.bad(self._name(path), f"cannot be read: {error.strerror}", kind="file")
            return []
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            self.bad(self._name(path), "is UTF-16", "save it as UTF-8 or ASCII", kind="file")
            return []
        objects = []
        for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
            if parts := line.split():
                try:
                    objects.append(self._object(parts, size, path))
                except _BadLine as error:
                    self.bad(f"{self._name(path)}:{number}", *error.args[:2], kind=error.args[2])
        return objects

    def _name(self, path: str) -> str:
        """A label file as messages name it."""
        return os.path.relpath(path, self.source)

    def _object(self, parts: list[bytes], size: Size, path: str) -> Record:
        """The object of a line that is split into its numbers; `_BadLine` if it has none."""
        try:
            number, values = int(parts[0]), [*map(float, parts[1:])]
        except ValueError:
            number, values = _slowly(parts)
        count, (height, width) = len(values), size
        if count == 5 or (self.keypoints and count == 4 + self.keypoints):
            self.losses.add(KEYPOINTS if self.keypoints else EXTRA, self._name(path))
            values, count = values[:4], 4
        if count < 4 or count % 2 or (self.keypoints and count > 4):
            raise _BadLine(f"has {plural(len(parts), 'number')}", LINE, "value")
        for value in values:
            if not -OUTSIDE <= value <= 1 + OUTSIDE:  # also NaN
                raise _outside(value, values)
        category = self.ids.get(number) or self._new_id(number)
        if count == 4:
            x, y, w, h = values
            w, h = w * width, h * height
            if w < 0 or h < 0:
                raise _BadLine("has a negative width or height", "", "value")
            x, y = round(x * width - w / 2, DIGITS), round(y * height - h / 2, DIGITS)
            w, h = round(w, DIGITS), round(h, DIGITS)
            box, area = [x, y, w, h], round(w * h, DIGITS)
            return {"category_id": category, "bbox": box, "area": area, "iscrowd": 0}
        points = (np.array(values).reshape(-1, 2) * (width, height)).round(DIGITS)
        low, high = points.min(0), points.max(0)
        polygon = points.ravel().tolist()
        return {
            "category_id": category,
            "bbox": [*low.tolist(), *(high - low).round(DIGITS).tolist()],
            "area": round(abs(signed_area(polygon)), DIGITS),
            "iscrowd": 0,
            "segmentation": [polygon],
        }

    def _new_id(self, number: int) -> int:
        """The category of a class number that was not seen before, where classes have no names."""
        if self.named or not 0 <= number < UNNAMED:
            pairs = zip(self.ids, self.categories, strict=True)
            names = listed([f"{k} {one['name']}" for k, one in pairs], 5)
            known = (
                f"the names are {names}"
                if self.named
                else f"without names must be from 0 to {UNNAMED - 1}"
            )
            hint = "correct it, or add the name to data.yaml or classes.txt"
            raise _BadLine(f"the class is {number}, but {known}", hint, "unknown-category")
        self.ids[number] = number + 1
        return number + 1

    def _sizes(self) -> Iterator[Size | str]:
        """(h, w) of each image, or what is wrong with it."""
        paths = [os.path.join(self.images, name) for name in self.found.names]
        pool = ThreadPoolExecutor(THREADS, "sizes")
        try:
            blocks = [paths[i : i + BLOCK] for i in range(0, len(paths), BLOCK)]
            for sizes in pool.map(self._read_sizes, blocks):
                yield from sizes
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_sizes(self, paths: Sequence[str]) -> list[Size | str]:
        sizes: list[Size | str] = []
        for path in paths:
            try:
                sizes.append(read_size(path, self.exif))
            except Refused as refused:
                sizes.append(refused.fault.clause)
        return sizes

    def _names(self) -> dict[int, str] | None:
        """Class names by number; None if there are none."""
        content, where = self.found.content, "data.yaml"
        count = content.get("nc")
        value: Any = self.given_classes or content.get("names") or self.found.classes
        if value is None and count is None:
            return None
        if isinstance(value, dict):
            keys = {key: _number(key) for key in value}
            for key in (key for key, number in keys.items() if number is None):
                self.bad(where, f"names: {short(key)} is not a class number")
            pairs = [(number, value[key]) for key, number in keys.items() if number is not None]
        elif isinstance(value, list):
            pairs = list(enumerate(value))
        elif value is None:
            if (number := _number(count)) is None or number > UNNAMED:
                raise DataError(f"{self.problems.source}: {where}: nc is {short(count)}")
            pairs = [(i, str(i)) for i in range(number)]
        else:
            what = f"names is {short(value)}, not a list or a mapping of numbers"
            raise DataError(f"{self.problems.source}: {where}: {what}")
        names = dict(sorted(pairs))
        if count is not None and self.given_classes is None and _number(count) != len(names):
            what = f"nc is {short(count)}, but there are {plural(len(names), 'name')}"
            self.bad(where, what, "correct one of them")
        seen: dict[str, int] = {}
        for number, name in names.items():
            if not isinstance(name, str) or is_blank(name):
                self.bad("class names", f"class {number} has the name {short(name)}")
            elif seen.setdefault(name, number) != number:
                what = f"classes {seen[name]} and {number} have the name {short(name)}"
                self.bad("class names", what, "make them unique", kind="repeated")
        return names

    def _category_ids(self, count: int) -> list[int]:
        """The ids of the categories that visionkit has written into data.yaml; [] without any."""
        own = self.found.content.get("visionkit")
        found = own.get("category_ids") if isinstance(own, dict) else None
        if found is None or self.given_classes is not None:
            return []
        ids = [_number(text) for text in found] if isinstance(found, list) else []
        if len({*ids} - {None}) != count or len(ids) != count:
            what = f"visionkit.category_ids is {short(found)}"
            self.bad("data.yaml", what, f"must be {plural(count, 'different number')}, or absent")
            return []
        return [id_ for id_ in ids if id_ is not None]

    def _keypoints(self) -> int:
        """How many numbers the keypoints of an object have, by `kpt_shape` of data.yaml."""
        shape = self.found.content.get("kpt_shape")
        numbers = [_number(text) for text in shape] if isinstance(shape, list) else []
        points, each = numbers if len(numbers) == 2 else (None, None)
        return points * each if points and each else 0


class _BadLine(ValueError):
    """A line without an object: what is wrong, a hint, and the kind of finding."""


def _slowly(parts: list[bytes]) -> tuple[int, list[float]]:
    """The class, which may be written as 3.0, and the numbers of a line; `_BadLine` if a part is
    none."""
    numbers = []
    for part in parts:
        try:
            numbers.append(float(part))
        except ValueError:
            text = part.decode("utf-8", "replace")
            hint = (
                "separate numbers by spaces, and write 0.5 with a point" if b"," in part else LINE
            )
            raise _BadLine(f"{short(text)} is not a number", hint, "value") from None
    if not numbers[0].is_integer():  # also infinity and NaN
        raise _BadLine(f"the class is {numbers[0]:g}, not an integer", LINE, "value")
    return int(numbers[0]), numbers[1:]


def _outside(value: float, values: list[float]) -> _BadLine:
    """The error about a number that is not in 0..1."""
    if value > 2:  # or less: a box that is too large
        return _BadLine(f"{value:g} is not in 0..1: pixels, it seems", PIXELS, "relative-boxes")
    return _BadLine(f"{value:g} is not in 0..1", LINE, "coordinate-range")


def _number(text: Any) -> int | None:
    """The number that a text of data.yaml has, of at least 0; None for others."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() else None
