"""Predicted values on their way into metrics, and means of metrics that may be undefined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from visionkit.errors import DivergedError


def finite(prediction: Mapping[str, Any], key: str, image: Any) -> Tensor:
    """`prediction[key]` as float32 on the CPU. Raises for NaN and infinity, which would be ranked
    at random; `image` names the image in the error."""
    values = prediction[key].detach().float().cpu().clone()  # not a view of the whole batch
    if not values.isfinite().all():
        raise DivergedError(f"image {image}: the predicted {key!r} is not finite")
    return values


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
