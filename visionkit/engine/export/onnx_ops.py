"""Visionkit's own operators in terms of those of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By operator of torch the function that builds its nodes."""
    from onnxscript import opset18

    op: Any = opset18  # its annotations are for numbers, these are nodes

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    def nms(boxes: Any, scores: Any, groups: Any, iou: float, count: int) -> Any:
        """`visionkit.ops.nms.nms`. Groups are the classes of NonMaxSuppression: boxes keep their
        place, while the usual offset for each class would round them."""
        # (B, C, N): the score of a box in its own group, -1 in all others
        by_group = op.Unsqueeze(scores, ints(1))
        if groups is not None:
            end = op.Add(op.ReduceMax(groups, keepdims=0), op.Constant(value_int=1))
            all_groups = op.Range(op.Constant(value_int=0), end, op.Constant(value_int=1))
            own = op.Equal(op.Unsqueeze(groups, ints(1)), op.Unsqueeze(all_groups, ints(0, 2)))
            by_group = op.Where(own, by_group, number(-1.0))
        # Candidates have scores from 0; the operator wants them above its threshold.
        kept = op.NonMaxSuppression(boxes, by_group, ints(count), number(iou), number(-0.5))
        places = op.Gather(kept, ints(0, 2), axis=1)  # (S, 2): image and box
        nothing = op.Expand(number(-1.0), op.Shape(scores))
        best = op.ScatterND(nothing, places, op.GatherND(scores, places))
        most = op.Min(op.Shape(scores, start=1, end=2), ints(count))
        values, order = op.TopK(best, most)
        return op.Where(op.Less(values, number(0.0)), op.Constant(value_int=-1), order)

    return {torch.ops.visionkit.nms.default: nms}
