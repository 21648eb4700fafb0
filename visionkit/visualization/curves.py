"""The curves of a run: losses, metrics and speed over the steps, from its metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.metrics import parts
from visionkit.runs.files import open_regular

Series = dict[str, list[tuple[float, float]]]  # by name: (step, value), finite values only

TRAIN, VALIDATION = "#4878cf", "#d65f5f"
STEP_KEYS = ("kind", "step", "epoch")
MAX_LINES = 12  # in one panel


class Line(NamedTuple):
    """A curve of a panel."""

    label: str
    points: list[tuple[float, float]]
    color: str | None = None  # None: the next of `COLORS`
    smoothed: bool = False


Panel = tuple[str, list[Line]]  # with its title


def panels_of(metrics_jsonl: Path) -> dict[str, list[Panel]]:
    """The panels of losses, metrics and progress.

    Skips values that are null, NaN or infinite, and lines that are not valid JSON, such as a
    truncated last one.
    """
    records = read_records(metrics_jsonl)
    train = series_of(r for r in records if r.get("kind") == "train")
    val = series_of(r for r in records if r.get("kind") == "val")
    return {
        "losses": _loss_panels(train, val),
        "metrics": _metric_panels(val),
        "progress": _progress_panels(train),
    }


def charts_of(runs: dict[str, Path]) -> list[parts.Chart]:
    """The curves of one or several runs, by their name, as charts of a report."""
    charts: dict[str, list[parts.Series]] = defaultdict(list)
    most = max(1, MAX_LINES // max(1, len(runs)))  # of a run, so that each has some
    for name, run in runs.items():
        for group, panels in panels_of(run / "metrics.jsonl").items():
            for title, lines in panels:
                for line in lines[:most]:
                    label = " ".join(part for part in (name, line.label) if part)
                    x, y = zip(*line.points, strict=True)
                    charts[_chart_title(group, title)].append(parts.Series(label, x, y))
    return [parts.Chart(title, "step", "", lines, y_range=None) for title, lines in charts.items()]


def _chart_title(group: str, panel: str) -> str:
    """What a chart shows: the panel of a loss is named after its term alone."""
    if panel == "grad_norm":
        return "gradient norm"
    return f"{panel} loss" if group == "losses" else panel


def read_records(metrics_jsonl: Path) -> list[dict[str, Any]]:
    """The JSON objects of the file, one per line; skips invalid lines."""
    if not metrics_jsonl.exists():
        return []
    records = []
    with open_regular(metrics_jsonl) as file:
        lines = file.read().decode("utf-8").splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            records.append(record)
    return records


def series_of(records: Iterable[dict[str, Any]]) -> Series:
    """The finite values of each name over the steps."""
    series: Series = defaultdict(list)
    for record in records:
        for name, value in record.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in STEP_KEYS and number and math.isfinite(value):
                series[name].append((record["step"], value))
    return dict(series)


def _loss_panels(train: Series, val: Series) -> list[Panel]:
    """One panel for each loss term, with training and validation; the total is first."""
    terms = [name.removeprefix("train/") for name in train if name.startswith("train/")]
    panels = []
    for term in sorted(terms, key=lambda t: (t != "total", t == "grad_norm", t)):
        lines = [Line("training", train[f"train/{term}"], TRAIN, smoothed=True)]
        # With multiple sources the name of a validation loss starts with its source.
        found = [n for n in val if f"/{n}".endswith("/" + "/loss/".join(term.rsplit("/", 1)))]
        for name in found:
            label, color = (name, None) if len(found) > 1 else ("validation", VALIDATION)
            lines.append(Line(label, val[name], color))
        panels.append((term, lines))
    return panels


def _metric_panels(val: Series) -> list[Panel]:
    """One panel for each group of metrics, such as `bbox/AP` and `bbox/AP50`, or the classes."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for name, points in val.items():
        if "/loss/" in name:
            continue
        group, _, metric = name.rpartition("/")
        groups[group].append(Line(metric, points))
    return [
        (f"{title} ({len(lines)}, the first {MAX_LINES})", lines[:MAX_LINES])
        if len(lines) > MAX_LINES
        else (title, lines)
        for title, lines in groups.items()
    ]


def _progress_panels(train: Series) -> list[Panel]:
    names = {"lr": "learning rate", "images_per_second": "images per second"}
    return [
        (title, [Line("", train[name], TRAIN, smoothed=name != "lr")])
        for name, title in names.items()
        if name in train
    ]
