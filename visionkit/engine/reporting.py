"""Write a page on runs or result files. torch is imported for runs only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.engine.report_files import report_files
from visionkit.errors import ArgumentError, package_version
from visionkit.metrics.coco.matches import IOUS
from visionkit.metrics.intervals import REPLICATES
from visionkit.runs.files import write_text
from visionkit.visualization.html import Page, is_page, render

if TYPE_CHECKING:
    from visionkit.metrics.coco.ground_truth import IouType

IMAGES = 24  # of a gallery


def report(
    runs: str | Path | Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    truth: str | Path | None = None,
    results: str | Path | Sequence[str | Path] = (),
    iou_type: IouType | None = None,
    out: str | Path | None = None,
    images: int | str | Path | Sequence[Any] = IMAGES,
    bootstrap: int = REPLICATES,
    iou: float = 0.5,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
) -> dict[str, Any]:
    """Write a page on one or several runs, or on one or two COCO result files; returns its numbers.

    runs: run directories, evaluated on their validation data, or on other data by `overrides`. The
        first is compared with each of the others, on the same images.
    truth, results, iou_type: instead of runs an annotation file, and the files to score against it.
    out: the page, by default RUN/report.html, comparison.html for several runs, or report.html for
        files. An earlier page is replaced.
    images: how many a gallery has; for result files also, or instead, the folder of the images.
    bootstrap: replicates for 95 % intervals; 0: none.
    iou: 0.5, 0.55, ... or 0.95, from which a detection matches an object, in everything but AP.
    heads, allow_plugins: as for `load`.

    The numbers are metrics, intervals, thresholds and, of several models, their differences.
    Raises ArgumentError if `out` is another file, DataError for data that cannot be scored,
    and for runs that were evaluated on other data than the first.
    """
    names = [runs] if isinstance(runs, (str, Path)) else [*runs]
    files = [results] if isinstance(results, (str, Path)) else [*results]
    count, folder = _split(images)
    if not np.isclose(IOUS, iou).any():
        raise ArgumentError(f"--iou: got {iou:g}; expected one of 0.5, 0.55, ..., 0.95")
    if truth is not None or files:
        if truth is None or not files or names or overrides or heads:
            raise ArgumentError("report: give runs, or --gt FILE and --pred FILE, not both")
        path, kind = _checked(out or "report.html"), iou_type or "bbox"
        options: dict[str, Any] = {"count": count, "replicates": bootstrap, "iou": iou}
        return _written(path, *report_files(truth, files, kind, images=folder, **options))
    if not names:
        raise ArgumentError("report: give at least one run, or --gt FILE and --pred FILE")
    if folder is not None or iou_type is not None:
        raise ArgumentError("report: --images DIR and --type apply to --gt and --pred")
    from visionkit.engine.report_runs import report_runs

    first = Path(names[0])
    alone = (first if first.is_dir() else first.parent) / "report.html"
    path = _checked(out or (alone if len(names) == 1 else "comparison.html"))
    options = {"images": count, "replicates": bootstrap, "iou": iou, "heads": heads}
    return _written(path, *report_runs(names, overrides, allow_plugins=allow_plugins, **options))


def _split(images: int | str | Path | Sequence[Any]) -> tuple[int, str | None]:
    """The number of images, and their folder."""
    given = map(str, [images] if isinstance(images, (int, str, Path)) else images)
    texts = [*given]
    counts = [int(text) for text in texts if text.isdecimal()]
    folders = [text for text in texts if not text.isdecimal()]
    if len(counts) > 1 or len(folders) > 1:
        raise ArgumentError("report: --images takes a number, and with --gt one folder")
    return (counts or [IMAGES])[0], folders[0] if folders else None


def _checked(out: str | Path) -> Path:
    """ArgumentError if the page cannot be written there."""
    path = Path(out)
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"--out: the directory of {path} does not exist")
    if path.is_dir():
        raise ArgumentError(f"--out: {path} is a directory; name a file")
    if path.exists() and not is_page(path):
        raise ArgumentError(f"--out: {path} exists and is not a report of visionkit")
    return path


def _written(path: Path, page: Page, record: dict[str, Any]) -> dict[str, Any]:
    write_text(path, render(page, package_version()))
    return {"page": str(path), "summary": [*page.banners, *page.summary], **record}
