"""The command line: `visionkit VERB ...`. Results go to standard output, the log to standard error.

Nothing heavy is imported before a verb is known, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path

from visionkit.errors import ConfigError, Preempted, VisionkitError

OVERRIDE = re.compile(r"-{0,2}[A-Za-z_][\w.-]*=")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, or that of the error (see visionkit.errors)."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("visionkit").setLevel(logging.INFO)
    unknown = [word for word in rest if not OVERRIDE.match(word)]
    if unknown and not unknown[0].startswith("-") and getattr(args, "run_directory", "") is None:
        args.run_directory = unknown.pop(0)  # it stood behind an option
        rest.remove(args.run_directory)
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}; settings are given as key=value")
    args.overrides = [*getattr(args, "overrides", ()), *(word.lstrip("-") for word in rest)]
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except VisionkitError as error:
        if args.debug:
            raise
        label = "" if isinstance(error, Preempted) else "error: "
        print(f"{label}{error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    finally:
        _leave_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visionkit",
        description="Train, evaluate and use vision models described by one YAML file.",
    )
    parser.add_argument("--version", action="version", version=_version())
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: object, text: str, aliases: tuple[str, ...] = ()):
        sub = verbs.add_parser(
            name, help=text, description=text, parents=[debug], aliases=list(aliases)
        )
        sub.set_defaults(run=run)
        return sub

    sub = verb("train", _train, "train the model that a config describes")
    sub.add_argument("config", nargs="?", help="a YAML file; not needed with --resume RUN")
    _add_overrides(sub)
    sub.add_argument("--resume", nargs="?", const=True, metavar="RUN", help="continue a run")
    sub.add_argument("--overwrite", action="store_true", help="replace the run in output=")

    text = "metrics of a trained run on validation data, or of a COCO result file"
    sub = verb("eval", _eval, text, aliases=("val",))
    sub.add_argument("run_directory", nargs="?", metavar="RUN", help="a run or a checkpoint")
    _add_overrides(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
    sub.add_argument("--heads", type=_words, metavar="A,B", help="only these heads")
    sub.add_argument("--gt", metavar="FILE", help="COCO annotations; with --pred, instead of RUN")
    sub.add_argument("--pred", metavar="FILE", help="COCO results to score, without a model")
    sub.add_argument("--type", choices=["bbox", "segm"], help="score boxes (default) or masks")
    engines = ["hotcoco", "pycocotools"]
    sub.add_argument("--engine", choices=engines, help="what computes them; same figures")

    sub = verb("predict", _predict, "run a trained model on pictures")
    sub.add_argument("run_directory", metavar="RUN", help="a run directory or a checkpoint")
    sub.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="or key=value settings")
    sub.add_argument("--out", required=True, metavar="DIR", help="where to write the results")
    sub.add_argument("--threshold", type=_share, default=0.5, help="lowest score to draw (0.5)")
    sub.add_argument("--heads", type=_words, metavar="A,B", help="only these heads")
    text = "pictures of one size that go through the model at once (4)"
    sub.add_argument("--batch-size", type=_count, default=4, metavar="N", help=text)

    sub = verb("search", _search, "the pictures of a gallery that are nearest to some others")
    sub.add_argument("run_directory", metavar="RUN", help="a run with an embedding head")
    sub.add_argument("query", metavar="QUERY", help="a picture or a folder of pictures")
    sub.add_argument("gallery", metavar="GALLERY", help="a folder of pictures")
    _add_overrides(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="where to write the results")
    sub.add_argument("--top", type=_count, default=5, help="how many to find for each (5)")
    sub.add_argument("--head", help="which embedding, if the model has several")

    sub = verb("bench", _bench, "where the time and memory of a config go; nothing is written")
    sub.add_argument("config", help="a YAML file")
    _add_overrides(sub)
    sub.add_argument("--steps", type=_count, default=20, help="training steps to time (20)")
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")

    sub = verb("config", _config, "check a config and print it complete, in the long form")
    sub.add_argument("config", help="a YAML file")
    _add_overrides(sub)

    sub = verb("list", _list, "the components that a config can name")
    sections = ["heads", "backbones", "necks", "datasets", "transforms"]
    sub.add_argument("section", nargs="?", choices=sections)

    sub = verb("data", None, "generate data")
    kinds = sub.add_subparsers(metavar="KIND", required=True)
    sub = kinds.add_parser("shapes", parents=[debug], help="pictures of shapes, in COCO format")
    sub.set_defaults(run=_data_shapes)
    sub.add_argument("out", metavar="OUT", help="a new folder")
    sub.add_argument("--images", type=int, default=600)
    sub.add_argument("--size", type=int, default=160, help="side in pixels")
    sub.add_argument("--seed", type=int, default=0)
    return parser


def _add_overrides(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win")


def _train(args: argparse.Namespace) -> None:
    from visionkit import distributed
    from visionkit.config import load_config
    from visionkit.training import train

    config, resume = args.config, args.resume
    if isinstance(resume, str) and (resume.endswith((".yaml", ".yml")) or OVERRIDE.match(resume)):
        words = [resume, *([config] if config else [])]  # `--resume` stood before the config
        config = next((word for word in words if not OVERRIDE.match(word)), None)
        args.overrides += [word for word in words if OVERRIDE.match(word)]
        resume = True
    if isinstance(resume, str):
        words = [config, *args.overrides] if config else args.overrides
        run = Path(resume)
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"--resume: {run} holds no run (no config.yaml)")
        config, args.overrides = str(run / "config.yaml"), [*words, f"output={run}"]
        resume = True
    if resume and args.overwrite:
        raise ConfigError("train: --resume continues a run and --overwrite replaces it; give one")
    if config is None:
        raise ConfigError("train: give a config file, or --resume RUN")
    checked = load_config(config, args.overrides)
    if resume and checked.output is None:
        raise ConfigError("--resume: say which run: `--resume RUN`, or output=RUN")
    run = train(checked, resume=bool(resume), overwrite=args.overwrite)
    if distributed.rank() == 0:
        _print_metrics(run.metrics)
        print(f"run: {run.directory}")


def _eval(args: argparse.Namespace) -> None:
    if args.gt or args.pred:
        _eval_files(args)
        return
    if args.run_directory is None:
        raise ConfigError("eval: give a run, or --gt FILE --pred FILE")
    if args.type or args.engine:
        raise ConfigError(
            "eval: --type and --engine go with --gt and --pred; a run's heads know what to score, "
            "and the environment's VISIONKIT_COCO_ENGINE chooses an engine"
        )
    from visionkit import distributed
    from visionkit.evaluation import evaluate_run

    metrics, facts = evaluate_run(args.run_directory, args.overrides, heads=args.heads)
    if distributed.rank() == 0:
        _show(metrics, facts, args.json)


def _eval_files(args: argparse.Namespace) -> None:
    if not (args.gt and args.pred):
        raise ConfigError("eval: --gt FILE and --pred FILE belong together")
    if args.run_directory or args.overrides or args.heads:
        raise ConfigError("eval: --gt and --pred score files; leave out RUN, settings and --heads")
    from visionkit.metrics.coco_engines import engine_version, pick_engine
    from visionkit.metrics.coco_files import evaluate_files

    engine = pick_engine(args.engine)
    metrics = evaluate_files(args.gt, args.pred, args.type or "bbox", engine)
    _show(metrics, {"coco_engine": engine_version(engine)}, args.json)


def _show(metrics: dict[str, float], facts: dict[str, str], as_json: bool) -> None:
    from visionkit.rundir import to_json

    if as_json:
        print(to_json({**metrics, **facts}))
    else:
        _print_metrics(metrics)


def _print_metrics(metrics: dict[str, float]) -> None:
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}" if value == value else f"{name:<{width}}  n/a")


def _predict(args: argparse.Namespace) -> None:
    from visionkit.predict import load
    from visionkit.results import predict_files

    settings = [w for w in args.inputs if OVERRIDE.match(w) and not Path(w).exists()]
    inputs = [word for word in args.inputs if word not in settings]
    if not inputs:
        raise ConfigError("predict: give at least one picture or folder")
    predictor = load(args.run_directory, [*settings, *args.overrides], heads=args.heads)
    broken = predict_files(
        predictor, inputs, args.out, threshold=args.threshold, batch_size=args.batch_size
    )
    print(f"wrote {args.out}/predictions.json, the overlays and what else the heads give", end="")
    print(f"; {broken} pictures could not be read" if broken else "")


def _search(args: argparse.Namespace) -> None:
    from visionkit.predict import load
    from visionkit.search import search_files

    predictor = load(args.run_directory, args.overrides)
    search_files(predictor, [args.query], [args.gallery], args.out, top=args.top, head=args.head)
    print(f"wrote {args.out}/matches.json and matches.jpg")


def _bench(args: argparse.Namespace) -> None:
    from visionkit.benchmark import benchmark
    from visionkit.benchmark_report import report
    from visionkit.rundir import to_json

    result = benchmark(args.config, args.overrides, steps=args.steps)
    print(to_json(result) if args.json else report(result))


def _config(args: argparse.Namespace) -> None:
    from visionkit.config import load_config

    print(load_config(args.config, args.overrides).to_yaml(), end="")


def _list(args: argparse.Namespace) -> None:
    from visionkit.components import describe

    sections = ["heads", "backbones", "necks", "datasets", "transforms"]
    for section in [args.section] if args.section else sections:
        print(describe(section))


def _data_shapes(args: argparse.Namespace) -> None:
    from visionkit.data.shapes import generate_shapes

    generate_shapes(args.out, images=args.images, size=args.size, seed=args.seed)
    print(f"wrote {args.images} pictures and annotations.json to {args.out}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected a number from 0 to 1")
    return float(text)


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected an integer >= 1")
    return int(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"visionkit {version('visionkit')}"
    except PackageNotFoundError:
        return "visionkit (not installed)"


def _leave_process_group() -> None:
    if "visionkit.distributed" in sys.modules:
        sys.modules["visionkit.distributed"].teardown()
