"""Save images of a run: training samples with targets, validation samples with predictions, curves.

A failure is logged and never stops training. Each function takes the run directory, whether
images are wanted (`train.plots`), and its own arguments; only rank 0 writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import cast

import torch

from visionkit.data.loading.source import Source, collate
from visionkit.data.transforms import fit
from visionkit.distributed import collectives
from visionkit.models.model import VisionModel
from visionkit.types import Batch, Classes, Target
from visionkit.visualization.draw import contact_sheet, draw_all, draw_target
from visionkit.visualization.plots import write_plots

log = logging.getLogger("visionkit")
MAX_IMAGES = 9


def _never_fatal(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def guarded(run: Path, wanted: bool, *args: object, **kwargs: object) -> None:
        if not wanted or collectives.rank() != 0:
            return
        try:
            (run / "plots").mkdir(exist_ok=True)
            function(run, *args, **kwargs)
        except Exception as error:  # of any kind: the run matters more
            log.warning("%s: %s failed: %s", run / "plots", function.__name__, error)

    return guarded


@_never_fatal
def save_train_samples(
    run: Path, batch: Batch, source: Source, model: VisionModel, classes: dict[str, Classes]
) -> None:
    """Write plots/train_<source>.jpg: images of a batch, after augmentation, with their labels."""
    heads = {name: model.head(name) for name in source.feeds}
    names = {h.class_key: classes[name].names for name, h in heads.items() if h.class_key}
    shown = {"size", *(key for head in heads.values() for key in head.required_targets)}
    images = []
    for image, target in list(zip(batch.images, batch.targets, strict=True))[:MAX_IMAGES]:
        h, w = target["size"]
        known = {key: value for key, value in target.items() if key in shown}
        images.append(draw_target(image[:, :h, :w], cast(Target, known), names))
    contact_sheet(images, columns=3).save(run / "plots" / f"train_{source.name}.jpg")


@_never_fatal
@torch.inference_mode()
def save_val_samples(
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    *,
    dtype: torch.dtype,
) -> None:
    """Write plots/val_<source>.jpg: the first validation images with all heads' predictions."""
    device = next(model.parameters()).device
    model.eval()
    for source in sources:
        if source.val is None:
            continue
        samples = [source.val[i] for i in range(min(MAX_IMAGES, len(source.val)))]
        small = [sample.resize(fit(sample.size, source.image_size)) for sample in samples]
        batch = collate([(sample.image, sample.target()) for sample in small]).to(device)
        predictions, _ = model.infer(batch, source.feeds, dtype)
        names = {head: classes[head].names for head in source.feeds}
        images = [
            draw_all(
                sample.image,
                {head: found[i] for head, found in predictions.items()},
                names,
                threshold=model.draw_threshold,
            )
            for i, sample in enumerate(samples)
        ]
        contact_sheet(images, columns=3).save(run / "plots" / f"val_{source.name}.jpg")


@_never_fatal
def write_curves(run: Path) -> None:
    """Write plots/*.png: curves of losses, metrics, learning rate and speed (`plots` extra)."""
    write_plots(run / "metrics.jsonl", run / "plots")
