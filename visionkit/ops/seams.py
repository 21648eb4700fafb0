"""Objects found in the whole image and in its tiles, joined at the seams. In numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.ops.fusion import Objects, means, overlap
from visionkit.ops.views import View

SEAM_IOU = 0.5  # of boxes of two windows, within what both see
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
    groups: list[list[int]] = []
    for label in np.unique(every.labels):
        own = every.labels == label
        same = _Same(every.boxes, regions, of)
        whole = _best_of_each(np.flatnonzero(own & ~cut), every.scores, same)
        pieces = np.flatnonzero(own & cut & ~seen)
        kept = np.array([group[0] for group in whole], np.intp)
        alone = [row for row in pieces.tolist() if not same(row, kept).any()]
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


@dataclass
class _Same:
    """Which boxes are the same object, see `joined`."""

    boxes: np.ndarray  # (N, 4)
    regions: np.ndarray  # (N, 4): the window of each
    of: np.ndarray  # (N,): its number

    def __call__(self, row: int, others: np.ndarray) -> np.ndarray:
        """The IoU (M,) of a row with others (M,) where they are the same object, else 0."""
        found = np.zeros(len(others))
        low, high = self.boxes[others, :2].T, self.boxes[others, 2:].T
        x1, y1, x2, y2 = self.boxes[row].tolist()
        near = (low[0] < x2) & (low[1] < y2) & (high[0] > x1) & (high[1] > y1)
        places = np.flatnonzero(near & (self.of[others] != self.of[row]))
        some = others[places]  # few of many: the rest would take most of the time
        low = np.maximum(self.regions[row, :2], self.regions[some, :2])
        high = np.minimum(self.regions[row, 2:], self.regions[some, 2:])
        one, two = (
            np.concatenate([boxes[..., :2].clip(low, high), boxes[..., 2:].clip(low, high)], 1)
            for boxes in (np.broadcast_to(self.boxes[row], (len(some), 4)), self.boxes[some])
        )
        ious = overlap(one, two)
        found[places] = np.where((high > low).all(1) & (ious >= SEAM_IOU), ious, 0)
        return found


def _best_of_each(rows: np.ndarray, scores: np.ndarray, same: _Same) -> list[list[int]]:
    """Groups of the same object, each with its best row first."""
    kept = np.zeros(len(rows), np.intp)
    groups: list[list[int]] = []
    for row in rows[np.argsort(-scores[rows], kind="stable")].tolist():
        ious = same(row, kept[: len(groups)])
        if ious.any():
            groups[int(ious.argmax())].append(row)
        else:
            kept[len(groups)] = row
            groups.append([row])
    return groups


def _components(rows: Sequence[int], same: _Same) -> list[list[int]]:
    """Groups of rows that are the same object, directly or by others."""
    left, groups = [*rows], []
    while left:
        group = [left.pop(0)]
        for row in group:  # it grows
            near = same(row, np.array(left, np.intp)) > 0
            group += [one for one, is_near in zip(left, near, strict=True) if is_near]
            left = [one for one, is_near in zip(left, near, strict=True) if not is_near]
        groups.append(group)
    return groups
