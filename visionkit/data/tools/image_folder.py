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

    Searched are the folder of the file and the one above, `images` in both, and the folders in
    these. The one with most of the names counts; of several the one whose name is part of the
    file's, as `val2017` is of `instances_val2017.json`. DataError if there are still several.
    """
    tried = [name for name in names if name][:: max(1, len(names) // TRIED)]
    if tried and all(map(os.path.isabs, tried)):
        folder = Path(os.path.commonpath([os.path.dirname(name) for name in names if name]))
        return folder if folder.is_dir() else None
    found: dict[str, tuple[int, Path]] = {}
    for folder in _near(file.absolute().parent):
        count = sum(os.path.isfile(folder / name.replace("\\", "/")) for name in tried)
        if count:
            found.setdefault(os.path.realpath(folder), (count, folder))
    most = max((count for count, _ in found.values()), default=0)
    best = [folder for count, folder in found.values() if count == most]
    if len(best) > 1:
        best = [folder for folder in best if folder.name in file.stem] or best
    if len(best) > 1:
        shown = listed([printable(folder) for folder in best], 5)
        raise DataError(
            f"{printable(file)}: files of the names of its images are in {shown}: name the folder "
            "with --images DIR"
        )
    return best[0] if best else None


def _near(home: Path) -> Iterator[Path]:
    """Folders around `home`."""
    roots = [home, home / "images", home.parent / "images", home.parent]
    yield from roots
    for root in filter(Path.is_dir, roots):
        inner = sorted(e.path for e in os.scandir(root) if is_visible(e.name) and e.is_dir())
        yield from map(Path, inner[:FOLDERS])
