"""Validation: losses and metrics of every head from one pass of the backbone, without gradients."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from visionkit.config import Config, load_config
from visionkit.data.build import build_sources
from visionkit.data.loading.source import Source
from visionkit.distributed import collectives
from visionkit.engine.export.onnx_file import read_onnx_info
from visionkit.engine.failures import propagate_failures
from visionkit.engine.onnx_model import OnnxPredictor, is_onnx, load_onnx
from visionkit.engine.torch_model import Predictor, as_tensors, load_model
from visionkit.engine.views import predict_views
from visionkit.errors import ArgumentError, ConfigError, VisionkitError, listed
from visionkit.metrics import comparison
from visionkit.metrics.coco.engines import engine_version, pick_engine
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.metrics.coco.ground_truth import log_once
from visionkit.metrics.intervals import REPLICATES, Interval
from visionkit.metrics.parts import Part, ReportContext
from visionkit.metrics.report import Coverage, to_record
from visionkit.metrics.thresholds import Thresholds
from visionkit.models.build import build_model
from visionkit.models.contracts import checked_coverage, checked_metrics, checked_parts
from visionkit.models.model import VisionModel
from visionkit.ops.views import Tta, Views
from visionkit.runs import files
from visionkit.runs.files import reason
from visionkit.runs.terminal import progress_bar
from visionkit.types import Batch, Classes, Evaluator, HeadPrediction, Loss

log = logging.getLogger("visionkit")
PLAIN = Views()  # each image alone
LossRecord = tuple[float, float, float]  # sum, count and min_count of a term in a batch
# The predictions for a batch of a source, and losses if there are any, by head.
Infer: TypeAlias = Callable[
    [Batch, Source], tuple[Mapping[str, list[HeadPrediction]], Mapping[str, Mapping[str, Loss]]]
]


def evaluate(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    tta: Tta = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> dict[str, float]:
    """Metrics of a trained run on its validation data, or on other data given by `overrides`.

    With `heads`, only of those. Names are `<head>/<metric>`. On the run's own data they equal those
    of its validation, bit for bit on the same device and number of threads. They are written to
    RUN/eval/metrics.json, and the scored detections to RUN/eval/<head>_bbox.json (and
    _segm.json), which pycocotools reads. NaN where a metric is not defined, as without ground
    truth. `run` and `allow_plugins` as for `load`.

    With `tta` or `tiles` (see `Predictor.use_views`), the metrics are those of predictions from
    several views of each image; losses are still those of the images alone.

    Raises ConfigError if there is no validation data, DataError if it cannot be used, and the
    errors of `load`.
    """
    views = Views.of(tta, tiles, overlap)
    return evaluate_run(run, overrides, heads=heads, allow_plugins=allow_plugins, views=views)[0]


class Evaluation(NamedTuple):
    """A run that was evaluated: its model and data, and what was measured."""

    predictor: Predictor
    sources: list[Source]  # those with validation data
    metrics: dict[str, float]
    evaluators: dict[str, Evaluator]


class FileEvaluation(NamedTuple):
    """An exported file that was evaluated."""

    metrics: dict[str, float]
    evaluators: dict[str, Evaluator]


def evaluate_run(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    intervals: bool = False,
    analysis: bool = False,
    views: Views = PLAIN,
) -> tuple[dict[str, float], dict[str, Any]]:
    """`evaluate`, and the other content of RUN/eval/metrics.json: `coco_engine`, the program that
    computed the COCO metrics, and its version; `scoring`, the rule of these; `classes`, a
    `Coverage` for each metric that is over classes; and `views`, if there were several of each
    image. With `intervals`, 95 % intervals by metric; with `analysis`, the parts of a report by
    head."""
    with propagate_failures():
        evaluated = evaluated_file if is_onnx(run) else evaluated_run
        options: Any = {"heads": heads, "allow_plugins": allow_plugins, "views": views}
        found = evaluated(run, overrides, **options)
        metrics, evaluators = found.metrics, found.evaluators
        coco = {name: e for name, e in evaluators.items() if isinstance(e, CocoEvaluator)}
        facts: dict[str, Any] = {"classes": coverage_of(evaluators)}
        if not views.is_plain:
            facts["views"] = views.record()
        if coco:
            facts["coco_engine"] = engine_version(pick_engine())
            facts["scoring"] = "; ".join(dict.fromkeys(e.rule for e in coco.values()))
        if intervals:
            around = intervals_of(evaluators, metrics)
            facts["intervals"] = {name: [one.low, one.high] for name, one in around.items()}
        if Path(run).is_dir():
            content = to_record(metrics, facts)
            collectives.on_main_rank(lambda: _write(Path(run) / "eval", content, coco))
        if analysis:
            context = ReportContext(no_images, images=0)
            facts["analysis"] = {
                name: reported(name, evaluator, context)
                for name, evaluator in evaluators.items()
                if hasattr(evaluator, "report")
            }
        return metrics, facts


def evaluated_run(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    views: Views = PLAIN,
) -> Evaluation:
    """`evaluate`, without writing anything, and all that the metrics come from."""
    if is_onnx(run):
        raise ArgumentError(f"{run}: is an exported file; a report needs its run")
    collectives.setup()
    with propagate_failures():
        predictor = load_model(run, overrides, heads=heads, fold=False, allow_plugins=allow_plugins)
        predictor.set_views(views)
        sources = _validated(predictor.config, predictor.classes, predictor.heads)
        metrics, evaluators = evaluate_model(
            predictor.model,
            sources,
            dtype=predictor.dtype,
            workers=predictor.config.workers,
            infer=None if views.is_plain else _from_views(predictor),
        )
        return Evaluation(predictor, sources, metrics, evaluators)


def _from_views(predictor: Predictor) -> Infer:
    """The losses of a batch, and the predictions of its images as `Predictor.predict` makes them
    from several views, where there are several."""
    assert predictor.views is not None
    plan = predictor.views.plan

    def infer(batch: Batch, source: Source) -> Any:
        model, dataset = predictor.model, source.val
        found, losses = model.infer(batch, source.feeds, predictor.dtype, with_losses=True)
        for place, target in enumerate(batch.targets):
            if dataset is not None and len(plan(target["orig_size"])) > 1:
                image = dataset[target["position"]].image
                (merged,) = predict_views(predictor, [image], source.feeds)
                for head, result in merged.items():
                    found[head][place] = on_device(result, batch.images.device)
        return found, losses

    return infer


def _validated(config: Config, classes: dict[str, Classes], heads: Sequence[str]) -> list[Source]:
    """The sources with validation data, each with those of the heads that it feeds."""
    sources = build_sources(config, ("val",), classes)
    for source in sources:
        source.feeds = [head for head in source.feeds if head in heads]
    sources = [source for source in sources if source.val is not None]
    if not sources:
        raise ConfigError("data: no source has a 'val' section; give data.val.images=..., ...")
    return sources


def evaluated_file(
    path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    allow_plugins: bool = False,
    views: Views = PLAIN,
) -> FileEvaluation:
    """`evaluated_run` for an exported file: it predicts, from the images as they are stored, and
    the config in it says how that is scored. `overrides` may name other data only."""
    collectives.setup()
    predictor, config = _opened_file(path, overrides, heads, allow_plugins=allow_plugins)
    predictor.set_views(views)
    model = build_model(config, predictor.classes, pretrained=False)

    def infer(batch: Batch, source: Source) -> Any:
        dataset: Any = source.val
        images = [dataset[target["position"]].image for target in batch.targets]
        found = predictor.predict_batch([image.permute(1, 2, 0).numpy() for image in images])
        return {head: [as_tensors(one.heads[head]) for one in found] for head in source.feeds}, {}

    sources = _validated(config, predictor.classes, predictor.heads)
    fp32 = torch.float32
    return FileEvaluation(
        *evaluate_model(model, sources, dtype=fp32, workers=config.workers, infer=infer)
    )


def on_device(prediction: Mapping[str, Any], device: torch.device) -> HeadPrediction:
    """A prediction with all its tensors there."""
    found: Any = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in prediction.items()
    }
    return found


def _opened_file(
    path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str],
    heads: Sequence[str] | None,
    *,
    allow_plugins: bool,
) -> tuple[OnnxPredictor, Config]:
    """An exported file and the config in it, with its heads alone. ArgumentError for overrides of
    what is fixed in the file."""
    info = read_onnx_info(path)
    options: Any = {"origin": path, "allow_plugins": allow_plugins}
    before, config = (load_config(info.config, some, **options) for some in ((), overrides))
    fixed = [k for k in ("backbone", "neck", "heads") if getattr(before, k) != getattr(config, k)]
    fixed += [
        f"data.{name}.{key}"
        for name, spec in config.data.items()
        for key in ("feeds", "value_range")
        if getattr(spec, key) != getattr(before.data[name], key)
    ]
    if fixed:
        hint = "give another value to visionkit export"
        raise ArgumentError(f"{path}: {listed(fixed)}: fixed in an exported file; {hint}")
    sizes = {name: spec.image_size for name, spec in config.data.items()}
    changed = {size for name, size in sizes.items() if size != before.data[name].image_size}
    settings: dict[str, Any] = {"train.device": config.train.device}
    for size in changed:
        settings["data.image_size"] = size
    predictor = load_onnx(path, settings, heads=heads)
    feeds = {n: [h for h in s.feeds if h in predictor.heads] for n, s in config.data.items()}
    return predictor, replace(
        config,
        weights=None,
        heads={head: config.heads[head] for head in info.heads},
        data={n: replace(config.data[n], feeds=own) for n, own in feeds.items() if own},
    )


def coverage_of(evaluators: Mapping[str, Evaluator]) -> dict[str, Coverage]:
    """Over how many classes metrics are, by their names."""
    found = {}
    for name, evaluator in evaluators.items():
        own = evaluator.coverage() if hasattr(evaluator, "coverage") else {}
        for metric, over in checked_coverage(name, own).items():
            found[f"{name}/{metric}"] = over
    return found


def intervals_of(
    evaluators: Mapping[str, Evaluator],
    metrics: Mapping[str, float],
    replicates: int = REPLICATES,
) -> dict[str, Interval]:
    """Of each metric that can be resampled, by its whole name."""
    found: dict[str, Interval] = {}
    for head, evaluator in evaluators.items():
        one: Any = evaluator
        if hasattr(one, "resampled"):
            own = own_metrics(metrics, head)
            around = comparison.intervals(one, own, replicates)
            found |= {f"{head}/{name}": value for name, value in around.items()}
    return found


def own_metrics(metrics: Mapping[str, float], head: str) -> dict[str, float]:
    """The metrics of a head by their own names."""
    prefix = f"{head}/"
    return {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}


def reported(head: str, evaluator: Any, context: ReportContext) -> list[Part]:
    """What an evaluator, perhaps a custom one, reports; ConfigError for what is none."""
    try:
        parts = evaluator.report(context)
    except VisionkitError:
        raise
    except Exception as error:
        raise ConfigError(
            f"heads.{head}: report() of its evaluator fails ({type(error).__name__}: {error})"
        ) from error
    return checked_parts(head, parts)


def no_images(image_id: int) -> Any:
    """For reports without images."""
    raise LookupError(f"image {image_id}: predictions are not made again")


def find_thresholds(evaluators: Mapping[str, Evaluator]) -> dict[str, Thresholds]:
    """The scores of the best F1, by head, of those that have any; with several validation sources
    those of the first."""
    found: dict[str, Thresholds] = {}
    for name, evaluator in evaluators.items():
        head = name.rpartition("/")[2]
        if head not in found and hasattr(evaluator, "thresholds"):
            one = evaluator.thresholds()
            found |= {} if one is None else {head: one}
    return found


def _write(folder: Path, metrics: dict[str, Any], coco: dict[str, CocoEvaluator]) -> None:
    """Metrics matter more than their files: an OSError is a warning."""
    try:
        if folder.is_symlink():
            raise OSError("it is a link, and nothing is written through one")
        folder.mkdir(exist_ok=True)
        files.write_text(folder / "metrics.json", files.to_json(metrics) + "\n")
        for name, evaluator in coco.items():
            for iou_type in evaluator.types:
                file = folder / f"{name.replace('/', '_')}_{iou_type}.json"
                files.write_text(file, files.to_json(evaluator.result_file(iou_type)))
    except OSError as error:
        log.warning("%s: cannot be written: %s", folder, reason(error))


def evaluate_model(
    model: VisionModel,
    sources: Iterable[Source],
    *,
    dtype: torch.dtype,
    workers: int,
    infer: Infer | None = None,
) -> tuple[dict[str, float], dict[str, Evaluator]]:
    """Metrics of every head on every validation source, and the evaluators that computed them.

    Names are `<head>/<metric>`, with `<source>/` in front when several sources are validated;
    validation losses are `<head>/loss/<term>`, the sum over the dataset divided by the count of
    what it is over (objects, pixels, images). Training state and random generators are unchanged
    afterwards. All metrics are the same bit for bit on any number of ranks.

    `infer` replaces the model's own predictions and losses; the model still makes the evaluators.
    """
    sources = [source for source in sources if source.val is not None]

    def own(batch: Batch, source: Source) -> Any:
        return model.infer(batch, source.feeds, dtype, with_losses=True)

    was_training = [(module, module.training) for module in model.modules()]
    metrics: dict[str, float] = {}
    evaluators: dict[str, Evaluator] = {}
    model.eval()
    try:
        for source in sources:
            if not source.feeds:
                continue
            prefix = f"{source.name}/" if len(sources) > 1 else ""
            found = _evaluate_source(model, source, infer or own, workers=workers)
            for head, (evaluator, values) in found.items():
                evaluators[prefix + head] = evaluator
                metrics |= {f"{prefix}{head}/{name}": value for name, value in values.items()}
    finally:
        for module, training in was_training:
            module.training = training
    for name, over in coverage_of(evaluators).items():
        if over.without:
            log_once(f"{name} is over {over}", logging.INFO)
    return metrics, evaluators


def metric_names(model: VisionModel, sources: Iterable[Source]) -> list[str]:
    """The names of the metrics that `evaluate_model` will compute, except losses."""
    validated = [(source, source.val) for source in sources if source.val is not None]
    return [
        f"{source.name}/{head}/{name}" if len(validated) > 1 else f"{head}/{name}"
        for source, dataset in validated
        for head in source.feeds
        for name in _compute_empty(head, model.evaluator(head, dataset))
    ]


def _compute_empty(head: str, evaluator: Evaluator) -> dict[str, float]:
    """Its metrics before any image."""
    try:
        metrics = evaluator.compute()
    except VisionkitError:
        raise
    except Exception as error:
        raise ConfigError(
            f"heads.{head}: compute() of its evaluator fails before it has seen an image "
            f"({type(error).__name__}: {error}); expected the names of its metrics, with NaN"
        ) from error
    return checked_metrics(head, metrics)


@torch.inference_mode()
def _evaluate_source(
    model: VisionModel, source: Source, infer: Infer, *, workers: int
) -> dict[str, tuple[Evaluator, dict[str, float]]]:
    device, dataset = next(model.parameters()).device, source.val
    assert dataset is not None
    evaluators = {name: model.evaluator(name, dataset) for name in source.feeds}
    records: dict[tuple[str, str], list[LossRecord]] = defaultdict(list)  # one for each batch
    seen: list[int] = []
    size = source.eval_batch_size or source.batch_size
    total = -(-len(dataset) // (size * collectives.world_size()))
    with closing(source.val_batches(workers=workers)) as batches, torch.random.fork_rng():
        hidden = collectives.rank() != 0
        for batch in progress_bar(batches, "validating", total=total, hidden=hidden):
            seen += [target["position"] for target in batch.targets]
            torch.manual_seed(seen[-1])  # so that a head's random numbers depend on the batch alone
            batch = batch.to(device)
            predictions, terms = infer(batch, source)
            for name, evaluator in evaluators.items():
                evaluator.update(predictions[name], batch)
            for head, values in terms.items():
                for term, loss in values.items():
                    record = (float(loss.sum), float(loss.count), loss.min_count)
                    records[head, term].append(record)
    _check_seen(collectives.all_gather_object(seen), source.name, len(dataset))
    return _merge_ranks(evaluators, records)


def _check_seen(by_rank: list[list[int]], source: str, images: int) -> None:
    """Every image once: one that is scored twice, or not at all, makes all metrics wrong."""
    times = Counter(number for seen in by_rank for number in seen)
    wrong = {i: times[i] for i in {*times, *range(images)} if times[i] != 1}
    if wrong or times.total() != images:
        raise VisionkitError(
            f"data.{source}.val: {images} images, but the ranks scored "
            f"{times.total()}; times scored, by image number: {dict(sorted(wrong.items()))}"
        )


def _merge_ranks(
    evaluators: dict[str, Evaluator], records: dict[tuple[str, str], list[LossRecord]]
) -> dict[str, tuple[Evaluator, dict[str, float]]]:
    """Merge what the ranks collected; every rank computes the same metrics."""
    everywhere: dict[tuple[str, str], list[LossRecord]] = defaultdict(list)
    for part in collectives.all_gather_object(dict(records)):
        for key, values in part.items():
            everywhere[key] += values
    found = {}
    for name, evaluator in evaluators.items():
        evaluator.merge(collectives.all_gather_object(evaluator.state()))
        metrics = checked_metrics(name, evaluator.compute())
        terms = {t: _loss_value(v) for (head, t), v in everywhere.items() if head == name}
        if terms:
            metrics |= {f"loss/{term}": value for term, value in terms.items()}
            metrics["loss/total"] = sum(terms.values())
        found[name] = (evaluator, metrics)
    _check_same({name: metrics for name, (_, metrics) in found.items()})
    return found


def _check_same(metrics: dict[str, dict[str, float]]) -> None:
    """An evaluator whose merge() does not join all states has the metrics of one rank's images."""
    first, *others = collectives.all_gather_object(metrics)
    for rank, theirs in enumerate(others, start=1):
        for head, values in theirs.items():
            if repr(values) != repr(first[head]):  # NaN equals NaN
                raise ConfigError(
                    f"heads.{head}: its evaluator computes {values} on rank {rank}, and "
                    f"{first[head]} on rank 0; does its merge() join the states of all ranks?"
                )


def _loss_value(records: list[LossRecord]) -> float:
    """Sum of sums / sum of counts, the same whatever the order of the records."""
    sums, counts, min_counts = zip(*records, strict=True)
    total = math.fsum(sums) if all(map(math.isfinite, sums)) else sum(sums)
    return total / max(math.fsum(counts), *min_counts)
