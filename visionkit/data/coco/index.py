"""The index of a COCO annotation file: its content in arrays, checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.data.checks.findings import Problems, short
from visionkit.data.checks.kinds import FINDING_KINDS
from visionkit.data.coco.image_classes import read_image_classes
from visionkit.data.coco.reader import CHUNK, json_file, json_type, read_members, skip
from visionkit.data.coco.records import (
    AnnotationReader,
    ImageReader,
    RecordReader,
    read_categories,
    report_repeats,
)
from visionkit.data.coco.segmentations import LONGEST
from visionkit.data.coco.tables import (
    FARTHEST,
    UNMAPPED,
    ImageTable,
    ObjectTable,
    Record,
    flat,
    nested,
)
from visionkit.data.formats.kinds import other_file, other_format
from visionkit.data.loading import cache
from visionkit.errors import DataError

if TYPE_CHECKING:
    from visionkit.types import Classes

log = logging.getLogger("visionkit")

FORMAT = 9  # to be raised with each change of what is stored, or of what is checked
ANNOTATIONS = "annotations"  # the folder of their entries in the cache
SMALLEST = 4 << 20  # bytes of an annotation file that is worth an entry in the cache
RELATIVE = 1.05  # the highest number of boxes in parts of their images, with rounding
SMALL_IMAGE = 8  # pixels of the longer side: up to here, a box within 0..1 may be in pixels
MOSTLY = 0.5  # of all boxes within 0..1: the file has parts of images
LARGEST_IMAGE = 2**31  # pixels; pycocotools counts them in 32 bits
# What the cache keeps next to the arrays.
META = ("categories", "spare", "names", "image_keys", "object_keys", "has_masks")
NAME_LISTS = ("image_classes", "semantic_classes", "attribute_classes")


@dataclass(frozen=True)
class CocoIndex:
    """An annotation file. Where `faults` has any, columns have defaults for the bad values."""

    path: Path
    images: ImageTable
    objects: ObjectTable
    categories: list[Record]  # those of the file without `spare`
    spare: list[str]  # names of categories without objects that another category has, too
    names: dict[str, list[str]]  # of `NAME_LISTS`, empty where the file has none
    image_keys: list[str]  # the keys in `images.extra` of any image
    object_keys: list[str]  # the keys in `objects.extra` of any object
    has_masks: bool  # whether any annotation has a segmentation
    faults: Problems
    mask_faults: Problems  # those of segmentations
    folder: Path | None = field(default=None)  # of the arrays in the cache

    @property
    def classes(self) -> Classes:
        """Names and ids in the order of the ids."""
        from visionkit.types import Classes  # imports torch, which scoring of files does without

        return Classes(*read_categories(self.categories, Problems("")))

    @property
    def fingerprint(self) -> str:
        """A hash of the file; for labels in several files, of what was read."""
        if self.folder is not None:
            return self.folder.name.split("-")[0]
        if self.path.is_file():
            return cache.content_key(self.path)
        digest = hashlib.sha256(json.dumps([self.categories, self.names]).encode())
        for array in (flat(self.images, "images") | flat(self.objects, "objects")).values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Another process maps the same files instead of getting a copy of the arrays."""
        if self.folder is not None:
            return _reopen, (self.path, self.folder)
        return CocoIndex, tuple(getattr(self, name) for name in self.__dataclass_fields__)


def open_index(path: str | Path) -> CocoIndex:
    """The index of an annotation file, read now or found in the cache by the file's content.

    Raises DataError if it is not a COCO file; other faults are in the index. The index of a large
    file without faults is written to the cache; if that fails, a warning is logged.
    """
    path = Path(path)
    try:
        before = path.stat()
        if before.st_size < SMALLEST:
            return read_index(path)
        entry = cache.cache_folder() / ANNOTATIONS / f"{cache.content_key(path)}-v{FORMAT}"
    except (OSError, RuntimeError):  # not found, which reading reports; or no home directory
        return read_index(path)
    found = find_kept(path, entry)
    if found is not None:
        return found
    index = read_index(path)
    after = path.stat()
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    return index if changed else keep(index, entry)


def keep(index: CocoIndex, entry: Path) -> CocoIndex:
    """The index as an entry of the cache has it from now on. The same index if it has faults, or if
    the entry cannot be written, which is a warning."""
    if index.faults.count or index.mask_faults.count:
        return index
    try:
        with cache.staging(entry) as folder:
            arrays = flat(index.images, "images") | flat(index.objects, "objects")
            cache.save(folder, arrays, {key: getattr(index, key) for key in META})
            cache.commit(folder, entry)
    except OSError as error:
        log.warning(
            "%s: cannot write its index to the cache, so each start reads the whole file [%s]; "
            "set VISIONKIT_CACHE to another directory",
            index.path,
            error,
        )
        return index
    return find_kept(index.path, entry) or index


def find_kept(path: Path, entry: Path) -> CocoIndex | None:
    """The index that `keep` has written; None if it is not there, or with a warning unusable."""
    if not entry.exists():
        return None
    try:
        index = from_folder(path, entry)
    except (OSError, ValueError) as error:
        log.warning("%s: its index in the cache is unusable, reading the file [%s]", path, error)
        cache.remove(entry)
        return None
    cache.touch(entry)
    return index


def from_folder(path: Path, folder: Path) -> CocoIndex:
    """The index of that annotation file as saved; ValueError or OSError if it cannot be used."""
    arrays, meta = cache.load(folder)
    try:
        images, objects = (
            nested(kind, arrays, name)
            for kind, name in ((ImageTable, "images"), (ObjectTable, "objects"))
        )
        none = Problems(f"annotation file {path}", path)
        return CocoIndex(
            path, images, objects, **meta, faults=none, mask_faults=none, folder=folder
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not an index: {error!r}") from None


def _reopen(path: Path, folder: Path) -> CocoIndex:
    try:
        return from_folder(path, folder)
    except (OSError, ValueError) as error:  # removed since
        if folder.parent.name != ANNOTATIONS:
            what = f"{folder} was removed from the cache while it was in use; start again"
            raise DataError(what) from error
        return read_index(path)


def read_index(path: Path, chunk: int = CHUNK) -> CocoIndex:
    """Read an annotation file, `chunk` bytes at once.

    Raises DataError if it is not a COCO file; all other faults are in the index.
    """
    source = f"annotation file {path}"
    if path.is_dir():
        from visionkit.data.formats.recognize import looks_like  # imports Pillow

        if hint := looks_like(path, ""):
            raise DataError(f"{source} is a folder: {hint}")
    if hint := other_file(path):
        raise DataError(f"{source} {hint}")
    faults = Problems(source, path)
    images, objects = ImageReader(faults), AnnotationReader(faults)
    with json_file(path, "annotation file") as data:
        start = skip(data)
        if data[start : start + 1] != b"{":
            raise _not_an_object(source, json.loads(data[:]))
        members = read_members(data, {"images": images, "annotations": objects}, chunk)
    return index_from(source, path, members, images, objects)


def index_of(content: Mapping[str, Any], source: str) -> CocoIndex:
    """The index of a COCO dict; `source` names it in errors."""
    if not isinstance(content, Mapping):
        raise _not_an_object(source, content)
    faults = Problems(source)
    images, objects = ImageReader(faults), AnnotationReader(faults)
    for key, reader in (("images", images), ("annotations", objects)):
        if isinstance(content.get(key), list):
            reader.add(content[key])
    return index_from(source, Path(source), content, images, objects)


def index_from(
    source: str,
    path: Path,
    members: Mapping[str, Any],
    images: ImageReader,
    objects: AnnotationReader,
) -> CocoIndex:
    """The index of the records that were read; `members` has the other lists of the file."""
    _check_structure(source, members, images, objects)
    faults, mask_faults = images.problems, Problems(source, path)
    image_table = images.table()
    table = objects.table(image_table.ids)
    hint = other_format(dict.fromkeys(objects.keys), "annotations")
    if hint and (table.category == UNMAPPED).all():
        raise DataError(f"{source}: no object has a category; {hint}")
    categories, spare = _used_categories(members["categories"], table)
    _, category_ids = read_categories(categories, faults)
    names = {key: members.get(key, []) for key in NAME_LISTS}
    for key, found in names.items():
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            faults.add(key, "must be a list of names")
            names[key] = []
    check_images(image_table, len(names["image_classes"]), faults)
    if "class_id" in images.keys:
        read_image_classes(image_table, len(names["image_classes"]), faults)
    check_objects(table, image_table, category_ids, faults)
    check_scale(table, image_table, objects.extents[0], faults, mask_faults)
    check_masks(table, image_table, objects, mask_faults)
    return CocoIndex(
        path,
        image_table,
        table,
        categories,
        spare,
        names,
        sorted(images.keys),
        sorted(objects.keys),
        bool(objects.mask_faults or not table.masks.is_empty().all()),
        faults,
        mask_faults,
    )


def _not_an_object(source: str, value: Any) -> DataError:
    first = value[0] if isinstance(value, list) and value else None
    hint = other_format(first) or "a list is COCO's format for results"
    return DataError(
        f"{source} is {json_type(value)}, not an object with 'images', 'annotations' and "
        f"'categories' ({hint})"
    )


def _check_structure(
    source: str, members: Mapping[str, Any], images: ImageReader, objects: AnnotationReader
) -> None:
    """DataError unless the three lists are there and have only objects."""
    categories = RecordReader("categories", Problems(""))
    if isinstance(members.get("categories"), list):
        categories.check_types(members["categories"])
    for reader in (images, objects, categories):
        key, fault = reader.name, ""
        if key not in members:
            fault = f"'{key}' is missing"
        elif not isinstance(members[key], list):
            fault = f"'{key}' is {short(members[key])}, not a list of objects"
        elif reader.non_object:
            fault = f"{reader.non_object}, not an object: remove it"
        if fault:
            hint = other_format(members) or "is it a COCO file for detection or segmentation?"
            raise DataError(f"{source}: {fault}; {hint}")


def _used_categories(records: list[Record], objects: ObjectTable) -> tuple[list[Record], list[str]]:
    """The categories without those that have no object and the name of another one, and the names
    of those: Roboflow writes such a root category."""
    used = set(np.unique(objects.category).tolist())
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(repr(record.get("name")), []).append(record)
    spare = []
    for alike in by_name.values():
        bare = [one for one in alike if type(one.get("id")) is int and one["id"] not in used]
        spare += bare[:-1] if len(bare) == len(alike) else bare
    dropped = set(map(id, spare))
    return [one for one in records if id(one) not in dropped], [str(one["name"]) for one in spare]


def check_images(images: ImageTable, num_classes: int, problems: Problems) -> None:
    """Ids must be unique, and images of a countable size; `num_classes` bounds 'class_id'."""
    if (np.diff(np.sort(images.ids)) == 0).any():
        valid = images.ids != UNMAPPED
        report_repeats("images", images.record, "id", images.ids.tolist(), valid, problems)
    for i in np.flatnonzero(images.sizes.astype(float).prod(1) >= LARGEST_IMAGE).tolist():
        record, found = images.record(i), images.sizes[i].tolist()
        what, hint = f"'height' and 'width' {found} are too many pixels", "must be less than 2^31"
        problems.add_value("images", i, record, "width", what, hint)
    for i in np.flatnonzero(images.class_ids >= num_classes).tolist():
        record, known = images.record(i), f"but 'image_classes' has {num_classes} names"
        what = f"'class_id' is {images.class_ids[i]}, {known}"
        problems.add_value("images", i, record, "class_id", what)


def check_objects(
    objects: ObjectTable, images: ImageTable, category_ids: tuple[int, ...], problems: Problems
) -> None:
    """Each object must have a category, and be near its image."""
    known, kind = np.isin(objects.category, category_ids), "unknown-category"
    if UNMAPPED in category_ids:  # it may be a category with a bad id
        known[:] = True
    for i in np.flatnonzero((objects.category != UNMAPPED) & ~known).tolist():
        record = objects.record(i)
        what = f"'category_id' {objects.category[i]} is not in 'categories'"
        hint = FINDING_KINDS[kind].hint
        problems.add_value("annotations", i, record, "category_id", what, hint, kind)
    sizes = images.sizes_of(objects.image)
    limits = np.where(sizes.min(1) > 0, 10 * sizes.max(1), FARTHEST)
    near = np.logical_and.reduce([np.abs(side) <= limits for side in objects.bbox.T])
    for i in np.flatnonzero(~near).tolist():  # NaN is not near
        record, (height, width) = objects.record(i), sizes[i].tolist()
        is_known = min(height, width) > 0
        where = f"10x the image size ({width}x{height})" if is_known else f"{FARTHEST:g}"
        found = short(objects.bbox[i].tolist())
        what, hint = f"'bbox' is {found}", f"must be finite and within {where}"
        problems.add_value("annotations", i, record, "bbox", what, hint, "coordinate-range")


def check_scale(
    objects: ObjectTable,
    images: ImageTable,
    reach: np.ndarray,
    problems: Problems,
    mask_problems: Problems,
) -> None:
    """Boxes and polygons must be in pixels, not in parts of their image. `reach` is that of the
    polygons."""
    longer = images.sizes_of(objects.image).max(1)
    boxes = (objects.bbox[:, 2:].min(1) > 0) & ((longer <= 0) | (longer > SMALL_IMAGE))
    inside = boxes & (objects.bbox.min(1) >= 0) & (objects.bbox.max(1) <= RELATIVE)
    polygons = objects.masks.polygons > 0
    for key, known, small, found in (
        ("bbox", boxes, inside, problems),
        ("segmentation", polygons, polygons & (reach <= RELATIVE), mask_problems),
    ):
        if small.sum() <= MOSTLY * known.sum():
            continue
        first = objects.record(int(np.flatnonzero(small)[0]))[key]
        if key == "segmentation" or (objects.bbox[small] % 1 != 0).any():
            what = f"'{key}' of {small.sum()} of {known.sum()} objects lies within 0..1"
            hint = FINDING_KINDS["relative-boxes"].hint
            found.add(
                "annotations",
                f"{what}, first {short(first)}",
                hint + _other_corners(objects.bbox[small]) if key == "bbox" else hint,
                kind="relative-boxes",
                key=key,
                value=short(first),
            )


def _other_corners(boxes: np.ndarray) -> str:
    """A clause if relative boxes [x, y, width, height] would end outside their images."""
    if (boxes[:, :2] + boxes[:, 2:]).max() <= RELATIVE:
        return ""
    if (boxes[:, 2:] > boxes[:, :2]).all():
        return "; they look like corners [x1, y1, x2, y2]: the width is x2 - x1, the height y2 - y1"
    return "; they look like centers: x is the center's minus half the width, y alike"


def check_masks(
    objects: ObjectTable, images: ImageTable, read: AnnotationReader, problems: Problems
) -> None:
    """Segmentations must be well formed, of the size of their image, and near it.

    Those of an image that is not in the file are skipped, as it is.
    """
    sizes, masks = images.sizes_of(objects.image), objects.masks
    reach, outline = read.extents
    known = sizes.min(1) > 0
    bitmaps = np.flatnonzero((masks.sizes[:, 0] > 0) & known)
    other = bitmaps[(masks.sizes[bitmaps] != sizes[bitmaps]).any(1)]
    faults = [(i, "bad-mask", what) for i, what in read.mask_faults]
    for i in other.tolist():
        expected = f"but the image's is {sizes[i].tolist()} (h, w)"
        faults.append((i, "bad-mask", f"RLE size is {masks.sizes[i].tolist()}, {expected}"))
    limits = np.where(known, 10 * sizes.max(1), FARTHEST)
    far = ~(reach <= limits) & (masks.polygons > 0)  # also NaN
    what = "a coordinate is not finite or not within 10x the image size"
    faults += [(i, "coordinate-range", what) for i in np.flatnonzero(far).tolist()]
    for i in np.flatnonzero(~far & (outline > LONGEST)).tolist():
        if (length := masks.outline(i)) > LONGEST:
            what = f"a polygon's outline is {length:.3g} pixels: at most {LONGEST} can be drawn"
            faults.append((i, "bad-mask", what))
    bad_ids = bool((images.ids == UNMAPPED).any())  # of images that objects may have
    for i, kind, what in sorted(faults):
        if objects.image[i] >= 0 or objects.image_ids[i] == UNMAPPED or bad_ids:
            record = objects.record(i)
            what = f"'segmentation': {what}"
            hint = FINDING_KINDS[kind].hint if kind == "bad-mask" else ""
            problems.add_value("annotations", i, record, "segmentation", what, hint, kind)
