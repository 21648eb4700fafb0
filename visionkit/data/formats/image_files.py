"""Find the images that other programs name, and copy them next to labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from visionkit.data.checks.findings import Problems
from visionkit.data.files import Links, resolve, unusable, visible_files
from visionkit.data.image_io import MAX_PIXELS, SUFFIXES, Exif, Refused, Size, turns
from visionkit.data.image_size import read_size
from visionkit.errors import printable


def inner_name(name: str) -> str:
    """A file name of any system as one with / below a folder: without drive, root and dots.
    ValueError if it leaves the folder or is empty."""
    parts = re.split(r"[\\/]+", re.sub(r"^[A-Za-z]:", "", name))
    parts = [part for part in parts if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"the file name {name!r} leaves its folder")
    if not parts or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    return "/".join(parts)


def base_name(name: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def check_pixels(size: Size) -> None:
    """ValueError if an image of `size` (h, w) is too large to be decoded."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[1]}x{size[0]} is more than the limit of {MAX_PIXELS} pixels")


class ImageFiles:
    """The images below a folder, by names that may differ in capitals and suffix."""

    def __init__(self, root: Path, links: Links = "inside", exif: Exif = "apply"):
        self.root, self.links, self.exif = root, links, exif
        found = visible_files(root) if root.is_dir() else ()
        names = (os.path.join(folder, name) for folder, name in found)
        inside = (os.path.relpath(name, root).replace(os.sep, "/") for name in names)
        self.names = sorted(name for name in inside if name.lower().endswith(SUFFIXES))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def _stems(self) -> dict[str, str]:
        """Names by their form without suffix and capitals; the first of those that are alike."""
        return {os.path.splitext(name)[0].casefold(): name for name in reversed(self.names)}

    @cached_property
    def _leading_out(self) -> dict[int, str]:
        return {i: what for i, _, what in unusable(self.root, self.names, self.links)}

    def find(self, *names: str) -> str | None:
        """The image with the first of these names that is there; if none is, with the first that is
        there in other capitals or with another suffix. ValueError if it is a link that leads out of
        the folder."""
        found = next((name for name in names if name in self._places), None)
        if found is None:
            stems = (os.path.splitext(name)[0].casefold() for name in names)
            found = next((self._stems[stem] for stem in stems if stem in self._stems), None)
        if found is not None and (what := self._leading_out.get(self._places[found])):
            raise ValueError(f"the image {found!r} cannot be used: {what}")
        return found

    def size(self, name: str, given: Size | None) -> Size:
        """(h, w) of an image: `given`, unless it is None. ValueError if that is neither the size as
        stored nor turned upright by the EXIF record, or if the image cannot be read."""
        path = self.root / name
        try:
            size = read_size(path, self.exif)
            if given in (None, size) or (given == size[::-1] and turns(path)):
                return given or size
        except Refused as refused:
            raise ValueError(f"the image {name!r} {refused.fault.clause}") from None
        stated, found = f"{given[1]}x{given[0]}", f"{size[1]}x{size[0]}"
        raise ValueError(f"the size is {stated}, but the image {name!r} has {found}")

    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]


class ImageCopies:
    """Copies images from one folder to another; what cannot be copied is added to `problems`.
    Copies nothing if there is no folder to copy from."""

    def __init__(self, source: Path | None, target: Path, problems: Problems):
        self.source, self.target, self.problems = source, target, problems
        self.home = "" if source is None else os.path.realpath(source)

    def add(self, name: str, new_name: str) -> None:
        """Copy the image `name`, as a COCO file has it, to `new_name`, as `inner_name` returns."""
        if self.source is None:
            return
        for _, found in resolve(self.source, [name]):
            name = found
        path, new = self.source / name, self.target / new_name
        real = os.path.realpath(path)
        if not name or not real.startswith(self.home.rstrip(os.sep) + os.sep):
            what = f"is not in {printable(self.source)}, or is a link that leads out of it"
            self.problems.add("", f"image {printable(name or new_name)} {what}", kind="path")
            return
        try:
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)
        except (FileNotFoundError, IsADirectoryError):
            what = f"image {printable(name)} is not in {printable(self.source)}"
            hint = "name the folder of the images with --images"
            self.problems.add("", what, hint, kind="missing-file")


def part_of(names: Sequence[str], part: str) -> str | None:
    """The name that means that part of a dataset: the same, in other capitals, or `valid` and
    `validation` for `val`."""
    words = ("val", "valid", "validation")
    alike = words if part.casefold() in words else (part.casefold(),)
    return part if part in names else next((n for n in names if n.casefold() in alike), None)
