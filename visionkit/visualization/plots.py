"""Save images of a run: training samples with targets, validation samples with predictions, curves.

A failure is logged and never stops training. The functions that training calls take the run
directory, whether images are wanted (`train.plots`), and their own arguments; only rank 0 writes.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from visionkit.data.loading.source import Source, collate
from visionkit.data.transforms import fit
from visionkit.distributed import collectives
from visionkit.errors import install_hint, printable
from visionkit.models.model import VisionModel
from visionkit.runs.files import open_regular, replacing
from visionkit.types import Batch, Classes, Target
from visionkit.visualization.draw import contact_sheet, draw_all, draw_target, save_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("visionkit")

Series = dict[str, list[tuple[float, float]]]  # by name: (step, value), finite values only

PANEL = (4.6, 3.0)  # inches, without the legend
LEGEND = 1.4  # inches at the right of a panel
TRAIN, VALIDATION = "#4878cf", "#d65f5f"
COLORS = (
    "#4878cf",
    "#ee854a",
    "#6acc64",
    "#d65f5f",
    "#956cb4",
    "#8c613c",
    "#dc7ec0",
    "#797979",
    "#d5bb67",
    "#82c6e2",
    "#001c7f",
    "#12711c",
)
STEP_KEYS = ("kind", "step", "epoch")
MAX_LINES = len(COLORS)  # in one panel
MAX_IMAGES = 9  # on a sheet of samples
FEW_POINTS = 30  # up to here each point of a curve has a marker


class Line(NamedTuple):
    """A curve of a panel."""

    label: str
    points: list[tuple[float, float]]
    color: str | None = None  # None: the next of `COLORS`
    smoothed: bool = False


Panel = tuple[str, list[Line]]  # with its title


def write_plots(metrics_jsonl: Path, out_dir: Path) -> None:
    """Write losses.png, metrics.png and progress.png, those with data, into `out_dir`.

    Skips values that are null, NaN or infinite, and lines that are not valid JSON, such as a
    truncated last one. Without matplotlib it logs a warning and writes nothing.
    """
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # a damaged installation may raise anything
        missing = isinstance(error, ModuleNotFoundError)
        what = "is missing" if missing else f"cannot be imported ({type(error).__name__}: {error})"
        log.warning("no curves: matplotlib %s; run: %s", what, install_hint("plots"))
        return
    records = read_records(metrics_jsonl)
    train = series_of(r for r in records if r.get("kind") == "train")
    val = series_of(r for r in records if r.get("kind") == "val")
    out_dir.mkdir(parents=True, exist_ok=True)
    files = {
        "losses.png": _loss_panels(train, val),
        "metrics.png": _metric_panels(val),
        "progress.png": _progress_panels(train),
    }
    for name, panels in files.items():
        if panels:
            with replacing(out_dir / name, "wb") as file:
                _draw_panels(Figure, panels).savefig(file, dpi=110, format="png")


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


def smooth(values: Sequence[float], span: float) -> np.ndarray:
    """The values smoothed by a Gaussian with a standard deviation of `span` values."""
    reach = min(math.ceil(3 * span), len(values) // 2)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / span) ** 2)
    # At both ends the weights of the missing neighbors are shared among the others.
    return np.convolve(values, bell, "same") / np.convolve(np.ones(len(values)), bell, "same")


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


def _draw_panels(figure_class: type[Figure], panels: list[Panel]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    labeled = any(line.label for _, lines in panels for line in lines)
    width = PANEL[0] + (LEGEND if labeled else 0)
    figure = figure_class(figsize=(width * columns, PANEL[1] * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_prop_cycle(color=COLORS)
        for line in lines:
            _draw_line(axes, line)
        axes.set_title(_plain(title), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if any(line.label for line in lines):  # next to the curves, not over them
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)
    return figure


def _draw_line(axes: Axes, line: Line) -> None:
    """Draw a curve; a long one to be smoothed faintly, below the smoothed curve."""
    steps, values = zip(*line.points, strict=True)
    style: dict[str, Any] = {"color": line.color, "label": _plain(line.label)}
    if len(values) <= FEW_POINTS:
        axes.plot(steps, values, linewidth=1.4, marker="o", markersize=3, **style)
    elif line.smoothed:
        axes.plot(steps, values, color=line.color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, len(values) / 60), linewidth=1.6, **style)
    else:
        axes.plot(steps, values, linewidth=1.4, **style)


def _plain(text: str) -> str:
    """Escape dollar signs of class names, which matplotlib reads as a formula."""
    return printable(text).replace("$", r"\$")


def _never_fatal(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def guarded(run: Path, wanted: bool, *args: object, **kwargs: object) -> None:
        if not wanted or collectives.rank() != 0:
            return
        try:
            (run / "plots").mkdir(exist_ok=True)
            function(run, *args, **kwargs)
        except Exception as error:  # of any kind: the run matters more
            log.warning("%s: %s failed: %s", run / "plots", function.__name__, error)

    return guarded


@_never_fatal
def save_train_samples(
    run: Path, batch: Batch, source: Source, model: VisionModel, classes: dict[str, Classes]
) -> None:
    """Write plots/train_<source>.jpg: images of a batch, after augmentation, with their labels."""
    heads = {name: model.head(name) for name in source.feeds}
    names = {h.class_key: classes[name].names for name, h in heads.items() if h.class_key}
    shown = {"size", *(key for head in heads.values() for key in head.required_targets)}
    images = []
    for image, target in list(zip(batch.images, batch.targets, strict=True))[:MAX_IMAGES]:
        h, w = target["size"]
        known = {key: value for key, value in target.items() if key in shown}
        images.append(draw_target(image[:, :h, :w], cast(Target, known), names))
    sheet = contact_sheet(images, columns=3)
    save_image(sheet, run / "plots" / f"train_{source.name}.jpg")


@_never_fatal
@torch.inference_mode()
def save_val_samples(
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    *,
    dtype: torch.dtype,
) -> None:
    """Write plots/val_<source>.jpg: the first validation images with all heads' predictions."""
    device = next(model.parameters()).device
    model.eval()
    for source in sources:
        if source.val is None:
            continue
        samples = [source.val[i] for i in range(min(MAX_IMAGES, len(source.val)))]
        small = [sample.resize(fit(sample.size, source.image_size)) for sample in samples]
        items = [(sample.image, sample.target()) for sample in small]
        batch = collate(items, source.image_size).to(device)
        predictions, _ = model.infer(batch, source.feeds, dtype)
        names = {head: classes[head].names for head in source.feeds}
        images = [
            draw_all(
                sample.image,
                {head: found[i] for head, found in predictions.items()},
                names,
                threshold=model.draw_threshold,
            )
            for i, sample in enumerate(samples)
        ]
        sheet = contact_sheet(images, columns=3)
        save_image(sheet, run / "plots" / f"val_{source.name}.jpg")


@_never_fatal
def write_curves(run: Path) -> None:
    """Write plots/*.png: curves of losses, metrics, learning rate and speed (`plots` extra)."""
    write_plots(run / "metrics.jsonl", run / "plots")
