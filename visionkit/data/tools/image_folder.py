"""Find the folder that the file names of an annotation file are relative to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from visionkit.data.files import is_visible
from visionkit.errors import DataError, listed, printable

TRIED = 50  # names that are searched in each folder
FOLDERS = 200  # that are searched in each folder around the file


def find_images(file: Path, names: Sequence[str]) -> Path | None:
    """The folder of the images of an annotation file with these `file_name`s; None if no folder
    nearby has any of them.

    Searched are the folder of the file, `images` in it, and the other folders in it; then, if its
    name has `annot` or `label`, the folder above and those in that one. The one with most of the
    names counts; of several the nearest; of several the one whose name is part of the file's, as
    `val2017` is of `instances_val2017.json`. DataError if there are still several.
    """
    tried = [name for name in names if name][:: max(1, len(names) // TRIED)]
    if tried and all(map(os.path.isabs, tried)):
        folder = Path(os.path.commonpath([os.path.dirname(name) for name in names if name]))
        return folder if folder.is_dir() else None
    most, best, seen = 0, list[Path](), set[str]()
    for folders in _near(file.absolute().parent):
        new = [folder for folder in folders if os.path.realpath(folder) not in seen]
        seen |= {os.path.realpath(folder) for folder in new}
        counts = [sum(os.path.isfile(f / name.replace("\\", "/")) for name in tried) for f in new]
        if (highest := max(counts, default=0)) > most:
            most = highest
            best = [folder for folder, n in zip(new, counts, strict=True) if n == most]
    if len(best) > 1:
        best = [folder for folder in best if folder.name in file.stem] or best
    if len(best) > 1:
        shown = listed([printable(folder) for folder in best], 5)
        raise DataError(
            f"{printable(file)}: files of the names of its images are in {shown}: name the folder "
            "with --images DIR"
        )
    return best[0] if best else None


def _near(home: Path) -> Iterator[list[Path]]:
    """Folders around `home`, the nearest first."""
    roots = [home, home / "images", home.parent / "images"]
    if any(word in home.name.lower() for word in ("annot", "label")):
        roots.append(home.parent)
    for root in roots:
        yield [root]
    for root in filter(Path.is_dir, roots):
        inner = sorted(e.path for e in os.scandir(root) if is_visible(e.name) and e.is_dir())
        yield [*map(Path, inner[:FOLDERS])]
