"""Errors about files that say more than "cannot read"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def diagnose(path: str | Path) -> str:
    """A clause that follows the file's name in an error, e.g. "is empty: download it again"."""
    path = Path(path)
    if not path.exists():
        return "does not exist: check the path"
    if path.is_dir():
        return "is a folder: name a file"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be opened ({error.strerror}): check its permissions"
    if not start:
        return "is empty: download or write it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the data itself: run `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "looks like a web page or XML: download the file itself"
    if start.startswith(b"\x1f\x8b"):
        return "is gzip-compressed: unpack it first"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive: unpack it first"
    return "is damaged, cut short or of another format: check or replace it"


def absent(root: Path, names: Sequence[str]) -> list[int]:
    """Which of the names, "" aside, are no files below `root`; each folder is listed once."""
    present: dict[str, set[str]] = {"": set(os.listdir(root))}
    missing = []
    for i, name in enumerate(names):
        if name in present[""] or not name:
            continue
        folder, base = os.path.split(name)
        if folder not in present:
            path = root / folder
            present[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if base not in present[folder] and not (root / name).exists():
            missing.append(i)
    return missing
