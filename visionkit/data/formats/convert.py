"""Convert annotations between formats, and read any of them as a COCO index."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.image_classes import SHOWN_KEY
from visionkit.data.coco.index import (
    FORMAT,
    SMALLEST,
    CocoIndex,
    find_kept,
    index_from,
    keep,
)
from visionkit.data.coco.records import AnnotationReader, ImageReader
from visionkit.data.files import diagnose
from visionkit.data.formats.base import Parts, Reader, Record, WriteOptions, blocks, loss_lines
from visionkit.data.formats.detect import READERS, WRITERS, open_reader, recognize
from visionkit.data.formats.image_files import inner_name
from visionkit.data.loading import cache
from visionkit.errors import (
    ArgumentError,
    ConfigError,
    DataError,
    package_version,
    plural,
    printable,
    unknown,
)
from visionkit.runs.files import replacing, to_json

AUTO = "auto"
OF_IMAGES = ("coco", "csv", "cvat")  # the formats with classes of images
FEW_FILES = 1000  # are read again at each start


class Converted(NamedTuple):
    """What `convert` has done."""

    source: str
    format: str  # that was read
    out: str
    to: str
    images: int
    objects: int
    categories: int
    image_classes: int  # of whole images
    images_folder: str  # that the file names are relative to; "" if it is not known
    losses: list[Record]  # kind, count, first places
    dropped: dict[str, int]  # bad records by kind
    notes: list[str]  # what else to say

    def lines(self) -> list[str]:
        """What to print."""
        found = [plural(self.images, "image")]
        if self.image_classes:
            found[0] += f" of {plural(self.image_classes, 'class', 'classes')}"
        if self.categories or not self.image_classes:
            classes = plural(self.categories, "class", "classes")
            found.append(f"{plural(self.objects, 'object')} of {classes}")
        lines = [f"read {', '.join(found)} as {self.format}"]
        lines += loss_lines(self.losses)
        lines += [f"dropped: {count} bad ({kind})" for kind, count in self.dropped.items()]
        lines += self.notes
        if not self.losses and not self.dropped:
            lines.append("nothing is lost")
        is_file = self.to == "coco" and self.images_folder
        if not is_file:
            return [*lines, f"wrote {self.out}"]
        return [
            *lines,
            f"wrote {self.out}; images are in {self.images_folder}; train with:",
            f"  {train_command(self.images_folder, self.out)}",
        ]


def train_command(images: str | Path, annotations: str | Path) -> str:
    """The command that trains on a COCO file."""
    words = [f"data.train.images={images}", f"data.train.annotations={annotations}"]
    return shlex.join(["visionkit", "train", "CONFIG", *words])


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "coco",
    format: str = AUTO,
    images: str | Path | None = None,
    classes: Sequence[str] | Mapping[str, Any] | None = None,
    split: str | None = None,
    parts: Parts = "bridge",
    skip_bad: bool = False,
) -> Converted:
    """Convert annotations from any format to a COCO file, or from COCO (or any other) to another.

    `source` is a folder or a file; its `format` is recognized unless given. `out` is a new file,
    for formats of folders a new folder. Raises DataError with all malformed records, which
    `skip_bad` drops and counts; ConfigError for an unknown format and an `out` that exists.
    """
    if not str(source):
        raise ArgumentError("convert: SRC is empty; name a folder or file of annotations")
    source, out = Path(source), Path(out)
    for name, known, extra in ((to, WRITERS, ("coco",)), (format, READERS, (AUTO,))):
        if name not in {*known, *extra}:
            what = f"convert: unknown format {name!r}"
            raise ConfigError(unknown(name, [*known, *extra], what))
    check_out(out, source)
    recognized = recognize(source) if format == AUTO else None
    found = recognized.format if recognized else format
    options: dict[str, Any] = {"images": images, "classes": classes, "split": split}
    reader = open_reader(found, source, **options, skip_bad=skip_bad)
    counted = _Counted(reader, to)
    if recognized and split is None and len(recognized.parts) > 1:
        names = " and ".join(recognized.parts)
        reader.notes.append(f"the parts {names} are joined; --split NAME converts one")
    if to == "coco":
        write_coco(counted, out)
    else:
        folder = _images_of(reader)
        WRITERS[to](counted, out, WriteOptions(images=folder, parts=parts))
    return Converted(
        str(source),
        reader.name,
        str(out),
        to,
        counted.images_read,
        counted.objects_read,
        len(reader.categories),
        len(reader.lists.get("image_classes", [])),
        str(_images_of(reader) or ""),
        reader.losses.record(),
        dict(reader.skipped),
        reader.notes,
    )


def _images_of(reader: Reader) -> Path | None:
    """The folder of the images; None where a COCO file is all that is known."""
    return None if reader.images == reader.source and reader.source.is_file() else reader.images


def check_out(out: Path, source: Path) -> None:
    """ConfigError unless `out` can be made: it must not exist, be the source, or lie in it."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"{printable(out)} is the source; name another output")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(
            f"{printable(out)} lies in the source {printable(source)}; name an output outside of it"
        )
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{printable(out)} already exists; name a new one")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {printable(out)} does not exist")


class _Counted(Reader):
    """A reader that counts what is read through it, for a writer of the format `to`. All but COCO's
    need the categories from the first image on."""

    def __init__(self, reader: Reader, to: str):
        self.__dict__ = reader.__dict__  # the same lists, problems and losses
        self._reader, self._to = reader, to
        self.name = reader.name  # type: ignore[misc]  # of this one
        self.images_read = self.objects_read = self.images_with_class = 0

    def records(self) -> Iterator[tuple[Record, list[Record]]]:
        records = super().records()
        if self._to != "coco":
            first = next(records)
            records = chain([first], records if self.categories else [*records])
        yield from records
        if self._to not in OF_IMAGES and self.images_with_class and not self.objects_read:
            named = " or ".join(OF_IMAGES)
            count = plural(self.images_with_class, "image has", "images have")
            what = f"{count} classes, and there are no objects: --to {self._to} would lose them all"
            raise ConfigError(f"{self.problems.source}: {what}; use --to {named}")

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        for image, own in self._reader.read():
            self.images_read += 1
            self.objects_read += len(own)
            self.images_with_class += SHOWN_KEY in image
            yield image, own

    def files(self) -> list[Path]:
        return self._reader.files()


def write_coco(reader: Reader, out: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write a COCO file; records are encoded as they come, so that memory stays small."""
    images: list[str] = []
    annotations: list[str] = []
    maps = SemanticMaps(reader, out.absolute().parent)
    for image, own in reader.records():
        image = maps.moved(image)
        images.append(to_json(image))
        for one in own:
            one.pop("source", None)
        annotations += map(to_json, own)
    maps.copy(out)
    lists = {"categories": reader.categories, **reader.lists, **(more or {})}
    write_texts(out, images, annotations, lists)


def write_texts(
    out: Path, images: Iterable[str], annotations: Iterable[str], lists: Mapping[str, Any]
) -> None:
    """Write a COCO file from the JSON of its image and annotation records, and its other lists."""
    with replacing(out) as file:
        file.write('{"images": [\n' + ",\n".join(images) + '\n],\n"annotations": [\n')
        file.write(",\n".join(annotations) + "\n]")
        for key, value in lists.items():
            file.write(f',\n"{key}": {to_json(value)}')
        file.write("}\n")


class SemanticMaps:
    """The files of semantic maps that image records name, relative to the folder of the JSON. In
    another folder they have other names; those that would be outside of it are copied."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.folder = reader, folder
        self._copied: dict[str, Path] = {}

    def moved(self, image: Record) -> Record:
        """The record with the name that its semantic map has from the new folder."""
        name = image.get("semantic")
        if not isinstance(name, str) or not name:
            return image
        path = Path(os.path.abspath(self.reader.maps_folder / name))
        if path.is_relative_to(self.folder):
            return image | {"semantic": path.relative_to(self.folder).as_posix()}
        self._copied[inner_name(name)] = path
        return image | {"semantic": inner_name(name)}

    def copy(self, out: Path) -> None:
        """Copy those that are outside of the folder. DataError if one is not there; ConfigError if
        a file of that name is."""
        for name, path in self._copied.items():
            if (new := self.folder / name).exists():
                raise ConfigError(
                    f"{printable(new)} already exists, where the semantic map {printable(path)} "
                    "would be copied; write into another folder"
                )
            if not path.is_file():
                raise DataError(f"semantic map {printable(path)} {diagnose(path)}")
        for name, path in self._copied.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / name)
        if self._copied:
            count = plural(len(self._copied), "semantic map")
            self.reader.notes.append(f"copied {count} into the folder of {out}")


def open_reader_index(format: str, source: str | Path, **options: Any) -> tuple[Reader, CocoIndex]:
    """The reader of `source` and all its records in the columns of a COCO file, with the same
    checks; read now, or found in the cache by the names, sizes and times of its files."""
    reader = open_reader(format, Path(source), **options)
    try:
        folder = cache.cache_folder() / "labels"
        key = _key_of(reader, [format, options])
        found = next(iter(sorted(folder.glob(f"*-{key}"))), None) if key else None
    except (OSError, RuntimeError):  # a file was not found, which reading reports; or no home
        return reader, read_index_of(reader)
    index = None if found is None else find_kept(reader.source, found)
    if index is not None:
        reader.categories = [*index.categories]
        return reader, index
    index = read_index_of(reader)
    with suppress(OSError):  # a file was removed meanwhile
        if key and not reader.losses.counts and key == _key_of(reader, [format, options]):
            return reader, keep(index, folder / f"{index.fingerprint}-{key}")
    return reader, index


def _key_of(reader: Reader, options: list[Any]) -> str:
    """A hash of the options and of the names, sizes and times of a reader's files; "" if they are
    so few that reading is quick."""
    states, size = [], 0
    for path in reader.files():
        status = os.stat(path)
        size += status.st_size
        states.append([str(path), status.st_size, status.st_mtime_ns])
    if len(states) < FEW_FILES and size < SMALLEST:
        return ""
    text = json.dumps(
        [FORMAT, package_version(), str(reader.images), *options, states], default=str
    )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_index_of(reader: Reader) -> CocoIndex:
    """All records of a reader in the columns of a COCO file."""
    faults = Problems(reader.problems.source, reader.source)
    images, objects = ImageReader(faults), AnnotationReader(faults)
    for block in blocks(reader.records()):
        images.add([image for image, _ in block])
        objects.add([one for _, annotations in block for one in annotations])
    members = {"images": [], "annotations": [], "categories": reader.categories, **reader.lists}
    return index_from(reader.problems.source, reader.source, members, images, objects)
