"""Report on trained runs: evaluate them, and say what is to be seen."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionkit.data.loading.source import Source
from visionkit.distributed import collectives
from visionkit.engine.evaluate import (
    Evaluation,
    evaluate_model,
    evaluated_run,
    intervals_of,
    no_images,
    own_metrics,
    reported,
)
from visionkit.engine.report_files import (
    Measured,
    comparison_section,
    differences_record,
    headline,
    measured_record,
    metrics_table,
)
from visionkit.engine.report_folds import fold_page, folds_of
from visionkit.engine.state import TrainingState, flattened
from visionkit.errors import ArgumentError, DataError, package_version
from visionkit.metrics.coco.engines import engine_version, pick_engine
from visionkit.metrics.comparison import (
    Difference,
    Resampled,
    Subject,
    check_same,
    differences,
)
from visionkit.metrics.intervals import REPLICATES, Interval
from visionkit.metrics.parts import (
    Gallery,
    Part,
    ReportContext,
    Row,
    Shown,
    Table,
    shown_ids,
    with_others,
)
from visionkit.metrics.thresholds import Thresholds
from visionkit.runs import directory, files
from visionkit.types import Dataset
from visionkit.visualization.curves import charts_of
from visionkit.visualization.draw import as_image
from visionkit.visualization.html import Headline, Page, Section, render

log = logging.getLogger("visionkit")
SENTENCES = 3
SHEETS = 6  # of validation images over time


@dataclass(frozen=True)
class Report:
    """One evaluated run of a page."""

    name: str  # "A", "B", ...; "" if it is the only one
    run: Path
    evaluation: Evaluation
    replicates: int

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of each metric that can be resampled, by its whole name."""
        found = self.evaluation
        return intervals_of(found.evaluators, found.metrics, self.replicates)

    @cached_property
    def measured(self) -> Measured:
        return Measured(self.evaluation.metrics, self.intervals)

    def own_metrics(self, head: str) -> dict[str, float]:
        """The metrics of a head by their own names."""
        return own_metrics(self.evaluation.metrics, head)

    def resampled(self, head: str) -> Resampled | None:
        """The evaluator of a head, if its metrics have intervals."""
        evaluator: Any = self.evaluation.evaluators.get(head)
        return evaluator if hasattr(evaluator, "resampled") else None

    def titled(self, title: str) -> str:
        """The title of a section, with the run's name if there are several."""
        return f"{self.name}: {title}" if self.name else title[:1].upper() + title[1:]

    @property
    def heads(self) -> list[str]:
        return [*self.evaluation.evaluators]

    def dataset(self, head: str) -> Dataset:
        """The validation data of a head, whose name may begin with that of the source."""
        for source in self.evaluation.sources:
            for name in source.feeds:
                if head in (name, f"{source.name}/{name}") and source.val is not None:
                    return source.val
        raise LookupError(head)

    def thresholds(self, head: str) -> Thresholds | None:
        """Those that the model uses."""
        return self.evaluation.predictor.model.thresholds.get(head.rpartition("/")[2])

    def context(
        self, head: str, predicted: Any = no_images, images: int = 0, iou: float = 0.5
    ) -> ReportContext:
        """What the head's evaluator needs for its parts."""
        return ReportContext(predicted, images, iou, self.thresholds(head))

    def main_metric(self, head: str) -> str:
        name = self.evaluation.predictor.model.head(head.rpartition("/")[2]).main_metric
        return f"{head}/{name}"


def report_runs(
    runs: Sequence[str | Path],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    images: int = 24,
    replicates: int = REPLICATES,
    iou: float = 0.5,
    allow_plugins: bool = False,
) -> tuple[Page, dict[str, Any]]:
    """A page on one or several runs, evaluated on their validation data, and its numbers.

    The first run is compared with each of the others, on the same images; runs that are folds of
    one cross-validation are summarized.
    """
    if not runs:
        raise ArgumentError("report: give at least one run")
    reports = []
    for letter, run in zip(_letters(), runs, strict=False):
        log.info("evaluating %s", run)
        evaluation = evaluated_run(run, overrides, heads=heads, allow_plugins=allow_plugins)
        name = letter if len(runs) > 1 else ""
        reports.append(Report(name, Path(run), evaluation, replicates))
    if folds := folds_of([one.evaluation.predictor.config for one in reports]):
        numbered = sorted(zip(folds.numbers, reports, strict=True), key=lambda pair: pair[0])
        reports = [replace(one, name=f"fold {number}") for number, one in numbered]
        unfinished = [line for one in reports for line in _unfinished(one)]
        return fold_page(reports, folds, _about(reports), unfinished)
    return report_of(reports, images, iou)


def report_of(
    reports: Sequence[Report], images: int = 24, iou: float = 0.5
) -> tuple[Page, dict[str, Any]]:
    """The page on evaluated runs, and its numbers."""
    first = reports[0]
    sections = [_summary(reports)]
    between: dict[str, list[Difference]] = {}
    for other in reports[1:]:
        for head, found in _compared(first, other).items():
            between[f"{other.name}/{head}"] = found
            titled = comparison_section(found, (first.name, other.name))
            sections.append(Section(f"{titled.title}: {head}", titled.parts))
    sections += _heads(reports, images // len(reports), iou)
    sections += _about(reports)
    page = Page(
        _title(reports),
        sections,
        [_headline(one, head) for one in reports for head in one.heads],
        _sentences(first, between, iou),
        [line for one in reports for line in _unfinished(one)],
    )
    record = {one.name: _record(one) for one in reports}
    if len(reports) == 1:
        return page, record[first.name]
    return page, {
        "runs": record,
        "differences": {name: differences_record(found) for name, found in between.items()},
    }


def _title(reports: Sequence[Report]) -> str:
    """The names of the runs, with their folders if some are equal."""
    names = [one.run.name for one in reports]
    if len({*names}) < len(names):
        names = [str(one.run) for one in reports]
    return ", ".join(names)


def write_report(state: TrainingState, sources: list[Source]) -> None:
    """Write RUN/report.html at the end of training, from the evaluation of the best checkpoint. If
    that was before the run was resumed, it is evaluated again, by all ranks.

    A failure is logged and does not end the run, unless other ranks wait for this one."""
    from visionkit.engine.torch_model import load_model

    again = not state.evaluators
    if collectives.rank() != 0 and not again:
        return
    try:
        predictor = load_model(state.run, fold=False, allow_plugins=True)
        found = Evaluation(predictor, sources, state.progress.metrics, state.evaluators)
        if again:
            log.info("%s: evaluating the best checkpoint again, for its report", state.run)
            workers = predictor.config.workers
            measured = evaluate_model(
                predictor.model, sources, dtype=predictor.dtype, workers=workers
            )
            found = Evaluation(predictor, sources, *measured)
        if collectives.rank() != 0:
            return
        page, _ = report_of([Report("", state.run, found, REPLICATES)])
        page.banners.clear()  # the run is not marked as finished yet
        files.write_text(state.run / "report.html", render(page, package_version()))
    except Exception as error:  # of any kind: the run matters more
        if again and collectives.world_size() > 1:
            raise
        log.warning("%s: the report failed: %s: %s", state.run, type(error).__name__, error)


def _record(one: Report) -> dict[str, Any]:
    """For JSON."""
    known = {head: one.thresholds(head) for head in one.heads}
    thresholds = {head: found.to_dict() for head, found in known.items() if found is not None}
    return {"run": str(one.run), **measured_record(one.measured), "thresholds": thresholds}


def _letters() -> list[str]:
    letters = [chr(ord("A") + i) for i in range(26)]
    return letters + [a + b for a in letters for b in letters]


def _summary(reports: Sequence[Report]) -> Section:
    images = max(len(one.dataset(head)) for one in reports for head in one.heads)
    parts: list[Part] = []
    if len(reports) > 1:
        rows: list[Row] = [[one.name, str(one.run)] for one in reports]
        parts.append(Table("Runs", ["", "run"], rows))
    parts.append(metrics_table({one.name: one.measured for one in reports}, images))
    return Section("Metrics", parts)


def _headline(one: Report, head: str) -> Headline:
    name = one.main_metric(head)
    value, around = one.evaluation.metrics.get(name, np.nan), one.intervals.get(name)
    return headline(f"{one.name}: {name}" if one.name else name, value, around)


def _compared(a: Report, b: Report) -> dict[str, list[Difference]]:
    """The paired differences by head. DataError if the runs were evaluated on other data."""
    if not {*a.heads} & {*b.heads}:
        raise DataError(
            f"{a.run} and {b.run} have no head in common and cannot be compared: "
            f"{', '.join(a.heads)} and {', '.join(b.heads)}"
        )
    found = {}
    for head in a.heads:
        one, other = a.resampled(head), b.resampled(head)
        if one is None or other is None:
            continue
        check_same(_subject(one), _subject(other), (str(a.run), str(b.run)))
        own = a.own_metrics(head), b.own_metrics(head)
        names = (a.name, b.name)
        found[head] = differences(one, other, *own, a.replicates, names=names)
    return found


def _subject(evaluator: Any) -> Subject:
    if hasattr(evaluator, "subject"):
        return evaluator.subject()
    return Subject(evaluator.image_ids(), getattr(evaluator, "classes", ()))


def _sentences(one: Report, between: Mapping[str, Sequence[Difference]], iou: float) -> list[str]:
    """What stands out: which run is better, or what the first heads say of their mistakes."""
    verdicts = []
    for name, differ in between.items():
        head = name.partition("/")[2]
        main = one.main_metric(head).removeprefix(f"{head}/")
        chosen = [found for found in differ if found.name == main] or differ
        verdicts += [f"{head}: {found.verdict}." for found in chosen[:1]]
    if verdicts:
        return verdicts
    found: dict[str, list[str]] = {
        head: evaluator.sentences(one.context(head, iou=iou))
        for head, evaluator in one.evaluation.evaluators.items()
        if hasattr(evaluator, "sentences")
    }
    if len(found) == 1:
        return next(iter(found.values()))[:SENTENCES]
    return [f"{head}: {line}" for head, lines in found.items() for line in lines[:1]]


def _unfinished(one: Report) -> list[str]:
    """What a reader has to know before the numbers."""
    status = directory.read_status(one.run)
    state = status.get("state")
    if not one.run.is_dir() or state == "finished":
        return []
    if state is None:
        return [f"{one.run}: status.json is missing or damaged; the run may not be finished"]
    where = f"at step {status.get('step')} of {status.get('total_steps')}"
    return [f"{one.run}: this run is {state}, not finished, {where}: {status.get('reason') or ''}"]


def _heads(reports: Sequence[Report], images: int, iou: float) -> list[Section]:
    """A section for each head of each run: what its evaluator reports, or its metrics alone. The
    images of a gallery have next to them what the other runs make of them."""
    opened = {
        (one.name, head): _Images(one, head, one.dataset(head))
        for one in reports
        for head in one.heads
    }

    def parts_of(one: Report, head: str, only: frozenset[int] | None = None) -> list[Part]:
        predicted = opened[one.name, head].predicted
        context = one.context(head, predicted, images, iou)
        return _parts(one, head, replace(context, only=only))

    parts = {(one.name, head): parts_of(one, head) for one in reports for head in one.heads}
    sections = []
    for one in reports:
        for head in one.heads:
            found, only = parts[one.name, head], shown_ids(parts[one.name, head])
            others = {
                other.name: parts_of(other, head, only)
                for other in reports
                if only and other is not one and head in other.heads
            }
            if others:
                found = with_others(one.name, found, others)
            kind = type(one.evaluation.predictor.model.head(head.rpartition("/")[2])).__name__
            # A head's name is not a word: it keeps its first letter.
            title = f"{one.name}: {head} ({kind})" if one.name else f"{head} ({kind})"
            images_of = opened[one.name, head]
            sections.append(Section(title, found, "", images_of.image, images_of.name))
    return sections


def _parts(one: Report, head: str, context: ReportContext) -> list[Part]:
    """What the evaluator of a head reports, or its metrics."""
    evaluator = one.evaluation.evaluators[head]
    parts = reported(head, evaluator, context) if hasattr(evaluator, "report") else []
    if parts:
        return parts
    rows: list[Row] = [[name, value] for name, value in one.own_metrics(head).items()]
    return [Table("Metrics", ["metric", "value"], rows)]


class _Images:
    """The images of one head's validation data, by id."""

    def __init__(self, one: Report, head: str, dataset: Dataset) -> None:
        self.predictor, self.head = one.evaluation.predictor, head.rpartition("/")[2]
        self.dataset = dataset
        ids = getattr(dataset, "image_ids", None)
        known = range(len(dataset)) if ids is None else np.asarray(ids).tolist()
        self.places = {id_: place for place, id_ in enumerate(known)}

    def image(self, id_: int) -> Image.Image:
        return as_image(self.dataset[self.places[id_]].image)

    def name(self, id_: int) -> str:
        if hasattr(self.dataset, "image_path") and id_ in self.places:
            return self.dataset.image_path(self.places[id_]).name
        return f"image {id_}"

    def predicted(self, id_: int) -> tuple[np.ndarray, Mapping[str, Any]]:
        prediction = self.predictor.predict(self.dataset[self.places[id_]].image)
        found = prediction.heads[self.head]
        image = as_image(prediction.image)
        if "reconstruction" in found:
            height, width = found["reconstruction"].shape[1:]
            image = image.resize((width, height))
        return np.asarray(image), found


def _about(reports: Sequence[Report]) -> list[Section]:
    """Curves, data, config and environment."""
    runs = {one.name: one.run for one in reports}
    charts = charts_of({name: run for name, run in runs.items() if run.is_dir()})
    sections = [Section("Curves", charts)] if charts else []
    sections += [section for one in reports if (section := _over_time(one)) is not None]
    data = [part for one in reports for part in _data(one)]
    if data:
        sections.append(Section("Data", data))
    sections.append(Section("Config", [_config(reports)]))
    sections.append(Section("Environment", [_environment(reports)]))
    return sections


def _over_time(one: Report) -> Section | None:
    """The validation images of some steps, so that one sees the model learn."""
    paths = sorted((one.run / "plots" / "over_time").glob("*_[0-9]*.jpg"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), SHEETS)).astype(int)]
    shown = []
    for path in chosen:
        source, _, step = path.stem.rpartition("_")
        with suppress(OSError, ValueError), Image.open(path) as image:
            shown.append(Shown(int(step), source, image=np.asarray(image.convert("RGB"))))
    gallery = Gallery("Predictions for the same validation images", shown)
    title = one.titled("over time")
    return Section(title, [gallery], "", None, lambda step: f"step {step}") if shown else None


def _data(one: Report) -> list[Part]:
    """What was used of each dataset, and what was dropped."""
    rows: list[Row] = []
    for source, splits in directory.read_data(one.run).get("sources", {}).items():
        for split, facts in splits.items():
            row: list[str | int | None] = [f"{source}, {split}"]
            row += [facts.get("images"), facts.get("objects")]
            for key in ("dropped", "fixed", "kept"):
                found = facts.get(key) or {}
                row.append(", ".join(f"{count} {kind}" for kind, count in found.items()) or "–")
            rows.append(row)
    columns = ["data", "images", "objects", "dropped", "fixed", "kept although odd"]
    return [Table(one.titled("data of the training"), columns, rows)] if rows else []


def _config(reports: Sequence[Report]) -> Table:
    """All settings; of several runs those that differ first."""
    flat = [
        {
            key: str(value)
            for key, value in flattened(asdict(one.evaluation.predictor.config)).items()
        }
        for one in reports
    ]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differ = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    if len(reports) == 1:
        return Table("Settings", ["key", "value"], [[key, flat[0][key]] for key in keys])
    rows: list[Row] = [
        [key, *(one.get(key) for one in flat), "differs" if key in differ else ""]
        for key in [*differ, *(key for key in keys if key not in differ)]
    ]
    columns = ["key", *(one.name for one in reports), ""]
    return Table("Settings", columns, rows, f"{len(differ)} settings differ.")


def _environment(reports: Sequence[Report]) -> Table:
    """Where this report was made, and where the runs are."""
    rows: list[Row] = [
        ["visionkit", package_version()],
        ["torch", torch.__version__],
        ["Python", platform.python_version()],
        ["system", platform.platform()],
        ["COCO metrics by", engine_version(pick_engine())],
    ]
    for one in reports:
        status = directory.read_status(one.run)
        predictor = one.evaluation.predictor
        rows.append([one.titled("run"), str(one.run.absolute())])
        rows.append([one.titled("trained on"), str(status.get("host", "–"))])
        rows.append([one.titled("evaluated on"), f"{predictor.device}, {predictor.dtype}"])
    return Table("Environment of this report", ["", ""], rows)
