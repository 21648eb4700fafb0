"""One prediction of those for several views of an image. In numpy: exported models use it without
torch.

Objects of one window of the image (mirrored, scaled) are merged by weighted boxes fusion; those of
the whole image and its tiles are then joined at the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from visionkit.errors import ArgumentError, listed
from visionkit.ops.fusion import TINY, Objects, fused
from visionkit.ops.original import Samples, cells_at, semantic_map
from visionkit.ops.seams import joined
from visionkit.ops.views import View
from visionkit.types import Size, as_numpy

Found = Sequence[Mapping[str, Any]]  # a `HeadPrediction` for each view
RAMP = 0.25  # see `_weights`
BAND = 2**22  # probabilities of a semantic map at a time: 16 MB
# What a prediction of each kind has, and what it can have besides.
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "objects": ({"boxes", "scores", "labels"}, {"masks", "attributes"}),
    "maps": ({"logits", "size", "padded"}, set()),
    "classes": ({"probs"}, {"label", "score"}),
    "box": ({"probs", "box"}, {"label", "score"}),
    "embedding": ({"embedding"}, set()),
}


def merged(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """The prediction (arrays) for an image, of those for its `views`, in the pixels of each view.

    ArgumentError for predictions without a rule, see `refusal`.
    """
    if reason := refusal(found[0], tiles=any(view.is_tile for view in views)):
        raise ArgumentError(reason)
    return MERGE[_kind(found[0])](found, views)


def refusal(prediction: Mapping[str, Any], *, tiles: bool) -> str:
    """Why predictions like this one cannot be merged; "" if they can."""
    if "reconstruction" in prediction:
        return "it reconstructs the image that it is given: there is nothing to merge"
    kind = _kind(prediction)
    if not kind:
        return (
            f"there is no rule to merge predictions of {listed(sorted(prediction))}; "
            "a custom head can have one: its method merge()"
        )
    if tiles and kind in ("classes", "box", "embedding"):
        return "it describes the whole image, and a tile shows a part of it: only tta applies"
    return ""


def _kind(prediction: Mapping[str, Any]) -> str:
    """The key of `KINDS`; "" for none."""
    keys = prediction.keys()
    fits = (kind for kind, (has, can) in KINDS.items() if has <= keys <= has | can)
    return next(fits, "")


def merge_objects(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """`boxes`, `scores`, `labels` and, where there are any, `masks` and `attributes`."""
    windows = [*dict.fromkeys(view.window for view in views)]
    parts = []
    for window in windows:
        own = [Objects.of(f, v) for f, v in zip(found, views, strict=True) if v.window == window]
        parts.append(own[0] if len(own) == 1 else fused(own))
    if len(parts) == 1:
        return parts[0].prediction()
    return joined(parts, [View(views[0].image, window) for window in windows]).prediction()


def merge_classes(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """The mean of `probs`, and its `label` and `score`."""
    probs = mean_of(found, "probs")
    label = np.asarray(probs.argmax())
    return {"probs": probs, "label": label, "score": np.asarray(probs[label])}


def merge_box(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """As `merge_classes`, and the mean of the boxes."""
    boxes = [view.boxes(as_numpy(one["box"])) for one, view in zip(found, views, strict=True)]
    return merge_classes(found, views) | {"box": np.mean(boxes, 0, np.float32)}


def merge_embedding(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """The mean of the vectors, of length 1 again."""
    mean = mean_of(found, "embedding")
    return {"embedding": mean / max(float(np.linalg.norm(mean)), TINY)}


def mean_of(found: Found, key: str) -> np.ndarray:
    """The mean of an array over the views, float32."""
    return np.stack([as_numpy(one[key]) for one in found]).mean(0, dtype=np.float32)


def merge_maps(found: Found, views: Sequence[View]) -> dict[str, Any]:
    """`semantic`: at each pixel the class with the highest mean probability.

    `logits` (K, hl, wl) of a view cover its `padded` (h, w), of which `size` is valid. They are
    interpolated as for a single image. The whole image and its tiles count the same, but a tile
    counts less near its borders, where it sees less of what is around; see `_weights`. Some rows
    are computed at a time, so that memory does not grow with the image.
    """
    if len(views) == 1 and not views[0].flip:
        one = found[0]
        return {"semantic": semantic_map(as_numpy(one["logits"]), *_place(one), views[0].size)}
    height, width = views[0].image
    maps = [
        cells_at(as_numpy(one["logits"]), *_place(one), view.size)
        for one, view in zip(found, views, strict=True)
    ]
    weights = [_weights(view) for view in views]
    classes = len(maps[0][0])
    labels = np.empty((height, width), np.uint8)
    step = max(1, BAND // (classes * width))
    for start in range(0, height, step):
        stop = min(start + step, height)
        total = np.zeros((stop - start, classes, width), np.float32)
        for view, (cells, rows, columns), (of_rows, of_columns) in zip(
            views, maps, weights, strict=True
        ):
            left, top, right, bottom = view.window
            first, last = max(start, top), min(stop, bottom)
            if first >= last:
                continue
            part = rows.part(first - top, last - top)
            low, high = int(part.cell[0]), int(part.next_cell[-1]) + 1
            band = part._replace(cell=part.cell - low, next_cell=part.next_cell - low)
            logits = band.of(_lines(cells[:, low:high], columns))
            probs = _softmax(logits.reshape(last - first, classes, -1))
            probs = probs[..., ::-1] if view.flip else probs
            probs *= of_rows[first - top : last - top, None, None] * of_columns
            total[first - start : last - start, :, left:right] += probs
        labels[start:stop] = total.argmax(1)
    return {"semantic": labels}


def _place(one: Mapping[str, Any]) -> tuple[Size, Size]:
    return one["size"], one["padded"]


def _lines(cells: np.ndarray, columns: Samples) -> np.ndarray:
    """Cells (K, c, wl) at the columns of the image: (c, K * w)."""
    classes, count, across = cells.shape
    found = columns.of(np.ascontiguousarray(cells.reshape(classes * count, across).T))
    return found.T.reshape(classes, count, -1).swapaxes(0, 1).reshape(count, -1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Of (rows, K, columns), in place."""
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _weights(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows (h,) and columns (w,) of a view: 1; within `RAMP` of a tile's side from a border
    inside the image it falls to zero."""
    left, top, right, bottom = view.window
    found = []
    for start, stop, side in zip((top, left), (bottom, right), view.image, strict=True):
        places = np.arange(stop - start, dtype=np.float32) + np.float32(0.5)
        before = places if start > 0 else np.full_like(places, np.inf)
        after = places[::-1] if stop < side else np.full_like(places, np.inf)
        found.append((np.minimum(before, after) / (RAMP * (stop - start))).clip(max=1))
    return found[0], found[1]


MERGE: dict[str, Callable[[Found, Sequence[View]], dict[str, Any]]] = {
    "objects": merge_objects,
    "maps": merge_maps,
    "classes": merge_classes,
    "box": merge_box,
    "embedding": merge_embedding,
}
