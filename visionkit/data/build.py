"""Open the datasets of a checked config and make the sources of a run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from visionkit.config import Config, SourceConfig, missing_paths
from visionkit.config.components import build, head_class
from visionkit.data.checks.findings import Problems, finding, merge_errors
from visionkit.data.classes import class_lists, class_mapped
from visionkit.data.contracts import (
    broken_contract,
    check_dataset,
    check_ground_truth,
    check_semantic_truth,
    is_custom,
    original,
)
from visionkit.data.datasets.coco import Coco
from visionkit.data.datasets.part import held_out
from visionkit.data.formats.recognize import looks_like
from visionkit.data.loading.items import TransformedDataset
from visionkit.data.loading.samplers import balanced, repeat_factors
from visionkit.data.loading.source import Source, iter_splits, split_key
from visionkit.data.loading.workers import refuse_unguarded
from visionkit.errors import ConfigError, DataError, VisionkitError, is_blank, listed, plural
from visionkit.types import Classes, Dataset

log = logging.getLogger("visionkit")
SPLITS = ("train", "val")
TRIED = 4  # positions of the first image at which custom transforms are tried


def build_sources(
    config: Config, splits: tuple[str, ...], classes: dict[str, Classes] | None = None
) -> list[Source]:
    """The sources of a run with the datasets of those splits (`train`, `val`).

    Datasets are checked against the heads that they feed, and their classes are matched by name:
    to `classes` (by head, from a checkpoint), else to those of the training data. All problems are
    raised together.
    """
    refuse_unguarded(config.workers)
    missing = missing_paths(config, splits)
    if missing:
        raise ConfigError(*missing)
    sources, errors = open_sources(config, splits, classes)
    if errors:
        raise merge_errors(errors)
    return sources


def open_sources(
    config: Config,
    splits: tuple[str, ...],
    classes: dict[str, Classes] | None = None,
    skip: Collection[tuple[str, str]] = (),
) -> tuple[list[Source], list[VisionkitError]]:
    """The sources with the datasets that can be used, without the (source, split) pairs in `skip`,
    and the errors of the others."""
    opened: dict[tuple[str, str], Dataset] = {}
    parts: dict[str, dict[str, Any]] = {}  # by source with `holdout` and split
    errors: list[VisionkitError] = []
    wanted = [
        (name, split)
        for name in config.data
        for split in splits
        if getattr(config.data[name], split)
    ]
    for name, split in [pair for pair in wanted if pair not in skip]:
        spec, where = config.data[name], split_key(name, split)
        try:
            if name not in parts:
                dataset = _open(getattr(spec, split), spec.value_range)
            if name not in parts and spec.holdout is not None:
                parts[name] = dict(zip(SPLITS, held_out(dataset, spec.holdout), strict=True))
            opened[name, split] = dataset = parts[name][split] if name in parts else dataset
        except (ConfigError, DataError) as error:
            errors.append(_located(where, error, _hint(spec, split, error)))
            continue
        errors += _check_names(where, dataset)
        errors += _check_keys(where, dataset, spec.feeds, config)
        errors += _check_objects(where, dataset, split)
    lists = class_lists(class_keys(config), config.data, opened, classes or {})
    for (name, split), dataset in opened.items() if len(opened) == len(wanted) else ():
        where, spec = split_key(name, split), config.data[name]
        try:
            opened[name, split] = class_mapped(where, dataset, lists[name], spec.labeled_classes)
        except DataError as error:
            hint = _generated_hint(spec, split) + _other_classes_hint(where, dataset, error)
            errors.append(_located(where, error, hint, "classes"))
    return _sources(config, opened, errors), errors


def _transforms(name: str, spec: SourceConfig, train: Dataset | None) -> list[Any]:
    """The transforms of a source. ConfigError for one that needs more images than there are, or
    labels that the training data lack."""
    where = split_key(name, "transforms")
    made = [
        build("transforms", one, key=f"data.{name}.transforms") for one in spec.transforms or ()
    ]
    if train is None:
        return made
    for number, transform in enumerate(made):
        kind, others = type(transform).__name__, getattr(transform, "others", 0)
        if others >= len(train):
            raise ConfigError(
                f"{where}.{number}: {kind} makes an image of {others + 1}, but the training data "
                f"has {plural(len(train), 'image')}; remove it"
            )
        for key in getattr(transform, "needs", ()):
            if key not in train.keys:
                hint = _HINTS.get(key, "").split(", use a head")[0]
                raise ConfigError(
                    f"{where}.{number}: {kind} needs {key!r}, which the training data does not "
                    f"give; it gives {', '.join(train.keys) or 'only images'}. {hint}, or remove "
                    f"{kind}"
                )
    return made


def _repeats(name: str, config: Config, train: Any) -> np.ndarray | None:
    """How often each training image comes in a pass, as `sampling` says; None: once."""
    spec = config.data[name]
    if spec.sampling is None or train is None:
        return None
    where = split_key(name, "sampling")
    found = train.occurrences() if hasattr(train, "occurrences") else {}
    learned = {key for head, key in class_keys(config).items() if head in spec.feeds}
    key = next((key for key in ("labels", "class_id") if key in learned and key in found), None)
    if key is None:
        raise ConfigError(
            f"{where}: the training data does not know which classes an image has before it is "
            "read, or no head learns them; remove this key"
        )
    images, classes = found[key]
    if not len(images):
        raise ConfigError(f"{where}: no image has a class; remove this key")
    if "repeat_factor" in spec.sampling:
        return repeat_factors(images, classes, len(train), spec.sampling["repeat_factor"])
    return balanced(images, classes, len(train))


def _sources(
    config: Config, opened: dict[tuple[str, str], Dataset], errors: list[VisionkitError]
) -> list[Source]:
    """The sources with these datasets; `errors` gets those of transforms and sampling."""
    repeats: dict[str, np.ndarray | None] = {}
    transforms: dict[str, list[Any]] = {}
    for name, spec in config.data.items():
        try:
            transforms[name] = _transforms(name, spec, opened.get((name, "train")))
            repeats[name] = _repeats(name, config, opened.get((name, "train")))
        except ConfigError as error:
            errors.append(error)
    return [
        Source(
            name=name,
            feeds=spec.feeds,
            train=opened.get((name, "train")),
            val=opened.get((name, "val")),
            batch_size=spec.batch_size,
            image_size=spec.image_size,
            transforms=transforms.get(name, ()),
            eval_batch_size=config.train.eval_batch_size,
            images_per_identity=spec.images_per_identity,
            group_by_aspect_ratio=spec.group_by_aspect_ratio,
            skip_unreadable=spec.on_unreadable_image == "skip",
            repeats=repeats.get(name),
            multi_scale=spec.multi_scale,
            progressive=spec.progressive,
            close_last=spec.close_last,
        )
        for name, spec in config.data.items()
    ]


def class_keys(config: Config) -> dict[str, str | None]:
    """For each head, the target key whose classes it predicts."""
    return {head: head_class(config, head).class_key for head in config.heads}


def head_classes(config: Config, sources: list[Source]) -> dict[str, Classes]:
    """The names and ids of the classes of each head that is fed.

    Ids are those of the data; if the datasets of a head do not agree on them, 1, 2, ...
    """
    keys, found = class_keys(config), defaultdict(list)
    for source in sources:
        dataset = source.train if source.train is not None else source.val
        if dataset is not None:
            for head in source.feeds:
                found[head].append(dataset.classes.get(keys[head] or "", Classes((), ())))
    return {
        head: first
        if all(other == first for other in others)
        else Classes(first.names, tuple(range(1, len(first.names) + 1)))
        for head, (first, *others) in found.items()
    }


def _open(section: dict[str, Any], value_range: tuple[float, float] | None) -> Dataset:
    dataset = build("datasets", section)
    check_dataset(section["type"], dataset)
    if len(dataset) == 0:
        raise DataError(f"{section['type']}: no images")
    if value_range is not None:
        if not hasattr(dataset, "value_range"):
            what = f"{section['type']} reads no pixels of more than 8 bits"
            raise ConfigError(f"value_range: {what}; remove this key")
        dataset.value_range = value_range
    return dataset


def _other_classes_hint(where: str, dataset: Any, error: DataError) -> list[str]:
    """What to do about classes that the lists lack."""
    if "not expected" not in str(error):
        return []
    if hasattr(dataset, "other_classes"):
        return [f"  to drop the objects of other classes, set {where}.other_classes=ignore"]
    if "class_id" in dataset.keys:
        return [f"  to use the images of some classes alone, name these in {where}.only"]
    return []


def _located(
    where: str, error: VisionkitError, hint: list[str], kind: str = "file"
) -> VisionkitError:
    """The same error with the key of the dataset in front."""
    lines = [*f"{where}: {error}".split("\n"), *hint]
    if isinstance(error, DataError):
        found = error.findings or [finding(kind, error)]
        found = [one if one.file else one._replace(file=where) for one in found]
        return DataError(*lines, findings=found, others=error.others)
    return ConfigError(*lines)


def _generated_hint(spec: SourceConfig, split: str) -> list[str]:
    """A hint for those who replaced the training data of a shipped config, but not the
    validation data."""
    types = [None if one is None else one["type"] for one in (spec.train, spec.val)]
    if split != "val" or types[0] in (None, "Shapes") or types[1] != "Shapes":
        return []
    return ["  data.val is still generated shapes: give your own, or data.val=null for none"]


def _hint(spec: SourceConfig, split: str, error: VisionkitError) -> list[str]:
    """What to do about a dataset that cannot be opened: what its folder looks like, if that is
    another type."""
    section = getattr(spec, split)
    root = section.get("root")
    hint = looks_like(root, section["type"]) if isinstance(root, str) else ""
    looks = [f"  {hint}"] if hint and hint not in str(error) else []
    return [*_generated_hint(spec, split), *looks]


def _check_names(where: str, dataset: Dataset) -> list[DataError]:
    """An error for each class whose name cannot be seen."""
    errors = []
    for key, classes in dataset.classes.items():
        for label in [i for i, name in enumerate(classes.names) if is_blank(name)]:
            name = classes.names[label]
            text = f"class {label} of {key!r} has the blank name {name!r}; give it a name"
            found = finding("value", text, file=where, key=key, value=name, hint="")
            errors.append(DataError(f"{where}: {text}", findings=[found]))
    return errors


def _check_objects(where: str, dataset: Dataset, split: str) -> list[DataError]:
    """An error if a dataset of objects has none to train on."""
    if getattr(dataset, "num_objects", 1) > 0 or "class_id" in dataset.keys:
        return []
    log.warning("%s: no object is annotated", where)
    text = "no object is annotated; there is nothing to learn"
    found = finding("nothing-to-learn", text, file=where)
    return [DataError(f"{where}: {text}", findings=[found])] if split == "train" else []


_HINTS = {  # for a head that needs a key of a sample, which the dataset does not give
    "masks": "Annotate masks (and do not set `masks: false`), use a head for boxes alone, such as "
    "`type: FasterRCNN` (`task: detection`)",
    "semantic": "Make maps of the masks with `semantic: paint`, name a folder of maps (LabelMaps)",
    "attributes": "Write `attributes` of the annotations into the file",
    "identity": "Name each image's class or identity (ImageFolder, Crops)",
    "class_id": "Put images into a folder for each class (ImageFolder)",
}


def _check_keys(where: str, dataset: Dataset, feeds: list[str], config: Config) -> list[DataError]:
    """An error for each target key that a fed head needs and the dataset lacks or has faults in."""
    errors, given = [], ", ".join(dataset.keys) or "only images"
    unusable: dict[str, Problems] = getattr(dataset, "unusable", {})
    for head in feeds:
        cls = head_class(config, head)
        for key in cls.required_targets:
            if key in unusable and unusable[key].count:
                first, *others = unusable[key].lines()
                lines = [f"{where}: {first}", *others, f"  (needed by head {head!r})"]
                errors.append(DataError(*lines, findings=unusable[key].findings))
            elif key not in dataset.keys:
                hint = f"{_HINTS[key]}, or feed" if key in _HINTS else "Feed"
                text = (
                    f"gives no {key!r} (needed by head {head!r}, {cls.__name__}); it gives "
                    f"{given}. {hint} {head!r} from another source"
                )
                found = finding("config", text, file=where, key=key)
                errors.append(DataError(f"{where}: {text}", findings=[found]))
            elif key == "class_id" and (text := _multilabel_fault(dataset, head, config)):
                found = finding("config", text, file=where, key=key)
                errors.append(DataError(f"{where}: {text}", findings=[found]))
    return errors


def _multilabel_fault(dataset: Dataset, head: str, config: Config) -> str:
    """Why a head cannot use the classes of images, of which each has one or several; or ""."""
    own = original(dataset)  # a subclass of one of visionkit's may change what samples have
    several = None if is_custom(own) and isinstance(own, Coco) else getattr(own, "multilabel", None)
    wanted = config.heads[head].get("multilabel")
    if several is None or bool(wanted) == several:
        return ""
    if several:
        shown = "any number of classes for each image (multi-label), but one"
        return f"gives {shown} is what head {head!r} learns: set `multilabel: true` on the head"
    shown = "one class for each image, but any number"
    return f"gives {shown} is what head {head!r} learns: remove `multilabel: true` from the head"


def check_custom(source: Source) -> None:
    """Raise DataError if a custom dataset or transform of a source breaks its contract on the first
    image, or if the same item differs when it is made again: then no run could be repeated."""
    for split, dataset in iter_splits(source):
        transforms = source.transforms if split == "train" else ()
        if not is_custom(original(dataset)) and not any(map(is_custom, transforms)):
            continue
        try:
            if split == "val":
                check_ground_truth(original(dataset))
                check_semantic_truth(original(dataset))
        except (ConfigError, DataError) as error:
            raise _located(split_key(source.name, split), error, []) from error
        for count in range(len(transforms) + 1):
            last = transforms[count - 1] if count else original(dataset)
            if not is_custom(last):
                continue
            skip = source.skip_unreadable and split == "train"
            items = TransformedDataset(dataset, transforms[:count], source.image_size, 0, skip)
            try:
                for position in range(TRIED if count else 1):
                    _check_repeats(items, position, last)
            except DataError as error:
                raise _located(split_key(source.name, split), error, []) from error


def _check_repeats(items: TransformedDataset, position: int, last: Any) -> None:
    """Make the item at that position twice; `last` is the transform, or dataset, that was added."""
    image, target = items[0, position]
    image = image.clone()
    again, target_again = items[0, position]
    same = {key: _same(value, target_again.get(key)) for key, value in target.items()}
    differing = [key for key, equal in {"image": _same(image, again), **same}.items() if not equal]
    if differing:
        raise broken_contract(
            f"{type(last).__name__}: gives another {listed(differing)} when image 0 is "
            "read again; take all random numbers from `rng` and change no sample in place "
            "(visionkit.types.Transform, visionkit.types.Dataset)"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, 0, 0, equal_nan=True)
    return type(one) is type(other) and bool(one == other)
