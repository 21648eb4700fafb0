"""Write the parts of a report as one HTML file that needs nothing else, and no network.

Nothing here imports torch: result files are reported without it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from visionkit.errors import printable
from visionkit.metrics.parts import (
    Bars,
    Chart,
    Gallery,
    Mark,
    Matrix,
    Part,
    Series,
    Shown,
    Table,
    Text,
)
from visionkit.runs.files import open_regular

SIDE = 480  # longest side of an image, in pixels
QUALITY = 80  # of its JPEG
COLORS = 12
POINTS = 300  # of a line
FEW = 30  # points that are also drawn as dots
LISTED = 20  # images behind a cell of a matrix
TEXT = 18  # height of the text on an image, of which the page may show two thirds
LABELED = 15  # marks of an image that have a text
LARGEST_SCALE = 8  # of a small image
MARKS = {
    "right": (26, 152, 80),
    "wrong": (215, 48, 39),
    "missed": (240, 140, 0),
    "found": (59, 111, 196),
    "truth": (240, 140, 0),
}
MEANINGS = {
    "right": "right",
    "wrong": "wrong",
    "missed": "missed",
    "found": "detected",
    "truth": "ground truth",
}
Area: TypeAlias = tuple[float, float, float, float]  # xyxy
OpenImage: TypeAlias = Callable[[int], Image.Image]  # by image id; raises OSError or VisionkitError


class Headline(NamedTuple):
    """A metric at the top of the page."""

    name: str
    value: str
    detail: str = ""


@dataclass
class Section:
    """One head, or one subject, of a page. `open_image` opens the images of its galleries and
    `image_name` names them."""

    title: str
    parts: Sequence[Part] = ()
    note: str = ""
    open_image: OpenImage | None = None
    image_name: Callable[[int], str] = str


@dataclass
class Page:
    """A report. `banners` are warnings about all of it, `summary` are its first sentences."""

    title: str
    sections: list[Section]
    headline: list[Headline] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    banners: list[str] = field(default_factory=list)
    made: str = ""


def render(page: Page, version: str) -> str:
    """The HTML text of a page."""
    sections = []
    for number, section in enumerate(page.sections):
        key = f"s{number}"
        rows = [*_rows(_View(section, key))]
        sections.append({"key": key, "title": section.title, "note": section.note, "rows": rows})
    view = {**vars(page), "sections": sections}
    return _templates().get_template("report.html").render(page=view, version=version)


def is_page(path: Path) -> bool:
    """Whether a file is a page that `render` made."""
    with open_regular(path) as file:
        return b'<meta name="generator" content="visionkit' in file.read(1000)


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    found = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: _visible(value) if type(value) is str else value,
    )
    return found


def _visible(text: str) -> str:
    """Without control characters, which a class name may have."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def _rows(view: _View) -> Iterator[dict[str, Any]]:
    """Charts and bars side by side, everything else below each other."""
    for charts, parts in groupby(view.section.parts, lambda p: isinstance(p, Chart | Bars)):
        drawn = [view.draw(part) for part in parts]
        if charts:
            yield {"charts": True, "parts": drawn}
        else:
            yield from ({"charts": False, "parts": [one]} for one in drawn)


class _View:
    """Draws the parts of one section."""

    def __init__(self, section: Section, key: str) -> None:
        self.section, self.key = section, key
        module: Any = _templates().get_template("parts.html").module
        self.macros = module
        galleries = [part for part in section.parts if isinstance(part, Gallery)]
        self.shown = {one.image_id for part in galleries[:1] for one in part.images}
        self.first = galleries[0] if galleries else None
        self.matrices = 0

    def draw(self, part: Part) -> Markup:
        match part:
            case Text():
                return self.macros.text(part)
            case Table():
                return self.macros.table(part, _cells(part))
            case Chart():
                return self.macros.chart(part, plot(part))
            case Bars():
                return self.macros.bars(part, _bars(part))
            case Matrix():
                self.matrices += 1
                return self.macros.matrix(part, self._matrix(part, self.matrices))
            case Gallery():
                images = [
                    [self._figure(part, one), *(self._figure(None, other) for other in one.others)]
                    for one in part.images
                ]
                return self.macros.gallery(part, images, _meanings(part))

    def _matrix(self, part: Matrix, number: int) -> dict[str, Any]:
        totals = np.maximum(part.counts.sum(1, keepdims=True), 1)
        shares = part.counts / totals
        rows, lists = [], []
        for r, name in enumerate(part.rows):
            cells = []
            for c, column in enumerate(part.columns):
                images = part.images.get((r, c), ())
                key = f"{self.key}-m{number}-{r}-{c}" if images else ""
                count, share = int(part.counts[r, c]), f"{shares[r, c]:.3f}"
                cells.append({"column": column, "count": count, "share": share, "key": key})
                if images and r != c:
                    lists.append(self._list(key, f"{name} as {column}", images))
                elif images:
                    cells[-1]["key"] = ""  # what is right needs no list
            rows.append({"name": name, "cells": cells})
        return {"rows": rows, "lists": lists}

    def _list(self, key: str, title: str, images: Sequence[int]) -> dict[str, Any]:
        known = [
            {
                "name": self.section.image_name(id_),
                "link": f"{self.key}-i{id_}" if id_ in self.shown else "",
            }
            for id_ in sorted(images, key=lambda id_: id_ not in self.shown)[:LISTED]
        ]
        more = max(0, len(images) - LISTED)
        return {"key": key, "title": title, "images": known, "more": more}

    def _figure(self, part: Gallery | None, shown: Shown) -> dict[str, Any]:
        """An image of a gallery; of none if it is next to one."""
        name = self.section.image_name(shown.image_id)
        key = f"{self.key}-i{shown.image_id}" if part and part is self.first else ""
        found = {"key": key, "name": name, "caption": shown.caption, "source": "", "fault": ""}
        try:
            image = self._image(shown)
        except Exception as error:  # of any kind: the page says it in place of the image
            return {**found, "fault": f"not shown: {printable(error)}"}
        return {**found, "source": data_url(image)}

    def _image(self, shown: Shown) -> Image.Image:
        if shown.image is not None:
            return Image.fromarray(shown.image)
        if self.section.open_image is None:
            raise LookupError("the images are not given")
        drawn = draw_marks(self.section.open_image(shown.image_id), shown)
        others = [self.section.open_image(id_) for id_ in shown.neighbors]
        return side_by_side([drawn, *others]) if others else drawn


def _meanings(part: Gallery) -> list[tuple[str, str]]:
    """What the colors on the images mean, each with its name in the style sheet."""
    every = [one for shown in part.images for one in (shown, *shown.others)]
    kinds = {mark.kind for one in every for mark in one.marks}
    if any(one.label_map is not None for one in every):
        kinds |= {"right", "wrong"}
    return [(kind, text) for kind, text in MEANINGS.items() if kind in kinds]


def _cells(part: Table) -> dict[str, Any]:
    """Each cell's text, and its number to sort by."""
    rows = [[_cell(value) for value in row] for row in part.rows]
    columns = range(len(part.columns))
    numbers = [c for c in columns if any(row[c]["number"] is not None for row in rows)]
    return {"rows": rows, "numbers": numbers}


def _cell(value: str | float | int | None) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value, "number": None}
    if value is None or math.isnan(value):
        return {"text": "–", "number": "nan"}
    text = f"{value:,}" if isinstance(value, Integral) else f"{value:.3f}"
    return {"text": text, "number": f"{value:.9g}"}


def _bars(part: Bars) -> list[dict[str, str]]:
    defined = [value for value in part.values.values() if not math.isnan(value)]
    most = max([*defined, 1e-9])
    return [
        {
            "name": name,
            "share": f"{0 if math.isnan(value) else max(value, 0) / most:.4f}",
            "text": "n/a" if math.isnan(value) else _cell(value)["text"],
        }
        for name, value in part.values.items()
    ]


WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 512, 20, 262


def plot(part: Chart) -> dict[str, Any]:
    """Where everything of a chart is, in the units of its drawing."""
    known = [_finite(series) for series in part.series]
    x_low, x_high = part.x_range or _range(x for x, _ in known)
    y_low, y_high = part.y_range or _range(y for _, y in known)

    def across(x: Any) -> Any:
        return LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def up(y: Any) -> Any:
        return BOTTOM - (y - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    lines = []
    for number, (series, (x, y)) in enumerate(zip(part.series, known, strict=True)):
        mark = series.mark
        inside = mark is not None and x_low <= mark <= x_high
        points = [*zip(across(x).round(1).tolist(), up(y).round(1).tolist(), strict=True)]
        lines.append(
            {
                "name": series.name,
                "color": number % COLORS,
                "points": [" ".join(f"{a:g},{b:g}" for a, b in points)] if len(points) > 1 else [],
                "dots": points if len(points) <= FEW else [],
                "mark": round(float(across(mark)), 1) if inside else None,
                "marked": f"{mark:.3f}" if inside else "",
            }
        )
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": BOTTOM,
        "x_ticks": [
            {"at": round(float(across(t)), 1), "text": f"{t:g}"} for t in _ticks(x_low, x_high)
        ],
        "y_ticks": [
            {"at": round(float(up(t)), 1), "text": f"{t:g}"} for t in _ticks(y_low, y_high)
        ],
        "lines": lines,
    }


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The points with a value, in order of x; of a long line some."""
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order]) & np.isfinite(y[order])]
    if len(order) > POINTS:
        order = order[np.unique(np.linspace(0, len(order) - 1, POINTS).astype(int))]
    return x[order], y[order]


def _range(values: Iterable[np.ndarray]) -> tuple[float, float]:
    every = np.concatenate([np.zeros(0), *values])
    if not len(every):
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    pad = (high - low) * 0.04 or max(abs(high) * 0.1, 1e-6)
    return (low if low >= 0 and low - pad < 0 else low - pad), high + pad


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two others."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.10g}") for i in range(count)]


def draw_marks(image: Image.Image, shown: Shown) -> Image.Image:
    """The image at the size of the report, with its marks."""
    longest = max(image.size)
    scale = min(SIDE / longest, 1 if longest >= SIDE / 2 else LARGEST_SCALE)
    size = [max(1, round(side * scale)) for side in image.size]
    drawn = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
    if shown.label_map is not None:
        drawn = _with_map(drawn, shown.label_map)
    for mark in shown.marks:
        if mark.mask is not None:
            _draw_mask(drawn, mark)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=TEXT)
    boxes = []
    for mark in shown.marks:
        box = mark.box or (_bounds(mark.mask) if mark.mask is not None else None)
        if box is not None:
            boxes.append((mark, [side * scale for side in box]))
    for mark, (x1, y1, x2, y2) in boxes:
        if mark.mask is None:
            corners = (x1, y1, max(x1, x2), max(y1, y2))
            pen.rectangle(corners, outline=MARKS[mark.kind], width=2)
    taken: list[Area] = []
    for mark, box in [one for one in boxes if one[0].text][:LABELED]:
        text = printable(mark.text)[:40]
        *_, width, height = pen.textbbox((0, 0), text, font=font)
        area = free_place(box, (width + 4, height + 3), drawn.size, taken)
        if area is not None:
            left, top, right, bottom = area
            pen.rectangle((left, top, right - 1, bottom - 1), fill=MARKS[mark.kind])
            pen.text((left + 2, top), text, fill="white", font=font)
            taken.append(area)
    return drawn


def free_place(
    box: Sequence[float],
    extent: tuple[float, float],
    size: tuple[int, int],
    taken: Sequence[Area],
) -> Area | None:
    """Where a text of that width and height can stand at a box, within the image of that size and
    on no other text; None if nowhere."""
    (x1, y1, x2, y2), (width, height) = box, extent
    at_left = [(x1, y1 - height), (x1, y2), (x1, y1), (x1, y2 - height)]
    for x, y in [*at_left, (x2 - width, y1 - height), (x2 - width, y2)]:
        left = min(max(x, 0), max(size[0] - width, 0))
        top = min(max(y, 0), max(size[1] - height, 0))
        area = (left, top, left + width, top + height)
        if not any(
            area[0] < other[2] and other[0] < area[2] and area[1] < other[3] and other[1] < area[3]
            for other in taken
        ):
            return area
    return None


def _draw_mask(drawn: Image.Image, mark: Mark) -> None:
    from pycocotools.mask import decode

    assert mark.mask is not None
    area = Image.fromarray(decode(_compressed(mark.mask)) * np.uint8(110)).resize(drawn.size)
    drawn.paste(MARKS[mark.kind], (0, 0), area)
    edges = area.filter(ImageFilter.FIND_EDGES).point(lambda value: 255 * (value > 0))
    drawn.paste(MARKS[mark.kind], (0, 0), edges)


def _bounds(mask: dict[str, Any]) -> list[float] | None:
    """xyxy; None for a mask without a pixel."""
    from pycocotools.mask import toBbox

    x, y, w, h = toBbox(_compressed(mask)).tolist()
    return [x, y, x + w, y + h] if w and h else None


def _compressed(mask: dict[str, Any]) -> dict[str, Any]:
    counts = mask["counts"]
    return {**mask, "counts": counts.encode() if isinstance(counts, str) else counts}


def _with_map(drawn: Image.Image, labels: np.ndarray) -> Image.Image:
    """Without colors, so that those of 1, right, and 2, wrong, are seen; 0 has none."""
    drawn = drawn.convert("L").convert("RGB")
    colors = np.zeros((*labels.shape, 3), np.uint8)
    for value, kind in ((1, "right"), (2, "wrong")):
        colors[labels == value] = MARKS[kind]
    over = Image.fromarray(colors).resize(drawn.size, Image.Resampling.NEAREST)
    alpha = Image.fromarray(np.uint8(130) * (labels > 0)).resize(drawn.size)
    drawn.paste(over, (0, 0), alpha)
    return drawn


def side_by_side(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Images in a row, scaled to the height of the first."""
    height = images[0].height
    scaled = [one.resize((max(1, one.width * height // one.height), height)) for one in images]
    row = Image.new("RGB", (sum(one.width + gap for one in scaled) - gap, height), "white")
    left = 0
    for one in scaled:
        row.paste(one, (left, 0))
        left += one.width + gap
    return row


def data_url(image: Image.Image) -> str:
    """A JPEG of the image as the address of an <img>."""
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
