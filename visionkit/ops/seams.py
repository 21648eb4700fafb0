"""Objects found in the whole image and in its tiles, joined at the seams. In numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.ops.fusion import Objects, means, overlap
from visionkit.ops.views import View

SEAM_IOU = 0.5  # of boxes of two windows, within what both see
PAIRS = 2**20  # of boxes at a time, which bounds the memory
Same = dict[int, float]  # other rows that are the same object, each with its IoU
MARGIN = 64  # a box that ends within 1/64 of a tile's side from its border is cut by it


def joined(parts: Sequence[Objects], windows: Sequence[View]) -> Objects:
    """The objects of the whole image, `parts[0]`, and of its tiles.

    Two boxes of one class, found in two windows, are the same object if they overlap by an IoU of
    `SEAM_IOU` within what both windows see.

    1. A box that ends at a border of its tile is cut: the object continues. If another tile sees
       all of it, uncut, it is dropped: that tile sees the object better.
    2. Of uncut boxes that are the same object the one with the highest score stays.
    3. A cut box that is the same object as an uncut one is dropped. Others are pieces: those that
       are the same object become one, with the box around them, all their masks, the highest score.
    """
    shifted = [
        Objects(view.boxes(part.boxes), part.scores, part.labels, part.masks, part.attributes)
        for part, view in zip(parts, windows, strict=True)
    ]
    every = Objects.joined(shifted)
    of = np.repeat(np.arange(len(parts)), [len(part.boxes) for part in parts])
    safe = np.array([_uncut_region(view) for view in windows])  # (windows, 4)
    cut = ~_inside(every.boxes, safe[of])
    seen = np.zeros(len(of), bool)
    for tile in range(1, len(windows)):
        seen |= (of != tile) & _inside(every.boxes, safe[tile])
    regions = np.array([view.window for view in windows], np.float64)[of]
    same = _same_objects(every, regions, of)
    groups: list[list[int]] = []
    for label in np.unique(every.labels):
        own = every.labels == label
        whole = _best_of_each(np.flatnonzero(own & ~cut), every.scores, same)
        kept = {group[0] for group in whole}
        pieces = np.flatnonzero(own & cut & ~seen).tolist()
        alone = [row for row in pieces if kept.isdisjoint(same.get(row, ()))]
        groups += whole + _components(alone, same)
    return _stand_ins(every, of, cut, groups, windows)


def _stand_ins(
    every: Objects,
    of: np.ndarray,
    cut: np.ndarray,
    groups: Sequence[Sequence[int]],
    windows: Sequence[View],
) -> Objects:
    """One object for each group: its first row, or of cut ones all together."""
    rows = np.array([group[0] for group in groups], np.intp)
    found = Objects(
        every.boxes[rows],
        every.scores[rows],
        every.labels[rows],
        None,
        means(every.attributes, [np.array(group) for group in groups]),
    )
    masks: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        pieces = group if cut[group[0]] else group[:1]
        found.boxes[place, :2] = every.boxes[pieces, :2].min(0)
        found.boxes[place, 2:] = every.boxes[pieces, 2:].max(0)
        found.scores[place] = every.scores[pieces].max()
        if every.masks is not None:
            masks.append(
                _pasted([every.masks[row] for row in pieces], [windows[of[row]] for row in pieces])
            )
    found.masks = None if every.masks is None else masks
    return found


def _pasted(masks: Sequence[dict[str, Any]], windows: Sequence[View]) -> dict[str, Any]:
    """The union of masks of some windows, in the whole image."""
    found = [
        window.encoded(window.pixels(mask)) if window.is_tile else mask
        for mask, window in zip(masks, windows, strict=True)
    ]
    return found[0] if len(found) == 1 else coco_mask.merge(found)


def _uncut_region(view: View) -> tuple[float, float, float, float]:
    """Where a box of a window ends that is not cut by its border."""
    left, top, right, bottom = view.window
    height, width = view.image
    margin = max(view.size) / MARGIN
    return (
        left + margin if left > 0 else -np.inf,
        top + margin if top > 0 else -np.inf,
        right - margin if right < width else np.inf,
        bottom - margin if bottom < height else np.inf,
    )


def _inside(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) lie in a region (4,), or each in its own (N, 4)."""
    inside = np.concatenate([boxes[:, :2] >= region[..., :2], boxes[:, 2:] <= region[..., 2:]], 1)
    return np.asarray(inside.all(1))


def _same_objects(every: Objects, regions: np.ndarray, of: np.ndarray) -> dict[int, Same]:
    """For each row the others, with their IoU, that are the same object, see `joined`; rows without
    any are not there. `regions` (N, 4) are their windows, `of` (N,) the numbers of these."""
    found: dict[int, Same] = {}
    for first, second in _overlapping(every.boxes):
        kept = (of[first] != of[second]) & (every.labels[first] == every.labels[second])
        first, second = first[kept], second[kept]
        low = np.maximum(regions[first, :2], regions[second, :2])
        high = np.minimum(regions[first, 2:], regions[second, 2:])
        one, two = (
            np.concatenate([boxes[:, :2].clip(low, high), boxes[:, 2:].clip(low, high)], 1)
            for boxes in (every.boxes[first], every.boxes[second])
        )
        ious = overlap(one, two)
        places = np.flatnonzero((high > low).all(1) & (ious >= SEAM_IOU))
        rows = first[places].tolist(), second[places].tolist(), ious[places].tolist()
        for left, right, iou in zip(*rows, strict=True):
            found.setdefault(left, {})[right] = iou
            found.setdefault(right, {})[left] = iou
    return found


def _overlapping(boxes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of rows whose boxes (N, 4) overlap, some at a time. In the order of their left
    sides, a box is compared with those that begin before it ends."""
    order = np.argsort(boxes[:, 0], kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    places = np.arange(len(order))
    counts = np.maximum(np.searchsorted(x1, x2) - places - 1, 0)
    start = 0
    while start < len(order):
        totals = counts[start:].cumsum()
        stop = start + max(1, int(np.searchsorted(totals, PAIRS, side="right")))
        some = counts[start:stop]
        first = np.repeat(places[start:stop], some)
        second = first + 1 + np.arange(len(first)) - np.repeat(some.cumsum() - some, some)
        near = (y1[second] < y2[first]) & (y2[second] > y1[first])
        yield order[first[near]], order[second[near]]
        start = stop


def _best_of_each(
    rows: np.ndarray, scores: np.ndarray, same: Mapping[int, Same]
) -> list[list[int]]:
    """Groups of the same object, each with its best row first."""
    groups: dict[int, list[int]] = {}
    for row in rows[np.argsort(-scores[rows], kind="stable")].tolist():
        near = [(iou, best) for best, iou in same.get(row, {}).items() if best in groups]
        if near:
            groups[max(near)[1]].append(row)
        else:
            groups[row] = [row]
    return [*groups.values()]


def _components(rows: Sequence[int], same: Mapping[int, Same]) -> list[list[int]]:
    """Groups of rows that are the same object, directly or by others."""
    left, groups = dict.fromkeys(rows), []
    while left:
        group = [next(iter(left))]
        del left[group[0]]
        for row in group:  # it grows
            near = [one for one in sorted(same.get(row, ())) if one in left]
            group += near
            for one in near:
                del left[one]
        groups.append(group)
    return groups
