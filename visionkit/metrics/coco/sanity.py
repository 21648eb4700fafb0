"""Signs that a result file means something else than it says: corners, 0..1, other ids.

Metrics do not show this: a file with corners has a low AP, as a weak model has. So the results are
read in other ways too, on some images. If objects are found much better in another reading than in
the one of COCO's format, the file is refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import short
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.segmentations import to_rle
from visionkit.data.coco.tables import rows_of
from visionkit.errors import DataError, listed, plural
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.ground_truth import ScoredTruth

log = logging.getLogger("visionkit")

IMAGES = 50  # on which results are read in other ways
PER_IMAGE = 100  # detections, those with the highest scores
GAIN = 0.1  # in the mean IoU of the objects, by which another reading must be better
FEW = 0.5  # the same for a single object; it falls with the square root of their number
MATCH = 0.5  # IoU of an object and the detection whose class is compared
OUTSIDE = 0.05  # of all boxes: more outside their image are a mistake
FEWEST = 6  # objects for a statement about classes
CONFIRMED = 0.8  # of the objects of a class: more found as one other class are a mistake

Boxes = np.ndarray  # (N, 4) x, y, w, h unless a name says otherwise
NAME_KEYS = ("category_name", "class_name", "category", "class", "label", "name")


def judge(
    source: str,
    truth: ScoredTruth,
    found: Detections,
    doubts: Sequence[str] = (),
    *,
    trust: bool = False,
) -> None:
    """DataError if checked results, or the `doubts` about them, say that they mean something else;
    with `trust` a warning. Logs what lowers metrics without being wrong."""
    doubts = [*doubts, *find_doubts(truth, found)]
    if doubts:
        if not trust:
            raise DataError(
                f"{source}: the results seem to mean something else than they say, and are not "
                "scored; convert them, or score them all the same with --trust (trust=True):",
                *(f"  {doubt}" for doubt in doubts),
            )
        log.warning("%s: scored as it is, although" + "\n  %s" * len(doubts), source, *doubts)
    for remark in find_remarks(truth, found):
        log.warning("%s: %s", source, remark)


class NameCheck:
    """Compares the names of images and classes in result records with those of their ids."""

    def __init__(self, index: CocoIndex, truth: ScoredTruth) -> None:
        self.images = dict(zip(index.images.ids.tolist(), index.images.names.texts(), strict=True))
        self.classes = dict(zip(truth.category_ids.tolist(), truth.names, strict=True))
        self.known = {name.casefold() for name in truth.names}
        self.counts: Counter[str] = Counter()  # contradictions by key
        self.first: dict[str, str] = {}
        self.seen = 0

    def add(self, records: Sequence[Any]) -> None:
        """Check some more records."""
        for number, record in enumerate(records, self.seen):
            if isinstance(record, dict) and len(record) > 4:
                for key, contradiction in self._contradictions(record):
                    self.counts[key] += 1
                    self.first.setdefault(key, f"result {number}: {contradiction}")
        self.seen += len(records)

    def doubts(self) -> list[str]:
        """One for each key that contradicts the ids."""
        return [
            self.first[key] + (f" (and {count - 1} more)" if count > 1 else "")
            for key, count in self.counts.items()
        ]

    def _contradictions(self, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if "file_name" in record:
            id_, name = record.get("image_id"), str(record["file_name"])
            known = self.images.get(id_) if isinstance(id_, int) else None
            if known and PurePath(name).name != PurePath(known).name:
                yield (
                    "file_name",
                    f"image_id {id_} is the image {name!r} there, and {known!r} in the "
                    "annotations. `visionkit predict` counts images from 1; `visionkit eval RUN` "
                    "writes files to score, with the ids of its data, to RUN/eval",
                )
        for key in NAME_KEYS:
            text, id_ = record.get(key), record.get("category_id")
            if not isinstance(text, str) or not isinstance(id_, int) or id_ not in self.classes:
                continue
            is_class = key == "category_name" or text.casefold() in self.known
            if is_class and text.casefold() != self.classes[id_].casefold():
                yield (
                    key,
                    f"{key} is {short(text)}, but category_id {id_} is "
                    f"{short(self.classes[id_])} in the annotations: use their ids",
                )


class Pairs(NamedTuple):
    """The objects and the best detections of an image."""

    size: np.ndarray  # (2,) w, h; 0 where unknown
    objects: Boxes  # (M, 4)
    found: Boxes  # (N, 4) as the results have them
    classes: np.ndarray  # (M,) rows
    found_classes: np.ndarray  # (N,) rows


def find_doubts(truth: ScoredTruth, found: Detections) -> list[str]:
    """What speaks against the results, each with its reason."""
    image = rows_of(found.image_ids, truth.image_ids)
    pairs = _sampled(truth, found, image)
    own = _mean_iou(pairs)
    doubts = [
        doubt
        for doubt in (
            _relative(truth, found),
            _other_boxes(pairs, own, truth.iou_type),
            _other_images(truth, found, image, own),
            _other_classes(truth, pairs),
        )
        if doubt
    ]
    return doubts or _outside(truth, found, image)


def find_remarks(truth: ScoredTruth, found: Detections) -> list[str]:
    """What lowers metrics, but may be meant."""
    if not len(found):
        return ["there are no results: every object counts as missed"]
    remarks = []
    low, high = float(found.scores.min()), float(found.scores.max())
    if low == high and len(found) > 1:
        remarks.append(
            f"all {len(found)} scores are {low:g}: results of equal scores have no ranking, so AP "
            "depends on their order in the file"
        )
    mixed = np.sort(_mixed(found))
    if repeated := int((mixed[1:] == mixed[:-1]).sum()):
        remarks.append(
            f"{plural(repeated, 'result repeats', 'results repeat')} another one exactly: each "
            "counts as a false positive"
        )
    counts = np.bincount(truth.category[~truth.iscrowd], minlength=len(truth.names))
    silent = np.flatnonzero((counts > 0) & ~np.isin(truth.category_ids, found.category_ids))
    if len(silent):
        names = listed([repr(truth.names[row]) for row in silent.tolist()], 5)
        remarks.append(
            f"no result is of class {names}: all {counts[silent].sum()} objects count as missed"
        )
    with_objects = np.unique(truth.image[~truth.iscrowd])
    missed = np.setdiff1d(with_objects, rows_of(found.image_ids, truth.image_ids))
    if 2 * len(missed) > len(with_objects):
        remarks.append(
            f"{len(missed)} of {len(with_objects)} images with objects have no result (the first: "
            f"image_id {truth.image_ids[missed[0]]}): all their objects count as missed"
        )
    return remarks


def _mixed(found: Detections) -> np.ndarray:
    """(N,) uint64: one number of each detection, by which equal ones are found."""
    if found.boxes is not None:
        shapes = list((found.boxes + 0.0).view(np.uint64).T)  # of -0.0 the bits of 0.0
    else:
        codes = [hash(mask["counts"]) for mask in found.masks or []]
        shapes = [np.array(codes, np.int64).view(np.uint64)]
    columns = [found.image_ids, found.category_ids, found.scores + 0.0, *shapes]
    mixed = np.zeros(len(found), np.uint64)
    for column in columns:
        mixed = (mixed ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _sampled(truth: ScoredTruth, found: Detections, image: np.ndarray) -> list[Pairs]:
    """At most `IMAGES` images, evenly spaced among those with objects and detections."""
    single = np.flatnonzero(~truth.iscrowd)
    both = np.intersect1d(truth.image[single], image)
    chosen = both[np.linspace(0, len(both) - 1, min(IMAGES, len(both))).round().astype(int)]
    objects = single[np.isin(truth.image[single], chosen)]
    rows = np.flatnonzero(np.isin(image, chosen))
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    category = rows_of(found.category_ids, truth.category_ids)
    pairs = []
    for i in chosen.tolist():
        mine = objects[truth.image[objects] == i]
        theirs = rows[image[rows] == i][:PER_IMAGE]
        size = truth.sizes[i]
        boxes = _bounds(truth.masks, truth.boxes, mine, size)
        pairs.append(
            Pairs(
                size[::-1],
                boxes,
                _bounds(found.masks, found.boxes, theirs, size),
                truth.category[mine],
                category[theirs],
            )
        )
    return pairs


def _bounds(
    masks: list[Any] | None, boxes: Boxes | None, rows: np.ndarray, size: np.ndarray
) -> Boxes:
    """The boxes in those rows, or those around the masks."""
    if masks is None:
        assert boxes is not None
        return boxes[rows]
    codes = [to_rle(masks[row], size.tolist()) for row in rows.tolist()]
    return np.asarray(coco_mask.toBbox(codes)).reshape(-1, 4)


def _iou(objects: Boxes, found: Boxes) -> np.ndarray:
    """(M, N)."""
    sides, found_sides = objects[:, 2:].clip(0), found[:, 2:].clip(0)
    low = np.maximum(objects[:, None, :2], found[:, :2])
    high = np.minimum((objects[:, :2] + sides)[:, None], found[:, :2] + found_sides)
    shared = (high - low).clip(0).prod(2)
    total = sides.prod(1)[:, None] + found_sides.prod(1) - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def _mean_iou(pairs: list[Pairs], read: Callable[[Pairs], Boxes] | None = None) -> float:
    """Over the objects, the IoU of each with the nearest detection of any class in its image."""
    best = [_iou(p.objects, read(p) if read else p.found).max(1) for p in pairs]
    return float(np.concatenate(best).mean()) if best else 0.0


def _is_better(other: float, own: float, count: int) -> bool:
    return count > 0 and other - own > max(GAIN, FEW / count**0.5)


CORNERS = "corners [x1, y1, x2, y2]"
ORDERS: dict[str, Callable[[Boxes], Boxes]] = {
    "[x, y, width, height]": lambda b: b,
    CORNERS: lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1),
    "[center x, center y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, 2:]], 1
    ),
    "corners [y1, x1, y2, x2]": lambda b: np.concatenate(
        [b[:, 1::-1], b[:, :1:-1] - b[:, 1::-1]], 1
    ),
    "[y, x, height, width]": lambda b: b[:, [1, 0, 3, 2]],
}
UNITS = {1.0: "relative to the image (0 to 1)", 100.0: "in percent", 1000.0: "from 0 to 1000"}


def _readings(pairs: list[Pairs], iou_type: str) -> Iterator[tuple[str, Callable[[Pairs], Boxes]]]:
    """Other meanings of boxes, in words and as a function; of masks: exchanged axes."""
    if iou_type == "segm":
        yield "masks with x and y exchanged", lambda p: ORDERS["[y, x, height, width]"](p.found)
        return
    for order, to_xywh in ORDERS.items():
        if to_xywh is not ORDERS["[x, y, width, height]"]:
            yield order, lambda p, to_xywh=to_xywh: to_xywh(p.found)  # type: ignore[misc]  # mypy
        for unit, text in UNITS.items():
            yield (
                f"{order} {text}",
                lambda p, to_xywh=to_xywh, unit=unit: to_xywh(p.found) * np.tile(p.size, 2) / unit,  # type: ignore[misc]  # mypy
            )
    for order in ("[x, y, width, height]", CORNERS):
        yield from _rescaled(pairs, order)


def _rescaled(pairs: list[Pairs], order: str) -> Iterator[tuple[str, Callable[[Pairs], Boxes]]]:
    """Boxes in the pixels of resized images: by one factor, or to one size."""
    to_xywh = ORDERS[order]

    def ends(boxes: Boxes) -> np.ndarray:
        return (boxes[:, :2] + boxes[:, 2:]).max(0)

    ratios = [ends(to_xywh(p.found[: len(p.objects)])) / ends(p.objects).clip(1) for p in pairs]
    if len(ratios) < 3:  # two numbers fit to one or two images would fit anything
        return
    factor = np.median(ratios, 0)
    size = np.median([ratio * p.size for ratio, p in zip(ratios, pairs, strict=True)], 0)
    if (factor > 0).all() and (np.abs(factor - 1) > GAIN).any():
        text = f"{order} of images resized by {factor[0]:.2g} x {factor[1]:.2g}"
        yield text, lambda p: to_xywh(p.found) / np.tile(factor, 2)
    if (size > 0).all():
        text = f"{order} of images resized to about {size[0]:.0f} x {size[1]:.0f} pixels"
        yield text, lambda p: to_xywh(p.found) * np.tile(p.size / size, 2)


def _other_boxes(pairs: list[Pairs], own: float, iou_type: str) -> str | None:
    """The best other reading of the boxes, if it is much better."""
    scores = [(_mean_iou(pairs, read), name) for name, read in _readings(pairs, iou_type)]
    best, name = max(scores, key=lambda score: score[0])
    count = sum(len(p.objects) for p in pairs)
    if iou_type == "bbox":
        other = _mean_iou([p._replace(objects=ORDERS[CORNERS](p.objects)) for p in pairs])
        if other > best and _is_better(other, own, count):
            return (
                f"boxes of the annotations look like {CORNERS}: read so, the mean IoU of "
                f"{plural(count, 'object')} with the nearest result is {other:.2f}, else {own:.2f}"
            )
    if not _is_better(best, own, count):
        return None
    expected = "masks" if iou_type == "segm" else "[x, y, width, height] in pixels"
    return (
        f"boxes look like {name}, not like {expected}: read so, the mean IoU of "
        f"{plural(count, 'object')} with the nearest result is {best:.2f}, else {own:.2f}"
    )


def _relative(truth: ScoredTruth, found: Detections) -> str | None:
    """Boxes from 0 to 1, also where the sizes of the images are unknown."""
    if found.boxes is None or not len(found) or truth.iscrowd.all() or (truth.sizes > 0).all():
        return None
    largest = float(np.abs(found.boxes).max())
    if largest <= 1.01 and np.median(truth.boxes[~truth.iscrowd, 2:]) > 2:
        return f"boxes look relative to the image (0 to 1): no number is above {largest:.2g}"
    return None


def _other_rows(ids: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """What ids may be instead of ids, each with the rows they then stand for; -1 for none."""
    count = len(known)
    return {
        "one too low": rows_of(ids + 1, known),
        "one too high": rows_of(ids - 1, known),
        "the place in the list, from 0": np.where((ids >= 0) & (ids < count), ids, -1),
        "the place in the list, from 1": np.where((ids > 0) & (ids <= count), ids - 1, -1),
    }


def _other_images(
    truth: ScoredTruth, found: Detections, image: np.ndarray, own: float
) -> str | None:
    """Image ids that are shifted, or are places in the list of images."""
    for name, rows in _other_rows(found.image_ids, truth.image_ids).items():
        if np.array_equal(rows, image) or (rows < 0).any():
            continue
        pairs = _sampled(truth, found, rows)
        other = _mean_iou(pairs)
        if _is_better(other, own, sum(len(p.objects) for p in pairs)):
            return (
                f"image_id seems to be {name}: then the mean IoU of objects with the nearest "
                f"result is {other:.2f}, else {own:.2f}"
            )
    return None


def _other_classes(truth: ScoredTruth, pairs: list[Pairs]) -> str | None:
    """Category ids that are shifted, are places in the list of categories, or are exchanged."""
    seen: Counter[tuple[int, int]] = Counter()  # rows: class of an object, of its detection
    for p in pairs:
        ious = _iou(p.objects, p.found)
        for i in np.flatnonzero(ious.max(1) >= MATCH).tolist():
            labels = p.found_classes[ious[i] >= ious[i].max() - 1e-9]
            label = p.classes[i] if p.classes[i] in labels else labels[0]
            seen[int(p.classes[i]), int(label)] += 1
    total, right = seen.total(), sum(n for (one, label), n in seen.items() if one == label)
    if total < FEWEST:
        return None
    of = f"of {total} objects that are found, {right} are found as their class"
    for name, rows in _other_rows(truth.category_ids, truth.category_ids).items():
        corrected = {one for one, label in seen if one != label and one == rows[label]}
        other = sum(n for (one, label), n in seen.items() if one == rows[label])
        if len(corrected) > 1 and other >= max(CONFIRMED * total, right + GAIN * total):
            return f"category_id seems to be {name}: {of}, and {other} if it is read so"
    objects: Counter[int] = Counter()
    for (one, _), n in seen.items():
        objects[one] += n
    exchanged = {
        one: label
        for (one, label), n in seen.items()
        if one != label and n > 1 and n >= CONFIRMED * objects[one]
    }
    if {*exchanged} != {*exchanged.values()} or sum(seen[p] for p in exchanged.items()) < FEWEST:
        return None
    shown = [f"{truth.names[a]!r} as {truth.names[b]!r}" for a, b in exchanged.items()]
    return f"category_id looks exchanged: {of}; found are {listed(shown, 5)}"


def _outside(truth: ScoredTruth, found: Detections, image: np.ndarray) -> list[str]:
    """Boxes of which too many lie outside their image."""
    if found.boxes is None or not len(found):
        return []
    width, height = truth.sizes[image, ::-1].T
    x, y, w, h = found.boxes.T
    beyond = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    beyond &= (width > 0) & (height > 0)
    if np.count_nonzero(beyond) <= OUTSIDE * len(found):
        return []
    i = int(np.flatnonzero(beyond)[0])
    return [
        f"{np.count_nonzero(beyond)} of {len(found)} boxes lie outside their image (result {i} "
        f"is {short(found.boxes[i].tolist())} in {width[i]}x{height[i]}): are they of another size "
        "of the images, or of other images, or are the sizes in the annotations wrong?"
    ]
