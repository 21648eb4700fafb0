"""What a model finds in one image: `Prediction`, its objects, and its records for JSON files."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.mask import decode

from visionkit.errors import (
    ArgumentError,
    ConfigError,
    DivergedError,
    listed,
    plural,
    printable,
    unknown,
)
from visionkit.metrics.coco.arrays import detections_of
from visionkit.types import Classes, as_numpy, is_tensor, prediction_kinds
from visionkit.visualization.draw import Pixels as Values
from visionkit.visualization.draw import at_least, draw_all, name_of

TOP = 5  # classes in a record, and in a `repr`
SHOWN_SCORES = 4  # of a class, in a `repr`
OF_EACH_OBJECT = ("boxes", "scores", "labels", "masks", "attributes")
# What `boxes`, `scores`, ... are of: the one head of the first of these that a model has.
TIERS = ({"objects"}, {"box", "classes", "label", "labels"}, {"attributes"})


@dataclass(frozen=True, repr=False)
class PredictedObject:
    """One object of a `Prediction`, in plain numbers; or a class of the whole image.

    score: 0 to 1.
    box: (x1, y1, x2, y2) in the image's pixels; None for a class of the whole image.
    label: the index in the class list; None if only `attributes` are known.
    name: the name of that class.
    attributes: the probability, 0 to 1, of each attribute by name; empty without such a head.
    rle: the mask in COCO's compressed run-length code; None without masks.
    """

    score: float
    box: tuple[float, float, float, float] | None = None
    label: int | None = None
    name: str | None = None
    attributes: dict[str, float] = field(default_factory=dict)
    rle: dict[str, Any] | None = None

    def __repr__(self) -> str:
        parts = [f"score={self.score:.3f}"]
        if self.box is not None:
            parts.append(f"box=({', '.join(f'{side:.1f}' for side in self.box)})")
        parts += [f"{name}={value:.2f}" for name, value in self.attributes.items()]
        parts += ["with a mask"] if self.rle is not None else []
        return f"PredictedObject({', '.join([repr(self.name), *parts])})"

    @property
    def mask(self) -> np.ndarray | None:
        """(h, w) bool, of the image's size; None without masks."""
        return None if self.rle is None else decode(self.rle).astype(bool)


@dataclass(eq=False, repr=False)
class Prediction:
    """The predictions of all heads for one image.

    `boxes`, `scores`, `labels`, `names`, `masks`, `len()` and iteration are of the head that finds
    objects; in a model without one, of the head that names the class of the image. If several heads
    do, they raise AttributeError: choose one with `head(name)`. All other properties are of the
    one head that has such a result. Boxes, masks and maps are in the pixels of `image`.

    heads: each head's results by name (see `visionkit.types.HeadPrediction`): tensors on the CPU,
        of an exported model numpy arrays. `image` and the properties are the same kind.
    classes: each head's class list.
    image: (3, h, w) uint8 RGB, before it was resized for the network.
    draw_threshold: the default score from which `draw` and `above` keep objects, by head; of all
        its classes, or of each.
    path: the file that the image is from; None for pixels.
    """

    heads: dict[str, dict[str, Any]]
    classes: dict[str, Classes]
    image: Values
    draw_threshold: float | Mapping[str, float | tuple[float, ...]] = 0.5
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def boxes(self) -> Values:
        """(N, 4) float32, x1, y1, x2, y2 in pixels; (1, 4) for localization."""
        head = self._main()
        key = "boxes" if "boxes" in self.heads[head] else "box"
        return self._value(head, key).reshape(-1, 4)

    @property
    def scores(self) -> Values:
        """(N,) float32 from 0 to 1, descending."""
        head = self._main()
        result = self.heads[head]
        if "scores" in result or "score" in result:
            return result["scores" if "scores" in result else "score"].reshape(-1)
        return self._value(head, "probs")[self.labels]

    @property
    def labels(self) -> Values:
        """(N,) int64, indices in the class list of the head."""
        head = self._main()
        result = self.heads[head]
        if "probs" in result and not {"label", "labels"} & result.keys():
            return result["probs"].argmax().reshape(1)
        return self._value(head, "label" if "label" in result else "labels").reshape(-1)

    @property
    def names(self) -> list[str]:
        """The class name of each label."""
        names = self.classes[self._main()].names
        return [names[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray:
        """(N, h, w) bool, made on each access; `heads[...]["masks"]` has them as run lengths."""
        full = [decode(rle).astype(bool) for rle in self._value(self._main(), "masks")]
        return np.stack(full) if full else np.zeros((0, *self.size), bool)

    @property
    def attributes(self) -> Values:
        """(N, A) float32 from 0 to 1: of each object, the probability of each attribute."""
        return self._only("attributes")

    @property
    def probs(self) -> Values:
        """(K,) float32 from 0 to 1: the class probabilities of the whole image."""
        return self._only("probs")

    @property
    def semantic(self) -> Values:
        """(h, w) uint8: the class of each pixel."""
        return self._only("semantic")

    @property
    def embedding(self) -> Values:
        """(D,) float32 of length 1."""
        return self._only("embedding")

    @property
    def reconstruction(self) -> Values:
        """(3, h', w') uint8, at the network's size."""
        return self._only("reconstruction")

    def head(self, name: str) -> Prediction:
        """The same with one head alone, and the attributes of its objects. ConfigError if the
        model does not have it."""
        if name not in self.heads:
            raise ConfigError(unknown(name, self.heads, f"head: unknown head {name!r}"))
        kept = {name, *self._describing(name)}
        return replace(self, heads={h: result for h, result in self.heads.items() if h in kept})

    def above(self, threshold: float | Values | None = None) -> Prediction:
        """The same with the objects that have at least that score, 0 to 1; by default those that
        `draw` shows. Heads that find no objects are unchanged."""
        given = _given(threshold)
        heads = dict(self.heads)
        for head, result in self.heads.items():
            if "boxes" in result:
                keep = at_least(result, self._threshold(head) if given is None else given)
                rows = np.flatnonzero(keep).tolist()
                heads[head] = {
                    key: value
                    if key not in OF_EACH_OBJECT
                    else [value[row] for row in rows]
                    if isinstance(value, (list, tuple))
                    else value[rows]
                    for key, value in result.items()
                }
        return replace(self, heads=heads)

    def __len__(self) -> int:
        """The number of objects, or of classes of the whole image."""
        return len(self.scores)

    def __iter__(self) -> Iterator[PredictedObject]:
        head = self._main()
        result, scores = self.heads[head], self.scores.tolist()
        count = len(scores)
        boxes: list[Any] = [None] * count
        if "boxes" in result or "box" in result:
            boxes = [tuple(box) for box in self.boxes.tolist()]
        labels: list[Any] = [None] * count
        names: list[Any] = [None] * count
        if "attributes" not in prediction_kinds(result):
            labels, names = self.labels.tolist(), self.names
        attributes = self._attributes_of(head, count)
        masks = result.get("masks", [None] * count)
        columns = scores, boxes, labels, names, attributes, masks
        for values in zip(*columns, strict=True):
            yield PredictedObject(*values)

    def draw(self, *, threshold: float | Values | None = None) -> Image.Image:
        """The image with the results of all heads, and objects of at least that score, 0 to 1; by
        default that of their head. Small images are enlarged."""
        given = _given(threshold)
        names = {head: self.classes[head].names for head in self.heads}
        lowest = self.draw_threshold if given is None else given
        return draw_all(self.image, self.heads, names, threshold=lowest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `file_name`, `height`, `width`, and `predictions`, the records of
        `predictions.json` (bbox is [x, y, width, height]; masks are run lengths), with the vector
        of an `embedding`. Semantic maps and reconstructions are not included.

        Raises DivergedError for numbers that are not finite.
        """
        records = to_records(self)
        for record in records:
            if "embedding" in self.heads[record["head"]]:
                record["embedding"] = self.heads[record["head"]]["embedding"].tolist()
        height, width = self.size
        name = None if self.path is None else str(self.path)
        return {"file_name": name, "height": height, "width": width, "predictions": records}

    def to_supervision(self) -> Any:
        """The objects as `supervision.Detections`: `xyxy`, `confidence`, `class_id`, `mask` if the
        head has masks, and `data["class_name"]`. ImportError without that package."""
        try:
            from supervision import Detections
        except ImportError as error:
            raise ImportError(
                f"to_supervision() needs the package supervision, which is not part of an extra of "
                f"visionkit: install it for {sys.executable} ({error})"
            ) from error
        boxes, head = self.boxes, self.heads[self._main()]
        described = "attributes" in prediction_kinds(head)
        return Detections(
            xyxy=as_numpy(boxes).astype(np.float32),
            mask=self.masks if "masks" in head else None,
            confidence=as_numpy(self.scores).astype(np.float32),
            class_id=None if described else as_numpy(self.labels).astype(int),
            data={} if described else {"class_name": np.array(self.names, dtype=str)},
        )

    def __repr__(self) -> str:
        """A line for the image and one for each head: what is found, with scores."""
        height, width = self.size
        of = f" of {printable(self.path)}" if self.path is not None else ""
        lines = [f"{head}: {self._summary(head)}" for head in self.heads]
        return "\n  ".join([f"Prediction{of} ({width}x{height} pixels)", *lines])

    def _summary(self, head: str) -> str:
        result = self.heads[head]
        names = self.classes[head].names if head in self.classes else ()
        kinds = prediction_kinds(result)
        parts = []
        if "attributes" in kinds:
            parts.append(
                f"{printable(listed(names, TOP))} of {plural(len(result['attributes']), 'object')}"
            )
        if "objects" in kinds:
            parts.append(_counted(result, names, self._threshold(head)))
        if "box" in kinds or "classes" in kinds:
            one = Prediction({head: result}, self.classes, self.image)
            pairs = zip(one.labels.tolist(), one.scores.tolist(), strict=True)
            parts.append(listed([f"{name_of(names, k)} {score:.2f}" for k, score in pairs], TOP))
        if "box" in kinds:
            parts.append(f"box {[round(side) for side in result['box'].tolist()]}")
        if "semantic" in kinds:
            parts.append(listed(_shares(result["semantic"], names), TOP))
        for key in ("embedding", "reconstruction"):
            if key in kinds:
                parts.append(f"{key} {tuple(result[key].shape)}")
        if not kinds:  # a custom head
            parts += [f"{key} {tuple(getattr(v, 'shape', ()))}" for key, v in result.items()]
        return "; ".join(parts)

    def _main(self) -> str:
        """The head that `boxes`, `scores`, `labels` and `masks` are of."""
        has = {head: {*result, *prediction_kinds(result)} for head, result in self.heads.items()}
        for tier in TIERS:
            found = [head for head in self.heads if has[head] & tier]
            if len(found) == 1:
                return found[0]
            if found:
                raise self._ambiguous("objects" if tier == TIERS[0] else "results", found)
        have = ", ".join(self.heads)
        raise AttributeError(f"no head finds objects or classes; use .heads, which has {have}")

    def _ambiguous(self, what: str, heads: list[str]) -> AttributeError:
        one = f"choose one, for example with .head({heads[0]!r})"
        return AttributeError(f"several heads have {what}: {', '.join(heads)}; {one}")

    def _value(self, head: str, key: str) -> Any:
        if key not in self.heads[head]:
            have = ", ".join(self.heads[head])
            raise AttributeError(f"head {head!r} has no {key!r}; it has {have}")
        return self.heads[head][key]

    def _only(self, key: str) -> Any:
        """That result of the one head that has it."""
        found = [head for head, result in self.heads.items() if key in result]
        if len(found) > 1:
            raise self._ambiguous(repr(key), found)
        if not found:
            have = ", ".join(self.heads)
            raise AttributeError(f"no head has {key!r}; use .heads, which has {have}")
        return self.heads[found[0]][key]

    def _threshold(self, head: str) -> float | tuple[float, ...]:
        given = self.draw_threshold
        return given if isinstance(given, (int, float)) else given[head]

    def _describing(self, head: str) -> list[str]:
        """The heads with attributes of the objects of that one: they have the same boxes."""
        boxes = self.heads[head].get("boxes")
        return [
            name
            for name, result in self.heads.items()
            if boxes is not None
            and "attributes" in result
            and np.array_equal(as_numpy(result["boxes"]), as_numpy(boxes))
        ]

    def _attributes_of(self, head: str, count: int) -> list[dict[str, float]]:
        """The attributes of each object by name."""
        found: list[dict[str, float]] = [{} for _ in range(count)]
        for name in self._describing(head):
            rows = self.heads[name]["attributes"].tolist()
            for one, row in zip(found, rows, strict=True):
                one.update(zip(self.classes[name].names, row, strict=True))
        return found


def _given(threshold: Any) -> float | None:
    return None if threshold is None else checked_threshold(threshold)


def checked_threshold(threshold: Any) -> float:
    """ArgumentError for what is not a number from 0 to 1."""
    given = threshold
    if is_tensor(threshold) or isinstance(threshold, np.ndarray):
        given = threshold.item() if as_numpy(threshold).size == 1 else threshold
    if isinstance(given, Real) and not isinstance(given, bool) and 0 <= float(given) <= 1:
        return float(given)
    raise ArgumentError(f"threshold: got {threshold!r}; expected None or a number, 0 to 1")


def _counted(
    result: Mapping[str, Any], names: tuple[str, ...], threshold: float | tuple[float, ...]
) -> str:
    """`3 car (0.98, 0.91, 0.55), 1 dog (0.87); 8 below 0.5`, the most frequent class first."""
    scores: dict[int, list[float]] = defaultdict(list)
    below = 0
    columns = [result["labels"].tolist(), result["scores"].tolist()]
    for label, score, shown in zip(*columns, at_least(result, threshold).tolist(), strict=True):
        if shown:
            scores[label].append(score)
        else:
            below += 1
    counts = [
        f"{len(found)} {name_of(names, label)} "
        f"({', '.join(f'{score:.2f}' for score in found[:SHOWN_SCORES])}"
        f"{', ...' if len(found) > SHOWN_SCORES else ''})"
        for label, found in sorted(scores.items(), key=lambda pair: -len(pair[1]))
    ]
    text = listed(counts, 2 * TOP) if counts else "no objects"
    text += " with masks" if "masks" in result and counts else ""
    lowest = f"{threshold:g}" if isinstance(threshold, (int, float)) else "their thresholds"
    return f"{text}; {below} below {lowest}" if below else text


def _shares(semantic: Values, names: tuple[str, ...]) -> list[str]:
    """`road 60%`, the share of the pixels of each class that occurs, the largest first."""
    labels, counts = np.unique(as_numpy(semantic), return_counts=True)
    pairs = sorted(zip(counts.tolist(), labels.tolist(), strict=True), reverse=True)
    return [f"{name_of(names, label)} {count / counts.sum():.0%}" for count, label in pairs]


def to_records(prediction: Prediction, image_id: int | None = None) -> list[dict[str, Any]]:
    """The predictions of all heads for one image as plain records.

    Detections are COCO results: bbox xywh in the image's pixels, segmentation as RLE. Each record
    names its head, the image if an id is given, and, where it has one, its class. Raises
    DivergedError for numbers that are not finite.
    """
    records = []
    which = prediction.path if image_id is None else image_id
    for head, result in prediction.heads.items():
        for name, value in result.items():
            numeric = is_tensor(value) or isinstance(value, (np.ndarray, np.generic))
            if numeric and not np.isfinite(as_numpy(value)).all():
                raise DivergedError(f"{head}: '{name}' of image {which} is not finite")
        classes = prediction.classes[head]
        names = dict(zip(classes.ids, classes.names, strict=True))
        for found in _records_of(result, image_id or 0, classes):
            record = {"head": head, **found}
            if image_id is None:
                del record["image_id"]
            if "category_id" in record:
                record["category_name"] = names[record["category_id"]]
            records.append(record)
    return records


def _records_of(
    result: dict[str, Any], image_id: int, classes: Classes
) -> Iterable[dict[str, Any]]:
    kinds = prediction_kinds(result)
    if "attributes" in kinds:
        return _attribute_records(result, image_id, classes)
    if "objects" in kinds:
        return detections_of(result, image_id, classes).records()
    record: dict[str, Any] = {"image_id": image_id}
    if "classes" in kinds or "box" in kinds:
        probs = as_numpy(result["probs"])
        labels = np.argsort(-probs, kind="stable")
        scores = probs[labels]
        record["category_id"] = classes.ids[int(labels[0])]
        record["score"] = float(scores[0])
        top = zip(labels[:TOP].tolist(), scores[:TOP].tolist(), strict=True)
        record["top"] = {classes.names[label]: score for label, score in top}
        if "labels" in result:  # of a multi-label head
            record["present"] = [classes.names[label] for label in as_numpy(result["labels"])]
    if "box" in kinds:
        record["bbox"] = _xywh(result["box"])
    if "semantic" in kinds:
        labels, counts = np.unique(as_numpy(result["semantic"]), return_counts=True)
        pixels = zip(labels.tolist(), counts.tolist(), strict=True)
        record["pixels"] = {classes.names[label]: count for label, count in pixels}
    if "kl" in result:
        record |= {"kl": float(result["kl"]), "latent_mean": result["latent_mean"].tolist()}
    if not kinds:  # a custom head
        record |= {k: v.tolist() if hasattr(v, "tolist") else v for k, v in result.items()}
    return [record]


def _attribute_records(
    result: dict[str, Any], image_id: int, classes: Classes
) -> list[dict[str, Any]]:
    """The boxes of the head that found them, each with the probability of every attribute."""
    objects = zip(result["boxes"], result["scores"].tolist(), result["attributes"], strict=True)
    return [
        {
            "image_id": image_id,
            "bbox": _xywh(box),
            "score": score,
            "attributes": dict(zip(classes.names, probs.tolist(), strict=True)),
        }
        for box, score, probs in objects
    ]


def _xywh(box: Values) -> list[float]:
    x1, y1, x2, y2 = as_numpy(box).astype(np.float64).tolist()
    return [x1, y1, x2 - x1, y2 - y1]
