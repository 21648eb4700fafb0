"""Draw predictions and targets, tensors or arrays, on images with Pillow. Torch is not imported."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from pycocotools.mask import decode

from visionkit.data.attributes import describe
from visionkit.errors import printable
from visionkit.runs.files import replacing
from visionkit.types import IGNORE, PREDICTION_KINDS, Target, as_numpy, prediction_kinds

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 640  # images with a shorter longer side are enlarged to this
CELL = 800  # pixels of an image on a sheet, at most
OPACITY = 0.4  # of masks and semantic maps
GRAY = (150, 150, 150)  # the color of crowds and attributes
Color = tuple[int, int, int]
Names = Sequence[str]
Threshold = float | tuple[float, ...]  # of all classes, or of each
Rectangle = tuple[float, float, float, float]
Pixels: TypeAlias = "Tensor | np.ndarray"


def color_of(label: int) -> Color:
    """The color of a class: equal in all images and distinct from those of the next classes."""
    hue = (0.98 + label * 0.618034) % 1  # the golden ratio spreads any number of hues evenly
    saturation, value = [(0.80, 0.95), (0.60, 1.0), (0.95, 0.75)][label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def as_image(image: Pixels) -> Image.Image:
    """(3, h, w) uint8 RGB as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(as_numpy(image).transpose(1, 2, 0)))


class Canvas:
    """An image to draw on. Coordinates are those of the image before it was enlarged."""

    def __init__(self, image: Pixels | Image.Image) -> None:
        image = image if isinstance(image, Image.Image) else as_image(image)
        self.image = image.convert("RGB")
        # The scale of an earlier `draw`, and the height of the text that it wrote.
        self.scale, self.text_height = image.info.get("drawn", (None, 0))
        if self.scale is None:
            self.scale = max(1.0, MIN_SIDE / max(image.size))
            width, height = (max(1, round(side * self.scale)) for side in image.size)
            self.image = self.image.resize((width, height), Image.Resampling.BICUBIC)
        self.written: list[Rectangle] = []  # lines of text
        self.pen = ImageDraw.Draw(self.image)
        longest = max(self.image.size)
        self.line = max(2, round(longest / 320))
        self.pad = max(2, self.line)
        font = ImageFont.load_default(size=max(12, round(longest / 48)))
        assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it always is
        self.font = font

    def finished(self) -> Image.Image:
        self.image.info["drawn"] = (self.scale, self.text_height)
        return self.image

    def objects(
        self,
        boxes: Sequence[Sequence[float]],
        tags: Sequence[str],
        colors: Sequence[Color],
        masks: Sequence[np.ndarray],
    ) -> None:
        """Masks (h, w), if any, then boxes, then tags; the smallest object on top."""
        order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
        for i in order if len(masks) else ():
            self.mask(masks[i], colors[i])
        for i in order:
            x1, y1, x2, y2 = self._pixels(boxes[i])
            corners = [x1, y1, max(x1, x2), max(y1, y2)]
            self.pen.rectangle(corners, outline=colors[i], width=self.line)
        self.tags(boxes, tags, colors)

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

    def semantic_map(self, labels: Pixels, names: Names) -> None:
        """Translucent class colors for (h, w) labels, with a legend. Pixels that are ignored or of
        a class called background stay as they are."""
        index = as_numpy(labels).astype(np.uint8)
        background = [i for i, name in enumerate(names) if name.lower() == "background"]
        index = np.where(np.isin(index, background), np.uint8(IGNORE), index)
        palette = np.array([color_of(label) for label in range(256)], np.uint8)
        size, nearest = self.image.size, Image.Resampling.NEAREST
        colors = Image.fromarray(palette[index]).resize(size, nearest)
        known = Image.fromarray((index != IGNORE) * np.uint8(255 * OPACITY)).resize(size, nearest)
        self.image.paste(colors, (0, 0), known)
        present = [label for label in np.unique(index).tolist() if label != IGNORE]
        self.lines([(name_of(names, label), color_of(label)) for label in present])

    def append(self, image: Pixels) -> None:
        """Add another image, (3, h, w) uint8, at the right, scaled to the same height."""
        other = as_image(image)
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
        """Write a tag at each box, inside the image and clear of other text where possible.

        Where it is not, the tag is dropped if another tag has shown its color.
        """
        taken = [*self.written]
        named: set[Color] = set()
        for box, tag, color in zip(boxes, tags, colors, strict=True):
            w, h = self._extent(tag)
            x1, y1, x2, y2 = self._pixels(box)
            corners = [(x1, y1 - h), (x1, y1), (x1, y2), (x2 - w, y1 - h), (x1, y2 - h)]
            candidates = [self._inside(x, y, w, h) for x, y in corners]
            free = [c for c in candidates if not any(_overlap(c, t) for t in taken)]
            if free or color not in named:
                chosen = [*free, candidates[0]][0]
                self._write(chosen, tag, color)
                taken.append(chosen)
                named.add(color)

    def lines(self, lines: Sequence[tuple[str, Color]]) -> None:
        """Write lines of text at the upper left, below earlier ones."""
        for text, color in lines:
            w, h = self._extent(text)
            area = (0, self.text_height, w, self.text_height + h)
            self._write(area, text, color)
            self.written.append(area)
            self.text_height += h

    def _pixels(self, box: Sequence[float]) -> list[float]:
        """The outermost pixels of a box, clipped to the image."""
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

    def _inside(self, x: float, y: float, w: float, h: float) -> Rectangle:
        x = max(0, min(x, self.image.width - w))
        y = max(0, min(y, self.image.height - h))
        return x, y, x + w, y + h

    def _write(self, area: Rectangle, text: str, color: Color) -> None:
        self.pen.rectangle([area[0], area[1], area[2] - 1, area[3] - 1], fill=color)
        red, green, blue = color
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        at = (area[0] + self.pad, area[1] + self.pad / 2)
        self.pen.text(at, text, fill="black" if bright else "white", font=self.font)


def name_of(names: Names, label: int) -> str:
    """The name of a class, on one line."""
    name = names[label] if label < len(names) else f"class {label}"
    return printable(" ".join(name.split()))


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw(
    image: Pixels | Image.Image,
    prediction: Mapping[str, Any],
    class_names: Names,
    *,
    threshold: Threshold = 0.5,
) -> Image.Image:
    """Draw the prediction of one head on a copy of the image.

    `image` is (3, h, w) uint8 or a Pillow image, of the size that the prediction refers to.
    Draws `boxes` with `labels`, `scores` and `masks` (scores of at least `threshold`, of all
    classes or of each), `box`, `probs`, `semantic`, `attributes` of boxes, and `reconstruction` (at
    the right of the image); ignores other keys. Small images are enlarged. The result can be drawn
    on again, for another head.
    """
    canvas = Canvas(image)
    for kind in prediction_kinds(prediction):
        if kind == "semantic":
            canvas.semantic_map(prediction["semantic"], class_names)
        elif kind == "attributes":
            _draw_attributes(canvas, prediction, class_names, threshold)
        elif kind == "objects":
            _draw_objects(canvas, prediction, class_names, threshold)
        elif kind == "box":
            probs = as_numpy(prediction["probs"])
            best = np.array([probs.argmax()])
            one = {"boxes": prediction["box"][None], "labels": best, "scores": probs[best]}
            _draw_objects(canvas, one, class_names, threshold=0.0)
        elif kind == "classes":
            _write_classes(canvas, prediction, class_names)
        elif kind == "reconstruction":
            canvas.append(prediction["reconstruction"])
    return canvas.finished()


def at_least(prediction: Mapping[str, Any], threshold: Threshold) -> np.ndarray:
    """(N,) bool: the objects with at least that score, or that of their class."""
    scores = as_numpy(prediction["scores"])
    if isinstance(threshold, (int, float)):
        return scores >= threshold
    return scores >= np.array(threshold, scores.dtype)[as_numpy(prediction["labels"])]


def draw_target(
    image: Pixels | Image.Image, target: Target, class_names: Mapping[str, Names]
) -> Image.Image:
    """Draw the labels of a training image, (3, h, w) without padding, on a copy of it.

    `class_names` has a list for each target key: `labels`, `class_id`, `semantic`, `attributes`.
    """
    canvas = Canvas(image)
    if "semantic" in target:
        canvas.semantic_map(_labeled_map(target), class_names.get("semantic", ()))
    if "class_id" in target:
        names = class_names.get("class_id", ())
        class_id = as_numpy(target["class_id"])
        shown = np.flatnonzero(class_id > 0).tolist() if class_id.ndim else [int(class_id)]
        shares = {k: float(class_id[k]) if class_id.ndim else 1.0 for k in shown}
        canvas.lines(
            [
                (name_of(names, k) + (f" {share:.0%}" if share < 1 else ""), color_of(k))
                for k, share in shares.items()
            ]
        )
    if (identity := int(target.get("identity", -1))) >= 0:
        canvas.lines([(f"identity {identity}", color_of(identity))])
    if "boxes" in target:
        names = class_names.get("labels", ())
        labels = target["labels"].tolist()
        crowds = target["iscrowd"].tolist() if "iscrowd" in target else [False] * len(labels)
        tags = [name_of(names, n) + " (crowd)" * c for n, c in zip(labels, crowds, strict=True)]
        if "attributes" in target:
            known = np.nan_to_num(as_numpy(target["attributes"]))
            words = [_certain(class_names.get("attributes", ()), row) for row in known]
            tags = [", ".join([tag, *more]) for tag, more in zip(tags, words, strict=True)]
        colors = [
            GRAY if crowd else color_of(label) for label, crowd in zip(labels, crowds, strict=True)
        ]
        masks = list(as_numpy(target["masks"])) if "masks" in target else ()
        canvas.objects(target["boxes"].tolist(), tags, colors, masks)
    return canvas.finished()


def _labeled_map(target: Target) -> np.ndarray:
    """The semantic map, with 255 (ignore) for classes that are not labeled in the image."""
    labels, labeled = as_numpy(target["semantic"]), target.get("semantic_labeled")
    if labeled is None:
        return labels
    known = np.ones(256, bool)
    known[: len(labeled)] = as_numpy(labeled)
    return np.where(known[labels], labels, np.uint8(IGNORE))


def draw_all(
    image: Pixels | Image.Image,
    predictions: Mapping[str, Mapping[str, Any]],
    class_names: Mapping[str, Names],
    *,
    threshold: float | Mapping[str, Threshold] = 0.5,
) -> Image.Image:
    """Draw the predictions of all heads on a copy of the image: areas first, text last.

    `threshold` is one for all heads, or a dict with one for each.
    """
    drawn = Canvas(image).finished()
    for head in sorted(predictions, key=lambda head: _layer(predictions[head])):
        low = threshold[head] if isinstance(threshold, Mapping) else threshold
        drawn = draw(drawn, predictions[head], class_names[head], threshold=low)
    return drawn


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a PNG or JPEG file as a whole; a link of that name is replaced, not written through."""
    with replacing(path, "wb") as file:
        image.save(file, "PNG" if path.suffix == ".png" else "JPEG", **options)


def contact_sheet(images: Sequence[Image.Image], columns: int, limit: int = CELL) -> Image.Image:
    """Arrange images in rows, each centered in a cell that fits the largest, at most `limit`
    pixels."""
    margin = 8
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
    canvas: Canvas, prediction: Mapping[str, Any], names: Names, threshold: Threshold
) -> None:
    shown = np.flatnonzero(at_least(prediction, threshold)).tolist()
    labels = prediction["labels"].tolist()
    scores = prediction["scores"].tolist()
    boxes = prediction["boxes"].tolist()
    masks = [decode(prediction["masks"][i]) for i in shown] if "masks" in prediction else ()
    tags = [f"{name_of(names, labels[i])} {scores[i]:.0%}" for i in shown]
    canvas.objects([boxes[i] for i in shown], tags, [color_of(labels[i]) for i in shown], masks)


def _draw_attributes(
    canvas: Canvas, prediction: Mapping[str, Any], names: Names, threshold: Threshold
) -> None:
    """Write the attributes of each box at its lower side."""
    corners, tags = [], []
    for i in np.flatnonzero(at_least(prediction, threshold)).tolist():
        x1, _, _, y2 = prediction["boxes"][i].tolist()
        corners.append([x1, y2, x1, y2])
        tags.append(printable(", ".join(describe(names, prediction["attributes"][i]))) or "-")
    canvas.tags(corners, tags, [GRAY] * len(tags))


def _certain(names: Names, answers: np.ndarray) -> list[str]:
    """The names of the attributes that a row of zeros and ones has."""
    described = [printable(text) for text in describe(names, answers)]
    return [text.removesuffix(" 100%") for text in described if text.endswith(" 100%")]


def _layer(prediction: Mapping[str, Any]) -> int:
    """The position in the drawing order: areas first, the widening reconstruction last."""
    kinds = prediction_kinds(prediction)
    return PREDICTION_KINDS.index(kinds[0]) if kinds else len(PREDICTION_KINDS)


def _write_classes(canvas: Canvas, prediction: Mapping[str, Any], names: Names) -> None:
    """Write the most probable classes; of a multi-label head all that are present."""
    probs = as_numpy(prediction["probs"])
    if "labels" in prediction:
        shown = prediction["labels"].tolist()
    else:
        ranked = np.argsort(-probs, kind="stable")[:3].tolist()
        shown = [label for i, label in enumerate(ranked) if i == 0 or probs[label] >= 0.05]
    canvas.lines([(f"{name_of(names, i)} {float(probs[i]):.0%}", color_of(i)) for i in shown])
