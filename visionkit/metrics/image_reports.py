"""The parts of reports on heads that say something about whole images, and on attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.errors import VisionkitError
from visionkit.metrics.parts import (
    Bars,
    Chart,
    Gallery,
    Mark,
    Part,
    ReportContext,
    Row,
    Series,
    Shown,
    Table,
    calibration_chart,
    confusion_part,
    most_confused,
    weakest,
)
from visionkit.metrics.thresholds import Curve, Thresholds, at_score

if TYPE_CHECKING:
    from visionkit.data.attributes import Group
    from visionkit.metrics.accuracy import ClassRecord, LocalizationRecord

CURVES = 12  # classes of a chart


def classification_parts(
    names: Sequence[str], records: Sequence[ClassRecord], context: ReportContext
) -> list[Part]:
    """Precision, recall and F1 by class, confusion, calibration and confident mistakes."""
    records = sorted(records)
    truth = np.array([one.truth for one in records], np.int64)
    guess = np.array([one.ranked[0] for one in records], np.int64)
    probs = np.array([one.prob for one in records])
    counts = class_counts(len(names), records)
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for one in records:
        cells[one.truth, one.ranked[0]].append(one.image_id)
    order = np.argsort(-probs, kind="stable")
    ids = [records[i].image_id for i in order]
    shown = [
        Shown(records[i].image_id, f"{names[guess[i]]} {probs[i]:.2f}, is {names[truth[i]]}")
        for i in order[context.picked(ids, (truth != guess)[order])].tolist()
    ]
    note = "Rows: ground truth. Columns: the most probable class."
    return [
        by_class(names, counts),
        confusion_part("Confusion", names, counts, cells, note),
        calibration_chart(probs, truth == guess, "images"),
        Gallery("Most confident mistakes", shown),
    ]


def class_counts(classes: int, records: Sequence[ClassRecord]) -> np.ndarray:
    """(C, C) images by ground truth and most probable class."""
    counts = np.zeros((classes, classes), np.int64)
    for one in records:
        counts[one.truth, one.ranked[0]] += 1
    return counts


def classification_sentences(names: Sequence[str], records: Sequence[ClassRecord]) -> list[str]:
    """The weakest classes and the most frequent confusion."""
    counts = class_counts(len(names), records)
    totals = counts.sum(1)
    with np.errstate(invalid="ignore"):
        found = weakest(names, (np.diag(counts) / totals).tolist(), "accuracy")
    return found + most_confused(names, counts, totals, "taken for", "images")


def by_class(names: Sequence[str], counts: np.ndarray) -> Table:
    """Precision, recall and F1 of each class, from a confusion matrix (C, C)."""
    true, found, right = counts.sum(1), counts.sum(0), np.diag(counts)
    with np.errstate(invalid="ignore"):
        precision, recall, f1 = right / found, right / true, 2 * right / (true + found)
    rows: list[Row] = [
        [name, int(true[k]), float(precision[k]), float(recall[k]), float(f1[k])]
        for k, name in enumerate(names)
    ]
    return Table("By class", ["class", "images", "precision", "recall", "F1"], rows)


def multilabel_parts(
    names: Sequence[str],
    curves: Mapping[str, Curve],
    pooled: Curve,
    thresholds: Thresholds | None,
) -> list[Part]:
    """Precision, recall and F1 at the thresholds, and against the probability."""
    used = thresholds or Thresholds(0.5)
    rows: list[Row] = []
    for name, threshold in zip(names, used.best(names), strict=True):
        rows.append([name, curves[name].positives, threshold, *at_score(curves[name], threshold)])
    columns = ["class", "images", "threshold", "precision", "recall", "F1"]
    lines = [
        Series("precision", pooled.scores, pooled.precision),
        Series("recall", pooled.scores, pooled.recall),
        Series("F1", pooled.scores, pooled.f1, used.common),
    ]
    present = [name for name in names if curves[name].positives]
    shown = sorted(present, key=lambda name: -curves[name].positives)[:CURVES]
    by_name = [
        Series(name, curves[name].scores, curves[name].f1, used.best([name])[0]) for name in shown
    ]
    return [
        Table("By class", columns, rows, "With the threshold of each class."),
        Chart("By probability, all classes", "probability", "", lines, (0, 1)),
        Chart("F1 by probability and class", "probability", "F1", by_name, (0, 1)),
    ]


def multilabel_sentences(metrics: Mapping[str, float]) -> list[str]:
    """The weakest classes, from the metrics."""
    names = [name.removeprefix("AP/") for name in metrics if name.startswith("AP/")]
    return weakest(names, [metrics[f"AP/{name}"] for name in names], "AP")


def localization_parts(
    names: Sequence[str], records: Sequence[LocalizationRecord], context: ReportContext
) -> list[Part]:
    """How near the boxes are, by class and in a histogram, and the worst images."""
    ious = np.array([one.iou for one in records])
    right = np.array([one.right for one in records], bool)
    label = np.array([one.label for one in records], np.int64)
    rows: list[Row] = []
    for k, name in enumerate(names):
        own = label == k
        if own.any():
            located = float((right & (ious >= 0.5))[own].mean())
            rows.append(
                [name, int(own.sum()), float(right[own].mean()), located, float(ious[own].mean())]
            )
        else:
            rows.append([name, 0, None, None, None])
    counts = np.bincount(np.minimum((ious * 10).astype(int), 9), minlength=10)
    histogram = {f"{k / 10:.1f} to {(k + 1) / 10:.1f}": int(n) for k, n in enumerate(counts)}
    worst = sorted(records, key=lambda one: (one.located(0.5), one.iou, one.image_id))
    picked = context.picked([one.image_id for one in worst], np.ones(len(worst), bool))
    shown = [_located(worst[i], names) for i in picked]
    return [
        Table("By class", ["class", "images", "top1", "loc50", "mean IoU"], rows),
        Bars("IoU of the box", histogram, " images"),
        Gallery("Worst images", shown, "The box that was found, and that of the ground truth."),
    ]


def _located(one: LocalizationRecord, names: Sequence[str]) -> Shown:
    marks = [
        Mark("truth", one.truth, names[one.label]),
        Mark("right" if one.located(0.5) else "wrong", one.box, names[one.guess]),
    ]
    return Shown(
        one.image_id, f"IoU {one.iou:.2f}, {names[one.guess]}, is {names[one.label]}", marks
    )


def attribute_parts(
    groups: Mapping[str, Group], classes: Sequence[str], counts: np.ndarray
) -> list[Part]:
    """Accuracy of each attribute next to what its most frequent answer would reach."""
    correct, known = counts[: len(groups)].T
    true, asked = counts[len(groups) + 1 :].T
    rows: list[Row] = []
    for k, (name, group) in enumerate(groups.items()):
        yes = true[group.columns]
        best = yes.max()  # always the most frequent value
        if group.kind != "one_of":  # each value has an answer of its own
            best = np.maximum(yes, asked[group.columns] - yes).sum()
        share = best / known[k] if known[k] else None
        accuracy = correct[k] / known[k] if known[k] else None
        rows.append([name, int(known[k]), accuracy, share])
    columns = ["attribute", "answers", "accuracy", "base rate"]
    note = "Base rate: the accuracy of always giving the most frequent answer."
    return [Table("By attribute", columns, rows, note)]


def semantic_parts(
    names: Sequence[str],
    counts: np.ndarray,
    by_image: Sequence[tuple[int, np.ndarray]],
    context: ReportContext,
    truth_of: Callable[[int], Any],
) -> list[Part]:
    """IoU and Dice by class, pixel confusion, and the images with the most wrong pixels.

    `counts` (C + 1, C + 1); `by_image` image id, and correct, true and predicted pixels of each
    class (3, C + 1); the last class is all those that are not labeled in the image. `truth_of`
    returns the semantic map of an image, None where it is not known.
    """
    own = counts[:-1, :-1]
    true, found, right = counts.sum(1)[:-1], counts.sum(0)[:-1], np.diag(own)
    with np.errstate(invalid="ignore"):
        iou, dice = right / (true + found - right), 2 * right / (true + found)
    rows: list[Row] = [
        [name, int(true[k]), float(iou[k]), float(dice[k])] for k, name in enumerate(names)
    ]
    note = "Pixels. Rows: ground truth. Columns: predictions."
    worst = sorted(by_image, key=lambda one: (one[1][0].sum() / max(one[1][1].sum(), 1), one[0]))
    wrong = [part[0].sum() < part[1].sum() for _, part in worst]
    picked = context.picked([id_ for id_, _ in worst], wrong)
    shown = [_compared(*worst[i], context, truth_of) for i in picked]
    rest = "Pixels without a color are not labeled."
    if counts[-1].any():
        rest += " Classes that are not labeled in an image count as one class there."
    return [
        Table("By class", ["class", "pixels", "IoU", "Dice"], rows),
        confusion_part("Pixel confusion", names, own, {}, note),
        Gallery("Worst images", shown, rest),
    ]


def semantic_sentences(names: Sequence[str], counts: np.ndarray) -> list[str]:
    """The weakest classes and the most frequent confusion, from `counts` (C + 1, C + 1)."""
    own, true, found = counts[:-1, :-1], counts.sum(1)[:-1], counts.sum(0)[:-1]
    with np.errstate(invalid="ignore"):
        iou = np.diag(own) / (true + found - np.diag(own))
    lines = weakest(names, iou.tolist(), "IoU")
    return lines + most_confused(names, own, true, "taken for", "pixels")


def localization_sentences(
    names: Sequence[str], records: Sequence[LocalizationRecord]
) -> list[str]:
    """The weakest classes, and whether the class or the box is wrong."""
    located: list[list[bool]] = [[] for _ in names]
    for one in records:
        located[one.label].append(one.located(0.5))
    shares = [sum(own) / len(own) if own else float("nan") for own in located]
    box = sum(one.right and one.iou < 0.5 for one in records)
    name = sum(not one.right and one.iou >= 0.5 for one in records)
    both = sum(not one.right and one.iou < 0.5 for one in records)
    return [
        *weakest(names, shares, "loc50"),
        f"Of {len(records)} images, {box} have a wrong box alone, {name} a wrong class alone, "
        f"{both} both.",
    ]


def _compared(
    id_: int,
    part: np.ndarray,
    context: ReportContext,
    truth_of: Callable[[int], Any],
) -> Shown:
    correct, true, predicted = part
    caption = f"{correct.sum() / true.sum():.1%} of the pixels are right"
    try:
        if (truth := truth_of(id_)) is None:
            return Shown(id_, caption)
        found = np.asarray(context.predicted(id_)[1]["semantic"].cpu())
    except (OSError, VisionkitError):  # the page says in its place that the image is gone
        return Shown(id_, caption)
    # A class without a pixel of its own does not occur, or is not labeled: then it is of the last.
    known = np.flatnonzero((true + predicted)[:-1])
    index = np.full(256, -1)
    index[known] = known
    right = index[np.asarray(truth)] == index[found]
    difference = np.where(right, np.uint8(1), np.uint8(2)) * np.uint8(np.asarray(truth) != 255)
    return Shown(id_, caption, label_map=difference)


def reconstruction_parts(
    by_image: Sequence[tuple[int, int, int]], context: ReportContext
) -> list[Part]:
    """The images with the largest error next to their reconstruction. `by_image` has id, sum of
    squares and number of values."""
    errors = {id_: squares / max(values, 1) / 255**2 for id_, squares, values in by_image}
    worst = sorted(errors, key=lambda id_: (-errors[id_], id_))
    shown = []
    for id_ in (worst[i] for i in context.picked(worst, np.ones(len(worst), bool))):
        caption = f"mean squared error {errors[id_]:.4f}"
        try:
            image, prediction = context.predicted(id_)
        except (OSError, VisionkitError):  # the page says in its place that the image is gone
            shown.append(Shown(id_, caption))
            continue
        found = prediction["reconstruction"].permute(1, 2, 0).cpu().numpy()
        both = np.concatenate([image, np.full((len(image), 4, 3), 255, np.uint8), found], 1)
        shown.append(Shown(id_, caption, image=both))
    note = "Left: the image. Right: its reconstruction."
    values = np.array(sorted(errors.values()))
    share = np.arange(1, len(values) + 1) / max(len(values), 1)
    line = [Series("", values, share)]
    chart = Chart("Error", "mean squared error of an image", "share of the images", line, None)
    return [chart, Gallery("Worst reconstructions", shown, note)]
