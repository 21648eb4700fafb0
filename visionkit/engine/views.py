"""Predictions from several views of each image: mirrored, at other scales, in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.errors import ArgumentError, ConfigError, DataError, listed
from visionkit.ops.views import View, Views
from visionkit.types import as_numpy

if TYPE_CHECKING:
    from visionkit.engine.predictor import BasePredictor

Results = dict[str, dict[str, Any]]  # of an image, by head
TOGETHER = 4  # views of an image that go through the model together
PROBE = 64  # pixels of the side of the image with which a model is tried
RIDING = {"attributes", "boxes", "scores"}


def predict_views(
    predictor: BasePredictor, images: Sequence[Any], heads: Sequence[str] | None = None
) -> list[Results]:
    """The results for images that the predictor has read, each from its views. Those of an image
    with a single view are the same as without any."""
    assert predictor.views is not None
    plans = [predictor.views.plan(image.shape[1:]) for image in images]
    wanted = predictor.heads if heads is None else heads
    alone = predictor.infer(images, wanted) if any(len(plan) == 1 for plan in plans) else []
    return [
        alone[place] if len(plan) == 1 else _merged(predictor, image, plan, wanted)
        for place, (image, plan) in enumerate(zip(images, plans, strict=True))
    ]


def try_views(predictor: BasePredictor, views: Views) -> None:
    """ArgumentError for views that the model cannot see, or whose predictions a head cannot merge:
    found out with a gray image."""
    tile = None if views.tile is None else PROBE // 2
    plan = replace(views, tile=tile).plan((PROBE, PROBE))
    whole = [view for view in plan if not view.is_tile and not view.flip]
    tiles = [view for view in plan if view.is_tile][:1]
    pixels = predictor.read(np.full((PROBE, PROBE, 3), 128, np.uint8))
    try:
        _merged(predictor, pixels, whole + tiles, predictor.heads)
    except DataError as error:  # of a backbone that takes images of one size
        raise ArgumentError(f"tta: {error}") from error


def _merged(
    predictor: BasePredictor, image: Any, plan: Sequence[View], heads: Sequence[str]
) -> Results:
    """The results of these heads for an image. A few views at a time go through the model, so that
    memory does not grow with their number."""
    bases = {head: predictor.base_of(head) for head in heads}
    needed = [*dict.fromkeys([base or head for head, base in bases.items()] + [*heads])]
    found: list[Any] = [None] * len(plan)
    kinds = [(view.scale, view.size) for view in plan]
    for kind in dict.fromkeys(kinds):
        places = [place for place, own in enumerate(kinds) if own == kind]
        for start in range(0, len(places), TOGETHER):
            some = places[start : start + TOGETHER]
            parts = [plan[place].cut(image) for place in some]
            results = predictor.infer(parts, needed, scale=kind[0], views=True)
            for place, result in zip(some, results, strict=True):
                found[place] = result
    merged: Results = {}
    for base in dict.fromkeys(base or head for head, base in bases.items()):
        riders = [head for head, on in bases.items() if on == base]
        try:
            merged |= _merged_head(predictor, base, riders, found, plan)
        except ArgumentError as error:
            raise ArgumentError(f"tta, tiles: head {base!r} cannot use them: {error}") from error
    return {head: merged[head] for head in heads}


def _merged_head(
    predictor: BasePredictor,
    head: str,
    riders: Sequence[str],
    found: Sequence[Results],
    plan: Sequence[View],
) -> Results:
    """The results of a head, and of those that describe its boxes: their `attributes` are merged
    as a part of its objects."""
    own = [one[head] for one in found]
    if not riders:
        return {head: predictor.merge(head, own, plan)}
    for rider in riders:
        if others := found[0][rider].keys() - RIDING:
            what = f"{rider!r}, on its boxes, predicts {listed(sorted(others))}"
            raise ArgumentError(f"{what}; only attributes are merged with boxes")
    columns = [[as_numpy(one[rider]["attributes"]) for rider in riders] for one in found]
    merged = predictor.merge(
        head,
        [
            {**one, "attributes": np.concatenate(some, 1)}
            for one, some in zip(own, columns, strict=True)
        ],
        plan,
    )
    if (attributes := merged.pop("attributes", None)) is None:
        raise ConfigError(f"heads.{head}: merge() drops the 'attributes' of its objects; keep them")
    results, start = {head: merged}, 0
    for rider, part in zip(riders, columns[0], strict=True):
        stop = start + part.shape[1]
        on = {key: merged[key] for key in ("boxes", "scores")}
        results[rider] = {"attributes": attributes[:, start:stop], **on}
        start = stop
    return results
