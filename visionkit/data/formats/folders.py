"""Images in one folder for each class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionkit.data.files import is_visible
from visionkit.data.formats.base import Reader, Record
from visionkit.data.formats.image_files import ImageFiles
from visionkit.errors import DataError, listed, printable, unknown

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
ALIKE = ({"train", "training"}, {"val", "valid", "validation"}, {"test", "testing"})


class FolderReader(Reader):
    """Class folders, `root/<class>/**/*.jpg`, or below folders of parts,
    `root/train/<class>/**/*.jpg`. The class of an image is also its identity."""

    name = "class folders"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        if options.get("images") is not None:
            raise DataError(f"{self.problems.source}: --images does not apply to class folders")
        if not self.source.is_dir():
            raise DataError(f"{self.problems.source}: is not a folder: name one with class folders")
        names = _folders(self.source)
        parts = names if names and {name.casefold() for name in names} <= PARTS else [""]
        if self.split is not None:
            wanted = self.split.casefold()
            same = next((alike for alike in ALIKE if wanted in alike), {wanted})
            parts = [part for part in parts if part.casefold() in same]
            if not parts:
                known = listed([printable(name) for name in names])
                raise DataError(
                    f"{self.problems.source}: there is no part {self.split}; it has {known}"
                )
        self.parts = parts
        found = sorted({name for part in parts for name in _folders(self.source / part)})
        if not found:
            raise DataError(f"{self.problems.source}: there are no class folders")
        self.classes = found if self.given_classes is None else self.given_classes
        self.lists["image_classes"] = self.classes

    def files(self) -> list[Path]:
        return [self.source]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        place = {name: i for i, name in enumerate(self.classes)}
        count = 0
        for part in self.parts:
            images = ImageFiles(self.source / part, self.links)
            left = {*_folders(self.source / part)}
            for name in images.names:
                where = f"{part}/{name}" if part else name
                class_name, _, rest = name.partition("/")
                if not rest:
                    self.losses.add("images outside of class folders", where)
                    continue
                left.discard(class_name)
                try:
                    if class_name not in place:
                        what = f"class {class_name!r} is not among the classes"
                        raise ValueError(unknown(class_name, place, what))
                    images.find(name)  # a link may lead out
                    height, width = images.size(name, None)
                except ValueError as error:
                    self.bad(where, str(error), kind="image")
                    continue
                count += 1
                record = {"id": count, "file_name": where, "height": height, "width": width}
                yield record | dict.fromkeys(("class_id", "identity"), place[class_name]), []
            for class_name in sorted(left):
                self.bad(
                    f"{part}/{class_name}" if part else class_name,
                    "has no images",
                    "add images or remove it",
                )


def _folders(root: Path) -> list[str]:
    """The visible folders below a folder, sorted."""
    return sorted(e.name for e in root.iterdir() if e.is_dir() and is_visible(e.name))
