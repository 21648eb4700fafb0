"""The parts of a report: plain data that an evaluator returns and `visualization` draws.

An evaluator of a custom head may have `report(context) -> list[Part]`; the parts appear under its
head, in this order, below the metrics that `compute` returns. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from visionkit.errors import printable

if TYPE_CHECKING:
    from visionkit.metrics.thresholds import Thresholds

Row: TypeAlias = Sequence[str | float | int | None]
CELLS = 40  # rows and columns of a matrix
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
    rows: Sequence[Row]
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
    (h, w) uint8 is laid over it: 0 stays as it is, 1 is right, 2 is wrong. Images of the dataset
    with the ids `neighbors` are shown at the right. `others` is the same image as other models see
    it, next to it.
    """

    image_id: int
    caption: str
    marks: Sequence[Mark] = ()
    label_map: np.ndarray | None = None
    image: np.ndarray | None = None
    neighbors: Sequence[int] = ()
    others: Sequence[Shown] = ()


@dataclass(frozen=True)
class Gallery:
    """Images worth a look, the most important first."""

    title: str
    images: Sequence[Shown]
    note: str = ""


@dataclass(frozen=True)
class ReportContext:
    """What an evaluator's `report` is given.

    `predicted(image_id)` runs the model on an image of the dataset once more. It returns the image
    (h, w, 3) uint8 at the size of the network's input, and the head's prediction.
    """

    predicted: Callable[[int], tuple[np.ndarray, Mapping[str, Any]]]
    images: int = 24  # of a gallery
    iou: float = 0.5  # from which a detection matches an object
    thresholds: Thresholds | None = None  # those that the model uses
    only: frozenset[int] | None = None  # images of galleries, those that another model shows

    def picked(self, ids: Sequence[int], counts: Sequence[bool] | np.ndarray) -> list[int]:
        """The places of the images to show: of those that count the first, or those in `only`."""
        if self.only is not None:
            return [place for place, id_ in enumerate(ids) if id_ in self.only]
        return np.flatnonzero(counts)[: self.images].tolist()


Part: TypeAlias = Text | Table | Chart | Bars | Matrix | Gallery


def misfit(part: Part) -> str:
    """What a part should have instead of what it has; empty if it can be drawn."""
    if not isinstance(part.title, str):
        return "a title that is a string"
    match part:
        case Text():
            fits, wanted = _all(part.sentences, str), "sentences that are a list of strings"
        case Table():
            rows = _all(part.rows, list | tuple) and _all(part.columns, str)
            fits = rows and all(
                len(row) == len(part.columns) and _all(row, str | Real | None) for row in part.rows
            )
            wanted = "a cell (a string, a number or None) for each column in each row"
        case Chart():
            fits = _all(part.series, Series) and all(
                np.ndim(one.x) == 1 and np.shape(one.x) == np.shape(one.y) for one in part.series
            )
            wanted = "a list of Series, each with as many x as y"
        case Bars():
            fits = isinstance(part.values, Mapping) and _all([*part.values.values()], Real)
            wanted = "values that are numbers by name"
        case Matrix():
            shape = (len(part.rows), len(part.columns))
            fits = isinstance(part.counts, np.ndarray) and part.counts.shape == shape
            wanted = f"counts that are an array {shape}"
        case Gallery():
            fits, wanted = _all(part.images, Shown), "images that are a list of Shown"
    return "" if fits else wanted


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(one, kind) for one in values)


def confusion_part(
    title: str,
    names: Sequence[str],
    counts: np.ndarray,
    images: Mapping[tuple[int, int], Sequence[int]],
    note: str,
    *,
    others: tuple[str, str] | None = None,
) -> Matrix:
    """A matrix of `counts` (C, C) with the classes that are confused most, if there are many.

    With `others`, the names of the last row and column, counts (C + 1, C + 1) have what is of no
    class.
    """
    classes = len(names)
    kept = list(range(classes))
    if classes > CELLS:
        off = counts[:classes, :classes] - np.diag(np.diag(counts)[:classes])
        order = np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")
        kept = sorted(order[:CELLS].tolist())
        note += f" The {CELLS} classes of {classes} that are confused most."
    rows = columns = [names[row] for row in kept]
    if others is not None:
        kept, rows, columns = [*kept, classes], [*rows, others[0]], [*columns, others[1]]
    place = {row: i for i, row in enumerate(kept)}
    cells = {
        (place[r], place[c]): ids for (r, c), ids in images.items() if r in place and c in place
    }
    return Matrix(title, rows, columns, counts[np.ix_(kept, kept)], cells, note)


def calibration_chart(scores: np.ndarray, right: np.ndarray, what: str, bins: int = 10) -> Chart:
    """How often what has a score (N,) is right (N,) bool, and the expected calibration error (Guo
    et al. 2017): the mean distance of both over bins of equal width."""
    place = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    score = np.bincount(place, scores, bins)[filled] / count[filled]
    share = np.bincount(place, right, bins)[filled] / count[filled]
    error = (np.abs(score - share) * count[filled]).sum() / max(count.sum(), 1)
    lines = [Series(what, score, share), Series("perfect", [0, 1], [0, 1])]
    note = f"Expected calibration error {error:.3f}, over {count.sum()} {what}."
    return Chart("Calibration", "score", "share that is right", lines, (0, 1), note=note)


def weakest(names: Sequence[str], values: Sequence[float], what: str) -> list[str]:
    """A sentence on the two classes with the lowest values; NaN does not count."""
    known = sorted((v, name) for v, name in zip(values, names, strict=True) if v == v)
    if len(known) < 2:
        return []
    worst = " and ".join(f"{name} ({value:.3f})" for value, name in known[:2])
    return [f"The weakest of {len(known)} classes by {what}: {worst}."]


def most_confused(
    names: Sequence[str], counts: np.ndarray, totals: np.ndarray, relation: str, what: str
) -> list[str]:
    """A sentence on the largest of `counts` (C, C) off the diagonal; `totals` (C,) by row. `what`
    is counted, in the plural."""
    off = counts - np.diag(np.diag(counts))
    if not off.any():
        return []
    row, column = (int(i) for i in np.unravel_index(off.argmax(), off.shape))
    count, share = int(off[row, column]), off[row, column] / max(totals[row], 1)
    often = f"{count:,} {what[:-1] if count == 1 else what}"
    part = f"{share:.0%}" if share >= 0.005 else "under 1%"
    return [
        f"The most frequent confusion: {names[row]} is {relation} {names[column]}, {often} ({part} "
        f"of {names[row]})."
    ]


def shown_ids(parts: Sequence[Part]) -> frozenset[int]:
    """The images of all galleries."""
    galleries = [part for part in parts if isinstance(part, Gallery)]
    return frozenset(shown.image_id for part in galleries for shown in part.images)


def with_others(
    name: str, parts: Sequence[Part], others: Mapping[str, Sequence[Part]]
) -> list[Part]:
    """The parts of a model, its galleries with what others, by name, show of the same images."""
    theirs = {other: _by_title(parts_of) for other, parts_of in others.items()}
    found = []
    for key, part in _by_title(parts).items():
        if isinstance(part, Gallery):
            same = {other: _images(by_title.get(key)) for other, by_title in theirs.items()}
            part = replace(part, images=[_joined(name, one, same) for one in part.images])
        found.append(part)
    return found


def _by_title(parts: Sequence[Part]) -> dict[tuple[str, int], Part]:
    """Parts by title and how many had it before, as the galleries of masks and of boxes."""
    seen: Counter[str] = Counter()
    found = {}
    for part in parts:
        found[part.title, seen[part.title]] = part
        seen[part.title] += 1
    return found


def _images(part: Part | None) -> dict[int, Shown]:
    return {one.image_id: one for one in part.images} if isinstance(part, Gallery) else {}


def _joined(name: str, shown: Shown, others: Mapping[str, Mapping[int, Shown]]) -> Shown:
    same = [
        replace(images[shown.image_id], caption=f"{other}: {images[shown.image_id].caption}")
        for other, images in others.items()
        if shown.image_id in images
    ]
    return replace(shown, caption=f"{name}: {shown.caption}", others=same) if same else shown


def to_plain(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts for a JSON file; images are named by their ids and captions."""
    return [{"part": type(one).__name__, **_plain(one)} for one in parts]


def _plain(value: Any) -> Any:
    if isinstance(value, Shown):
        return {"image_id": value.image_id, "caption": value.caption}
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):  # of cells or names
        return {
            " ".join(map(str, key)) if isinstance(key, tuple) else str(key): _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def text_lines(head: str, parts: Sequence[Part]) -> list[str]:
    """Parts as text; charts and images are for pages."""
    lines = []
    for part in parts:
        match part:
            case Text():
                body = list(part.sentences)
            case Table():
                body = _aligned([list(part.columns), *map(list, part.rows)])
            case Bars():
                body = _aligned([[name, value] for name, value in part.values.items()])
            case Matrix():
                rows = zip(part.rows, part.counts.tolist(), strict=True)
                body = _aligned([["", *part.columns], *([name, *row] for name, row in rows)])
            case _:
                continue
        lines += ["", printable(f"{head}: {part.title}"), *body]
    return lines


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Rows as lines, the first column at the left, the others at the right."""
    texts = [[_shown(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))] if texts else []
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "n/a"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
