"""Pascal VOC: an XML file for each image (https://host.robots.ox.ac.uk/pascal/VOC/voc2012).

Corners are pixels that count from 1: xmin = 1 is the left edge of the image, and xmax = width the
right one. So a box in COCO's numbers has x = xmin - 1 and width = xmax - xmin + 1.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from visionkit.data.checks.findings import short
from visionkit.data.files import visible_files
from visionkit.data.formats.base import Losses, Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.image_files import (
    ImageCopies,
    ImageFiles,
    base_name,
    check_pixels,
    inner_name,
    part_of,
)
from visionkit.data.formats.named import numbered
from visionkit.data.formats.outlines import boxed, outline_of, outlined, window_rle
from visionkit.data.formats.writing import IDS, NewNames, as_text, warn_without
from visionkit.data.formats.xml import (
    LARGEST,
    Element,
    XmlFault,
    escape,
    fits,
    number,
    read_children,
    typed,
)
from visionkit.data.image_io import Refused, Size, label_mode_fault, open_image
from visionkit.errors import DataError, is_blank, listed, printable

FLAGS = ("difficult", "truncated", "occluded")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
VOID = 255  # pixels of no object in the PNGs of segmentations
_FLAG_VALUES = {"1": True, "true": True, "0": False, "false": False}
UNKNOWN = ("", "unspecified")  # values that mean that nothing is known
_READ = {"name", "bndbox", "pose", "attributes", *FLAGS}
_LOST = {
    "part": "parts of objects (<part>)",
    "actions": "lists of actions (<actions>)",
    "point": "points of objects (<point>)",
    "polygon": "polygons next to boxes (<polygon>)",
}
_LISTS = ("ImageSets/Main", "ImageSets/Segmentation", "ImageSets/Layout")


class _File(NamedTuple):
    """A file of annotations: its path below the source, and below the folder of annotations
    without the suffix."""

    path: str
    stem: str


class VocReader(Reader):
    """Pascal VOC: a folder with `Annotations` and `JPEGImages`, or XML files next to images.

    `split` is a list `ImageSets/Main/<split>.txt`, else a folder of that name. The attributes are
    `difficult`, `truncated`, `occluded`, `pose` and those of an `<attributes>` element. Masks are
    read from `SegmentationObject`.
    """

    name = "Pascal VOC"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        self._list: Path | None = None  # the file of the split
        self.root = self._find_root()
        self._listed = self._read_list()
        folder = self.root
        if self._listed is None and self.split is not None:
            folder = self.root / self._part_folder()
        annotations = folder / "Annotations"
        self.annotations = annotations if annotations.is_dir() else folder
        self._xml = self._find_files()
        if not self._xml and not self.problems.count:
            hint = "expected a folder with Annotations/*.xml, or XML files next to images"
            raise DataError(f"{self.problems.source}: there are no XML files; {hint}")
        if options.get("images") is None:
            names = ("JPEGImages", "images", "Images")
            homes = [folder / name for name in names if (folder / name).is_dir()]
            homes += [home for home in (self.annotations, folder) if ImageFiles(home).names]
            self.images = homes[0] if homes else self.annotations

    @cached_property
    def _images(self) -> ImageFiles:
        return ImageFiles(self.images, self.links, self.exif)

    def files(self) -> list[Path]:
        """The XML files, and what else the records depend on."""
        masks = sorted((self.root / "SegmentationObject").rglob("*.png"))
        lists = [] if self._list is None else [self._list]
        return [*(self.root / one.path for one in self._xml), *lists, *masks, *self._images.paths()]

    def _find_root(self) -> Path:
        """The folder with `Annotations`: the source, or the only such folder in it."""
        if self.source.is_file():
            hint = "name the folder of the XML files"
            raise DataError(f"{self.problems.source}: is a file: {hint}")
        if not self.source.is_dir():
            raise DataError(f"{self.problems.source}: is not a folder: check the path")
        homes = [path.parent for path in sorted(self.source.glob("*/Annotations"))]
        homes += [path.parent for path in sorted(self.source.glob("VOCdevkit/*/Annotations"))]
        if (self.source / "Annotations").is_dir() or not homes:
            return self.source
        names = [str(home.relative_to(self.source)) for home in homes]
        if self.split is not None and part_of(names, self.split):
            return self.source
        if len(homes) > 1:
            found = listed([printable(name) for name in names])
            raise DataError(f"{self.problems.source}: has {found}; name one of these folders")
        return homes[0]

    def _part_folder(self) -> str:
        """The folder of the split, for example `train` as Roboflow writes it."""
        folders = sorted(e.name for e in os.scandir(self.root) if e.is_dir())
        if (found := part_of(folders, str(self.split))) is not None:
            return found
        lists = sorted({path.stem for path in self.root.glob("ImageSets/Main/*.txt")})
        known = listed([printable(name) for name in lists or folders])
        what = f"there is neither a list ImageSets/Main/{self.split}.txt nor a folder {self.split}"
        raise DataError(f"{self.problems.source}: {what}; there are: {known}")

    def _read_list(self) -> dict[str, str] | None:
        """The names in the list of the split, by `file:line`; None without such a list."""
        if self.split is None or {"/", "\\", "\0"} & set(self.split):
            return None
        for folder in _LISTS:
            path = self.root / folder / f"{self.split}.txt"
            if path.is_file():
                self._list = path
                try:
                    lines = path.read_text(encoding="utf-8-sig").splitlines()
                except (OSError, ValueError) as error:
                    raise DataError(f"{printable(path)} cannot be read [{error}]") from None
                numbers = enumerate(map(str.strip, lines), 1)
                return {f"{folder}/{path.name}:{i}": line for i, line in numbers if line}
        return None

    def _find_files(self) -> list[_File]:
        """Those of the list of the split, else all below the folder of annotations."""
        found = {}
        for folder, name in visible_files(self.annotations):
            if name.lower().endswith(".xml"):
                path = os.path.join(folder, name)
                inside = _relative(path, self.annotations)[: -len(".xml")]
                found[inside] = _File(_relative(path, self.root), inside)
        if self._listed is None:
            return [found[inside] for inside in sorted(found)]
        chosen: dict[str, _File] = {}
        for where, line in self._listed.items():
            # A list of one class says for each image whether it is there: 1, 0 or -1.
            names = (line, re.sub(r"\s+(-1|0|1)$", "", line), os.path.splitext(line)[0])
            stem = next((name for name in names if name in found), "")
            if not stem:
                what = f"{short(line)} has no XML file in {printable(self.annotations.name)}"
                self.bad(where, what, kind="missing-file")
            elif stem in chosen:
                self.bad(where, f"{short(line)} is listed twice", kind="repeated")
            else:
                chosen[stem] = found[stem]
        return [*chosen.values()]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        return numbered(self, self._read())

    def _read(self) -> Iterator[tuple[Record, list[Record]]]:
        images = self._images
        file_of: dict[str, str] = {}  # the XML file by image
        for file in self._xml:
            try:
                root = self._parse(file)
                image = self._image(file, root, images)
                if (other := file_of.setdefault(image["file_name"], file.path)) != file.path:
                    raise ValueError(f"the image {image['file_name']!r} is also that of {other}")
            except XmlFault as fault:
                where = f"{file.path}:{fault.line}" if fault.line else file.path
                self.bad(where, fault.what, fault.hint, kind="file")
                continue
            except ValueError as error:
                self.bad(file.path, str(error), kind="image")
                continue
            objects = [one for one in root.children if one.tag == "object"]
            found = [self._object(file, one, image) for one in objects]
            self._add_masks(file, found, image)
            yield image, [one for one in found if one is not None]
        if self._listed is None:
            for unlabeled in images.names:
                if unlabeled not in file_of:
                    self.losses.add("images without an XML file", unlabeled)

    def _parse(self, file: _File) -> Element:
        path = self.root / file.path
        if path.is_file() and path.stat().st_size > LARGEST:
            raise XmlFault(0, f"has more than {LARGEST >> 20} MB: is it one image's?")
        return Element("annotation", {}, 1, "", [*read_children(path, "annotation")])

    def _image(self, file: _File, root: Element, images: ImageFiles) -> Record:
        """The record of the image. ValueError if it cannot be found or has no size."""
        named, folder = root.text_of("filename"), os.path.dirname(file.stem)
        base = base_name(named)
        names = [os.path.join(folder, base)] if base else []
        with suppress(ValueError):
            names.append(inner_name(named))
        name = images.find(*names, file.stem + os.path.splitext(base)[1])
        size = _size(root)
        if name is not None:
            size = images.size(name, size)
        elif images.names or not names:
            wanted = f"{named!r} (<filename>)" if named else f"{file.stem!r} (no <filename>)"
            raise ValueError(f"the image {wanted} is not in {self.images}")
        if size is None:
            raise ValueError("there is no <size> with a width and height, and the image is missing")
        check_pixels(size)
        return {"file_name": name or inner_name(names[0]), "height": size[0], "width": size[1]}

    def _object(self, file: _File, element: Element, image: Record) -> Record | None:
        """The record of an object; None if it is malformed."""
        where, faults = f"{file.path}:{element.line}", []
        name = element.text_of("name")
        if is_blank(name):
            faults.append("it has no <name>")
        box: Record = {}
        try:
            left, top, right, bottom = _corners(element)
            box = boxed(left - 1, top - 1, right, bottom)
            if min(left, top) < 1:
                kind = "corners at 0, where pixels count from 1 (if they count from 0, boxes are"
                self.losses.add(f"{kind} off by one)", where)
        except ValueError as error:
            faults.append(str(error))
        attributes: dict[str, Any] = {}
        for flag in FLAGS:
            value = element.text_of(flag).lower()
            if value in _FLAG_VALUES:
                attributes[flag] = _FLAG_VALUES[value]
            elif value not in UNKNOWN:
                faults.append(f"<{flag}> is {short(value)}: must be 0 or 1")
        if (pose := element.text_of("pose")).lower() not in UNKNOWN:
            attributes["pose"] = pose
        more = element.child("attributes")
        for one in more.children if more is not None else ():
            if (key := one.text_of("name")) and (text := one.text_of("value")):
                attributes[key] = typed(text)
        if faults:
            self.bad(where, "object: " + "; ".join(faults))
            return None
        for one in element.children:
            if one.tag not in _READ:
                kind = _LOST.get(one.tag, "elements that are not known")
                self.losses.add(kind, f"{file.path}:{one.line}: <{one.tag}>")
        record: Record = {"category": name, **box, "iscrowd": 0, "source": where}
        return record | ({"attributes": attributes} if attributes else {})

    def _add_masks(self, file: _File, found: list[Record | None], image: Record) -> None:
        """Add the masks of `SegmentationObject`, where the pixels of object k are k."""
        path = self.root / "SegmentationObject" / f"{file.stem}.png"
        if not path.is_file():
            if (self.root / "SegmentationClass" / f"{file.stem}.png").is_file():
                self.losses.add("semantic maps (SegmentationClass)", file.stem)
            return
        where, size = _relative(path, self.root), (image["height"], image["width"])
        try:
            values = open_image(path, _indices)
        except Refused as refused:
            self.bad(where, refused.fault.clause, kind="mask")
            return
        numbers = np.unique(values[values != VOID])
        if values.shape != size:
            what = f"is {values.shape[1]}x{values.shape[0]}, but its image {size[1]}x{size[0]}"
            self.bad(where, what, kind="mask")
        elif numbers.max(initial=0) > len(found):
            what = f"has the value {numbers.max()}, but {file.path} has {len(found)} objects"
            self.bad(where, what, kind="mask")
        else:
            for number_, record in enumerate(found, 1):
                if record is not None and number_ in numbers:
                    rle = window_rle((values == number_).astype(np.uint8), 0, 0, size)
                    mask = outlined([], [rle], size)
                    record |= {**mask, "bbox": record["bbox"]}


def _relative(path: str | Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _size(root: Element) -> Size | None:
    """(h, w) of `<size>`; None if it is not there or 0."""
    size = root.child("size")
    if size is None:
        return None
    height, width = (number(size.text_of(tag) or "0") for tag in ("height", "width"))
    if min(height, width) < 0 or height % 1 or width % 1:
        raise ValueError(f"<size> is {width:g}x{height:g}: must be integers of at least 1")
    return (int(height), int(width)) if height and width else None


def _corners(element: Element) -> list[float]:
    """xmin, ymin, xmax, ymax of an object. ValueError if they are not a box."""
    box = element.child("bndbox")
    if box is None:
        rotated = element.child("robndbox") is not None
        raise ValueError("its box is rotated (<robndbox>)" if rotated else "it has no <bndbox>")
    values, faults = [], []
    for tag in CORNERS:
        try:
            values.append(number(box.text_of(tag)))
        except ValueError as error:
            faults.append(f"<{tag}>: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    for low, high in ((0, 2), (1, 3)):
        if values[high] < values[low]:
            shown = f"{CORNERS[high]} {values[high]:g} is less than {CORNERS[low]} {values[low]:g}"
            raise ValueError(f"{shown}: exchange them")
    return values


def _indices(image: Image.Image) -> np.ndarray:
    if fault := label_mode_fault(image.mode, "save the numbers of the objects"):
        raise Refused(fault)
    return np.array(image)


def write_voc(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write `Annotations`, lists in `ImageSets/Main`, and copies of the images in `JPEGImages`.

    Corners become whole pixels, crowd regions difficult objects, and masks are lost. Attributes
    other than VOC's are in an `<attributes>` element, as CVAT writes them.
    """
    names = NewNames(reader, fits)
    lists: dict[str, list[str]] = {}
    with new_folder(out) as folder:
        copies = ImageCopies(options.images, folder / "JPEGImages", reader.problems)
        for image, own in reader.records():
            name, stem = names.image(image)
            if not name:
                continue
            names.note_keys(image, ("subset",))
            reader.losses.add(IDS, name, 1 + len(own))
            objects = "".join(_object_xml(names, image, one) for one in own)
            text = _XML.format(
                folder=escape(os.path.dirname(name) or "JPEGImages"),
                filename=escape(os.path.basename(name)),
                width=image["width"],
                height=image["height"],
                objects=objects,
            )
            path = folder / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            lists.setdefault(names.part(image), []).append(stem)
            copies.add(image["file_name"], name)
        names.note_unused()
        main = folder / "ImageSets" / "Main"
        main.mkdir(parents=True)
        for part, stems in lists.items():
            (main / f"{part}.txt").write_text("".join(f"{s}\n" for s in stems), encoding="utf-8")
    warn_without(options.images, f"into {out}/JPEGImages")


_XML = """<annotation>
\t<folder>{folder}</folder>
\t<filename>{filename}</filename>
\t<size>
\t\t<width>{width}</width>
\t\t<height>{height}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""


def _object_xml(names: NewNames, image: Record, one: Record) -> str:
    """One object; "" if it has no area, which is counted."""
    losses, place = names.reader.losses, names.place(image, one)
    mask, bounds = outline_of(one, image)
    box = _whole_corners(bounds, (image["height"], image["width"]), losses, place)
    name = names.category(image, one)
    if box is None or not name:
        return ""
    names.note_keys(image, (), one)
    if mask:
        losses.add("masks, of which the box remains", place)
    attributes = names.attributes(image, one)
    if one.get("iscrowd"):
        losses.add("crowd regions, which become difficult objects", place)
        attributes["difficult"] = True
    pose = attributes.pop("pose", "Unspecified")
    lines = [f"<name>{escape(name)}</name>", f"<pose>{escape(str(pose))}</pose>"]
    for flag in FLAGS:
        value = attributes.get(flag, False if flag != "occluded" else None)
        if isinstance(value, bool):
            attributes.pop(flag, None)
            lines.append(f"<{flag}>{int(value)}</{flag}>")
    corners = (f"\t<{tag}>{value}</{tag}>" for tag, value in zip(CORNERS, box, strict=True))
    lines += ["<bndbox>", *corners, "</bndbox>"]
    if attributes:
        lines.append("<attributes>")
        for key, value in attributes.items():
            pair = f"<name>{escape(key)}</name><value>{escape(as_text(value))}</value>"
            lines.append(f"\t<attribute>{pair}</attribute>")
        lines.append("</attributes>")
    return "\t<object>\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t</object>\n"


def _whole_corners(box: list[float], size: Size, losses: Losses, place: str) -> list[int] | None:
    """xmin, ymin, xmax, ymax, from 1, of a box x, y, w, h; None if it has no area."""
    if not min(box[2:]) > 0:
        losses.add("objects without area, dropped", place)
        return None
    lows, highs = [], []
    for low, extent, limit in zip(box[:2], box[2:], size[::-1], strict=True):
        first, last = math.floor(low + 0.5) + 1, math.floor(low + extent + 0.5)
        if last < first:  # less than a pixel: the one with its center
            first = last = min(max(math.floor(low + extent / 2), 0), limit - 1) + 1
        lows.append(first)
        highs.append(last)
    if any(value % 1 for value in (*box[:2], box[0] + box[2], box[1] + box[3])):
        losses.add("boxes rounded to whole pixels", place)
    return [*lows, *highs]
