"""Pictures sorted into one folder for each class."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from visionkit.data.files import is_visible, shown, visible_files
from visionkit.data.images import SUFFIXES, Load, load_image
from visionkit.data.problems import check_classes
from visionkit.data.sample import Sample
from visionkit.errors import DataError
from visionkit.types import Classes, InputPath


class ImageFolder:
    """`root/<class>/**/*.jpg` and so on; the class of a picture is its folder's name.

    For embeddings the class is the picture's identity as well.

    Hidden files and folders, __MACOSX and files that are no pictures by their suffix are passed
    over. Raises `DataError` if there is no class folder, one is empty, or one is not in
    `classes`.

    classes: names in label order; by default the folders' names, sorted.
    only: the classes whose pictures are kept; they become the class list, in this order.
    exif: "apply" turns pictures upright.
    """

    keys = ("class_id", "identity")

    def __init__(
        self,
        root: InputPath,
        *,
        classes: list[str] | None = None,
        only: list[str] | None = None,
        exif: Literal["apply", "ignore"] = "apply",
    ):
        self.root, self.exif = Path(root), exif
        found = _class_folders(self.root)
        if classes is not None:
            check_classes(f"folder {root}", found, classes, missing_ok=True, unknown_ok=False)
        names = tuple(found if classes is None else classes)
        if only is not None:
            kept_classes(f"folder {root}", names, only)
            names = tuple(only)
        self.vocabularies = {"class_id": Classes(names, tuple(range(len(names))))}

        self.file_names: list[str] = []
        class_ids: list[int] = []
        for name in filter(names.__contains__, found):
            pictures = pictures_below(self.root, name)
            if not pictures:
                raise DataError(
                    f"class folder {shown(self.root / name)} holds no pictures "
                    f"({', '.join(SUFFIXES)}): fill or remove it"
                )
            self.file_names += pictures
            class_ids += [names.index(name)] * len(pictures)
        self.identities = np.array(class_ids, np.int64)  # (N,), one for each picture
        self.image_ids = list(range(len(self.file_names)))

    def image_path(self, index: int) -> Path:
        return self.root / self.file_names[index]

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, load: Load = load_image) -> Sample:
        """One picture, read by `load`, and its labels."""
        index = range(len(self))[index]
        image = load(self.image_path(index), exif=self.exif)
        size = (image.shape[1], image.shape[2])
        class_id = int(self.identities[index])
        return Sample(image, index, orig_size=size, class_id=class_id, identity=class_id)


def kept_classes(source: str, names: Sequence[str], only: Sequence[str]) -> list[int]:
    """Where the classes `only` stand among `names`. `DataError` if one does not, comes twice, or
    none is named."""
    for name in only:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise DataError(f"{source}: only names {name!r}, which is no class here; {hint}")
    if not only or len(set(only)) < len(only):
        raise DataError(f"{source}: only is {list(only)}: name at least one class, each once")
    return [list(names).index(name) for name in only]


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist or is no folder")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    names = [name for name in names if is_visible(name)]
    if not names:
        raise DataError(f"folder {root} has no class folders: pictures belong in {root}/<class>/")
    return names


def pictures_below(root: Path, class_name: str) -> list[str]:
    """Paths relative to `root`, sorted."""
    found = []
    for folder, name in visible_files(root / class_name):
        if name.lower().endswith(SUFFIXES):
            inside = os.path.relpath(folder, root)
            found.append(f"{inside}/{name}".replace(os.sep, "/"))
    return sorted(found)
