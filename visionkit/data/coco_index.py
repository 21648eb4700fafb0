"""What a COCO annotation file says, read in pieces, checked as a whole and packed into arrays."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

from visionkit.data import coco_checks, index_store
from visionkit.data.coco_annotations import AnnotationReader
from visionkit.data.coco_columns import first_stranger, kind_of, not_objects
from visionkit.data.coco_images import ImageReader, read_categories
from visionkit.data.coco_tables import ImageTable, ObjectTable, flat, nested
from visionkit.data.files import diagnose
from visionkit.data.json_lists import PIECE, Data, read_members
from visionkit.data.problems import Problems
from visionkit.errors import DataError
from visionkit.types import Classes

_START = re.compile(rb"\s*\{")
CODES = "objects.masks.codes"  # the largest column
NAME_LISTS = ("image_classes", "semantic_classes", "attribute_classes")


@dataclass(frozen=True)
class CocoIndex:
    """An annotation file. Where `faults` has any, the columns hold stand-ins for bad values."""

    path: Path
    images: ImageTable
    objects: ObjectTable
    categories: list[dict[str, Any]]  # the records of the file
    names: dict[str, list[str]]  # of `NAME_LISTS`, empty where the file has none
    image_keys: list[str]  # what `images.extra` has in some image
    object_keys: list[str]  # what `objects.extra` has in some object
    has_masks: bool  # whether any annotation has a segmentation
    faults: Problems
    mask_faults: Problems  # those of segmentations
    folder: Path | None = field(default=None)  # where the arrays lie

    @property
    def classes(self) -> Classes:
        """Names and ids in the order of the ids."""
        return read_categories(self.categories, Problems(""))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Another process maps the same files instead of getting a copy of the arrays."""
        if self.folder is not None:
            return _reopened, (self.path, self.folder)
        return CocoIndex, tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def save(self, folder: Path) -> None:
        """Write all but the faults."""
        arrays = flat(self.images, "images") | flat(self.objects, "objects")
        meta = ("categories", "names", "image_keys", "object_keys", "has_masks")
        index_store.save(folder, arrays, {key: getattr(self, key) for key in meta})


def from_folder(path: Path, folder: Path) -> CocoIndex:
    """The index of that annotation file as it was saved; ValueError or OSError if it is not."""
    arrays, meta = index_store.load(folder)
    try:
        images, objects = (
            nested(kind, arrays, name)
            for kind, name in ((ImageTable, "images"), (ObjectTable, "objects"))
        )
        clean = Problems(f"annotation file {path}", path)
        return CocoIndex(
            path, images, objects, **meta, faults=clean, mask_faults=clean, folder=folder
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds something else: {error!r}") from None


def _reopened(path: Path, folder: Path) -> CocoIndex:
    try:
        return from_folder(path, folder)
    except (OSError, ValueError):  # removed since
        return read_index(path)


def read_index(path: Path, piece: int = PIECE, codes: BinaryIO | None = None) -> CocoIndex:
    """Read an annotation file, `piece` bytes at once.

    The column `CODES` goes to the open file `codes`, and is mapped from there; by default it is
    held in memory. Raises DataError if it is no COCO file, OSError if that column cannot be
    written; all other faults are in the index.
    """
    source = f"annotation file {path}"
    faults, mask_faults = Problems(source, path), Problems(source, path)
    try:
        with _uncollected(), ExitStack() as stack:
            data = _open(path, stack)
            if _START.match(data) is None:
                _refuse(path, json.loads(data[:]))
            images = ImageReader(data, faults)
            objects = stack.enter_context(AnnotationReader(data, piece, faults, codes))
            members = read_members(data, {"images": images, "annotations": objects}, piece)
            del data, images.data, objects.data
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    _check_structure(path, members, images, objects)
    categories = read_categories(members["categories"], faults)
    names = {key: _names(members, key, faults) for key in NAME_LISTS}
    image_table = images.table()
    object_table = objects.table(image_table.ids)
    coco_checks.check_images(image_table, len(names["image_classes"]), faults)
    coco_checks.check_objects(object_table, image_table, categories, faults)
    coco_checks.check_masks(object_table, image_table, objects.mask_faults, mask_faults)
    return CocoIndex(
        path,
        image_table,
        object_table,
        members["categories"],
        names,
        sorted(images.keys),
        sorted(objects.keys),
        objects.has_masks,
        faults,
        mask_faults,
    )


def _refuse(path: Path, value: Any) -> None:
    raise DataError(
        f"annotation file {path} holds {kind_of(value)}, not an object with 'images', "
        "'annotations' and 'categories' (a list is COCO's format for results)"
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Have nobody look for reference cycles: JSON has none, and to look takes as long as to read
    where the program has many objects already."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"annotation file {path} {diagnose(path)} [{error}]")


def _open(path: Path, stack: ExitStack) -> Data:
    """The text of a file in UTF-8 without a byte order mark; mapped, while the stack is open."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            encoding = json.detect_encoding(start) if start else ""
            if encoding == "utf-8":
                return stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))
            return (start + file.read()).decode(encoding or "utf-8").encode("utf-8")
    except OSError as error:
        raise _unreadable(path, error) from None


def _check_structure(
    path: Path, members: dict[str, Any], images: ImageReader, objects: AnnotationReader
) -> None:
    """DataError unless the three lists are there and hold objects."""
    listed = members.get("categories")
    strangers = {
        "images": images.stranger,
        "annotations": objects.stranger,
        "categories": first_stranger(listed) if isinstance(listed, list) else None,
    }
    for key, stranger in strangers.items():
        if fault := not_objects(key, members, stranger):
            raise DataError(
                f"annotation file {path}: {fault}; is it a COCO file for detection or segmentation?"
            )
    for key, count in (("images", images.count), ("categories", len(listed))):
        if not count:
            raise DataError(f"annotation file {path}: '{key}' is empty; there is nothing to learn")


def _names(members: dict[str, Any], key: str, faults: Problems) -> list[str]:
    names = members.get(key, [])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    faults.add(key, "must be a list of names")
    return []
