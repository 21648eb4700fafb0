"""Pictures without any labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from visionkit.data.folder import pictures_below
from visionkit.data.images import SUFFIXES, Load, load_image
from visionkit.data.sample import Sample
from visionkit.errors import DataError
from visionkit.types import Classes, InputPath


class Pictures:
    """Every picture below a folder, sorted by its path; nothing is known about any of them.

    Hidden files and folders, __MACOSX and files that are no pictures by their suffix are passed
    over. Raises `DataError` if there is no such folder or it holds no picture.

    exif: "apply" turns pictures upright.
    """

    keys = ()

    def __init__(self, root: InputPath, *, exif: Literal["apply", "ignore"] = "apply"):
        self.root, self.exif = Path(root), exif
        if not self.root.is_dir():
            raise DataError(f"folder {root} does not exist or is no folder")
        self.vocabularies: dict[str, Classes] = {}
        pictures, _ = pictures_below(self.root, ".")
        self.file_names = sorted(name.removeprefix("./") for name in pictures)
        if not self.file_names:
            raise DataError(f"folder {root} holds no pictures ({', '.join(SUFFIXES)})")
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
        """One picture, read by `load`."""
        index = range(len(self))[index]
        image = load(self.image_path(index), exif=self.exif)
        return Sample(image, image_id=index, orig_size=(image.shape[1], image.shape[2]))
