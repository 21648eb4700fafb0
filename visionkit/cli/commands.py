"""What each command does with its parsed arguments. Heavy imports stay in the functions, so that
`--help` is quick."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionkit.errors import (
    ConfigError,
    DataError,
    VisionkitError,
    plural,
    printable,
)
from visionkit.runs.signals import Stopped, StopRequest
from visionkit.runs.terminal import discard_output

if TYPE_CHECKING:
    from visionkit.config import Config

SECTIONS = (
    "configs",
    "heads",
    "backbones",
    "necks",
    "datasets",
    "transforms",
    "loggers",
    "optimizers",
)
OVERRIDE = re.compile(r"-{0,2}[A-Za-z_][\w.-]*=")


def train(args: argparse.Namespace) -> None:
    with StopRequest() as stop:
        try:
            config, resume = _training_config(args)
        except Stopped:
            from visionkit.runs.directory import stopped_before_training

            resumed = args.resume if isinstance(args.resume, str) else None
            raise stopped_before_training(resumed, stop.received) from None
    from visionkit.distributed import collectives
    from visionkit.engine import folds, train
    from visionkit.metrics.report import metric_lines

    if args.folds is not None:
        options = {"overwrite": args.overwrite, "strict": args.strict}
        trained = folds.train_folds(config, args.folds, resume=resume, **options)
        if collectives.rank() == 0:
            print_lines(trained.lines())
        return
    run = train.train(config, resume=resume, overwrite=args.overwrite, strict=args.strict)
    if collectives.rank() == 0:
        print_lines([*metric_lines(run.metrics), f"run: {run.directory}"])


def _training_config(args: argparse.Namespace) -> tuple[Config, bool]:
    """The config to train and whether to resume its run. Imports torch, which takes seconds."""
    from visionkit.config import load_config
    from visionkit.engine.train import resumed_config

    config, resume = args.config, args.resume
    if isinstance(resume, str) and _follows(resume) and not Path(resume).is_dir():
        words = [resume, *([config] if config else [])]  # `--resume` stood before the config
        config = next((word for word in words if not OVERRIDE.match(word)), None)
        args.overrides += [word for word in words if OVERRIDE.match(word)]
        resume = True
    if resume and args.overwrite:
        raise ConfigError("train: --resume continues a run, --overwrite replaces it: give only one")
    if args.strict and not resume:
        raise ConfigError("train: --strict compares the data of a run with --resume: give both")
    if args.folds is not None:
        if isinstance(resume, str) or config is None:
            raise ConfigError(
                "train: --folds needs the config, and --resume without a run then continues all "
                "folds: visionkit train CONFIG --folds DIR --resume"
            )
        checked = load_config(config, args.overrides, allow_plugins=args.allow_plugins)
        return checked, bool(resume)
    if isinstance(resume, str):
        words = [config, *args.overrides] if config else args.overrides
        return resumed_config(resume, words, allow_plugins=args.allow_plugins), True
    if config is None:
        raise ConfigError("train: give a config, or --resume RUN")
    checked = load_config(config, args.overrides, allow_plugins=args.allow_plugins)
    if resume and checked.output is None:
        raise ConfigError("--resume: name the run with --resume RUN or output=RUN")
    return checked, bool(resume)


def _follows(word: str) -> bool:
    """Whether a word after `--resume` is a config or an override rather than a run."""
    from visionkit.config.shipped import shipped_configs

    return bool(OVERRIDE.match(word) or re.match(r".*\.ya?ml$", word)) or word in shipped_configs()


def evaluate(args: argparse.Namespace) -> None:
    if args.gt or args.pred:
        _eval_files(args)
        return
    if args.run_directory is None:
        raise ConfigError("eval: give RUN, or --gt FILE and --pred FILE")
    from visionkit.ops.views import Views

    views = Views.of(args.tta, args.tiles, args.overlap)
    own = (args.type, args.engine, args.trust, args.max_detections, args.ignore_categories)
    if any(own):
        raise ConfigError(
            "eval: --type, --engine, --trust, --max-detections and --ignore-categories need --gt "
            "and --pred; the heads and the data of a run determine what is scored, and the "
            "environment variable VISIONKIT_COCO_ENGINE the engine"
        )
    from visionkit.distributed import collectives
    from visionkit.engine.evaluate import evaluate_run

    metrics, facts = evaluate_run(
        args.run_directory,
        args.overrides,
        heads=args.heads,
        allow_plugins=args.allow_plugins,
        intervals=args.intervals,
        analysis=args.analysis,
        views=views,
    )
    if collectives.rank() == 0:
        _show(metrics, facts, args.json)


def _eval_files(args: argparse.Namespace) -> None:
    if not (args.gt and args.pred):
        raise ConfigError("eval: give both --gt FILE and --pred FILE")
    if args.run_directory or args.overrides or args.heads:
        raise ConfigError("eval: RUN, key=value and --heads do not apply to --gt and --pred")
    if (args.tta, args.tiles, args.overlap) != (None, None, None):
        raise ConfigError("eval: --tta, --tiles and --overlap need a model, not --gt and --pred")
    from visionkit.metrics.coco.evaluator import MOST, score_files

    metrics, facts = score_files(
        args.gt,
        args.pred,
        args.type or "bbox",
        args.engine,
        max_detections=args.max_detections or MOST,
        trust=args.trust,
        ignore_categories=args.ignore_categories,
        intervals=args.intervals,
        analysis=args.analysis,
    )
    _show(metrics, facts, args.json)


def _show(metrics: dict[str, float], facts: dict[str, Any], as_json: bool) -> None:
    from visionkit.metrics.parts import text_lines, to_plain
    from visionkit.metrics.report import metric_lines, to_record
    from visionkit.runs.files import to_json

    analysis = facts.pop("analysis", {})
    if as_json:
        record = to_record(metrics, facts)
        if analysis:
            record["analysis"] = {head: to_plain(parts) for head, parts in analysis.items()}
        print(to_json(record))
        return
    print(*metric_lines(metrics, facts.get("classes"), facts.get("intervals")), sep="\n")
    if "views" in facts:
        views = ", ".join(f"{name} {value}" for name, value in facts["views"].items())
        print(f"each image was predicted from several views: {views}")
    if "scoring" in facts:
        print(f"scored by {facts['coco_engine']}, {facts['scoring']}")
    for head, parts in analysis.items():
        print(*text_lines(head, parts), sep="\n")


def print_lines(lines: list[str]) -> None:
    """Print what a command has done. If that fails, it is done all the same."""
    try:
        print(*map(printable, lines), sep="\n", flush=True)
    except OSError:
        discard_output()


def report(args: argparse.Namespace) -> None:
    from visionkit.engine.reporting import IMAGES, report
    from visionkit.runs.files import to_json, write_text

    runs, overrides = split_overrides([*args.runs, *args.overrides])
    record = report(
        runs,
        overrides,
        truth=args.gt,
        results=args.pred,
        iou_type=args.type,
        out=args.out,
        images=args.images or IMAGES,
        bootstrap=args.bootstrap,
        iou=args.iou,
        heads=args.heads,
        allow_plugins=args.allow_plugins,
    )
    if args.json:
        write_text(Path(args.json), to_json(record) + "\n")
    print_lines([*record["summary"], f"wrote {record['page']}"])


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Paths, and config overrides that stood among them."""
    settings = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    return [word for word in words if word not in settings], settings


def predict(args: argparse.Namespace) -> int:
    from visionkit.engine.predict import load
    from visionkit.engine.results import write_predictions

    settings = [w for w in args.inputs if OVERRIDE.match(w) and not Path(w).exists()]
    inputs = [word for word in args.inputs if word not in settings]
    if not inputs:
        raise ConfigError("predict: give at least one image or folder")
    predictor = load(
        args.run_directory,
        [*settings, *args.overrides],
        heads=args.heads,
        allow_plugins=args.allow_plugins,
        tta=args.tta,
        tiles=args.tiles,
        overlap=args.overlap,
    )
    counts = write_predictions(predictor, inputs, args.out, args.threshold, args.batch_size)
    done = f"wrote predictions.json and overlays to {args.out}: {counts}"
    return _report(done, counts.unreadable)


def export(args: argparse.Namespace) -> None:
    if args.size and args.dynamic:
        raise ConfigError("export: --size fixes the input size, --dynamic leaves it open: give one")
    from visionkit.cli.reports import export_text
    from visionkit.engine.export.export import export
    from visionkit.runs.files import to_json

    names = ["format", "heads", "size", "batch", "decode", "precision", "check", "max_drop"]
    names += ["overwrite", "allow_plugins"]
    options = {name: getattr(args, name) for name in names}
    with StopRequest() as stop:
        try:
            record = export(args.run_directory, args.out, args.overrides, **options)
        except Stopped:
            if stop.received == "SIGINT":
                raise KeyboardInterrupt from None
            raise VisionkitError(
                f"export: stopped by {stop.received}; nothing is written"
            ) from None
    print_lines([to_json(record)] if args.json else export_text(record))


def search(args: argparse.Namespace) -> int:
    from visionkit.engine.predict import load
    from visionkit.engine.search import search_files

    predictor = load(args.run_directory, args.overrides, allow_plugins=args.allow_plugins)
    inputs = [args.query], [args.gallery]
    unreadable = search_files(predictor, *inputs, args.out, top=args.top, head=args.head)
    return _report(f"wrote matches.json and matches.jpg to {args.out}", unreadable)


def _report(done: str, unreadable: int) -> int:
    """Returns the exit code: that of a DataError if images are missing."""
    print_lines(
        [f"{done}; {plural(unreadable, 'image')} could not be read" if unreadable else done]
    )
    return DataError.exit_code if unreadable else 0


def bench(args: argparse.Namespace) -> None:
    from visionkit.cli.reports import bench_text
    from visionkit.engine.benchmark import benchmark
    from visionkit.runs.files import to_json

    result = benchmark(
        args.config, args.overrides, steps=args.steps, allow_plugins=args.allow_plugins
    )
    print(to_json(result) if args.json else bench_text(result))


def check(args: argparse.Namespace) -> int:
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f"--json: the directory of {args.json} does not exist")
    from visionkit.cli import reports
    from visionkit.engine import check

    options: dict[str, Any] = {"images": args.images, "allow_plugins": args.allow_plugins}
    report = check.check(args.target, args.overrides, **options)
    if args.json:
        reports.write(report, Path(args.json))
    print(report.text(f"all are in {args.json}" if args.json else "--json FILE writes all"))
    return reports.exit_code(report, strict=args.strict)


def config(args: argparse.Namespace) -> None:
    from visionkit.config import load_config
    from visionkit.models.build import check_parts

    checked = load_config(args.config, args.overrides, allow_plugins=args.allow_plugins)
    check_parts(checked)
    text = checked.to_yaml()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
        as_it_is = all(map(str.isprintable, text.split("\n")))
    except UnicodeEncodeError:
        as_it_is = False
    print(text if as_it_is else checked.to_yaml(ascii=True), end="")


def init(args: argparse.Namespace) -> None:
    from visionkit.config.starter import init

    path = init(args.name, args.file)
    word = printable(shlex.quote(str(path)))
    print_lines(
        [
            f"wrote {path}; edit it, then:",
            f"  visionkit check {word}",
            f"  visionkit train {word}",
        ]
    )


def list_components(args: argparse.Namespace) -> None:
    if args.section in (None, "configs"):
        from visionkit.config.shipped import describe_configs

        print(describe_configs())
    for section in [args.section] if args.section else SECTIONS:
        if section != "configs":
            from visionkit.config.components import describe

            print(describe(section))


def weights_list(args: argparse.Namespace) -> None:
    from visionkit.cli import weights

    weights.show_list(args)


def weights_fetch(args: argparse.Namespace) -> None:
    from visionkit.cli import weights

    weights.fetch(args)


def weights_verify(args: argparse.Namespace) -> None:
    from visionkit.cli import weights

    weights.verify(args)


def weights_export(args: argparse.Namespace) -> None:
    from visionkit.runs import checkpoint

    print(checkpoint.export(args.run_directory, args.file))


def weights_where(args: argparse.Namespace) -> None:
    from visionkit.cli import weights

    weights.where(args)
