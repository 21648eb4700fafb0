"""Report on the folds of one cross-validation. Each has other validation images, so they are not
compared with each other: what counts is the mean and how much it varies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from visionkit.config import Config
from visionkit.data.tools.split import FOLDS
from visionkit.engine.progress import sign
from visionkit.errors import listed, plural
from visionkit.metrics.folds import NOTE, Spread, spreads
from visionkit.metrics.intervals import LEVEL
from visionkit.metrics.parts import Row, Table
from visionkit.metrics.report import family_of
from visionkit.runs import files
from visionkit.visualization.html import Headline, Page, Section

if TYPE_CHECKING:
    from visionkit.engine.report_runs import Report


class FoldRuns(NamedTuple):
    """The folds that some runs are of."""

    folder: Path
    k: int  # how many there are in the folder
    numbers: list[int]  # of each run


def folds_of(configs: Sequence[Config]) -> FoldRuns | None:
    """The folds, if each config validates with another fold of one folder of `visionkit data
    kfold`; else None."""
    found = [_fold_of(config) for config in configs]
    folders = {one[0] for one in found if one is not None}
    numbers = [one[1] for one in found if one is not None]
    if len(folders) != 1 or len(numbers) < max(2, len(configs)) or len({*numbers}) < len(numbers):
        return None
    folder = folders.pop()
    try:
        with files.open_regular(folder / FOLDS) as file:
            return FoldRuns(folder, int(json.load(file)["k"]), numbers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fold_of(config: Config) -> tuple[Path, int] | None:
    """The folder of folds and the number of the one that a config validates with."""
    found = set()
    for source in config.data.values():
        path = Path(str((source.val or {}).get("annotations", ""))).resolve()
        match = re.fullmatch(r"fold-(\d+)", path.parent.name)
        found.add((path.parent.parent, int(match[1])) if match else None)
    return found.pop() if len(found) == 1 else None


def fold_page(
    reports: Sequence[Report], folds: FoldRuns, about: Sequence[Section], banners: Sequence[str]
) -> tuple[Page, dict[str, Any]]:
    """The page on evaluated folds, in their order, and its numbers. `about` are the sections on
    curves, data and config."""
    found = spreads([one.evaluation.metrics for one in reports])
    main = [reports[0].main_metric(head) for head in reports[0].heads]
    main = [name for name in main if name in found]
    of_classes = [name for name in found if family_of(name, found)]
    others = [name for name in found if name not in {*main, *of_classes}]
    names = [one.name for one in reports]
    parts = [_by_fold("Main metrics", names, {name: found[name] for name in main}, NOTE)]
    if others:
        parts.append(_by_fold("Other metrics", names, {name: found[name] for name in others}, ""))
    sections = [Section("Metrics", parts)]
    if of_classes:
        rows = [_class_row(name, found[name], names) for name in of_classes]
        columns = ["metric", "mean", "std", "worst", "in"]
        note = "Of the folds in which the class has objects."
        sections.append(Section("Classes", [Table("Metrics of classes", columns, rows, note)]))
    runs: list[Row] = [[one.name, str(one.run)] for one in reports]
    note = "The images of one fold: visionkit report RUN."
    sections.append(Section("Folds", [Table("Runs", ["", "run"], runs, note)]))
    missing = [str(n) for n in range(1, folds.k + 1) if n not in folds.numbers]
    absent = [f"{len(missing)} of {folds.k} folds are missing: {listed(missing)}"] * bool(missing)
    page = Page(
        _title(reports),
        [*sections, *about],
        [_headline(name, found[name]) for name in main],
        [_sentence(name, found[name], names) for name in main],
        [*absent, *banners],
    )
    return page, {
        "folds": {"folder": str(folds.folder), "k": folds.k, "numbers": sorted(folds.numbers)},
        "main": main,
        "metrics": {name: one.record() for name, one in found.items()},
        "runs": {one.name: str(one.run) for one in reports},
    }


def _title(reports: Sequence[Report]) -> str:
    bases = {re.sub(r"-fold-\d+$", "", one.run.name) for one in reports}
    return f"{', '.join(sorted(bases))}: {plural(len(reports), 'fold')}"


def _by_fold(title: str, folds: Sequence[str], found: dict[str, Spread], note: str) -> Table:
    """The value of each metric in each fold, mean, standard deviation and interval."""
    rows: list[Row] = [
        [name, *one.values, one.mean, one.std, one.low, one.high] for name, one in found.items()
    ]
    return Table(title, ["metric", *folds, "mean", "std", "low", "high"], rows, note)


def _worst(name: str, one: Spread, folds: Sequence[str]) -> tuple[float, str]:
    """The worst value of a metric, and in which fold; NaN if there is none."""
    known = [(sign(name) * value, i) for i, value in enumerate(one.values) if value == value]
    return (one.values[min(known)[1]], folds[min(known)[1]]) if known else (math.nan, "")


def _class_row(name: str, one: Spread, folds: Sequence[str]) -> Row:
    return [name, one.mean, one.std, *_worst(name, one, folds)]


def _headline(name: str, one: Spread) -> Headline:
    detail = "" if math.isnan(one.low) else f"{one.low:.3f} to {one.high:.3f}"
    return Headline(name, "n/a" if math.isnan(one.mean) else f"{one.mean:.3f}", detail)


def _sentence(name: str, one: Spread, folds: Sequence[str]) -> str:
    value, fold = _worst(name, one, folds)
    if math.isnan(one.std):
        return f"{name} is defined in fewer than two folds."
    return (
        f"{name}: mean {one.mean:.3f}, standard deviation {one.std:.3f} over "
        f"{plural(len(one.values), 'fold')}, rough {LEVEL} % interval of the mean {one.low:.3f} to "
        f"{one.high:.3f}; the worst is {fold} with {value:.3f}."
    )
