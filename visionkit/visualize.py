"""Pictures with predictions or labels drawn over them, by Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from pycocotools.mask import decode
from torch import Tensor

from visionkit.attribute_names import describe
from visionkit.canvas import GRAY, Canvas, Names, color_of, name_of
from visionkit.data.semantic_maps import IGNORE
from visionkit.types import Target


def draw(
    image: Tensor | Image.Image,
    prediction: Mapping[str, Any],
    class_names: Names,
    *,
    threshold: float = 0.5,
) -> Image.Image:
    """A copy of the picture with a head's prediction drawn over it.

    `image` is (3, h, w) uint8 or a Pillow picture, of the size that the prediction refers to.
    Understood are `boxes`, `labels`, `scores` and perhaps `masks` (those with a score of at least
    `threshold`), `box`, `probs`, `semantic`, `attributes` of boxes, and `reconstruction`, which
    comes at the right of the picture; other keys are passed over. Small pictures come out
    enlarged. A picture that comes from `draw` may be drawn on again, for another head.
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
    """A copy of a training picture, (3, h, w) without padding, with its labels drawn over it.

    `class_names` are the names of the target's objects or, where it has none, of the whole
    picture's class; or a dict with a list for each target key: `labels`, `class_id`, `semantic`.
    """
    if not isinstance(class_names, Mapping):
        class_names = {"labels" if "boxes" in target else "class_id": class_names}
    canvas = Canvas(image)
    if "semantic" in target:
        canvas.class_map(_labelled_map(target), class_names.get("semantic", ()))
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


def _labelled_map(target: Target) -> Tensor:
    """The class map, with 255 (ignore) where it shows a class that is not labelled here."""
    labels, labelled = target["semantic"], target.get("semantic_labelled")
    if labelled is None:
        return labels
    known = torch.ones(256, dtype=torch.bool)
    known[: len(labelled)] = labelled.cpu()
    return labels.where(known.to(labels.device)[labels.long()], IGNORE)


def draw_all(
    image: Tensor | Image.Image,
    predictions: Mapping[str, Mapping[str, Any]],
    class_names: Mapping[str, Names],
    *,
    threshold: float | Mapping[str, float] = 0.5,
) -> Image.Image:
    """The picture with the predictions of all heads: areas at the bottom, words at the top.

    `threshold` is one for all heads, or has one for each.
    """
    picture: Any = image
    for head in sorted(predictions, key=lambda head: _layer(predictions[head])):
        low = threshold[head] if isinstance(threshold, Mapping) else threshold
        picture = draw(picture, predictions[head], class_names[head], threshold=low)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """The pictures side by side in rows, each centered in a cell that fits the largest."""
    margin, limit = 8, 800
    small = [picture.copy() for picture in pictures]
    for picture in small:
        picture.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    columns = max(1, min(columns, len(small)))
    rows = -(-len(small) // columns)
    cell_w = max((picture.width for picture in small), default=0) + margin
    cell_h = max((picture.height for picture in small), default=0) + margin
    sheet = Image.new("RGB", (columns * cell_w + margin, rows * cell_h + margin), "white")
    for i, picture in enumerate(small):
        left = margin + i % columns * cell_w + (cell_w - margin - picture.width) // 2
        top = margin + i // columns * cell_h + (cell_h - margin - picture.height) // 2
        sheet.paste(picture, (left, top))
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
    """The order of drawing: what covers most comes first, what widens the picture last."""
    order = ("semantic", "labels", "box", "attributes", "probs", "reconstruction")
    return next((i for i, key in enumerate(order) if key in prediction), len(order))


def _write_classes(canvas: Canvas, prediction: Mapping[str, Any], names: Names) -> None:
    """The most probable classes; with several labels per picture, all that are present."""
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
