"""Save images of a run: training samples with targets, validation samples with predictions, curves.

A failure is logged and never stops training. The functions that training calls take the run
directory, whether images are wanted (`train.plots`), and their own arguments; only rank 0 writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from visionkit.data.loading.source import Source, collate
from visionkit.data.resize import fit
from visionkit.distributed import collectives
from visionkit.errors import install_hint, printable
from visionkit.models.head import Head
from visionkit.models.model import VisionModel
from visionkit.runs.files import replacing
from visionkit.types import Batch, Classes, Target
from visionkit.visualization.curves import Line, Panel, panels_of
from visionkit.visualization.draw import contact_sheet, draw_all, draw_target, save_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("visionkit")

PANEL = (4.6, 3.0)  # inches, without the legend
LEGEND = 1.4  # inches at the right of a panel
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
MAX_SHEETS = 16  # of steps
MAX_IMAGES = 9  # on a sheet of samples
FEW_POINTS = 30  # up to here each point of a curve has a marker
_FAILED: set[str] = set()  # what has been reported, since a run draws many times


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
        text = f"no curves: matplotlib {what}; run: {install_hint('plots')}"
        _warn_once(f"{out_dir}: {text}", text)
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, panels in panels_of(metrics_jsonl).items():
        if panels:
            with replacing(out_dir / f"{name}.png", "wb") as file:
                _draw_panels(Figure, panels).savefig(file, dpi=110, format="png")


def smooth(values: Sequence[float], span: float) -> np.ndarray:
    """The values smoothed by a Gaussian with a standard deviation of `span` values."""
    reach = min(math.ceil(3 * span), len(values) // 2)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / span) ** 2)
    # At both ends the weights of the missing neighbors are shared among the others.
    return np.convolve(values, bell, "same") / np.convolve(np.ones(len(values)), bell, "same")


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


def _warn_once(key: str, text: str) -> None:
    log.log(logging.DEBUG if key in _FAILED else logging.WARNING, "%s", text)
    _FAILED.add(key)


def _never_fatal(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def guarded(run: Path, wanted: bool, *args: object, **kwargs: object) -> None:
        if not wanted or collectives.rank() != 0:
            return
        try:
            (run / "plots").mkdir(exist_ok=True)
            function(run, *args, **kwargs)
        except Exception as error:  # of any kind: the run matters more
            text = f"{run / 'plots'}: {function.__name__} failed: {error}"
            _warn_once(text, text)

    return guarded


@_never_fatal
def save_train_samples(
    run: Path,
    batch: Batch,
    number: int,
    source: Source,
    model: VisionModel,
    classes: dict[str, Classes],
) -> None:
    """Write plots/train_<source>_<number>.jpg: images of a batch, after augmentation, with their
    labels."""
    heads = {name: model.head(name) for name in source.feeds}
    shown = [*zip(batch.images, batch.targets, strict=True)][:MAX_IMAGES]
    images = [draw_for_heads(image, target, heads, classes) for image, target in shown]
    sheet = contact_sheet(images, columns=3)
    save_image(sheet, run / "plots" / f"train_{source.name}_{number}.jpg")


def draw_for_heads(
    image: torch.Tensor,
    target: Target,
    heads: Mapping[str, Head | type[Head]],
    classes: Mapping[str, Classes],
) -> Image.Image:
    """Draw the labels of an image of a batch, (3, H, W) with padding, that these heads learn from;
    `heads` and their `classes` by name."""
    names = {head.class_key: classes[name].names for name, head in heads.items() if head.class_key}
    shown = {"size", *(key for head in heads.values() for key in head.required_targets)}
    known = {key: value for key, value in target.items() if key in shown}
    h, w = target["size"]
    return draw_target(image[:, :h, :w], cast(Target, known), names)


@_never_fatal
@torch.inference_mode()
def save_val_samples(
    run: Path,
    model: VisionModel,
    sources: list[Source],
    classes: dict[str, Classes],
    *,
    dtype: torch.dtype,
    step: int,
) -> None:
    """Write plots/val_<source>.jpg: the first validation images with all heads' predictions; and
    the same to plots/over_time/, where those of some earlier steps stay."""
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
        _keep_over_time(run / "plots" / "over_time", source.name, step, sheet)


def _keep_over_time(folder: Path, source: str, step: int, sheet: Image.Image) -> None:
    """Save the sheet of a step; every second of them goes when there are too many."""
    folder.mkdir(exist_ok=True)
    save_image(sheet, folder / f"{source}_{step:07d}.jpg", quality=80)
    kept = sorted(folder.glob(f"{source}_*.jpg"))
    for path in kept[1:-1:2] if len(kept) > MAX_SHEETS else ():
        path.unlink()


@_never_fatal
def write_curves(run: Path) -> None:
    """Write plots/*.png: curves of losses, metrics, learning rate and speed (`plots` extra)."""
    write_plots(run / "metrics.jsonl", run / "plots")
