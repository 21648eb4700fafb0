"""Pictures sorted into one folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from visionkit.data.images import SUFFIXES, load_image
from visionkit.data.problems import check_classes
from visionkit.data.sample import Sample
from visionkit.errors import DataError
from visionkit.types import Classes, InputPath


class ImageFolder:
    """`root/<class>/**/*.jpg` and so on; the class of a picture is its folder's name.

    Hidden files and folders, __MACOSX and files that are no pictures by their suffix are passed
    over. Raises `DataError` if there is no class folder, one is empty, or one is not in
    `classes`.

    classes: names in label order; by default the folders' names, sorted.
    exif: "apply" turns pictures upright.
    """

    keys = ("class_id",)
    vocabulary = "class_id"

    def __init__(
        self,
        root: InputPath,
        *,
        classes: list[str] | None = None,
        exif: Literal["apply", "ignore"] = "apply",
    ):
        self.root, self.exif = Path(root), exif
        found = _class_folders(self.root)
        if classes is not None:
            check_classes(f"folder {root}", found, classes, missing_ok=True, unknown_ok=False)
        names = tuple(found if classes is None else classes)
        self.vocabularies = {"class_id": Classes(names, tuple(range(len(names))))}

        self.file_names: list[str] = []
        self._class_ids: list[int] = []
        for name in found:
            pictures = _pictures(self.root, name)
            if not pictures:
                raise DataError(
                    f"class folder {self.root / name} holds no pictures "
                    f"({', '.join(SUFFIXES)}): fill or remove it"
                )
            self.file_names += pictures
            self._class_ids += [names.index(name)] * len(pictures)
        self.image_ids = list(range(len(self.file_names)))

    def image_path(self, index: int) -> Path:
        return self.root / self.file_names[index]

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        image = load_image(self.image_path(index), exif=self.exif)
        size = (image.shape[1], image.shape[2])
        return Sample(image, image_id=index, orig_size=size, class_id=self._class_ids[index])


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist or is no folder")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    names = [name for name in names if _is_content(name)]
    if not names:
        raise DataError(f"folder {root} has no class folders: pictures belong in {root}/<class>/")
    return names


def _pictures(root: Path, class_name: str) -> list[str]:
    """Paths relative to `root`, sorted."""
    found = []
    for folder, subfolders, files in os.walk(root / class_name):
        subfolders[:] = filter(_is_content, subfolders)
        inside = os.path.relpath(folder, root)
        for name in filter(_is_content, files):
            if name.lower().endswith(SUFFIXES):
                found.append(f"{inside}/{name}".replace(os.sep, "/"))
    return sorted(found)


def _is_content(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
