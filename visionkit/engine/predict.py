"""Predictions with a trained model, in the pixels of the images: `load`, `predict`, many files."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pycocotools.mask import decode
from torch import Tensor

from visionkit.config import Config, load_config
from visionkit.data.files import visible_files
from visionkit.data.image_io import PLUGINS, is_image_file, read_image, to_pixels
from visionkit.data.loading.source import collate
from visionkit.data.sample import Sample
from visionkit.data.transforms import fit
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DataError,
    check_flags,
    listed,
    plural,
    printable,
    shorten,
)
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.ops.inference import cast_weights, fold_norms, pick_device, pick_precision
from visionkit.runs import checkpoint
from visionkit.runs.checkpoint import load_weights
from visionkit.runs.files import twin_clause
from visionkit.types import Classes, prediction_kinds

log = logging.getLogger("visionkit")

BATCH = 4  # images a thread predicts at once; more is not faster on a CPU
MAX_THREADS = 4  # each holds a batch of images and their feature maps
NO_NAME = "got an empty file name; expected an image or a folder"
Kept = TypeVar("Kept")
ImageInput = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Prediction:
    """The predictions of all heads for one image.

    `heads` holds each head's result as a dict of CPU tensors in the pixels of the image;
    `draw_threshold` the default score from which objects are drawn. The properties are shortcuts
    to the one head that has such a result.
    """

    heads: dict[str, dict[str, Any]]
    classes: dict[str, Classes]
    image: Tensor  # (3, h, w) uint8
    draw_threshold: float | dict[str, float] = 0.5

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float32 xyxy; (1, 4) for localization."""
        return self._only("boxes", "box")[1].reshape(-1, 4)

    @property
    def scores(self) -> Tensor:
        """(N,) from 0 to 1, descending."""
        return self._only("scores", "score")[1].reshape(-1)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, indices into the class list."""
        return self._only("labels", "label")[1].reshape(-1)

    @property
    def names(self) -> list[str]:
        """The class name of each label."""
        head, _ = self._only("labels", "label")
        return [self.classes[head].names[label] for label in self.labels.tolist()]

    @property
    def probs(self) -> Tensor:
        """(K,) class probabilities of the whole image."""
        return self._only("probs")[1]

    @property
    def semantic(self) -> Tensor:
        """(h, w) uint8 semantic map."""
        return self._only("semantic")[1]

    @property
    def embedding(self) -> Tensor:
        """(D,) float32 embedding of length 1."""
        return self._only("embedding")[1]

    @property
    def masks(self) -> np.ndarray:
        """(N, h, w) bool; `heads[...]["masks"]` holds them run-length encoded."""
        full = [decode(rle).astype(bool) for rle in self._only("masks")[1]]
        return np.stack(full) if full else np.zeros((0, *self.image.shape[1:]), bool)

    def _only(self, *keys: str) -> tuple[str, Any]:
        """The head that has one of those results, and the result."""
        found = [
            (head, result[key])
            for head, result in self.heads.items()
            for key in keys
            if key in result and "attributes" not in prediction_kinds(result)  # of another head
        ]
        if len(found) != 1:
            heads = ", ".join(self.heads)
            count = "no head has" if not found else "several heads have"
            raise AttributeError(f"{count} {keys[0]!r}; use .heads, which has {heads}")
        return found[0]

    def draw(self, *, threshold: float | Tensor | None = None) -> Image.Image:
        """The image with the results of all heads, objects of at least that score."""
        from visionkit.visualization.draw import draw_all

        given: Any = threshold
        if isinstance(given, Tensor) and given.numel() == 1:
            given = given.item()
        number = isinstance(given, Real) and not isinstance(given, bool)
        if given is not None and not (number and 0 <= given <= 1):
            raise ArgumentError(f"threshold: got {threshold!r}; expected None or a number, 0 to 1")
        names = {head: self.classes[head].names for head in self.heads}
        lowest = self.draw_threshold if given is None else given
        return draw_all(self.image, self.heads, names, threshold=lowest)


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

    def predict(self, image: ImageInput) -> Prediction:
        """Predictions for a file, a PIL image, an array (h, w) or (h, w, 3) or a tensor (h, w) or
        (3, h, w), with gray or RGB pixels of 8 or 16 bits; `data.value_range` of the config holds.

        Raises DataError if an image cannot be read or has values without a fixed meaning,
        ArgumentError for anything else, also for 4 channels: RGBA and CMYK look alike.
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
        """Predictions for several images at once; the heads of one size share the backbone."""
        if isinstance(images, (str, Path, Image.Image)) or not isinstance(images, Iterable):
            raise ArgumentError(f"predict_batch: got {type(images).__name__}; expected a list")
        tensors = [self.read(image) for image in images]
        if not tensors:
            raise ArgumentError("predict_batch: got no images; expected at least one")
        results: list[dict[str, dict[str, Any]]] = [{} for _ in tensors]
        for size in dict.fromkeys(self._image_size[head] for head in self.heads):
            heads = [head for head in self.heads if self._image_size[head] == size]
            batch = collate([_item(tensor, i, size) for i, tensor in enumerate(tensors)])
            batch = batch.to(self.device)
            predictions, _ = self.model.infer(batch, heads, self.dtype)
            for head in heads:
                for result, prediction in zip(results, predictions[head], strict=True):
                    result[head] = {
                        key: value.cpu() if isinstance(value, Tensor) else value
                        for key, value in prediction.items()
                    }
        return [
            Prediction(result, self.classes, tensor, self.model.draw_threshold)
            for result, tensor in zip(results, tensors, strict=True)
        ]


def load(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    fold: bool = True,
    allow_plugins: bool = False,
) -> Predictor:
    """Load the trained model of a run directory (its best checkpoint) or of a checkpoint file.

    With `heads`, only those predict. Without `fold` its outputs equal those of the validation in
    training; with it, they round differently and it is a little faster.

    `overrides` change the config it was trained with, for example
    `{"data.image_size": 640, "train.precision": "fp32", "train.device": "cpu"}`. Classes outside
    visionkit that the checkpoint names are imported, which runs their modules, only with
    `allow_plugins`; without it, ConfigError.
    """
    check_flags(fold=fold)
    path, state = checkpoint.load_latest(run)
    config = load_config(state["config"], overrides, origin=path, allow_plugins=allow_plugins)
    classes = class_lists_of(state)
    unlisted = [head for head in config.heads if head not in classes]
    if unlisted:
        raise CheckpointError(f"{path}: has no class list of head {unlisted[0]!r}")
    model = build_model(config, classes, pretrained=False)
    load_weights(model, state["model"], path)
    return Predictor(model, config, classes, heads=heads, fold=fold)


def predict(
    model: str | Path | Predictor,
    inputs: ImageInput | Sequence[ImageInput],
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
) -> list[Prediction]:
    """Predictions of a run directory, a checkpoint file or a loaded `Predictor` for images.

    `inputs` is an image as for `Predictor.predict`, a folder, or a list of these. Returns a
    Prediction for each image in order, those of a folder sorted by name. All are in memory; for
    many images use `visionkit predict`, or `load` once and predict one by one. `heads` and
    `allow_plugins` as for `load`. Raises DataError if a file cannot be read.
    """
    if isinstance(model, Predictor) and heads is not None:
        raise ArgumentError("heads: do not apply to a loaded model; give them to load()")
    predictor = model
    if not isinstance(predictor, Predictor):
        predictor = load(predictor, heads=heads, allow_plugins=allow_plugins)
    items: list[Any] = [*inputs] if isinstance(inputs, (list, tuple)) else [inputs]
    if not items:
        raise ArgumentError("predict: got no images; expected at least one")
    images: list[ImageInput] = []
    for item in items:
        named = isinstance(item, (str, Path))
        images += [file for file, _ in find_images([item])] if named else [item]
    return [predictor.predict(image) for image in images]


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


def _item(image: Tensor, image_id: int, size: int | tuple[int, int]) -> tuple[Tensor, Any]:
    _, height, width = image.shape
    sample = Sample(image, image_id, orig_size=(height, width))
    sample = sample.resize(fit(sample.size, size))
    return sample.image, sample.target()


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The images among files and folders, each with its name: relative to the folder, as in a COCO
    file. Images that would share a name get their whole path instead."""
    if "" in inputs:
        raise ArgumentError(NO_NAME)
    missing = [f"{path}{twin_clause(path)}" for path in map(Path, inputs) if not path.exists()]
    if missing:
        raise DataError(f"no such file or directory: {', '.join(missing)}")
    found: list[tuple[Path, str]] = []
    others: list[Path] = []
    hidden: list[str] = []
    for path in map(Path, inputs):
        inside = sorted(Path(folder, name) for folder, name in visible_files(path, hidden))
        found += [(f, f.relative_to(path).as_posix()) for f in inside if is_image_file(f)]
        found += [] if path.is_dir() else [(path, path.name)]
        others += [file for file in inside if not is_image_file(file)]
    skipped = "; ".join(_passed_over(others, hidden))
    if not found:
        raise DataError(f"no images in {', '.join(map(str, inputs))}{skipped and f'; {skipped}'}")
    if skipped:
        log.warning("%s", skipped)
    files = {(file.resolve(), name) for file, name in found}  # an image given twice counts once
    times = Counter(name for _, name in files)
    return [(file, name if times[name] == 1 else file.as_posix()) for file, name in found]


def _passed_over(files: Sequence[Path], hidden: Sequence[str]) -> Iterator[str]:
    """Names the files of folders that are not images, for each reason, and what is hidden."""
    needed = {suffix: one.package for one in PLUGINS.values() for suffix in one.suffixes}
    suffixes = {file: file.suffix.lower() for file in files}
    special = [file for file in files if not file.is_file()]
    plugins = [f for f in files if suffixes[f] in needed and f not in special]
    packages = {needed[suffixes[file]]: None for file in plugins}
    rest = [file for file in files if file not in special and file not in plugins]
    for noun, several, names, hint in (
        (
            "file without the suffix of an image",
            "files without the suffix of an image",
            [file.name for file in rest],
            "",
        ),
        (
            "image of a format that is not read here",
            "images of formats that are not read here",
            [file.name for file in plugins],
            f"; convert them, or install {listed(packages)}",
        ),
        (
            "pipe, device or link to nothing",
            "pipes, devices or links to nothing",
            [file.name for file in special],
            "",
        ),
        ("hidden file or folder", "hidden files or folders", hidden, ""),
    ):
        if names:
            yield f"{plural(len(names), noun, several)} skipped: {printable(listed(names))}{hint}"


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
        found = _predicted(predictor, batch)
        return [(f, p if isinstance(p, DataError) else use(f, p)) for f, p in found.items()]

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


def _predicted(predictor: Predictor, files: Sequence[Path]) -> dict[Path, Prediction | DataError]:
    """The prediction of each file, or why it cannot be read, in order."""
    found: dict[Path, Prediction | DataError] = {}
    images: dict[Path, Tensor] = {}
    for file in files:
        try:
            images[file] = predictor.read(file)
        except DataError as error:
            found[file] = error
    for shape in dict.fromkeys(image.shape for image in images.values()):
        alike = [file for file, image in images.items() if image.shape == shape]
        predictions = predictor.predict_batch([images[file] for file in alike])
        found |= zip(alike, predictions, strict=True)
    return {file: found[file] for file in files}
