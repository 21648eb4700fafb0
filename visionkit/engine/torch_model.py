"""A trained model in torch, for predictions in the pixels of the images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from visionkit.config import Config, load_config
from visionkit.data.image_io import read_image, to_pixels
from visionkit.data.loading.source import collate
from visionkit.data.resize import ImageSize, fit, scaled
from visionkit.data.sample import Sample
from visionkit.engine.predictor import BasePredictor, ImageInput, chosen, file_of
from visionkit.errors import CheckpointError, ConfigError, check_flags, listed
from visionkit.metrics.thresholds import Thresholds, saved_thresholds
from visionkit.models.build import build_model, build_published
from visionkit.models.contracts import check_result
from visionkit.models.heads.embedding import Embedding
from visionkit.models.model import VisionModel
from visionkit.models.published import is_model_name
from visionkit.ops.inference import cast_weights, fold_norms, pick_device, pick_precision
from visionkit.ops.views import View
from visionkit.runs import checkpoint
from visionkit.runs.checkpoint import load_weights
from visionkit.types import Classes, HeadPrediction
from visionkit.visualization.draw import Threshold

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]


class Predictor(BasePredictor):
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
        self.heads = chosen(heads, [*config.heads])
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
        self.draw_threshold = model.draw_threshold
        self._tell_heads()

    @property
    def thresholds(self) -> dict[str, Thresholds]:
        return self.model.thresholds

    def _default_threshold(self) -> dict[str, Threshold]:
        return self.model.draw_threshold

    def base_of(self, head: str) -> str | None:
        return self.model.head(head).boxes_from

    def has_embedding(self, head: str) -> bool:
        return isinstance(self.model.head(head), Embedding)

    def _tell_heads(self) -> None:
        """A multi-label head names the classes from the same thresholds on."""
        for name in self.heads:
            head: Any = self.model.head(name)
            if hasattr(head, "class_thresholds"):
                head.class_thresholds = self.present_from(name, head.threshold)

    def __repr__(self) -> str:
        """The backbone, and each head with its classes, on one line each."""
        where = f"{self.device}, {str(self.dtype).removeprefix('torch.')}"
        first = f"Predictor of {self.config.name!r} ({where})\n  {self.config.architecture}"
        kinds = {head: type(self.model.heads[head]).__name__ for head in self.heads}
        return self._titled(
            first, [(h, f"{kind}, image size {self._image_size[h]}") for h, kind in kinds.items()]
        )

    def read(self, image: ImageInput) -> Tensor:
        """The image as (3, h, w) uint8, as `predict` reads it."""
        file = file_of(image)
        if file is None:
            return to_pixels(image, self.value_range)
        return read_image(file, value_range=self.value_range)

    @torch.inference_mode()
    def infer(
        self,
        images: Sequence[Tensor],
        heads: Sequence[str] | None = None,
        *,
        scale: float = 1.0,
        views: bool = False,
    ) -> list[dict[str, dict[str, Any]]]:
        results: list[dict[str, dict[str, Any]]] = [{} for _ in images]
        wanted = self.heads if heads is None else heads
        for size in dict.fromkeys(self._image_size[head] for head in wanted):
            own = [head for head in wanted if self._image_size[head] == size]
            items = [_item(image, i, size, scale) for i, image in enumerate(images)]
            batch = collate(items, size if scale == 1 else None).to(self.device)
            predictions, _ = self.model.infer(batch, own, self.dtype, views=views)
            for head in own:
                for result, prediction in zip(results, predictions[head], strict=True):
                    result[head] = {
                        key: value.cpu() if isinstance(value, Tensor) else value
                        for key, value in prediction.items()
                    }
        return results

    def merge(
        self, head: str, found: Sequence[dict[str, Any]], views: Sequence[View]
    ) -> dict[str, Any]:
        many: Any = found
        result: Any = as_tensors(self.model.head(head).merge(many, views))
        check_result(f"heads.{head}: merge()", result)
        return result

    @contextmanager
    def divided(self, most: int) -> Generator[tuple[int, Callable[[], None]], None, None]:
        """PyTorch's own threads are divided among them."""
        before = torch.get_num_threads()
        threads = min(most, before)
        try:
            yield threads, partial(torch.set_num_threads, before // threads)
        finally:
            torch.set_num_threads(before)

    def write_latent_images(self, out: Path) -> list[Path]:
        from visionkit.engine.latent import write_latent_images

        return write_latent_images(dict(self.model.heads.items()), out)


def load_model(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    fold: bool = True,
    allow_plugins: bool = False,
) -> Predictor:
    """A model in torch; see `visionkit.load`."""
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


def class_lists_of(state: dict[str, Any]) -> dict[str, Classes]:
    """The class list of each head in a checkpoint."""
    return {h: Classes(tuple(c["names"]), tuple(c["ids"])) for h, c in state["classes"].items()}


def as_tensors(prediction: Mapping[str, Any]) -> HeadPrediction:
    """A prediction with tensors in place of arrays, as evaluators take it."""
    found: Any = {
        key: torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic) else value
        for key, value in prediction.items()
    }
    return found


def _item(image: Tensor, image_id: int, size: ImageSize, scale: float) -> tuple[Tensor, Any]:
    _, height, width = image.shape
    sample = Sample(image, image_id, orig_size=(height, width))
    sample = sample.resize(scaled(fit(sample.size, size), scale))
    return sample.image, sample.target()
