"""CSV files as rows of text, and what their columns mean by their names."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from visionkit.data.files import diagnose
from visionkit.errors import DataError, listed, printable
from visionkit.runs.files import open_regular

SEPARATORS = (",", ";", "\t")
CLASSES_HINT = (
    "for several classes of an image write one column for each class: file,cat,dog with 1 and 0"
)
# Names of columns, without capitals, spaces and signs.
_FILES = {
    *("file", "filename", "filepath", "path", "image", "imagefile", "imagefilename", "imagename"),
    *("imagepath", "img", "imgname", "imgpath", "fname", "imageid"),
}
_LABELS = {"label", "labels", "labelname", "class", "classname", "category", "categoryname"}
_SPLITS = {"split", "subset", "set", "part", "partition"}
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
    ("bboxx1", "bboxy1", "bboxx2", "bboxy2"),
)
_SIDES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("left", "top", "width", "height"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
    ("bboxx", "bboxy", "bboxw", "bboxh"),
)
_SIZES = (
    ("imagewidth", "imageheight"),
    ("imgwidth", "imgheight"),
    ("imagew", "imageh"),
    ("imgw", "imgh"),
    ("width", "height"),
)
_PIECES = {name for names in (*_CORNERS, *_SIDES[:2], *_SIDES[4:]) for name in names[:2]}


class Row(NamedTuple):
    line: int  # where it begins, from 1
    cells: list[str]


class Table:
    """A CSV file: its separator is a comma, semicolon or tab, its encoding UTF-8, UTF-16 (with or
    without a byte order mark) or that of Windows; cells may be quoted.

    bad: called with the line and what is wrong for a row that cannot be read.
    """

    def __init__(self, path: Path, bad: Callable[[int, str], None]):
        try:
            with open_regular(path) as file:
                text = decoded(file.read())
        except (OSError, ValueError) as error:
            raise DataError(f"{printable(path)} {diagnose(path)} [{printable(error)}]") from None
        self.path, self._bad = path, bad
        first, _, rest = text.partition("\n")
        stated = re.fullmatch(r"sep=(.)\s*", first)  # a line for Excel
        self._lines = [line + "\n" for line in (rest if stated else text).split("\n")]
        self._before = 1 if stated else 0
        head = next((line for line in self._lines if line.strip()), "")
        bare = re.sub(r'"[^"]*"', "", head)
        self.separator = stated[1] if stated else max(SEPARATORS, key=bare.count)
        self._rows: Iterator[Row] = self._read()
        header = next(self._rows, None)
        if header is None:
            raise DataError(f"{printable(path)} is empty: expected a header and rows")
        self.line, self.columns = header
        self.first = next(self._rows, None)  # the first row, which may be bad
        self._rows = chain([] if self.first is None else [self.first], self._rows)

    def rows(self) -> Iterator[Row]:
        """The rows that have a cell for each column; to be read once. Blank lines are skipped."""
        count = len(self.columns)
        for row in self._rows:
            extra = len(row.cells) - count
            if extra > 0 and not any(row.cells[count:]):  # separators at the end of the line
                row = Row(row.line, row.cells[:count])
            elif extra:
                self._bad(row.line, f"has {len(row.cells)} cells, but the header has {count}")
                continue
            yield row

    def number(self, text: str) -> float:
        """A number, in files without comma as separator also with a decimal comma. ValueError."""
        if self.separator != ",":
            text = text.replace(",", ".")
        return float(text)

    def _read(self) -> Iterator[Row]:
        reader = csv.reader(
            self._lines, delimiter=self.separator, skipinitialspace=True, strict=True
        )
        while True:
            line = reader.line_num + 1 + self._before
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self._bad(line, f"cannot be read: {error}; is a quote not closed?")
                continue
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield Row(line, cells)


def decoded(data: bytes) -> str:
    """The text of a file that a program of some system has written. ValueError if it is none."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16")
    elif data[1:200:2].count(0) > 20 or data[:200:2].count(0) > 20:
        text = data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            try:
                text = data.decode("cp1252")
            except UnicodeDecodeError:
                text = data.decode("latin-1")
    if "\0" in text:
        raise ValueError("it has zero bytes, so it is not a text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Columns:
    """Which column is what: places in the header."""

    file: int
    label: int | None = None  # of one class
    classes: dict[str, int] = field(default_factory=dict)  # of several; their names
    box: tuple[int, ...] = ()  # four of them
    corners: bool = False  # x1, y1, x2, y2, not x, y, width, height
    size: tuple[int, ...] = ()  # width and height of the image
    split: int | None = None
    crowd: int | None = None
    id: int | None = None
    image_id: int | None = None
    unread: tuple[str, ...] = ()


def columns_of(header: Sequence[str], where: str) -> Columns:
    """What the columns are by their names. DataError, which begins with `where`, if they are not
    known."""
    keys = [re.sub(r"[\s_\-.]+", "", name.casefold()) for name in header]
    places: dict[str, int] = {key: i for i, key in reversed([*enumerate(keys)])}
    shown = f"{where}: the header has {listed([printable(name) or '(blank)' for name in header])}"
    files = sorted(
        (places[key] for key in _FILES & places.keys()), key=lambda i: (keys[i] == "imageid", i)
    )
    if not files:
        raise DataError(
            f"{shown}, but not the images: name that column `file`",
            "  and write a header if the first line is none, for example `file,label`, "
            "`file,cat,dog` or `file,xmin,ymin,xmax,ymax,label`",
        )

    def first(names: set[str]) -> int | None:
        return min((places[name] for name in names & places.keys()), default=None)

    label, corners = first(_LABELS), _found(places, _CORNERS)
    box = corners or _found(places, _SIDES)
    if not box and label is not None and (pieces := _PIECES & places.keys()):
        found = listed(sorted(header[places[name]] for name in pieces))
        raise DataError(
            f"{where}: the header has {found}, but not four columns of a box: "
            "xmin,ymin,xmax,ymax or x1,y1,x2,y2 or x,y,width,height"
        )
    if box and label is None:
        raise DataError(f"{shown}, but not the classes: name that column `label`")
    columns = Columns(
        files[0],
        label,
        box=box,
        corners=bool(corners),
        split=first(_SPLITS),
        image_id=places.get("imageid") if files[1:] else None,
    )
    if label is None:
        return replace(columns, classes=_classes(header, columns, shown))
    if box:
        crowd, id_ = first({"iscrowd", "isgroupof"}), first({"id", "annotationid", "objectid"})
        size = _found(places, _SIZES, without=box)
        columns = replace(columns, crowd=crowd, id=id_, size=size)
    used = {*(v for v in vars(columns).values() if type(v) is int), *box, *columns.size}
    unread = tuple(name for i, name in enumerate(header) if i not in used)
    return replace(columns, unread=unread)


def _found(
    places: Mapping[str, int], choices: Sequence[tuple[str, ...]], without: Collection[int] = ()
) -> tuple[int, ...]:
    """The columns of the first choice of names of which all are there; () if none is."""
    for names in choices:
        columns = tuple(places[name] for name in names if name in places)
        if len(columns) == len(names) and not {*columns} & {*without}:
            return columns
    return ()


def _classes(header: Sequence[str], columns: Columns, shown: str) -> dict[str, int]:
    """The other columns, of one class each."""
    used = (columns.file, columns.split, columns.image_id)
    names = [name for i, name in enumerate(header) if i not in used]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names:
        raise DataError(f"{shown}: there are no columns of classes")
    if repeated or "" in names:
        what = f"{printable(repeated[0])} is there twice" if repeated else "a column has no name"
        raise DataError(f"{shown}: {what}")
    return {name: i for i, name in enumerate(header) if i not in used}
