"""`visionkit check`: all that training does before its first step, and what takes longer to look
for; every fault of a config or an annotation file in one report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from visionkit.config import Config, load_config, missing_paths
from visionkit.data.build import open_sources
from visionkit.data.checks.findings import Finding, Problems, finding, findings_of
from visionkit.data.checks.images import image_findings, mark_replaced
from visionkit.data.checks.kinds import policies
from visionkit.data.checks.splits import cross_split_findings
from visionkit.data.checks.summary import data_summary, dataset_summary, iter_splits, split_key
from visionkit.data.coco.annotations import read_annotations
from visionkit.data.datasets.coco import Coco
from visionkit.engine import setup
from visionkit.engine.device import pick_device, pick_precision
from visionkit.engine.setup import check_training, opened_splits, prepare_model
from visionkit.errors import VisionkitError

Item = TypeVar("Item")


@dataclass
class Report:
    """What was looked at, all that was found, and what training would use."""

    target: str
    findings: list[Finding] = field(default_factory=list)
    used: dict[str, Any] = field(default_factory=lambda: data_summary((), ()))

    @contextmanager
    def catching(self, where: str = "") -> Iterator[None]:
        """An error of the user's becomes findings, and the check goes on behind."""
        try:
            yield
        except VisionkitError as error:
            self.findings += _located(where, [*findings_of(error), *_others(error)])


def progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    """A bar on standard error, if that is a terminal."""
    return tqdm(items, desc=what, leave=False, disable=None, file=sys.stderr)


def check_config(
    path: str | Path, overrides: Sequence[str] = (), *, allow_plugins: bool = False
) -> Report:
    """Look at everything that training of that config depends on."""
    report = Report(str(path))
    config = None
    with report.catching():
        config = load_config(path, overrides, allow_plugins=allow_plugins)
    if config is None:
        return report
    device = None
    with report.catching():
        device = pick_device(config.train.device)
        pick_precision(config.train.precision, device)
    origin, taken_over = None, {}
    with report.catching():
        origin = setup.origin(config)
        taken_over = setup.classes_taken_over(config, origin)

    missing = missing_paths(config, opened_splits(config))
    report.findings += [finding("config", text, remedy="") for text in missing]
    skip = [at for at in _splits(config) if any(text.startswith(_keys(*at)) for text in missing)]
    sources, errors = open_sources(config, opened_splits(config), taken_over, skip)
    report.findings += [
        found for error in errors for found in (*findings_of(error), *_others(error))
    ]
    with report.catching():
        check_training(config)
    whole = not (missing or errors)
    for source in sources if whole else ():
        if source.train is not None:
            with report.catching():  # whether batches can be made of it
                source.train_batches(seed=0, start=0, workers=0).close()
    if whole and device is not None:
        with report.catching():
            prepare_model(config, sources, taken_over, origin, device=device)
    across = cross_split_findings(config, sources, contents=True)
    images: dict[str, list[Finding]] = {}
    for source in sources:
        for split, dataset in iter_splits(source):
            where = split_key(source.name, split)
            images[where] = mark_replaced(source, split, image_findings(dataset, where))
            report.findings += _located(where, _look_at(dataset))
            report.findings += images[where]
    report.findings += across
    report.used = data_summary(sources, across, images)
    return report


def check_annotations(path: str | Path, images: str | Path | None = None) -> Report:
    """Look at a COCO annotation file, and with `images` at the files in that folder."""
    report = Report(str(path))
    with report.catching(str(path)):
        if images is not None:
            data: Any = Coco(str(images), str(path))
        else:
            problems = Problems(f"annotation file {path}", path)
            data = read_annotations(path, problems, actions=policies(None))
            problems.raise_any()
        looked = image_findings(data, str(path))
        report.findings += [*_located(str(path), _look_at(data)), *looked]
        used = {"main": {"annotations": dataset_summary(data, looked)}}
        report.used = {**report.used, "sources": used}
    return report


def _splits(config: Config) -> list[tuple[str, str]]:
    return [(name, split) for name in config.data for split in opened_splits(config)]


def _keys(name: str, split: str) -> tuple[str, str]:
    """How texts about the arguments of a data set begin."""
    return f"data.{split}.", f"data.{name}.{split}."


def _others(error: VisionkitError) -> list[Finding]:
    """What is no error, but was seen with it."""
    return getattr(error, "others", [])


def _located(where: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    for found in findings:
        yield found if found.file else found._replace(file=where)


def _look_at(dataset: Any) -> Iterator[Finding]:
    """What a data set has found, and what takes longer to find."""
    if hasattr(dataset, "findings"):
        yield from dataset.findings()
    if hasattr(dataset, "examine"):
        yield from dataset.examine(progress)
