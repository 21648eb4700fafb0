"""What writers of named classes share: names that the new files can have, and what is lost."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import short
from visionkit.data.coco.image_classes import SHOWN_KEY, UNKNOWN_KEY
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.image_files import base_name, inner_name

_IMAGE = {"id", "file_name", "height", "width"}
_OBJECT = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "source"}
_OBJECT.add("attributes")
_OF_CLASSES = (SHOWN_KEY, UNKNOWN_KEY, "identity")
IDS = "ids of images and objects: both are numbered again"
OBJECT_IDS = "ids of objects, which are numbered again"
ALL = "all"  # the part of images of which no part is known

log = logging.getLogger("visionkit")


class NewNames:
    """Names in the files that a writer makes. What these cannot hold is added to the problems of
    the reader, which raises them at its end; what they have no place for to its losses.

    fits: whether the format can hold a text.
    """

    def __init__(self, reader: Reader, fits: Callable[[str], bool] = lambda text: True):
        self.reader, self.fits = reader, fits
        self.used: set[Any] = set()  # ids of categories
        self._images: dict[str, str] = {}  # given names by the new ones without capitals
        self._stems: set[str] = set()
        self._classes: dict[Any, str] = {}
        self._refused: set[str] = set()

    def image(self, image: Record) -> tuple[str, str]:
        """The file name of an image below the new folder, and that of its labels without a suffix:
        without that of the image either, unless another image has the same name so far. "" if there
        is none, which is a problem."""
        given = str(image.get("file_name", ""))
        try:
            name = inner_name(given)
        except ValueError as error:
            self.reader.problems.add("images", error, kind="path")
            return "", ""
        if os.path.isabs(given) or re.match("[A-Za-z]:", given):
            name = base_name(given)
        stem = os.path.splitext(name)[0]
        if stem.casefold() in self._stems:
            stem = name
        other = self._images.setdefault(name.casefold(), given)
        if other != given or stem.casefold() in self._stems:
            what = f"two images would have the name {short(name)}"
            self.reader.problems.add("images", what, "rename one of them", kind="repeated")
            return "", ""
        self._stems.add(stem.casefold())
        return (name, stem) if self.holds(name, "file name") else ("", "")

    def part(self, image: Record) -> str:
        """The part of the data, such as "train", that an image belongs to."""
        part = str(image.get("subset") or self.reader.split or ALL)
        return part if re.fullmatch(r"[\w-]+", part) else ALL

    def category(self, image: Record, one: Record) -> str:
        """The class of an object; "" if there is none, which is a problem."""
        id_ = one.get("category_id")
        if id_ not in self._classes:
            self._classes = {each["id"]: each["name"] for each in self.reader.categories}
        name = self._classes.get(id_, "")
        self.used.add(id_)
        if not isinstance(name, str) or not name:
            what = f"category_id {short(id_)} has no name"
            self.reader.problems.add(self.place(image, one), what, kind="unknown-category")
            return ""
        return name if self.holds(name, "class") else ""

    def attributes(self, image: Record, one: Record) -> dict[str, bool | int | float | str]:
        """The attributes of an object that are one value; lists are lost."""
        found = {}
        values = one.get("attributes")
        for key, value in values.items() if isinstance(values, dict) else ():
            if value is None or value == "":
                continue
            if not isinstance(value, bool | int | float | str):
                kind = "attributes that are not one value"
                self.reader.losses.add(kind, f"{self.place(image, one)}: {key}")
            elif self.holds(key, "attribute") and self.holds(as_text(value), "value"):
                found[key] = value
        return found

    def place(self, image: Record, one: Record) -> str:
        """Where an object is."""
        known = f"annotation {one['id']}" if "id" in one else "an annotation"
        return f"{image.get('file_name')}: {known}"

    def note_keys(self, image: Record, kept: Collection[str], one: Record | None = None) -> None:
        """Count other keys of a record of an image, or of one of its objects, as lost, except those
        `kept`."""
        known = _IMAGE if one is None else _OBJECT
        record = image if one is None else one
        more = sorted(map(str, record.keys() - known - set(kept)))
        place = str(image.get("file_name")) if one is None else self.place(image, one)
        if one is None and SHOWN_KEY in more:
            shown = image[SHOWN_KEY]
            count = len(shown) if isinstance(shown, list) else 1
            self.reader.losses.add("classes of images", place, count)
            more = [key for key in more if key not in _OF_CLASSES]
        if more:
            kind = f"{'image' if one is None else 'annotation'} records with other keys"
            self.reader.losses.add(kind, f"{place}: {', '.join(more)}", keys=more)

    def note_unused(self) -> None:
        """Count classes without objects as lost."""
        for each in self.reader.categories:
            if each.get("id") not in self.used:
                self.reader.losses.add("classes without objects", str(each.get("name")))

    def holds(self, text: str, what: str) -> bool:
        """Whether the format can hold a text. If not, it is a problem, once."""
        if self.fits(text):
            return True
        if text not in self._refused:
            self._refused.add(text)
            hint = "rename it without control characters and spaces at its ends"
            message = f"the {what} {short(text)} cannot be written"
            self.reader.problems.add("", message, hint)
        return False


def as_text(value: bool | int | float | str) -> str:
    """A value as text: `true` and `false`, numbers, or itself."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def warn_without(images: Path | None, place: str) -> None:
    """Say where the images of a new folder belong, if they are not at hand."""
    if images is None:
        log.warning("the images are not at hand (--images DIR): put them %s", place)
