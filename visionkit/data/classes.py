"""Which classes each head tells apart, where several data sets each label some of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionkit.data.checks.findings import check_classes
from visionkit.data.coco.ground_truth import GroundTruth
from visionkit.data.loading.source import Source
from visionkit.data.sample import Sample
from visionkit.errors import ConfigError, DataError
from visionkit.types import IGNORE, Classes, Dataset

# --- A data set in the terms of a run: its labels renumbered, and what it does not label
# marked.

UNMAPPED = -1
PARTIAL = {"labels": "labeled", "semantic": "semantic_labeled"}  # class_key: mark of a sample


class ClassMappedDataset:
    """A data set whose classes are matched by name to the class lists of the run.

    Classes that are only numbered ("0", "1", ...) are matched by position. A class that the data
    set does not have, or that `labeled` leaves out, counts as not labeled: its objects are gone,
    samples carry the mark, and `ground_truth` lacks it. All else is the data set's own.

    classes: the names to match, by class_key.
    labeled: the classes of objects or class maps that are labeled here; None: all there are.

    Raises DataError for a class that is not in the lists, unless the data set says
    `other_classes = "ignore"`.
    """

    def __init__(
        self, dataset: Dataset, classes: Mapping[str, Sequence[str]], labeled: list[str] | None
    ) -> None:
        self.dataset = dataset
        self.keys = dataset.keys
        self.classes = dict(dataset.classes)
        self.unlabeled: dict[str, list[str]] = {}  # names, by class_key
        self._tables: dict[str, np.ndarray] = {}  # new label of each own label
        self._marks: dict[str, np.ndarray] = {}  # (K,) bool
        if not hasattr(dataset, "semantic_truth"):
            self.semantic_truth = None  # a method only where the data set has it
        ignore_others = getattr(dataset, "other_classes", "error") == "ignore"
        _check_labeled(labeled, dataset.classes)
        for key, own in dataset.classes.items():
            names = tuple(classes.get(key, own.names))
            table = _match(own.names, names, key, ignore_others=ignore_others)
            self.classes[key] = Classes(names, _ids(own, table, len(names)))
            self._tables[key] = table
            if key in PARTIAL:
                self._marks[key] = self._mark(key, names, table, labeled)

    def _mark(
        self, key: str, names: tuple[str, ...], table: np.ndarray, labeled: list[str] | None
    ) -> np.ndarray:
        known = np.isin(np.arange(len(names)), table)
        if labeled is not None and any(name in names for name in labeled):
            known &= np.isin(names, labeled)
        if not known.all():
            self.unlabeled[key] = [n for n, k in zip(names, known, strict=True) if not k]
        return known

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        return self._relabel(self.dataset[index])

    def _relabel(self, sample: Sample) -> Sample:
        sample = replace(sample)
        if sample.class_id is not None and np.ndim(sample.class_id) == 0:
            class_id = int(self._tables["class_id"][sample.class_id])
            sample.class_id = None if class_id == UNMAPPED else class_id
        if sample.labels is not None:
            self._relabel_objects(sample)
        if sample.semantic is not None:
            sample.semantic = self._relabel_map(sample.semantic)
            sample.semantic_labeled = self._combined("semantic", sample.semantic_labeled)
        return sample

    def _relabel_objects(self, sample: Sample) -> None:
        labels = self._tables["labels"][sample.labels]
        keep = np.flatnonzero((labels != UNMAPPED) & self._marks["labels"][labels])
        sample.labels = labels[keep]
        for column in ("boxes", "iscrowd", "area", "cut", "attributes"):
            values = getattr(sample, column)
            setattr(sample, column, None if values is None else values[keep])
        if sample.segmentations is not None:
            sample.segmentations = [sample.segmentations[i] for i in keep]
        if sample.attributes is not None:
            sample.attributes = self._relabel_attributes(sample.attributes)
        sample.labeled = self._combined("labels", sample.labeled)

    def _relabel_attributes(self, values: np.ndarray) -> np.ndarray:
        table = self._tables["attributes"]
        moved = np.full((len(values), len(self.classes["attributes"].names)), np.nan)
        moved[:, table[table != UNMAPPED]] = values[:, table != UNMAPPED]
        for group in groups(self.classes["attributes"].names).values():
            answers = moved[:, group.columns]
            known = ~np.isnan(answers).all(1)  # then what this data set never says is a no
            answers[known] = np.nan_to_num(answers[known])
            moved[:, group.columns] = answers
        return moved.astype(np.float32)

    def _relabel_map(self, classes: torch.Tensor) -> torch.Tensor:
        table = np.full(256, IGNORE, np.uint8)
        own = self._tables["semantic"]
        table[: len(own)] = np.where(own == UNMAPPED, IGNORE, own)
        return torch.from_numpy(table)[classes.long()]

    def _combined(self, key: str, own: np.ndarray | None) -> np.ndarray | None:
        """The mark of the source and the sample's own, which may be None for no mark."""
        mark = self._marks[key]
        if own is not None:
            table, moved = self._tables[key], np.zeros(len(mark), bool)
            moved[table[table != UNMAPPED]] = own[table != UNMAPPED]
            return mark & moved
        return None if mark.all() else mark

    def semantic_truth(self, image_id: int) -> torch.Tensor | None:
        classes = self.dataset.semantic_truth(image_id)
        return None if classes is None else self._relabel_map(classes)

    @property
    def num_unused(self) -> int:
        """The number of objects that are dropped because their class is not labeled here."""
        if "labels" not in self._tables or not hasattr(self.dataset, "class_counts"):
            return 0
        table = self._tables["labels"]
        used = (table != UNMAPPED) & self._marks["labels"][table]
        return int(self.dataset.class_counts()["labels"][~used].sum())

    def ground_truth(self) -> GroundTruth:
        """The ground truth of the labeled classes."""
        classes, mark = self.classes["labels"], self._marks["labels"]
        ids = [id_ for id_, labeled in zip(classes.ids, mark, strict=True) if labeled]
        return self.dataset.ground_truth().of(categories=ids)


def _match(
    own: tuple[str, ...], names: tuple[str, ...], key: str, *, ignore_others: bool
) -> np.ndarray:
    """For each own class its place among `names`, or UNMAPPED."""
    if own == tuple(map(str, range(len(own)))) and len(own) <= len(names):
        return np.arange(len(own))
    check_classes(f"{key} classes", own, names, missing_ok=True, unknown_ok=ignore_others)
    place = {name: index for index, name in enumerate(names)}
    return np.array([place.get(name, UNMAPPED) for name in own], np.int64)


def _ids(own: Classes, table: np.ndarray, count: int) -> tuple[int, ...]:
    """The data set's id of each class; for those that it lacks, numbers that it does not use."""
    fresh = max(own.ids, default=0) + 1
    ids = [fresh + i for i in range(count)]
    for id_, label in zip(own.ids, table.tolist(), strict=True):
        if label != UNMAPPED:
            ids[label] = id_
    return tuple(ids)


def _check_labeled(labeled: list[str] | None, class_keys: Mapping[str, Classes]) -> None:
    names = {name for key in PARTIAL if key in class_keys for name in class_keys[key].names}
    unknown = [name for name in labeled or () if name not in names]
    if unknown:
        raise DataError(
            f"labeled_classes: there is no class {unknown[0]!r}; it has {sorted(names)}"
        )


# --- What the class names of attributes mean: `color=red`, `covers:star`, `open`.

Kind = Literal["one_of", "any_rank", "yes_no"]
FINDING_KINDS: dict[str | None, Kind] = {"=": "one_of", ":": "any_rank", None: "yes_no"}
SEPARATORS = {kind: separator or "" for separator, kind in FINDING_KINDS.items()}
YES = 0.5  # the probability from which a yes or no counts as yes

_NAME = re.compile(r"([^=:]+)(?:([=:])(.+))?", re.DOTALL)


class Group(NamedTuple):
    """One attribute: its kind, the columns of its classes, and the value that each stands for."""

    kind: Kind
    columns: list[int]
    values: list[str]  # [""] for a yes or no


def groups(names: Sequence[str]) -> dict[str, Group]:
    """The attributes behind these class names, by name, in the order of their first column.

    Raises ConfigError for a name that is empty, given twice, or of two kinds.
    """
    found: dict[str, Group] = {}
    for column, name in enumerate(names):
        match = _NAME.fullmatch(name)
        if match is None or name in names[:column]:
            fault = "is given twice" if match else "must be name, name=value or name:value"
            raise ConfigError(f"attributes: class {name!r} {fault}")
        attribute, separator, value = match.groups()
        kind = FINDING_KINDS[separator]
        group = found.setdefault(attribute, Group(kind, [], []))
        if group.kind != kind:
            raise ConfigError(
                f"attributes: {attribute!r} has the classes {names[group.columns[0]]!r} and "
                f"{name!r}: an attribute is either one of (=), any of (:), or a yes or no"
            )
        group.columns.append(column)
        group.values.append(value or "")
    return found


def describe(names: Sequence[str], probs: Tensor) -> list[str]:
    """One object's attributes in words, for example `["color red 93%", "covered 71%"]`.

    `probs` (A,) belong to the classes `names`. Of a one-of attribute the best value; of the others
    those with a probability of at least `YES`.
    """
    words = []
    for attribute, group in groups(names).items():
        answers = [(probs[c].item(), v) for c, v in zip(group.columns, group.values, strict=True)]
        if group.kind == "one_of":
            answers = [max(answers, key=lambda answer: answer[0])]
        else:
            answers = [answer for answer in answers if answer[0] >= YES]
        words += [f"{f'{attribute} {value}'.strip()} {prob:.0%}" for prob, value in answers]
    return words


log = logging.getLogger("visionkit")
Names = tuple[str, ...]


def class_lists(
    class_keys: Mapping[str, str | None],
    sources: Mapping[str, Any],
    opened: Mapping[tuple[str, str], Dataset],
    fixed: Mapping[str, Classes],
) -> dict[str, dict[str, Names]]:
    """For each source, the class names by class_key.

    Heads that share a source share its class list, and so do sources that share a head: it holds
    the classes of all their training data, in the order in which they are met. Lists of heads in
    `fixed` stay as they are. `class_keys` by head; `sources` by name, with `feeds`; `opened` by
    source and split.
    """
    lists: dict[str, dict[str, Names]] = {name: {} for name in sources}
    for key in sorted({key for key in class_keys.values() if key}):
        for members, heads in _groups(key, class_keys, sources):
            known = [fixed[head].names for head in heads if head in fixed]
            names = known[0] if known else _union(key, members, opened)
            for member in members:
                lists[member][key] = names
    return lists


def class_mapped(
    where: str, dataset: Dataset, classes: Mapping[str, Names], labeled: list[str] | None
) -> Dataset:
    """The data set in terms of those class lists; itself, if it has just these.

    Raises DataError where it has others.
    """
    same = all(
        dataset.classes[key].names == names
        for key, names in classes.items()
        if key in dataset.classes
    )
    if same and labeled is None:
        return dataset
    matched = ClassMappedDataset(dataset, classes, labeled)
    for key, names in matched.unlabeled.items():
        if key not in classes:
            continue
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        log.info("%s: not labeled here: %s (%s); left out of losses and scores", where, shown, key)
    return matched


def classes_of_heads(
    class_keys: Mapping[str, str | None], sources: Sequence[Source]
) -> dict[str, Classes]:
    """Names and ids of the classes of each head that is fed.

    Ids are those of the data; where the data sets of a head do not agree on them, 1, 2, ...
    """
    found: dict[str, list[Classes]] = {}
    for source in sources:
        dataset = source.train if source.train is not None else source.val
        for head in source.feeds if dataset is not None else ():
            key = class_keys[head]
            none = Classes((), ())
            found.setdefault(head, []).append(dataset.classes.get(key, none) if key else none)
    return {head: _agreed(lists) for head, lists in found.items()}


def _agreed(lists: list[Classes]) -> Classes:
    first = lists[0]
    if all(other == first for other in lists):
        return first
    return Classes(first.names, tuple(range(1, len(first.names) + 1)))


def _groups(
    key: str, class_keys: Mapping[str, str | None], sources: Mapping[str, Any]
) -> list[tuple[list[str], list[str]]]:
    """Sources and heads of that class_key that are linked by feeding, directly or not."""
    groups: list[tuple[list[str], list[str]]] = []
    for name, source in sources.items():
        heads = [head for head in source.feeds if class_keys[head] == key]
        if not heads:
            continue
        linked = [group for group in groups if set(group[1]) & set(heads)]
        members = [member for group in linked for member in group[0]] + [name]
        all_gather_with_grad = dict.fromkeys(
            [head for group in linked for head in group[1]] + heads
        )
        groups = [group for group in groups if group not in linked] + [
            (members, list(all_gather_with_grad))
        ]
    return groups


def _union(key: str, members: Iterable[str], opened: Mapping[tuple[str, str], Dataset]) -> Names:
    names: dict[str, None] = {}
    for member in members:
        dataset = opened.get((member, "train"), opened.get((member, "val")))
        if dataset is not None and key in dataset.classes:
            names |= dict.fromkeys(dataset.classes[key].names)
    return tuple(names)
