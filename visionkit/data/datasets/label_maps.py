"""Images with a class map each: class numbers or colors in a PNG of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import InputPath, Range
from visionkit.data.checks.findings import Finding, Problems, Progress, check_classes
from visionkit.data.files import diagnose, visible_files
from visionkit.data.image_io import SUFFIXES, read_image, read_label_map
from visionkit.data.sample import Sample
from visionkit.data.semantic_maps import check_maps
from visionkit.errors import DataError, printable
from visionkit.types import IGNORE, Classes

MAX_CLASSES = IGNORE  # what fits into 8 bits next to it
UNLABELED = "ignore"  # the name in a palette that is not a class

Byte = Annotated[int, Range(low=0, high=255)]


class LabelMaps:
    """Images in one folder and class maps, 8-bit PNG files of the same names, in another.

    A map is gray or has a palette, whose stored numbers count, not its colors; or it is colored
    and `palette` says what each color means. `images/a/1.jpg` belongs to `labels/a/1.png`.
    Raises `DataError` for images without a map and maps without an image, all at once; for a
    map of another size than its image, or with values or colors of no class, when it is read.

    classes: names in the order of the numbers; by default those of the palette, else the lines of
        the file `classes.txt` beside the folder of maps. Where such names are known, `classes`
        must be the same in any order, and the numbers are changed to that order.
    ignore: the number of pixels that have no label; null if every pixel has one.
    first: the number of the first class (ADE20K: `first: 1`, `ignore: 0`).
    palette: red, green and blue, 0..255, of each class by its name; of the name `ignore` for
        pixels that have no label. `ignore` and `first` do not apply then.
    split: text file with a name without suffix in each line (VOC: ImageSets/Segmentation/*.txt);
        only these are used.
    exif: "apply" turns images upright; maps are taken as they are.
    """

    keys = ("semantic",)
    class_key = "semantic"

    def __init__(
        self,
        images: InputPath,
        labels: InputPath,
        *,
        classes: list[str] | None = None,
        ignore: Byte | None = IGNORE,
        first: Byte = 0,
        palette: dict[str, tuple[Byte, Byte, Byte]] | None = None,
        split: InputPath | None = None,
        exif: Literal["apply", "ignore"] = "apply",
    ):
        self.images, self.labels, self.exif = Path(images), Path(labels), exif
        self._colors = None if palette is None else _checked_palette(palette)
        names = self._names(classes, palette)
        order = list(classes or names)
        self.classes = {"semantic": Classes(tuple(order), tuple(range(len(order))))}
        # The class, or IGNORE, of each number, or of each color by its place in the palette.
        self._class_of = np.full(256, -1, np.int16)
        if palette is not None:
            self._class_of[: len(palette)] = [
                IGNORE if name == UNLABELED else order.index(name) for name in palette
            ]
        else:
            stop = first + len(names)
            if stop > 256:
                raise DataError(f"labels {labels}: {len(names)} classes from {first} pass 255")
            self._class_of[first:stop] = [order.index(name) for name in names]
            if ignore is not None:
                self._class_of[ignore] = IGNORE

        self.file_names, self._maps = _pairs(self.images, self.labels, split)
        self.image_ids = list(range(len(self.file_names)))

    def _names(
        self, classes: list[str] | None, palette: dict[str, tuple[int, int, int]] | None
    ) -> list[str]:
        """The names in the order of the files' numbers, or of the palette."""
        listed = self.labels.parent / "classes.txt"
        if palette is not None:
            source, names = "palette", [name for name in palette if name != UNLABELED]
        elif listed.is_file():
            source, names = str(listed), _lines(listed)
        elif classes is not None:
            source, names = "classes", classes
        else:
            raise DataError(
                f"labels {self.labels}: the names of the classes are not known: give `classes`, "
                f"or write them into {listed}, one a line in the order of their numbers"
            )
        if not 1 <= len(names) <= MAX_CLASSES:
            raise DataError(
                f"{source}: names {len(names)} classes; an 8-bit map holds 1 to {MAX_CLASSES}"
            )
        check_classes(source, names, classes or names, missing_ok=False, unknown_ok=False)
        return names

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """Maps that cannot be used, and those without any label."""
        for found in check_maps(self.image_ids, self.semantic_truth, progress):
            yield found._replace(file=str(self.labels), value=self._maps[int(found.value)])

    def image_path(self, index: int) -> Path:
        return self.images / self.file_names[index]

    def map_path(self, index: int) -> Path:
        return self.labels / self._maps[index]

    @property
    def colored_maps(self) -> bool:
        """Whether classes are told by their color, so that maps may be images of any mode."""
        return self._colors is not None

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        image = read_image(self.image_path(index), exif=self.exif)
        size = (image.shape[1], image.shape[2])
        semantic = self.semantic_truth(index)
        found = tuple(semantic.shape)
        if found != size:
            other = "ignore" if self.exif == "apply" else "apply"
            turned = f"; perhaps the data set needs `exif: {other}`" * (found == size[::-1])
            raise DataError(
                f"class map {printable(self.map_path(index))} is {found[1]}x{found[0]}, but its "
                f"image {printable(self.image_path(index))} is {size[1]}x{size[0]}: make them one "
                f"size{turned}"
            )
        return Sample(image, image_id=index, orig_size=size, semantic=semantic)

    def semantic_truth(self, image_id: int) -> Tensor:
        """The class map of an image as stored: (h, w) uint8, 255 = ignore."""
        path = self.map_path(image_id)
        numbers = read_label_map(path).numpy() if self._colors is None else self._places(path)
        classes = self._class_of[numbers]
        if (classes < 0).any():
            values = np.unique(numbers[classes < 0]).tolist()
            known = len(self.classes["semantic"].names)
            raise DataError(
                f"class map {printable(path)} has the value{'s' * (len(values) > 1)} "
                f"{', '.join(map(str, values[:10]))}{' ...' * (len(values) > 10)}, which "
                f"{'are' if len(values) > 1 else 'is'} none of the {known} classes: list all "
                "classes, or set `ignore`"
            )
        return torch.from_numpy(classes.astype(np.uint8))

    def _places(self, path: Path) -> np.ndarray:
        """The place in the palette of each pixel's color, (h, w)."""
        codes = _codes(read_image(path, exif="ignore").numpy().astype(np.int64))
        sorted_colors = np.sort(self._colors)
        nearest = np.searchsorted(sorted_colors, codes).clip(max=len(sorted_colors) - 1)
        unknown = sorted_colors[nearest] != codes
        if unknown.any():
            colors = np.unique(codes[unknown])
            listed = ", ".join(f"[{c >> 16}, {c >> 8 & 255}, {c & 255}]" for c in colors[:5])
            raise DataError(
                f"class map {printable(path)} has {unknown.sum()} pixels of {len(colors)} colors "
                f"that are not in the palette: {listed}{' ...' * (len(colors) > 5)}; add them, as "
                f"`{UNLABELED}` if they mean no class"
            )
        return np.argsort(self._colors)[nearest]


def _checked_palette(palette: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """The colors as one number each. DataError if two classes share one."""
    colors = np.array([_codes(np.array(color)) for color in palette.values()], np.int64)
    if len(np.unique(colors)) < len(colors):
        raise DataError(f"palette: two names have the same color: {palette}")
    return colors


def _codes(rgb: np.ndarray) -> np.ndarray:
    """Red, green and blue (3, ...) as one number (...)."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _pairs(images: Path, labels: Path, split: str | None) -> tuple[list[str], list[str]]:
    """Names of image_names and of their maps, relative to the two folders and sorted."""
    problems = Problems(f"image_names {images} and class maps {labels}", labels)
    image_names = _files(images, SUFFIXES, problems)
    maps = _files(labels, (".png",), problems)
    wanted = image_names.keys() | maps.keys() if split is None else set(_lines(Path(split)))
    for stem in sorted(wanted):
        if stem not in image_names:
            what = f"there is no image of that name in {images}"
            problems.add(printable(maps.get(stem, stem)), what, kind="missing-file", value=stem)
        if stem not in maps:
            what = f"there is no map {printable(stem)}.png in {labels}"
            problems.add(
                printable(image_names.get(stem, stem)), what, kind="missing-file", value=stem
            )
    problems.raise_any()
    if not wanted:
        raise DataError(f"image_names {images} and class maps {labels}: found none")
    chosen = sorted(wanted)
    return [image_names[stem] for stem in chosen], [maps[stem] for stem in chosen]


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list of names {path} {diagnose(path)} [{error}]") from error
    return [line.strip() for line in lines if line.strip()]


def _files(root: Path, suffixes: tuple[str, ...], problems: Problems) -> dict[str, str]:
    """Files below `root` by their relative name without suffix; hidden ones are passed over."""
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist or is no folder")
    found: dict[str, str] = {}
    for folder, name in sorted(visible_files(root)):
        stem, suffix = os.path.splitext(os.path.relpath(os.path.join(folder, name), root))
        stem = stem.replace(os.sep, "/")
        if suffix.lower() not in suffixes:
            continue
        if stem in found:
            what = f"{printable(found[stem])} has the same name but for its suffix"
            problems.add(printable(stem + suffix), what, kind="repeated", value=stem)
        found[stem] = stem + suffix
    return found
