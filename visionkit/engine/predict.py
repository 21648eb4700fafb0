"""Predictions in the pixels of the images: `load`, `predict`, many files. Torch is imported only
for a model that needs it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from PIL import Image

from visionkit.engine.inputs import check_exist, find_images
from visionkit.engine.onnx_model import is_onnx, load_onnx
from visionkit.engine.prediction import Prediction
from visionkit.engine.predictor import BasePredictor, ImageInput
from visionkit.errors import (
    ArgumentError,
    ConfigError,
    DataError,
    VisionkitError,
    check_counts,
    check_flags,
)
from visionkit.ops.views import Tta, Views
from visionkit.types import is_tensor

if TYPE_CHECKING:
    from visionkit.engine.onnx_model import OnnxPredictor
    from visionkit.engine.torch_model import Predictor

log = logging.getLogger("visionkit")

BATCH = 4  # images a thread predicts at once; more is not faster on a CPU
MAX_THREADS = 4  # each holds a batch of images and their feature maps
Kept = TypeVar("Kept")
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]


def load(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    fold: bool = True,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> Predictor | OnnxPredictor:
    """Load the trained model of a run directory (its best checkpoint), of a checkpoint file, of an
    exported ONNX file, or of published weights: `load("maskrcnn_resnet50_fpn_v2")`. A path of that
    name wins.

    With `heads`, only those predict. Without `fold` its outputs equal those of the validation in
    training; with it, they round differently and it is a little faster.

    `overrides` change the config it was trained with, for example
    `{"data.image_size": 640, "train.precision": "fp32", "train.device": "cpu"}`. Classes outside
    visionkit that the checkpoint names are imported, which runs their modules, only with
    `allow_plugins`; without it, ConfigError.

    With `tta` or `tiles` it predicts from several views of each image, see `use_views`.

    An ONNX file needs no torch and no plug-ins. Of `overrides` it takes `data.image_size` and
    `train.device`; all else is in the file.

    Raises CheckpointError for what is none of these or cannot be loaded, ConfigError for wrong
    `overrides` and `heads`.
    """
    check_flags(fold=fold)
    Views.of(tta, tiles, overlap)  # before anything is loaded
    predictor = _loaded(run, overrides, heads, fold=fold, allow_plugins=allow_plugins)
    predictor.use_views(tta, tiles, overlap)
    return predictor


def _loaded(
    run: str | Path,
    overrides: Overrides,
    heads: Sequence[str] | None,
    *,
    fold: bool,
    allow_plugins: bool,
) -> Predictor | OnnxPredictor:
    if is_onnx(run):
        return load_onnx(run, overrides, heads=heads)
    try:
        from visionkit.engine.torch_model import load_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "torchvision"):
            raise
        raise ConfigError(
            f"{run}: is not an ONNX file; other models need {error.name}, which is not installed"
        ) from error
    return load_model(run, overrides, heads=heads, fold=fold, allow_plugins=allow_plugins)


def loaded(
    model: str | Path | BasePredictor,
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    views: tuple[Tta, int | None, float | None] = (None, None, None),
) -> BasePredictor:
    """The model itself, or what `load` returns for a path; ArgumentError for options of `load` next
    to a model that is loaded already. `views` are tta, tiles and overlap."""
    tta, tiles, overlap = views
    if not isinstance(model, BasePredictor):
        options: Any = {"tta": tta, "tiles": tiles, "overlap": overlap}
        return load(model, overrides, heads=heads, allow_plugins=allow_plugins, **options)
    given = {"overrides": overrides, "heads": heads is not None, "tta": tta is not None}
    given |= {"tiles": tiles is not None, "overlap": overlap is not None}
    for what, is_given in given.items():
        if is_given:
            raise ArgumentError(f"{what}: do not apply to a loaded model; give them to load()")
    return model


@overload
def predict(  # type: ignore[overload-overlap]  # a list is an Iterable too
    model: str | Path | BasePredictor,
    inputs: ImageInput | list[Any] | tuple[Any, ...],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: Literal[False] = False,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> list[Prediction]: ...


@overload
def predict(  # type: ignore[overload-overlap]  # a list is an Iterable too
    model: str | Path | BasePredictor,
    inputs: ImageInput | list[Any] | tuple[Any, ...],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> list[Prediction | None]: ...


@overload
def predict(
    model: str | Path | BasePredictor,
    inputs: Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: Literal[False] = False,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> Iterator[Prediction]: ...


@overload
def predict(
    model: str | Path | BasePredictor,
    inputs: Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> Iterator[Prediction | None]: ...


def predict(
    model: str | Path | BasePredictor,
    inputs: ImageInput | Iterable[Any],
    overrides: Overrides = (),
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 1,
    skip_unreadable: bool = False,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> list[Any] | Iterator[Any]:
    """What a model finds in images: a run directory, a checkpoint, an ONNX file, or what `load`
    returned.

    `inputs` is an image as for `Predictor.predict`, a folder (its images sorted by name), or a list
    of these: then the result is a list with a Prediction for each image in order. Any other
    iterable, such as a generator, returns an iterator: it takes the next `batch_size` images only
    when the next prediction is asked for, so that any number of images needs little memory.

    `batch_size` images go through the model together where they are of equal size. Other arguments
    are those of `load`. An image that is missing or cannot be read is a DataError, which names it;
    with `skip_unreadable` it is logged, and None is in its place.
    """
    views = tta, tiles, overlap
    predictor = loaded(model, overrides, heads=heads, allow_plugins=allow_plugins, views=views)
    check_flags(skip_unreadable=skip_unreadable)
    check_counts(batch_size=batch_size)
    single = isinstance(inputs, (str, Path, Image.Image, np.ndarray, bytes, Mapping)) or is_tensor(
        inputs
    )
    if not single and isinstance(inputs, Iterable) and not isinstance(inputs, (list, tuple)):
        return _predicted_each(predictor, _expanded(inputs), batch_size, skip_unreadable)
    items: Any = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if not items:
        raise ArgumentError("predict: got no images; expected at least one")
    if not skip_unreadable:
        check_exist([item for item in items if isinstance(item, (str, Path))])
    images = _expanded(items, numbered=items is inputs)
    return [*_predicted_each(predictor, images, batch_size, skip_unreadable)]


def _predicted_each(
    predictor: BasePredictor,
    images: Iterator[tuple[str, ImageInput | VisionkitError]],
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


def _expanded(
    inputs: Iterable[Any], *, numbered: bool = True
) -> Iterator[tuple[str, ImageInput | VisionkitError]]:
    """Each image, those of folders too, after the words that name it in a message; messages about
    files have their names already. Instead of a file that is missing comes its error."""
    for number, item in enumerate(inputs):
        if isinstance(item, (str, Path)):
            try:
                files = find_images([item])
            except (DataError, ArgumentError) as error:
                yield "", error
            else:
                yield from (("", file) for file, _ in files)
        else:
            yield f"image {number} (from 0): " if numbered else "", item


def predict_each(
    predictor: BasePredictor,
    files: Sequence[Path],
    use: Callable[[Path, Prediction], Kept],
    batch_size: int = BATCH,
) -> Generator[tuple[Path, Kept | DataError], None, None]:
    """Yield each file in order with the result of `use(file, prediction)`, or with the DataError if
    it cannot be read.

    Each thread takes `batch_size` files at a time, reads them, predicts and calls `use`. For small
    models that is much faster than all threads of the library on one image: no thread waits for
    another, for decoding or for drawing. At most one batch for each thread is in memory, besides
    the results of `use`.

    Images of equal size within a batch go through the model together. No image is padded to
    another's size, which would change its prediction; only rounding differs. Close the generator
    to end the threads early; batches in progress are finished.
    """

    def work(batch: Sequence[Path]) -> list[tuple[Path, Kept | DataError]]:
        found = zip(batch, _predicted(predictor, batch), strict=True)
        return [(f, use(f, p) if isinstance(p, Prediction) else p) for f, p in found]

    waiting: deque[Future[list[tuple[Path, Kept | DataError]]]] = deque()
    with predictor.divided(MAX_THREADS) as (threads, begin):
        pool = ThreadPoolExecutor(threads, "predict", begin)
        try:
            for start in range(0, len(files), batch_size):
                waiting.append(pool.submit(work, files[start : start + batch_size]))
                if len(waiting) > threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _predicted(
    predictor: BasePredictor, images: Sequence[ImageInput | VisionkitError]
) -> list[Prediction | DataError]:
    """The prediction of each image, or why it cannot be read, in order. Images of equal size go
    through the model together."""
    found: list[Any] = [None] * len(images)
    pixels: dict[int, Any] = {}
    for place, image in enumerate(images):
        if isinstance(image, VisionkitError):
            found[place] = image
            continue
        try:
            pixels[place] = predictor.read(image)
        except (DataError, ArgumentError) as error:
            found[place] = error
    for shape in dict.fromkeys(image.shape for image in pixels.values()):
        alike = [place for place, image in pixels.items() if image.shape == shape]
        predictions = predictor.predict_pixels([pixels[place] for place in alike])
        for place, prediction in zip(alike, predictions, strict=True):
            image = images[place]
            prediction.path = Path(image) if isinstance(image, (str, Path)) else None
            found[place] = prediction
    return found
