"""Report on COCO result files: no model, and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from visionkit.data.coco.index import CocoIndex, open_index
from visionkit.errors import ArgumentError, DataError, install_hint
from visionkit.metrics.coco.engines import engine_version, pick_engine
from visionkit.metrics.coco.evaluator import (
    MOST,
    compute_metrics,
    labeled_only,
    open_results,
    open_truth,
    scoring_rule,
)
from visionkit.metrics.coco.ground_truth import IouType, ScoredTruth
from visionkit.metrics.coco.report import DetectionReport
from visionkit.metrics.comparison import TOO_FEW, Difference, differences, intervals
from visionkit.metrics.intervals import FEWEST, REPLICATES, Interval
from visionkit.metrics.parts import Row, Table, shown_ids, with_others
from visionkit.visualization.html import Headline, Page, Section

HEADLINE = ("AP", "AP50", "AP75")


def report_files(
    truth: str | Path,
    results: Sequence[str | Path],
    iou_type: IouType = "bbox",
    *,
    images: str | Path | None = None,
    count: int = 24,
    replicates: int = REPLICATES,
    iou: float = 0.5,
    engine: str | None = None,
    trust: bool = False,
) -> tuple[Page, dict[str, Any]]:
    """A page on one or two result files, and the same as a dict for JSON.

    `images` is the folder of the annotation file's images, for galleries of `count`. Raises
    DataError for what cannot be scored.
    """
    if not 1 <= len(results) <= 2:
        raise ArgumentError(f"report: got {len(results)} result files; expected one or two")
    engine = pick_engine(engine)
    index = open_index(truth)
    objects = open_truth(index, iou_type, trust=trust).rasterized()
    reports = {}
    for letter, path in zip("AB", results, strict=False):
        found = open_results(index, objects, path, trust=trust)
        metrics = compute_metrics(objects, found, engine, MOST)
        reports[letter] = DetectionReport(
            objects, labeled_only(objects, found), metrics, engine, images=count, iou=iou
        )
    first = reports["A"]
    models = {
        key: Measured(one.metrics, intervals(one, one.metrics, replicates))
        for key, one in reports.items()
    }
    between = []
    if len(reports) == 2:
        both = (first, reports["B"])
        between = differences(*both, both[0].metrics, both[1].metrics, replicates)
    opener = image_opener(index, images) if images is not None else None
    sections = [_overview(truth, results, objects, models, engine, trust=trust)]
    sections += [comparison_section(between)] if between else []
    names = image_names(index)
    for (letter, one), path in zip(reports.items(), results, strict=True):
        title = f"{letter}: {Path(path).name}" if len(reports) > 1 else Path(path).name
        note = one.without and f"Without {one.without}: {install_hint('fast')}"
        parts = one.parts()
        others = {key: [it.worst(shown_ids(parts))] for key, it in reports.items() if it is not one}
        if others and opener is not None:
            parts = with_others(letter, parts, others)
        sections.append(Section(title, parts, note, opener, names))
    page = Page(
        f"{iou_type} detections in {Path(results[0]).name}",
        sections,
        [
            headline(name, first.metrics[name], models["A"].intervals.get(name))
            for name in HEADLINE[:3]
        ],
        [between[0].verdict + "."] if between else first.sentences(),
    )
    return page, _record(reports, models, between, engine)


class Measured(NamedTuple):
    """The metrics of a model and their intervals, by name."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]


def headline(name: str, value: float, around: Interval | None) -> Headline:
    """A metric with its interval."""
    text = "n/a" if value != value else f"{value:.3f}"
    if around is None or around.low != around.low:
        return Headline(name, text)
    return Headline(name, text, f"{around.low:.3f} to {around.high:.3f}")


def comparison_section(
    between: Sequence[Difference], names: tuple[str, str] = ("A", "B")
) -> Section:
    """The paired differences of two models, metric by metric."""
    rows: list[Row] = [[d.name, d.a, d.b, *d.interval, d.verdict.split(":")[0]] for d in between]
    columns = ["metric", *names, f"{names[1]} - {names[0]}", "low", "high", "verdict"]
    note = "Paired: both models are resampled on the same images. 95 % intervals."
    return Section(f"{names[1]} against {names[0]}", [Table("Differences", columns, rows, note)])


def metrics_table(models: Mapping[str, Measured], images: int) -> Table:
    """Every metric of the models with its interval."""
    names = dict.fromkeys(name for one in models.values() for name in one.metrics)
    rows: list[Row] = []
    for name in names:
        row: list[str | float | None] = [name]
        for one in models.values():
            around = one.intervals.get(name)
            row += [one.metrics.get(name), *(around[1:] if around else (None, None))]
        rows.append(row)
    columns = ["metric"]
    for model in models:
        columns += [model if len(models) > 1 else "value", "low", "high"]
    note = (
        TOO_FEW
        if images < FEWEST
        else (
            "low and high: 95 % interval, by resampling the images; none of a metric that is 0 or "
            "1 in every sample."
        )
    )
    return Table("Metrics", columns, rows, note)


def _overview(
    truth: str | Path,
    results: Sequence[str | Path],
    objects: ScoredTruth,
    models: Mapping[str, Measured],
    engine: str,
    *,
    trust: bool,
) -> Section:
    images = len(objects.image_ids)
    counts = f"{images} images, {len(objects)} objects, {len(objects.names)} classes"
    facts = [["annotations", str(truth)], *(["results", str(path)] for path in results)]
    facts += [["data", counts], ["scored by", engine_version(engine)]]
    facts += [["rule", scoring_rule(objects, trust=trust)]]
    parts = [Table("What was scored", ["", ""], facts), metrics_table(models, images)]
    return Section("Metrics", parts)


def image_names(index: CocoIndex) -> Callable[[int], str]:
    """The file name of each image id."""
    rows = {id_: row for row, id_ in enumerate(index.images.ids.tolist())}

    def name(id_: int) -> str:
        return (index.images.names.text(rows[id_]) if id_ in rows else "") or f"image_id {id_}"

    return name


def image_opener(index: CocoIndex, folder: str | Path) -> Callable[[int], Image.Image]:
    """Opens the image of an id in the folder. DataError if it is not one."""
    folder, name = Path(folder), image_names(index)
    if not folder.is_dir():
        raise DataError(f"--images: {folder} is not a directory")

    def open_one(id_: int) -> Image.Image:
        with Image.open(folder / name(id_)) as image:
            return image.convert("RGB")

    return open_one


def measured_record(one: Measured) -> dict[str, Any]:
    """For JSON."""
    around = {name: [low, high] for name, (_, low, high) in one.intervals.items()}
    return {"metrics": dict(one.metrics), "intervals": around}


def differences_record(between: Sequence[Difference]) -> dict[str, Any]:
    """For JSON: B - A, and its interval."""
    keys = ("value", "low", "high")
    return {d.name: dict(zip(keys, d.interval, strict=True)) for d in between}


def _record(
    reports: Mapping[str, DetectionReport],
    models: Mapping[str, Measured],
    between: Sequence[Difference],
    engine: str,
) -> dict[str, Any]:
    """The page's numbers."""
    records = {
        letter: {
            **measured_record(models[letter]),
            "thresholds": one.thresholds.to_dict(),
            "confusion": one.mistakes.confusion().tolist(),
        }
        for letter, one in reports.items()
    }
    found: dict[str, Any] = {"classes": list(reports["A"].truth.names)}
    found["coco_engine"] = engine_version(engine)
    if len(records) == 1:
        return found | records["A"]
    return found | {"models": records, "differences": differences_record(between)}
