"""Divide labeled images into parts, or into folds for cross-validation."""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.files import resolve, unusable
from visionkit.data.formats.base import Reader, Record, new_folder
from visionkit.data.formats.coco import CocoReader
from visionkit.data.formats.convert import SemanticMaps, check_out, write_texts
from visionkit.data.formats.detect import open_reader, recognize
from visionkit.data.tools.image_folder import find_images
from visionkit.data.tools.near_duplicates import look_all, near_groups
from visionkit.data.tools.stratify import OFTEN, connected, stratified
from visionkit.errors import (
    ArgumentError,
    DataError,
    check_counts,
    listed,
    plural,
    printable,
    unknown,
)
from visionkit.runs.files import to_json, write_text

log = logging.getLogger("visionkit")

VERSION = 1  # of folds.json
FOLDS = "folds.json"
BY_CLASS, BY_FOLDER, BY_KEY = "class", "folder", "group:"
SHOWN = 100  # classes in the table
NAME = re.compile(r"\w[\w.-]*")  # of a part
OWN_KEYS = {"id", "file_name", "height", "width"}  # that are not groups


class Labeled(NamedTuple):
    """Labeled images that were read."""

    reader: Reader
    records: list[Record]  # of the images
    annotations: list[str]  # of each image, JSON records with commas between them
    objects: np.ndarray  # (N, K) of each class in each image
    names: list[str]  # (K,) of the classes: categories, and classes of whole images
    images: Path | None  # their folder, if it is known

    @property
    def files(self) -> list[str]:
        """The file name of each image, or what else identifies it."""
        return [str(r.get("file_name") or r.get("coco_url") or r["id"]) for r in self.records]

    @property
    def fingerprint(self) -> str:
        """A hash of all labels."""
        digest = hashlib.sha256(to_json([self.reader.categories, self.reader.lists]).encode())
        for record, text in zip(self.records, self.annotations, strict=True):
            digest.update(f"{to_json(record)}\n{text}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class Divided(NamedTuple):
    """What `split` or `kfold` has done."""

    labeled: Labeled
    out: Path
    shares: dict[str, float]  # of each part, by its name
    part: np.ndarray  # (N,) the place of each image in `shares`
    notes: list[str]  # about groups
    command: str  # that trains on them

    def counts(self, counted: np.ndarray) -> np.ndarray:
        """(P, K) the sums of `counted` (N, K) in each part."""
        return np.stack([counted[self.part == p].sum(0) for p in range(len(self.shares))])

    def lines(self) -> list[str]:
        """What to print: what was read, the share of each class in each part, what was written."""
        reader, images = self.labeled.reader, plural(len(self.part), "image")
        labels = plural(int(self.labeled.objects.sum()), "label")
        classes = plural(len(self.labeled.names), "class", "classes")
        lines = [f"read {images}, {labels} of {classes} as {reader.name}"]
        lines += [*reader.losses.lines(), *reader.notes, *self.notes]
        lines += [*_table(self), _deviation(self)]
        for number, name in enumerate(self.shares):
            chosen = self.part == number
            found = int(self.labeled.objects[chosen].sum())
            what = f"{plural(int(chosen.sum()), 'image')}, {plural(found, 'label')}"
            lines.append(f"{name}: {what}")
        return [*lines, f"wrote {self.out}; train with:", f"  {self.command}"]


def split_data(
    source: str | Path,
    parts: Mapping[str, float],
    out: str | Path,
    *,
    by: str = BY_CLASS,
    seed: int = 0,
    images: str | Path | None = None,
) -> Divided:
    """Divide labeled images into parts with equal shares of each class: COCO files OUT/NAME.json.

    source: a COCO file, or labels in another format.
    parts: the share of each part by its name; the sum is 1.
    out: a new folder. File names in it stay relative to the folder of the images.
    by: "folder" keeps the images of a folder together, "group:KEY" those whose records have the
        same value of that key, such as a video; "class" none. Images with the same file name stay
        together in any case.
    seed: of the choice, which does not depend on the order of the images in the file.
    images: their folder; near duplicates then stay together.

    Raises DataError for labels that cannot be read and for parts that would be empty,
    ArgumentError and ConfigError for arguments that cannot be used.
    """
    source, out = Path(source), Path(out)
    _check_parts(parts)
    check_out(out, source)
    labeled = read_labeled(source, images)
    part, notes = divide(labeled, parts, by=by, seed=seed, look=images is not None)
    with new_folder(out) as folder:
        _write(labeled, {name: part == n for n, name in enumerate(parts)}, folder, out)
    train, val = ("train", "val") if {"train", "val"} <= {*parts} else ([*parts] * 2)[:2]
    words = [
        f"data.{key}.{what}={value}"
        for key, name in (("train", train), ("val", val))
        for what, value in (
            ("images", labeled.images or "DIR"),
            ("annotations", out / f"{name}.json"),
        )
    ]
    command = shlex.join(["visionkit", "train", "CONFIG", *words])
    return Divided(labeled, out, dict(parts), part, notes, command)


def kfold_data(
    source: str | Path,
    k: int,
    out: str | Path,
    *,
    by: str = BY_CLASS,
    seed: int = 0,
    images: str | Path | None = None,
) -> Divided:
    """Divide labeled images into `k` folds for cross-validation.

    OUT/fold-1/val.json has a k-th of the images and OUT/fold-1/train.json the others, and so on;
    OUT/folds.json says how they were made. The arguments are those of `split`.
    """
    check_counts(k=k)
    source, out = Path(source), Path(out)
    if k < 2:
        raise ArgumentError(f"--k: got {k}; expected an integer >= 2")
    check_out(out, source)
    labeled = read_labeled(source, images)
    shares = {f"fold-{number}": 1 / k for number in range(1, k + 1)}
    part, notes = divide(labeled, shares, by=by, seed=seed, look=images is not None)
    record = {
        "version": VERSION,
        "source": {"file": str(source.absolute()), "fingerprint": labeled.fingerprint},
        "images": labeled.images and str(labeled.images.absolute()),
        **{"k": k, "seed": seed, "by": by},
    }
    with new_folder(out) as folder:
        for number, name in enumerate(shares):
            (folder / name).mkdir()
            chosen = {"train": part != number, "val": part == number}
            _write(labeled, chosen, folder / name, out / name)
        write_text(folder / FOLDS, to_json(record) + "\n")
    command = shlex.join(["visionkit", "train", "CONFIG", "--folds", str(out)])
    return Divided(labeled, out, shares, part, notes, command)


def read_labeled(source: Path, images: str | Path | None = None) -> Labeled:
    """Read all labels. DataError with everything malformed."""
    if images is not None and not Path(images).is_dir():
        raise ArgumentError(f"--images: {printable(images)} is not a folder")
    reader = open_reader(recognize(source).format, source, images=images)
    records, annotations, found = [], [], []
    for image, own in reader.records():
        records.append(image)
        plain = [{k: v for k, v in one.items() if k != "source"} for one in own]
        annotations.append(",\n".join(map(to_json, plain)))
        found.append([one.get("category_id") for one in own])
    ids = [category["id"] for category in reader.categories]
    names = [str(category["name"]) for category in reader.categories]
    image_classes = reader.lists.get("image_classes", [])
    column = {id_: place for place, id_ in enumerate(ids)}
    objects = np.zeros((len(records), len(ids) + len(image_classes)), np.int64)
    for row, (record, categories) in enumerate(zip(records, found, strict=True)):
        for id_ in categories:
            objects[row, column[id_]] += 1
        shown = record.get("class_id", [])
        for place in shown if isinstance(shown, list) else [shown]:
            objects[row, len(ids) + place] += 1
    folder = Path(images) if images is not None else _images_of(reader, records)
    return Labeled(reader, records, annotations, objects, names + image_classes, folder)


def _images_of(reader: Reader, records: Sequence[Record]) -> Path | None:
    if not isinstance(reader, CocoReader):
        return reader.images
    try:
        return find_images(reader.source, [str(r.get("file_name") or "") for r in records])
    except DataError:  # several folders have such files
        return None


def divide(
    labeled: Labeled, shares: Mapping[str, float], *, by: str, seed: int, look: bool
) -> tuple[np.ndarray, list[str]]:
    """(N,) the part of each image, and notes about what stays together. `look`: find near
    duplicates. DataError for an empty part."""
    files = labeled.files
    keys = [(name, to_json(record)) for name, record in zip(files, labeled.records, strict=True)]
    order = sorted(range(len(files)), key=keys.__getitem__)  # not that of the file
    notes: list[str] = []
    together = [*_together(labeled, by, notes)]
    if look:
        near = near_groups(_hashes(labeled))
        notes.append(f"near duplicates: {sum(map(len, near))} images in {len(near)} groups")
        together += near
    else:
        notes.append(
            "near duplicates may be in several parts: with --images DIR they stay together"
        )
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    groups = connected(len(order), (place[members].tolist() for members in together))
    values = [*shares.values()]
    part = np.empty(len(order), int)
    part[order] = stratified(labeled.objects[order], values, groups, seed)
    sizes = np.bincount(part, minlength=len(values))
    count = len(np.unique(groups))
    if not sizes.all():
        empty = [name for name, size in zip(shares, sizes, strict=True) if not size]
        wanted = listed([f"{name} ({share:.3g})" for name, share in shares.items()], 5)
        what = f"{plural(len(files), 'image')} in {plural(count, 'group')}"
        raise DataError(
            f"{labeled.reader.problems.source}: {what} do not fill the parts {wanted}: "
            f"{listed(empty, 5)} would be empty; use fewer parts, larger shares or smaller groups"
        )
    largest, least = int(np.bincount(groups).max()), min(values) * len(files)
    if count < len(files) and largest > least:
        log.warning(
            "a group has %d of %d images, more than the smallest part is to have (%d): shares may "
            "be far off",
            *(largest, len(files), round(least)),
        )
    return part, notes


def _together(labeled: Labeled, by: str, notes: list[str]) -> Iterator[list[int]]:
    """The places of images that stay together."""
    files = labeled.files
    yield from _equal(files)
    if by == BY_FOLDER:
        folders = [str(PurePosixPath(name.replace("\\", "/")).parent) for name in files]
        notes.append(f"kept together: {plural(len(set(folders)), 'folder')}")
        yield from _equal(folders)
    elif by.startswith(BY_KEY) and by != BY_KEY:
        key = by.removeprefix(BY_KEY)
        values = [record.get(key) for record in labeled.records]
        if all(value is None for value in values):
            known = {one for record in labeled.records for one in record} - OWN_KEYS
            what = f"--by: no image record has the key {printable(repr(key))}"
            raise ArgumentError(unknown(key, sorted(known), what))
        found = {place: to_json(v) for place, v in enumerate(values) if v is not None}
        notes.append(f"kept together: {plural(len({*found.values()}), 'group')} by {key}")
        if without := len(values) - len(found):
            notes.append(f"{plural(without, 'image')} without {key}: each is a group")
        places = [*found]
        yield from ([places[i] for i in members] for members in _equal([*found.values()]))
    elif by != BY_CLASS:
        raise ArgumentError(f"--by: got {printable(repr(by))}; expected class, group:KEY or folder")


def _equal(values: Sequence[str]) -> Iterator[list[int]]:
    """The places of each value that is there more than once."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    yield from (members for members in places.values() if len(members) > 1)


def _hashes(labeled: Labeled) -> np.ndarray:
    """(N,) uint64 the difference hashes of the images. DataError if some cannot be read."""
    assert labeled.images is not None
    names, problems = labeled.files, Problems(labeled.reader.problems.source, labeled.reader.source)
    for row, name in resolve(labeled.images, names):
        names[row] = name or names[row]
    for row, kind, what in unusable(labeled.images, names, labeled.reader.links):
        problems.add(f"images[{row}]", f"{printable(names[row])}: {what}", kind=kind)
    problems.raise_any()
    looks = look_all([labeled.images / name for name in names])
    for name, one in zip(names, looks, strict=True):
        if one.fault:
            problems.add("", f"{printable(name)} {one.fault}", kind="file")
    problems.raise_any()
    return np.array([one.hash for one in looks], np.uint64)


def _write(labeled: Labeled, parts: Mapping[str, np.ndarray], folder: Path, out: Path) -> None:
    """Write the images that are chosen for each part as COCO files, with copies of their semantic
    maps; `out` is the later path of the folder."""
    reader, maps = labeled.reader, SemanticMaps(labeled.reader, folder.absolute())
    lists = {"categories": reader.categories, **reader.lists}
    for name, chosen in parts.items():
        rows = np.flatnonzero(chosen).tolist()
        images = [to_json(maps.moved(labeled.records[row])) for row in rows]
        texts = [labeled.annotations[row] for row in rows if labeled.annotations[row]]
        write_texts(folder / f"{name}.json", images, texts, lists)
    maps.copy(out / "annotations")


def _check_parts(parts: Mapping[str, float]) -> None:
    """ArgumentError unless the names can be those of files, and the sum of the shares is 1."""
    for name in parts:
        if not NAME.fullmatch(name):
            what = "expected letters, digits, ., - and _ in the name of a part"
            raise ArgumentError(f"--parts: got {printable(repr(name))}; {what}")
    if len({name.casefold() for name in parts}) < len(parts):
        raise ArgumentError(f"--parts: got {', '.join(parts)}; names must differ in their letters")
    if not parts or min(parts.values()) <= 0 or abs(sum(parts.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share:g}" for name, share in parts.items()) or "none"
        raise ArgumentError(f"--parts: got {given}; expected shares above 0 whose sum is 1")


def _table(done: Divided) -> list[str]:
    """The share of each class in each part, in percent, by objects and by images."""
    objects = done.labeled.objects
    every = np.ones((len(objects), 1), int)
    rows = [_row("all", done, objects.sum(1, keepdims=True), every)]
    order = np.argsort(-objects.sum(0), kind="stable").tolist()
    for k in order[:SHOWN]:
        own = objects[:, k : k + 1]
        rows.append(_row(printable(done.labeled.names[k]), done, own, own > 0))
    titles = ["class", "labels", *done.shares, "images", *done.shares]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (titles, *rows)
    ]
    return [*lines, *([f"... and {len(order) - SHOWN} more classes"] * (len(order) > SHOWN))]


def _row(name: str, done: Divided, *counted: np.ndarray) -> list[str]:
    row = [name]
    for one in counted:
        total = int(one.sum())
        row.append(f"{total:,}")
        row += [f"{100 * n / total:.1f} %" if total else "-" for n in done.counts(one)[:, 0]]
    return row


def deviations(done: Divided) -> dict[str, float]:
    """The largest deviation from its share of any class in any part, in percentage points, by
    "labels" and by "images"; of classes with at least `OFTEN` of these."""
    found = {}
    shares = np.array([*done.shares.values()])[:, None]
    for what, counted in (("labels", done.labeled.objects), ("images", done.labeled.objects > 0)):
        often = counted[:, counted.sum(0) >= OFTEN]
        if often.shape[1]:
            off = done.counts(often) / often.sum(0) - shares
            found[what] = float(100 * np.abs(off).max())
    return found


def _deviation(done: Divided) -> str:
    found: dict[str, Any] = deviations(done)
    if not found:
        return f"no class has {OFTEN} labels: shares of rare classes are rough"
    texts = [f"{value:.1f} points by {what}" for what, value in found.items()]
    return f"farthest from its share, of classes with >= {OFTEN}: {', '.join(texts)}"
