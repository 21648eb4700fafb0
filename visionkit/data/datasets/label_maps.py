"""Images with semantic maps: class numbers or colors in a PNG of the same name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import InputPath, Range
from visionkit.data.checks.findings import Finding, Problems, Progress, check_classes, finding
from visionkit.data.datasets.folder import require_folder
from visionkit.data.files import diagnose, visible_files
from visionkit.data.image_io import SUFFIXES, Exif, ValueRange, read_image, read_label_map, turns
from visionkit.data.sample import Sample
from visionkit.errors import (
    DataError,
    check_names,
    listed,
    other_case,
    other_form,
    plural,
    printable,
)
from visionkit.runs.files import open_regular
from visionkit.types import IGNORE, Classes

log = logging.getLogger("visionkit")

MAX_CLASSES = IGNORE  # what fits into 8 bits next to it
UNLABELED = "ignore"  # the name in a palette that is not a class

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
        self._colors = _checked_palette(palette or {})  # (C,) as one number each
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
        self.file_names, self._maps = _pairs(self.images, self.labels, patterns, split)
        self.image_ids = list(range(len(self.file_names)))

    def _names(
        self, classes: list[str] | None, palette: dict[str, tuple[int, int, int]] | None
    ) -> list[str]:
        """The names in the order of the numbers in the files, or of the palette."""
        names_file = self.labels.parent / "classes.txt"
        if palette is not None:
            source, names = "palette", [name for name in palette if name != UNLABELED]
        elif names_file.is_file():
            source, names = str(names_file), _lines(names_file)
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
        codes = _codes(read_image(path, exif="ignore").numpy().astype(np.int64))
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


def _checked_palette(palette: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """The colors as one number each. DataError if two classes have the same."""
    colors = np.array([_codes(np.array(color)) for color in palette.values()], np.int64)
    if len(np.unique(colors)) < len(colors):
        raise DataError(f"palette: two names have the same color: {palette}")
    return colors


def _codes(rgb: np.ndarray) -> np.ndarray:
    """Red, green and blue (3, ...) as one number (...)."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _pairs(
    images: Path, labels: Path, patterns: tuple[str | None, str], split: str | None
) -> tuple[list[str], list[str]]:
    """The names of images and of their maps, relative to the two folders, sorted."""
    source = f"images {images} and semantic maps {labels}"
    problems = Problems(source, labels)
    image_names, _ = _files(images, patterns[0], problems)
    maps, others = _files(labels, patterns[1], problems)
    ending = _shared_ending(image_names)
    if patterns[0] is None and ending and not image_names.keys() & maps.keys():
        image_names = {stem.removesuffix(ending): name for stem, name in image_names.items()}
        log.info("images %s: names without %s are those of the maps", images, printable(ending))
    wanted = image_names.keys() | maps.keys() if split is None else set(_lines(Path(split)))
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
    problems.raise_any()
    if not chosen:
        raise DataError(f"{source}: found none")
    return [image_names[stem] for stem in chosen], [maps[stem] for stem in chosen]


def _shared_ending(stems: Collection[str]) -> str:
    """The last part of all names, from an underscore on; "" if they differ."""
    endings = {stem[stem.rfind("_") :] if "_" in stem else "" for stem in stems}
    return endings.pop() if len(endings) == 1 else ""


def _lines(path: Path) -> list[str]:
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
