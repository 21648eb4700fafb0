"""Semantic maps and instance maps: images whose pixels are numbers or colors of classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import Problems, short
from visionkit.data.files import unusable, visible_files
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.color_tables import (
    BUILT_IN,
    NAMES_FILES,
    ClassTable,
    Value,
    read_classes,
    table_of,
)
from visionkit.data.formats.image_files import ImageFiles, part_of
from visionkit.data.image_io import SUFFIXES, Refused, deep_values, open_image
from visionkit.data.map_files import color_codes, map_pairs
from visionkit.errors import DataError, listed, plural, printable
from visionkit.types import IGNORE

BACKGROUND = ("background", "_background_")  # classes that are not objects
IMAGES = ("images", "imgs", "img", "JPEGImages", "image")
MAPS = ("labels", "masks", "annotations", "maps", "SegmentationClass", "label", "mask")
_CITYSCAPES = re.compile(
    r"(.*)(_gt(?:Fine|Coarse)_)(instanceIds|labelIds|labelTrainIds|color)\.png"
)
_KINDS = ("instanceIds", "labelIds", "labelTrainIds", "color")  # the best first
THINGS = 24  # the first class of Cityscapes with instances
READ_FIRST = 100  # maps whose values suggest classes
BORDERS = (255, 224 << 16 | 224 << 8 | 192)  # of the objects in VOC's maps


class Layout(NamedTuple):
    """Where the files of a dataset are, and what they are called."""

    images: Path
    maps: Path | None
    table: ClassTable
    labels_pattern: str = "{stem}.png"
    images_pattern: str | None = None
    instances: Path | None = None  # maps of objects, with the names of the others
    by_thousand: bool = False  # Cityscapes: class * 1000 + object
    split_file: Path | None = None
    split_folder: str = ""  # of images and of maps


class MasksReader(Reader):
    """Maps of classes and of objects.

    A semantic map becomes one object for each class and image, as it does not separate objects. A
    map of instances (`instances`, `SegmentationObject`, Cityscapes' `instanceIds`) becomes one for
    each instance. The class `background` is not an object.

    classes: names, numbered from 0; for each name a number or a color [r, g, b]; or one of
        `color_tables.BUILT_IN`. By default that of Cityscapes, ADE20K or Pascal VOC if the files
        have their names, else a file `classes.txt` (yaml, json, csv) or CVAT's `labelmap.txt`.
    """

    name = "maps of classes"

    def __init__(
        self,
        source: str | Path,
        *,
        classes: Sequence[str] | Mapping[str, Value] | None = None,
        **options: Any,
    ):
        super().__init__(source, classes=None if classes is None else [*classes], **options)
        if not self.source.is_dir():
            raise DataError(f"{self.problems.source}: is not a folder: name a folder with maps")
        given = None if classes is None else table_of(classes)
        images = None if options.get("images") is None else self.images
        self.layout = find_layout(self.source, images, given, self.split)
        self.images = self.layout.images
        self.table = self.layout.table
        ids = self.table.ids
        self._objects = [name.casefold() not in BACKGROUND for name in self.table.names]
        self.categories = [
            {"id": id_, "name": name}
            for id_, name, kept in zip(ids, self.table.names, self._objects, strict=True)
            if kept
        ]
        self._ids = ids
        self._values: set[int] = set()  # of all maps

    def files(self) -> list[Path]:
        layout = self.layout
        roots = [root for root in (layout.maps, layout.instances) if root is not None]
        found = [os.path.join(*both) for root in roots for both in visible_files(root)]
        return [Path(path) for path in sorted(found)]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        layout = self.layout
        images = ImageFiles(layout.images, self.links)
        count, image_id = 0, 0
        for name, map_name in self._pairs():
            image_id += 1
            where = f"{os.path.basename(self._root)}/{map_name}"
            try:
                found = self._read_one(map_name, where)
                height, width = found.shape
                images.size(name, (height, width))
            except ValueError as error:
                self.bad(where, str(error), kind="class-map")
                continue
            own = []
            for one in found.objects:
                count += 1
                own.append({"id": count, "image_id": image_id, **one, "source": where})
            yield {"id": image_id, "file_name": name, "height": height, "width": width}, own
        if not count and image_id and self._values <= {0, 255}:
            what = "the maps have the values 0 and 255 alone, and 255 is not labeled"
            hint = f"if it is a class, write {_two_lines(Path(self._root))}"
            self.problems.add("", what, hint, kind="class-map")

    @property
    def _root(self) -> Path:
        root = self.layout.maps or self.layout.instances
        assert root is not None
        return root

    def _pairs(self) -> list[tuple[str, str]]:
        """The names of the images and of their maps; those without the other are bad."""
        layout, problems = self.layout, Problems(self.problems.source, self.problems.file)
        patterns = (layout.images_pattern, layout.labels_pattern)
        split = None if layout.split_file is None else str(layout.split_file)
        found = map_pairs(layout.images, self._root, patterns, split, problems)
        pairs = [*zip(*found, strict=True)]
        if layout.split_folder:
            start = f"{layout.split_folder}/"
            pairs = [pair for pair in pairs if pair[1].startswith(start)]
            problems.findings = [f for f in problems.findings if str(f.value).startswith(start)]
        refused: set[int] = set()
        for k, root in ((0, layout.images), (1, self._root)):
            for i, kind, what in unusable(root, [pair[k] for pair in pairs], self.links):
                refused.add(i)
                problems.add(pairs[i][k], what, kind=kind)
        for fault in problems.findings:
            self.bad("", fault.message, fault.hint, kind=fault.kind)
        return [pair for i, pair in enumerate(pairs) if i not in refused]

    def _read_one(self, name: str, where: str) -> _Found:
        """The objects in the maps of an image. ValueError for what cannot be used."""
        layout = self.layout
        classes = None
        if layout.maps is not None:
            values = read_values(layout.maps / name, colored=not self.table.numbers)
            self._values.update(np.unique(values.numbers).tolist()[:3])
            if layout.by_thousand:
                return self._by_thousand(values.numbers, where)
            classes = self._classes(values, where)
        if layout.instances is None:
            assert classes is not None
            return self._regions(classes, where)
        instances = read_values(layout.instances / name, colored=False).numbers
        if classes is not None and classes.shape != instances.shape:
            sizes = " and ".join(f"{s[1]}x{s[0]}" for s in (classes.shape, instances.shape))
            raise ValueError(f"the maps of classes and of instances have the sizes {sizes}")
        return self._instances(instances, classes, where)

    def _classes(self, values: _Values, where: str) -> np.ndarray:
        """(h, w) the place of the class of each pixel, -1 where it is not labeled. ValueError for
        values of no class."""
        table = self.table.colors if values.are_colors else self.table.numbers
        if not table:
            kind = "colors" if values.are_colors else "numbers"
            raise ValueError(
                f"it has {kind}, but the classes have none: name them by --classes FILE"
            )
        found, inverse = np.unique(values.numbers, return_inverse=True)
        known = [table.get(int(value)) for value in found]
        unknown = [int(v) for v, place in zip(found, known, strict=True) if place is None]
        if unknown:
            counts = np.isin(values.numbers, unknown).sum()
            shown = [_color(v) for v in unknown] if values.are_colors else unknown
            pixels = plural(int(counts), "pixel")
            what = "colors" if values.are_colors else "values"
            raise ValueError(
                f"has {pixels} with {what} of no class: {listed(shown, 5)}; name them in a file "
                "(--classes FILE), as `ignore` if they are of no class"
            )
        classes = np.array(known, np.int64)[inverse.reshape(values.numbers.shape)]
        if (classes < 0).any():
            kind = "maps with pixels that are not labeled, which become background"
            self.losses.add(kind, where)
        return classes

    def _regions(self, classes: np.ndarray, where: str) -> _Found:
        """An object for each class that a map has."""
        objects = []
        for place in np.unique(classes).tolist():
            if place >= 0 and self._objects[place]:
                objects.append(self._object(classes == place, place))
                kind = "regions of a class, of which each becomes one object (maps do not separate"
                self.losses.add(f"{kind} objects)", f"{where}: {self.table.names[place]}")
        return _Found(classes.shape, objects)

    def _by_thousand(self, numbers: np.ndarray, where: str) -> _Found:
        """The objects of Cityscapes: class * 1000 + number, or the class alone for a region of
        several, and for classes without instances."""
        objects, unknown = [], []
        for value in np.unique(numbers).tolist():
            number = value // 1000 if value >= 1000 else value
            place = self.table.numbers.get(number)
            if place is None:
                unknown.append(value)
            elif place < 0:
                kind = "maps with pixels that are not labeled, which become background"
                self.losses.add(kind, where)
            else:
                crowd = value < 1000 and number >= THINGS
                objects.append(self._object(numbers == value, place, crowd=crowd))
        if unknown:
            raise ValueError(f"has values of no class: {listed(unknown, 5)}")
        return _Found(numbers.shape, objects)

    def _instances(self, numbers: np.ndarray, classes: np.ndarray | None, where: str) -> _Found:
        """The objects of a map of instances, of which each has the class of most of its pixels."""
        objects = []
        places = [place for place, kept in enumerate(self._objects) if kept]
        for value in np.unique(numbers).tolist():
            if value == 0 or (value in BORDERS and classes is not None):
                continue
            mask = numbers == value
            place = places[0]
            if classes is not None:
                votes = Counter(classes[mask].tolist())
                place = max(votes, key=lambda p: (p >= 0 and self._objects[p], votes[p]))
                if place < 0 or not self._objects[place]:
                    raise ValueError(f"the instance {value} has no pixel with a class")
                if len(votes) > 1:
                    kind = "instances over several classes, of which the most frequent is kept"
                    self.losses.add(kind, f"{where}: instance {value}")
            objects.append(self._object(mask, place))
        return _Found(numbers.shape, objects)

    def _object(self, mask: np.ndarray, place: int, *, crowd: bool = False) -> Record:
        return {"category_id": self._ids[place], **masked(mask), "iscrowd": int(crowd)}


def masked(mask: np.ndarray) -> Record:
    """Segmentation, box and area of a mask (h, w) bool, which is not empty."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    box, area = coco_mask.toBbox(code).tolist(), float(coco_mask.area(code))
    counts = {"size": [int(side) for side in mask.shape], "counts": code["counts"].decode()}
    return {"segmentation": counts, "bbox": box, "area": area}


@dataclass(frozen=True)
class _Found:
    shape: tuple[int, ...]
    objects: list[Record]


class _Values(NamedTuple):
    numbers: np.ndarray  # (h, w) int64
    are_colors: bool  # as one number each


def read_values(path: Path, *, colored: bool) -> _Values:
    """The numbers of a map of 1, 8 or 16 bits, gray or with a palette; or its colors, if it has
    three channels or `colored` is set. ValueError if it cannot be read."""

    def values(image: Image.Image) -> _Values:
        image.load()
        if (deep := deep_values(image)) is not None:
            if deep.dtype.kind == "f":
                raise ValueError("has floating-point pixels: save integers")
            return _Values(deep.astype(np.int64), False)
        if image.mode == "1":
            image = image.convert("L").point(lambda value: value // 255)
        if image.mode in ("LA", "La", "PA"):
            raise ValueError("has alpha: save its first channel alone")
        if image.mode in ("L", "P") and not colored:
            return _Values(np.asarray(image).astype(np.int64), False)
        rgb = np.asarray(image.convert("RGB")).astype(np.int64)
        return _Values(color_codes(rgb.transpose(2, 0, 1)), True)

    try:
        return open_image(path, values)
    except Refused as refused:
        cause = refused.__cause__
        raise ValueError(
            str(cause) if type(cause) is ValueError else refused.fault.clause
        ) from None


def _color(code: int) -> str:
    return str([code >> 16, code >> 8 & 255, code & 255])


# --- Where the files are -------------------------------------------------------------------------


def find_layout(
    source: Path, images: Path | None, table: ClassTable | None, split: str | None
) -> Layout:
    """The files below `source`. DataError if they are not found, which says what was expected."""
    found = _cityscapes(source, images, table, split)
    if found is not None:
        return found
    root = source
    names = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
    if split is not None and _folder(source, MAPS) is None:  # train/images, train/masks
        root = source / (part_of(names, split) or split)
    instances = _folder(root, ("instances", "SegmentationObject"))
    maps = _folder(root, MAPS)
    folder = images or _folder(root, IMAGES)
    if maps is None and instances is None and images is not None:
        maps = root  # the folder of the maps itself
    if maps is None and instances is None:
        raise DataError(
            f"maps {printable(root)}: there are no maps: expected a folder {' or '.join(MAPS[:3])} "
            f"or instances next to {IMAGES[0]}, or Pascal VOC's, ADE20K's or Cityscapes' folders; "
            f"it has {listed([printable(name) for name in names])}; or name the folder of maps, "
            "and the images with --images"
        )
    if folder is None:
        hint = f"expected a folder {' or '.join(IMAGES[:4])}, or name it with --images"
        raise DataError(f"maps {printable(root)}: there are no images: {hint}")
    base = maps or instances
    assert base is not None
    first = _first_name(base)
    table = table or _known_table(root, base, first)
    single = sum(name.casefold() not in BACKGROUND for name in table.names) == 1
    if maps is None and not single:
        raise DataError(
            f"maps {printable(root)}: a map of instances needs maps of classes of the same names "
            f"(a folder {' or '.join(MAPS[:3])}), or one class"
        )
    layout = Layout(folder, maps, table, instances=instances)
    pattern = _labels_pattern(folder, base, first)
    return _with_split(layout._replace(labels_pattern=pattern), root, split)


def _folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders that is there, in any capitals."""
    try:
        found = {entry.name.casefold(): entry.name for entry in os.scandir(root) if entry.is_dir()}
    except OSError:
        return None
    return next((root / found[n.casefold()] for n in names if n.casefold() in found), None)


def _first_name(root: Path) -> str:
    """The first image file below a folder; "" without any."""
    names = (name for _, name in visible_files(root) if name.lower().endswith(SUFFIXES))
    return min(names, default="")


def _known_table(root: Path, maps: Path, first: str) -> ClassTable:
    """The classes of a file of names, or of a well-known dataset by the names of its files."""
    for folder in dict.fromkeys((maps.parent, root, maps)):
        for name in NAMES_FILES:
            if (folder / name).is_file():
                return table_of(read_classes(folder / name))
    if re.fullmatch(r"ADE_(train|val)_\d{8}\.png", first):
        return BUILT_IN["ade20k"]
    if maps.name in ("SegmentationClass", "SegmentationObject"):
        return BUILT_IN["voc"]
    if count := _black_and_white(maps):
        shown = "1 map has" if count == 1 else f"{count} maps have"
        raise DataError(
            f"maps {printable(maps)}: unknown classes: the first {shown} the values 0 and 255 "
            f"alone: write {_two_lines(maps)} (`object` can have another name)"
        )
    raise DataError(
        f"maps {printable(maps)}: unknown classes: write their names in the order of the "
        f"numbers to {printable(maps.parent / 'classes.txt')}, or name a file with --classes: "
        "`name: number` or `name: [r, g, b]` in each line of a .yaml; or one of "
        f"{', '.join(BUILT_IN)}"
    )


def _two_lines(maps: Path) -> str:
    """The classes of maps that have 0 and 255 alone, and their file."""
    file = printable(maps.parent / "classes.txt")
    return f"two lines to {file}: `background: 0` and `object: 255`"


def _black_and_white(maps: Path) -> int:
    """How many maps were read if all have the values 0 and 255 alone, else 0."""
    names = sorted(name for _, name in visible_files(maps) if name.lower().endswith(SUFFIXES))
    found: set[int] = set()
    for name in names[:READ_FIRST]:
        try:
            found.update(np.unique(read_values(maps / name, colored=False).numbers).tolist())
        except ValueError:
            return 0
        if not found <= {0, IGNORE}:
            return 0
    return len(names[:READ_FIRST]) if IGNORE in found else 0


def _labels_pattern(images: Path, maps: Path, first: str) -> str:
    """How maps are called: as their images, or with an ending that all share, such as `_mask`."""
    suffix = os.path.splitext(first)[1] or ".png"
    stems = {
        folder: {
            os.path.splitext(n)[0] for _, n in visible_files(folder) if n.lower().endswith(SUFFIXES)
        }
        for folder in (images, maps)
    }
    ours, theirs = stems[images], stems[maps]
    if not ours & theirs:
        endings = {stem[stem.rfind("_") :] if "_" in stem else "" for stem in theirs}
        ending = endings.pop() if len(endings) == 1 else ""
        if ending and {stem.removesuffix(ending) for stem in theirs} & ours:
            return "{stem}" + ending + suffix
    return "{stem}" + suffix


def _with_split(layout: Layout, root: Path, split: str | None) -> Layout:
    """The part of the data that a list names (VOC), or a folder of the images and of the maps."""
    lists = root / "ImageSets" / "Segmentation"
    if split is None:  # where only some of the images have maps
        usual = [lists / name for name in ("trainval.txt", "default.txt")]
        return layout._replace(split_file=next((path for path in usual if path.is_file()), None))
    if root.name == split:
        return layout
    if {"/", "\\", "\0"} & {*split}:
        raise DataError(f"split {short(split)}: must be a name")
    listed_in = lists / f"{split}.txt"
    if listed_in.is_file():
        return layout._replace(split_file=listed_in)
    base = layout.maps or layout.instances
    assert base is not None
    names = sorted(entry.name for entry in os.scandir(base) if entry.is_dir())
    found = part_of(names, split)
    if found is None and split in ("val", "train"):
        found = part_of(names, {"val": "validation", "train": "training"}[split])
    if found is None:
        there = f"neither {printable(listed_in)} nor a folder {split} in {printable(base)}"
        raise DataError(f"split {short(split)}: there is {there}, which has {listed(names)}")
    return layout._replace(split_folder=found)


def _cityscapes(
    source: Path, images: Path | None, table: ClassTable | None, split: str | None
) -> Layout | None:
    """The layout of Cityscapes: the best kind of maps that is there."""
    root = next((source / n for n in ("gtFine", "gtCoarse") if (source / n).is_dir()), source)
    names: dict[str, re.Match[str]] = {}
    for _, name in visible_files(root):
        if match := _CITYSCAPES.fullmatch(name):
            names.setdefault(match[3], match)
            if match[3] == _KINDS[0]:
                break
    if not names:
        return None
    if table is not None and not table.numbers:
        kinds: tuple[str, ...] = ("color",)
    elif table is not None and table.names == BUILT_IN["cityscapes-train"].names:
        kinds = ("labelTrainIds",)
    else:
        kinds = _KINDS
    kind = next((kind for kind in kinds if kind in names), None)
    folder = images or (source / "leftImg8bit")
    if kind is None or not folder.is_dir():
        what = f"there are no maps *_{kinds[0]}.png" if kind is None else "there is no leftImg8bit"
        raise DataError(f"maps {printable(source)}: {what}; name the images with --images")
    default = BUILT_IN["cityscapes-train" if kind == "labelTrainIds" else "cityscapes"]
    layout = Layout(
        folder,
        root,
        table or default,
        labels_pattern=f"{{stem}}{names[kind][2]}{kind}.png",
        images_pattern="{stem}_leftImg8bit.png",
        by_thousand=kind == "instanceIds",
    )
    return _with_split(layout, source, split)
