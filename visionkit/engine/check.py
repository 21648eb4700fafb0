"""`visionkit check`: validate a config with its data, model and weights, or an annotation file.

For a config it runs everything that training runs up to the gradients of its first step, and the
slower checks of the data; all findings are in one report.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visionkit.config import Config, load_config, missing_paths
from visionkit.data.build import check_custom, open_sources
from visionkit.data.checks.findings import Finding, Problems, finding
from visionkit.data.checks.images import completed, image_findings, narrow_range
from visionkit.data.checks.kinds import policies
from visionkit.data.checks.summary import (
    all_class_findings,
    cross_split_findings,
    data_summary,
    dataset_class_findings,
    dataset_summary,
)
from visionkit.data.coco.annotations import Annotations
from visionkit.data.coco.index import open_index
from visionkit.data.contracts import is_custom, original
from visionkit.data.datasets.coco import Coco
from visionkit.data.loading.source import Source, iter_splits, split_key
from visionkit.engine.check_report import CheckReport, located
from visionkit.engine.failures import explained
from visionkit.engine.optim import Learner
from visionkit.engine.setup import (
    build_initial_model,
    check_training,
    load_init_from,
    reused_classes,
    small_object_findings,
    splits_read,
)
from visionkit.engine.train import train_step
from visionkit.errors import ArgumentError, ConfigError, DataError, ResourceError, VisionkitError
from visionkit.models.build import with_published
from visionkit.models.model import VisionModel, wrap_calls
from visionkit.ops.inference import pick_device, pick_precision, reproducible
from visionkit.runs.terminal import progress_bar
from visionkit.types import Batch

log = logging.getLogger("visionkit")
CPU_IMAGES = 2  # of the first batch; a GPU gets all, so that a lack of its memory is found


def check(
    config: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    images: str | Path | None = None,
    allow_plugins: bool = False,
) -> CheckReport:
    """Check everything that training of a config depends on; or a COCO annotation file.

    `config` is a YAML file, the name of a shipped config, a dict of the same form, or an annotation
    file: a path that ends in `.json`, with the folder of its `images` or without. Checked are the
    data, the model and the weights, and the first batch of each source forward and backward and
    through the evaluators. No run directory is written and no file is changed.

    All problems are in the report, none is raised. `report.errors` is empty if training can start.
    Raises ArgumentError for a wrong argument, ResourceError if the machine lacks something.
    """
    is_path = isinstance(config, (str, Path))
    with _quiet():
        if is_path and str(config).endswith(".json"):
            if overrides:
                raise ArgumentError("check: overrides do not apply to an annotation file")
            return check_annotations(str(config), images)
        if images is not None:
            what = "check: images need an annotation file; a config names its images"
            raise ArgumentError(what)
        return _check_config(config, overrides, allow_plugins=allow_plugins)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of opening the data, which the report has."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_config(config: Any, overrides: Any, *, allow_plugins: bool) -> CheckReport:
    report = CheckReport(str(config) if isinstance(config, (str, Path)) else "config")
    try:
        loaded = load_config(config, overrides, allow_plugins=allow_plugins)
    except ArgumentError:
        raise
    except VisionkitError as error:
        report.add(error)
        return report
    device, origin, reused = None, None, {}
    with report.catching():
        device = pick_device(loaded.train.device)
        pick_precision(loaded.train.precision, device)
    with report.catching():
        origin = load_init_from(loaded)
        reused = reused_classes(loaded, origin)

    with report.catching():
        loaded = with_published(loaded)

    missing = missing_paths(loaded, splits_read(loaded))
    report.findings += [finding("config", text, hint="") for text in missing]
    skip = [
        (name, split)
        for name in loaded.data
        for split in splits_read(loaded)
        if any(text.startswith((f"data.{split}.", f"data.{name}.{split}.")) for text in missing)
    ]
    sources, errors = open_sources(loaded, splits_read(loaded), reused, skip)
    for problem in errors:
        report.add(problem)
    with report.catching():
        check_training(loaded)
    _check_data(loaded, sources, report)
    if device is None:
        return report
    if missing or errors:
        loaded, sources = _with_generated_data(loaded)
    if not sources:
        return report
    with report.catching(), reproducible(loaded.train.deterministic):
        model, _ = build_initial_model(loaded, sources, reused, origin, device=device)
        if not missing and not errors:
            report.findings += small_object_findings(model, sources)
        _check_first_batches(loaded, model, sources, report)
    return report


def _check_data(config: Config, sources: list[Source], report: CheckReport) -> None:
    """Add what there is to find in the data, and which of it training would use."""
    across = cross_split_findings(config, sources, contents=True)
    images: dict[str, list[Finding]] = {}
    classes = all_class_findings(config, sources)
    for source in sources:
        with report.catching():
            check_custom(source)
        for split, dataset in iter_splits(source):
            where = split_key(source.name, split)
            images[where] = completed(source, split, image_findings(dataset, where))
            known = {found.message for found in images[where]}  # examine() reads maps too
            others = located(where, _dataset_findings(dataset))
            report.findings += [found for found in others if found.message not in known]
            report.findings += images[where] + classes[where]
    report.findings += across
    report.used = data_summary(sources, across, images, classes)


def _with_generated_data(config: Config) -> tuple[Config, list[Source]]:
    """The config and its sources with generated images instead of data that cannot be read; no
    sources where a head needs other labels or the classes of `init_from`."""
    if config.init_from:
        return config, []
    data = {}
    for name, spec in config.data.items():
        shapes: Any = {"type": "Shapes", "num_images": spec.batch_size, "size": 64}
        data[name] = replace(
            spec, train=spec.train and shapes, val=spec.val and shapes, labeled_classes=None
        )
    train = replace(config.train, best_metric=None, best_constraints={})  # may name classes
    config = replace(config, data=data, weights=None, train=train)
    sources, errors = open_sources(config, splits_read(config))
    return config, [] if errors else sources


def _check_first_batches(
    config: Config, model: VisionModel, sources: list[Source], report: CheckReport
) -> None:
    """The first batch of each source through a step, except the update of the weights, and through
    prediction and evaluators. An error names the part of the config that raised it."""
    dtype = pick_precision(config.train.precision, next(model.parameters()).device)
    # An unreadable image of the first batch was reported already.
    any_error = any(found.severity == "error" for found in report.findings)
    reported = suppress(DataError) if any_error else nullcontext()
    learner = Learner(model, config.train, 1, dtype)
    wrap_calls(model, lambda key, call: _named(key, config)(call))
    for source in sources:
        where = split_key(source.name, "train")
        if source.train is not None:
            with report.catching(), reported:
                stream = source.train_batches(seed=config.train.seed, start=0, workers=0)
                batches = [(source.feeds, _first(stream, learner.device))]
                with _named(where, config):
                    result = train_step(learner, batches, 0)
                wrong = [name for name, loss in result.losses.items() if not loss.isfinite()]
                if wrong:
                    raise ConfigError(f"{where}: {', '.join(wrong)} of the first batch not finite")
    model.eval()
    report.findings += _padding_findings(model, learner.device)
    for source in sources:
        if source.val is not None and source.feeds:
            with report.catching(), reported, torch.inference_mode():
                stream = source.val_batches(workers=0)
                batch = _first(stream, learner.device).to(learner.device)
                predictions, _ = model.infer(batch, source.feeds, dtype)
                for head in source.feeds:
                    evaluator = model.evaluator(head, source.val)
                    with _named(f"heads.{head}: its evaluator", config):
                        evaluator.update(predictions[head], batch)


@torch.inference_mode()
def _padding_findings(model: VisionModel, device: torch.device) -> list[Finding]:
    """A warning if a custom backbone makes other maps of images with other padding."""
    if not is_custom(model.backbone):
        return []
    maps = []
    for value in (0, 255):
        images = torch.arange(2 * 3 * 64 * 64, device=device).reshape(2, 3, 64, 64) % 251
        images[:, :, 40:], images[:, :, :, 40:] = value, value
        with suppress(Exception):  # it may take images of another size alone
            maps.append([*model.backbone(images.byte(), [(40, 40)] * 2).values()])
    pairs = zip(*maps, strict=True) if len(maps) == 2 else ()
    if all(torch.allclose(one, other, rtol=1e-3) for one, other in pairs):
        return []
    text = (
        f"backbone: {type(model.backbone).__name__}.forward(): its maps depend on the pixels "
        "beyond `sizes`, so predictions depend on the other images of a batch "
        "(visionkit.types.Backbone)"
    )
    hint = "set the normalized input to zero there, as visionkit.models.backbones.norm.Normalize"
    return [finding("contract", text, "keep", hint=hint)._replace(severity="warning")]


def _first(stream: Generator[Batch, None, None], device: torch.device) -> Batch:
    with closing(stream):
        batch = next(stream)
    count = CPU_IMAGES if device.type == "cpu" else len(batch)
    return Batch(batch.images[:count], batch.targets[:count])


@contextmanager
def _named(key: str, config: Config) -> Iterator[None]:
    """Errors without an explanation become a ConfigError that begins with `key`."""
    try:
        yield
    except VisionkitError:
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        known = explained(error, config)
        if isinstance(known, ResourceError):  # a finding about the config, next to the others
            known = ConfigError(str(known))
        raise known or ConfigError(
            f"{key}: fails on the first batch ({type(error).__name__}: {text})"
        ) from error


def check_annotations(path: str | Path, images: str | Path | None = None) -> CheckReport:
    """Check a COCO annotation file, and with `images` the files in that folder."""
    report = CheckReport(str(path))
    with report.catching(str(path)):
        if images is not None:
            data: Any = Coco(str(images), str(path))
        else:
            problems = Problems(f"annotation file {path}", path)
            data = Annotations(open_index(path), problems, actions=policies(None))
            problems.raise_any()
        found = image_findings(data, str(path))
        found += narrow_range(found, str(path), data)
        found += dataset_class_findings(data, str(path), ["labels"])
        report.findings += [*located(str(path), _dataset_findings(data)), *found]
        used = {"main": {"annotations": dataset_summary(data, found)}}
        report.used = {**report.used, "sources": used}
    return report


def _dataset_findings(dataset: Any) -> Iterator[Finding]:
    """What a dataset found when it was opened, and what takes longer to find."""
    if hasattr(dataset, "findings"):
        yield from dataset.findings()
    if hasattr(dataset, "examine"):
        try:
            yield from dataset.examine(progress_bar)
        except Exception as error:
            if not is_custom(original(dataset)):
                raise
            text = f"{type(original(dataset)).__name__}.examine() raised {type(error).__name__}"
            yield finding("contract", f"{text}: {error}")
