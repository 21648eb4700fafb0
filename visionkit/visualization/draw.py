"""Images with predictions or labels drawn over them, by Pillow alone."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from pycocotools.mask import decode
from torch import Tensor

from visionkit.data.classes import describe
from visionkit.types import IGNORE, Target

# --- An image under the pen: boxes, masks, class maps and tags, by Pillow alone.

LEGIBLE = 640  # an image whose longer side is shorter is enlarged to this
OPACITY = 0.4  # of masks and class maps
GRAY = (150, 150, 150)  # of what has no class
Color = tuple[int, int, int]
Names = Sequence[str]


def color_of(label: int) -> Color:
    """The color of a class: the same in every image, and far from those of its neighbors."""
    hue = (0.98 + label * 0.618034) % 1  # the golden ratio spreads any number of hues evenly
    saturation, value = [(0.80, 0.95), (0.60, 1.0), (0.95, 0.75)][label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


class Canvas:
    """An image under the pen. Coordinates are those of the image before it was enlarged."""

    def __init__(self, image: Tensor | Image.Image) -> None:
        if isinstance(image, Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        # How far an earlier `draw` enlarged it, and down to where it wrote.
        self.scale, self.written = image.info.get("drawn", (None, 0))
        self.image = image.convert("RGB")
        if self.scale is None:
            self.scale = max(1.0, LEGIBLE / max(image.size))
            size = [max(1, round(side * self.scale)) for side in image.size]
            self.image = self.image.resize(size, Image.Resampling.BICUBIC)
        self.pen = ImageDraw.Draw(self.image)
        longest = max(self.image.size)
        self.line = max(2, round(longest / 320))
        self.pad = max(2, self.line)
        self.font = ImageFont.load_default(size=max(12, round(longest / 48)))

    def finished(self) -> Image.Image:
        self.image.info["drawn"] = (self.scale, self.written)
        return self.image

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
        area = area.resize(self.image.size, Image.Resampling.BILINEAR)
        found = area.getbbox()
        if found is None:
            return
        grown = 2 * (self.line // 2) + 1
        left, top = max(0, found[0] - grown), max(0, found[1] - grown)
        window = (left, top, found[2] + grown, found[3] + grown)
        area = area.crop(window)
        outline = ImageChops.subtract(area.filter(ImageFilter.MaxFilter(grown)), area)
        self.image.paste(color, (left, top), area.point(lambda value: int(value * OPACITY)))
        self.image.paste(color, (left, top), outline)

    def class_map(self, labels: Tensor, names: Names) -> None:
        """A translucent color for every cell of (h, w), none for 255 and for a class that is called
        background; and what the colors mean."""
        index = np.asarray(labels.cpu()).astype(np.uint8)
        index = np.where(np.isin(index, backgrounds(names)), np.uint8(IGNORE), index)
        palette = np.array([color_of(label) for label in range(256)], np.uint8)
        size, nearest = self.image.size, Image.Resampling.NEAREST
        colors = Image.fromarray(palette[index]).resize(size, nearest)
        known = Image.fromarray((index != IGNORE) * np.uint8(255 * OPACITY)).resize(size, nearest)
        self.image.paste(colors, (0, 0), known)
        present = [label for label in np.unique(index).tolist() if label != IGNORE]
        self.lines([(name_of(names, label), color_of(label)) for label in present])

    def beside(self, image: Tensor) -> None:
        """Another image (3, h, w) uint8 at the right, as high as this one."""
        other = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        width = max(1, round(other.width * self.image.height / other.height))
        other = other.resize((width, self.image.height), Image.Resampling.BICUBIC)
        both = Image.new("RGB", (self.image.width + width, self.image.height))
        both.paste(self.image, (0, 0))
        both.paste(other, (self.image.width, 0))
        both.info = self.image.info
        self.image, self.pen = both, ImageDraw.Draw(both)

    def tags(
        self,
        boxes: Sequence[Sequence[float]],
        tags: Sequence[str],
        colors: Sequence[Color],
    ) -> None:
        """A name at each box, inside the image, where it covers no other name if possible.

        Where it is not, a name whose color has been explained elsewhere is left out.
        """
        taken: list[tuple[float, float, float, float]] = []
        explain_errors: set[Color] = set()
        for box, tag, color in zip(boxes, tags, colors, strict=True):
            w, h = self._extent(tag)
            x1, y1, x2, y2 = self._pixels(box)
            corners = [(x1, y1 - h), (x1, y1), (x1, y2), (x2 - w, y1 - h), (x1, y2 - h)]
            places = [self._inside(x, y, w, h) for x, y in corners]
            free = [p for p in places if not any(_overlap(p, t) for t in taken)]
            if free or color not in explain_errors:
                place = [*free, places[0]][0]
                self._write(place, tag, color)
                taken.append(place)
                explain_errors.add(color)

    def lines(self, lines: Sequence[tuple[str, Color]]) -> None:
        """Lines of text at the upper left, below those that are there already."""
        for text, color in lines:
            w, h = self._extent(text)
            self._write((0, self.written, w, self.written + h), text, color)
            self.written += h

    def _pixels(self, box: Sequence[float]) -> list[float]:
        """The outermost pixels of a box, all inside the image."""
        w, h = self.image.size
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
        x = max(0, min(x, self.image.width - w))
        y = max(0, min(y, self.image.height - h))
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


def draw(
    image: Tensor | Image.Image,
    prediction: Mapping[str, Any],
    class_names: Names,
    *,
    threshold: float = 0.5,
) -> Image.Image:
    """A copy of the image with a head's prediction drawn over it.

    `image` is (3, h, w) uint8 or a Pillow image, of the size that the prediction refers to.
    Understood are `boxes`, `labels`, `scores` and perhaps `masks` (those with a score of at least
    `threshold`), `box`, `probs`, `semantic`, `attributes` of boxes, and `reconstruction`, which
    comes at the right of the image; other keys are passed over. Small images come out
    enlarged. An image that comes from `draw` may be drawn on again, for another head.
    """
    canvas = Canvas(image)
    if "reconstruction" in prediction:
        canvas.beside(prediction["reconstruction"])
    if "semantic" in prediction:
        canvas.class_map(prediction["semantic"], class_names)
    if "attributes" in prediction:
        _draw_attributes(canvas, prediction, class_names, threshold)
    elif "boxes" in prediction:
        _draw_objects(canvas, prediction, class_names, threshold)
    elif "box" in prediction:
        label, prob = _best(prediction["probs"])
        canvas.boxes([prediction["box"].tolist()], [color_of(label)])
        tag = f"{name_of(class_names, label)} {prob:.0%}"
        canvas.tags([prediction["box"].tolist()], [tag], [color_of(label)])
    elif "probs" in prediction:
        _write_classes(canvas, prediction, class_names)
    return canvas.finished()


def draw_target(
    image: Tensor | Image.Image, target: Target, class_names: Names | Mapping[str, Names]
) -> Image.Image:
    """A copy of a training image, (3, h, w) without padding, with its labels drawn over it.

    `class_names` are the names of the target's objects or, where it has none, of the whole
    image's class; or a dict with a list for each target key: `labels`, `class_id`, `semantic`.
    """
    if not isinstance(class_names, Mapping):
        class_names = {"labels" if "boxes" in target else "class_id": class_names}
    canvas = Canvas(image)
    if "semantic" in target:
        canvas.class_map(_labeled_map(target), class_names.get("semantic", ()))
    if "boxes" in target:
        names = class_names.get("labels", ())
        labels = target["labels"].tolist()
        crowds = target["iscrowd"].tolist() if "iscrowd" in target else [False] * len(labels)
        tags = [name_of(names, n) + " (crowd)" * c for n, c in zip(labels, crowds, strict=True)]
        if "attributes" in target:
            known = target["attributes"].nan_to_num()
            words = [_certain(class_names.get("attributes", ()), row) for row in known]
            tags = [", ".join([tag, *more]) for tag, more in zip(tags, words, strict=True)]
        colors = [
            GRAY if crowd else color_of(label) for label, crowd in zip(labels, crowds, strict=True)
        ]
        masks = target["masks"].cpu().numpy() if "masks" in target else ()
        canvas.objects(target["boxes"].tolist(), tags, colors, masks)
    if "class_id" in target:
        names = class_names.get("class_id", ())
        class_id = target["class_id"]
        present = class_id.nonzero()[:, 0].tolist() if class_id.ndim else [int(class_id)]
        canvas.lines([(name_of(names, label), color_of(label)) for label in present])
    return canvas.finished()


def _labeled_map(target: Target) -> Tensor:
    """The class map, with 255 (ignore) where it shows a class that is not labeled here."""
    labels, labeled = target["semantic"], target.get("semantic_labeled")
    if labeled is None:
        return labels
    known = torch.ones(256, dtype=torch.bool)
    known[: len(labeled)] = labeled.cpu()
    return labels.where(known.to(labels.device)[labels.long()], IGNORE)


def draw_all(
    image: Tensor | Image.Image,
    predictions: Mapping[str, Mapping[str, Any]],
    class_names: Mapping[str, Names],
    *,
    threshold: float | Mapping[str, float] = 0.5,
) -> Image.Image:
    """The drawn with the predictions of all heads: areas at the bottom, words at the top.

    `threshold` is one for all heads, or has one for each.
    """
    drawn: Any = image
    for head in sorted(predictions, key=lambda head: _layer(predictions[head])):
        low = threshold[head] if isinstance(threshold, Mapping) else threshold
        drawn = draw(drawn, predictions[head], class_names[head], threshold=low)
    return drawn


def contact_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """The images side by side in rows, each centered in a cell that fits the largest."""
    margin, limit = 8, 800
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    columns = max(1, min(columns, len(small)))
    rows = -(-len(small) // columns)
    cell_w = max((image.width for image in small), default=0) + margin
    cell_h = max((image.height for image in small), default=0) + margin
    sheet = Image.new("RGB", (columns * cell_w + margin, rows * cell_h + margin), "white")
    for i, image in enumerate(small):
        left = margin + i % columns * cell_w + (cell_w - margin - image.width) // 2
        top = margin + i // columns * cell_h + (cell_h - margin - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet


def _draw_objects(
    canvas: Canvas, prediction: Mapping[str, Any], names: Names, threshold: float
) -> None:
    shown = (prediction["scores"] >= threshold).nonzero()[:, 0].tolist()
    labels = prediction["labels"].tolist()
    scores = prediction["scores"].tolist()
    boxes = prediction["boxes"].tolist()
    masks = [decode(prediction["masks"][i]) for i in shown] if "masks" in prediction else ()
    tags = [f"{name_of(names, labels[i])} {scores[i]:.0%}" for i in shown]
    canvas.objects([boxes[i] for i in shown], tags, [color_of(labels[i]) for i in shown], masks)


def _draw_attributes(
    canvas: Canvas, prediction: Mapping[str, Any], names: Names, threshold: float
) -> None:
    """What is said of each box, in a tag at its lower side."""
    places, tags = [], []
    for i in (prediction["scores"] >= threshold).nonzero()[:, 0].tolist():
        x1, _, _, y2 = prediction["boxes"][i].tolist()
        places.append([x1, y2, x1, y2])
        tags.append(", ".join(describe(names, prediction["attributes"][i])) or "-")
    canvas.tags(places, tags, [GRAY] * len(tags))


def _certain(names: Names, answers: Tensor) -> list[str]:
    """What a row of zeros and ones says yes to, in words."""
    said = describe(names, answers)
    return [words.removesuffix(" 100%") for words in said if words.endswith(" 100%")]


def _layer(prediction: Mapping[str, Any]) -> int:
    """The order of drawing: what covers most comes first, what widens the image last."""
    order = ("semantic", "labels", "box", "attributes", "probs", "reconstruction")
    return next((i for i, key in enumerate(order) if key in prediction), len(order))


def _write_classes(canvas: Canvas, prediction: Mapping[str, Any], names: Names) -> None:
    """The most probable classes; with several labels per image, all that are present."""
    probs = prediction["probs"]
    if "labels" in prediction:
        shown = prediction["labels"].tolist()
    else:
        ranked = probs.argsort(descending=True)[:3].tolist()
        shown = [label for i, label in enumerate(ranked) if i == 0 or probs[label] >= 0.05]
    canvas.lines([(f"{name_of(names, i)} {float(probs[i]):.0%}", color_of(i)) for i in shown])


def _best(probs: Tensor) -> tuple[int, float]:
    label = int(probs.argmax())
    return label, float(probs[label])
