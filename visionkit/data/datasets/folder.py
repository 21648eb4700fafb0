"""Images in one folder for each class, and unlabeled images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from visionkit.config.schema import InputPath
from visionkit.data.checks.findings import (
    Finding,
    Problems,
    check_classes,
    finding,
)
from visionkit.data.files import is_visible, require_folder, visible_files
from visionkit.data.formats.recognize import OF_OTHERS, looks_like
from visionkit.data.image_io import SUFFIXES, Exif, ValueRange, read_image
from visionkit.data.sample import Sample
from visionkit.errors import DataError, check_names, listed, printable, unknown
from visionkit.types import Classes


class Images:
    """All images below a folder, sorted by path, without labels.

    Hidden files and folders and those of systems (__MACOSX, @eaDir) are skipped; files without the
    suffix of an image are skipped and counted. Raises DataError if the folder does not exist or has
    no images.

    exif: "apply" turns images upright.
    """

    keys: tuple[str, ...] = ()
    value_range: ValueRange | None = None  # set by the source

    def __init__(self, root: InputPath, *, exif: Exif = "apply"):
        self.root, self.exif = Path(root), exif
        require_folder(self.root)
        self.classes: dict[str, Classes] = {}
        images, others = images_below(self.root, ".")
        self.file_names = sorted(name.removeprefix("./") for name in images)
        self._others = [name.removeprefix("./") for name in others]  # files that are not images
        if not self.file_names:
            raise DataError(f"folder {root} has no images ({', '.join(SUFFIXES)})")
        self.image_ids = list(range(len(self.file_names)))

    def findings(self) -> Iterator[Finding]:
        """Skipped files."""
        for name in self._others:
            yield finding("other-file", f"{name} has no image suffix", file=str(self.root))

    def image_path(self, index: int) -> Path:
        return self.root / self.file_names[index]

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = self.image_path(index)
        image = read_image(path, exif=self.exif, value_range=self.value_range)
        return Sample(image, image_id=index, orig_size=(image.shape[1], image.shape[2]))


class ImageFolder(Images):
    """`root/<class>/**/*.jpg` and so on: the class of an image is the name of its folder.

    For embeddings the class is also the image's identity.

    Hidden files and folders and those of systems (__MACOSX, @eaDir) are skipped; files without the
    suffix of an image are skipped and counted. Raises DataError if there are no class folders, some
    are empty, or one is not in `classes`.

    classes: names in label order; by default the names of the folders, sorted.
    only: the classes whose images are used; they become the class list, in this order.
    exif: "apply" turns images upright.
    """

    keys = ("class_id", "identity")

    def __init__(
        self,
        root: InputPath,
        *,
        classes: list[str] | None = None,
        only: list[str] | None = None,
        exif: Exif = "apply",
    ):
        check_names(classes=classes, only=only)
        self.root, self.exif = Path(root), exif
        found = _class_folders(self.root)
        if classes is not None:
            check_classes(f"folder {root}", found, classes, missing_ok=True, unknown_ok=False)
        names = tuple(found if classes is None else classes)
        if only is not None:
            kept_classes(f"folder {root}", names, only)
            names = tuple(only)
        self.classes = {"class_id": Classes.numbered(names)}

        self.file_names: list[str] = []
        class_ids: list[int] = []
        self._others = []
        problems = Problems(f"folder {root}", root)
        for name in filter(names.__contains__, found):
            images, others = images_below(self.root, name)
            if not images:
                folder = printable(self.root / name)
                what = f"class folder {folder} has no images ({', '.join(SUFFIXES)})"
                problems.add("", what, "add images or remove it", kind="missing-file", value=name)
            self.file_names += images
            self._others += others
            class_ids += [names.index(name)] * len(images)
        problems.raise_any()
        self.identities = np.array(class_ids, np.int64)  # (N,), one for each image
        self.image_ids = list(range(len(self.file_names)))

    def class_counts(self) -> dict[str, np.ndarray]:
        """The number of images of each class."""
        size = len(self.classes["class_id"].names)
        return {"class_id": np.bincount(self.identities, minlength=size)}

    def occurrences(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By class_key, the images and their classes."""
        return {"class_id": (np.arange(len(self)), self.identities)}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.class_id = sample.identity = int(self.identities[sample.image_id])
        return sample


def kept_classes(source: str, names: Sequence[str], only: Sequence[str]) -> list[int]:
    """The places of the classes `only` in `names`. DataError if one is unknown or given twice, or
    none is given."""
    for name in only:
        if name not in names:
            raise DataError(unknown(name, names, f"{source}: only: unknown class {name!r}"))
    if not only or len(set(only)) < len(only):
        raise DataError(f"{source}: only must name at least one class, each once; got {list(only)}")
    return [list(names).index(name) for name in only]


def _class_folders(root: Path) -> list[str]:
    require_folder(root)
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not (names := [*filter(is_visible, names)]):
        raise DataError(f"folder {root} has no class folders: put images into {root}/<class>/")
    if all(name.lower() in OF_OTHERS for name in names):
        what = f"folder {root}: {printable(listed(names))} are not folders of classes"
        hint = looks_like(root, "ImageFolder") or f"name one that has them, root: {root / names[0]}"
        raise DataError(f"{what}; {hint}")
    return names


def images_below(root: Path, class_name: str) -> tuple[list[str], list[str]]:
    """The visible images and other files of a class: paths relative to `root`, sorted."""
    names = sorted(
        f"{os.path.relpath(folder, root)}/{name}".replace(os.sep, "/")
        for folder, name in visible_files(root / class_name)
    )
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    return images, [name for name in names if not name.lower().endswith(SUFFIXES)]
