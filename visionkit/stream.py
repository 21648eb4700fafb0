"""Predictions for many files: threads read ahead while the model is at work on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from visionkit.data.images import load_image
from visionkit.data.read_ahead import cores
from visionkit.errors import DataError
from visionkit.predict import Prediction, Predictor

BATCH = 4  # more gains nothing on a CPU; see docs/performance.md
PENDING = 4  # pictures that wait to be read, or to be drawn, besides a batch

In, Out = TypeVar("In"), TypeVar("Out")


def helpers() -> ThreadPoolExecutor:
    """Threads for reading and drawing pictures, which Pillow does beside Python's lock. Half the
    cores, since the model wants them too."""
    return ThreadPoolExecutor(max(1, min(4, cores() // 2)))


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], pending: int
) -> Iterator[Out]:
    """`function` of each item, in their order, with that many of them under way."""
    futures: deque[Future[Out]] = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > pending:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def predict_each(
    predictor: Predictor,
    files: Iterable[Path],
    pool: ThreadPoolExecutor,
    batch_size: int = BATCH,
) -> Iterator[tuple[Path, Prediction | DataError]]:
    """Each file, in their order, with its prediction or with the reason why it cannot be read.

    Pictures that follow each other and are of one size go through the model together, at most
    `batch_size`. None is padded to another's size, which would change its prediction; what is
    left is rounding, so with a `batch_size` of 1 they are exactly those of `predictor.predict`.
    No more than `batch_size` + `PENDING` + 1 pictures are held.
    """
    batch: list[tuple[Path, Tensor | DataError]] = []
    for file, image in ahead(pool, _read, files, PENDING + batch_size - 1):
        if batch and (len(batch) == batch_size or _shape(batch[0][1]) != _shape(image)):
            yield from _predicted(predictor, batch)
            batch = []
        batch.append((file, image))
    yield from _predicted(predictor, batch)


def _read(file: Path) -> tuple[Path, Tensor | DataError]:
    try:
        return file, load_image(file)
    except DataError as error:
        return file, error


def _shape(image: Tensor | DataError) -> tuple[int, ...] | None:
    return None if isinstance(image, DataError) else tuple(image.shape)


def _predicted(
    predictor: Predictor, batch: list[tuple[Path, Tensor | DataError]]
) -> Iterator[tuple[Path, Prediction | DataError]]:
    """All of one shape, or all unreadable."""
    images = [image for _, image in batch if not isinstance(image, DataError)]
    found = predictor.predict_batch(images) if images else [error for _, error in batch]
    yield from zip((file for file, _ in batch), found, strict=True)
