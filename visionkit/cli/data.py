"""The commands below `visionkit data`: their arguments, and what each does. Heavy imports stay in
the functions, so that `--help` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionkit.cli import values
from visionkit.errors import ArgumentError, plural, printable

if TYPE_CHECKING:
    from visionkit.data.formats.convert import Converted

FORMATS = ("yolo", "voc", "labelme", "cvat", "masks", "folders", "csv", "coco")
WRITTEN = ("coco", "yolo", "voc", "labelme", "cvat", "masks", "csv")
FILE = "a COCO file, or data in another format"
BY = "keep class shares (class, the default), groups (group:KEY of the image records) or folders"


def add_commands(sub: argparse.ArgumentParser, debug: argparse.ArgumentParser) -> None:
    """The subcommands of `visionkit data`."""
    kinds = sub.add_subparsers(metavar="KIND", required=True)
    for name, run, add_arguments, text in COMMANDS:
        one = kinds.add_parser(name, parents=[debug], help=text, description=text)
        one.set_defaults(run=run)
        add_arguments(one)


def _add_convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="SRC", help="a folder or file of annotations")
    sub.add_argument("out", metavar="OUT", help="a new COCO file (.json); with --to a new folder")
    formats = ["auto", *FORMATS]
    text = "format of SRC (default: auto, recognized)"
    sub.add_argument("--from", dest="format", choices=formats, default="auto", help=text)
    sub.add_argument("--to", choices=WRITTEN, default="coco", help="format of OUT (default: coco)")
    sub.add_argument("--images", metavar="DIR", help="the images, if they are elsewhere")
    text = "names of classes where SRC has numbers or colors: a .txt, .yaml, .json or .csv, or "
    text += "cityscapes, cityscapes-train, ade20k, voc"
    sub.add_argument("--classes", metavar="FILE", help=text)
    sub.add_argument("--split", metavar="NAME", help="only this part of SRC, such as val")
    text = "objects of several polygons, where OUT has one: joined, the largest, or an error"
    choices = ["bridge", "largest", "error"]
    sub.add_argument("--parts", choices=choices, default="bridge", help=text)
    text = "drop and count malformed records instead of failing"
    sub.add_argument("--skip-bad", action="store_true", help=text)
    sub.add_argument("--json", metavar="FILE", help="write a report to a new file")


def convert(args: argparse.Namespace) -> None:
    from visionkit.data.formats.color_tables import read_classes
    from visionkit.data.formats.convert import convert

    report = _new_path(args.json)
    done: Converted = convert(
        args.source,
        args.out,
        to=args.to,
        format=args.format,
        images=args.images,
        classes=None if args.classes is None else read_classes(args.classes),
        split=args.split,
        parts=args.parts,
        skip_bad=args.skip_bad,
    )
    _write(report, done._asdict())
    _tell(done.lines())


def _add_stats(sub: argparse.ArgumentParser) -> None:
    text = f"a config; or {FILE}, also several, each a split"
    sub.add_argument("targets", nargs="+", metavar="FILE_OR_CONFIG", help=text)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    text = "the images of the files (default: found near each)"
    sub.add_argument("--images", metavar="DIR", help=text)
    text = "do not open images: find no damaged ones and no near duplicates"
    sub.add_argument("--no-images", action="store_true", help=text)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--html", metavar="FILE", help="write a page to a new file")
    text = "import custom classes that a checkpoint or a resumed run names: this runs their code"
    sub.add_argument("--allow-plugins", action="store_true", help=text)


def stats(args: argparse.Namespace) -> None:
    from visionkit.data.tools.stats import data_stats
    from visionkit.runs.files import to_json

    page = _new_path(args.html, "--html")
    targets, overrides = _split_overrides([*args.targets, *args.overrides])
    record, parts = data_stats(
        targets,
        overrides,
        images=args.images,
        read_images=not args.no_images,
        allow_plugins=args.allow_plugins,
    )
    if page is not None:
        from visionkit.engine.data_page import write_page

        write_page(page, record, parts)
    if args.json:
        print(to_json(record))
        return
    from visionkit.cli.stats_text import stats_text

    _tell([*stats_text(record).split("\n"), *([f"wrote {args.html}"] if page else [])])


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    from visionkit.cli.commands import split_overrides

    return split_overrides(words)


def _add_split(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="FILE", help=FILE)
    text = "names and shares, for example train=0.8,val=0.1,test=0.1"
    sub.add_argument("--parts", type=values.shares, required=True, help=text)
    _add_division(sub)


def split(args: argparse.Namespace) -> None:
    from visionkit.data.tools.split import split_data

    options = {"by": args.by, "seed": args.seed, "images": args.images}
    _tell(split_data(args.source, args.parts, args.out, **options).lines())


def _add_kfold(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="FILE", help=FILE)
    sub.add_argument("--k", type=values.count, default=5, help="number of folds (default: 5)")
    _add_division(sub)


def kfold(args: argparse.Namespace) -> None:
    from visionkit.data.tools.split import kfold_data

    options = {"by": args.by, "seed": args.seed, "images": args.images}
    _tell(kfold_data(args.source, args.k, args.out, **options).lines())


def _add_division(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--by", default="class", metavar="class|group:KEY|folder", help=BY)
    sub.add_argument("--seed", type=values.natural, default=0, help="random seed (default: 0)")
    text = "the images; near duplicates then stay together"
    sub.add_argument("--images", metavar="DIR", help=text)
    sub.add_argument("--out", metavar="DIR", required=True, help="a new folder")


def _add_merge(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("sources", nargs="+", metavar="FILE", help=f"two or more times {FILE}")
    sub.add_argument("--out", metavar="FILE", required=True, help="a new COCO file")
    text = "a YAML file that renames classes, {old: new}, or by file {A.json: {old: new}}"
    sub.add_argument("--map", metavar="FILE", help=text)
    text = "note which classes each file labels: others are not negative in its images"
    sub.add_argument("--labeled", action="store_true", help=text)
    text = "the images, one folder for all files or one for each (default: found near each)"
    sub.add_argument("--images", nargs="+", default=(), metavar="DIR", help=text)


def merge(args: argparse.Namespace) -> None:
    from visionkit.data.tools.merge import merge_data

    options = {"rename": args.map, "labeled": args.labeled, "images": args.images}
    _tell(merge_data(args.sources, args.out, **options).lines())


def _add_sample(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="FILE", help=FILE)
    sub.add_argument("--n", type=values.count, required=True, help="number of images")
    text = "class: keep class shares; balanced: each class in as many images (default: at random)"
    sub.add_argument("--by", choices=["class", "balanced"], help=text)
    sub.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    sub.add_argument("--out", metavar="FILE", help="a new COCO file (default: NAME-N.json)")


def sample(args: argparse.Namespace) -> None:
    from visionkit.data.tools.sample import sample_data

    done = sample_data(args.source, args.n, args.out, by=args.by, seed=args.seed)
    _tell(done.lines())


def _add_show(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("target", metavar="CONFIG_OR_FILE", help=f"a config; or {FILE}")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    sub.add_argument("--images", metavar="DIR", help="the images of the file")
    text = "images of each source (default: 16)"
    sub.add_argument("--n", type=values.count, default=16, help=text)
    text = "as training sees them: the first batches of its seed, augmented"
    sub.add_argument("--augmented", action="store_true", help=text)
    sub.add_argument("--class", dest="class_name", metavar="X", help="only images with this class")
    sub.add_argument("--out", metavar="FILE", required=True, help="a new .jpg or .png")
    text = "import custom classes that a checkpoint or a resumed run names: this runs their code"
    sub.add_argument("--allow-plugins", action="store_true", help=text)


def show(args: argparse.Namespace) -> None:
    from visionkit.engine.show import show_data

    sheet = show_data(
        args.target,
        args.out,
        args.overrides,
        n=args.n,
        augmented=args.augmented,
        class_name=args.class_name,
        images=args.images,
        allow_plugins=args.allow_plugins,
    )
    _tell(sheet.lines())


def _add_shapes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("out", metavar="OUT", help="a new folder")
    sub.add_argument("--images", type=values.count, default=600, help="how many (default: 600)")
    text = "width and height in pixels (default: 160)"
    sub.add_argument("--size", type=int, default=160, help=text)
    sub.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def shapes(args: argparse.Namespace) -> None:
    from visionkit.data.datasets.shapes import generate_shapes

    generate_shapes(args.out, images=args.images, size=args.size, seed=args.seed)
    _tell([f"wrote {plural(args.images, 'image')} and annotations.json to {args.out}"])


def _new_path(file: str | None, option: str = "--json") -> Path | None:
    """The path of a new file; ArgumentError if it cannot be made, before any work is done."""
    if file is None:
        return None
    path = Path(file)
    if path.exists() or path.is_symlink():
        raise ArgumentError(f"{option}: {printable(file)} already exists; name a new file")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"{option}: the folder of {printable(file)} does not exist")
    return path


def _write(path: Path | None, record: dict[str, Any]) -> None:
    from visionkit.runs.files import to_json, write_text

    if path is not None:
        write_text(path, to_json(record) + "\n")


def _tell(lines: list[str]) -> None:
    from visionkit.cli.commands import print_lines

    print_lines(lines)


Run = Callable[[argparse.Namespace], int | None]
AddArguments = Callable[[argparse.ArgumentParser], None]
COMMANDS: tuple[tuple[str, Run, AddArguments, str], ...] = (
    ("convert", convert, _add_convert, "convert annotations to COCO, or from COCO"),
    ("stats", stats, _add_stats, "show classes, sizes, duplicates and what they suggest"),
    ("split", split, _add_split, "divide data into parts with equal class shares"),
    ("kfold", kfold, _add_kfold, "divide data into folds for cross-validation"),
    ("merge", merge, _add_merge, "merge COCO files"),
    ("sample", sample, _add_sample, "take some images of a dataset"),
    ("show", show, _add_show, "draw images with their labels on one sheet"),
    ("shapes", shapes, _add_shapes, "generate images of shapes with COCO annotations"),
)
