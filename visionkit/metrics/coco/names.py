"""Compares names of images and classes in result records, and finds classes in another order."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from visionkit.data.checks.findings import short
from visionkit.data.coco.index import CocoIndex
from visionkit.errors import listed
from visionkit.metrics.coco.ground_truth import ScoredTruth

FEWEST = 8  # objects that confirm what the first one of their class was found as
CONFIRMED = 0.8  # of the objects of a class: more found as one other class are a mistake
GENERIC_KEYS = ("class_name", "category", "class", "label", "name")


class NameCheck:
    """Compares the names of images and classes in result records with those of their ids.

    `category_name` and `file_name` decide. The other keys can mean anything; they count where they
    name classes in another order.
    """

    def __init__(self, index: CocoIndex, truth: ScoredTruth) -> None:
        self.images = dict(zip(index.images.ids.tolist(), index.images.names.texts(), strict=True))
        self.classes = dict(zip(truth.category_ids.tolist(), truth.names, strict=True))
        self.known = {_plain(name): name for name in truth.names}
        self.counts: Counter[str] = Counter()  # contradictions by key
        self.first: dict[str, str] = {}
        self.named: dict[str, Counter[tuple[str, str]]] = {key: Counter() for key in GENERIC_KEYS}
        self.seen = 0

    def add(self, records: Sequence[Any]) -> None:
        """Check some more records."""
        for number, record in enumerate(records, self.seen):
            if isinstance(record, dict) and len(record) > 4:
                for key, contradiction in self._contradictions(record):
                    self.counts[key] += 1
                    self.first.setdefault(key, f"result {number}: {contradiction}")
        self.seen += len(records)

    def doubts(self) -> list[str]:
        """One for each key that contradicts the ids."""
        doubts = [
            self.first[key] + (f" (and {count - 1} more)" if count > 1 else "")
            for key, count in self.counts.items()
        ]
        for key, seen in self.named.items():
            moved = moved_classes(seen)
            if 2 * objects_of(moved, seen) > seen.total():
                shown = [f"category_id of {a!r} has {b!r}" for a, b in moved.items()]
                doubts.append(f"{key} names the classes in another order: {listed(shown, 5)}")
        return doubts

    def _contradictions(self, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        id_, name = record.get("image_id"), record.get("file_name")
        known = self.images.get(id_) if isinstance(id_, int | float) else None
        name = name if isinstance(name, str) else ""
        if known and _plain(name) and _spellings(name).isdisjoint(_spellings(known)):
            yield (
                "file_name",
                f"image_id {short(id_)} is the image {name!r} there, and {known!r} in the "
                "annotations. `visionkit predict` counts images from 1; `visionkit eval RUN` "
                "writes files to score, with the ids of its data, to RUN/eval",
            )
        id_ = record.get("category_id")
        expected = self.classes.get(id_) if isinstance(id_, int | float) else None
        if expected is None:
            return
        text = record.get("category_name")
        if isinstance(text, str) and _plain(text) and _plain(text) != _plain(expected):
            yield (
                "category_name",
                f"category_name is {short(text)}, but category_id {short(id_)} is "
                f"{short(expected)} in the annotations: use their ids",
            )
        for key, seen in self.named.items():
            text = record.get(key)
            if isinstance(text, str) and not text.isdigit() and _plain(text) in self.known:
                seen[expected, self.known[_plain(text)]] += 1


def _plain(name: str) -> str:
    """A name without differences that mean nothing."""
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ").strip()


def _spellings(path: str) -> set[str]:
    """The last part of a path or URL, with its suffix and without."""
    name = PurePosixPath(path.replace("\\", "/")).name
    names = {name, name.partition("?")[0]}
    return {_plain(n) for name in names for n in (name, PurePosixPath(name).stem)}


def moved_classes(seen: Counter[tuple[Any, Any]]) -> dict[Any, Any]:
    """The classes that are consistently found as another one: `seen` counts pairs of a class and
    the class it is found as. Empty if fewer than two, or too few objects, say so."""
    objects: Counter[Any] = Counter()
    for (one, _), n in seen.items():
        objects[one] += n
    found = {
        one: label for (one, label), n in seen.items() if n > 1 and n >= CONFIRMED * objects[one]
    }
    targets = Counter(found.values())  # many classes found as one: a model that confuses them
    moved = {one: label for one, label in found.items() if one != label and targets[label] == 1}
    confirmed = objects_of(moved, seen) - len(moved)
    return moved if len(moved) > 1 and confirmed >= FEWEST else {}


def objects_of(moved: Mapping[Any, Any], seen: Counter[tuple[Any, Any]]) -> int:
    """How many objects of those classes are found as that other one."""
    return sum(seen[pair] for pair in moved.items())
