"""Weighted boxes fusion of the objects found in several views of one window of an image. In numpy:
exported models use it without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.ops.original import MASK_THRESHOLD, encode_columns
from visionkit.ops.views import View
from visionkit.types import as_numpy

FUSED_IOU = 0.55  # of boxes that are fused, as in the paper
TINY = 1e-9  # least weight, and least area


@dataclass
class Objects:
    """N objects of a window: `boxes` (N, 4) float64 in its pixels, `scores` (N,), `labels` (N,),
    run-length codes of its size, `attributes` (N, A)."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None
    attributes: np.ndarray | None

    @classmethod
    def of(cls, found: Mapping[str, Any], view: View) -> Objects:
        """What was found in one view."""
        masks, attributes = found.get("masks"), found.get("attributes")
        if masks is not None and view.flip:
            own = View(view.size, (0, 0, *view.size[::-1]))
            masks = [own.encoded(view.pixels(mask)) for mask in masks]
        return cls(
            view.unmirrored(as_numpy(found["boxes"]).astype(np.float64).reshape(-1, 4)),
            as_numpy(found["scores"]).astype(np.float64),
            as_numpy(found["labels"]),
            masks,
            None if attributes is None else as_numpy(attributes),
        )

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """All of them, one after another."""
        attributes = [part.attributes for part in parts if part.attributes is not None]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
            None if parts[0].masks is None else [m for part in parts for m in part.masks or ()],
            np.concatenate(attributes) if attributes else None,
        )

    def prediction(self) -> dict[str, Any]:
        """As a `HeadPrediction` of arrays, best first."""
        order = np.argsort(-self.scores, kind="stable")
        found: dict[str, Any] = {
            "boxes": self.boxes[order].astype(np.float32),
            "scores": self.scores[order].astype(np.float32),
            "labels": self.labels[order].astype(np.int64),
        }
        if self.masks is not None:
            found["masks"] = [self.masks[row] for row in order.tolist()]
        if self.attributes is not None:
            found["attributes"] = self.attributes[order].astype(np.float32)
        return found


def fused(parts: Sequence[Objects]) -> Objects:
    """The objects of several views of one window. A mask is the mean of the masks of the boxes that
    were fused, weighted by their scores: a pixel belongs to it from more than half of these on.
    `attributes` are means."""
    every = Objects.joined(parts)
    boxes, scores, labels = [np.zeros((0, 4))], [np.zeros(0)], [every.labels[:0]]
    groups: list[np.ndarray] = []
    of = np.repeat(np.arange(len(parts)), [len(part.boxes) for part in parts])
    for label in np.unique(every.labels):
        rows = np.flatnonzero(every.labels == label)
        own, own_scores, members = weighted_boxes(
            every.boxes[rows], every.scores[rows], of[rows], len(parts)
        )
        boxes.append(own)
        scores.append(own_scores)
        labels.append(np.full(len(own), label))
        groups += [rows[group] for group in members]
    masks = every.masks
    return Objects(
        np.concatenate(boxes),
        np.concatenate(scores),
        np.concatenate(labels),
        None
        if masks is None
        else [_mean_mask([masks[i] for i in g.tolist()], every.scores[g]) for g in groups],
        means(every.attributes, groups),
    )


def weighted_boxes(
    boxes: np.ndarray, scores: np.ndarray, of: np.ndarray, views: int, iou: float = FUSED_IOU
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Weighted boxes fusion (Solovyev et al. 2019) of the boxes (N, 4) of one class that were found
    in the views `of` (N,), numbers below `views`.

    By falling score, each box joins the fused box that it overlaps most, with an IoU above `iou`,
    or begins a new one. A fused box is the mean of its boxes, weighted by their scores; its score
    is their mean, times the share of the views that have a box in it.

    Unlike in the paper, a fused box has at most one box of each view: of two boxes that one view
    found, its detector has decided that they are two objects. Else the many boxes of low scores
    around an object would lower its score.

    Returns boxes (M, 4), scores (M,) and of each the rows that it was made of.
    """
    fused_boxes, sums = np.zeros((len(boxes), 4)), np.zeros((len(boxes), 4))
    totals = np.zeros(len(boxes))
    has = np.zeros((len(boxes), views), bool)
    groups: list[list[int]] = []
    weights = np.maximum(scores, TINY)
    for row in np.argsort(-scores, kind="stable").tolist():
        overlaps = overlap(boxes[row], fused_boxes[: len(groups)])
        overlaps[has[: len(groups), of[row]]] = 0
        best = int(overlaps.argmax()) if len(groups) else 0
        if len(groups) and overlaps[best] > iou:
            groups[best].append(row)
        else:
            best = len(groups)
            groups.append([row])
        has[best, of[row]] = True
        sums[best] += weights[row] * boxes[row]
        totals[best] += weights[row]
        fused_boxes[best] = sums[best] / totals[best]
    fused_scores = [scores[group].sum() / views for group in groups]
    members = [np.array(group) for group in groups]
    return fused_boxes[: len(groups)], np.array(fused_scores), members


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4), broadcast against each other."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(one[..., 2:] - one[..., :2]).clip(min=0).prod(-1) for one in (boxes, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, TINY)


def means(rows: np.ndarray | None, groups: Sequence[np.ndarray]) -> np.ndarray | None:
    """The mean (N, A) of the rows of each group."""
    if rows is None:
        return None
    return np.array([rows[group].mean(0) for group in groups]).reshape(len(groups), rows.shape[1])


def _mean_mask(masks: Sequence[dict[str, Any]], weights: np.ndarray) -> dict[str, Any]:
    """The mean of masks of one size, from run lengths to run lengths. Where no pixel has more than
    half, that of the largest weight."""
    if len(masks) == 1:
        return masks[0]
    height, width = masks[0]["size"]
    x, y, w, h = coco_mask.toBbox([*masks]).T
    used = w * h > 0
    left, top = (int(one[used].min(initial=np.inf)) if used.any() else 0 for one in (x, y))
    right, bottom = (int((a + b).max(initial=0)) for a, b in ((x, w), (y, h)))
    total = np.zeros((bottom - top, right - left), np.float32)
    shares = np.maximum(weights, TINY) / np.maximum(weights, TINY).sum()
    for mask, share in zip(masks, shares.tolist(), strict=True):
        total += np.float32(share) * coco_mask.decode(mask)[top:bottom, left:right]
    mean = total > MASK_THRESHOLD
    if not mean.any():
        return masks[int(weights.argmax())]
    return encode_columns(mean.T, top, left, (height, width))
