"""Predictions with a trained model, in the pixels of the images: `load`, `predict`, many files."""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionkit.config import Config, load_config
from visionkit.data.image_io import read_image, to_pixels
from visionkit.data.loading.source import collate
from visionkit.data.sample import Sample
from visionkit.data.transforms import ImageSize, fit
from visionkit.engine.inputs import NO_NAME, check_exist, find_images
from visionkit.engine.prediction import Prediction, checked_threshold
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DataError,
    check_counts,
    check_flags,
    listed,
    plural,
    printable,
    shorten,
)
from visionkit.metrics.thresholds import PRECISIONS, saved_thresholds
from visionkit.models.build import build_model, build_published
from visionkit.models.model import VisionModel
from visionkit.models.published import is_model_name
from visionkit.ops.inference import cast_weights, fold_norms, pick_device, pick_precision
from visionkit.runs import checkpoint
from visionkit.runs.checkpoint import load_weights
from visionkit.types import Classes

log = logging.getLogger("visionkit")

BATCH = 4  # images a thread predicts at once; more is not faster on a CPU
MAX_THREADS = 4  # each holds a batch of images and their feature maps
Kept = TypeVar("Kept")
Threshold: TypeAlias = float | tuple[float, ...]  # of all classes, or of each
ImageInput: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]


class Predictor:
    """A trained model with everything needed to use it on images; see `load`.

    It is prepared for the device and the precision of its config: weights are rounded and, with
    `fold`, batch norms become part of convolutions. It cannot be trained any more.
    """

    def __init__(
        self,
        model: VisionModel,
        config: Config,
        classes: dict[str, Classes],
        *,
        heads: Sequence[str] | None = None,
        fold: bool = True,
    ) -> None:
        self.heads = _chosen(heads, [*config.heads])
        self._image_size = {h: s.image_size for s in config.data.values() for h in s.feeds}
        used = [source for source in config.data.values() if {*source.feeds} & {*self.heads}]
        ranges = {source.value_range for source in used if source.value_range is not None}
        if len(ranges) > 1:
            text = f"data.*.value_range: the heads have different ones: {listed(ranges)}"
            raise ConfigError(f"{text}; choose heads of one of them")
        self.value_range = next(iter(ranges), None)
        self.config, self.classes = config, classes
        self.device = pick_device(config.train.device)
        self.dtype = pick_precision(config.train.precision, self.device)
        model = model.to(self.device).eval()
        if fold:
            fold_norms(model)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        cast_weights(model, self.dtype)
        self.model = model
        self.draw_threshold: float | dict[str, Threshold] = model.draw_threshold
        self._tell_heads()

    def use_threshold(self, wanted: float | str) -> None:
        """Which objects `Prediction.draw` and `Prediction.above` keep by default.

        `wanted` is a score from 0 to 1; "best", for each class the score of the best F1 that the
        validation found, as `load` sets it; or "p=0.9", for each class the lowest score with that
        precision in the validation, 0.50 to 0.99. ArgumentError if nothing was found.
        """
        if not isinstance(wanted, str):
            self.draw_threshold = checked_threshold(wanted)
            return
        known = self.model.thresholds
        if not known:
            raise ArgumentError(
                f"threshold: got {wanted!r}, but the model has no thresholds, since no validation "
                "of it found any; give a number from 0 to 1"
            )
        self.draw_threshold = self.model.draw_threshold
        if wanted != "best":
            percent = percent_of(wanted)
            for name in self.draw_threshold:
                base = self.model.head(name).boxes_from or name
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

    def _tell_heads(self) -> None:
        """A multi-label head names the classes from the same thresholds on."""
        for name in self.heads:
            head = self.model.head(name)
            if hasattr(head, "class_thresholds"):
                given = self.draw_threshold
                lowest = given[name] if isinstance(given, dict) else given
                known = name in self.model.thresholds
                setattr(head, "class_thresholds", lowest if known else None)  # noqa: B010

    def __repr__(self) -> str:
        """The backbone, and each head with its classes, on one line each."""
        where = f"{self.device}, {str(self.dtype).removeprefix('torch.')}"
        lines = [f"Predictor of {self.config.name!r} ({where})", self.config.architecture]
        for head in self.heads:
            names = self.classes[head].names
            of = f", {plural(len(names), 'class', 'classes')}: {listed(names)}" if names else ""
            kind = type(self.model.heads[head]).__name__
            lines.append(printable(f"{head}: {kind}, image size {self._image_size[head]}{of}"))
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

    def read(self, image: ImageInput) -> Tensor:
        """The image as (3, h, w) uint8, as `predict` reads it."""
        if isinstance(image, str) and not image:
            raise ArgumentError(NO_NAME)
        if isinstance(image, (str, Path)):
            return read_image(image, value_range=self.value_range)
        return to_pixels(image, self.value_range)

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[ImageInput]) -> list[Prediction]:
        """What the model finds in several images, which go through it together.

        Smaller images are padded to the largest, so that predictions may differ from those of
        `predict` a little. All heads of one image size share the features of the backbone.
        """
        if isinstance(images, (str, Path, Image.Image)) or not isinstance(images, Iterable):
            raise ArgumentError(f"predict_batch: got {type(images).__name__}; expected a list")
        images = [*images]
        tensors = [self.read(image) for image in images]
        if not tensors:
            raise ArgumentError("predict_batch: got no images; expected at least one")
        results: list[dict[str, dict[str, Any]]] = [{} for _ in tensors]
        for size in dict.fromkeys(self._image_size[head] for head in self.heads):
            heads = [head for head in self.heads if self._image_size[head] == size]
            batch = collate([_item(tensor, i, size) for i, tensor in enumerate(tensors)], size)
            batch = batch.to(self.device)
            predictions, _ = self.model.infer(batch, heads, self.dtype)
            for head in heads:
                for result, prediction in zip(results, predictions[head], strict=True):
                    result[head] = {
                        key: value.cpu() if isinstance(value, Tensor) else value
                        for key, value in prediction.items()
                    }
        paths = [Path(image) if isinstance(image, (str, Path)) else None for image in images]
        return [
            Prediction(result, self.classes, tensor, self.draw_threshold, path)
            for result, tensor, path in zip(results, tensors, paths, strict=True)
        ]


def load(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    fold: bool = True,
    allow_plugins: bool = False,
) -> Predictor:
    """Load the trained model of a run directory (its best checkpoint), of a checkpoint file, or of
    published weights: `load("maskrcnn_resnet50_fpn_v2")`. A path of that name wins.

    With `heads`, only those predict. Without `fold` its outputs equal those of the validation in
    training; with it, they round differently and it is a little faster.

    `overrides` change the config it was trained with, for example
    `{"data.image_size": 640, "train.precision": "fp32", "train.device": "cpu"}`. Classes outside
    visionkit that the checkpoint names are imported, which runs their modules, only with
    `allow_plugins`; without it, ConfigError.

    Raises CheckpointError for what is none of the three or cannot be loaded, ConfigError for wrong
    `overrides` and `heads`.
    """
    check_flags(fold=fold)
    if is_model_name(run):
        config, classes, model = build_published(str(run), overrides)
        return Predictor(model, config, classes, heads=heads, fold=fold)
    path, state = checkpoint.load_latest(run)
    config = load_config(state["config"], overrides, origin=path, allow_plugins=allow_plugins)
    classes = class_lists_of(state)
    unlisted = [head for head in config.heads if head not in classes]
    if unlisted:
        raise CheckpointError(f"{path}: has no class list of head {unlisted[0]!r}")
    model = build_model(config, classes, pretrained=False)
    load_weights(model, state["model"], path)
    model.thresholds = saved_thresholds(state)
    return Predictor(model, config, classes, heads=heads, fold=fold)


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


def loaded(
    model: str | Path | Predictor,
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
) -> Predictor:
    """The model itself, or what `load` returns for a run or a checkpoint; ArgumentError for options
    of `load` next to a model that is loaded already."""
    if not isinstance(model, Predictor):
        return load(model, overrides, heads=heads, allow_plugins=allow_plugins)
    if heads is not None or overrides:
        what = "overrides" if overrides else "heads"
        raise ArgumentError(f"{what}: do not apply to a loaded model; give them to load()")
    return model


@overload
def predict(  # type: ignore[overload-overlap]  # a list is an Iterable too
    model: str | Path | Predictor,
    inputs: ImageInput | list[Any] | tuple[Any, ...],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: Literal[False] = False,
    allow_plugins: bool = False,
) -> list[Prediction]: ...


@overload
def predict(  # type: ignore[overload-overlap]  # a list is an Iterable too
    model: str | Path | Predictor,
    inputs: ImageInput | list[Any] | tuple[Any, ...],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool,
    allow_plugins: bool = False,
) -> list[Prediction | None]: ...


@overload
def predict(
    model: str | Path | Predictor,
    inputs: Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: Literal[False] = False,
    allow_plugins: bool = False,
) -> Iterator[Prediction]: ...


@overload
def predict(
    model: str | Path | Predictor,
    inputs: Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool,
    allow_plugins: bool = False,
) -> Iterator[Prediction | None]: ...


def predict(
    model: str | Path | Predictor,
    inputs: ImageInput | Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool = False,
    allow_plugins: bool = False,
) -> list[Any] | Iterator[Any]:
    """What a model finds in images: a run directory, a checkpoint file or a loaded `Predictor`.

    `inputs` is an image as for `Predictor.predict`, a folder (its images sorted by name), or a list
    of these: then the result is a list with a Prediction for each image in order. Any other
    iterable, such as a generator, returns an iterator: it takes the next `batch_size` images only
    when the next prediction is asked for, so that any number of images needs little memory.

    `batch_size` images go through the model together where they are of equal size. Other arguments
    are those of `load`. An image that cannot be read is a DataError, which names it; with
    `skip_unreadable` it is logged, and None is in its place.
    """
    predictor = loaded(model, overrides, heads=heads, allow_plugins=allow_plugins)
    check_flags(skip_unreadable=skip_unreadable)
    check_counts(batch_size=batch_size)
    single = isinstance(inputs, (str, Path, Image.Image, np.ndarray, Tensor, bytes, Mapping))
    if not single and isinstance(inputs, Iterable) and not isinstance(inputs, (list, tuple)):
        return _predicted_each(predictor, _expanded(inputs), batch_size, skip_unreadable)
    items: Any = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if not items:
        raise ArgumentError("predict: got no images; expected at least one")
    check_exist([item for item in items if isinstance(item, (str, Path))])
    images = _expanded(items, numbered=items is inputs)
    return [*_predicted_each(predictor, images, batch_size, skip_unreadable)]


def _predicted_each(
    predictor: Predictor,
    images: Iterator[tuple[str, ImageInput]],
    batch_size: int,
    skip_unreadable: bool,
) -> Iterator[Prediction | None]:
    """The prediction of each image in order; see `predict`."""
    while batch := list(islice(images, batch_size)):
        found = _predicted(predictor, [image for _, image in batch])
        for (place, _), result in zip(batch, found, strict=True):
            if isinstance(result, Prediction):
                yield result
            elif not skip_unreadable or isinstance(result, ArgumentError):
                first, *others = result.lines
                raise type(result)(f"{place}{first}", *others) from result
            else:
                log.error("skipped: %s%s", place, result)
                yield None


def _expanded(inputs: Iterable[Any], *, numbered: bool = True) -> Iterator[tuple[str, ImageInput]]:
    """Each image, those of folders too, after the words that name it in a message; messages about
    files have their names already."""
    for number, item in enumerate(inputs):
        if isinstance(item, (str, Path)):
            yield from (("", file) for file, _ in find_images([item]))
        else:
            yield f"image {number} (from 0): " if numbered else "", item


def _chosen(heads: Sequence[str] | None, known: list[str]) -> list[str]:
    """The heads to use, in the order of the model."""
    if heads is None:
        return known
    if isinstance(heads, str) or not isinstance(heads, Iterable) or not [*heads]:
        one = f"expected a list of one or more of {', '.join(known)}"
        raise ArgumentError(f"heads: got {shorten(repr(heads))}; {one}")
    if unknown := [head for head in heads if head not in known]:
        have = ", ".join(known)
        raise ConfigError(f"heads: the model has no head {unknown[0]!r}; it has {have}")
    return [head for head in known if head in heads]


def class_lists_of(state: dict[str, Any]) -> dict[str, Classes]:
    """The class list of each head in a checkpoint."""
    return {h: Classes(tuple(c["names"]), tuple(c["ids"])) for h, c in state["classes"].items()}


def _item(image: Tensor, image_id: int, size: ImageSize) -> tuple[Tensor, Any]:
    _, height, width = image.shape
    sample = Sample(image, image_id, orig_size=(height, width))
    sample = sample.resize(fit(sample.size, size))
    return sample.image, sample.target()


def predict_each(
    predictor: Predictor,
    files: Sequence[Path],
    use: Callable[[Path, Prediction], Kept],
    batch_size: int = BATCH,
) -> Generator[tuple[Path, Kept | DataError], None, None]:
    """Yield each file in order with the result of `use(file, prediction)`, or with the DataError if
    it cannot be read.

    Each thread takes `batch_size` files at a time, reads them, predicts and calls `use`; PyTorch's
    own threads are divided among them. For small models that is much faster than all of PyTorch's
    threads on one image: no thread waits for another, for decoding or for drawing. At most one
    batch for each thread is in memory, besides the results of `use`.

    Images of equal size within a batch go through the model together. No image is padded to
    another's size, which would change its prediction; only rounding differs. Close the generator
    to end the threads early; batches in progress are finished.
    """

    def work(batch: Sequence[Path]) -> list[tuple[Path, Kept | DataError]]:
        found = zip(batch, _predicted(predictor, batch), strict=True)
        return [(f, use(f, p) if isinstance(p, Prediction) else p) for f, p in found]

    before = torch.get_num_threads()
    threads = min(MAX_THREADS, before)
    pool = ThreadPoolExecutor(threads, "predict", torch.set_num_threads, (before // threads,))
    waiting: deque[Future[list[tuple[Path, Kept | DataError]]]] = deque()
    try:
        for start in range(0, len(files), batch_size):
            waiting.append(pool.submit(work, files[start : start + batch_size]))
            if len(waiting) > threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _predicted(predictor: Predictor, images: Sequence[ImageInput]) -> list[Prediction | DataError]:
    """The prediction of each image, or why it cannot be read, in order. Images of equal size go
    through the model together."""
    found: list[Any] = [None] * len(images)
    pixels: dict[int, Tensor] = {}
    for place, image in enumerate(images):
        try:
            pixels[place] = predictor.read(image)
        except (DataError, ArgumentError) as error:
            found[place] = error
    for shape in dict.fromkeys(image.shape for image in pixels.values()):
        alike = [place for place, image in pixels.items() if image.shape == shape]
        predictions = predictor.predict_batch([pixels[place] for place in alike])
        for place, prediction in zip(alike, predictions, strict=True):
            image = images[place]
            prediction.path = Path(image) if isinstance(image, (str, Path)) else None
            found[place] = prediction
    return found
