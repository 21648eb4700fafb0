"""Some images of a dataset, and how a share of them is held out for validation."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.checks.findings import Finding, FindingCounts, Progress, count_findings
from visionkit.data.coco.ground_truth import GroundTruth, ground_truth_of
from visionkit.data.sample import Sample
from visionkit.data.tools.stratify import stratified
from visionkit.errors import DataError, plural

# Attributes of a dataset with a value for each image.
COLUMNS = ("image_ids", "sizes", "identities", "file_names")
# What is counted for the part by another method of the whole.
_COUNTED_BY = {"class_counts": "occurrences", "num_objects": "objects"}
# Roboflow's names of several versions of one photo: `a_jpg.rf.0123abcd.jpg`.
_VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]{8,}(?=\.[a-z]+$)")


class Part:
    """The images of a dataset in these rows, as a dataset of its own.

    It has what the whole dataset has (`visionkit.types.Dataset`): columns, files, ground truth and
    counts are those of its images alone. The part with `has_rest` has the findings that are not
    about an image, such as one about a file of another kind.
    """

    def __init__(self, whole: Any, rows: Sequence[int] | np.ndarray, *, has_rest: bool):
        self.whole, self.rows, self.has_rest = whole, np.array(rows, np.int64), has_rest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("whole", "dataset"):  # while a copy is unpickled
            raise AttributeError(name)
        # AttributeError for what the dataset lacks
        value = getattr(self.whole, _COUNTED_BY.get(name, name))
        if name in COLUMNS:
            return (
                [value[row] for row in self.rows] if isinstance(value, list) else value[self.rows]
            )
        return getattr(self, own) if (own := f"_{name}") in vars(Part) else value

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[int(self.rows[index])]

    def _image_path(self, index: int) -> Path:
        return self.whole.image_path(int(self.rows[index]))

    def _map_path(self, index: int) -> Path | None:
        return self.whole.map_path(int(self.rows[index]))

    @property
    def _fingerprint(self) -> str:
        """A hash of the whole and of the rows."""
        text = f"{self.whole.fingerprint} {self.rows.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _ground_truth(self) -> GroundTruth:
        return ground_truth_of(self.whole).of(images=self.image_ids)

    def _objects(self) -> tuple[np.ndarray, ...]:
        image, *columns = self.whole.objects()
        place = np.full(len(self.whole), -1)
        place[self.rows] = np.arange(len(self))
        kept = place[image] >= 0
        return place[image][kept], *(column[kept] for column in columns)

    @property
    def _num_objects(self) -> int:
        return len(self._objects()[0])

    def _class_counts(self) -> dict[str, np.ndarray]:
        kept = np.isin(np.arange(len(self.whole)), self.rows)
        return {
            key: np.bincount(labels[kept[image]], minlength=len(self.whole.classes[key].names))
            for key, (image, labels) in self.whole.occurrences().items()
        }

    def _findings(self) -> Iterator[Finding]:
        return filter(self._is_ours, self.whole.findings())

    def _counts(self) -> FindingCounts:
        if hasattr(self.whole, "row_of"):
            return count_findings(self._findings())
        return self.whole.counts() if self.has_rest else count_findings()

    def _examine(self, progress: Progress) -> Iterator[Finding]:
        if self.has_rest or hasattr(self.whole, "row_of"):
            yield from filter(self._is_ours, self.whole.examine(progress))

    def _is_ours(self, found: Finding) -> bool:
        row = self.whole.row_of(found) if hasattr(self.whole, "row_of") else None
        return self.has_rest if row is None else bool(np.isin(row, self.rows))


def held_out(whole: Any, share: float) -> tuple[Part, Part]:
    """The training images of a dataset, and a share of it to validate with.

    The classes of both have about the same shares. What is chosen depends on the names of the
    images and on their classes, not on their order or the machine. Entries of one image, and
    Roboflow's versions of one photo, stay together. DataError for less than two groups.
    """
    names = _names(whole)
    groups = np.unique([_VERSION.sub("", name) for name in names], return_inverse=True)[1]
    if groups.max(initial=0) == 0:
        raise DataError(f"holdout: {plural(len(whole), 'image')} cannot be divided into two parts")
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    held = np.zeros(len(names), bool)
    counts, both = _class_table(whole)[order], (1 - share, share)
    held[order] = stratified(counts, both, groups[order], refine=False) == 1
    if held.all() or not held.any():
        held[groups == groups[order[0]]] ^= True
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    return Part(whole, train, has_rest=True), Part(whole, val, has_rest=False)


def _class_table(whole: Any) -> np.ndarray:
    """(N, K) how often each class of any kind occurs in each image; classes are sorted by name."""
    columns: dict[tuple[str, str], np.ndarray] = {}
    for key, (image, label) in whole.occurrences().items() if hasattr(whole, "occurrences") else ():
        for i, name in enumerate(whole.classes[key].names):
            columns[key, name] = np.bincount(image[label == i], minlength=len(whole))
    return np.stack([columns[key] for key in sorted(columns)] or [np.ones(len(whole))], 1)


def _names(whole: Any) -> list[str]:
    """A name of the image of each row: its path below the folder that all have in common."""
    if not hasattr(whole, "image_path"):
        ids = getattr(whole, "image_ids", range(len(whole)))
        return [str(id_) for id_ in ids]
    paths = [str(whole.image_path(row)) for row in range(len(whole))]
    home = os.path.commonpath({os.path.dirname(path) for path in paths})
    return [os.path.relpath(path, home).replace(os.sep, "/") for path in paths]
