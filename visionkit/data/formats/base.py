"""What the readers and writers of annotation formats share.

A `Reader` yields the records of a COCO file, image by image. A writer is a function that takes a
reader. So each format is converted to each other one, and read in training, by one piece of code.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from visionkit.data.checks.findings import Problems
from visionkit.data.files import Links
from visionkit.data.image_io import Exif
from visionkit.errors import ConfigError, DataError, listed, printable

Record: TypeAlias = dict[str, Any]
Parts = Literal["bridge", "largest", "error"]
FIRST = 5  # places shown of each kind of loss


@dataclass
class Losses:
    """What a format has no place for: by kind the count and the first places."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=dict)

    def add(self, kind: str, place: object, count: int = 1, keys: Iterable[str] = ()) -> None:
        """`kind` is a phrase that follows a count, such as "masks that become boxes"; `place` says
        where, such as "images/3.jpg: annotation 17"; `keys` which members of records are lost."""
        self.counts[kind] += count
        self.keys.setdefault(kind, set()).update(keys)
        places = self.places.setdefault(kind, [])
        if len(places) < FIRST:
            places.append(printable(place))

    def lines(self) -> list[str]:
        """What to print."""
        return loss_lines(self.record())

    def record(self) -> list[Record]:
        """The same for a JSON report."""
        return [
            {"kind": self._named(kind), "count": count, "first": self.places[kind]}
            for kind, count in self.counts.most_common()
        ]

    def _named(self, kind: str) -> str:
        """The kind with the keys that are lost."""
        keys = [printable(key) for key in sorted(self.keys[kind])]
        return f"{kind} ({listed(keys)})" if keys else kind


def loss_lines(losses: Sequence[Record]) -> list[str]:
    """A line for each kind of the records of `Losses`, and one for each of its first places."""
    lines = []
    for loss in losses:
        more = ["  ..."] if loss["count"] > len(loss["first"]) else []
        places = [f"  {place}" for place in loss["first"]]
        lines += [f"lost: {loss['count']} {loss['kind']}", *places, *more]
    return lines


class Reader:
    """Annotations of one format. A subclass finds its files in `__init__`, which raises DataError
    for what is not its format, and implements `read`.

    source: the folder or file.
    images: the folder of the images, if the format does not say or they are elsewhere.
    classes: class names, where the format has only numbers or they are to have this order.
    split: the part of the data to read, such as "val", where the format knows parts.
    skip_bad: malformed records are dropped and counted instead of being errors.
    links: "any" allows files to be links that lead out of the folder.
    exif: whether labels belong to the upright image ("apply") or to the pixels as stored.
    """

    name: ClassVar[str]  # as a person would say it: "Pascal VOC"

    def __init__(
        self,
        source: str | Path,
        *,
        images: str | Path | None = None,
        classes: Sequence[str] | None = None,
        split: str | None = None,
        skip_bad: bool = False,
        links: Links = "inside",
        exif: Exif = "apply",
    ):
        self.source = Path(source)
        self.images = Path(images) if images is not None else self.source  # of `file_name`
        self.maps_folder = self.source.parent  # of `semantic`
        self.given_classes = None if classes is None else list(classes)
        self.split, self.skip_bad, self.links, self.exif = split, skip_bad, links, exif
        self.problems = Problems(f"{self.name} {printable(source)}", source)
        self.skipped: Counter[str] = Counter()  # bad records by kind, with `skip_bad`
        self.losses = Losses()  # what has no place in COCO
        self.notes: list[str] = []  # what else to say about the data
        # Known once `read` has ended, for some formats before: COCO's category records, and other
        # lists at the top of the file (`image_classes`, `semantic_classes`, `attribute_classes`).
        self.categories: list[Record] = []
        self.lists: dict[str, list[str]] = {}

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        """The record of each image (`id`, `file_name` relative to `images`, `height`, `width`) with
        its annotations (`id`, `image_id`, `category_id`, `bbox`, and where known `segmentation`,
        `area`, `iscrowd`, `attributes`). Ids are unique and count from 1 unless the format has its
        own. Bad records go to `bad`."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The files that hold the annotations: their sizes and times show if a dataset that
        was read before has changed."""
        raise NotImplementedError

    def bad(self, where: str, what: str, hint: str = "", *, kind: str = "value") -> None:
        """A malformed record: an error, or with `skip_bad` dropped and counted. `where` is
        `file:line` or `file: object 3`."""
        if self.skip_bad:
            self.skipped[kind] += 1
        else:
            self.problems.add(printable(where), what, hint, kind=kind)

    def records(self) -> Iterator[tuple[Record, list[Record]]]:
        """`read`, to the end: then DataError for all that is wrong, and for no image at all."""
        count = 0
        for one in self.read():
            count += 1
            yield one
        self.problems.raise_any()
        if not count:
            raise DataError(f"{self.problems.source}: no images")


# It adds what the format has no place for to the losses of the reader.
Writer: TypeAlias = Callable[["Reader", Path, "WriteOptions"], None]


@dataclass(frozen=True)
class WriteOptions:
    """How a writer writes into a new folder. A writer makes `labels`-like files, and where the
    format needs them next to these, copies of the images.

    images: the folder of the images; None if they are not at hand.
    parts: what to do with an object of several polygons where the format has one: join them by
        thin bridges, keep the largest, or fail.
    """

    images: Path | None = None
    parts: Parts = "bridge"


def blocks(records: Iterator[Any], size: int = 10_000) -> Iterator[list[Any]]:
    """Lists of up to `size` items."""
    while block := list(islice(records, size)):
        yield block


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder next to `out` that gets its name at the end. If anything is raised before,
    nothing remains. ConfigError if there is something of that name by then."""
    folder = out.with_name(f".{out.name}.tmp.{threading.get_native_id()}")
    shutil.rmtree(folder, ignore_errors=True)  # of a dead process
    folder.mkdir()
    try:
        yield folder
        if os.path.lexists(out):
            raise ConfigError(f"{printable(out)} already exists; name a new one")
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
