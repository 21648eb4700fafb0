"""Find the images among the paths that a command is given."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from visionkit.data.files import visible_files
from visionkit.data.image_io import PLUGINS, is_image_file
from visionkit.errors import ArgumentError, DataError, listed, plural, printable
from visionkit.runs.files import twin_clause

log = logging.getLogger("visionkit")

NO_NAME = "got an empty file name; expected an image or a folder"


def check_exist(inputs: Collection[str | Path]) -> None:
    """DataError that names all files and folders that do not exist."""
    given = inputs if isinstance(inputs, Collection) else [inputs]
    others = [type(one).__name__ for one in given if not isinstance(one, (str, Path))]
    if others:
        raise ArgumentError(f"got {others[0]}; expected files and folders, each a str or Path")
    if "" in inputs:
        raise ArgumentError(NO_NAME)
    missing = [one for one in inputs if not Path(one).exists()]
    if missing:
        named = ", ".join(f"{Path(one)}{twin_clause(Path(one))}" for one in missing)
        hint = ""
        if any("://" in str(one) for one in missing):
            hint = "; images are not downloaded: give files"
        elif any(sign in str(one) for one in missing for sign in "*?["):
            hint = "; patterns are not expanded: give files or a folder"
        raise DataError(f"no such file or directory: {named}{hint}")


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The images among files and folders, each with its name: relative to the folder, as in a COCO
    file. Images that would share a name get their whole path instead."""
    check_exist(inputs)
    found: list[tuple[Path, str]] = []
    others: list[Path] = []
    hidden: list[str] = []
    for path in map(Path, inputs):
        inside = sorted(Path(folder, name) for folder, name in visible_files(path, hidden))
        found += [(f, f.relative_to(path).as_posix()) for f in inside if is_image_file(f)]
        found += [] if path.is_dir() else [(path, path.name)]
        others += [file for file in inside if not is_image_file(file)]
    skipped = "; ".join(_passed_over(others, hidden))
    if not found:
        raise DataError(f"no images in {', '.join(map(str, inputs))}{skipped and f'; {skipped}'}")
    if skipped:
        log.warning("%s", skipped)
    files = {(file.resolve(), name) for file, name in found}  # an image given twice counts once
    times = Counter(name for _, name in files)
    return [(file, name if times[name] == 1 else file.as_posix()) for file, name in found]


def _passed_over(files: Sequence[Path], hidden: Sequence[str]) -> Iterator[str]:
    """Names the files of folders that are not images, for each reason, and what is hidden."""
    needed = {suffix: one.package for one in PLUGINS.values() for suffix in one.suffixes}
    suffixes = {file: file.suffix.lower() for file in files}
    special = [file for file in files if not file.is_file()]
    plugins = [f for f in files if suffixes[f] in needed and f not in special]
    packages = {needed[suffixes[file]]: None for file in plugins}
    rest = [file for file in files if file not in special and file not in plugins]
    for noun, several, names, hint in (
        (
            "file without the suffix of an image",
            "files without the suffix of an image",
            [file.name for file in rest],
            "",
        ),
        (
            "image of a format that is not read here",
            "images of formats that are not read here",
            [file.name for file in plugins],
            f"; convert them, or install {listed(packages)}",
        ),
        (
            "pipe, device or link to nothing",
            "pipes, devices or links to nothing",
            [file.name for file in special],
            "",
        ),
        ("hidden file or folder", "hidden files or folders", hidden, ""),
    ):
        if names:
            yield f"{plural(len(names), noun, several)} skipped: {printable(listed(names))}{hint}"
