"""What all predictors share, whatever computes their outputs. Torch is not imported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from visionkit.engine.inputs import NO_NAME
from visionkit.engine.prediction import Prediction, checked_threshold
from visionkit.engine.views import predict_views, try_views
from visionkit.errors import (
    ArgumentError,
    ConfigError,
    listed,
    plural,
    printable,
    shorten,
    unknown,
)
from visionkit.metrics.thresholds import PRECISIONS, Thresholds
from visionkit.ops.views import Tta, View, Views
from visionkit.types import Classes
from visionkit.visualization.draw import Threshold

if TYPE_CHECKING:
    from torch import Tensor

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


class BasePredictor:
    """A model with everything needed to use it on images: `Predictor`, or of an exported file
    `OnnxPredictor`; see `visionkit.load`.

    heads: the names of the heads that predict.
    classes: each head's class list.
    draw_threshold: the score from which objects are drawn, of all heads or of each.
    value_range: of the pixels of images of more than 8 bits.
    views: which views of an image it predicts from; None: the image itself alone.
    """

    heads: list[str]
    classes: dict[str, Classes]
    draw_threshold: float | dict[str, Threshold]
    value_range: tuple[float, float] | None
    views: Views | None = None

    @property
    def thresholds(self) -> Mapping[str, Thresholds]:
        """What the validation found, by head."""
        raise NotImplementedError

    def _default_threshold(self) -> dict[str, Threshold]:
        """The score from which the objects of each head of the model are drawn by default."""
        raise NotImplementedError

    def base_of(self, head: str) -> str | None:
        """The head whose boxes that one describes."""
        raise NotImplementedError

    def has_embedding(self, head: str) -> bool:
        """Whether that head finds embeddings, for `search`."""
        raise NotImplementedError

    def read(self, image: ImageInput) -> Any:
        """The image as (3, h, w) uint8, as `predict` reads it."""
        raise NotImplementedError

    def infer(
        self,
        images: Sequence[Any],
        heads: Sequence[str] | None = None,
        *,
        scale: float = 1.0,
        views: bool = False,
    ) -> list[dict[str, dict[str, Any]]]:
        """The results of each head, or of these, for images that `read` returned, which go through
        it together at that factor of the image size. With `views`, what `merge` takes."""
        raise NotImplementedError

    def merge(
        self, head: str, found: Sequence[dict[str, Any]], views: Sequence[View]
    ) -> dict[str, Any]:
        """The result of a head for an image, of those for its views."""
        raise NotImplementedError

    @contextmanager
    def divided(self, most: int) -> Generator[tuple[int, Callable[[], None] | None], None, None]:
        """Within, up to `most` threads predict at the same time: yields how many should, and what
        each calls at its start."""
        raise NotImplementedError
        yield

    def write_latent_images(self, out: Path) -> list[Path]:
        """Write images of the latent space of each VAE, if that can be done; returns the files."""
        return []

    def use_threshold(self, wanted: float | str) -> None:
        """Which objects `Prediction.draw` and `Prediction.above` keep by default.

        `wanted` is a score from 0 to 1; "best", for each class the score of the best F1 that the
        validation found, as `load` sets it; or "p=0.9", for each class the lowest score with that
        precision in the validation, 0.50 to 0.99. ArgumentError if nothing was found.
        """
        if not isinstance(wanted, str):
            self.draw_threshold = checked_threshold(wanted)
            return
        known = self.thresholds
        if not known:
            raise ArgumentError(
                f"threshold: got {wanted!r}, but the model has no thresholds, since no validation "
                "of it found any; give a number from 0 to 1"
            )
        self.draw_threshold = self._default_threshold()
        if wanted != "best":
            percent = percent_of(wanted)
            for name in self.draw_threshold:
                base = self.base_of(name) or name
                if base in known:
                    names = self.classes[base].names
                    found = known[base].at_precision(percent, names)
                    lowest = tuple(math.inf if one is None else one for one in found)
                    self.draw_threshold[name] = lowest if base == name else min(lowest)
        self._tell_heads()

    def describe_thresholds(self) -> list[str]:
        """A line for each head with the scores from which objects are drawn."""
        if not isinstance(self.draw_threshold, dict):
            return [f"score at least {self.draw_threshold:g}"]
        lines = []
        for name in self.heads:
            lowest = self.draw_threshold[name]
            if isinstance(lowest, tuple):
                pairs = zip(self.classes[name].names, lowest, strict=True)
                listing = [f"{c} {low:.3f}" if low < math.inf else f"{c} none" for c, low in pairs]
                lines.append(f"{name}: {listed(listing)}")
        return lines

    def present_from(self, head: str, default: float) -> Threshold:
        """The probability from which a class of a multi-label head counts as present: that from
        which it is drawn where a validation has found one, else the default of the head."""
        if head not in self.thresholds:
            return default
        given = self.draw_threshold
        return given[head] if isinstance(given, dict) else given

    def _tell_heads(self) -> None:
        """Called after each change of `draw_threshold`."""

    def _titled(self, first: str, described: Iterable[tuple[str, str]]) -> str:
        """A `repr`: each head with its description and its classes, on one line each."""
        lines = [first]
        for head, text in described:
            names = self.classes[head].names
            of = f", {plural(len(names), 'class', 'classes')}: {listed(names)}" if names else ""
            lines.append(printable(f"{head}: {text}{of}"))
        return "\n  ".join(lines)

    def predict(self, image: ImageInput) -> Prediction:
        """What the model finds in one image.

        `image` is a file, a PIL image (turned upright by its EXIF orientation, as a file is), an
        array (h, w) or (h, w, 3), or a tensor (h, w) or (3, h, w), with gray or RGB pixels of 8 or
        16 bits; `data.value_range` of the config holds. OpenCV's arrays are BGR: give
        `image[..., ::-1]`.

        Raises DataError if an image cannot be read or has values without a fixed meaning,
        ArgumentError for anything else, also for 4 channels: RGBA and CMYK look alike. The message
        says how to convert it.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[ImageInput]) -> list[Prediction]:
        """What the model finds in several images, which go through it together.

        Smaller images are padded to the largest, so that predictions may differ from those of
        `predict` a little. All heads of one image size share the features of the backbone.
        """
        if isinstance(images, (str, Path, Image.Image)) or not isinstance(images, Iterable):
            raise ArgumentError(f"predict_batch: got {type(images).__name__}; expected a list")
        images = [*images]
        pixels = [self.read(image) for image in images]
        if not pixels:
            raise ArgumentError("predict_batch: got no images; expected at least one")
        found = self.predict_pixels(pixels)
        for prediction, image in zip(found, images, strict=True):
            prediction.path = Path(image) if isinstance(image, (str, Path)) else None
        return found

    def predict_pixels(self, pixels: Sequence[Any]) -> list[Prediction]:
        """`predict_batch` for images that `read` returned."""
        results = predict_views(self, pixels) if self.views else self.infer(pixels)
        return [
            Prediction(result, self.classes, image, self.draw_threshold)
            for result, image in zip(results, pixels, strict=True)
        ]

    def use_views(
        self, tta: Tta = None, tiles: int | None = None, overlap: float | None = None
    ) -> None:
        """Predict from several views of each image: the image itself, and

        tta: `flip`, mirrored, and numbers, at these factors of the image size; a list, or one
            string such as "flip,0.83,1.2". All combinations are views.
        tiles: also tiles of so many pixels of the image, at least 64, that overlap by the share
            `overlap` (0.2 by default, below 0.9) of their side.

        Without any, the image alone. ArgumentError for wrong values, and for a head whose
        predictions cannot be merged.
        """
        self.set_views(Views.of(tta, tiles, overlap))

    def set_views(self, views: Views) -> None:
        """As `use_views`."""
        if not views.is_plain:
            try_views(self, views)
        self.views = None if views.is_plain else views


def percent_of(text: str) -> int:
    """90 for "p=0.9"; ArgumentError for anything else."""
    match = re.fullmatch(r"p=(0\.\d\d?)", text)
    percent = round(float(match[1]) * 100) if match else 0
    if percent not in PRECISIONS:
        raise ArgumentError(
            f"threshold: got {text!r}; expected a number from 0 to 1, best, or p= and a precision "
            "from 0.50 to 0.99, such as p=0.9"
        )
    return percent


def file_of(image: Any) -> str | Path | None:
    """The image, if it is the name of a file; ArgumentError for an empty one."""
    if isinstance(image, str) and not image:
        raise ArgumentError(NO_NAME)
    return image if isinstance(image, (str, Path)) else None


def chosen(heads: Sequence[str] | None, known: list[str]) -> list[str]:
    """The heads to use, in the order of the model."""
    if heads is None:
        return known
    if isinstance(heads, str) or not isinstance(heads, Iterable) or not [*heads]:
        one = f"expected a list of one or more of {', '.join(known)}"
        raise ArgumentError(f"heads: got {shorten(repr(heads))}; {one}")
    for head in heads:
        if head not in known:
            raise ConfigError(unknown(head, known, f"heads: the model has no head {head!r}"))
    return [head for head in known if head in heads]
