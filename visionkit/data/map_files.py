"""Files of semantic maps: which image each belongs to, and colors as numbers."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from visionkit.data.checks.findings import Problems
from visionkit.data.files import diagnose, require_folder, visible_files
from visionkit.data.image_io import SUFFIXES
from visionkit.errors import DataError, other_case, other_form, plural, printable
from visionkit.runs.files import open_regular

log = logging.getLogger("visionkit")

UNLABELED = "ignore"  # the name in a palette that is not a class


def checked_palette(palette: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """The colors as one number each. DataError if two classes have the same."""
    colors = np.array([color_codes(np.array(color)) for color in palette.values()], np.int64)
    if len(np.unique(colors)) < len(colors):
        raise DataError(f"palette: two names have the same color: {palette}")
    return colors


def color_codes(rgb: np.ndarray) -> np.ndarray:
    """Red, green and blue (3, ...) as one number (...)."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def map_pairs(
    images: Path,
    labels: Path,
    patterns: tuple[str | None, str],
    split: str | None,
    problems: Problems,
) -> tuple[list[str], list[str]]:
    """The names of images and of their maps, relative to the two folders, sorted. Those without the
    other are added to `problems`; see `LabelMaps` for the patterns and the split."""
    image_names, _ = _files(images, patterns[0], problems)
    maps, others = _files(labels, patterns[1], problems)
    ending = _shared_ending(image_names)
    if patterns[0] is None and ending and not image_names.keys() & maps.keys():
        image_names = {stem.removesuffix(ending): name for stem, name in image_names.items()}
        log.info("images %s: names without %s are those of the maps", images, printable(ending))
    wanted = image_names.keys() | maps.keys() if split is None else set(text_lines(Path(split)))
    folded = [{stem.casefold(): stem for stem in one} for one in (image_names, maps)]
    for stem in (chosen := sorted(wanted)):
        folder, base = os.path.split(stem)
        map_name = os.path.join(folder, patterns[1].replace("{stem}", base))
        lacks_image = f"its image is not in {images}"
        lacks_map = f"its map {printable(map_name)} is not in {labels}"
        if other := others.get(os.path.splitext(map_name)[0]):
            pattern = os.path.splitext(patterns[1])[0] + os.path.splitext(other)[1]
            lacks_map += f", but {printable(other)} is: set `labels_pattern: {pattern!r}`"
        for here, there, what, cases in (
            (image_names, maps, lacks_image, folded[0]),
            (maps, image_names, lacks_map, folded[1]),
        ):
            if stem not in here:
                where = printable(there.get(stem, stem))
                twin = other_form(stem, here) or other_case(stem, cases)
                problems.add(where, what + twin, kind="missing-file", value=stem)
    both = [stem for stem in chosen if stem in image_names and stem in maps]
    return [image_names[stem] for stem in both], [maps[stem] for stem in both]


def _shared_ending(stems: Collection[str]) -> str:
    """The last part of all names, from an underscore on; "" if they differ."""
    endings = {stem[stem.rfind("_") :] if "_" in stem else "" for stem in stems}
    return endings.pop() if len(endings) == 1 else ""


def text_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list of names {path} {diagnose(path)} [{error}]") from error
    return [line.strip() for line in lines if line.strip()]


def _files(
    root: Path, pattern: str | None, problems: Problems
) -> tuple[dict[str, str], dict[str, str]]:
    """The visible files below `root` that match, by relative name with the stem alone, and other
    images, by relative name without suffix. Without a pattern, all images match."""
    require_folder(root)
    before, _, after = (pattern or "").partition("{stem}")
    if pattern is not None and (not after.lower().endswith(SUFFIXES) or "/" in pattern):
        text = f"got {pattern!r}; expected a file name with {{stem}} and the suffix of an image"
        raise DataError(f"{'labels' if problems.file == str(root) else 'images'}_pattern: {text}")
    found: dict[str, str] = {}
    others: dict[str, str] = {}
    skipped = 0
    for folder, name in sorted(visible_files(root)):
        stem, suffix = os.path.splitext(name)
        if pattern is not None:
            stem, suffix = name[len(before) : -len(after)], name[-len(after) :]
        matches = suffix.lower() == after.lower() if pattern else suffix.lower() in SUFFIXES
        relative = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        relative = relative.removeprefix("./")
        if not matches or not stem or not name.startswith(before):
            skipped += 1
            if name.lower().endswith(SUFFIXES):
                others[os.path.splitext(relative + name)[0]] = relative + name
            continue
        if (key := relative + stem) in found:
            what = f"{printable(found[key])} has the same name except for its suffix"
            problems.add(printable(relative + name), what, kind="repeated", value=key)
        found[key] = relative + name
    if skipped:
        log.info("%s: %s of other names skipped", root, plural(skipped, "file"))
    return found, others
