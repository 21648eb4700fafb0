"""The command line: `visionkit COMMAND ...`. Results go to standard output, the log to standard
error. What a command does is in `commands`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import NoReturn

from visionkit.cli import commands, data, values
from visionkit.cli.commands import OVERRIDE, SECTIONS
from visionkit.distributed import launch
from visionkit.errors import (
    ArgumentError,
    Preempted,
    VisionkitError,
    package_version,
    printable,
    shortage,
    unknown,
)
from visionkit.runs import signals
from visionkit.runs.terminal import discard_output, open_streams

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
LIBRARIES = (os.path.dirname(os.__file__), "site-packages", "dist-packages")
OFFLINE = "VISIONKIT_OFFLINE"  # of runs.download, whose import takes seconds
RUN = "a run, a checkpoint, or the name of a published model (visionkit weights list)"
MODEL = f"{RUN}; or an exported model (.onnx)"
UNEXPECTED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes without a class in visionkit.errors
CONFIG = "a YAML file or the name of a shipped config"
Run = Callable[[argparse.Namespace], int | None]
AddArguments = Callable[[argparse.ArgumentParser], None]


def command() -> NoReturn:
    """The `visionkit` command: run `main` and exit with its code."""
    open_streams()
    launch.watch_parent()
    code = main()
    signals.ignore()
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0 or the exit code of the error (see `visionkit.errors`)."""
    parser, names = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return USAGE
    as_json = "--json" in words
    try:
        if not words[0].startswith("-") and words[0] not in names:
            parser.error(unknown(words[0], names, f"unknown command {words[0]!r}"))
        _refuse_early(parser, words, names)
        args = _parse(parser, words)
    except ArgumentError as error:
        return report(error, as_json=as_json)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Rank 0 logs for all ranks; torchrun shows the error of each.
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("visionkit").setLevel(logging.INFO if first else logging.ERROR)
    try:
        with _offline(args):
            code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        discard_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:
        if _custom_code(error) is None:
            raise
        # Nobody must take it for the end of the work.
        return report(error, debug=args.debug, as_json=as_json)
    except Exception as error:
        if isinstance(error, OSError):
            discard_output()
        shown = "TORCHELASTIC_ERROR_FILE" in os.environ
        if shown:
            launch.report_to_torchrun(error)
        if shown and isinstance(error, VisionkitError) and not (first or args.debug):
            return error.exit_code
        return report(error, debug=args.debug, as_json=as_json and first)
    finally:
        if "visionkit.distributed.collectives" in sys.modules:
            sys.modules["visionkit.distributed.collectives"].teardown()


def _refuse_early(parser: Parser, words: list[str], names: list[str]) -> None:
    """ArgumentError for options of a command that stand before it."""
    early = list(takewhile(lambda word: word.startswith("-"), words))
    rest = words[len(early) :]
    if early and rest and rest[0] in names and not {*early} & {"-h", "--help", "-V", "--version"}:
        right = shlex.join([rest[0], *rest[1:], *early])
        parser.error(f"{early[0]} belongs after the command: visionkit {right}")


@contextmanager
def _offline(args: argparse.Namespace) -> Iterator[None]:
    """With --offline, VISIONKIT_OFFLINE is set while the command runs, for its processes too."""
    if not getattr(args, "offline", False):
        yield
        return
    before = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"
    try:
        yield
    finally:
        del os.environ[OFFLINE]
        if before is not None:
            os.environ[OFFLINE] = before


def report(error: BaseException, *, debug: bool = False, as_json: bool = False) -> int:
    """Write an error to standard error, with `debug` after its traceback, and with `as_json` as an
    object to standard output. Returns the exit code."""
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
    text, code = printable(error), getattr(error, "exit_code", UNEXPECTED)
    label = "" if isinstance(error, Preempted) else "error: "
    if isinstance(error, ModuleNotFoundError):
        text += f"; install it for {sys.executable}"
    elif not isinstance(error, (VisionkitError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if hint := shortage(error):
            text += f": {hint}"
        elif place := _custom_code(error):
            text += f", raised in {place}; --debug shows the traceback"
        else:
            label = "unexpected error: "
            text += (
                f" ({_location(error)}); run again with --debug for the traceback, and please "
                "report it"
            )
    _say(label + text)
    if findings := getattr(error, "findings", ()):
        from visionkit.data.checks.findings import SHOWN, save_findings

        if len(findings) > SHOWN:  # the message cannot hold them
            _say(save_findings(findings))
    if as_json:
        try:
            print(json.dumps({"error": text, "exit_code": code}), flush=True)
        except OSError:  # the error may be that nothing can be printed
            discard_output()
    return code


def _say(text: str) -> None:
    """Write to standard error, if that can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def _custom_code(error: BaseException) -> str | None:
    """Method, file and line of the user's code that visionkit called, if it is the cause."""
    called, found = False, None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        called = called or file.startswith(PACKAGE)
        ours = file.startswith((PACKAGE, "<")) or any(library in file for library in LIBRARIES)
        if called and not ours:
            found = f"{frame.f_code.co_qualname} ({file}, line {line})"
    return found


def _location(error: BaseException) -> str:
    """File and line of the innermost frame in visionkit, else of the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    known = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    frame = (known or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


class Parser(argparse.ArgumentParser):
    """Prints the usage and raises the error, which argparse would print too before it exits."""

    def error(self, message: str) -> NoReturn:
        _say(self.format_usage().rstrip())
        if "arguments are required" in message:
            message = f"{message}; `{self.prog} --help` explains them"
        raise ArgumentError(message)


def _parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Parse the command line. Config overrides, key=value, can be anywhere in it."""
    args, rest = parser.parse_known_args(words)
    others = [word for word in rest if not OVERRIDE.match(word)]
    if others and not others[0].startswith("-") and getattr(args, "run_directory", "") is None:
        args.run_directory = others.pop(0)  # it followed an option
        rest.remove(args.run_directory)
    if others:
        parser.error(f"unknown argument {others[0]!r}; config overrides are given as key=value")
    args.overrides = [*getattr(args, "overrides", ()), *(word.lstrip("-") for word in rest)]
    return args


def _parser() -> tuple[Parser, list[str]]:
    """The parser and the names of the commands."""
    parser = Parser(
        prog="visionkit",
        description="Train, evaluate and run vision models described by one YAML file.",
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"visionkit {package_version()}"
    )
    debug = Parser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, add_arguments, text in COMMANDS:
        aliases = ["val"] if name == "eval" else []
        sub = subparsers.add_parser(
            name, help=text, description=text, parents=[debug], aliases=aliases
        )
        sub.set_defaults(run=run)
        add_arguments(sub)
    data.add_commands(subparsers.add_parser("data", help="convert, divide and show data"), debug)
    _add_weights(subparsers.add_parser("weights", help="list, fetch and check weights"), debug)
    return parser, [*subparsers.choices]


def _add_train(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", nargs="?", help=f"{CONFIG}; not needed with --resume RUN")
    _add_overrides(sub)
    sub.add_argument("--resume", nargs="?", const=True, metavar="RUN", help="continue a run")
    sub.add_argument("--overwrite", action="store_true", help="replace the run in output=")
    text = "train one run for each fold that `visionkit data kfold` wrote there"
    sub.add_argument("--folds", metavar="DIR", help=text)
    text = "with --resume: other data than that of the run is an error (exit code 3)"
    sub.add_argument("--strict", action="store_true", help=text)
    _add_offline(sub)


def _add_eval(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_directory", nargs="?", metavar="RUN", help=MODEL)
    _add_overrides(sub)
    _add_json(sub)
    sub.add_argument("--heads", type=values.names, metavar="A,B", help="only these heads")
    sub.add_argument("--gt", metavar="FILE", help="COCO annotations; with --pred, instead of RUN")
    sub.add_argument("--pred", metavar="FILE", help="COCO results to score, without a model")
    sub.add_argument("--type", choices=["bbox", "segm"], help="score boxes (default) or masks")
    text = "library that computes the metrics; results are equal"
    sub.add_argument("--engine", choices=["hotcoco", "pycocotools"], help=text)
    text = "detections of a class that are scored in an image (default: 100, as COCO)"
    sub.add_argument("--max-detections", type=values.count, metavar="N", help=text)
    text = "categories whose objects are regions to ignore"
    sub.add_argument("--ignore-categories", type=values.names, default=[], metavar="A,B", help=text)
    text = "score results that look wrong (other boxes, ids, scores) as they are"
    sub.add_argument("--trust", action="store_true", help=text)
    text = "95 %% intervals of the metrics, by resampling the images"
    sub.add_argument("--intervals", action="store_true", help=text)
    text = "what `visionkit report` shows, as text: classes, confusion, error types"
    sub.add_argument("--analysis", action="store_true", help=text)
    _add_views(sub)
    _add_offline(sub)


def _add_report(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", nargs="*", metavar="RUN", help="runs; the first is compared with each")
    _add_allow_plugins(sub)
    sub.add_argument("--gt", metavar="FILE", help="COCO annotations; with --pred, instead of RUN")
    text = "COCO results to report on, without a model; twice: compare both"
    sub.add_argument("--pred", metavar="FILE", action="append", default=[], help=text)
    sub.add_argument("--type", choices=["bbox", "segm"], help="boxes (default) or masks")
    text = "the page (default: RUN/report.html; of several runs comparison.html, here)"
    sub.add_argument("--out", metavar="FILE.html", help=text)
    sub.add_argument("--json", metavar="FILE", help="write the numbers to a file, too")
    text = "images of a gallery (default: 24); with --gt also the folder of the images"
    sub.add_argument("--images", action="append", default=[], metavar="N|DIR", help=text)
    text = "replicates for intervals (default: 1000); 0: none"
    sub.add_argument("--bootstrap", type=values.natural, default=1000, metavar="N", help=text)
    text = "IoU from which a detection matches (default: 0.5)"
    sub.add_argument("--iou", type=values.fraction, default=0.5, help=text)
    sub.add_argument("--heads", type=values.names, metavar="A,B", help="only these heads")


def _add_predict(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_directory", metavar="RUN", help=MODEL)
    text = "images and folders; also config overrides (key=value)"
    sub.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help=text)
    _add_allow_plugins(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    text = (
        "lowest score to draw: a number, best (the best F1 of each class in the validation; the "
        "default), or p=0.9 (that precision)"
    )
    sub.add_argument("--threshold", type=values.threshold, help=text)
    text = "images of equal size per forward pass (default: 4)"
    sub.add_argument("--batch-size", type=values.count, default=4, metavar="N", help=text)
    sub.add_argument("--heads", type=values.names, metavar="A,B", help="only these heads")
    _add_views(sub)
    _add_offline(sub)


def _add_views(sub: argparse.ArgumentParser) -> None:
    text = "predict also from the mirrored image, and from other scales of its size; then merge"
    sub.add_argument("--tta", metavar="flip,0.83,1.2", help=text)
    text = "predict also from tiles of N pixels of the image, at least 64; then merge"
    sub.add_argument("--tiles", type=values.count, metavar="N", help=text)
    text = "share of a tile's side that the next one has, too (default: 0.2)"
    sub.add_argument("--overlap", type=float, metavar="SHARE", help=text)


def _add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_directory", metavar="RUN", help=RUN)
    _add_overrides(sub)
    text = "onnx (default); torch-export: a .pt2 file; bundle: a folder for a hub"
    formats = ["onnx", "torch-export", "bundle"]
    sub.add_argument("--format", choices=formats, default="onnx", help=text)
    text = "the file (default: RUN/model.onnx)"
    sub.add_argument("--out", metavar="PATH", help=text)
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")
    sub.add_argument("--heads", type=values.names, metavar="A,B", help="only these heads")
    text = "height and width of all images, multiples of 32"
    sub.add_argument("--size", type=values.size, metavar="H,W", help=text)
    text = "any height and width (the default, unless the model takes one size only)"
    sub.add_argument("--dynamic", action="store_true", help=text)
    text = "images at once: a number, or dynamic (default)"
    sub.add_argument("--batch", type=values.batch, metavar="N|dynamic", help=text)
    text = "outputs: predictions (full, the default), or what the layers return (raw)"
    sub.add_argument("--decode", choices=["full", "raw"], default="full", help=text)
    text = "of the weights (default: fp32); int8 is calibrated on training images"
    sub.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32", help=text)
    text = "validation images with which the file is checked (default: 32)"
    sub.add_argument("--check", type=values.count, default=32, metavar="N", help=text)
    text = "largest drop of a main metric, for fp16 and int8 (default: 0.02)"
    sub.add_argument("--max-drop", type=values.fraction, default=0.02, metavar="D", help=text)
    _add_json(sub)
    _add_offline(sub)


def _add_search(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "run_directory", metavar="RUN", help="a run or an exported model with an embedding head"
    )
    sub.add_argument("query", metavar="QUERY", help="an image or a folder of images")
    sub.add_argument("gallery", metavar="GALLERY", help="a folder of images")
    _add_overrides(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    sub.add_argument(
        "--top", type=values.count, default=5, help="matches per query image (default: 5)"
    )
    sub.add_argument("--head", help="the embedding head, if the model has multiple")
    _add_offline(sub)


def _add_bench(sub: argparse.ArgumentParser) -> None:
    text = (
        f"{CONFIG}, to profile training; a run, a checkpoint or an ONNX file, to time predictions"
    )
    sub.add_argument("config", metavar="CONFIG_OR_RUN", help=text)
    _add_overrides(sub)
    text = "training steps, or batches of each size (default: 20)"
    sub.add_argument("--steps", type=values.count, default=20, help=text)
    _add_json(sub)
    _add_offline(sub)


def _add_check(sub: argparse.ArgumentParser) -> None:
    text = f"{CONFIG}, or a JSON file of COCO annotations"
    sub.add_argument("target", metavar="CONFIG_OR_JSON", help=text)
    _add_overrides(sub)
    sub.add_argument("--images", metavar="DIR", help="the images of the annotation file")
    sub.add_argument("--strict", action="store_true", help="exit code 3 also for warnings")
    sub.add_argument("--json", metavar="FILE", help="write all findings to a new file")
    _add_offline(sub)


def _add_list(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("section", nargs="?", choices=SECTIONS)


def _add_init(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", metavar="NAME", help="a shipped config: `visionkit list configs`")
    text = "a new file (default: NAME.yaml)"
    sub.add_argument("file", nargs="?", metavar="FILE", help=text)


def _add_weights(sub: argparse.ArgumentParser, debug: argparse.ArgumentParser) -> None:
    kinds = sub.add_subparsers(metavar="KIND", required=True)

    def add(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        one = kinds.add_parser(name, parents=[debug], help=text, description=text)
        one.set_defaults(run=run)
        return one

    listing = add("list", commands.weights_list, "list the published weights that load")
    listing.add_argument("pattern", nargs="?", help="only names with this text or pattern (res*)")
    listing.add_argument("--timm", action="store_true", help="those of timm's models instead")
    _add_json(listing)
    fetching = add("fetch", commands.weights_fetch, "download published weights")
    fetching.add_argument(
        "names", nargs="+", metavar="NAME", help="of the list, or hf://owner/name"
    )
    _add_offline(fetching)
    checking = add("verify", commands.weights_verify, "say what a file of weights is")
    checking.add_argument("file", metavar="FILE")
    _add_json(checking)
    text = (
        "write the weights of a run as a .safetensors file, with its config and classes; for a "
        "model as ONNX: visionkit export"
    )
    exporting = add("export", commands.weights_export, text)
    exporting.add_argument("run_directory", metavar="RUN", help="a run or a checkpoint")
    exporting.add_argument("file", metavar="FILE.safetensors")
    _add_json(add("where", commands.weights_where, "show the folders that are searched"))


def _add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", help=CONFIG)
    _add_overrides(sub)


def _add_overrides(sub: argparse.ArgumentParser) -> None:
    text = "config overrides (key=value)"
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    _add_allow_plugins(sub)


def _add_allow_plugins(sub: argparse.ArgumentParser) -> None:
    text = "import custom classes that a checkpoint or a resumed run names: this runs their code"
    sub.add_argument("--allow-plugins", action="store_true", help=text)


def _add_offline(sub: argparse.ArgumentParser) -> None:
    text = "download no weights (also VISIONKIT_OFFLINE=1)"
    sub.add_argument("--offline", action="store_true", help=text)


def _add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print one JSON object")


COMMANDS: tuple[tuple[str, Run, AddArguments, str], ...] = (
    ("train", commands.train, _add_train, "train the model of a config"),
    ("eval", commands.evaluate, _add_eval, "evaluate a run, or score a COCO result file"),
    ("report", commands.report, _add_report, "write a page on runs or result files"),
    ("predict", commands.predict, _add_predict, "run a trained model on images"),
    (
        "export",
        commands.export,
        _add_export,
        "write a model as ONNX, checked; its weights alone: visionkit weights export",
    ),
    (
        "search",
        commands.search,
        _add_search,
        "retrieve the nearest gallery images for each query image",
    ),
    ("bench", commands.bench, _add_bench, "profile training, or predictions of a run"),
    (
        "check",
        commands.check,
        _add_check,
        "validate a config with its data and weights, or a COCO file",
    ),
    ("config", commands.config, _add_config, "validate a config and print it complete"),
    ("init", commands.init, _add_init, "write a copy of a shipped config, with comments, to edit"),
    (
        "list",
        commands.list_components,
        _add_list,
        "list the shipped configs and the components that a config can name",
    ),
)
