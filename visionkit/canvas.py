"""A picture under the pen: boxes, masks, class maps and tags, by Pillow alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

LEGIBLE = 640  # a picture whose longer side is shorter is enlarged to this
OPACITY = 0.4  # of masks and class maps
GRAY = (150, 150, 150)  # of what has no class
Color = tuple[int, int, int]
Names = Sequence[str]


def color_of(label: int) -> Color:
    """The color of a class: the same in every picture, and far from those of its neighbors."""
    hue = (0.98 + label * 0.618034) % 1  # the golden ratio spreads any number of hues evenly
    saturation, value = [(0.80, 0.95), (0.60, 1.0), (0.95, 0.75)][label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


class Canvas:
    """A picture under the pen. Coordinates are those of the picture before it was enlarged."""

    def __init__(self, image: Tensor | Image.Image) -> None:
        if isinstance(image, Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        # How far an earlier `draw` enlarged it, and down to where it wrote.
        self.scale, self.written = image.info.get("drawn", (None, 0))
        self.picture = image.convert("RGB")
        if self.scale is None:
            self.scale = max(1.0, LEGIBLE / max(image.size))
            size = [max(1, round(side * self.scale)) for side in image.size]
            self.picture = self.picture.resize(size, Image.Resampling.BICUBIC)
        self.pen = ImageDraw.Draw(self.picture)
        longest = max(self.picture.size)
        self.line = max(2, round(longest / 320))
        self.pad = max(2, self.line)
        self.font = ImageFont.load_default(size=max(12, round(longest / 48)))

    def finished(self) -> Image.Image:
        self.picture.info["drawn"] = (self.scale, self.written)
        return self.picture

    def objects(
        self,
        boxes: Sequence[Sequence[float]],
        tags: Sequence[str],
        colors: Sequence[Color],
        masks: Sequence[np.ndarray],
    ) -> None:
        """Masks (h, w), if any, below boxes below tags; the smallest object on top."""
        order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
        for i in order if len(masks) else ():
            self.mask(masks[i], colors[i])
        self.boxes([boxes[i] for i in order], [colors[i] for i in order])
        self.tags(boxes, tags, colors)

    def boxes(self, boxes: Sequence[Sequence[float]], colors: Sequence[Color]) -> None:
        for box, color in zip(boxes, colors, strict=True):
            x1, y1, x2, y2 = self._pixels(box)
            self.pen.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline=color, width=self.line)

    def mask(self, mask: np.ndarray, color: Color) -> None:
        """A translucent area with an outline."""
        area = Image.fromarray((mask > 0).astype(np.uint8) * 255)
        area = area.resize(self.picture.size, Image.Resampling.BILINEAR)
        found = area.getbbox()
        if found is None:
            return
        grown = 2 * (self.line // 2) + 1
        left, top = max(0, found[0] - grown), max(0, found[1] - grown)
        window = (left, top, found[2] + grown, found[3] + grown)
        area = area.crop(window)
        outline = ImageChops.subtract(area.filter(ImageFilter.MaxFilter(grown)), area)
        self.picture.paste(color, (left, top), area.point(lambda value: int(value * OPACITY)))
        self.picture.paste(color, (left, top), outline)

    def class_map(self, labels: Tensor, names: Names) -> None:
        """A translucent color for every cell of (h, w), none for 255 and for a class that is called
        background; and what the colors mean."""
        index = np.asarray(labels.cpu()).astype(np.uint8)
        index = np.where(np.isin(index, backgrounds(names)), np.uint8(255), index)
        palette = np.array([color_of(label) for label in range(256)], np.uint8)
        size, nearest = self.picture.size, Image.Resampling.NEAREST
        colors = Image.fromarray(palette[index]).resize(size, nearest)
        known = Image.fromarray((index != 255) * np.uint8(255 * OPACITY)).resize(size, nearest)
        self.picture.paste(colors, (0, 0), known)
        present = [label for label in np.unique(index).tolist() if label != 255]
        self.lines([(name_of(names, label), color_of(label)) for label in present])

    def beside(self, image: Tensor) -> None:
        """Another picture (3, h, w) uint8 at the right, as high as this one."""
        other = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        width = max(1, round(other.width * self.picture.height / other.height))
        other = other.resize((width, self.picture.height), Image.Resampling.BICUBIC)
        both = Image.new("RGB", (self.picture.width + width, self.picture.height))
        both.paste(self.picture, (0, 0))
        both.paste(other, (self.picture.width, 0))
        both.info = self.picture.info
        self.picture, self.pen = both, ImageDraw.Draw(both)

    def tags(
        self,
        boxes: Sequence[Sequence[float]],
        tags: Sequence[str],
        colors: Sequence[Color],
    ) -> None:
        """A name at each box, inside the picture, where it covers no other name if possible.

        Where it is not, a name whose color has been explained elsewhere is left out.
        """
        taken: list[tuple[float, float, float, float]] = []
        explained: set[Color] = set()
        for box, tag, color in zip(boxes, tags, colors, strict=True):
            w, h = self._extent(tag)
            x1, y1, x2, y2 = self._pixels(box)
            corners = [(x1, y1 - h), (x1, y1), (x1, y2), (x2 - w, y1 - h), (x1, y2 - h)]
            places = [self._inside(x, y, w, h) for x, y in corners]
            free = [p for p in places if not any(_overlap(p, t) for t in taken)]
            if free or color not in explained:
                place = [*free, places[0]][0]
                self._write(place, tag, color)
                taken.append(place)
                explained.add(color)

    def lines(self, lines: Sequence[tuple[str, Color]]) -> None:
        """Lines of text at the upper left, below those that are there already."""
        for text, color in lines:
            w, h = self._extent(text)
            self._write((0, self.written, w, self.written + h), text, color)
            self.written += h

    def _pixels(self, box: Sequence[float]) -> list[float]:
        """The outermost pixels of a box, all inside the picture."""
        w, h = self.picture.size
        limits = [w - 1, h - 1, w - 1, h - 1]
        last = [0, 0, 1, 1]  # a box that ends at x = 10 covers the pixels up to 9
        return [
            min(max(round(value * self.scale) - end, 0), limit)
            for value, end, limit in zip(box, last, limits, strict=True)
        ]

    def _extent(self, text: str) -> tuple[float, float]:
        ascent, descent = self.font.getmetrics()
        return self.font.getlength(text) + 2 * self.pad, ascent + descent + self.pad

    def _inside(self, x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        x = max(0, min(x, self.picture.width - w))
        y = max(0, min(y, self.picture.height - h))
        return x, y, x + w, y + h

    def _write(self, place: tuple[float, float, float, float], text: str, color: Color) -> None:
        self.pen.rectangle([place[0], place[1], place[2] - 1, place[3] - 1], fill=color)
        red, green, blue = color
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        at = (place[0] + self.pad, place[1] + self.pad / 2)
        self.pen.text(at, text, fill="black" if bright else "white", font=self.font)


def backgrounds(names: Names) -> list[int]:
    """The classes that say that there is nothing."""
    return [label for label, name in enumerate(names) if name.lower() == "background"]


def name_of(names: Names, label: int) -> str:
    name = names[label] if label < len(names) else f"class {label}"
    return " ".join(name.split())  # on one line


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
