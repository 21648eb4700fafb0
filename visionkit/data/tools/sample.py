"""Take some images of a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.image_classes import read_image_classes
from visionkit.data.coco.index import CocoIndex
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.convert import check_out, train_command, write_coco
from visionkit.data.tools.merged_records import moved_map, other_members
from visionkit.data.tools.opened import images_of, open_any
from visionkit.errors import ArgumentError, DataError, plural, printable

By = Literal["class", "balanced"]


class Sampled(NamedTuple):
    """What `sample` has done."""

    out: str
    images: int
    of: int
    objects: int
    images_folder: str | None  # that the file names are relative to

    def lines(self) -> list[str]:
        """What to print."""
        what = f"{self.images} of {plural(self.of, 'image')}, {plural(self.objects, 'object')}"
        folder = f"; images are in {self.images_folder}" if self.images_folder else ""
        command = train_command(self.images_folder or "DIR", self.out)
        return [f"wrote {self.out}: {what}{folder}; train with:", f"  {command}"]


def sample_data(
    source: str | Path,
    n: int,
    out: str | Path | None = None,
    *,
    by: By | None = None,
    seed: int = 0,
) -> Sampled:
    """Write `n` images of a file of annotations of any format to a new COCO file, in the order of
    the file; the same for the same seed.

    by: "class" keeps the share of images that each class has; "balanced" takes equally many images
        of each class, as far as there are as many; None takes any.
    out: by default NAME-N.json next to the file.
    """
    path = Path(source)
    target = path.with_name(f"{path.stem}-{n}.json") if out is None else Path(out)
    check_out(target, path)
    reader, index = open_any(source)
    total = len(index.images.ids)
    if n > total:
        raise ArgumentError(f"--n: got {n}, but {printable(source)} has {plural(total, 'image')}")
    rng = np.random.default_rng(seed)
    if by is None:
        chosen = rng.choice(total, n, replace=False)
    else:
        chosen = _choose(presence(index), n, rng, balanced=by == "balanced")
    some = _Some(reader, index, np.sort(chosen), target)
    write_coco(some, target, other_members(reader))
    try:
        folder = images_of(reader, index, None)
    except DataError:  # several
        folder = None
    objects = int(np.isin(index.objects.image, chosen).sum())
    return Sampled(str(target), n, total, objects, None if folder is None else str(folder))


def presence(index: CocoIndex) -> np.ndarray:
    """(I, K) bool: which images have which classes, of their objects and of themselves; the last
    column is for those without any."""
    images, objects = len(index.images.ids), index.objects
    labels, place = np.unique(objects.category, return_inverse=True)
    found = np.zeros((images, len(labels)), bool)
    known = objects.image >= 0
    found[objects.image[known], place.ravel()[known]] = True
    names = len(index.names["image_classes"])
    whole = read_image_classes(index.images, names, Problems(""))
    if whole is None:
        whole = index.images.class_ids[:, None] == np.arange(names)
    columns = np.concatenate([found, whole == 1], 1)
    columns = columns[:, columns.any(0)]
    return np.concatenate([columns, ~columns.any(1, keepdims=True)], 1)


def _choose(has: np.ndarray, n: int, rng: np.random.Generator, *, balanced: bool) -> np.ndarray:
    """(n,) rows of `has` (I, K): one after another, a random one of those that have the class that
    lacks most of its share; of equal ones the class that the fewest images have."""
    counts = has.sum(0)
    share = np.ones(len(counts)) if balanced else np.maximum(counts, 1) / len(has)
    order, ranks = rng.permutation(len(has)), np.lexsort((np.arange(len(counts)), counts))
    queues = [iter(order[has[order, label]].tolist()) for label in range(len(counts))]
    left, taken, chosen = counts.copy(), np.zeros(len(counts)), list[int]()
    free = np.ones(len(has), bool)
    while len(chosen) < n:
        filled = np.where(left > 0, taken / share, np.inf)
        if balanced and left[:-1].any():
            filled[-1] = np.inf  # images without a class come last
        label = int(ranks[filled[ranks].argmin()])
        row = next(row for row in queues[label] if free[row])
        free[row] = False
        chosen.append(row)
        left -= has[row]
        taken += has[row]
    return np.array(chosen, np.int64)


class _Some(Reader):
    """Some of the records of a reader."""

    name = "COCO"

    def __init__(self, reader: Reader, index: CocoIndex, rows: np.ndarray, out: Path):
        super().__init__(out)
        self.index, self.rows = index, rows
        self.categories, self.lists = reader.categories, reader.lists

    def files(self) -> list[Path]:
        return [self.source]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        objects, rows = self.index.objects, self.index.objects.rows_by_image()
        starts = np.searchsorted(objects.image[rows], np.arange(len(self.index.images.ids) + 1))
        for i in self.rows.tolist():
            own = rows[starts[i] : starts[i + 1]].tolist()
            image = self.index.images.record(i)
            if name := image.get("semantic"):
                image["semantic"] = moved_map(self.index.path.parent, name, self.source.parent)
            yield image, [objects.record(row) for row in own]
