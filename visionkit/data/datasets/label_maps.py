"""Images with semantic maps: class numbers or colors in a PNG of the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import InputPath, Range
from visionkit.data.checks.findings import Finding, Problems, Progress, check_classes, finding
from visionkit.data.image_io import Exif, ValueRange, read_image, read_label_map, turns
from visionkit.data.map_files import (
    UNLABELED,
    checked_palette,
    color_codes,
    map_pairs,
    text_lines,
)
from visionkit.data.sample import Sample
from visionkit.errors import (
    DataError,
    check_names,
    listed,
    plural,
    printable,
)
from visionkit.types import IGNORE, Classes

MAX_CLASSES = IGNORE  # what fits into 8 bits next to it

Byte = Annotated[int, Range(low=0, high=255)]


class LabelMaps:
    """Images in one folder, and their semantic maps, 8-bit PNG files of the same names, in another.

    A map is gray or has a palette; the stored numbers count, not the colors. With `palette` it is
    a color image. `images/a/1.jpg` belongs to `labels/a/1.png`; the patterns change this. Raises
    one DataError for all images without a map and maps without an image. A map of another size
    than its image, or with values or colors of no class, is a DataError when it is read.

    classes: names in the order of the numbers; by default those of the palette, else the lines of
        the file `classes.txt` next to the folder of maps. If such names are known, `classes` must
        have the same in any order, and the numbers are changed to that order.
    ignore: the number of pixels without a label; null if every pixel has one.
    first: the number of the first class (ADE20K: `first: 1`, `ignore: 0`).
    palette: class names with their red, green and blue, 0..255; the name `ignore` is for pixels
        without a label. `ignore` and `first` do not apply then.
    labels_pattern: names of maps; {stem} is that of the image (Cityscapes:
        `{stem}_gtFine_labelTrainIds.png`). Other files are skipped.
    images_pattern: names of images, for example `{stem}_leftImg8bit.png`; by default any name with
        the suffix of an image. An ending that all images share, such as `_leftImg8bit`, is removed
        if no map has a name with it.
    split: text file with a name without suffix in each line (VOC: ImageSets/Segmentation/*.txt);
        only these are used.
    exif: "apply" turns images upright; maps are used as they are stored.
    """

    keys = ("semantic",)
    # What to do about a map of another mode than gray or palette.
    mode_hint = (
        "if its colors stand for the classes, name them, for example `palette: {background: "
        "[0, 0, 0], object: [255, 255, 255]}`"
    )
    value_range: ValueRange | None = None  # set by the source

    def __init__(
        self,
        images: InputPath,
        labels: InputPath,
        *,
        classes: list[str] | None = None,
        ignore: Byte | None = IGNORE,
        first: Byte = 0,
        palette: dict[str, tuple[Byte, Byte, Byte]] | None = None,
        labels_pattern: str = "{stem}.png",
        images_pattern: str | None = None,
        split: InputPath | None = None,
        exif: Exif = "apply",
    ):
        check_names(classes=classes)
        self.images, self.labels, self.exif = Path(images), Path(labels), exif
        self.colored_maps = palette is not None  # whether colors count, so any mode is right
        self._colors = checked_palette(palette or {})  # (C,) as one number each
        names = self._names(classes, palette)
        order = list(classes or names)
        self.classes = {"semantic": Classes.numbered(order)}
        # The class, or IGNORE, of each number, or of each color by its place in the palette.
        self._class_of = np.full(256, -1, np.int16)
        if palette is not None:
            self._class_of[: len(palette)] = [
                IGNORE if name == UNLABELED else order.index(name) for name in palette
            ]
        else:
            stop = first + len(names)
            if stop > 256:
                raise DataError(f"labels {labels}: {len(names)} classes from {first} on exceed 255")
            self._class_of[first:stop] = [order.index(name) for name in names]
            if ignore is not None:
                self._class_of[ignore] = IGNORE

        self._first = 0 if self.colored_maps else first
        patterns = (images_pattern, labels_pattern)
        problems = Problems(f"images {images} and semantic maps {labels}", self.labels)
        self.file_names, self._maps = map_pairs(self.images, self.labels, patterns, split, problems)
        problems.raise_any()
        if not self.file_names:
            raise DataError(f"{problems.source}: found none")
        self.image_ids = list(range(len(self.file_names)))

    def _names(
        self, classes: list[str] | None, palette: dict[str, tuple[int, int, int]] | None
    ) -> list[str]:
        """The names in the order of the numbers in the files, or of the palette."""
        names_file = self.labels.parent / "classes.txt"
        if palette is not None:
            source, names = "palette", [name for name in palette if name != UNLABELED]
        elif names_file.is_file():
            source, names = str(names_file), text_lines(names_file)
        elif classes is not None:
            source, names = "classes", classes
        else:
            raise DataError(
                f"labels {self.labels}: unknown class names: give `classes`, or write the names "
                f"to {names_file}, one a line in the order of the numbers"
            )
        if not 1 <= len(names) <= MAX_CLASSES:
            raise DataError(
                f"{source}: expected 1 to {MAX_CLASSES} classes in an 8-bit map, got {len(names)}"
            )
        check_classes(source, names, classes or names, missing_ok=False, unknown_ok=False)
        return names

    def examine(self, progress: Progress) -> Iterator[Finding]:
        """Findings about maps that cannot be used, and maps without any label."""
        for found in check_maps(self.image_ids, self.semantic_truth, progress):
            yield found._replace(file=str(self.labels), value=self._maps[int(found.value or 0)])

    def image_path(self, index: int) -> Path:
        return self.images / self.file_names[index]

    def map_path(self, index: int) -> Path:
        return self.labels / self._maps[index]

    def map_classes(self, numbers: Iterable[int]) -> list[int]:
        """The classes of values in the maps, or of colors as one number each; 255 = ignore, -1 =
        of no class."""
        if self.colored_maps:
            place = {int(color): i for i, color in enumerate(self._colors)}
            numbers = (place.get(number, IGNORE) for number in numbers)
            return [int(self._class_of[p]) if p < len(place) else -1 for p in numbers]
        return self._class_of[[*numbers]].tolist()

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = self.image_path(index)
        image = read_image(path, exif=self.exif, value_range=self.value_range)
        size = (image.shape[1], image.shape[2])
        semantic = self.semantic_truth(index)
        found = tuple(semantic.shape)
        if found != size:
            hint = ""
            if found == size[::-1] and turns(path):
                ignore = self.exif == "apply"
                state = "as it is stored" if ignore else "turned upright"
                other = "ignore" if ignore else "apply"
                hint = f", or, if the map is of the image {state}, set `exif: {other}`"
            raise DataError(
                f"semantic map {printable(self.map_path(index))} is {found[1]}x{found[0]}, but its "
                f"image {printable(path)} is {size[1]}x{size[0]}: make them one size{hint}"
            )
        return Sample(image, image_id=index, orig_size=size, semantic=semantic)

    def semantic_truth(self, image_id: int) -> Tensor:
        """The semantic map of an image as stored: (h, w) uint8, 255 = ignore."""
        path = self.map_path(image_id)
        numbers = (
            self._places(path)
            if self.colored_maps
            else read_label_map(path, self.mode_hint).numpy()
        )
        classes = self._class_of[numbers]
        if (classes < 0).any():
            clause = self.map_fault(np.unique(numbers))
            raise DataError(f"semantic map {printable(path)} {clause}")
        return torch.from_numpy(classes.astype(np.uint8))

    def map_fault(self, values: np.ndarray) -> str | None:
        """Why a map with these values (V,) cannot be used: a clause that follows its name."""
        unknown = values[self._class_of[values] < 0].tolist()
        if not unknown:
            return None
        count = len(self.classes["semantic"].names)
        last = self._first + count - 1
        names = self.classes["semantic"].names
        levels = values.tolist() if len(values) == count else [0, max(unknown)]
        pairs = [f"{name}: {[level] * 3}" for name, level in zip(names[:3], levels, strict=False)]
        example = ", ".join(pairs if count == len(pairs) else [*pairs, "..."])
        hint = "list all classes, set `ignore`, or give the gray levels as `palette`, for example "
        hint += f"`palette: {{{example}}}`"
        if self._first == 0 and unknown == [count]:
            ignore = " and `ignore: 0`" if 0 in values else ""
            hint = f"if the numbers begin at 1, set `first: 1`{ignore}; else {hint}"
        return (
            f"cannot be used: no class has the value {listed(unknown)}; there are "
            f"{plural(count, 'class', 'classes')}, from {self._first} to {last}: {hint}"
        )

    def _places(self, path: Path) -> np.ndarray:
        """(h, w): the place of each pixel's color in the palette."""
        codes = color_codes(read_image(path, exif="ignore").numpy().astype(np.int64))
        order = np.argsort(self._colors)
        place = np.searchsorted(self._colors, codes, sorter=order).clip(max=len(order) - 1)
        places = order[place]
        unknown = self._colors[places] != codes
        if unknown.any():
            found = np.unique(codes[unknown]).tolist()
            colors = [str([c >> 16, c >> 8 & 255, c & 255]) for c in found]
            raise DataError(
                f"semantic map {printable(path)} has {plural(int(unknown.sum()), 'pixel')} with "
                f"colors that are not in the palette: {listed(colors, 5)}; add them, as "
                f"`{UNLABELED}` if they are of no class"
            )
        return places


def check_maps(
    ids: Iterable[int], read: Callable[[int], Tensor | None], progress: Progress
) -> Iterator[Finding]:
    """Findings about the semantic maps that `read` returns by image id: invalid or unlabeled."""
    for id_ in progress(ids, "semantic maps"):
        try:
            labels = read(id_)
        except DataError as error:
            yield finding("class-map", error, value=str(id_), hint="")
            continue
        if labels is not None and (labels == IGNORE).all():
            text = f"the semantic map of image {id_} has no labeled pixel"
            yield finding("unlabeled-map", text, value=str(id_))
