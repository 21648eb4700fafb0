"""Compare what an exported file finds with what the model finds: tensors, objects, metrics.

`HeadComparison` collects both of one head, image by image, and says what is out of bounds. A pair
of objects matches if class, box, score and mask are the same but for rounding, so that two objects
in another order count as equal and one that is lost does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.types import prediction_kinds

# Two objects are the same if they differ by no more than this.
BOX = 0.5  # pixels of the image
SCORE = 1e-3
MASK = 0.01  # of the pixels of the mask, and
MASK_PIXELS = 2  # fewer count as the same
# What an exported file in float32 must reach.
TENSORS = 1e-4  # relative to the largest value, at least 1
MATCHED = 0.995
COSINE = 1e-4  # below 1
LEVELS = 1  # of 255, by which a pixel may be rounded
OF_ROWS = ("boxes", "scores", "masks", "attributes")  # outputs with a row for each object


def match_rows(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each of N objects the row of the same object in `other`, or -1: (N,) int64.

    Both have `boxes` (N, 4), `scores` (N,) and perhaps `labels` (N,). Each row is taken once, the
    nearest pairs first.
    """
    boxes = np.asarray(one["boxes"], np.float64), np.asarray(other["boxes"], np.float64)
    scores = np.asarray(one["scores"], np.float64), np.asarray(other["scores"], np.float64)
    found = np.full(len(boxes[0]), -1, np.int64)
    if not len(boxes[0]) or not len(boxes[1]):
        return found
    apart = np.abs(boxes[0][:, None] - boxes[1]).max(2)  # (N, M)
    differ = np.abs(scores[0][:, None] - scores[1])
    same = (apart <= BOX) & (differ <= SCORE)  # NaN is never the same
    if "labels" in one and "labels" in other:
        same &= np.asarray(one["labels"])[:, None] == np.asarray(other["labels"])
    rows, columns = np.nonzero(same)
    order = np.argsort(apart[rows, columns] / BOX + differ[rows, columns] / SCORE, kind="stable")
    taken = np.zeros(len(boxes[1]), bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if found[row] < 0 and not taken[column]:
            found[row], taken[column] = column, True
    return found


def tensor_differences(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The largest difference of each floating-point output of a head, relative to its largest
    value, which counts as at least 1. Infinite for another shape, or NaN in one of the two.

    Rows of objects, `count` (N,) of them or all, are compared after `match_rows`, since rounding
    may change their order; rows without a match are left to the comparison of objects.
    """
    names = [n for n, value in expected.items() if np.issubdtype(value.dtype, np.floating)]
    of_rows = [n for n in names if n in OF_ROWS] if has_rows(expected) else []
    differences = {
        name: _difference(expected[name], found[name]) if name in found else math.inf
        for name in names
        if name not in of_rows
    }
    pairs = zip(rows_of(expected), rows_of(found), strict=True) if of_rows else ()
    for ours, theirs in pairs:
        match = match_rows(ours, theirs)
        rows, columns = np.flatnonzero(match >= 0), match[match >= 0]
        for name in of_rows:
            one = (
                _difference(ours[name][rows], theirs[name][columns]) if name in theirs else math.inf
            )
            differences[name] = max(one, differences.get(name, 0.0))
    return {name: differences[name] for name in names}


def has_rows(outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether they are of objects."""
    return {"boxes", "scores"} <= outputs.keys()


def rows_of(outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The objects of each image: `boxes` and what else there is of each."""
    names = [name for name in outputs if name in (*OF_ROWS, "labels")]
    most = outputs["boxes"].shape[:2]
    counts = outputs.get("count", np.full(most[0], most[1]))
    return [{n: outputs[n][i, :count] for n in names} for i, count in enumerate(counts)]


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape or (np.isnan(expected) != np.isnan(found)).any():
        return math.inf
    known = np.isfinite(expected)
    if not np.array_equal(expected[~known], found[~known], equal_nan=True):
        return math.inf
    scale = max(1.0, float(np.abs(expected[known]).max(initial=0)))
    return float(np.abs(expected[known].astype(np.float64) - found[known]).max(initial=0)) / scale


def agreement(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, int, int]:
    """Of two predictions of a head for one image: what is counted, how many are the same in both,
    and how many there are in the larger of the two."""
    kinds = prediction_kinds(expected)
    one = {key: _plain(value) for key, value in expected.items()}
    other = {key: _plain(value) for key, value in found.items()}
    if {*one} - {*other}:
        return "image", 0, 1
    if "objects" in kinds or "attributes" in kinds:
        match = match_rows(one, other)
        pairs = [(row, int(column)) for row, column in enumerate(match) if column >= 0]
        same = sum(_same_object(one, other, row, column) for row, column in pairs)
        return "object", same, max(len(one["scores"]), len(other["scores"]))
    if "semantic" in kinds:
        equal = np.shape(one["semantic"]) == np.shape(other["semantic"])
        pixels = (one["semantic"] == other["semantic"]).sum() if equal else 0
        return "pixel", int(pixels), int(np.size(one["semantic"]))
    if "reconstruction" in kinds:
        images = (np.asarray(v["reconstruction"], np.int64) for v in (one, other))
        values = next(images), next(images)
        if values[0].shape != values[1].shape:
            return "value", 0, values[0].size
        near = np.abs(values[0] - values[1]) <= LEVELS
        return "value", int(near.sum()), values[0].size
    return "image", int(_same_image(one, other)), 1


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _same_object(one: Mapping[str, Any], other: Mapping[str, Any], row: int, column: int) -> bool:
    """Whether the rest of two objects with the same box is the same."""
    if "attributes" in one and not _near(one["attributes"][row], other["attributes"][column]):
        return False
    return "masks" not in one or _same_mask(one["masks"][row], other["masks"][column])


def _same_mask(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if tuple(one["size"]) != tuple(other["size"]):
        return False
    areas = coco_mask.area([one, other])
    both = float(coco_mask.area(coco_mask.merge([one, other], intersect=True)))
    differing = float(areas.sum()) - 2 * both
    return differing <= max(MASK_PIXELS, MASK * float(areas.max()))


def _same_image(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all that is found of a whole image is the same."""
    for key, value in one.items():
        if key == "embedding":
            cosine = float(value @ other[key]) if value.shape == other[key].shape else 0.0
            same = cosine >= 1 - COSINE
        elif key == "box":
            same = np.shape(value) == np.shape(other[key]) and bool(
                (np.abs(value - other[key]) <= BOX).all()
            )
        elif isinstance(value, np.ndarray) and not np.issubdtype(value.dtype, np.floating):
            same = np.array_equal(value, other[key])
        else:
            same = _near(value, other[key])
        if not same:
            return False
    return True


def _near(one: Any, other: Any) -> bool:
    """Whether numbers are equal but for `SCORE`; other values of a custom head are not compared."""
    try:
        first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    except (TypeError, ValueError):
        return True
    return first.shape == second.shape and np.allclose(first, second, 1e-3, SCORE, equal_nan=True)


@dataclass
class HeadComparison:
    """A head in the model and in the exported file.

    tensors: the largest relative difference of each output.
    unit: what is counted: object, pixel, value or image; "" where only tensors are compared.
    matched, total: how many are the same in both, and how many there are.
    metric, expected, found: the main metric of the model and of the file; NaN if there are no
        labels to measure it with.
    worst: the image with the lowest share of what matches, and that share.
    """

    head: str
    tensors: dict[str, float] = field(default_factory=dict)
    unit: str = ""
    matched: int = 0
    total: int = 0
    metric: str = ""
    expected: float = math.nan
    found: float = math.nan
    worst: tuple[str, float] = ("", math.inf)

    def add_tensors(self, differences: Mapping[str, float]) -> None:
        for name, value in differences.items():
            self.tensors[name] = max(value, self.tensors.get(name, 0.0))

    def add_predictions(
        self, image: str, expected: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        unit, matched, total = agreement(expected, found)
        self.unit = self.unit or unit
        self.matched, self.total = self.matched + matched, self.total + total
        share = matched / total if total else 1.0
        if share < self.worst[1]:
            self.worst = (image, share)

    @property
    def share(self) -> float:
        """Of what matches; 1 if there is nothing."""
        return self.matched / self.total if self.total else 1.0

    @property
    def is_empty(self) -> bool:
        """Whether objects were compared, but there was none."""
        return self.unit == "object" and not self.total

    def take(self, other: HeadComparison) -> None:
        """Add what was compared elsewhere; the metric stays."""
        self.add_tensors(other.tensors)
        self.matched, self.total = self.matched + other.matched, self.total + other.total
        self.worst = min(self.worst, other.worst, key=lambda one: one[1])

    @property
    def drop(self) -> float:
        """By how much the file's main metric is lower."""
        return self.expected - self.found

    def problems(self, max_drop: float | None = None) -> list[str]:
        """What is out of bounds. With `max_drop`, for a file of lower precision, the drop of the
        main metric alone."""
        if max_drop is not None:
            if not self.drop > max_drop:
                return []
            return [
                f"{self.head}: {self.metric} drops by {self.drop:.4f}, from {self.expected:.4f} to "
                f"{self.found:.4f}; at most {max_drop:g} is allowed (--max-drop)"
            ]
        problems = [
            f"{self.head}: output '{name}' differs by {value:.2g}, relative to its largest value; "
            f"expected at most {TENSORS:g}"
            for name, value in self.tensors.items()
            if not value <= TENSORS
        ]
        if self.share < MATCHED:
            image, share = self.worst
            problems.append(
                f"{self.head}: {self.counted}; expected at least {MATCHED:.1%}; worst image: "
                f"{image} ({share:.0%})"
            )
        return problems

    @property
    def counted(self) -> str:
        """`399 of 400 objects are the same`."""
        nouns = f"{self.unit}{'' if self.total == 1 else 's'}"
        return f"{self.matched:,} of {self.total:,} {nouns} are the same"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        image, share = self.worst if self.worst[1] < 1 else ("", 1.0)
        return {
            "tensors": self.tensors,
            "unit": self.unit or None,
            "matched": self.matched,
            "total": self.total,
            "worst_image": image or None,
            "worst_share": share if image else None,
            "metric": self.metric or None,
            "model": self.expected,
            "file": self.found,
        }
