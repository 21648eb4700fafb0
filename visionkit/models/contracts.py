"""Check what backbones, necks, heads and evaluators return against their contracts in `types`.

They may be custom. All functions raise ConfigError, which names the part and the method, so that no
later code fails on a wrong result.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor, nn

from visionkit.data.contracts import is_custom, shown
from visionkit.errors import ConfigError
from visionkit.metrics.parts import Part, misfit
from visionkit.metrics.report import Coverage
from visionkit.types import Evaluator, Features, HeadPrediction, Level, Loss, prediction_kinds

EVALUATOR_METHODS = ("update", "state", "merge", "compute")
# The dimensions of the results that visionkit draws, scores or writes.
ALONE = {"boxes": 2, "box": 1, "probs": 1, "semantic": 2, "embedding": 1, "reconstruction": 3}
OF_EACH_BOX = {"scores": 1, "labels": 1, "attributes": 2}  # next to boxes, as many


def checked_levels(part: str, module: nn.Module) -> dict[str, Level]:
    """The levels of a backbone or a neck; `part` is its key in the config."""
    what = f"{part}: levels of {type(module).__name__}"
    levels: Any = getattr(module, "levels", None)
    if not isinstance(levels, dict) or not levels:
        raise _broken(what, levels, "a dict with a Level(channels, stride) for each feature map")
    for name, level in levels.items():
        whole = isinstance(level, Level) and all(type(n) is int and n > 0 for n in level)
        if not isinstance(name, str) or not whole:
            raise _broken(what, {name: level}, "Level(channels, stride) of two ints by name")
    strides = [level.stride for level in levels.values()]
    if strides != sorted(strides):
        raise _broken(what, levels, "levels from fine to coarse, with rising strides")
    return levels


def checked_features(part: str, module: nn.Module, features: Any, images: Tensor) -> Features:
    """The feature maps that a backbone or a neck made of `images` (B, 3, H, W)."""
    what = f"{part}: {type(module).__name__}.forward()"
    levels = checked_levels(part, module)
    if not isinstance(features, dict) or [*features] != [*levels]:
        raise _broken(what, features, f"a dict with a map for each of its levels, {[*levels]}")
    batch, _, *sides = images.shape
    for name, (channels, stride) in levels.items():
        found = features[name]
        fits = (
            isinstance(found, Tensor)
            and found.is_floating_point()
            and found.shape[:2] == (batch, channels)
            and found.ndim == 4
            and all(map(is_near, found.shape[2:], [side / stride for side in sides]))
        )
        if not fits:
            cells = " x ".join(f"{side}/{stride}" for side in sides)
            wanted = f"a float tensor ({batch}, {channels}, h, w) with about {cells} cells"
            raise _broken(what, {name: found}, wanted)
    if torch.is_grad_enabled() and not any(found.requires_grad for found in features.values()):
        trained = next((name for name, p in module.named_parameters() if p.requires_grad), None)
        if is_custom(module) and trained is not None:
            wanted = f"maps with a gradient, so that {trained!r} and others learn"
            raise _broken(what, features, wanted)
    return features


def is_near(cells: int, expected: float) -> bool:
    """Whether a map has as many cells along a side, give or take the padding of convolutions."""
    return expected / 1.5 - 1 <= cells <= 1.5 * expected + 1


def checked_losses(head: str, terms: Any) -> dict[str, Loss]:
    """The loss terms of a batch."""
    what = f"heads.{head}: loss()"
    if not isinstance(terms, dict) or not terms:
        raise _broken(what, terms, "a dict with a Loss(sum, count) for each of one or more terms")
    for name, loss in terms.items():
        if not isinstance(name, str) or name == "total":
            raise _broken(what, name, "names of terms, not 'total'")
        term = f"{what}: term {name!r}"
        if not isinstance(loss, Loss):
            raise _broken(term, loss, "Loss(sum, count)")
        if not _is_scalar(loss.sum) or not loss.sum.is_floating_point():
            raise _broken(f"{term}: sum", loss.sum, "a float tensor of shape ()")
        if not _is_scalar(loss.count) or loss.count.requires_grad:
            raise _broken(f"{term}: count", loss.count, "a tensor of shape () without a gradient")
    return terms


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()


def checked_predictions(head: str, found: Any, count: int) -> list[HeadPrediction]:
    """The predictions for a batch of `count` images."""
    what = f"heads.{head}: decode()"
    if not isinstance(found, list) or len(found) != count:
        raise _broken(what, found, f"a list with a dict for each of the {count} images")
    for result in found:
        if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
            raise _broken(what, result, "a dict of results by name for each image")
        check_result(what, result)
    return found


def check_result(what: str, result: Mapping[str, Any]) -> None:
    """ConfigError for the prediction of one image that is not as `HeadPrediction` says."""
    wanted = ALONE | (OF_EACH_BOX if "boxes" in result else {})
    for key, dimensions in wanted.items():
        value = result.get(key)
        if key in result and not (isinstance(value, Tensor) and value.ndim == dimensions):
            raise _broken(what, {key: value}, f"a tensor of {dimensions} dimensions")
    kinds = prediction_kinds(result)
    if "box" in kinds and "probs" not in result:
        raise _broken(what, result, "'probs' next to 'box'")
    if "boxes" not in result:
        return
    boxes = result["boxes"]
    if boxes.shape[1] != 4:
        raise _broken(what, {"boxes": boxes}, "a tensor (N, 4) of x1, y1, x2, y2")
    for key in ("scores", "labels") if "objects" in kinds else ("scores",):
        if key not in result:
            raise _broken(what, result, f"'{key}' next to 'boxes'")
    masks = result.get("masks", [])
    if not isinstance(masks, list) or not all(isinstance(rle, dict) for rle in masks):
        codes = "a list of run-length codes, dicts as of pycocotools.mask.encode"
        raise _broken(what, {"masks": masks}, codes)
    for key in (*OF_EACH_BOX, "masks"):
        if key in result and len(result[key]) != len(boxes):
            raise _broken(what, {key: result[key], "boxes": boxes}, "as many of both")


def boxes_of(head: str, on: str, found: list[HeadPrediction]) -> list[HeadPrediction]:
    """The predictions of the head `on`, whose boxes the other one describes."""
    for result in found:
        if "boxes" not in result:
            raise _broken(f"heads.{on}: decode()", result, f"'boxes': {head!r} is on them")
    return found


def checked_evaluator(head: str, evaluator: Any) -> Evaluator:
    """A fresh evaluator."""
    missing = [m for m in EVALUATOR_METHODS if not callable(getattr(evaluator, m, None))]
    if missing:
        what = f"an object with {', '.join(EVALUATOR_METHODS)}; it has no {', '.join(missing)}"
        raise _broken(f"heads.{head}: evaluator()", evaluator, what)
    return evaluator


def checked_metrics(head: str, metrics: Any) -> dict[str, float]:
    """The metrics of an evaluator, as plain floats."""
    if not isinstance(metrics, Mapping) or not all(
        isinstance(name, str)
        and not name.startswith("loss/")
        and (isinstance(value, Real) or _is_scalar(value))
        for name, value in metrics.items()
    ):
        wanted = (
            "a dict of names, not loss/..., with a number each, NaN where a metric is not defined"
        )
        raise _broken(f"heads.{head}: compute() of its evaluator", metrics, wanted)
    return {name: float(value) for name, value in metrics.items()}


def checked_coverage(head: str, coverage: Any) -> dict[str, Coverage]:
    """Over how many classes the metrics of an evaluator are."""
    if not isinstance(coverage, Mapping) or not all(
        isinstance(name, str) and isinstance(over, Coverage) for name, over in coverage.items()
    ):
        wanted = "a dict with a visionkit.metrics.report.Coverage for each name of a metric"
        raise _broken(f"heads.{head}: coverage() of its evaluator", coverage, wanted)
    return dict(coverage)


def checked_parts(head: str, parts: Any) -> list[Part]:
    """The parts of a report that an evaluator returned."""
    what = f"heads.{head}: report() of its evaluator"
    kinds = get_args(Part)
    if not isinstance(parts, list) or not all(isinstance(part, kinds) for part in parts):
        named = ", ".join(kind.__name__ for kind in kinds)
        raise _broken(what, parts, f"a list of {named}", "visionkit.metrics.parts")
    for part in parts:
        if wanted := misfit(part):
            raise _broken(what, part, wanted, "visionkit.metrics.parts")
    return parts


def _broken(what: str, found: Any, wanted: str, where: str = "visionkit.types") -> ConfigError:
    return ConfigError(f"{what}: got {shown(found)}; expected {wanted} ({where})")
