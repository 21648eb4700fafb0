"""Which data a run uses, for data.json and in words; datasets checked against each other."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.config import Config
from visionkit.config.components import head_class
from visionkit.config.config import fixed_size
from visionkit.data.attributes import groups
from visionkit.data.checks.findings import (
    DONE,
    Finding,
    class_findings,
    count_findings,
    finding,
)
from visionkit.data.checks.images import duplicate_files, inspect_images, map_values
from visionkit.data.checks.kinds import FINDING_KINDS, title
from visionkit.data.coco.attributes import AttributeTable
from visionkit.data.contracts import original
from visionkit.data.loading.source import Source, iter_splits, split_key
from visionkit.data.resize import ImageSize, fit
from visionkit.errors import listed, plural
from visionkit.types import IGNORE, Dataset

VERSION = 1  # of data.json


def data_summary(
    sources: Iterable[Source],
    cross_split: Iterable[Finding],
    *found: Mapping[str, Iterable[Finding]],
) -> dict[str, Any]:
    """The content of data.json: each dataset, with what was `found` about its images and classes by
    `split_key`, and the number of findings of each kind about training and validation data
    together."""
    described = {
        source.name: {
            split: dataset_summary(
                dataset,
                chain.from_iterable(one.get(split_key(source.name, split), ()) for one in found),
            )
            for split, dataset in iter_splits(source)
        }
        for source in sources
    }
    kinds = dict(Counter(found.kind for found in cross_split))
    return {"version": VERSION, "sources": described, "cross_split": kinds}


def dataset_summary(dataset: Any, found: Iterable[Finding] = ()) -> dict[str, Any]:
    """How many images and objects (None without boxes) are used; what was dropped, fixed, and kept
    although something is wrong with it, by kind; a hash of the content; the class lists with the
    data's own ids."""
    if hasattr(dataset, "counts"):
        counts = dataset.counts()
    else:
        counts = count_findings(dataset.findings() if hasattr(dataset, "findings") else ())
    more = count_findings(found)
    counts = {done: kinds | more[done] for done, kinds in counts.items()}
    objects: Any = getattr(dataset, "num_objects", None)
    if "boxes" not in getattr(dataset, "keys", ("boxes",)):
        objects = None  # it has classes of whole images, or maps
    elif unused := getattr(dataset, "num_unused", 0):
        objects -= unused
        counts["dropped"]["unlabeled-class"] = unused
    return {
        "images": len(dataset),
        "objects": objects,
        **counts,
        "fingerprint": fingerprint(dataset),
        "classes": {
            key: dict(zip(classes.names, classes.ids, strict=True))
            for key, classes in dataset.classes.items()
        },
    }


def fingerprint(dataset: Dataset) -> str | None:
    """A hash of the annotations or labels; for folders, of the file names."""
    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint
    if (names := getattr(dataset, "file_names", None)) is None:
        return None
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def file_fingerprint(dataset: Any) -> str | None:
    """A hash of the sizes of the image and semantic map files, which differs for most other files
    of the same names; None for a dataset without files."""
    if not hasattr(dataset, "image_path"):
        return None
    paths = [dataset.image_path(index) for index in range(len(dataset))]
    if hasattr(dataset, "map_path"):
        paths += filter(None, (dataset.map_path(index) for index in range(len(dataset))))
    digest = hashlib.sha256()
    for path in dict.fromkeys(paths):
        size = os.path.getsize(path) if os.path.exists(path) else -1
        digest.update(size.to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """One line for each dataset: `data.train: 8 images, 30 objects; dropped: ...`."""
    return [
        _summary_line(split_key(name, split), dataset)
        for name, splits in summary["sources"].items()
        for split, dataset in splits.items()
    ]


def _summary_line(key: str, dataset: dict[str, Any]) -> str:
    objects = "" if dataset["objects"] is None else f", {plural(dataset['objects'], 'object')}"
    parts = [f"{key}: {plural(dataset['images'], 'image')}{objects}"]
    for done in DONE.values():
        counts = [
            f"{title(kind)} ({count})"
            for kind, count in dataset[done].items()
            if kind not in FINDING_KINDS
            or FINDING_KINDS[kind].severity != "note"
            or done == "dropped"
        ]
        if counts:
            parts.append(f"{done}: {', '.join(counts)}")
    return "; ".join(parts)


def cross_split_findings(
    config: Config, sources: list[Source], *, contents: bool = False
) -> list[Finding]:
    """Findings about training and validation data together, and about data for their heads.

    Images are compared by path; with `contents` also by their bytes, for which each is inspected.
    """
    found: list[Finding] = []
    pairs = [
        (trained, validated)
        for trained in sources
        for validated in sources
        if trained.train is not None
        and validated.val is not None
        and {*trained.feeds} & {*validated.feeds}
    ]
    for trained, validated in pairs:
        where = f"{split_key(trained.name, 'train')} and {split_key(validated.name, 'val')}"
        found += _overlap(where, trained.train, validated.val, contents)
    for source in sources:
        found += _untrained_classes(source, [one for one, other in pairs if other is source])
        found += _for_heads(config, source)
    return found


def _overlap(where: str, train: Any, val: Any, contents: bool) -> Iterator[Finding]:
    """Images that are in both datasets."""
    ours, theirs = _images(train), _images(val)
    same_folder = ours is not None and theirs is not None and ours[0] == theirs[0]
    same_type = type(original(train)) is type(original(val))
    content = fingerprint(train)
    if same_type and content == fingerprint(val) and content and (same_folder or ours is None):
        yield finding("same-data", "validation data are the training data", file=where)
        return
    if ours is None or theirs is None:
        return
    shared: set[str] = set()
    if os.path.commonpath([ours[0], theirs[0]]) in (ours[0], theirs[0]):  # one is in the other
        shared = {*_paths(*ours)} & {*_paths(*theirs)}
    for path in sorted(shared):
        yield finding("train-val-overlap", f"{path} is in both", file=where, value=path)
    if contents:
        first, second = (sorted({*_paths(*images)} - shared) for images in (ours, theirs))
        for one, other in _same_content(first, second):
            text = f"{one} and {other} are the same image"
            yield finding("same-content", text, file=where, value=other)


def _images(dataset: Any) -> tuple[str, list[str]] | None:
    """The folder of the images, links resolved, and their names in it."""
    root = getattr(dataset, "images", None) or getattr(dataset, "root", None)
    names = getattr(dataset, "file_names", None)
    return None if root is None or names is None else (os.path.realpath(root), names)


def _paths(root: str, names: list[str]) -> list[str]:
    return [os.path.normpath(f"{root}/{name}") for name in names]


def _same_content(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """Pairs of images, one of each list, whose files hold the same bytes."""
    paths, found = [*first, *second], []
    infos = inspect_images([*map(Path, paths)], "images of training and validation data")
    for places in duplicate_files(infos):
        ours = [paths[i] for i in places if i < len(first)]
        found += [(ours[0], paths[i]) for i in places if ours and i >= len(first)]
    return sorted(found)


def _untrained_classes(source: Source, trained: list[Source]) -> Iterator[Finding]:
    """Classes that occur in the validation data of a source, but in no training data of its
    heads. `trained` are the sources with such data."""
    if not trained:
        return
    ours, theirs = [_class_counts(one.train) for one in trained], _class_counts(source.val)
    keys = [*(split_key(one.name, "train") for one in trained), split_key(source.name, "val")]
    for key in sorted(theirs):
        counts = [one[key] for one in ours if key in one]
        for name, count in theirs[key].items() if counts else ():
            if count and not any(one.get(name) for one in counts):
                text = f"class {name!r} is only in the validation data ({plural(count, 'time')})"
                yield finding("untrained-class", text, file=" and ".join(keys), key=key, value=name)


def _class_counts(dataset: Any) -> dict[str, dict[str, int]]:
    """How often each labeled class occurs, by class_key."""
    inner = original(dataset)
    if not hasattr(inner, "class_counts"):
        return {}
    unlabeled = getattr(dataset, "unlabeled", {})
    return {
        key: {
            name: count
            for name, count in zip(inner.classes[key].names, counts.tolist(), strict=True)
            if name not in unlabeled.get(key, ())
        }
        for key, counts in inner.class_counts().items()
    }


def all_class_findings(config: Config, sources: Iterable[Source]) -> dict[str, list[Finding]]:
    """By `split_key`, the findings about the classes that the heads of each source predict."""
    found: dict[str, list[Finding]] = {}
    for source in sources:
        keys = [head_class(config, head).class_key for head in source.feeds]
        maps = config.data[source.name].check_images
        for split, dataset in iter_splits(source):
            where = split_key(source.name, split)
            found[where] = dataset_class_findings(dataset, where, keys, maps=maps)
    return found


def below_cell(
    dataset: Any, image_size: ImageSize, head: str = "", cell: int | None = None
) -> Finding | None:
    """How many objects are below one pixel at that size, and how many others are smaller than a
    cell of `cell` input pixels, if cells find them; for each, the size at which 95 % are not, or
    all if 95 % are not already. None if no object is so small."""
    inner = original(dataset)
    if not hasattr(inner, "objects") or not hasattr(inner, "sizes"):
        return None
    sides = _shorter_sides(inner, image_size)
    unused = int((sides < 1).sum())
    small = int((sides < (cell or 1)).sum()) - unused
    if not unused + small:
        return None
    counts, hints, objects = [], [], plural(len(sides), "object")
    if unused:
        counts.append(f"{unused} of {objects} below one pixel")
        size = _size_for(sides, 1, image_size)
        hints.append(f"an object below one pixel is not used in training; {size}")
    if cell:
        others = plural(small, "other") if unused else f"{small} of {objects}"
        counts.append(f"{others} smaller than a cell of head {head!r}, {cell} pixels,")
        which = "another one below a cell" if unused else "such an object"
        size = _size_for(sides, cell, image_size)
        hints.append(f"{which} is learned from its nearest cell alone; {size}")
    text = f"{' and '.join(counts)} at image_size={image_size}"
    found = finding("below-cell", text, hint="; ".join(hints))
    return found._replace(severity="warning" if _many_below(sides, cell or 1) else "note")


def _shorter_sides(dataset: Any, image_size: ImageSize) -> np.ndarray:
    """Of each object, in pixels of the network's input; rounded as the boxes of samples are."""
    image, boxes, *_ = dataset.objects()
    sizes, of_image = np.unique(np.asarray(dataset.sizes), axis=0, return_inverse=True)
    scales = np.array([fit(size, image_size) for size in map(tuple, sizes.tolist())]) / sizes
    factors = scales[of_image.ravel()[image]][:, [1, 0, 1, 0]]
    resized = (boxes * factors).astype(np.float32)
    return (resized[:, 2:] - resized[:, :2]).min(1)


def _size_for(sides: np.ndarray, least: int, image_size: ImageSize) -> str:
    """The image_size at which 95 % of the `sides` at `image_size` have at least so many pixels, or
    all if 95 % have already, in words."""
    many = _many_below(sides, least)
    share = "95 %" if many else "all"
    side = float(np.quantile(sides, 0.05 if many else 0))
    if side < 0.1:  # the image would have to be more than ten times as large
        return f"no usual image_size would do for {share} of the objects"
    fixed = fixed_size(image_size)
    numbers: Any = [image_size] if isinstance(image_size, int) else fixed or image_size
    larger = [-(-round(number * least / side) // 32) * 32 for number in numbers]
    shown: Any = larger[0] if isinstance(image_size, int) else larger
    if fixed:
        shown = f"{larger[1]}x{larger[0]}"
    return f"image_size={shown} would do for {share} of the objects"


def _many_below(sides: np.ndarray, least: int) -> bool:
    return float(np.quantile(sides, 0.05)) < least


def dataset_class_findings(
    dataset: Any, where: str, keys: Iterable[str | None], *, maps: bool = True
) -> list[Finding]:
    """The findings about the class lists of these target keys; those of semantic maps with `maps`,
    which inspects them."""
    found: list[Finding] = []
    counts_of, inner = _class_counts(dataset), original(dataset)
    for key in [key for key in counts_of if key in keys]:
        if any(counts_of["labels" if key == "attributes" else key].values()):
            noun = "image" if key == "class_id" else "object"
            found += class_findings(counts_of[key], noun, where)
    if "attributes" in keys and getattr(inner, "attributes", None) is not None:
        found += _attribute_findings(inner.attributes, inner.objects()[3], where)
    if "semantic" in keys and maps and (values := map_values(inner)):
        found += _map_class_findings(inner, where, values)
    return found


def _attribute_findings(table: AttributeTable, rows: np.ndarray, where: str) -> Iterator[Finding]:
    """Attributes with the same answer for all objects, of which some answer is known."""
    answers = table.values[rows]
    for name, group in groups(table.classes.names).items():
        yes = answers[:, group.columns]
        known = yes[~np.isnan(yes).all(1)]
        if len(known) and len(group.columns) == 1 and (known == 1).all():
            text = f"attribute {name!r} is the same for all objects, {group.values[0] or 'yes'!r}"
            yield finding("single-class", text, file=where, value=name)


def _map_class_findings(dataset: Any, where: str, values: Counter[int]) -> list[Finding]:
    """As `class_findings`, with the values in the semantic maps."""
    names = dataset.classes["semantic"].names
    classes = dataset.map_classes(values) if hasattr(dataset, "map_classes") else [*values]
    counts = dict.fromkeys(names, 0)
    meaning = {}  # of each value that occurs
    for (value, count), number in zip(values.items(), classes, strict=True):
        meaning[value] = "ignored" if number == IGNORE else "no class"
        if 0 <= number < len(names):
            counts[names[number]] += count
            meaning[value] = repr(names[number])
    shown = [f"{value} ({meaning[value]})" for value in sorted(values)]
    there = f"; values in the maps: {listed(shown, 20)}"
    hint = FINDING_KINDS["unused-class"].hint
    if meaning.get(IGNORE) == "ignored" and len(values) == len(names):
        colors = zip(names, sorted(values), strict=True)
        palette = ", ".join(f"{name}: [{value}, {value}, {value}]" for name, value in colors)
        hint = f"if {IGNORE} is a class, set `palette: {{{palette}}}`; else {hint}"
    return [
        found._replace(message=found.message + there, hint=hint)
        if found.kind == "unused-class"
        else found
        for found in class_findings(counts, "map", where)
    ]


def class_lines(findings: Iterable[Finding]) -> list[str]:
    """One line for each kind of warning about the classes of a dataset."""
    by_kind: dict[str, list[Finding]] = {}
    for found in findings:
        if found.severity != "note":
            by_kind.setdefault(found.kind, []).append(found)
    return [
        f"{first.file}: {first.message}{f'; the same holds for {_names(others)}' * bool(others)}: "
        f"{first.hint}"
        for first, *others in by_kind.values()
    ]


def _names(findings: Iterable[Finding]) -> str:
    return listed([repr(found.value) for found in findings], 19)


def _for_heads(config: Config, source: Source) -> Iterator[Finding]:
    """What the heads of a source cannot use, or use in a way that may surprise."""
    if source.train is not None and source.images_per_identity is not None:
        places = source.batch_size // source.images_per_identity
        yield from _identities(split_key(source.name, "train"), source.train, places)
    if any(head_class(config, head).single_object for head in source.feeds):
        for split, dataset in iter_splits(source):
            if hasattr(dataset, "objects"):
                yield from _single_objects(split_key(source.name, split), dataset)


def _single_objects(where: str, dataset: Any) -> Iterator[Finding]:
    """Images with another number of objects than one."""
    counts = np.bincount(dataset.objects()[0], minlength=len(dataset))
    for kind, rows in (("no-object", counts == 0), ("many-objects", counts > 1)):
        for row in np.flatnonzero(rows).tolist():
            name = dataset.file_names[row]
            text = f"{name} has {plural(counts[row], 'object')}"
            yield finding(kind, text, file=where, value=name)


def _identities(where: str, dataset: Any, places: int) -> Iterator[Finding]:
    """Identities that batches with places for so many cannot use well."""
    numbers = dataset.identities
    found, counts = np.unique(numbers[numbers >= 0], return_counts=True)
    for number in found[counts == 1].tolist():
        row = int(np.flatnonzero(numbers == number)[0])
        name = dataset.image_path(row) if hasattr(dataset, "image_path") else row
        text = f"identity {number} has a single image, {name}"
        yield finding("singleton-identity", text, file=where, value=str(number))
    usable = int((counts > 1).sum())
    if 2 <= usable < places:
        text = f"{usable} identities of at least two images for {places} places in a batch"
        yield finding("few-identities", text, file=where, key="batch_size", value=str(places))


def cross_split_lines(findings: Iterable[Finding]) -> list[str]:
    """One line for each kind of warning about training and validation data together, with the
    first finding."""
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for found in findings:
        if found.severity != "note":
            by_kind.setdefault((found.kind, found.file), []).append(found)
    return [
        f"{file}: {found[0].message}{f', and {len(found) - 1} more' * (len(found) > 1)}: "
        f"{found[0].hint}"
        for (_, file), found in by_kind.items()
    ]
