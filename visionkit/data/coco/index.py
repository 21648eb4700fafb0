"""What a COCO annotation file says, read in pieces, checked as a whole and packed into arrays."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.checks.kinds import FINDING_KINDS
from visionkit.data.coco.columns import (
    UNMAPPED,
    first_non_object,
    json_type,
    list_error,
    place,
    report_repeats,
    short,
)
from visionkit.data.coco.json_lists import PIECE, Data, read_members
from visionkit.data.coco.records import AnnotationReader, ImageReader, read_categories
from visionkit.data.coco.tables import ImageTable, ObjectTable, flat, nested
from visionkit.data.files import diagnose
from visionkit.data.loading import cache
from visionkit.data.loading.cache import (
    cache_folder,
    column_file,
    content_key,
    publish,
    remove,
    touch,
    unfinished,
)
from visionkit.errors import DataError
from visionkit.types import Classes

# --- The index of a large annotation file is made once and then found by the file's content.

log = logging.getLogger("visionkit")

FORMAT = 5  # to be raised with each change of what is stored, or of what is checked
SMALLEST = 4 << 20  # bytes of an annotation file that is worth an entry
_BUFFER = 2 << 20  # bytes written at once: as many as a large page, so that workers share it


def open_index(path: str | Path) -> CocoIndex:
    """The index of an annotation file, made now or found in the cache.

    Raises DataError if it is no COCO file; other faults are in the index. That of a large file
    without faults goes into the cache, and if that fails, a warning says so.
    """
    path = Path(path)
    try:
        before = path.stat()
        entry = _entry(path) if before.st_size >= SMALLEST else None
    except (OSError, RuntimeError):  # no such file, which reading tells; or no home folder
        entry = None
    if entry is None:
        return read_index(path)
    found = _find(path, entry)
    if found is not None:
        return found
    try:
        return _make(path, entry, before)
    except OSError as error:
        log.warning(
            "%s: its index cannot be kept in the cache, so each start reads the whole file "
            "[%s]; VISIONKIT_CACHE names another folder",
            path,
            error,
        )
        return read_index(path)


def _entry(path: Path) -> Path:
    return cache_folder() / "annotations" / f"{content_key(path)}-v{FORMAT}"


def _find(path: Path, entry: Path) -> CocoIndex | None:
    if not entry.exists():
        return None
    try:
        index = from_folder(path, entry)
    except (OSError, ValueError) as error:
        log.warning("%s: its index in the cache cannot be used, made again [%s]", path, error)
        remove(entry)
        return None
    touch(entry)
    return index


def _make(path: Path, entry: Path, before: os.stat_result) -> CocoIndex:
    """Read a file into the cache, if it is without faults; OSError if it cannot be written."""
    with unfinished(entry) as folder:
        with column_file(folder, CODES).open("w+b", _BUFFER) as codes:
            index = read_index(path, codes=codes)
        if index.faults.count or index.mask_faults.count or _changed(before, path.stat()):
            return index
        index.save(folder)
        publish(folder, entry)
    return _find(path, entry) or index


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was written meanwhile, so that its content is not that of the key."""
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)


# --- The checks of a COCO file for which one record is not enough, over all records at once.


def check_images(images: ImageTable, num_classes: int, problems: Problems) -> None:
    """Ids must be unique; `num_classes` bounds 'class_id'."""
    if (np.diff(np.sort(images.ids)) == 0).any():
        valid = images.ids != UNMAPPED
        report_repeats("images", images.record, "id", images.ids.tolist(), valid, problems)
    for i in np.flatnonzero(images.class_ids >= num_classes):
        problems.add(
            place("images", i, images.record(i)),
            f"'class_id' is {images.class_ids[i]}, but 'image_classes' has {num_classes} names",
            key="class_id",
            value=str(images.class_ids[i]),
        )


def check_objects(
    objects: ObjectTable, images: ImageTable, categories: Classes, problems: Problems
) -> None:
    """Each object must have a category, and lie near its image."""
    known = np.isin(objects.category, categories.ids)
    for i in np.flatnonzero((objects.category != UNMAPPED) & ~known):
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'category_id' is {objects.category[i]}, which no category has",
            FINDING_KINDS["unknown-category"].remedy,
            kind="unknown-category",
            key="category_id",
            value=str(objects.category[i]),
        )
    sizes = images.sizes_of(objects.image)
    limits = 10 * np.maximum(*sizes.T)
    near = np.logical_and.reduce([np.abs(side) <= limits for side in objects.bbox.T])
    for i in np.flatnonzero(~near & (np.minimum(*sizes.T) > 0)):  # NaN is not near
        height, width = sizes[i]
        found = short(objects.bbox[i].tolist())
        problems.add(
            place("annotations", i, objects.record(i)),
            f"'bbox' is {found}",
            f"must be finite, and not farther from the {width}x{height} image than ten times "
            "its size",
            kind="coordinate-range",
            key="bbox",
            value=found,
        )


def check_masks(
    objects: ObjectTable, images: ImageTable, malformed: list[tuple[int, str]], problems: Problems
) -> None:
    """Segmentations must be well formed, of the size of their image, and near it.

    Those in an image of unknown size are passed over.
    """
    sizes = images.sizes_of(objects.image)
    bitmaps = np.flatnonzero(objects.masks.sizes[:, 0])
    other = bitmaps[(objects.masks.sizes[bitmaps] != sizes[bitmaps]).any(1)]
    faults = [(i, "bad-mask", what) for i, what in malformed]
    faults += [
        (
            i,
            "bad-mask",
            f"RLE size is {objects.masks.sizes[i].tolist()}, but the image's is "
            f"{sizes[i].tolist()} (h, w)",
        )
        for i in other.tolist()
    ]
    far = "a coordinate is not finite or lies farther away than ten times the image's size"
    faults += [(i, "coordinate-range", far) for i in objects.masks.unpaintable(sizes).tolist()]
    for i, kind, what in sorted(faults):
        if min(sizes[i]) > 0:
            record = objects.record(i)
            problems.add(
                place("annotations", i, record),
                f"'segmentation': {what}",
                "" if kind == "coordinate-range" else FINDING_KINDS["bad-mask"].remedy,
                kind=kind,
                key="segmentation",
                value=short(record.get("segmentation")),
            )


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
        cache.save(folder, arrays, {key: getattr(self, key) for key in meta})


def from_folder(path: Path, folder: Path) -> CocoIndex:
    """The index of that annotation file as it was saved; ValueError or OSError if it is not."""
    arrays, meta = cache.load(folder)
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
    check_images(image_table, len(names["image_classes"]), faults)
    check_objects(object_table, image_table, categories, faults)
    check_masks(object_table, image_table, objects.mask_faults, mask_faults)
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
        f"annotation file {path} holds {json_type(value)}, not an object with 'images', "
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
        "categories": first_non_object(listed) if isinstance(listed, list) else None,
    }
    for key, stranger in strangers.items():
        if fault := list_error(key, members, stranger):
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
