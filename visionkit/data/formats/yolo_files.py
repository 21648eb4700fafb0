"""Which files a YOLO dataset has: its parts, images, label files and names of classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.data.checks.findings import short
from visionkit.data.files import Links, unusable, visible_files
from visionkit.data.formats import plain_yaml
from visionkit.data.image_io import SUFFIXES
from visionkit.errors import DataError, listed, plural, printable
from visionkit.runs.files import open_regular

log = logging.getLogger("visionkit")

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LARGEST = 2**24  # bytes of data.yaml, and of a file of names
NAMES = ("classes.txt", "obj.names", "predefined_classes.txt", "_darknet.labels", "labels.txt")
NO_LABELS = {*NAMES, *(f"{name}.txt" for part in PARTS.values() for name in part), "notes.txt"}
EXPECTED = (
    "expected data.yaml, or images/ and labels/ (each with train/ and val/, or the two in train/ "
    "and in val/), or images with a .txt file each"
)
Bad = Callable[..., None]  # as `Reader.bad`


class Files(NamedTuple):
    """The files of a YOLO dataset, or of one part of it."""

    home: Path  # the folder that label files are named from
    images: Path  # the folder that images are named from
    names: list[str]  # of the images, with /, sorted
    labels: list[str]  # the path of the label file of each image; "" where it has none
    content: dict[str, Any]  # of data.yaml; all its scalars are strings
    lists: list[Path]  # data.yaml, list files, and the file of class names
    classes: list[str] | None  # the lines of the file of class names


class Entry(NamedTuple):
    """Images, and where their labels are."""

    images: Path  # a folder, or a text file of paths
    labels: Path | None = None  # a folder; None: by YOLO's rule


class Texts:
    """The .txt files of folders, each of which is listed once."""

    def __init__(self) -> None:
        self.listings: dict[str, dict[str, str]] = {}  # by folder: names by stem
        self._folded: dict[str, dict[str, str]] = {}
        self._rules: dict[str, str] = {}

    def find(self, folder: str, stem: str) -> str:
        """The path of the label file with that stem, or with other capitals; "" if none is."""
        if folder not in self.listings:
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            stems = {name[:-4]: name for name in reversed(names) if name[-4:].lower() == ".txt"}
            self.listings[folder] = stems
            self._folded[folder] = {one.casefold(): name for one, name in stems.items()}
        name = self.listings[folder].get(stem) or self._folded[folder].get(stem.casefold())
        return os.path.join(folder, name) if name else ""

    def folder_of(self, folder: str) -> str:
        """The folder of the labels of the images in `folder`: YOLO's rule replaces the last part of
        the path that is `images` by `labels`. Without such a folder it is that of the images."""
        if folder not in self._rules:
            self._rules[folder] = next(_with_labels(folder), folder)
        return self._rules[folder]


def _with_labels(folder: str) -> Iterator[str]:
    """The folders with `labels` instead of `images` in their path, in any capitals."""
    parts = Path(folder).parts
    for i in range(len(parts) - 1, 0, -1):
        if parts[i].casefold() == "images":
            above = Path(*parts[:i])
            for name in sorted(os.listdir(above)):
                path = above.joinpath(name, *parts[i + 1 :])
                if name.casefold() == "labels" and path.is_dir():
                    yield str(path)


def find_files(
    source: Path, images: Path | None, split: str | None, bad: Bad, links: Links
) -> Files:
    """The files of a dataset, found by its `data.yaml` or by the names of its folders. `images` is
    the folder of the images if they are elsewhere. DataError if `source` is not a YOLO dataset or
    does not have the part `split`; `bad` gets what is wrong with single files."""
    where = f"YOLO {printable(source)}"
    source = Path(os.path.abspath(source))
    images = None if images is None else Path(os.path.abspath(images))
    yaml_file = find_yaml(source)
    content = read_yaml(yaml_file) if yaml_file else {}
    home = source if source.is_dir() else source.parent
    lists = [yaml_file] if yaml_file else []
    if images is not None:
        entries = _elsewhere(home, images, split)
    else:
        home, parts = _parts(source, home, yaml_file, content)
        entries = [Entry(path) for path in _chosen(parts, split, where)]
    texts, label_of = Texts(), dict[str, str]()
    for entry in entries:
        lists += [entry.images] if entry.images.is_file() else []
        _collect(entry, home, texts, label_of, bad, links)
    paths = sorted(label_of)
    if not paths:
        tried = listed([printable(entry.images) for entry in entries])
        raise DataError(f"{where}: no images in {tried}", *_hints(home))
    if not any(label_of.values()):
        tried = os.path.join(texts.folder_of(os.path.dirname(paths[0])), _stem(paths[0]) + ".txt")
        what = f"none of {plural(len(paths), 'image')} has a label file, such as"
        raise DataError(f"{where}: {what} {printable(tried)}", *_hints(home))
    folder = images or _common(entries, paths)
    named = {path[len(str(folder)) + 1 :].replace(os.sep, "/"): path for path in paths}
    for i, _, what in unusable(folder, names := sorted(named), links):
        bad(names[i], what, kind="path")
        del label_of[named[names[i]]]
    names = [name for name in names if named[name] in label_of]
    names_file = _names_file([home, *map(Path, sorted(texts.listings))])
    return Files(
        home,
        folder,
        names,
        [label_of[named[name]] for name in names],
        content,
        lists + ([names_file] if names_file else []),
        read_lines(names_file) if names_file else None,
    )


def _hints(home: Path) -> list[str]:
    """What is in a folder, and what should be."""
    found = sorted(f"{e.name}/" if e.is_dir() else e.name for e in os.scandir(home))
    return [f"  {printable(home)} has: {printable(listed(found))}", f"  {EXPECTED}"]


def _collect(
    entry: Entry, home: Path, texts: Texts, label_of: dict[str, str], bad: Bad, links: Links
) -> None:
    """Add the images of an entry, each with its label file, to `label_of`."""
    if entry.images.is_file():
        paths, root = list(_listed(entry.images, home, bad)), str(home)
        texts_below = set[str]()  # there may be others of other parts
    else:
        root = str(entry.labels or texts.folder_of(str(entry.images)))
        paths, texts_below = (
            sorted(_below(entry.images, SUFFIXES)),
            {*_below(Path(root), (".txt",))},
        )
    owner: dict[str, str] = {}
    for path in paths:
        if path in label_of:  # of another part, too
            continue
        folder = os.path.dirname(path)
        if entry.labels is not None:
            folder = os.path.join(entry.labels, os.path.relpath(folder, entry.images))
            folder = os.path.normpath(folder)
        else:
            folder = texts.folder_of(folder)
        label = texts.find(folder, _stem(path))
        if label and owner.setdefault(label, path) != path:
            other = os.path.basename(owner[label])
            what = f"has the same label file as {other!r}, {os.path.relpath(label, home)!r}"
            bad(os.path.relpath(path, home), what, "rename or remove one", kind="repeated")
            continue
        label_of[path] = label
    folders = {os.path.dirname(path) for path in paths}
    for path in sorted(texts_below - {*label_of.values()}):
        if not _is_other(path, os.path.dirname(path) in folders):
            what = "has no image of its name"
            bad(
                os.path.relpath(path, home),
                what,
                "remove it, or add its image",
                kind="missing-file",
            )
    labels = sorted(owner)
    for i, kind, what in unusable(
        Path(root), [os.path.relpath(one, root) for one in labels], links
    ):
        if kind == "path":
            bad(os.path.relpath(labels[i], home), what, kind=kind)
            label_of.pop(owner[labels[i]])


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files in a folder that end so."""
    for place, name in visible_files(folder):
        if name.lower().endswith(suffixes):
            yield os.path.join(place, name)


def _is_other(path: str, is_with_images: bool) -> bool:
    """Whether a .txt file is none of labels. `is_with_images`: there are images in its folder, so
    that it may be any text."""
    name = os.path.basename(path).lower()
    if name in NO_LABELS or name.startswith(("readme", "license")):
        return True
    if not is_with_images:
        return False
    try:
        with open_regular(path) as file:
            numbers = file.readline(4096).split()
        return len([float(number) for number in numbers]) < 5
    except (OSError, ValueError):
        return True


def find_yaml(source: Path) -> Path | None:
    """The `data.yaml` of a dataset, or another YAML file in its folder that names classes.
    DataError if `source` is a file of another kind, or if there are several."""
    if source.is_file():
        if source.suffix.lower() not in (".yaml", ".yml"):
            what = "is not a folder and not a data.yaml"
            raise DataError(f"YOLO {printable(source)}: {what}; {EXPECTED}")
        return source
    if not source.is_dir():
        raise DataError(f"YOLO {printable(source)} does not exist")
    files = sorted(p for p in source.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
    for name in YAMLS:
        if found := [path for path in files if path.name.lower() == name]:
            return found[0]
    files = [path for path in files if path.is_file() and "names" in read_yaml(path)]
    if len(files) > 1:
        names = listed([printable(path.name) for path in files])
        raise DataError(
            f"YOLO {printable(source)}: several files may be data.yaml: {names}; name one"
        )
    return files[0] if files else None


def read_text(path: Path) -> str:
    """A small UTF-8 file; DataError for another one."""
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{printable(path)} is larger than {LARGEST >> 20} MB")
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        what = f"is not UTF-8 (byte 0x{byte:02x} at {error.start})"
        raise DataError(f"{printable(path)} {what}: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of one mapping; all scalars are strings, so that a class may be named `no`."""
    try:
        content = plain_yaml.parse(read_text(path))
    except ValueError as error:
        raise DataError(f"{printable(path)} is not YAML: {printable(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{printable(path)} is {short(content)}, not a mapping with 'names'")
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a file of names, without blank ones at the end."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _names_file(folders: Iterable[Path]) -> Path | None:
    """The file of class names in the first of the folders that has one."""
    return next((f / name for f in folders for name in NAMES if (f / name).is_file()), None)


def _elsewhere(home: Path, images: Path, split: str | None) -> list[Entry]:
    """The images in another folder than that of the labels."""
    if not images.is_dir():
        raise DataError(f"the folder of the images, {printable(images)}, does not exist")
    labels = _folder(home, ("labels",)) or home
    if split is not None:
        images = _folder(images, aliases(split)) or images
        labels = _folder(labels, aliases(split)) or labels
    return [Entry(images, labels)]


def aliases(split: str) -> tuple[str, ...]:
    """The names of folders and keys that mean a part."""
    return next((names for names in PARTS.values() if split.lower() in names), (split,))


def _folder(parent: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of one of these names, in any capitals."""
    if not parent.is_dir():
        return None
    found = sorted(p for p in parent.iterdir() if p.name.casefold() in names and p.is_dir())
    return found[0] if found else None


def _parts(
    source: Path, home: Path, yaml_file: Path | None, content: dict[str, Any]
) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of a dataset, and the folders and list files of each part."""
    if yaml_file is not None and any(name in content for names in PARTS.values() for name in names):
        return _parts_of_yaml(yaml_file, content, anywhere=source.is_file())
    if home.name.casefold() in ("images", "labels"):  # of a dataset: the folder above is meant
        other = "labels" if home.name.casefold() == "images" else "images"
        home = home.parent if _folder(home.parent, (other,)) else home
    images = _folder(home, ("images",))
    parts: dict[str, list[Path]] = {}
    for part, names in PARTS.items():
        inner = _folder(images, names) if images else None
        if inner is None and (folder := _folder(home, names)):
            inner = _folder(folder, ("images",)) or folder
        if inner is not None:
            parts[part] = [inner]
    return home, parts or {"": [images or home]}


def _parts_of_yaml(
    yaml_file: Path, content: dict[str, Any], *, anywhere: bool
) -> tuple[Path, dict[str, list[Path]]]:
    """The same as data.yaml has them. Unless `anywhere`, they must be in its folder."""
    above = yaml_file.parent
    homes = [above]
    if isinstance(path := content.get("path"), str) and path:
        path = path.replace("\\", "/")
        homes = [above / path, *([Path(path)] if anywhere else []), above]
    parts: dict[str, list[Path]] = {}
    missing, home = [], above
    for part, names in PARTS.items():
        value: Any = next((content[name] for name in names if content.get(name)), [])
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise DataError(f"{printable(yaml_file)}: {part}: {short(text)} is not a path")
            found = _existing(homes, text, None if anywhere else above)
            if found is None:
                missing.append(f"{part}: {text}")
            else:
                home = found[0]
                parts.setdefault(part, []).append(found[1])
    if missing and not parts:
        what = f"not found {'or outside of its folder' if not anywhere else ''}".rstrip()
        hint = [] if anywhere else ["  name data.yaml itself to allow other folders"]
        places = printable(listed(missing))
        raise DataError(f"{printable(yaml_file)}: {what}: {places}", *hint, *_hints(above))
    if missing:
        log.warning("%s: not found: %s", printable(yaml_file), printable(listed(missing)))
    return home, parts


def _existing(homes: list[Path], text: str, inside: Path | None) -> tuple[Path, Path] | None:
    """The first folder of `homes` that has a path, and that path. Roboflow writes `../train` for
    what is next to data.yaml."""
    text = text.replace("\\", "/")
    bare = text
    while bare.startswith("../"):
        bare = bare[3:]
    for name in dict.fromkeys((bare, text)):
        for home in homes:
            path = Path(os.path.normpath(home / name))
            if inside is not None and not path.is_relative_to(inside):
                continue
            try:
                if path.is_dir() or (path.is_file() and path.suffix.lower() == ".txt"):
                    return home, path
            except ValueError:  # a zero byte
                continue
    return None


def _chosen(parts: dict[str, list[Path]], split: str | None, where: str) -> list[Path]:
    """The folders and list files of one part, or of all."""
    if split is None:
        return [path for paths in parts.values() for path in paths]
    part = next((part for part in parts if split.lower() in (part, *PARTS.get(part, ()))), None)
    if part is None:
        known = listed([part for part in parts if part])
        raise DataError(f"{where}: no part {split!r}; parts: {known}")
    return parts[part]


def _common(entries: list[Entry], paths: list[str]) -> Path:
    """The deepest folder that has all images."""
    folders = [str(entry.images) for entry in entries if entry.images.is_dir()]
    if len(folders) < len(entries):
        folders += {os.path.dirname(path) for path in paths}
    return Path(os.path.commonpath(folders))


def _listed(file: Path, home: Path, bad: Bad) -> Iterator[str]:
    """The paths in a list file, which are relative to it or to the dataset, or have more folders in
    front, as darknet writes them."""
    known: list[tuple[Path, int]] = [(file.parent, 0), (home, 0)]
    root = os.path.join(home, "")
    for number, line in enumerate(read_lines(file), 1):
        name = line.replace("\\", "/")
        while name.startswith("./"):
            name = name[2:]
        parts = [part for part in name.split("/") if part]
        if not parts:
            continue
        where, found = f"{os.path.relpath(file, home)}:{number}", ""
        tries = [*known, *((home, drop) for drop in range(1, len(parts)))]
        for base, drop in tries:
            rest = [os.sep, *parts] if name.startswith("/") and not drop else parts[drop:]
            path = os.path.normpath(os.path.join(base, *rest))
            if rest and "\0" not in path and os.path.isfile(path):
                found, known = path, [(base, drop), (file.parent, 0), (home, 0)]
                break
        if not found:
            bad(where, f"the image {short(line)} is not there", kind="missing-file")
        elif not found.startswith(root):
            bad(where, f"the image {short(line)} is outside of {home}", kind="path")
        elif not found.lower().endswith(SUFFIXES):
            bad(where, f"{short(line)} is not an image", kind="file")
        else:
            yield found
