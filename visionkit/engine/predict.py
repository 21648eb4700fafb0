"""From an image to predictions in its own pixels, with a trained run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools.mask import decode
from torch import Tensor

from visionkit.config import Config, load_config
from visionkit.data.image_io import read_image
from visionkit.data.loading.source import collate
from visionkit.data.sample import Sample
from visionkit.data.transforms import fit
from visionkit.engine.device import pick_device, pick_precision
from visionkit.errors import CheckpointError, ConfigError, DataError
from visionkit.models.build import build_model
from visionkit.models.model import VisionModel
from visionkit.ops.inference import cast_weights, fold_norms
from visionkit.runs import checkpoint
from visionkit.runs.checkpoint import load_weights
from visionkit.types import Classes

# --- Predictions for many files: several threads, each of which takes some images all the
# way.

BATCH = 4  # more gains nothing on a CPU; see docs/performance.md
THREADS = 4  # at most; each holds a batch of images and their feature maps

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
    PyTorch's threads on one image: nobody waits for another, nor for a decoder or a pen. No more
    than one batch a thread is in memory, besides what `use` gives back.

    Of the files of a batch those of one size go through the model together. No image is padded
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
            images[file] = read_image(file)
        except DataError as error:
            found[file] = error
    for shape in dict.fromkeys(image.shape for image in images.values()):
        alike = [file for file, image in images.items() if image.shape == shape]
        predictions = predictor.predict_batch([images[file] for file in alike])
        found |= zip(alike, predictions, strict=True)
    return {file: found[file] for file in files}


ImageInput = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Prediction:
    """What a model found in one image.

    `heads` holds each head's result as a dict of CPU tensors in the image's own pixels;
    `draw_threshold` the score from which its objects are drawn if nobody says otherwise. The
    properties are shortcuts to the one head that has such a result.
    """

    heads: dict[str, dict[str, Any]]
    classes: dict[str, Classes]
    image: Tensor  # (3, h, w) uint8
    draw_threshold: float | dict[str, float] = 0.5

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float32 xyxy; (1, 4) for localization."""
        head, key = self._only("boxes", "box")
        return self.heads[head][key].reshape(-1, 4)

    @property
    def scores(self) -> Tensor:
        """(N,) from 0 to 1, falling."""
        head, key = self._only("scores", "score")
        return self.heads[head][key].reshape(-1)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, indices into the class list."""
        head, key = self._only("labels", "label")
        return self.heads[head][key].reshape(-1)

    @property
    def names(self) -> list[str]:
        """The class name of each label."""
        head, _ = self._only("labels", "label")
        return [self.classes[head].names[label] for label in self.labels.tolist()]

    @property
    def probs(self) -> Tensor:
        """(K,) class probabilities of the whole image."""
        head, key = self._only("probs")
        return self.heads[head][key]

    @property
    def semantic(self) -> Tensor:
        """(h, w) uint8 class map."""
        head, key = self._only("semantic")
        return self.heads[head][key]

    @property
    def vector(self) -> Tensor:
        """(D,) float32 embedding of length 1."""
        head, key = self._only("embedding")
        return self.heads[head][key]

    @property
    def masks(self) -> np.ndarray:
        """(N, h, w) bool; `heads[...]["masks"]` holds them run-length encoded."""
        head, key = self._only("masks")
        rles = self.heads[head][key]
        shape = self.image.shape[1:]
        full = [decode(rle).astype(bool) for rle in rles]
        return np.stack(full) if full else np.zeros((0, *shape), bool)

    def _only(self, *keys: str) -> tuple[str, str]:
        found = [
            (head, key)
            for head, result in self.heads.items()
            for key in keys
            if key in result and "attributes" not in result  # which repeats another head's boxes
        ]
        if len(found) != 1:
            heads = ", ".join(self.heads)
            count = "no head gives" if not found else "several heads give"
            raise AttributeError(f"{count} {keys[0]!r}; look into .heads, which holds {heads}")
        return found[0]

    def draw(self, *, threshold: float | None = None) -> Image.Image:
        """The image with every head's result drawn over it, objects from that score on."""
        from visionkit.visualization.draw import draw_all

        names = {head: self.classes[head].names for head in self.heads}
        lowest = self.draw_threshold if threshold is None else threshold
        return draw_all(self.image, self.heads, names, threshold=lowest)


class Predictor:
    """A trained model with everything needed to use it on images; see `load`."""

    def __init__(
        self,
        model: VisionModel,
        config: Config,
        classes: dict[str, Classes],
        *,
        device: torch.device,
        dtype: torch.dtype,
        heads: Sequence[str] | None = None,
    ) -> None:
        self.model, self.config, self.classes = model, config, classes
        self.device, self.dtype = device, dtype
        sizes = {h: s.image_size for s in config.data.values() for h in s.feeds}
        self.heads = _chosen(heads, [*config.heads])
        self._image_size = {head: sizes[head] for head in self.heads}

    @classmethod
    def of(
        cls,
        model: VisionModel,
        config: Config,
        classes: dict[str, Classes],
        *,
        heads: Sequence[str] | None = None,
        fold: bool = True,
    ) -> Predictor:
        """A trained model on the device and in the precision of its config, made fast for use:
        its weights are rounded to the precision and, with `fold`, batch norms become part of
        convolutions. It cannot be trained any more, and is called under `autocast`."""
        device = pick_device(config.train.device)
        dtype = pick_precision(config.train.precision, device)
        model = model.to(device).eval()
        if fold:
            fold_norms(model)
        if config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)
        cast_weights(model, dtype)
        return cls(model, config, classes, device=device, dtype=dtype, heads=heads)

    def autocast(self) -> torch.autocast:
        """The context in which the model computes in its precision."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def predict(self, image: ImageInput) -> Prediction:
        """Predictions for a file, a PIL image, an RGB uint8 array (h, w, 3) or tensor (3, h, w).

        Raises DataError if a file cannot be read as an image.
        """
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[ImageInput]) -> list[Prediction]:
        """Predictions for several images at once; the heads of one size share the backbone."""
        tensors = [_as_tensor(image) for image in images]
        results: list[dict[str, dict[str, Any]]] = [{} for _ in tensors]
        for size in dict.fromkeys(self._image_size.values()):
            heads = [head for head, s in self._image_size.items() if s == size]
            batch = collate([_item(tensor, i, size) for i, tensor in enumerate(tensors)])
            batch = batch.to(self.device)
            with self.autocast():
                features = self.model.features(batch)
                predictions = self.model.predictions(features, batch, heads)
            for head in heads:
                for result, prediction in zip(results, predictions[head], strict=True):
                    result[head] = {key: _to_cpu(value) for key, value in prediction.items()}
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
    """The trained model of a run directory (its best checkpoint) or of a checkpoint file.

    With `heads`, only those predict. Without `fold` it computes exactly what it computed when it
    was validated in training; with it, it rounds differently and is a little faster.

    `overrides` change the config it was trained with, for example
    `{"data.image_size": 640, "train.precision": "fp32", "train.device": "cpu"}`. Classes outside
    visionkit that the checkpoint names are imported, which runs their modules, with
    `allow_plugins` only; without, ConfigError.
    """
    path, state = checkpoint.load_latest(run)
    config = load_config(state["config"], overrides, origin=path, allow_plugins=allow_plugins)
    classes = class_lists_of(state)
    unlisted = [head for head in config.heads if head not in classes]
    if unlisted:
        raise CheckpointError(f"{path}: holds no class list of head {unlisted[0]!r}")
    model = build_model(config, classes, pretrained=False)
    load_weights(model, state["model"], path)
    return Predictor.of(model, config, classes, heads=heads, fold=fold)


def _chosen(heads: Sequence[str] | None, known: list[str]) -> list[str]:
    unknown = [head for head in heads or () if head not in known]
    if unknown:
        raise ConfigError(f"heads: the model has no head {unknown[0]!r}; it has {', '.join(known)}")
    return [head for head in known if heads is None or head in heads]


def class_lists_of(state: dict[str, Any]) -> dict[str, Classes]:
    """The class list of each head, from the state of a run."""
    return {h: Classes(tuple(c["names"]), tuple(c["ids"])) for h, c in state["classes"].items()}


def _as_tensor(image: ImageInput) -> Tensor:
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image.copy()).permute(2, 0, 1) if image.ndim == 3 else None
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape[0] != 3:
        raise ConfigError(
            "predict: got something that is not an image; give a file name, a PIL image, "
            "an RGB uint8 array (h, w, 3) or a uint8 tensor (3, h, w)"
        )
    return image


def _item(image: Tensor, image_id: int, size: int | tuple[int, int]) -> tuple[Tensor, Any]:
    sample = Sample(image, image_id, orig_size=tuple(image.shape[1:]))
    sample = sample.resize(fit(sample.size, size))
    return sample.image, sample.target()


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
