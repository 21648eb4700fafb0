"""Signs that a result file means something else than it says: corners, 0..1, other ids.

Metrics do not show this: a file with corners has a low AP, as a weak model has. So the results are
read in other ways too, on some images. The file is refused if another reading finds at least a
third of the objects with an IoU of 0.75, at five places that no single box finds, and twice as many
as COCO's format does. The same with an IoU of 0.5, or at fewer places, is a warning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.checks.findings import short
from visionkit.data.coco.segmentations import to_rle
from visionkit.data.coco.tables import rows_of
from visionkit.errors import DataError, listed, plural
from visionkit.metrics.coco.detections import Detections
from visionkit.metrics.coco.ground_truth import ScoredTruth
from visionkit.metrics.coco.names import CONFIRMED, moved_classes, objects_of

log = logging.getLogger("visionkit")

IMAGES = 50  # on which results are read in other ways
PAIRS = 10_000  # of an object and a detection, after which no further image is read
PER_IMAGE = 50  # detections, those with the highest scores; more if there are more objects
LIKELY = 0.5  # IoU of objects that a reading finds
RIGHT = (0.75, 0.95)  # where that is certain; higher, places may be closer to each other
FITTED = (0.85, 0.95)  # the same for readings with free numbers
SHARE = 1 / 3  # of the objects that a better reading finds at least
GAIN = 0.2  # in the mean IoU of the objects, by which another reading is better at least
PLACES = 5  # of found objects: a constant box finds one
OUTSIDE = 0.05  # of all boxes: more outside their image are a sign

Boxes = np.ndarray  # (N, 4) x, y, w, h unless a name says otherwise


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
    certain, hints = find_doubts(truth, found)
    doubts = [*doubts, *certain]
    if doubts:
        if not trust:
            raise DataError(
                f"{source}: the results seem to mean something else than they say, and are not "
                "scored; convert them, or score them all the same with --trust (trust=True):",
                *(f"  {doubt}" for doubt in doubts),
            )
        log.warning("%s: scored as it is, although" + "\n  %s" * len(doubts), source, *doubts)
    for remark in [*hints, *find_remarks(truth, found)]:
        log.warning("%s: %s", source, remark)


def find_doubts(truth: ScoredTruth, found: Detections) -> tuple[list[str], list[str]]:
    """What speaks against the results, each with its reason: what is certain, what is likely."""
    image = rows_of(found.image_ids, truth.image_ids)
    sample = _sampled(truth, found, image)
    own = _ious(sample, sample.found) if len(sample.objects) else np.zeros(1)
    judged = [
        (True, _relative(truth, found)),
        _other_boxes(sample, own, truth.iou_type),
        _other_images(truth, found, image, own),
        (True, _other_classes(truth, sample)),
    ]
    certain = [doubt for is_certain, doubt in judged if doubt and is_certain]
    likely = [doubt for is_certain, doubt in judged if doubt and not is_certain]
    if not certain and (outside := _outside(truth, found, image)):
        likely.append(outside)
    return certain, likely


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


class Sample(NamedTuple):
    """The objects and the best detections of some images, and all pairs of them in one image."""

    objects: Boxes  # (M, 4)
    found: Boxes  # (N, 4) as the results have them
    sizes: np.ndarray  # (M, 2) w, h of the image of each object; 0 where unknown
    found_sizes: np.ndarray  # (N, 2)
    classes: np.ndarray  # (M,) rows
    found_classes: np.ndarray  # (N,) rows
    images: np.ndarray  # (M,) rows
    found_images: np.ndarray  # (N,) rows
    object: np.ndarray  # (P,) rows, ascending
    detection: np.ndarray  # (P,) rows


def _sampled(truth: ScoredTruth, found: Detections, image: np.ndarray) -> Sample:
    """At most `IMAGES` images, evenly spaced among those with objects and detections."""
    single = np.flatnonzero(~truth.iscrowd)
    counts = np.bincount(truth.image[single], minlength=len(truth.image_ids))
    detections = np.bincount(image, minlength=len(truth.image_ids))
    detections = np.minimum(detections, np.maximum(counts, PER_IMAGE))
    both = np.flatnonzero((counts > 0) & (detections > 0))
    both = both[np.linspace(0, len(both) - 1, min(IMAGES, len(both))).round().astype(int)]
    both = both[np.random.default_rng(0).permutation(len(both))]
    pairs = np.cumsum(counts[both] * detections[both])
    chosen = np.sort(both[(pairs <= PAIRS) | (np.arange(len(both)) == 0)])
    objects = single[np.isin(truth.image[single], chosen)]
    objects = objects[np.argsort(truth.image[objects], kind="stable")]
    rows = np.flatnonzero(np.isin(image, chosen))
    rows = rows[np.lexsort((-found.scores[rows], image[rows]))]
    starts = np.searchsorted(image[rows], image[rows])
    rows = rows[np.arange(len(rows)) - starts < detections[image[rows]]]
    images, found_images = truth.image[objects], image[rows]
    repeats = np.searchsorted(found_images, images, "right") - np.searchsorted(found_images, images)
    first = np.searchsorted(found_images, images) - np.cumsum(repeats) + repeats
    return Sample(
        _bounds(truth.masks, truth.boxes, objects, truth.sizes[images]),
        _bounds(found.masks, found.boxes, rows, truth.sizes[found_images]),
        truth.sizes[images, ::-1],
        truth.sizes[found_images, ::-1],
        truth.category[objects],
        rows_of(found.category_ids[rows], truth.category_ids),
        images,
        found_images,
        np.repeat(np.arange(len(objects)), repeats),
        np.repeat(first, repeats) + np.arange(repeats.sum()),
    )


def _bounds(
    masks: list[Any] | None, boxes: Boxes | None, rows: np.ndarray, sizes: np.ndarray
) -> Boxes:
    """The boxes in those rows, or those around the masks."""
    if masks is None:
        assert boxes is not None
        return boxes[rows]
    codes = [
        to_rle(masks[row], size) for row, size in zip(rows.tolist(), sizes.tolist(), strict=True)
    ]
    return np.asarray(coco_mask.toBbox(codes)).reshape(-1, 4)


def _iou(one: Boxes, other: Boxes) -> np.ndarray:
    """(..., ) of boxes (..., 4) that are broadcast."""
    sides, other_sides = one[..., 2:].clip(0), other[..., 2:].clip(0)
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., :2] + sides, other[..., :2] + other_sides)
    width, height = np.moveaxis((high - low).clip(0), -1, 0)
    shared = width * height
    total = sides[..., 0] * sides[..., 1] + other_sides[..., 0] * other_sides[..., 1] - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def _ious(sample: Sample, found: Boxes, objects: Boxes | None = None) -> np.ndarray:
    """(M,) of each object with the nearest detection of any class in its image."""
    objects = sample.objects if objects is None else objects
    if not len(objects):
        return np.zeros(0)
    pairs = _iou(objects[sample.object], found[sample.detection])
    starts = np.searchsorted(sample.object, np.arange(len(objects)))
    return np.maximum.reduceat(pairs, starts)


def _verdict(
    sample: Sample,
    own: np.ndarray,
    other: np.ndarray,
    objects: Boxes,
    levels: Sequence[float] = RIGHT,
) -> float:
    """The IoU (one of `levels`) at which another reading is certain, `LIKELY` if it is likely, and
    0 if neither. `own` and `other` are IoUs of objects, `own` those as the file stands."""
    if not len(other) or other.mean() < own.mean() + GAIN:
        return 0.0
    for level in (*levels, LIKELY):
        share = (other >= level).mean()
        is_better = share >= SHARE and share >= 2 * (own >= level).mean()
        if is_better and (level == LIKELY or _places(sample, objects, other, level) >= PLACES):
            return level
    return 0.0


def _places(sample: Sample, objects: Boxes, ious: np.ndarray, level: float) -> int:
    """At how many different places objects are found, at most `PLACES`: in pixels and in parts of
    their image. 1 - IoU is a distance, so no box finds two objects of an IoU below 2 level - 1."""
    rows = np.flatnonzero(ious >= level)
    sizes = np.where(sample.sizes > 0, sample.sizes, 1.0)[rows]
    counts = []
    for boxes in (objects[rows], objects[rows] / np.tile(sizes, 2)):
        places = boxes[:0]
        for box in boxes:
            if len(places) < PLACES and not (_iou(places, box) >= 2 * level - 1).any():
                places = np.concatenate([places, box[None]])
        counts.append(len(places))
    return min(counts)


XYWH, CORNERS = "[x, y, width, height]", "corners [x1, y1, x2, y2]"
EXCHANGED = "[y, x, height, width]"
ORDERS: dict[str, Callable[[Boxes], Boxes]] = {
    XYWH: lambda b: b,
    CORNERS: lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1),
    "[center x, center y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, 2:]], 1
    ),
    "corners [y1, x1, y2, x2]": lambda b: np.concatenate(
        [b[:, 1::-1], b[:, :1:-1] - b[:, 1::-1]], 1
    ),
    EXCHANGED: lambda b: b[:, [1, 0, 3, 2]],
    "[x, y, height, width]": lambda b: b[:, [0, 1, 3, 2]],
    "[center x, center y, width / 2, height / 2]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:], 2 * b[:, 2:]], 1
    ),
    "[x1, x2, y1, y2]": lambda b: np.concatenate([b[:, ::2], b[:, 1::2] - b[:, ::2]], 1),
}
UNITS = {1.0: "relative to the image (0 to 1)", 100.0: "in percent", 1000.0: "from 0 to 1000"}


def _other_boxes(sample: Sample, own: np.ndarray, iou_type: str) -> tuple[bool, str | None]:
    """Whether another reading of the boxes is certain, and the best one that is much better."""
    best: tuple[tuple[bool, float], str] | None = None

    def compare(text: str, found: Boxes, objects: Boxes, levels: Sequence[float] = RIGHT) -> None:
        nonlocal best
        ious = _ious(sample, found, objects)
        level = _verdict(sample, own, ious, objects, levels)
        rank = (level > LIKELY, round(float(ious.mean()), 2))  # the first of equal ones
        if level and (best is None or rank > best[0]):
            best = (
                rank,
                (
                    f"{text}, not like {expected}: read so, {np.count_nonzero(ious >= level)} of "
                    f"{plural(len(own), 'object')} have an IoU of {level:g} or more with a result, "
                    f"else {np.count_nonzero(own >= level)}"
                ),
            )

    expected = f"{XYWH} in pixels" if iou_type == "bbox" else "masks"
    if len(sample.objects) and own.mean() <= 1 - GAIN:  # else no other reading is much better
        for name, found in _readings(sample, iou_type):
            compare(f"boxes look like {name}", found, sample.objects)
        if iou_type == "bbox":
            objects = ORDERS[CORNERS](sample.objects)
            compare(f"boxes of the annotations look like {CORNERS}", sample.found, objects)
            if best is None or not best[0][0]:
                for name, found in _resized(sample):
                    compare(f"boxes look like {name}", found, sample.objects, FITTED)
    return (False, None) if best is None else (best[0][0], best[1])


def _readings(sample: Sample, iou_type: str) -> Iterator[tuple[str, Boxes]]:
    """Other meanings of boxes, and the boxes then; of masks: their boxes."""
    x, y, w, h = sample.found.T
    width, height = sample.found_sizes.T
    mirrored = np.stack([width - x - w, y, w, h], 1)
    upside_down = np.stack([x, height - y - h, w, h], 1)
    if iou_type == "segm":
        yield "masks with x and y exchanged", ORDERS[EXCHANGED](sample.found)
        yield "masks mirrored left to right", mirrored
        yield "masks upside down", upside_down
        return
    for order, read in ORDERS.items():
        boxes = read(sample.found)
        if order != XYWH:
            yield order, boxes
        for unit, text in UNITS.items():
            yield f"{order} {text}", boxes * np.tile(sample.found_sizes / unit, 2)
    yield f"{XYWH} with x from the right", mirrored
    yield f"{XYWH} with y from the bottom", upside_down


def _resized(sample: Sample) -> Iterator[tuple[str, Boxes]]:
    """Boxes in the pixels of resized images: by one factor, or to one size."""
    images, starts = np.unique(sample.images, return_index=True)
    if len(images) < PLACES or not (sample.sizes > 0).all():
        return
    sizes = sample.sizes[starts]
    objects = np.maximum.reduceat(sample.objects[:, :2] + sample.objects[:, 2:], starts)
    first = np.searchsorted(sample.found_images, sample.found_images)
    counts = np.bincount(sample.images)[sample.found_images]
    best = np.arange(len(sample.found)) - first < counts  # as many as there are objects
    starts = np.unique(sample.found_images[best], return_index=True)[1]
    for order in (XYWH, CORNERS):
        boxes = ORDERS[order](sample.found)
        ends = np.maximum.reduceat((boxes[:, :2] + boxes[:, 2:])[best], starts)
        ratios = ends / np.maximum(objects, 1e-9)
        factor, size = np.median(ratios), np.median(ratios * sizes, 0)
        if factor > 0 and (size > 0).all():
            yield f"{order} of images resized by {factor:.2g}", boxes / factor
            to = f"to about {size[0]:.0f} x {size[1]:.0f} pixels"
            scales = np.tile(sample.found_sizes / size, 2)
            yield f"{order} of images resized {to}", boxes * scales


def _relative(truth: ScoredTruth, found: Detections) -> str | None:
    """Boxes from 0 to 1, also where the sizes of the images are unknown."""
    sides = truth.boxes[~truth.iscrowd, 2:]
    if found.boxes is None or (truth.sizes > 0).all() or len(sides) < PLACES:
        return None
    largest = float(np.abs(found.boxes).max(initial=0))
    varied = len(np.unique(found.boxes, axis=0)) >= PLACES if largest <= 1.01 else False
    if varied and largest > 0.5 and np.median(sides) > 2:
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
    truth: ScoredTruth, found: Detections, image: np.ndarray, own: np.ndarray
) -> tuple[bool, str | None]:
    """Whether image ids are certainly shifted or places in the list of images, and which."""
    likely = None
    for name, rows in _other_rows(found.image_ids, truth.image_ids).items():
        if np.array_equal(rows, image) or (rows < 0).any() or own.mean() > 1 - GAIN:
            continue
        sample = _sampled(truth, found, rows)
        ious = _ious(sample, sample.found)
        if level := _verdict(sample, own, ious, sample.objects):
            text = (
                f"image_id seems to be {name}: then the mean IoU of objects with the nearest "
                f"result is {ious.mean():.2f}, else {own.mean():.2f}"
            )
            if level > LIKELY:
                return True, text
            likely = likely or text
    return False, likely


def _other_classes(truth: ScoredTruth, sample: Sample) -> str | None:
    """Category ids that are shifted, are places in the list of categories, or in another order."""
    if not len(sample.objects):
        return None
    pairs = _iou(sample.objects[sample.object], sample.found[sample.detection])
    starts = np.searchsorted(sample.object, np.arange(len(sample.objects)))
    best = np.maximum.reduceat(pairs, starts)[sample.object]
    one, label = sample.classes[sample.object], sample.found_classes[sample.detection]
    nearest = np.flatnonzero((pairs >= RIGHT[0]) & (pairs >= best - 1e-9))
    nearest = nearest[np.lexsort((one[nearest] != label[nearest], sample.object[nearest]))]
    nearest = nearest[np.unique(sample.object[nearest], return_index=True)[1]]
    seen = Counter(zip(one[nearest].tolist(), label[nearest].tolist(), strict=True))
    moved = moved_classes(seen)
    if not moved:
        return None
    total, right = seen.total(), sum(n for (a, b), n in seen.items() if a == b)
    of = f"of {total} objects that are found, {right} are found as their class"
    for name, rows in _other_rows(truth.category_ids, truth.category_ids).items():
        if all(a == rows[b] for a, b in moved.items()) and len(truth.names) > 2:
            other = sum(n for (a, b), n in seen.items() if a == rows[b])
            if other >= CONFIRMED * total:
                return f"category_id seems to be {name}: {of}, and {other} if it is read so"
    if {*moved} != {*moved.values()} and 2 * objects_of(moved, seen) <= total:
        return None
    shown = [f"{truth.names[a]!r} as {truth.names[b]!r}" for a, b in moved.items()]
    return f"category_id looks exchanged: {of}; found are {listed(shown, 5)}"


def _outside(truth: ScoredTruth, found: Detections, image: np.ndarray) -> str | None:
    """Boxes of which too many lie outside their image."""
    if found.boxes is None or not len(found):
        return None
    width, height = truth.sizes[image, ::-1].T
    x, y, w, h = found.boxes.T
    beyond = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    beyond &= (width > 0) & (height > 0)
    if np.count_nonzero(beyond) <= OUTSIDE * len(found):
        return None
    i = int(np.flatnonzero(beyond)[0])
    return (
        f"{np.count_nonzero(beyond)} of {len(found)} boxes lie outside their image (result {i} "
        f"is {short(found.boxes[i].tolist())} in {width[i]}x{height[i]}): are they of another size "
        "of the images, or of other images, or are the sizes in the annotations wrong?"
    )
