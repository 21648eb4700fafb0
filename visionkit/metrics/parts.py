"""The parts of a report: plain data that an evaluator returns and `visualization` draws.

An evaluator of a custom head may have `report() -> list[Part]`; the parts appear under its head, in
this order, below the metrics that `compute` returns. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

Kind = Literal["right", "wrong", "missed", "found", "truth"]  # what a mark is: it has that color


@dataclass(frozen=True)
class Text:
    """Sentences, each a paragraph."""

    title: str
    sentences: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows that the reader can sort by a column. NaN and None are shown as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart: M points, and where one of them is marked."""

    name: str
    x: Sequence[float] | np.ndarray  # (M,)
    y: Sequence[float] | np.ndarray  # (M,); NaN interrupts the line
    mark: float | None = None  # x of the mark


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. `y_range` None: from the data."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = (0.0, 1.0)
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """One bar for each name."""

    title: str
    values: Mapping[str, float]
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Counts (R, C) of ground truth by row and prediction by column."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: np.ndarray  # (R, C) int64
    images: Mapping[tuple[int, int], Sequence[int]] = field(default_factory=dict)  # ids by cell
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """A box, with a mask or a text, on an image; in original pixels."""

    kind: Kind
    box: Sequence[float] | None = None  # xyxy
    text: str = ""
    mask: dict[str, Any] | None = None  # compressed RLE


@dataclass(frozen=True)
class Shown:
    """One image of a gallery, with what is drawn on it.

    `image` is an (h, w, 3) uint8 array that is shown instead of the dataset's image. `label_map`
    (h, w) uint8 is laid over it: 0 stays as it is, 1 is right, 2 is wrong.
    """

    image_id: int
    caption: str
    marks: Sequence[Mark] = ()
    label_map: np.ndarray | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True)
class Gallery:
    """Images worth a look, the most important first."""

    title: str
    images: Sequence[Shown]
    note: str = ""


Part: TypeAlias = Text | Table | Chart | Bars | Matrix | Gallery
