"""What is only seen when data sets are looked at together, or with the head that they feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visionkit.config import Config
from visionkit.config.components import resolve
from visionkit.data.checks.findings import Finding, finding
from visionkit.data.checks.images import duplicate_files, inspect_images
from visionkit.data.checks.summary import fingerprint, split_key
from visionkit.data.loading.source import Source
from visionkit.types import Dataset


def cross_split_findings(
    config: Config, sources: list[Source], *, contents: bool = False
) -> list[Finding]:
    """Training against validation data, and data against heads. Images are compared by their
    paths; with `contents`, for which each is looked at, by their bytes too."""
    found: list[Finding] = []
    for trained, validated in _pairs(sources):
        where = f"{split_key(trained.name, 'train')} and {split_key(validated.name, 'val')}"
        found += _leaks(where, trained.train, validated.val, contents)
    for source in sources:
        found += _untrained(source, [one for one, other in _pairs(sources) if other is source])
        found += _for_heads(config, source)
    return found


def _pairs(sources: list[Source]) -> Iterator[tuple[Source, Source]]:
    """Sources with training data and sources with validation data for a head of theirs."""
    for trained in sources:
        for validated in sources:
            both = trained.train is not None and validated.val is not None
            if both and set(trained.feeds) & set(validated.feeds):
                yield trained, validated


def _leaks(where: str, train: Dataset, val: Dataset, contents: bool) -> Iterator[Finding]:
    ours, theirs = _images(train), _images(val)
    same_place = ours is not None and theirs is not None and ours[0] == theirs[0]
    same = type(_inner(train)) is type(_inner(val)) and fingerprint(train) == fingerprint(val)
    if same and fingerprint(train) and (same_place or ours is None):
        yield finding("same-data", "validation data are the training data", file=where)
        return
    if ours is None or theirs is None:
        return
    shared = set(_paths(*ours)) & set(_paths(*theirs)) if _may_meet(ours[0], theirs[0]) else set()
    for path in sorted(shared):
        yield finding("train-val-overlap", f"{path} is in both", file=where, value=path)
    if contents:
        rest = [sorted(set(_paths(*images)) - shared) for images in (ours, theirs)]
        for first, second in _same_content(*rest):
            text = f"{first} and {second} are the same image"
            yield finding("same-content", text, file=where, value=second)


def _inner(dataset: Dataset) -> Dataset:
    return getattr(dataset, "dataset", dataset)


def _images(dataset: Dataset) -> tuple[str, list[str]] | None:
    """The folder of the images, links resolved, and their names in it."""
    root = getattr(dataset, "images", None) or getattr(dataset, "root", None)
    names = getattr(dataset, "file_names", None)
    return None if root is None or names is None else (os.path.realpath(root), names)


def _paths(root: str, names: list[str]) -> list[str]:
    return [os.path.normpath(f"{root}/{name}") for name in names]


def _may_meet(first: str, second: str) -> bool:
    """Whether one folder is the other or lies in it."""
    return os.path.commonpath([first, second]) in (first, second)


def _same_content(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """Images of both lists whose files hold the same bytes, as a look at each has told."""
    paths = [*map(Path, first), *map(Path, second)]
    found = []
    for places in duplicate_files(inspect_images(paths, "images of training and validation data")):
        ours = [first[i] for i in places if i < len(first)]
        theirs = [second[i - len(first)] for i in places if i >= len(first)]
        found += [(ours[0], path) for path in theirs if ours]
    return sorted(found)


def _untrained(source: Source, trained: list[Source]) -> Iterator[Finding]:
    """Classes that occur in a source's validation data, but in no data that train its heads."""
    if not trained:
        return
    ours, theirs = [_counts(one.train) for one in trained], _counts(source.val)
    where = " and ".join(
        [*(split_key(one.name, "train") for one in trained), split_key(source.name, "val")]
    )
    for key in sorted(theirs):
        counts = [one[key] for one in ours if key in one]
        for name, count in theirs[key].items() if counts else ():
            if count and not any(one.get(name) for one in counts):
                text = f"the class {name!r} is in the validation data alone ({count} times)"
                yield finding("untrained-class", text, file=where, key=key, value=name)


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How often each class occurs, by class_key; those not labeled here do not."""
    inner = _inner(dataset)
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


def _for_heads(config: Config, source: Source) -> Iterator[Finding]:
    """What the heads of a source cannot use, or use in a way that may surprise."""
    if source.train is not None and source.images_per_identity is not None:
        yield from _identities(split_key(source.name, "train"), source)
    heads = [resolve("heads", config.heads[head]["type"]) for head in source.feeds]
    if not any(getattr(head, "single_object", False) for head in heads):
        return
    for split in ("train", "val"):
        dataset = getattr(source, split)
        if dataset is not None and hasattr(dataset, "objects"):
            yield from _single_objects(split_key(source.name, split), dataset)


def _single_objects(where: str, dataset: Dataset) -> Iterator[Finding]:
    """Images with another number of objects than one."""
    counts = np.bincount(dataset.objects()[0], minlength=len(dataset))
    for kind, rows in (
        ("no-object", np.flatnonzero(counts == 0)),
        ("many-objects", np.flatnonzero(counts > 1)),
    ):
        for row in rows.tolist():
            name = dataset.file_names[row]
            yield finding(kind, f"{name} has {counts[row]} objects", file=where, value=name)


def _identities(where: str, source: Source) -> Iterator[Finding]:
    """Identities that cannot be learned from as batches want them."""
    numbers = source.train.identities
    found, counts = np.unique(numbers[numbers >= 0], return_counts=True)
    for number in found[counts == 1].tolist():
        row = int(np.flatnonzero(numbers == number)[0])
        name = source.train.image_path(row) if hasattr(source.train, "image_path") else row
        text = f"identity {number} has a single image, {name}"
        yield finding("singleton-identity", text, file=where, value=str(number))
    places, usable = source.batch_size // source.images_per_identity, int((counts > 1).sum())
    if 2 <= usable < places:
        text = f"{usable} identities of at least two images for {places} places in a batch"
        yield finding("few-identities", text, file=where, key="batch_size", value=str(places))
