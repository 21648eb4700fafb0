"""CSV files of images: one class of each, a column for each of several classes, or boxes."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import short
from visionkit.data.coco.image_classes import SHOWN_KEY, UNKNOWN_KEY, class_id_record
from visionkit.data.coco.index import RELATIVE
from visionkit.data.files import resolve
from visionkit.data.formats.base import Reader, Record, WriteOptions, new_folder
from visionkit.data.formats.csv_table import CLASSES_HINT, Row, Table, columns_of
from visionkit.data.formats.image_files import ImageFiles, base_name, inner_name
from visionkit.data.formats.writing import NewNames
from visionkit.data.image_io import SUFFIXES
from visionkit.errors import ArgumentError, DataError, listed, plural, printable, unknown

SHOWN = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}
SHOWN |= dict.fromkeys(("", "-1", "-1.0", "nan", "na", "?"), -1)  # not known
DIGITS = 9  # of coordinates that are computed: a width is the same when it is read again
_VALUES_HINT = "must be 1, 0, or -1 or nothing where it is not known; a column of names is `label`"
_KEPT = ("class_id", "class_id_unknown", "identity")


class CsvReader(Reader):
    """A CSV file with a header. Its columns say which of three it is:

    - `file,label`: the class of each image
    - `file,cat,dog,...`: for each class 1, 0, or -1 or nothing where it is not known
    - `file,label,xmin,ymin,xmax,ymax` (or `x1` to `y2`, or `x,y,width,height`): a row for each
      object; a row without box and label is an image without objects

    The images are relative to the folder of the file, or to `images` in it. A column `split` is
    read for `split`; the columns `image_width` and `image_height` are optional. The image of a name
    without suffix is found, too.
    """

    name = "CSV"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        self.file = self._find_file()
        self.table = Table(self.file, self._bad_row)
        where = f"{self.problems.source}, line {self.table.line}"
        self.columns = columns_of(self.table.columns, where)
        if self.split is not None and self.columns.split is None:
            raise DataError(f"{self.problems.source}: there is no column `split`")
        if options.get("images") is None:
            self.images = self._find_images()
        for name in self.columns.unread:
            self.losses.add("columns that are not read", name)
        self._places: dict[str, int] = {}  # of classes that occur, or were given
        if self.given_classes is not None:
            self._places = {name: i for i, name in enumerate(self.given_classes)}
        self._sizes: dict[str, tuple[int, int]] = {}  # (h, w) by file, as the rows say
        self._ids: dict[str, int] = {}  # of images, as the rows say

    def files(self) -> list[Path]:
        if self.columns.size:
            return [self.file]
        names = ImageFiles(self.images, self.links).names  # the sizes are those of the images
        return [self.file, *(self.images / name for name in names)]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        if self.columns.box:
            return self._read_boxes()
        return self._read_several() if self.columns.classes else self._read_single()

    def _find_file(self) -> Path:
        if not self.source.is_dir():
            return self.source
        found = sorted(p for p in self.source.iterdir() if p.suffix.lower() == ".csv")
        if len(found) == 1:
            return found[0]
        names = listed([printable(path.name) for path in found])
        hint = "name one of them" if found else "name a CSV file"
        raise DataError(f"{self.problems.source}: has {names}; {hint}")

    def _find_images(self) -> Path:
        """The folder of the file or, if the first image is there, `images` in it."""
        folder = self.file.parent
        first = self.table.first
        cells = [] if first is None else first.cells[self.columns.file : self.columns.file + 1]
        stems = {stem for name in cells for stem in (name, os.path.splitext(name)[0])}
        inner, outer = (
            {os.path.splitext(name)[0] for name in ImageFiles(root, self.links).names}
            for root in (folder / "images", folder)
        )
        return folder / "images" if inner and stems.isdisjoint(outer) else folder

    def _bad_row(self, line: int, what: str, hint: str = "", kind: str = "value") -> None:
        self.bad(self._where(line), what, hint, kind=kind)

    def _where(self, line: int) -> str:
        return f"{self.file.name}:{line}"

    def _rows(self) -> Iterator[tuple[Row, str]]:
        """The rows of the split, and the file that each names."""
        split, file = self.columns.split, self.columns.file
        for row in self.table.rows():
            if self.split is not None and split is not None and row.cells[split] != self.split:
                continue
            if not (name := row.cells[file]):
                self._bad_row(row.line, "no image is named")
                continue
            yield row, name

    # --- Classes of images -----------------------------------------------------------------------

    def _read_single(self) -> Iterator[tuple[Record, list[Record]]]:
        assert self.columns.label is not None
        rows: dict[str, tuple[int, int]] = {}  # line and class by file
        for row, name in self._rows():
            if (label := self._class(row.line, row.cells[self.columns.label])) is None:
                continue
            line, other = rows.setdefault(name, (row.line, label))
            if other != label:
                here, there = (short([*self._places][place]) for place in (label, other))
                what = f"{short(name)} has the class {here}, but in line {line} it is {there}"
                self._bad_row(row.line, what, CLASSES_HINT, "repeated")
            elif line != row.line:
                kind = "rows that repeat an image and its class"
                self.losses.add(kind, self._where(row.line))
        order = self._name_classes("image_classes")
        for record, name in self._images({name: line for name, (line, _) in rows.items()}):
            place = order[rows[name][1]]
            yield record | {"class_id": place, "identity": place}, []

    def _read_several(self) -> Iterator[tuple[Record, list[Record]]]:
        names = [*self.columns.classes]
        if self.given_classes is not None:
            more = [name for name in names if name not in self._places]
            if more:
                what = f"the columns {listed(more)} are of none of the given classes"
                raise DataError(f"{self.problems.source}: {what}")
            names = self.given_classes
        self.lists["image_classes"] = names
        columns = [self.columns.classes.get(name) for name in names]
        rows: dict[str, tuple[int, bytes]] = {}  # line and values by file
        for row, name in self._rows():
            cells = ["" if i is None else row.cells[i].casefold() for i in columns]
            wrong: list[str] = [
                n for n, cell in zip(names, cells, strict=True) if cell not in SHOWN
            ]
            if wrong:
                cell = short(row.cells[self.columns.classes[wrong[0]]])
                what = f"column {short(wrong[0])} is {cell}"
                what += f", and {plural(len(wrong) - 1, 'more column')}" if wrong[1:] else ""
                self._bad_row(row.line, what, _VALUES_HINT)
                continue
            values = bytes(SHOWN[cell] + 1 for cell in cells)
            line, other = rows.setdefault(name, (row.line, values))
            if other != values:
                what = f"{short(name)} has other values in line {line}"
                self._bad_row(row.line, what, "write one row for each image", "repeated")
            elif line != row.line:
                kind = "rows that repeat an image and its classes"
                self.losses.add(kind, self._where(row.line))
        for record, name in self._images({name: line for name, (line, _) in rows.items()}):
            found = rows[name][1]
            shown, missing = ([i for i, v in enumerate(found) if v == w] for w in (2, 0))
            yield record | class_id_record(shown, missing), []

    # --- Objects ---------------------------------------------------------------------------------

    def _read_boxes(self) -> Iterator[tuple[Record, list[Record]]]:
        groups: dict[str, array] = {}  # by file: line, class, x, y, width, height, crowd, id
        first: dict[str, int] = {}  # line by file
        reach, whole, ids = 0.0, True, set()
        for row, name in self._rows():
            found = self._object(row, name)
            if found is None:
                continue
            first.setdefault(name, row.line)
            group = groups.setdefault(name, array("d"))
            if found:
                box = found[1:5]
                reach = max(reach, *map(abs, box), box[0] + box[2], box[1] + box[3])
                whole &= all(value.is_integer() for value in box)
                id_ = found[6]
                if id_ >= 0 and id_ in ids:
                    self._bad_row(row.line, f"the id {int(id_)} is there twice", kind="repeated")
                    continue
                ids.add(id_)
                group.extend((row.line, *found))
        if 0 < reach <= RELATIVE and not whole:
            hint = "write pixels: multiply x by the width of the image, y by its height"
            what = "all coordinates lie within 0..1"
            self.problems.add(self.file.name, what, hint, kind="relative-boxes")
        order = self._name_classes("categories")
        free = (i for i in range(1, 2**62) if i not in ids)
        for record, name in self._images(first):
            numbers = groups[name]
            own = []
            for k in range(0, len(numbers), 8):
                line, place, *box, crowd, id_ = numbers[k : k + 8]
                one: Record = {"id": int(id_) if id_ >= 0 else next(free), "image_id": record["id"]}
                one |= {"category_id": order[int(place)] + 1, "bbox": box, "iscrowd": int(crowd)}
                one |= {"area": box[2] * box[3], "source": self._where(int(line))}
                own.append(one)
            yield record, own

    def _object(self, row: Row, name: str) -> list[float] | None:
        """Class, x, y, width, height, crowd and id (-1 if none is given) of a row; [] for an image
        without objects, None for a bad row."""
        columns, cells = self.columns, row.cells
        faults: list[str] = []
        assert columns.label is not None
        label, coordinates = cells[columns.label], [cells[i] for i in columns.box]
        names = [self.table.columns[i] for i in columns.box]
        self._note_image(row, name, faults)
        if not label and not any(coordinates) and not faults:
            return []
        box, crowd, id_ = [], 0, -1
        for key, text in zip(names, coordinates, strict=True):
            try:
                box.append(self.table.number(text))
                if not abs(box[-1]) < 1e9:
                    raise ValueError
            except ValueError:
                faults.append(f"{key} is {short(text)}: must be a number")
        if len(box) == 4 and columns.corners and not faults:
            for low, high in ((0, 2), (1, 3)):
                if box[high] < box[low]:
                    what = f"{names[high]} {box[high]:g} is less than {names[low]} {box[low]:g}"
                    faults.append(what)
                box[high] = round(box[high] - box[low], DIGITS)
        elif not faults and min(box[2:]) < 0:
            faults.append(f"{names[2]} and {names[3]} must be at least 0")
        if columns.crowd is not None:
            crowd = SHOWN.get(cells[columns.crowd].casefold(), 2)
            if crowd > 1:
                faults.append(f"iscrowd is {short(cells[columns.crowd])}: must be 0 or 1")
        if columns.id is not None:
            id_ = _whole(cells[columns.id])
            if id_ < 0:
                faults.append(f"id is {short(cells[columns.id])}: must be an integer")
        if faults:
            self._bad_row(row.line, "; ".join(faults))
            return None
        place = self._class(row.line, label)
        return None if place is None else [place, *box, max(crowd, 0), id_]

    def _note_image(self, row: Row, name: str, faults: list[str]) -> None:
        """Note the size and the id of the image of a row, which must be those of its other rows."""
        columns, cells = self.columns, row.cells
        if columns.size and any(cells[i] for i in columns.size):
            width, height = (_whole(cells[i]) for i in columns.size)
            if min(width, height) < 1:
                shown = "x".join(cells[i] for i in columns.size)
                faults.append(f"the size of the image is {short(shown)}: must be integers")
            elif (other := self._sizes.setdefault(name, (height, width))) != (height, width):
                before = f"{other[1]}x{other[0]}"
                faults.append(f"the size of the image is {width}x{height}, before {before}")
        if columns.image_id is not None and (text := cells[columns.image_id]):
            number = _whole(text)
            if number < 0 or self._ids.setdefault(name, number) != number:
                faults.append(f"image_id is {short(text)}: must be an integer, one for each image")

    # --- What they share -------------------------------------------------------------------------

    def _class(self, line: int, name: str) -> int | None:
        """The place of a class in `_places`; None if it is none."""
        if not name:
            self._bad_row(line, "no class is named")
            return None
        if self.given_classes is None:
            return self._places.setdefault(name, len(self._places))
        if name not in self._places and -1 < (number := _whole(name)) < len(self.given_classes):
            return number
        if name not in self._places:
            what = f"class {short(name)} is not among the classes"
            self._bad_row(line, unknown(name, self._places, what), kind="class")
            return None
        return self._places[name]

    def _name_classes(self, key: str) -> list[int]:
        """Write the list of classes; the place in it of each one in `_places`. Classes that were
        not given are sorted, numbers by their value."""
        names = [*self._places]
        if self.given_classes is None:
            names.sort(key=lambda name: (_whole(name) < 0, _whole(name), name))
        if key == "categories":
            self.categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
        else:
            self.lists[key] = names
        place = {name: i for i, name in enumerate(names)}
        return [place[name] for name in self._places]

    def _images(self, lines: dict[str, int]) -> Iterator[tuple[Record, str]]:
        """The records of the images with these names, by the line that names each first, and their
        names in the file. Those that are not there are bad."""
        images = ImageFiles(self.images, self.links)
        if not images.names and not self._sizes.keys() >= lines.keys():
            raise DataError(
                f"{self.problems.source}: there are no images in {printable(self.images)}, and no "
                "columns image_width and image_height: name the folder of the images (--images DIR)"
            )
        names = [*lines]
        for i, found in resolve(self.images, names):
            names[i] = found or base_name(names[i])
        other: dict[str, str] = {}
        taken = {*self._ids.values()}
        free = (i for i in range(1, 2**62) if i not in taken)
        for (given, line), name in zip(lines.items(), names, strict=True):
            try:
                inner = inner_name(name)
                there = images.find(inner if inner.lower().endswith(SUFFIXES) else f"{inner}.jpg")
                size = self._sizes.get(given)
                if there is not None:
                    size = images.size(there, size)
                elif images.names or size is None:
                    raise ValueError(f"the image {given!r} is not in {self.images}")
                inner = there or inner
                if other.setdefault(inner, given) != given:
                    raise ValueError(
                        f"{given!r} and {other[inner]!r} are the same image, {inner!r}"
                    )
            except ValueError as error:
                self._bad_row(line, str(error), kind="image")
                continue
            id_ = self._ids.get(given) if self._ids else None
            sides = {"height": size[0], "width": size[1]}
            yield {"id": next(free) if id_ is None else id_, "file_name": inner, **sides}, given


def _whole(text: str) -> int:
    """An integer of at least 0; -1 for any other text."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 19 else -1


# --- Writing -------------------------------------------------------------------------------------


def write_csv(reader: Reader, out: Path, options: WriteOptions) -> None:
    """Write `boxes.csv`, a row for each object, and where images have classes `labels.csv`. Images
    are not copied. Ids have columns if they do not count from 1."""
    if out.suffix.lower() == ".csv":
        raise ArgumentError(f"{printable(out)}: --to csv makes a folder; name one without .csv")
    names = NewNames(reader, lambda text: text == text.strip() and text.isprintable())
    boxes: list[list[Any]] = []
    labels: list[tuple[str, Record]] = []
    image_ids, ids, crowds = [], [], False
    for image, own in reader.records():
        name, _ = names.image(image)
        names.note_keys(image, _KEPT)
        if SHOWN_KEY in image:
            labels.append((name, image))
            if image.get("identity", image[SHOWN_KEY]) != image[SHOWN_KEY]:
                reader.losses.add("identities of images", name)
        elif "identity" in image:
            reader.losses.add("identities of images", name)
        sides = [image["width"], image["height"]]
        image_ids.append(image.get("id"))
        before = len(boxes)
        for one in own:
            names.note_keys(image, (), one)
            label, place = names.category(image, one), names.place(image, one)
            x, y, w, h = one["bbox"]
            corners = [round(value, DIGITS) for value in (x, y, x + w, y + h)]
            if one.get("segmentation"):
                reader.losses.add("masks, of which the box is kept", place)
            if found := names.attributes(image, one):
                reader.losses.add("objects with attributes", place, keys=found)
            crowds |= bool(one.get("iscrowd"))
            boxes.append([name, *sides, label, *corners, one.get("iscrowd", 0), image_ids[-1]])
            boxes[-1].append(one.get("id"))
            ids.append(one.get("id"))
        if len(boxes) == before and reader.categories:
            boxes.append([name, *sides, "", "", "", "", "", "", image_ids[-1], ""])
    if reader.categories:
        names.note_unused()
    reader.problems.raise_any()
    with new_folder(out) as folder:
        if reader.categories:
            kept = [True] * 8 + [crowds, _count_on(image_ids), _count_on(ids)]
            _write_table(folder / "boxes.csv", [_BOX_HEADER, *boxes], kept)
        if labels:
            _write_labels(folder / "labels.csv", labels, reader)


_BOX_HEADER = ["file", "image_width", "image_height", "label", "xmin", "ymin", "xmax", "ymax"]
_BOX_HEADER += ["iscrowd", "image_id", "id"]


def _count_on(ids: Sequence[Any]) -> bool:
    """Whether ids need a column, since they do not count from 1."""
    return ids != [*range(1, len(ids) + 1)]


def _write_table(path: Path, rows: Iterable[Sequence[Any]], kept: Sequence[bool]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(
            [cell for cell, keep in zip(row, kept, strict=True) if keep] for row in rows
        )


def _write_labels(path: Path, labels: list[tuple[str, Record]], reader: Reader) -> None:
    """A column of classes, or one for each class where images may have several."""
    classes = reader.lists.get("image_classes", [])
    rows: list[list[Any]] = []
    if not isinstance(labels[0][1][SHOWN_KEY], list):
        header = ["file", "label"]
        rows += [[name, classes[image[SHOWN_KEY]]] for name, image in labels]
    else:
        header = ["file", *classes]
        if not _is_read_back(header):
            what = "a class has the name of another column, such as `label` or `split`"
            raise DataError(f"{reader.problems.source}: {what}: rename it")
        for name, image in labels:
            missing = {*image.get(UNKNOWN_KEY, ())}
            shown = {*image[SHOWN_KEY]}
            cells = ["" if i in missing else int(i in shown) for i in range(len(classes))]
            rows.append([name, *cells])
    _write_table(path, [header, *rows], [True] * len(header))


def _is_read_back(header: list[str]) -> bool:
    """Whether all columns but the first are read as classes."""
    try:
        return [*columns_of(header, "").classes] == header[1:]
    except DataError:
        return False
