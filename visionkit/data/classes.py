"""Class lists: which classes each head predicts, datasets matched to them by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionkit.data.attributes import groups
from visionkit.data.checks.findings import check_classes
from visionkit.data.coco.ground_truth import GroundTruth, ground_truth_of
from visionkit.data.contracts import read_sample
from visionkit.data.sample import Sample
from visionkit.errors import DataError, listed, unknown
from visionkit.types import IGNORE, Classes, Dataset

log = logging.getLogger("visionkit")

Names = tuple[str, ...]

UNMAPPED = -1
LABELED_KEYS = {"labels": "labeled", "semantic": "semantic_labeled"}  # by class_key: key of a mask


class ClassMappedDataset:
    """A dataset whose classes are matched by name to the class lists of the run.

    Classes named "0", "1", ... are matched by position. A class that the dataset lacks, or that
    is not in `labeled`, counts as not labeled: its objects are dropped, samples have a mask of the
    labeled classes, and `ground_truth` lacks it. All else is as in the dataset.

    classes: the names to match, by class_key.
    labeled: the labeled classes of objects or semantic maps; None: all of the dataset.

    Raises DataError for a class that is not in the lists, unless the dataset has
    `other_classes = "ignore"`.
    """

    def __init__(
        self, dataset: Any, classes: Mapping[str, Sequence[str]], labeled: list[str] | None
    ) -> None:
        self.dataset = dataset
        self.keys: Names = dataset.keys
        self.classes: dict[str, Classes] = dict(dataset.classes)
        self.unlabeled: dict[str, list[str]] = {}  # names, by class_key
        self._tables: dict[str, np.ndarray] = {}  # the new label of each label of the dataset
        self._labeled: dict[str, np.ndarray] = {}  # (K,) bool, by class_key
        if not hasattr(dataset, "semantic_truth"):  # a method only if the dataset has it
            self.semantic_truth = None  # type: ignore[method-assign,assignment]  # none
        ignore_others = getattr(dataset, "other_classes", "error") == "ignore"
        _check_labeled(labeled, dataset.classes)
        for key, own in dataset.classes.items():
            names = tuple(classes.get(key, own.names))
            table = _match(own.names, names, key, ignore_others=ignore_others)
            # A class that the dataset lacks has an unused id.
            fresh, ids = (
                max(own.ids, default=0) + 1,
                dict(zip(table.tolist(), own.ids, strict=True)),
            )
            ids_by_label = [ids.get(label, fresh + label) for label in range(len(names))]
            self.classes[key] = Classes(names, tuple(ids_by_label))
            self._tables[key] = table
            if key in LABELED_KEYS:
                mask = self._labeled[key] = _labeled_mask(names, table, labeled)
                if not mask.all():
                    self.unlabeled[key] = [n for n, k in zip(names, mask, strict=True) if not k]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while a copy is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def occurrences(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By class_key, the images and the classes of the labeled objects, or of the images; none
        if the dataset does not know them before it reads an image."""
        found = self.dataset.occurrences() if hasattr(self.dataset, "occurrences") else {}
        mapped = {}
        for key, (images, classes) in found.items():
            new = self._tables[key][classes]
            kept = new != UNMAPPED
            if key in self._labeled:
                kept &= self._labeled[key][new]
            mapped[key] = images[kept], new[kept]
        return mapped

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = replace(read_sample(self.dataset, index))
        if isinstance(sample.class_id, int | np.integer):
            class_id = int(self._tables["class_id"][sample.class_id])
            sample.class_id = None if class_id == UNMAPPED else class_id
        elif sample.class_id is not None:
            sample.class_id = self._map_image_classes(sample.class_id)
        if sample.labels is not None:
            self._map_objects(sample)
        if sample.semantic is not None:
            sample.semantic = self._map_semantic(sample.semantic)
            sample.semantic_labeled = self._combined_mask("semantic", sample.semantic_labeled)
        return sample

    def _map_image_classes(self, values: Sequence[float]) -> list[float] | None:
        """1, 0 or NaN for each class of an image; NaN for those that the dataset lacks."""
        table, mapped = (
            self._tables["class_id"],
            np.full(len(self.classes["class_id"].names), np.nan),
        )
        mapped[table[table != UNMAPPED]] = np.array(values)[table != UNMAPPED]
        return None if np.isnan(mapped).all() else mapped.tolist()

    def _map_objects(self, sample: Sample) -> None:
        own: Any = sample.labels
        labels = np.append(self._tables["labels"], UNMAPPED)[own]  # the last for -1
        is_labeled = (labels != UNMAPPED) & self._labeled["labels"][labels]
        keep = np.flatnonzero(is_labeled | (own < 0))  # a region of no class stays
        sample.labels = labels[keep]
        for column in ("boxes", "iscrowd", "area", "cut", "attributes"):
            values = getattr(sample, column)
            setattr(sample, column, None if values is None else values[keep])
        if sample.segmentations is not None:
            sample.segmentations = [sample.segmentations[i] for i in keep]
        if sample.attributes is not None:
            sample.attributes = self._map_attributes(sample.attributes)
        sample.labeled = self._combined_mask("labels", sample.labeled)

    def _map_attributes(self, values: np.ndarray) -> np.ndarray:
        table, names = self._tables["attributes"], self.classes["attributes"].names
        mapped = np.full((len(values), len(names)), np.nan)
        mapped[:, table[table != UNMAPPED]] = values[:, table != UNMAPPED]
        for group in groups(names).values():
            answers = mapped[:, group.columns]
            known = ~np.isnan(answers).all(1)  # then a value that this dataset lacks is a no
            answers[known] = np.nan_to_num(answers[known])
            mapped[:, group.columns] = answers
        return mapped.astype(np.float32)

    def _map_semantic(self, semantic: Tensor) -> Tensor:
        table = np.full(256, IGNORE, np.uint8)
        own = self._tables["semantic"]
        table[: len(own)] = np.where(own == UNMAPPED, IGNORE, own)
        return torch.from_numpy(table)[semantic.long()]

    def _combined_mask(self, key: str, own: np.ndarray | None) -> np.ndarray | None:
        """The labeled classes (K,) of a sample with its own mask of them; None: all are."""
        mask = self._labeled[key]
        if own is None:
            return None if mask.all() else mask
        table, mapped = self._tables[key], np.zeros(len(mask), bool)
        mapped[table[table != UNMAPPED]] = own[table != UNMAPPED]
        return mask & mapped

    def semantic_truth(self, image_id: int) -> Tensor | None:
        semantic = self.dataset.semantic_truth(image_id)
        return None if semantic is None else self._map_semantic(semantic)

    def ground_truth(self) -> GroundTruth:
        """The ground truth of the labeled classes."""
        classes, mask = self.classes["labels"], self._labeled["labels"]
        ids = [id_ for id_, labeled in zip(classes.ids, mask, strict=True) if labeled]
        return ground_truth_of(self.dataset).of(categories=ids)

    @property
    def num_unused(self) -> int:
        """The number of objects that are dropped because their class is not labeled here."""
        if "labels" not in self._tables or not hasattr(self.dataset, "class_counts"):
            return 0
        table = self._tables["labels"]
        used = (table != UNMAPPED) & self._labeled["labels"][table]
        return int(self.dataset.class_counts()["labels"][~used].sum())


def class_mapped(
    where: str, dataset: Dataset, classes: Mapping[str, Names], labeled: list[str] | None
) -> Dataset:
    """The dataset with those class lists; the same dataset, if it has them already. DataError if a
    class does not match. `where` is its key in the config."""
    own = dataset.classes
    if labeled is None and all(own[key].names == classes[key] for key in own.keys() & classes):
        return dataset
    mapped = ClassMappedDataset(dataset, classes, labeled)
    for key, names in mapped.unlabeled.items():
        if key in classes:
            text = "%s: not labeled here: %s (%s); losses and metrics ignore them"
            log.info(text, where, listed(names), key)
    return mapped


def _match(own: Names, names: Names, key: str, *, ignore_others: bool) -> np.ndarray:
    """The place in `names` of each of the dataset's own classes, or UNMAPPED."""
    if own == tuple(map(str, range(len(own)))) and len(own) <= len(names):
        return np.arange(len(own))
    check_classes(f"{key} classes", own, names, missing_ok=True, unknown_ok=ignore_others)
    place = {name: index for index, name in enumerate(names)}
    return np.array([place.get(name, UNMAPPED) for name in own], np.int64)


def _labeled_mask(names: Names, table: np.ndarray, labeled: list[str] | None) -> np.ndarray:
    """(K,) bool: which of the classes `names` the dataset labels."""
    mask = np.isin(np.arange(len(names)), table)
    if labeled is not None and any(name in names for name in labeled):
        mask &= np.isin(names, labeled)
    return mask


def _check_labeled(labeled: list[str] | None, classes: Mapping[str, Classes]) -> None:
    known = {name for key in LABELED_KEYS if key in classes for name in classes[key].names}
    for name in labeled or ():
        if name not in known:
            raise DataError(unknown(name, known, f"labeled_classes: unknown class {name!r}"))


def class_lists(
    class_keys: Mapping[str, str | None],
    sources: Mapping[str, Any],
    opened: Mapping[tuple[str, str], Dataset],
    fixed: Mapping[str, Classes],
) -> dict[str, dict[str, Names]]:
    """For each source, the class names by class_key.

    Heads that share a source share its class list, and so do sources that share a head: the list
    has the classes of all their training data, in the order of their first appearance. The lists
    of heads in `fixed` stay. `class_keys` by head; `sources`, with `feeds`, by name; `opened`
    datasets by source and split.
    """
    lists: dict[str, dict[str, Names]] = {name: {} for name in sources}
    for key in sorted({key for key in class_keys.values() if key}):
        for members, heads in _linked(key, class_keys, sources):
            known = [fixed[head].names for head in heads if head in fixed]
            names = known[0] if known else _union(key, members, opened)
            for member in members:
                lists[member][key] = names
    return lists


def _linked(
    key: str, class_keys: Mapping[str, str | None], sources: Mapping[str, Any]
) -> list[tuple[list[str], list[str]]]:
    """Groups of sources and heads of a class_key that feed each other, directly or not."""
    linked: list[tuple[list[str], list[str]]] = []
    for name, source in sources.items():
        heads = [head for head in source.feeds if class_keys[head] == key]
        if not heads:
            continue
        joined = [group for group in linked if {*group[1]} & {*heads}]
        members = [member for group in joined for member in group[0]] + [name]
        heads = [*dict.fromkeys([head for group in joined for head in group[1]] + heads)]
        linked = [group for group in linked if group not in joined] + [(members, heads)]
    return linked


def _union(key: str, members: Iterable[str], opened: Mapping[tuple[str, str], Dataset]) -> Names:
    datasets = [opened.get((name, "train"), opened.get((name, "val"))) for name in members]
    known = [one.classes[key].names for one in datasets if one is not None and key in one.classes]
    return tuple(dict.fromkeys(chain.from_iterable(known)))
