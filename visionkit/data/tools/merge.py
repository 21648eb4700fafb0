"""Merge files of annotations into one COCO file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visionkit.config import yaml
from visionkit.data.checks.findings import Problems
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.tables import UNMAPPED
from visionkit.data.files import resolve
from visionkit.data.formats.base import Reader, Record, loss_lines
from visionkit.data.formats.convert import check_out, train_command, write_coco
from visionkit.data.tools.merged_records import (
    Members,
    joined_image,
    labeled_keys,
    labels_of,
    merged_members,
    other_members,
)
from visionkit.data.tools.opened import images_of, open_any
from visionkit.errors import ArgumentError, ConfigError, DataError, plural, printable, unknown
from visionkit.runs.files import to_json


class Merge(NamedTuple):
    """What `merge` has done."""

    out: str
    images: int
    objects: int
    categories: int
    images_folder: str  # that the file names are relative to
    notes: list[str]
    losses: list[Record]  # kind, count, first places

    def lines(self) -> list[str]:
        """What to print."""
        lines = [*self.notes, *loss_lines(self.losses)]
        what = f"{plural(self.images, 'image')}, {plural(self.objects, 'object')}"
        classes = plural(self.categories, "class", "classes")
        return [
            *lines,
            f"wrote {self.out}: {what} of {classes}; images are in {self.images_folder}; "
            "train with:",
            f"  {train_command(self.images_folder, self.out)}",
        ]


@dataclass
class Input:
    """One file to merge."""

    path: str
    reader: Reader
    index: CocoIndex
    folder: Path  # of the images
    names: list[str]  # of the image files, relative to it
    classes: dict[int, str]  # the new name of each category, by its id
    members: Members  # what else is at the top of the file
    rows: np.ndarray = field(init=False)  # (A,) of the objects, sorted by image
    starts: np.ndarray = field(init=False)  # (I+1,) where those of each image begin in `rows`

    def __post_init__(self) -> None:
        objects, count = self.index.objects, len(self.index.images.ids)
        self.rows = objects.rows_by_image()
        self.starts = np.searchsorted(objects.image[self.rows], np.arange(count + 1))

    def objects_of(self, image: int) -> list[int]:
        """The rows of the objects of an image."""
        return self.rows[self.starts[image] : self.starts[image + 1]].tolist()

    def class_of(self, row: int) -> str:
        return self.classes[int(self.index.objects.category[row])]


IDS = ("id", "image_id", "category_id")
Place = tuple[int, int]  # of an image: the number of its file, and its row there


def merge_data(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    rename: str | Path | Mapping[str, Any] | None = None,
    labeled: bool = False,
    images: Sequence[str | Path] = (),
) -> Merge:
    """Merge files of annotations of any format into a new COCO file.

    Classes are matched by name. Ids stay where they do not collide; of two that do, the second is
    changed. File names become relative to the common parent of the folders of the images. An image
    that is in several files is one image with the objects of all.

    rename: new names of classes, {old: new}, or by file {"A.json": {old: new}}; or a YAML file.
    labeled: writes which classes each image is labeled for: those of its files. Else a class that
        a file does not list counts as labeled, and as absent, in its images.
    images: the folder of the images of each file, or one for all; by default they are found.

    Raises DataError with all problems: files that cannot be read, images that are not found, and
    images in which two files label the same class differently.
    """
    out = Path(out)
    for source in sources:
        check_out(out, Path(source))
    if len(images) not in (0, 1, len(sources)):
        raise ArgumentError(
            f"--images: got {plural(len(images), 'folder')} for {plural(len(sources), 'file')}; "
            "give one for all, or one for each in their order"
        )
    where = "--map"
    if isinstance(rename, (str, Path)):  # before any data, which may take long
        where, rename = printable(rename), yaml.read(rename, "expected lines 'old: new'")[0]
    folders: list[str | Path | None] = [*images] or [None]
    folders *= len(sources) if len(folders) == 1 else 1
    inputs = [_open(source, folder) for source, folder in zip(sources, folders, strict=True)]
    _rename(inputs, rename, where)
    merged = _Merged(inputs, out, labeled=labeled)
    write_coco(merged, out, merged.members)
    return Merge(
        str(out),
        len(merged.places),
        sum(map(len, merged.kept)),
        len(merged.categories),
        str(merged.images_folder),
        merged.notes,
        merged.losses.record(),
    )


def _open(source: str | Path, given: str | Path | None) -> Input:
    reader, index = open_any(source, given)
    folder = images_of(reader, index, given)
    if folder is None:
        raise DataError(
            f"{printable(source)}: its images are not found near it; name their folder with "
            "--images DIR, of several files one for each in their order"
        )
    names, problems = index.images.names.texts(), reader.problems
    for row, name in resolve(folder, names):
        if not name:
            what = f"'file_name' is {names[row]!r}, which is not in {printable(folder)}"
            record, hint = index.images.record(row), "must be relative to the image folder"
            problems.add_value("images", row, record, "file_name", what, hint, "path")
        names[row] = name
    problems.raise_any()
    classes = {int(one["id"]): str(one["name"]) for one in index.categories}
    return Input(str(source), reader, index, folder, names, classes, other_members(reader))


def _rename(inputs: Sequence[Input], rename: Mapping[str, Any] | None, where: str) -> None:
    """Give classes their new names. ConfigError for unknown files and classes."""
    if rename is None:
        return
    by_file = {key: value for key, value in rename.items() if isinstance(value, Mapping)}
    if by_file and len(by_file) < len(rename):
        raise ConfigError(f"{where}: give {{old: new}} or {{file: {{old: new}}}}, not both in one")
    problems = []
    for key, names in by_file.items() if by_file else [("", rename)]:
        chosen = [one for one in inputs if key in ("", one.path, Path(one.path).name)]
        if not chosen:
            paths = [one.path for one in inputs]
            problems.append(f"{where}: " + unknown(key, paths, f"unknown file {key!r}"))
        known = {name for one in chosen for name in one.classes.values()}
        for old, new in names.items():
            if not isinstance(new, str) or not new.strip():
                problems.append(f"{where}: {old}: the new name is {new!r}; give a text")
            elif chosen and old not in known:
                problems.append(f"{where}: " + unknown(old, known, f"unknown class {old!r}"))
        for one in chosen if not problems else ():
            one.classes = {id_: names.get(name, name) for id_, name in one.classes.items()}
    if problems:
        raise ConfigError(*problems)


class _Merged(Reader):
    """The records of several files as those of one."""

    name = "COCO"

    def __init__(self, inputs: Sequence[Input], out: Path, *, labeled: bool):
        super().__init__(out)
        self.inputs, self.labeled = inputs, labeled
        for one in inputs:
            for loss in one.reader.losses.record():
                self.losses.add(loss["kind"], loss["first"][0], loss["count"])
        self.notes: list[str] = []
        folders = [os.path.abspath(one.folder) for one in inputs]
        self.images_folder = Path(os.path.commonpath(folders))
        self.places = self._join()
        self._merge_categories()
        self.members, self.lists_of = merged_members(
            [one.members for one in inputs], [one.path for one in inputs], self.losses
        )
        self.lists = self.lists_of.names
        self._drop_duplicates()
        self._number()
        self._note()

    def _join(self) -> list[list[Place]]:
        """The places of each image: several if several files have it."""
        found: dict[tuple[str, int], list[Place]] = {}
        for number, one in enumerate(self.inputs):
            times = Counter[str]()  # an image that is twice in one file stays twice
            for row, name in enumerate(one.names):
                path = os.path.realpath(one.folder / name)
                found.setdefault((path, times[path]), []).append((number, row))
                times[path] += 1
        return [*found.values()]

    def _merge_categories(self) -> None:
        """Categories by name. The first file's ids stay, others where they are free."""
        ids: dict[str, int] = {}
        records: dict[str, Record] = {}
        highest = max((id_ for one in self.inputs for id_ in one.classes), default=0)
        self.new_categories = 0
        for one in self.inputs:
            for record in one.index.categories:
                name = one.classes[int(record["id"])]
                if name not in ids:
                    free = int(record["id"]) not in ids.values()
                    highest += not free
                    self.new_categories += not free
                    ids[name] = int(record["id"]) if free else highest
                    records[name] = {**record, "id": ids[name], "name": name}
                    continue
                for key, value in record.items():
                    kept = records[name].setdefault(key, value)
                    if key not in ("id", "name") and kept != value:
                        place = f"{one.path}: {name}: {key}"
                        self.losses.add("values of categories that differ from earlier ones", place)
        self.ids, self.categories = ids, [*records.values()]

    def _drop_duplicates(self) -> None:
        """Choose the objects of each file: of images in several files those that are not in an
        earlier one. DataError for classes that two files label differently in an image."""
        dropped = [np.zeros(len(one.rows), bool) for one in self.inputs]
        problems = Problems("merge")
        self.joined = self.duplicates = self.one_sided = 0
        for places in self.places:
            self.joined += len(places) > 1
            for later in range(1, len(places)):
                for earlier in range(later):
                    self._compare(places[earlier], places[later], dropped, problems)
        problems.raise_any()
        for one, gone in zip(self.inputs, dropped, strict=True):
            of_none = one.rows[: one.starts[0]]
            if len(of_none):
                what = "objects of unknown images"
                self.losses.add(what, f"{one.path}: annotations[{of_none[0]}]", len(of_none))
            gone[of_none] = True
        self.kept = [np.flatnonzero(~gone) for gone in dropped]

    def _compare(
        self, first: Place, second: Place, dropped: list[np.ndarray], problems: Problems
    ) -> None:
        """Drop the objects of the second place that are at the first one, too."""
        ours, theirs = self.inputs[first[0]], self.inputs[second[0]]
        shared = {*ours.classes.values()} & {*theirs.classes.values()}
        by_class: dict[str, tuple[list[int], list[int]]] = {}
        for side, one, place in ((0, ours, first), (1, theirs, second)):
            for row in one.objects_of(place[1]):
                if (name := one.class_of(row)) in shared and not dropped[place[0]][row]:
                    by_class.setdefault(name, ([], []))[side].append(row)
        for name, (mine, other) in by_class.items():
            if not mine or not other:
                self.one_sided += 1
                continue
            left = Counter(_content(ours, row) for row in mine)
            for row in other:
                left[_content(theirs, row)] -= 1
            if any(left.values()):
                where = printable(ours.names[first[1]])
                what = (
                    f"class {name!r} has {plural(len(mine), 'object')} in {ours.path} and "
                    f"{len(other)} in {theirs.path}, not the same"
                )
                hint = "remove the image or these objects from one of them, or rename the class"
                problems.add(where, what, hint)
            dropped[second[0]][other] = True
            self.duplicates += len(other)

    def _number(self) -> None:
        """Give ids to images and objects."""
        images = [self.inputs[k].index.images.ids[[row]] for (k, row), *_ in self.places]
        self.image_ids, self.new_images = _free_ids(
            np.concatenate([np.zeros(0, np.int64), *images])
        )
        of_all = [
            one.index.objects.ids[rows] for one, rows in zip(self.inputs, self.kept, strict=True)
        ]
        found, self.new_objects = _free_ids(np.concatenate([np.zeros(0, np.int64), *of_all]))
        self.object_ids = []  # of each file by row; -1: dropped
        for one, rows in zip(self.inputs, self.kept, strict=True):
            ids = np.full(len(one.rows), -1)
            ids[rows], found = found[: len(rows)], found[len(rows) :]
            self.object_ids.append(ids)

    def _note(self) -> None:
        counts = {"image": self.new_images, "object": self.new_objects}
        counts["category"] = self.new_categories
        changed = [plural(count, f"{what} id") for what, count in counts.items() if count]
        if changed:
            self.notes.append(f"changed: {', '.join(changed)} that an earlier file has, too")
        if self.joined:
            text = f"joined: {plural(self.joined, 'image')} that several files have"
            self.notes.append(text)
        if self.duplicates:
            what = plural(self.duplicates, "object")
            self.notes.append(f"dropped: {what} that an earlier file has exactly so")
        if self.one_sided:
            text = "where two files list a class and one has objects of it in the same image"
            self.notes.append(f"joined: {plural(self.one_sided, 'case')} {text}")
        for one in self.inputs if not self.labeled else ():
            missing = [name for name in self.ids if name not in one.classes.values()]
            if missing and one.classes:
                shown = ", ".join(map(printable, missing[:5])) + ", ..." * (len(missing) > 5)
                self.notes.append(
                    f"warning: {printable(one.path)} does not list {shown}: in its images these "
                    "classes now count as absent; with --labeled they count as not labeled"
                )

    def files(self) -> list[Path]:
        return [Path(one.path) for one in self.inputs]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        problems = Problems("merge")
        for number, places in enumerate(self.places):
            id_ = int(self.image_ids[number])
            image = joined_image(
                [(self.inputs[k], row) for k, row in places],
                self.lists_of,
                self.images_folder,
                self.source.parent,
                problems,
                self.losses,
            )
            objects, present = [], set()
            for k, row in places:
                for at in self.inputs[k].objects_of(row):
                    present.add(name := self.inputs[k].class_of(at))
                    if (new := int(self.object_ids[k][at])) >= 0:
                        record = self.inputs[k].index.objects.record(at)
                        record |= {"id": new, "image_id": id_, "category_id": self.ids[name]}
                        objects.append(record)
            known = [
                labels_of(self.inputs[k], row, None if self.labeled else {*self.ids})
                for k, row in places
            ]
            yield {**image, "id": id_} | labeled_keys(known, present, self.ids), objects
        problems.raise_any()


def _content(one: Input, row: int) -> str:
    """What an object is, apart from its ids."""
    record = one.index.objects.record(row)
    return to_json({key: record[key] for key in sorted(record) if key not in IDS})


def _free_ids(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """The ids with another number for each that is there before, and how many these are; those that
    are missing get one, too."""
    _, first = np.unique(ids, return_index=True)
    keep = np.zeros(len(ids), bool)
    keep[first] = True
    missing = ids == UNMAPPED
    keep &= ~missing
    new = np.where(keep, ids, 0)
    start = int(ids[keep].max(initial=0)) + 1
    new[~keep] = np.arange(start, start + int((~keep).sum()))
    return new, int((~keep & ~missing).sum())
