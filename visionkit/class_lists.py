"""Which classes each head tells apart, where several data sets each label some of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from visionkit.data.sources import Source
from visionkit.relabelled import Relabelled
from visionkit.types import Classes, Dataset

log = logging.getLogger("visionkit")
Names = tuple[str, ...]


def class_lists(
    vocabularies: Mapping[str, str | None],
    sources: Mapping[str, Any],
    opened: Mapping[tuple[str, str], Dataset],
    fixed: Mapping[str, Classes],
) -> dict[str, dict[str, Names]]:
    """For each source, the class names by vocabulary.

    Heads that share a source share its class list, and so do sources that share a head: it holds
    the classes of all their training data, in the order in which they are met. Lists of heads in
    `fixed` stay as they are. `vocabularies` by head; `sources` by name, with `feeds`; `opened` by
    source and split.
    """
    lists: dict[str, dict[str, Names]] = {name: {} for name in sources}
    for key in sorted({key for key in vocabularies.values() if key}):
        for members, heads in _groups(key, vocabularies, sources):
            known = [fixed[head].names for head in heads if head in fixed]
            names = known[0] if known else _union(key, members, opened)
            for member in members:
                lists[member][key] = names
    return lists


def relabelled(
    where: str, dataset: Dataset, classes: Mapping[str, Names], labelled: list[str] | None
) -> Dataset:
    """The data set in terms of those class lists; itself, if it has just these.

    Raises DataError where it has others.
    """
    same = all(
        dataset.vocabularies[key].names == names
        for key, names in classes.items()
        if key in dataset.vocabularies
    )
    if same and labelled is None:
        return dataset
    matched = Relabelled(dataset, classes, labelled)
    for key, names in matched.unlabelled.items():
        if key not in classes:
            continue
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        log.info("%s: not labelled here: %s (%s); left out of losses and scores", where, shown, key)
    return matched


def classes_of_heads(
    vocabularies: Mapping[str, str | None], sources: Sequence[Source]
) -> dict[str, Classes]:
    """Names and ids of the classes of each head that is fed.

    Ids are those of the data; where the data sets of a head do not agree on them, 1, 2, ...
    """
    found: dict[str, list[Classes]] = {}
    for source in sources:
        dataset = source.train if source.train is not None else source.val
        for head in source.feeds if dataset is not None else ():
            key = vocabularies[head]
            none = Classes((), ())
            found.setdefault(head, []).append(dataset.vocabularies.get(key, none) if key else none)
    return {head: _agreed(lists) for head, lists in found.items()}


def _agreed(lists: list[Classes]) -> Classes:
    first = lists[0]
    if all(other == first for other in lists):
        return first
    return Classes(first.names, tuple(range(1, len(first.names) + 1)))


def _groups(
    key: str, vocabularies: Mapping[str, str | None], sources: Mapping[str, Any]
) -> list[tuple[list[str], list[str]]]:
    """Sources and heads of that vocabulary that are linked by feeding, directly or not."""
    groups: list[tuple[list[str], list[str]]] = []
    for name, source in sources.items():
        heads = [head for head in source.feeds if vocabularies[head] == key]
        if not heads:
            continue
        linked = [group for group in groups if set(group[1]) & set(heads)]
        members = [member for group in linked for member in group[0]] + [name]
        joined = dict.fromkeys([head for group in linked for head in group[1]] + heads)
        groups = [group for group in groups if group not in linked] + [(members, list(joined))]
    return groups


def _union(key: str, members: Iterable[str], opened: Mapping[tuple[str, str], Dataset]) -> Names:
    names: dict[str, None] = {}
    for member in members:
        dataset = opened.get((member, "train"), opened.get((member, "val")))
        if dataset is not None and key in dataset.vocabularies:
            names |= dict.fromkeys(dataset.vocabularies[key].names)
    return tuple(names)
