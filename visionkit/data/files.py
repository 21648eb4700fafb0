"""Why a file cannot be read, and which names lead out of their folder."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from visionkit.errors import DataError, other_case, other_form, printable

log = logging.getLogger("visionkit")

Links = Literal["inside", "any"]

_OF_SYSTEMS = {  # folders that systems put next to the user's
    *("__MACOSX", "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
}


class Fault(NamedTuple):
    """What is wrong with a file: its kind, and a clause that follows the file's name."""

    kind: str
    clause: str


_BEGINNINGS = {  # of files that are something else than expected
    b"version https://git-lfs": Fault(
        "pointer", "is a Git LFS pointer, not the data itself: run `git lfs pull`"
    ),
    b"<": Fault("page", "looks like a web page or XML: download the file itself"),
    b"\x1f\x8b": Fault("archive", "is gzip-compressed: unpack it first"),
    b"PK\x03\x04": Fault("archive", "is a zip archive: unpack it first"),
}

# Formats by regular expressions of their first bytes. The first four are read where Pillow or a
# plugin of it can; see `image_io.PLUGINS`.
_FORMATS = {
    "AVIF": rb".{4}ftyp(avi[fs]|.{0,32}avif)",
    "HEIF": rb".{4}ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JXL": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    "DICOM": rb".{128}DICM",
    "NumPy": rb"\x93NUMPY",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "Photoshop": rb"8BPS",
    "PDF": rb"%PDF",
    "video": rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3",
}


def format_of(start: bytes) -> str | None:
    """The format, a key of `_FORMATS`, of a file with these first bytes."""
    found = (name for name, regex in _FORMATS.items() if re.match(regex, start, re.DOTALL))
    return next(found, None)


def unreadable_format(name: str) -> str:
    """The clause of a file in a format, a result of `format_of`, that cannot be read."""
    known = {"HEIF": "HEIC (HEIF)", "JPEG2000": "JPEG 2000", "JXL": "JPEG XL"}.get(name, name)
    return f"has the format {known}, which cannot be read here: convert it to PNG or JPEG"


def diagnose(path: str | Path) -> str:
    """Why a file cannot be read: a clause that follows its name, such as `is empty: download it
    again`."""
    return find_fault(path).clause


def find_fault(path: str | Path) -> Fault:
    """The fault of a file that could not be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return Fault("folder", "is a folder: name a file")
        if not stat.S_ISREG(mode):
            return Fault("unreadable", "is a device or a pipe: name a regular file")
        with open(path, "rb") as file:
            start = file.read(512)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return Fault("missing", "does not exist: check the path")
    except OSError as error:
        return Fault("unreadable", f"cannot be opened ({error.strerror}): check its permissions")
    if not start:
        return Fault("empty", "is empty: download or write it again")
    for beginning, fault in _BEGINNINGS.items():
        if start.lstrip().startswith(beginning):
            return fault
    if name := format_of(start):
        return Fault("format", unreadable_format(name))
    return Fault("damaged", "is damaged, cut short or of another format: check or replace it")


def visible_files(root: str | Path, hidden: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Folder and name of each file below `root` that `is_visible`; `hidden` gets the names of other
    files and folders. Links to folders are not followed, since they may form a loop; a warning
    names them."""
    hidden = [] if hidden is None else hidden
    for folder, subfolders, names in os.walk(root):
        hidden += [name for name in (*subfolders, *names) if not is_visible(name)]
        subfolders[:] = filter(is_visible, subfolders)
        for name in subfolders:
            if os.path.islink(path := os.path.join(folder, name)):
                log.warning("%s is a link to a folder and is not followed", printable(path))
        yield from ((folder, name) for name in filter(is_visible, names))


def require_folder(path: Path) -> None:
    """DataError unless the path is a folder."""
    if not path.is_dir():
        raise DataError(f"folder {path} does not exist or is not a folder")


def is_visible(name: str) -> bool:
    """Whether a file or folder is the user's, not one of the system."""
    return not name.startswith(".") and name not in _OF_SYSTEMS


def resolve(root: Path, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The place and the name below `root` of each file that is named in another way than that.

    An absolute name may lie in `root`; a name may have backslashes for /, or begin with the last
    folders of `root` itself: `images/a.jpg` in the folder `data/images`. A name that is absolute
    and lies elsewhere gets "".
    """
    parts = Path(os.path.abspath(root)).parts
    homes = [f"{home.rstrip(os.sep)}/" for home in (os.path.abspath(root), os.path.realpath(root))]
    prefixes = ("/", "./", f"{parts[-1]}/", *{f"{part}/" for part in parts[1:-1]})
    for i, name in enumerate(names):
        if "\\" not in name and name[1:2] != ":" and not name.startswith(prefixes):
            continue
        is_there = os.path.exists(os.path.join(root, name)) and not os.path.isabs(name)
        found = name if is_there else re.sub(r"[\\/]+", "/", name)  # a leading // is another root
        found = re.sub(r"^(\./+)+", "", found)
        if found.startswith("/") or re.match("[A-Za-z]:", found):
            inside = [found.removeprefix(home) for home in homes if found.startswith(home)]
            found = inside[0] if inside else ""
        elif not os.path.exists(os.path.join(root, found)):
            folders = found.split("/")
            for count in range(1, len(folders)):
                rest = "/".join(folders[count:])
                if parts[-count:] == tuple(folders[:count]) and (root / rest).exists():
                    found = rest
                    break
        if found != name:
            yield i, found


def unusable(
    root: Path, names: Sequence[str], links: Links = "inside"
) -> Iterator[tuple[int, str, str]]:
    """The names, except "", that are not files below `root` or, unless `links` is "any", lead out
    of it: place, kind of finding, and what is wrong. Each folder is listed once; `root` itself may
    be a link."""
    home = os.path.realpath(root)
    folders: dict[str, _Listing] = {}
    for i, name in enumerate(names):
        if not name:
            continue
        folder, base = os.path.split(name)
        if folder not in folders:
            folders[folder] = _Listing(os.path.join(root, folder), home)
        listing = folders[folder]
        if not listing.holds(base):
            twin = other_form(base, listing.names | listing.links)
            twin = twin or other_case(base, listing.folded)
            yield i, "missing-file", f"it is not in {printable(root)}{twin}"
        elif links == "inside" and (elsewhere := listing.leads_out(base)):
            what = f"it is a link, or passes one, that leads out to {printable(elsewhere)}"
            yield i, "path", what


class _Listing:
    """The files of one folder below `home`, and which of them are links."""

    def __init__(self, path: str, home: str) -> None:
        self.path, self.home = path, home
        self.outside = not _is_below(os.path.realpath(path), home)
        self.names: set[str] = set()
        self.links: set[str] = set()
        with suppress(OSError):  # the folder is not found, or may be entered but not listed
            for entry in os.scandir(path):
                (self.links if entry.is_symlink() else self.names).add(entry.name)

    @cached_property
    def folded(self) -> dict[str, str]:
        """The names by their form without capitals."""
        return {name.casefold(): name for name in self.names | self.links}

    def holds(self, base: str) -> bool:
        return base in self.names or os.path.exists(os.path.join(self.path, base))

    def leads_out(self, base: str) -> str | None:
        """The real path of that file, if it is not below `home`."""
        if base in self.names and not self.outside:
            return None
        target = os.path.realpath(os.path.join(self.path, base))
        return None if _is_below(target, self.home) else target


def _is_below(path: str, home: str) -> bool:
    return path == home or path.startswith(home.rstrip(os.sep) + os.sep)
