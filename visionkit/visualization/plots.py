"""Curves of a run from its metrics.jsonl: losses, metrics, learning rate, speed (matplotlib)."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("visionkit")

Series = dict[str, list[tuple[float, float]]]  # by name: (step, value), finite values only

PANEL = (4.6, 3.0)  # inches
TRAIN, VALIDATION = "#4878cf", "#d65f5f"
COLORS = (
    *("#4878cf", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c"),
    *("#dc7ec0", "#797979", "#d5bb67", "#82c6e2", "#001c7f", "#12711c"),
)
KEYS_OF_A_STEP = ("kind", "step", "epoch")
MOST_LINES = len(COLORS)  # more metrics than this in one image are not told apart


def write_plots(metrics_jsonl: Path, out_dir: Path) -> None:
    """Write losses.png, metrics.png and progress.png into `out_dir`, each as far as there is data.

    Values that are null, NaN or infinite are left out of the curves, and so is a last line that
    was cut off. Without matplotlib, says so in the log and writes nothing.
    """
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # a broken one may raise anything
        missing = isinstance(error, ModuleNotFoundError)
        fault = "is missing" if missing else f"cannot be imported ({type(error).__name__}: {error})"
        log.warning("no curves: matplotlib %s; pip install 'visionkit[plots]'", fault)
        return
    records = read_records(metrics_jsonl)
    train = series_of(r for r in records if r.get("kind") == "train")
    val = series_of(r for r in records if r.get("kind") == "val")
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = {
        "losses.png": _loss_panels(train, val),
        "metrics.png": _metric_panels(val),
        "progress.png": _progress_panels(train),
    }
    for name, panels in figures.items():
        if panels:
            _draw_panels(Figure, panels).savefig(out_dir / name, dpi=110)


def read_records(metrics_jsonl: Path) -> list[dict[str, Any]]:
    """The JSON objects of the file, one per line; lines that are none are passed over."""
    if not metrics_jsonl.exists():
        return []
    records = []
    for line in metrics_jsonl.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            records.append(record)
    return records


def series_of(records: Iterable[dict[str, Any]]) -> Series:
    """The finite numbers of each name over the steps."""
    series: Series = defaultdict(list)
    for record in records:
        for name, value in record.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in KEYS_OF_A_STEP and number and math.isfinite(value):
                series[name].append((record["step"], value))
    return dict(series)


def smooth(values: Sequence[float], span: float) -> np.ndarray:
    """Mean of each value's neighborhood, weighted by a bell curve of standard deviation `span`."""
    reach = min(math.ceil(3 * span), len(values) // 2)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / span) ** 2)
    # The ends have fewer neighbors, whose weights then make up the whole.
    return np.convolve(values, bell, "same") / np.convolve(np.ones(len(values)), bell, "same")


# A panel is a title and its lines: (label, points, color or None for the next of the cycle, raw
# values to be smoothed or not).
Line = tuple[str, list[tuple[float, float]], str | None, bool]
Panel = tuple[str, list[Line]]


def _loss_panels(train: Series, val: Series) -> list[Panel]:
    """One panel for each loss term, training and validation together; the total comes first."""
    terms = [name.removeprefix("train/") for name in train if name.startswith("train/")]
    panels = []
    for term in sorted(terms, key=lambda t: (t != "total", t == "grad_norm", t)):
        lines: list[Line] = [("training", train[f"train/{term}"], TRAIN, True)]
        # With several sources a validation loss carries the name of its source in front.
        found = [n for n in val if f"/{n}".endswith("/" + "/loss/".join(term.rsplit("/", 1)))]
        for name in found:
            label, color = (name, None) if len(found) > 1 else ("validation", VALIDATION)
            lines.append((label, val[name], color, False))
        panels.append((term, lines))
    return panels


def _metric_panels(val: Series) -> list[Panel]:
    """One panel for each group of metrics, `bbox/AP` with `bbox/AP50`; one for all classes."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for name, points in val.items():
        if "/loss/" in name:
            continue
        group, _, metric = name.rpartition("/")
        groups[group].append((metric, points, None, False))
    return [
        (f"{title} ({len(lines)}, the first {MOST_LINES})", lines[:MOST_LINES])
        if len(lines) > MOST_LINES
        else (title, lines)
        for title, lines in groups.items()
    ]


def _progress_panels(train: Series) -> list[Panel]:
    names = {"lr": "learning rate", "images_per_second": "images per second"}
    return [
        (title, [("", train[name], TRAIN, name != "lr")])
        for name, title in names.items()
        if name in train
    ]


def _draw_panels(figure_class: type[Figure], panels: list[Panel]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_class(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_prop_cycle(color=COLORS)
        for label, points, color, raw in lines:
            _draw_line(axes, _plain(label), points, color, raw)
        axes.set_title(_plain(title), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if any(label for label, *_ in lines):
            axes.legend(fontsize=7, frameon=False, ncols=2 if len(lines) > 6 else 1)
    return figure


def _draw_line(
    axes: Axes, label: str, points: list[tuple[float, float]], color: str | None, raw: bool
) -> None:
    """A curve; `raw` values are drawn faintly under their running mean."""
    steps, values = zip(*points, strict=True)
    few = len(values) <= 30
    if raw and not few:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, len(values) / 60), color=color, linewidth=1.6, label=label)
    else:
        marker = "o" if few else None
        axes.plot(
            steps, values, color=color, linewidth=1.4, marker=marker, markersize=3, label=label
        )


def _plain(text: str) -> str:
    """Class names may hold a dollar sign, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")
