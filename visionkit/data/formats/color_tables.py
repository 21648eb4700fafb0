"""Which class each number or color of a map stands for: of well-known datasets, and from a file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import short
from visionkit.data.files import diagnose
from visionkit.data.formats import plain_yaml
from visionkit.data.formats.csv_table import decoded
from visionkit.data.map_files import UNLABELED
from visionkit.errors import DataError, printable
from visionkit.runs.files import open_regular
from visionkit.types import IGNORE

Value = int | Sequence[int]  # a number, or red, green and blue
NAMES_FILES = (
    *("classes.yaml", "classes.yml", "classes.json", "classes.csv", "classes.txt"),
    *("labelmap.txt", "class_dict.csv"),
)
_CVAT_LINE = re.compile(r"([^:#]+):(\d+),(\d+),(\d+):")  # of its labelmap.txt
_ENTRY = re.compile(r"([^:,\[\]]+?)\s*:\s*(\d{1,9}|\[[\d,\s]+\])\s*(?:,\s*|$)")  # name: number

# name: number and color. Those that no class of an object or region has are not labeled.
CITYSCAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "static": (4, (0, 0, 0)),
    "dynamic": (5, (111, 74, 0)),
    "ground": (6, (81, 0, 81)),
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "parking": (9, (250, 170, 160)),
    "rail track": (10, (230, 150, 140)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "guard rail": (14, (180, 165, 180)),
    "bridge": (15, (150, 100, 100)),
    "tunnel": (16, (150, 120, 90)),
    "pole": (17, (153, 153, 153)),
    "polegroup": (18, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "caravan": (29, (0, 0, 90)),
    "trailer": (30, (0, 0, 110)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_CITYSCAPES_TRAINED = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, "
    "shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, "
    "bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, "
    "sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, "
    "pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, "
    "toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, "
    "swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, "
    "chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, "
    "apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, "
    "ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, "
    "basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, "
    "sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, "
    "bulletin board, shower, radiator, glass, clock, flag"
)
ADE20K = tuple(_ADE20K.split(", "))


@dataclass(frozen=True, eq=False)
class ClassTable(Mapping[str, int]):
    """The classes of a map, and the place of each number, or color as one number, among them; -1
    for what is not labeled. Also the id of each name."""

    names: tuple[str, ...]
    numbers: dict[int, int]
    colors: dict[int, int]

    def __getitem__(self, name: str) -> int:
        return self.ids[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> list[int]:
        """An id for each class: its number, or where there are only colors a count from 1."""
        number_of = {place: number for number, place in reversed(self.numbers.items())}
        if len(number_of.keys() - {-1}) < len(self.names):
            return [*range(1, len(self.names) + 1)]
        return [number_of[place] for place in range(len(self.names))]


def table_of(classes: Sequence[str] | Mapping[str, Value]) -> ClassTable:
    """A list of names, whose numbers count from 0 and 255 is not labeled; or for each name its
    number or color; `ignore` is for what is not labeled. DataError if two have the same."""
    if isinstance(classes, ClassTable):
        return classes
    if not isinstance(classes, Mapping):
        numbers = {name: i for i, name in enumerate(classes)}
        classes = numbers if len(numbers) > IGNORE else {**numbers, UNLABELED: IGNORE}
    names = tuple(name for name in classes if name != UNLABELED)
    found: tuple[dict[int, int], dict[int, int]] = {}, {}
    for name, value in classes.items():
        place = -1 if name == UNLABELED else names.index(name)
        is_color = not isinstance(value, int)
        code = value if isinstance(value, int) else color_code(value)
        if found[is_color].setdefault(code, place) != place:
            raise DataError(f"classes: {name!r} has {_shown(value)}, as another class has")
    return ClassTable(names, *found)


def color_code(rgb: Sequence[int]) -> int:
    """Red, green and blue as one number."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def voc_color(number: int) -> tuple[int, int, int]:
    """The color of a number in the palette of Pascal VOC: its bits, spread over the channels."""
    found = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            found[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return found[0], found[1], found[2]


def _cityscapes() -> ClassTable:
    numbers = table_of({name: number for name, (number, _) in CITYSCAPES.items()})
    void = dict.fromkeys((0, 1, 2, 3, IGNORE), -1)
    colors: dict[int, int] = {0: -1}  # black is most of all what is not labeled
    for place, (_, color) in enumerate(CITYSCAPES.values()):
        colors.setdefault(color_code(color), place)
    return ClassTable(numbers.names, numbers.numbers | void, colors)


def _voc() -> ClassTable:
    colors = {color_code(voc_color(number)): number for number in range(len(VOC))}
    border = {color_code((224, 224, 192)): -1}
    numbers = {number: number for number in range(len(VOC))} | {IGNORE: -1}
    return ClassTable(VOC, numbers, colors | border)


BUILT_IN = {
    "cityscapes": _cityscapes(),
    "cityscapes-train": table_of(_CITYSCAPES_TRAINED),
    "ade20k": table_of({name: i + 1 for i, name in enumerate(ADE20K)} | {UNLABELED: 0}),
    "voc": _voc(),
}


def read_classes(file: str | Path) -> list[str] | Mapping[str, Value]:
    """The names in a file of classes, or for each name its number or its color; or those of
    `BUILT_IN`.

    YAML or JSON: a list of names, `{name: number}`, `{name: [r, g, b]}` or `{number: name}`, also
    below `names`; CSV: `name,number` or `name,r,g,b`; text: in each line a name, `name: number` or
    `name: [r, g, b]`, or CVAT's `labelmap.txt`. DataError for anything else.
    """
    path = Path(file)
    if str(file) in BUILT_IN and not path.exists():
        return BUILT_IN[str(file)]
    where = f"file of classes {printable(path)}"
    try:
        with open_regular(path) as opened:
            text = decoded(opened.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{where} {diagnose(path)} [{printable(error)}]") from None
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        try:
            content = json.loads(text) if suffix == ".json" else plain_yaml.parse(text)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else "too deep"
            raise DataError(f"{where} cannot be read [{printable(reason)}]") from None
        return _checked(_plain(content), where)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if suffix == ".csv":
        return _checked(_of_rows(lines, where), where)
    found = [match for line in lines if (match := _CVAT_LINE.match(line))]
    if found:
        return _checked({m[1]: [int(m[i]) for i in (2, 3, 4)] for m in found}, where)
    return _checked(_of_entries(lines, where) or lines, where)


def _of_entries(lines: list[str], where: str) -> dict[str, Value]:
    """The values by name of lines `name: number` or `name: [r, g, b]`; {} if no line is one."""
    others = [line for line in lines if _ENTRY.sub("", line)]
    if len(others) == len(lines):
        return {}
    if others:
        hint = "write `name: number` in each line, or names alone"
        raise DataError(f"{where}: the line {short(others[0])} has no number: {hint}")
    found: dict[str, Value] = {}
    for name, value in (entry for line in lines for entry in _ENTRY.findall(line)):
        if name in found:
            raise DataError(f"{where}: the class {short(name)} is there twice")
        numbers = [int(text) for text in re.findall(r"\d+", value)]
        found[name] = numbers if value.startswith("[") else numbers[0]
    return found


def _plain(content: Any) -> Any:
    """A list of names, or a dict by name."""
    if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
        content = content["names"]
    if not isinstance(content, dict):
        return content
    if all(
        _is_whole(key) and isinstance(v, str) and not _is_whole(v) for key, v in content.items()
    ):
        return {name: int(number) for number, name in content.items()}
    return {
        name: [_integer(v) for v in value] if isinstance(value, list) else _integer(value)
        for name, value in content.items()
    }


def _is_whole(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) is not None


def _integer(value: Any) -> Any:
    return int(value) if _is_whole(value) else value


def _of_rows(lines: list[str], where: str) -> Any:
    """The names, or the values by name, of the rows of a CSV file; a header has no numbers."""
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    if rows and not any(map(_is_whole, rows[0])):
        rows = rows[1:]
    found: dict[str, Value] = {}
    for i, row in enumerate(rows):
        name, *cells = [*[c for c in row if not _is_whole(c)][:1], *filter(_is_whole, row)] or [""]
        if len(row) not in (2, 4) or len(cells) != len(row) - 1 or name in found:
            hint = "expected name,number or name,r,g,b, each name once"
            raise DataError(f"{where}: row {i + 1} is {short(','.join(row))}: {hint}")
        found[name] = int(cells[0]) if len(cells) == 1 else [int(cell) for cell in cells]
    return found


def _checked(content: Any, where: str) -> list[str] | dict[str, Value]:
    """The content if it is a list of names or a dict of their values. DataError."""
    if isinstance(content, list) and content and all(map(_is_name, content)):
        if len(set(content)) < len(content):
            raise DataError(f"{where}: a class is there twice")
        return content
    if not isinstance(content, dict) or not content:
        raise DataError(f"{where}: expected names, or for each name a number or [r, g, b]")
    for name, value in content.items():
        if not _is_name(name) or not (_is_number(value, 2**24) or _is_color(value)):
            hint = "must be a number, or [r, g, b] from 0 to 255"
            raise DataError(f"{where}: {short(name)} is {short(value)}: {hint}")
    return content


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any, stop: int) -> bool:
    return type(value) is int and 0 <= value < stop


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(v, 256) for v in value)


def _shown(value: Value) -> str:
    return f"the number {value}" if isinstance(value, int) else f"the color {list(value)}"
