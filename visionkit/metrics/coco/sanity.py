"""Signs that a result file means something else than it says: corners, 0..1, other ids.

Metrics do not show this: a file with corners has a low AP, as a weak model has. So the results are
read in other ways too, on some images. If objects are found much better in another reading than in
the one of COCO's format, the file is refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import short
from visionkit.data.coco.index import CocoIndex
from visionkit.data.coco.segmentations import to_rle
from visionkit.data.coco.selection import FAR
from visionkit.data.coco.tables import rows_of
from visionkit.errors import DataError, listed, plural
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.ground_truth import ScoredTruth

log = logging.getLogger("visionkit")

IMAGES = 50  # on which results are read in other ways
PER_IMAGE = 100  # detections, those with the highest scores
GAIN = 0.15  # in the mean IoU of the objects, by which another reading must be better
UNSURE = 0.3  # the same below a mean IoU of `SURE`
MOVED = 0.2  # the same for readings that move boxes, which no mistake of a model looks like
SHORT = 0.9  # of where objects end: boxes of smaller images do not reach so far
SURE = 0.75  # mean IoU that leaves no doubt about a reading
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


# A meaning of boxes in words, as a function, and the gain it needs below `SURE`.
Reading = tuple[str, Callable[[Pairs], Boxes], float]


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


def _is_better(other: float, own: float, count: int, unsure: float = UNSURE) -> bool:
    gain = GAIN if other >= SURE else unsure
    return count > 0 and other - own > max(gain, FEW / count**0.5)


XYWH, CORNERS = "[x, y, width, height]", "corners [x1, y1, x2, y2]"
EXCHANGED, EXCHANGED_CORNERS = "[y, x, height, width]", "corners [y1, x1, y2, x2]"
SHRINKING = (CORNERS, EXCHANGED_CORNERS)  # most boxes are smaller if they are read so
ORDERS: dict[str, Callable[[Boxes], Boxes]] = {
    XYWH: lambda b: b,
    CORNERS: lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1),
    "[center x, center y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, 2:]], 1
    ),
    EXCHANGED_CORNERS: lambda b: np.concatenate([b[:, 1::-1], b[:, :1:-1] - b[:, 1::-1]], 1),
    EXCHANGED: lambda b: b[:, [1, 0, 3, 2]],
}
UNITS = {1.0: "relative to the image (0 to 1)", 100.0: "in percent", 1000.0: "from 0 to 1000"}


def _other_boxes(pairs: list[Pairs], own: float, iou_type: str) -> str | None:
    """The best other reading of the boxes, if it is much better."""
    count = sum(len(p.objects) for p in pairs)

    def better(readings: Iterable[Reading]) -> list[tuple[float, str]]:
        scores = [(_mean_iou(pairs, read), name, unsure) for name, read, unsure in readings]
        return [(s, name) for s, name, unsure in scores if _is_better(s, own, count, unsure)]

    what, expected = "boxes look", f"{XYWH} in pixels" if iou_type == "bbox" else "masks"
    found = better(_readings(pairs, iou_type))
    if iou_type == "bbox":
        other = _mean_iou([p._replace(objects=ORDERS[CORNERS](p.objects)) for p in pairs])
        unsure = _unsure([p.objects for p in pairs], pairs)
        is_best = all(other > score for score, _ in found)
        if is_best and _is_better(other, own, count, unsure):
            found, what = [(other, CORNERS)], "boxes of the annotations look"
        found = found or better(_fitted(pairs))
    if not found:
        return None
    best, name = max(found, key=lambda score: round(score[0], 2))  # the first of equal ones
    return (
        f"{what} like {name}, not like {expected}: read so, the mean IoU of "
        f"{plural(count, 'object')} with the nearest result is {best:.2f}, else {own:.2f}"
    )


def _readings(pairs: list[Pairs], iou_type: str) -> Iterator[Reading]:
    """Other meanings of boxes; of masks: exchanged axes."""
    if iou_type == "segm":
        yield "masks with x and y exchanged", _reading(EXCHANGED), MOVED
        return
    for order in ORDERS:
        if order != XYWH:
            unsure = _unsure([p.found for p in pairs], pairs) if order in SHRINKING else MOVED
            yield order, _reading(order), unsure
        for unit, text in UNITS.items():
            yield f"{order} {text}", _reading(order, unit), UNSURE


def _reading(
    order: str, size: float | np.ndarray | None = None, factor: float | np.ndarray = 1.0
) -> Callable[[Pairs], Boxes]:
    """Read boxes in that order, in an image of that size, or enlarged by a factor."""

    def read(p: Pairs) -> Boxes:
        scale = 1 / factor if size is None else p.size / size
        return ORDERS[order](p.found) * np.tile(np.broadcast_to(scale, 2), 2)

    return read


def _ends(boxes: Boxes, p: Pairs) -> np.ndarray:
    """(N, 2): where boxes end, in parts of their image; 0 where its size is unknown."""
    return (boxes[:, :2] + boxes[:, 2:]) / np.where(p.size > 0, p.size, np.inf)


def _unsure(boxes: list[Boxes], pairs: list[Pairs]) -> float:
    """The gain that boxes read as corners need. Boxes that are too large fit better as corners,
    too, but they do not reach out of the image: without that, they must be `SURE`."""
    ends = np.concatenate([np.zeros((1, 2)), *map(_ends, boxes, pairs)])
    return UNSURE if (ends > FAR).any(1).mean() > OUTSIDE else 1.0


def _fitted(pairs: list[Pairs]) -> Iterator[Reading]:
    """Boxes in the pixels of resized images: by one factor, or to one size. Only of boxes that
    reach out of their images, or that end where many objects still continue."""
    if len(pairs) < 3:  # two numbers fit to one or two images would fit anything
        return
    sizes = np.array([p.size for p in pairs])
    objects = np.array([_ends(p.objects, p).max(0) for p in pairs])
    reach = np.quantile(_reach(pairs, XYWH), 0.9, axis=0)
    far = bool((reach > FAR).any())
    short = bool((reach < SHORT * np.quantile(objects, 0.9, axis=0)).all())
    for order in [XYWH] * (far or short) + [CORNERS] * far:
        ratios = _reach(pairs, order) / np.maximum(objects, 1e-9)
        factor, size = np.median(ratios, 0), np.median(ratios * sizes, 0)
        if (factor > 0).all() and (size > 0).all():
            by = f"by {factor[0]:.2g} x {factor[1]:.2g}"
            to = f"to about {size[0]:.0f} x {size[1]:.0f} pixels"
            for text, read in ((by, _reading(order, factor=factor)), (to, _reading(order, size))):
                yield f"{order} of images resized {text}", read, UNSURE


def _reach(pairs: list[Pairs], order: str) -> np.ndarray:
    """(P, 2): where the best detections of each image end, as many as it has objects."""
    read = _reading(order)
    return np.array([_ends(read(p)[: len(p.objects)], p).max(0) for p in pairs])


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
