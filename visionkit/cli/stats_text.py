"""The result of `visionkit data stats` as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from visionkit.errors import plural, printable, shorten

WIDTH = 98
CLASSES = 20  # shown of a part
NAME = 24  # characters of a class name
INDENTED: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}
Record = Mapping[str, Any]


def stats_text(record: Record) -> str:
    """The parts one after another, then the suggestions."""
    lines: list[str] = []
    for name, part in record["data"].items():
        lines += [*_part(printable(name), part), ""]
    by_part: dict[str, list[str]] = {}
    for one in record["suggestions"]:
        by_part.setdefault(one["where"], []).append(one["text"])
    for name, texts in by_part.items():
        lines.append(f"suggestions for {printable(name)}:")
        for text in texts:
            lines += textwrap.wrap(
                printable(text),
                WIDTH,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines if by_part else [*lines, "no suggestions"])


def _part(name: str, part: Record) -> Iterator[str]:
    counts = [plural(part["images"], "image")]
    if "objects" in part:
        classes = plural(len(part["classes"]), "class", "classes")
        counts.append(f"{plural(part['objects'], 'object')} of {classes}")
        counts.append(plural(part["crowds"], "crowd region"))
        counts.append(f"{plural(part['empty_images'], 'image')} without an object")
    yield f"{name}:"
    yield f"  {', '.join(counts)}"
    if not part["images_read"]:
        yield "  the images were not read: no damaged files and near duplicates are known"
    elif part["missing"] or part["damaged"]:
        yield f"  {part['missing']} missing and {part['damaged']} damaged image files:"
        yield from (f"    {shorten(printable(one), WIDTH - 4)}" for one in part["unreadable"])
    for what, count in part.get("dropped", {}).items():
        yield f"  not counted: {count} {what}"
    yield from _images(part)
    if part.get("objects"):
        yield from _objects(part)
    if part["image_classes"]:
        rows = [[shorten(printable(k), NAME), n] for k, n in part["image_classes"].items()]
        yield from _table(["class", "images"], sorted(rows, key=lambda row: -row[1]))
    if "semantic" in part:
        maps = part["semantic"]
        rows = [
            [
                shorten(printable(one["name"]), NAME),
                f"{one['share']:.2%}",
                one["pixels"],
                one["images"],
            ]
            for one in sorted(maps["classes"], key=lambda one: -one["pixels"])
        ]
        yield f"  {plural(maps['maps'], 'semantic map')}, {maps['ignored_pixels']} pixels ignored"
        yield from _table(["class", "share", "pixels", "images"], rows)


def _images(part: Record) -> Iterator[str]:
    sizes = part["image_sizes"]
    if sizes["known"]:
        common = [f"{o['width']}x{o['height']} ({o['images']})" for o in sizes["most_common"]]
        more = sizes["distinct"] - len(common)
        yield f"  image sizes: {', '.join(common)}{f', {more} more' if more > 0 else ''}"
        if sizes["distinct"] > 1:
            yield _deciles("longest side", sizes["longest_side"])
            yield _deciles("width / height", sizes["aspect_ratio"])
    if (near := part["near_duplicates"]) is not None:
        groups = plural(len(near["groups"]), "group")
        yield f"  near duplicates: {plural(near['images'], 'image')} in {groups}"


def _objects(part: Record) -> Iterator[str]:
    total, per_image = part["objects"], part["objects_per_image"]
    mean = f"objects per image (mean {per_image['mean']:.3g})"
    yield _deciles(mean, per_image["deciles"])
    yield _deciles("shorter side, px", part["side"])
    for size, at in part["at_image_size"].items():
        yield _deciles(f"at image_size {size}", at["side"])
    yield _deciles("width / height", part["aspect_ratio"])
    areas = [f"{name} {count / total:.1%}" for name, count in part["sizes"].items()]
    yield f"  areas: {', '.join(areas)}"
    yield f"  at the border of the image: {part['at_border'] / total:.1%}"
    for iou, count in part["overlapping"].items():
        same = part["overlapping_same_class"][iou] / total
        what = f"overlap another object with an IoU above {iou}"
        yield f"  {what}: {count / total:.1%}, of the same class {same:.1%}"
    pairs = [
        f"{printable(' and '.join(one['classes']))} ({one['pairs']})"
        for one in part["overlapping_classes"]
    ]
    if pairs:
        yield from textwrap.wrap(f"most often {', '.join(pairs)}", WIDTH - 4, **INDENTED)
    rows = [
        [
            shorten(printable(one["name"]), NAME),
            one["objects"],
            one["images"],
            *one["sizes"].values(),
            *(f"{one['side'][d]:.3g}" if one["side"] else "-" for d in (1, 5, 9)),
            f"{one['aspect_ratio'][5]:.2f}" if one["aspect_ratio"] else "-",
        ]
        for one in sorted(part["classes"], key=lambda one: -one["objects"])
    ]
    head = ["class", "objects", "images", "small", "medium", "large"]
    yield from _table([*head, "side 10%", "50%", "90%", "w/h 50%"], rows)


def _deciles(what: str, values: Sequence[float]) -> str:
    texts = [f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in values[::2]]
    picked = dict(zip(("least", "20%", "40%", "60%", "80%", "most"), texts, strict=True))
    return f"  {what}: {', '.join(f'{name} {text}' for name, text in picked.items())}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The head and the first rows, the first column at the left."""
    texts = [[str(cell) for cell in row] for row in (head, *rows[:CLASSES])]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield f"    {'  '.join(cells)}".rstrip()
    if len(rows) > CLASSES:
        yield f"    ... and {len(rows) - CLASSES} more (--json has all)"
