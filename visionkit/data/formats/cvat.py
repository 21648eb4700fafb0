"""CVAT for images 1.1: one XML file (https://docs.cvat.ai/docs/dataset_management/formats/)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.checks.findings import short
from visionkit.data.formats.base import Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.image_files import (
    ImageCopies,
    ImageFiles,
    base_name,
    check_pixels,
    inner_name,
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
    turned,
    window_of,
    window_rle,
)
from visionkit.data.formats.writing import OBJECT_IDS, NewNames, as_text, warn_without
from visionkit.data.formats.xml import (
    Element,
    XmlFault,
    escape,
    fits,
    number,
    read_children,
    typed,
)
from visionkit.data.image_io import Size
from visionkit.errors import DataError, is_blank, listed, plural, printable

FILE = "annotations.xml"
CROWD = "is_crowd"  # the attribute of crowd regions, as in CVAT's own export to COCO
_SHAPES = ("box", "polygon", "mask", "ellipse")
_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid")
_OF_IMAGE = {"id", "name", "width", "height", "subset", "task_id"}
_TYPES = {"checkbox": (bool,), "number": (int, float)}  # of attributes, by the kind of input
MOST_CHOICES = 20  # values of a text attribute that is offered as a list


class CvatReader(Reader):
    """CVAT for images 1.1: `annotations.xml` or its folder.

    Classes are the labels of the project, task or job in their order. Shapes with one `group_id`
    and label are one object. Tags are the classes of the image. `occluded` is an attribute, and the
    attribute `is_crowd` marks crowd regions. `split` is a subset.
    """

    name = "CVAT"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        self.file = self._find_file()
        if options.get("images") is None:
            folder = self.file.parent
            self.images = folder / "images" if (folder / "images").is_dir() else folder
        self._kinds: dict[tuple[str, str], str] = {}  # of input, by label and attribute
        self._labels: list[str] = []
        self._in_project = False

    @cached_property
    def _images(self) -> ImageFiles:
        return ImageFiles(self.images, self.links, self.exif)

    def files(self) -> list[Path]:
        """The XML file, and what else the records depend on."""
        return [self.file, *self._images.paths()]

    def _find_file(self) -> Path:
        if self.source.suffix.lower() == ".zip":
            hint = f"unpack it and name the folder with {FILE}"
            raise DataError(f"{self.problems.source}: is a zip archive: {hint}")
        if not self.source.is_dir():
            return self.source
        found = sorted(path for path in self.source.glob("*.xml") if path.is_file())
        if (self.source / FILE).is_file():
            return self.source / FILE
        if len(found) == 1:
            return found[0]
        names = listed([printable(path.name) for path in found])
        what = f"has several XML files: {names}; name one" if found else "has no XML file"
        archives = ": unpack the zip archive in it" if any(self.source.glob("*.zip")) else ""
        raise DataError(f"{self.problems.source}: {what}{archives}")

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        self._read_meta()
        return numbered(self, self._read(), self._labels or None)

    def _read_meta(self) -> None:
        """Note the labels, and how their attributes are given."""
        try:
            for element in read_children(self.file, "annotations"):
                if element.tag == "meta":
                    self._note_meta(element)
                if element.tag in ("image", "track"):
                    return
        except XmlFault:
            return  # `_read` reports it

    def _note_meta(self, meta: Element) -> None:
        for job in meta.children:
            self._in_project |= job.tag == "project"
            labels = job.child("labels")
            for label in labels.children if labels is not None else ():
                name, attributes = label.text_of("name"), label.child("attributes")
                if name and name not in self._labels:
                    self._labels.append(name)
                for one in attributes.children if attributes is not None else ():
                    self._kinds[name, one.text_of("name")] = one.text_of("input_type")

    def _read(self) -> Iterator[tuple[Record, list[Record]]]:
        images = self._images
        seen: dict[Any, str] = {}  # places by id and by file name
        subsets: set[str] = set()
        tracks = 0
        try:
            for element in read_children(self.file, "annotations"):
                tracks += element.tag == "track"
                if element.tag != "image":
                    continue
                if (subset := element.attributes.get("subset", "")) and self.split is not None:
                    subsets.add(subset)
                if self.split is not None and part_of([subset], self.split) is None:
                    continue
                if (image := self._image(element, images, seen)) is not None:
                    yield image, self._objects(element, image)
        except XmlFault as fault:
            where = f"{self.file.name}:{fault.line}" if fault.line else self.file.name
            self.problems.add(printable(where), fault.what, fault.hint, kind="file")
        if tracks:
            what = f"is CVAT for video, with {plural(tracks, 'track')} and without image names"
            hint = 'export it from CVAT as "CVAT for images 1.1"'
            self.problems.add(printable(self.file.name), what, hint, kind="file")
        elif self.split is not None and not seen and not self.problems.count:
            found = listed(sorted(map(printable, subsets)))
            what = f"there is no subset {self.split!r}; there are: {found}"
            self.problems.add(printable(self.file.name), what)
        if self.split is None:
            for unlabeled in images.names:
                if unlabeled not in seen:
                    self.losses.add("images that are not in the file", unlabeled)

    def _image(self, element: Element, images: ImageFiles, seen: dict[Any, str]) -> Record | None:
        """The record of an image; None if it is malformed."""
        where, given = f"{self.file.name}:{element.line}", element.attributes
        try:
            size = [_integer(given, key, 1) for key in ("height", "width")]
            inside = inner_name(given.get("name", ""))
            subset, base = given.get("subset", ""), base_name(inside)
            name = images.find(inside, f"{subset}/{inside}", base, f"{subset}/{base}")
            record: Record = {"file_name": name or inside, "height": size[0], "width": size[1]}
            if name is not None:
                images.size(name, (size[0], size[1]))
            elif images.names:
                raise ValueError(f"the image {inside!r} is not in {self.images}")
            check_pixels((size[0], size[1]))
            if not self._in_project and "id" in given:  # tasks of a project count from 0 each
                record["id"] = _integer(given, "id", 0)
            for key in {record["file_name"], record.get("id", record["file_name"])}:
                if (other := seen.setdefault(key, where)) != where:
                    what = "name" if isinstance(key, str) else "id"
                    raise ValueError(f"the {what} {short(key)} is also that of {other}")
        except ValueError as error:
            self.bad(where, f"image: {error}", kind="image")
            return None
        if subset:
            record["subset"] = subset
        if more := sorted(given.keys() - _OF_IMAGE):
            self.losses.add("images with other values", f"{where}: {', '.join(more)}")
        tags = [one.attributes.get("label", "") for one in element.children if one.tag == "tag"]
        if tags := list(dict.fromkeys(filter(None, tags))):
            record["image_classes"] = tags
        return record

    def _objects(self, element: Element, image: Record) -> list[Record]:
        """The objects of an image: a shape each, or all with one label and `group_id`."""
        size = image["height"], image["width"]
        parts: list[Part] = []
        for one in element.children:
            where = f"{self.file.name}:{one.line}"
            try:
                if one.tag != "tag":
                    parts.append(self._part(one, size, where))
            except ValueError as error:
                kind = one.tag if one.tag in _WITHOUT_AREA else "shape"
                self.bad(where, f"{one.tag}: {error}", kind=kind)
        return joined(parts, size, CROWD)

    def _part(self, element: Element, size: Size, source: str) -> Part:
        """A shape of an image of `size` (h, w). ValueError if it is malformed or has no area."""
        given, tag = element.attributes, element.tag
        if tag in _WITHOUT_AREA:
            raise ValueError("has no area in the image: draw a polygon or a box")
        if tag not in _SHAPES:
            raise ValueError("is not a shape of CVAT for images 1.1")
        if is_blank(label := given.get("label", "")):
            raise ValueError("has no label")
        box = polygon = rle = None
        if tag == "box":
            left, top, right, bottom = _numbers(given, "xtl", "ytl", "xbr", "ybr")
            if right < left or bottom < top:
                raise ValueError(f"xbr, ybr ({right:g}, {bottom:g}) are less than xtl, ytl")
            if degrees := _numbers(given, "rotation", default="0")[0]:
                center, half = (
                    ((left + right) / 2, (top + bottom) / 2),
                    (right - left, bottom - top),
                )
                corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half / 2
                polygon = turned(corners, center, degrees).ravel().tolist()
            else:
                box = [left, top, right, bottom]
        elif tag == "ellipse":
            degrees = _numbers(given, "rotation", default="0")[0]
            x, y, rx, ry = _numbers(given, "cx", "cy", "rx", "ry")
            polygon = ellipse(x, y, rx, ry, degrees)
        elif tag == "polygon":
            polygon = _points(given.get("points", ""))
        else:
            rle = _rle(given, size)
        if polygon is not None and (fault := fault_of(polygon, size)):
            raise ValueError(fault)
        attributes = self._attributes(element, label)
        if (occluded := given.get("occluded")) is not None:
            if occluded not in ("0", "1"):
                raise ValueError(f"occluded is {short(occluded)}: must be 0 or 1")
            attributes["occluded"] = occluded == "1"
        z_order = _integer(given, "z_order", -(2**31), "0")
        more = {"z_order": z_order} if z_order else {}
        group = _integer(given, "group_id", 0, "0") or None
        return Part(label, group, box, polygon, rle, attributes, more, source)

    def _attributes(self, element: Element, label: str) -> dict[str, Any]:
        """The attributes of a shape, as the definitions of its label say; without empty ones."""
        found: dict[str, Any] = {}
        for one in element.children:
            key, kind = one.attributes.get("name", ""), ""
            if one.tag != "attribute" or not key or not one.text:
                continue
            kind = self._kinds.get((label, key), "")
            is_text = kind in ("select", "radio")
            value = one.text if is_text else typed(one.text)
            if type(value) not in _TYPES.get(kind, (type(value),)):
                expected = "true or false" if kind == "checkbox" else "a number"
                raise ValueError(f"attribute {short(key)} is {short(one.text)}: must be {expected}")
            found[key] = value
        return found


def _numbers(given: dict[str, str], *keys: str, default: str = "") -> list[float]:
    """Numbers among the XML attributes of an element. ValueError for all that are malformed."""
    values, faults = [], []
    for key in keys:
        try:
            values.append(number(given.get(key, default)))
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return values


def _integer(given: dict[str, str], key: str, low: int, default: str = "") -> int:
    value = _numbers(given, key, default=default)[0]
    if value < low or value % 1:
        raise ValueError(f"{key} is {value:g}: must be an integer of at least {low}")
    return int(value)


def _points(text: str) -> list[float]:
    """[x, y, ...] of `x,y;x,y;...`."""
    pairs = [pair.split(",") for pair in text.rstrip(";").split(";")]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"a point is {short(','.join(pair))}: must be x,y")
    return [number(value.strip()) for pair in pairs for value in pair]


def _rle(given: dict[str, str], size: Size) -> Record:
    """The RLE of a mask: run lengths row by row, zeros first, of the pixels of a window."""
    left, top = (_integer(given, key, 0) for key in ("left", "top"))
    width, height = (_integer(given, key, 1) for key in ("width", "height"))
    if width > size[1] or height > size[0]:
        raise ValueError(f"{width}x{height} is larger than the image {size[1]}x{size[0]}")
    runs = []
    for text in given.get("rle", "").split(","):
        if not (text := text.strip()).isdecimal() or len(text) > 10:
            raise ValueError(f"a run length is {short(text)}: must be an integer of at least 0")
        runs.append(int(text))
    if sum(runs) != width * height:
        what = f"the run lengths add up to {sum(runs)}"
        raise ValueError(f"{what}, but {width}x{height} pixels need {width * height}")
    bitmap = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
    return window_rle(bitmap.reshape(height, width), left, top, size)


def write_cvat(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write `annotations.xml`, and copies of the images in `images`.

    Shapes of one object have one `group_id`; RLEs become masks. The attribute `occluded` is that of
    the shape, and crowd regions have the attribute `is_crowd`. Attributes that are lists are lost.
    """
    names = NewNames(reader, fits)
    attributes: dict[str, dict[str, list[Any]]] = {}  # values by class and attribute
    tags: set[str] = set()
    count = 0
    with new_folder(out) as folder:
        copies = ImageCopies(options.images, folder / "images", reader.problems)
        body = folder / "images.part"
        with body.open("w", encoding="utf-8") as file:
            for image, own in reader.records():
                name, _ = names.image(image)
                if not name:
                    continue
                names.note_keys(image, ("subset", "class_id"))
                if own:
                    reader.losses.add(OBJECT_IDS, name, len(own))
                copies.add(image["file_name"], name)
                groups, own_tags = itertools.count(1), _tags(names, image)
                tags.update(own_tags)
                shapes = [f'<tag label="{escape(t)}" source="manual">\n</tag>' for t in own_tags]
                for one in own:
                    shapes += _shapes_xml(names, image, one, attributes, groups)
                subset = image.get("subset")
                given = {"id": image["id"], "name": name}
                given |= {"subset": subset} if isinstance(subset, str) and fits(subset) else {}
                given |= {"width": image["width"], "height": image["height"]}
                lines = [f"    {line}\n" for shape in shapes for line in shape.split("\n")]
                file.write(f"  <image {_given(given)}>\n{''.join(lines)}  </image>\n")
                count += 1
        with (folder / FILE).open("w", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
            file.write("  <version>1.1</version>\n")
            classes = [str(each["name"]) for each in reader.categories]
            file.write(_meta(classes, sorted(tags - set(classes)), attributes, count))
            with body.open(encoding="utf-8") as images:
                shutil.copyfileobj(images, file)
            file.write("</annotations>\n")
        body.unlink()
    warn_without(options.images, f"into {out}/images")


def _given(values: dict[str, Any]) -> str:
    """XML attributes."""
    return " ".join(f'{key}="{escape(str(value))}"' for key, value in values.items())


def _text(value: float) -> str:
    """A coordinate, with all its decimals."""
    return f"{value:.12g}"


def _tags(names: NewNames, image: Record) -> list[str]:
    """The classes of an image."""
    classes, places = names.reader.lists.get("image_classes", []), image.get("class_id")
    places = places if isinstance(places, list) else [places]
    known = [one for one in places if type(one) is int and 0 <= one < len(classes)]
    return [classes[one] for one in known if names.holds(classes[one], "class")]


def _shapes_xml(
    names: NewNames,
    image: Record,
    one: Record,
    seen: dict[str, dict[str, list[Any]]],
    groups: Iterator[int],
) -> list[str]:
    """The shapes of one object; notes its attributes in `seen`."""
    losses, place, label = names.reader.losses, names.place(image, one), names.category(image, one)
    names.note_keys(image, ("z_order",), one)
    attributes = names.attributes(image, one)
    occluded = attributes.get("occluded", False)
    if isinstance(occluded, bool):
        attributes.pop("occluded", None)
    if one.get("iscrowd"):
        attributes[CROWD] = True
    for key, value in attributes.items():
        values = seen.setdefault(label, {}).setdefault(key, [])
        if value not in values[: MOST_CHOICES + 1]:
            values.append(value)
    mask, (x, y, w, h) = outline_of(one, image)
    if mask:
        note_other_box(mask, [x, y, w, h], losses, place)
    z_order = one.get("z_order", 0)
    common = {"label": label, "source": "manual", "occluded": int(occluded is True)}
    more = {"z_order": z_order if isinstance(z_order, int) else 0}
    found: list[tuple[str, dict[str, Any]]] = []
    if isinstance(mask, list):
        for part in mask:
            pairs = zip(part[::2], part[1::2], strict=True)
            points = ";".join(f"{_text(x)},{_text(y)}" for x, y in pairs)
            found.append(("polygon", {"points": points}))
        if len(mask) > 1:
            more |= {"group_id": next(groups)}
    elif isinstance(mask, dict) and (window := window_of(mask)) is not None:
        found = [("mask", _runs(*window))]
    else:
        if mask:
            losses.add("empty masks, which become boxes", place)
        corners = zip(("xtl", "ytl", "xbr", "ybr"), (x, y, x + w, y + h), strict=True)
        found = [("box", {key: _text(value) for key, value in corners})]
    inner = "".join(
        f'  <attribute name="{escape(key)}">{escape(as_text(value))}</attribute>\n'
        for key, value in attributes.items()
    )
    return [
        f"<{tag} {_given({**common, **given, **more})}>\n{inner}</{tag}>" for tag, given in found
    ]


def _runs(bitmap: np.ndarray, left: int, top: int) -> dict[str, Any]:
    """The mask (h, w) as CVAT writes it: run lengths row by row, zeros first."""
    pixels = bitmap.ravel()
    ends = [*(np.flatnonzero(np.diff(pixels)) + 1).tolist(), pixels.size]
    runs = np.diff([0, *ends]).tolist()
    runs = [0, *runs] if pixels[0] else runs
    height, width = bitmap.shape
    code = ", ".join(map(str, runs))
    return {"rle": code, "left": left, "top": top, "width": width, "height": height}


def _meta(
    classes: list[str], tags: list[str], attributes: dict[str, dict[str, list[Any]]], count: int
) -> str:
    """The head of the file: the labels with their attributes."""
    lines = ["<meta>", "  <task>", f"    <size>{count}</size>", "    <mode>annotation</mode>"]
    lines.append("    <labels>")
    for name in (*classes, *tags):
        kind = "tag" if name in tags else "any"
        lines += ["      <label>", f"        <name>{escape(name)}</name>"]
        lines += [f"        <type>{kind}</type>", "        <attributes>"]
        for key, values in attributes.get(name, {}).items():
            lines += [f"          {line}" for line in _definition(key, values)]
        lines += ["        </attributes>", "      </label>"]
    lines += ["    </labels>", "  </task>", "</meta>"]
    return "".join(f"  {line}\n" for line in lines)


def _definition(key: str, values: list[Any]) -> list[str]:
    """How an attribute with these values is given."""
    kinds = set(map(type, values))
    texts = sorted(map(as_text, values))
    default, choices = texts[0], "\n".join(map(escape, texts))
    if kinds == {bool}:
        kind, default, choices = "checkbox", "false", "false"
    elif kinds == {int}:
        kind, choices = "number", f"{min(values)};{max(values)};1"
    elif len(values) > MOST_CHOICES or kinds != {str}:
        kind, default, choices = "text", "", ""
    else:
        kind = "select"
    lines = [f"<name>{escape(key)}</name>", "<mutable>False</mutable>"]
    lines += [f"<input_type>{kind}</input_type>"]
    lines += [f"<default_value>{escape(default)}</default_value>", f"<values>{choices}</values>"]
    return ["<attribute>", *(f"  {line}" for line in lines), "</attribute>"]
