"""Report on COCO result files: no model, and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from visionkit.data.coco.index import CocoIndex, open_index
from visionkit.errors import ArgumentError, DataError
from visionkit.metrics.coco.engines import engine_version, pick_engine
from visionkit.metrics.coco.evaluator import (
    MOST,
    compute_metrics,
    labeled_only,
    open_results,
    open_truth,
    scoring_rule,
)
from visionkit.metrics.coco.ground_truth import IouType
from visionkit.metrics.coco.report import DetectionReport
from visionkit.metrics.comparison import TOO_FEW, Difference, differences, intervals
from visionkit.metrics.intervals import FEWEST, REPLICATES, Interval
from visionkit.metrics.parts import Row, Table
from visionkit.visualization.html import Headline, Page, Section

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl")


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
    known = {key: intervals(one, one.metrics, replicates) for key, one in reports.items()}
    between = []
    if len(reports) == 2:
        both = (first, reports["B"])
        between = differences(*both, both[0].metrics, both[1].metrics, replicates)
    opener = image_opener(index, images) if images is not None else None
    sections = [_overview(truth, results, reports, known, engine, trust=trust)]
    sections += [comparison_section(between)] if between else []
    names = image_names(index)
    for (letter, one), path in zip(reports.items(), results, strict=True):
        title = f"{letter}: {Path(path).name}" if len(reports) > 1 else Path(path).name
        note = one.without and f"Without {one.without}: {INSTALL}"
        sections.append(Section(title, one.parts(), note, opener, names))
    page = Page(
        f"{iou_type} detections in {Path(results[0]).name}",
        sections,
        [headline(name, first.metrics[name], known["A"].get(name)) for name in HEADLINE[:3]],
        [between[0].verdict + "."] if between else first.sentences(),
    )
    return page, _record(reports, known, between, engine)


INSTALL = 'they need hotcoco, pip install "visionkit-torch[fast]"'


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
    columns = ["metric", *names, "B - A", "low", "high", "verdict"]
    note = "Paired: both models are resampled on the same images. 95 % intervals."
    return Section(f"{names[1]} against {names[0]}", [Table("Differences", columns, rows, note)])


def _overview(
    truth: str | Path,
    results: Sequence[str | Path],
    reports: Mapping[str, DetectionReport],
    known: Mapping[str, Mapping[str, Interval]],
    engine: str,
    *,
    trust: bool,
) -> Section:
    first = reports["A"]
    rows: list[list[str | float]] = []
    for name in first.metrics:
        row: list[str | float] = [name]
        for letter, one in reports.items():
            around = known[letter].get(name)
            row += [one.metrics[name], *(around[1:] if around else (float("nan"),) * 2)]
        rows.append(row)
    columns = ["metric"]
    for letter in reports:
        columns += [letter if len(reports) > 1 else "value", "low", "high"]
    images = len(first.truth.image_ids)
    counts = f"{images} images, {len(first.truth)} objects, {len(first.truth.names)} classes"
    facts = [["annotations", str(truth)], *(["results", str(path)] for path in results)]
    facts += [["data", counts], ["scored by", engine_version(engine)]]
    facts += [["rule", scoring_rule(first.truth, trust=trust)]]
    note = TOO_FEW if images < FEWEST else "low and high: 95 % interval, by resampling the images."
    parts = [Table("What was scored", ["", ""], facts), Table("Metrics", columns, rows, note)]
    return Section("Metrics", parts)


def image_names(index: CocoIndex) -> Callable[[int], str]:
    """The file name of each image id."""
    rows = {id_: row for row, id_ in enumerate(index.images.ids.tolist())}

    def name(id_: int) -> str:
        return (index.images.names.text(rows[id_]) if id_ in rows else "") or f"image_id {id_}"

    return name


def image_opener(index: CocoIndex, folder: str | Path) -> Callable[[int], Image.Image]:
    """Opens the image of an id in the folder. DataError if there is no such folder."""
    folder, name = Path(folder), image_names(index)
    if not folder.is_dir():
        raise DataError(f"--images: {folder} is not a directory")

    def open_one(id_: int) -> Image.Image:
        with Image.open(folder / name(id_)) as image:
            return image.convert("RGB")

    return open_one


def _record(
    reports: Mapping[str, DetectionReport],
    known: Mapping[str, Mapping[str, Interval]],
    between: Sequence[Difference],
    engine: str,
) -> dict[str, Any]:
    """The page's numbers."""
    models = {
        letter: {
            "metrics": dict(one.metrics),
            "intervals": {name: [i.low, i.high] for name, i in known[letter].items()},
            "thresholds": one.thresholds.to_dict(),
            "confusion": one.mistakes.confusion().tolist(),
        }
        for letter, one in reports.items()
    }
    found: dict[str, Any] = {"coco_engine": engine_version(engine), **models["A"]}
    if between:
        found = {"coco_engine": engine_version(engine), "models": models}
        found["differences"] = {
            d.name: dict(zip(("value", "low", "high"), d.interval, strict=True)) for d in between
        }
    return {"classes": list(reports["A"].truth.names), **found}
