"""The command line: `visionkit VERB ...`. Results go to standard output, the log to standard error.

What a verb does is in `commands`.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from visionkit.cli import commands
from visionkit.cli.commands import OVERRIDE
from visionkit.distributed import launch
from visionkit.errors import Preempted, VisionkitError, printable
from visionkit.runs import signals

# --- How a command ends that cannot do its work: one message without a traceback, and an exit
# code.

if TYPE_CHECKING:
    from visionkit.data.checks.findings import Finding

UNEXPECTED = 1
SHOWN = 20  # faults that a DataError tells, see `visionkit.data.checks.findings.Problems`


def report(error: Exception, *, debug: bool = False) -> int:
    """Write what went wrong to standard error, with `debug` after the traceback; gives the code."""
    if debug:
        traceback.print_exception(error)
    text = printable(error, lines=True)
    if isinstance(error, (VisionkitError, OSError)):
        label = "" if isinstance(error, Preempted) else "error: "
        print(f"{label}{text}", file=sys.stderr)
        _tell_all(getattr(error, "findings", ()))
        return error.exit_code if isinstance(error, VisionkitError) else UNEXPECTED
    if isinstance(error, ModuleNotFoundError):
        print(f"error: {text}; install it for {sys.executable}", file=sys.stderr)
        return UNEXPECTED
    print(
        f"unexpected error: {type(error).__name__}: {text} ({_place(error)}); run again with "
        "--debug for the traceback, and unless it comes from code of your own, please report it",
        file=sys.stderr,
    )
    return UNEXPECTED


def _tell_all(findings: Sequence[Finding]) -> None:
    """Say where all faults of the data are, if they are more than an error tells."""
    if len(findings) > SHOWN:
        from visionkit.data.checks.findings import keep_all

        print(keep_all(findings), file=sys.stderr)


def _place(error: Exception) -> str:
    """File and line of the innermost code that is visionkit's or the user's own."""
    here, python = os.path.dirname(__file__), os.path.dirname(os.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (python, f"{os.sep}site-packages{os.sep}")
    known = [
        frame
        for frame in frames
        if frame.filename.startswith(here) or not any(lib in frame.filename for lib in libraries)
    ]
    frame = (known or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


USAGE, INTERRUPTED = 2, 130  # exit codes without an error of visionkit.errors


def command() -> NoReturn:
    """The `visionkit` command, as a process of its own."""
    launch.watch_parent()
    code = main()
    signals.ignore()
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, or that of the error (see visionkit.errors)."""
    parser, verbs = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return USAGE
    _refuse_unknown_verb(parser, verbs, words[0])
    args = _parsed(parser, words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Of several processes the first tells what all find; torchrun shows what each ended with.
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("visionkit").setLevel(logging.INFO if first else logging.ERROR)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _discard_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError):
            _discard_output()
        silent = _shown_by_torchrun(error) and not (first or args.debug)
        if silent and isinstance(error, VisionkitError):
            return error.exit_code
        return report(error, debug=args.debug)
    finally:
        _leave_process_group()


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Settings, key=value, may stand anywhere; they become `overrides`."""
    args, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if not OVERRIDE.match(word)]
    if unknown and not unknown[0].startswith("-") and getattr(args, "run_directory", "") is None:
        args.run_directory = unknown.pop(0)  # it stood behind an option
        rest.remove(args.run_directory)
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}; settings are given as key=value")
    args.overrides = [*getattr(args, "overrides", ()), *(word.lstrip("-") for word in rest)]
    return args


def _refuse_unknown_verb(parser: argparse.ArgumentParser, verbs: Iterable[str], word: str) -> None:
    if word.startswith("-") or word in verbs:
        return
    close = difflib.get_close_matches(word.lower(), verbs, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    parser.error(f"there is no verb {word!r}{guess} verbs: {', '.join(verbs)}")


def _shown_by_torchrun(error: Exception) -> bool:
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    launch.show_torchrun(error)
    return True


def _discard_output() -> None:
    """What cannot be written must not be tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser and the names of the verbs."""
    parser = argparse.ArgumentParser(
        prog="visionkit",
        description="Train, evaluate and use vision models described by one YAML file.",
    )
    parser.add_argument("-V", "--version", action="version", version=_version())
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: object, text: str, aliases: tuple[str, ...] = ()):
        sub = verbs.add_parser(
            name, help=text, description=text, parents=[debug], aliases=list(aliases)
        )
        sub.set_defaults(run=run)
        return sub

    sub = verb("train", commands.train, "train the model that a config describes")
    sub.add_argument("config", nargs="?", help="a YAML file; not needed with --resume RUN")
    _add_overrides(sub)
    sub.add_argument("--resume", nargs="?", const=True, metavar="RUN", help="continue a run")
    sub.add_argument("--overwrite", action="store_true", help="replace the run in output=")

    text = "metrics of a trained run on validation data, or of a COCO result file"
    sub = verb("eval", commands.evaluate, text, aliases=("val",))
    sub.add_argument("run_directory", nargs="?", metavar="RUN", help="a run or a checkpoint")
    _add_overrides(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
    sub.add_argument("--heads", type=_words, metavar="A,B", help="only these heads")
    sub.add_argument("--gt", metavar="FILE", help="COCO annotations; with --pred, instead of RUN")
    sub.add_argument("--pred", metavar="FILE", help="COCO results to score, without a model")
    sub.add_argument("--type", choices=["bbox", "segm"], help="score boxes (default) or masks")
    engines = ["hotcoco", "pycocotools"]
    sub.add_argument("--engine", choices=engines, help="what computes them; same figures")

    sub = verb("predict", commands.predict, "run a trained model on images")
    sub.add_argument("run_directory", metavar="RUN", help="a run directory or a checkpoint")
    sub.add_argument("inputs", nargs="+", metavar="IMAGE_OR_DIR", help="or key=value settings")
    _add_allow_plugins(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="where to write the results")
    text = "lowest score to draw (0.5, or what suits the head)"
    sub.add_argument("--threshold", type=_share, help=text)
    text = "images of one size that go through the model at once (4)"
    sub.add_argument("--batch-size", type=_count, default=4, metavar="N", help=text)
    sub.add_argument("--heads", type=_words, metavar="A,B", help="only these heads")

    sub = verb("search", commands.search, "the images of a gallery that are nearest to some others")
    sub.add_argument("run_directory", metavar="RUN", help="a run with an embedding head")
    sub.add_argument("query", metavar="QUERY", help="an image or a folder of images")
    sub.add_argument("gallery", metavar="GALLERY", help="a folder of images")
    _add_overrides(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="where to write the results")
    sub.add_argument("--top", type=_count, default=5, help="how many to find for each (5)")
    sub.add_argument("--head", help="which embedding, if the model has several")

    sub = verb(
        "bench", commands.bench, "where the time and memory of a config go; nothing is written"
    )
    sub.add_argument("config", help="a YAML file")
    _add_overrides(sub)
    sub.add_argument("--steps", type=_count, default=20, help="training steps to time (20)")
    sub.add_argument("--json", action="store_true", help="one JSON object on standard output")

    text = "look for every fault of a config, its data and weights, or of a COCO annotation file"
    sub = verb("check", commands.check, text)
    sub.add_argument("target", metavar="CONFIG_OR_JSON", help="a YAML file, or annotations.json")
    _add_overrides(sub)
    sub.add_argument("--images", metavar="DIR", help="the images of the annotation file")
    sub.add_argument("--strict", action="store_true", help="exit code 3 on warnings, too")
    sub.add_argument("--json", metavar="FILE", help="write all findings to a new file")

    text = "check a config, not its data (that does `check`), and print it complete"
    sub = verb("config", commands.config, text)
    sub.add_argument("config", help="a YAML file")
    _add_overrides(sub)

    sub = verb("list", commands.list_components, "the components that a config can name")
    sections = ["heads", "backbones", "necks", "datasets", "transforms"]
    sub.add_argument("section", nargs="?", choices=sections)

    sub = verb("data", None, "generate data")
    kinds = sub.add_subparsers(metavar="KIND", required=True)
    sub = kinds.add_parser("shapes", parents=[debug], help="images of shapes, in COCO format")
    sub.set_defaults(run=commands.data_shapes)
    sub.add_argument("out", metavar="OUT", help="a new folder")
    sub.add_argument("--images", type=_count, default=600)
    sub.add_argument("--size", type=int, default=160, help="side in pixels")
    sub.add_argument("--seed", type=int, default=0)
    return parser, [*verbs.choices]


def _add_overrides(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win")
    _add_allow_plugins(sub)


def _add_allow_plugins(sub: argparse.ArgumentParser) -> None:
    text = "import classes outside visionkit that a checkpoint or a resumed run names: runs code"
    sub.add_argument("--allow-plugins", action="store_true", help=text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"got {text}; expected a number from 0 to 1")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected an integer >= 1")
    return int(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"visionkit {version('visionkit')}"
    except PackageNotFoundError:
        return "visionkit (not installed)"


def _leave_process_group() -> None:
    if "visionkit.distributed.collectives" in sys.modules:
        sys.modules["visionkit.distributed.collectives"].teardown()
