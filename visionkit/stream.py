"""Predictions for many files: several threads, each of which takes some pictures all the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from visionkit.data.images import load_image
from visionkit.errors import DataError
from visionkit.predict import Prediction, Predictor

BATCH = 4  # more gains nothing on a CPU; see docs/performance.md
THREADS = 4  # at most; each holds a batch of pictures and their feature maps

Kept = TypeVar("Kept")


def predict_each(
    predictor: Predictor,
    files: Sequence[Path],
    use: Callable[[Path, Prediction], Kept],
    batch_size: int = BATCH,
) -> Generator[tuple[Path, Kept | DataError], None, None]:
    """Each file, in their order, with what `use` makes of its prediction, or with the reason why it
    cannot be read.

    A thread takes `batch_size` files at a time, reads them, predicts and calls `use`; PyTorch's
    own threads are shared out among them. For small models that is much faster than all of
    PyTorch's threads on one picture: nobody waits for another, nor for a decoder or a pen. No more
    than one batch a thread is in memory, besides what `use` gives back.

    Of the files of a batch those of one size go through the model together. No picture is padded
    to another's size, which would change its prediction; what remains is rounding.
    Close the generator to end the threads early; a batch that is under way is finished.
    """

    def work(batch: Sequence[Path]) -> list[tuple[Path, Kept | DataError]]:
        found = _predicted(predictor, batch)
        return [(f, p if isinstance(p, DataError) else use(f, p)) for f, p in found.items()]

    before = torch.get_num_threads()
    threads = min(THREADS, before)
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
    """For each file in their order."""
    found: dict[Path, Prediction | DataError] = {}
    images: dict[Path, Tensor] = {}
    for file in files:
        try:
            images[file] = load_image(file)
        except DataError as error:
            found[file] = error
    for shape in dict.fromkeys(image.shape for image in images.values()):
        alike = [file for file, image in images.items() if image.shape == shape]
        predictions = predictor.predict_batch([images[file] for file in alike])
        found |= zip(alike, predictions, strict=True)
    return {file: found[file] for file in files}
