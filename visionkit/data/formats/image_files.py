"""Find the images that other programs name, and copy them next to labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from visionkit.data.checks.findings import Problems
from visionkit.data.files import Links, resolve, unusable, visible_files
from visionkit.data.image_io import MAX_PIXELS, SUFFIXES, Refused, Size, open_image, orientation
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

    def __init__(self, root: Path, links: Links = "inside"):
        self.root, self.links = root, links
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
        """(h, w) of an image: `given` if the image has it as stored or turned upright, by default
        that of the upright image. ValueError if it is another one or the image cannot be read."""
        try:
            stored, upright = open_image(self.root / name, _sizes)
        except Refused as refused:
            raise ValueError(f"the image {name!r} {refused.fault.clause}") from None
        if given is None or given in (stored, upright):
            return given or upright
        stated, found = f"{given[1]}x{given[0]}", f"{upright[1]}x{upright[0]}"
        raise ValueError(f"the size is {stated}, but the image {name!r} has {found}")


def _sizes(image: Image.Image) -> tuple[Size, Size]:
    """(h, w) as stored and turned upright."""
    stored = image.height, image.width
    return stored, stored[::-1] if orientation(image) >= 5 else stored


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
