"""Recognize the usual exports of annotation tools by the names and beginnings of their files.

No reader is imported and no dataset is read: a folder of any size takes milliseconds.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from visionkit.data.files import is_visible, resolve
from visionkit.data.formats.kinds import (
    CSV,
    CVAT,
    LABELME,
    PANOPTIC,
    TYPES,
    VOC,
    YOLO,
    archive,
    csv_rows,
    ends_of,
    kind_of_file,
    kind_of_json,
)
from visionkit.data.image_io import SUFFIXES
from visionkit.errors import DataError, listed, plural, printable

ENTRIES = 10_000  # of a folder that are listed
TRIED = 20  # files of a folder whose beginning is read
DEEPEST = 3  # folders in each other that are entered where there is nothing else
LONGEST_YAML = 1_000_000  # bytes of a file that is parsed
ALL = "all"  # the part of data without parts
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PART = re.compile(rf"(?:^|[_\-. ])({'|'.join(PARTS)})\d*(?:$|[_\-. ])", re.IGNORECASE)
IMAGE_FOLDERS = ("images", "imgs", "img", "jpegimages", "data")
MAP_FOLDERS = ("masks", "labels", "annotations", "segmentationclass", "label", "mask")
OF_OTHERS = {  # folders that do not hold a class
    *IMAGE_FOLDERS,
    *MAP_FOLDERS,
    *PARTS,
    "imagesets",
    "segmentationobject",
}
NAMES = {
    "coco": "a COCO dataset",
    "yolo": "a YOLO dataset",
    "voc": "a Pascal VOC dataset",
    "cvat": "a CVAT export",
    "labelme": "a LabelMe folder",
    "masks": "images with semantic maps",
    "csv": "images with a CSV file",
    "folders": "class folders",
    "images": "images without labels",
}


class Recognized(NamedTuple):
    """What a folder or file looks like."""

    format: str  # the name of --from, or `images` for a folder without labels
    words: str  # such as "a YOLO dataset (data.yaml with 3 classes; parts train and val)"
    # By part (train, val, test, or `ALL`): the `type` and the arguments of its dataset.
    parts: dict[str, dict[str, Any]]

    @property
    def gives(self) -> tuple[str, ...]:
        """The target keys that its datasets may give."""
        if self.format == "csv":
            return _csv_gives(next(iter(self.parts.values()))["root"])
        if self.format != "coco":
            return _GIVES.get(self.format, _OBJECTS)
        ends = b"".join(ends_of(Path(next(iter(self.parts.values()))["annotations"])))
        more = {"class_id": b'"image_classes"', "identity": b'"identity"'}
        return (*_OBJECTS, *(key for key, mark in more.items() if mark in ends))

    @property
    def fits(self) -> str:
        """The tasks that such data can feed, in words."""
        tasks = [task for task, key in _TASKS.items() if key in self.gives] or ["autoencoder"]
        return f"tasks that fit: {', '.join(tasks)}"


_OBJECTS = ("boxes", "labels", "masks", "attributes", "semantic")
_GIVES = {"folders": ("class_id", "identity"), "masks": ("semantic",), "images": ()}
_TASKS = {
    "detection": "boxes",
    "instance_segmentation": "masks",
    "localization": "boxes",
    "semantic_segmentation": "semantic",
    "classification": "class_id",
    "embedding": "identity",
}


def recognize(source: str | Path) -> Recognized:
    """What `source` looks like. DataError for what is not known or not read, which says what to do,
    and where several formats fit, which names them."""
    path = Path(source)
    where = printable(source)
    if not path.exists():
        raise DataError(f"{where} does not exist")
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise DataError(f"{where} is neither a file nor a folder")
    found = _fitting(Folder(path), DEEPEST)
    if len(found) > 1:
        raise DataError(
            f"{where}: several formats fit: {'; '.join(one.words for one in found)}",
            *(f"  for {one.format} write {_choice(one)}" for one in found),
        )
    if not found:
        raise DataError(_unknown(Folder(path)))
    return found[0]


def looks_like(source: str | Path, than: str) -> str:
    """A sentence if `source` is recognized as data for another `type:` than that one; else ""."""
    try:
        found = recognize(source)
    except (DataError, OSError):
        return ""
    if found.format == "images" or TYPES[found.format] == than:
        return ""
    return f"it looks like {found.words}: write {_choice(found)}"


def _choice(found: Recognized) -> str:
    """How to name the format, in a config and in a command."""
    first = found.parts.get("train") or next(iter(found.parts.values()))
    spec = ", ".join(f"{key}: {printable(value)}" for key, value in first.items())
    return f"{{{spec}}} in a config, --from {found.format} in a command"


class Folder:
    """The visible entries of a folder, at most `ENTRIES`."""

    def __init__(self, path: Path):
        self.path = path
        self.folders: dict[str, Path] = {}  # by name in lower case
        self.files: dict[str, list[str]] = {}  # names by suffix in lower case
        with os.scandir(path) as entries:
            for entry in islice(entries, ENTRIES):
                if is_visible(entry.name):
                    if entry.is_dir():
                        self.folders[entry.name.lower()] = path / entry.name
                    else:
                        suffix = os.path.splitext(entry.name)[1].lower()
                        self.files.setdefault(suffix, []).append(entry.name)

    def ending(self, *suffixes: str) -> list[Path]:
        """The first files with such a suffix, sorted."""
        names = sorted(name for suffix in suffixes for name in self.files.get(suffix, ()))
        return [self.path / name for name in names[:TRIED]]

    @property
    def has_images(self) -> bool:
        return any(suffix in self.files for suffix in SUFFIXES)

    def sub(self, *names: str) -> Folder | None:
        """The first of these folders that is there."""
        path = next((self.folders[name] for name in names if name in self.folders), None)
        return None if path is None else Folder(path)

    def parts(self) -> dict[str, Path]:
        """The subfolders that are named like parts."""
        found = {part_of(name): path for name, path in sorted(self.folders.items())}
        return {part: found[part] for part in ("train", "val", "test") if part in found}


def part_of(name: str) -> str:
    """The part that a file or folder is named after; `ALL` for none."""
    found = _PART.search(name)
    return PARTS[found[1].lower()] if found else ALL


def _fitting(folder: Folder, deepest: int) -> list[Recognized]:
    """All formats that fit a folder."""
    found = [one for detect in DETECTORS if (one := detect(folder))]
    found = found or _of_parts(folder)
    below = [*folder.folders.values()]
    if not found and len(below) == 1 and not folder.has_images and deepest:
        return _fitting(Folder(below[0]), deepest - 1)
    if not found and (images := folder if folder.has_images else folder.sub(*IMAGE_FOLDERS)):
        spec = {"type": TYPES["images"], "root": str(folder.path)}
        kinds = listed([f"*{suffix}" for suffix in SUFFIXES if suffix in images.files])
        found = [_made("images", kinds, {ALL: spec})] if images.has_images else []
    return found


def _of_parts(folder: Folder) -> list[Recognized]:
    """The formats of which each part has its own folder."""
    parts = {}
    for part, path in folder.parts().items():
        found = [one for detect in DETECTORS if (one := detect(Folder(path)))]
        parts[part] = found or list(filter(None, [_class_folders(Folder(path), least=1)]))
    formats = dict.fromkeys(one.format for found in parts.values() for one in found)
    merged = []
    for format in formats:
        own = {p: one for p, found in parts.items() for one in found if one.format == format}
        known = {part: spec for part, one in own.items() if (spec := _spec_of(part, one))}
        evidence = re.sub(r".*?\((.*?)(; parts? .*)?\)$", r"\1", next(iter(own.values())).words)
        merged += [_made(format, f"in each part {evidence}", known)] if known else []
    return merged


def _spec_of(part: str, found: Recognized) -> dict[str, Any] | None:
    """The dataset of the folder of one part, which may name itself in another way."""
    only = next(iter(found.parts.values())) if len(found.parts) == 1 else None
    return found.parts.get(ALL) or found.parts.get(part) or only


def _made(format: str, evidence: str, parts: Mapping[str, dict[str, Any]]) -> Recognized:
    ordered = {part: parts[part] for part in ("train", "val", "test", ALL) if part in parts}
    named = [part for part in ordered if part != ALL]
    words = " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))
    texts = [evidence, f"part{'s' * (len(named) > 1)} {words}"] if named else [evidence]
    return Recognized(format, f"{NAMES[format]} ({printable('; '.join(texts))})", ordered)


def _coco(folder: Folder) -> Recognized | None:
    files = [folder.path / "_annotations.coco.json"]  # of Roboflow; may be among many images
    if not files[0].is_file():
        inner = folder.sub("annotations")
        files = [*folder.ending(".json"), *(inner.ending(".json") if inner else ())]
        files = [file for file in files if (kind := kind_of_file(file)) and kind.format == "coco"]
        files = [file for file in files if file.stem.startswith("instances")] or files
    specs: dict[str, dict[str, Any]] = {}
    for file in files:
        spec = {
            "type": TYPES["coco"],
            "images": str(_images_of(file, folder)),
            "annotations": str(file),
        }
        if (part := part_of(file.stem)) in specs:
            names = listed([printable(one.name) for one in files])
            raise DataError(
                f"{printable(folder.path)}: several COCO files for one part: {names}; name one: "
                "data.train.images=DIR data.train.annotations=FILE"
            )
        specs[part] = spec
    if len(specs) > 1:
        specs.pop(ALL, None)
    names = listed([os.path.relpath(file, folder.path) for file in files], 3)
    return _made("coco", names, specs) if specs else None


def _images_of(file: Path, folder: Folder) -> Path:
    """The folder of the images of a COCO file: the first usual one that has the first image."""
    stem, part = file.stem, part_of(file.stem)
    names = [stem.removeprefix("instances_"), *(n for n, p in PARTS.items() if p == part), "."]
    bases = dict.fromkeys((folder.path, file.parent))
    usual = [
        base / outer / inner for base in bases for inner in names for outer in ("images", ".", "..")
    ]
    places = [place for place in dict.fromkeys(usual) if place.is_dir()]
    first = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', ends_of(file)[0])
    if first:
        try:
            name = json.loads(first[1])
        except ValueError:
            name = ""
        for place in places:
            found = next((found for _, found in resolve(place, [name])), name)
            if found and (place / found).is_file():
                return Path(os.path.normpath(place))
    return Path(os.path.normpath(places[0] if places else folder.path))


def _yolo(folder: Folder) -> Recognized | None:
    files = [path for name in ("data.yaml", "data.yml") if (path := folder.path / name).is_file()]
    for file in [*files, *folder.ending(".yaml", ".yml")]:
        if content := _data_yaml(file):
            root = folder.path if file in files else file
            specs = _yolo_specs(root, _yaml_parts(content))
            missing = [p for p in specs if p != ALL and not _is_there(file, content, p)]
            specs = {part: spec for part, spec in specs.items() if part not in missing}
            count = plural(len(content["names"]), "class", "classes")
            gone = "".join(f", without the folder of {part}" for part in missing)
            return _made("yolo", f"{file.name} with {count}{gone}", specs)
    labels, images = folder.sub("labels"), folder.sub(*IMAGE_FOLDERS)
    if labels and images:
        parts = {part: Folder(path) for part, path in labels.parts().items()} or {ALL: labels}
        parts = {part: one for part, one in parts.items() if _has(one, YOLO.format, ".txt")}
        evidence = f"{labels.path.name}/*.txt next to {images.path.name}/"
        specs = _yolo_specs(folder.path, parts)
        return _made("yolo", evidence, specs) if parts else None
    if folder.has_images and _has(folder, YOLO.format, ".txt"):
        return _made("yolo", "*.txt next to each image", _yolo_specs(folder.path, ()))
    return None


def _yaml_parts(content: dict[str, Any]) -> list[str]:
    """The parts of a data.yaml without those that are the same images again: YOLO needs `val`, so
    data of one part name it twice."""
    parts = [part for part in ("train", "val", "test") if content.get(part)]
    values = [content[part] for part in parts]
    return [part for i, part in enumerate(parts) if content[part] not in values[:i]]


def _yolo_specs(root: Path, parts: Any) -> dict[str, dict[str, Any]]:
    spec = {"type": TYPES["yolo"], "root": str(root)}
    named = {part: {**spec, "split": part} for part in parts if part != ALL}
    return named or {ALL: spec}


def _data_yaml(file: Path) -> dict[str, Any]:
    """The content of a YOLO dataset's YAML file; empty for another one."""
    try:
        with file.open("rb") as opened:
            content = yaml.safe_load(opened.read(LONGEST_YAML))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    is_data = isinstance(content, dict) and isinstance(content.get("names"), (list, dict))
    return content if is_data and {"train", "val", "nc", "path"} & content.keys() else {}


def is_data_yaml(path: Path) -> bool:
    """Whether it is the YAML file of a YOLO dataset, and not a config."""
    return path.suffix.lower() in (".yaml", ".yml") and bool(_data_yaml(path))


def _is_there(file: Path, content: Mapping[str, Any], part: str) -> bool:
    """Whether a part that a YAML file names is there; lists of paths are not checked."""
    if not isinstance(content[part], str):
        return True
    inside = re.sub(r"^(\.\./)+", "", content[part])  # Roboflow's are relative to elsewhere
    home = content.get("path")
    bases = (file.parent, file.parent / (home if isinstance(home, str) else "."), Path())
    return any((base / name).exists() for base in bases for name in (content[part], inside))


def _voc(folder: Folder) -> Recognized | None:
    inner = folder.sub("annotations", "annotation", "labels", "xml")
    for place in [folder, *([inner] if inner else [])]:
        if _has(place, VOC.format, ".xml"):
            lists = folder.path / "ImageSets" / "Main"
            parts = [p for p in ("train", "val", "test") if (lists / f"{p}.txt").is_file()]
            spec = {"type": TYPES["voc"], "root": str(folder.path)}
            specs = {part: {**spec, "split": part} for part in parts} or {ALL: spec}
            name = "" if place is folder else f"{place.path.name}/"
            return _made("voc", f"{name}*.xml", specs)
    return None


def _cvat(folder: Folder) -> Recognized | None:
    for file in folder.ending(".xml"):
        if (kind := kind_of_file(file)) and kind is CVAT:
            usual = file.name == "annotations.xml"
            spec = {"type": TYPES["cvat"], "root": str(folder.path if usual else file)}
            return _made("cvat", file.name, {ALL: spec})
    return None


def _labelme(folder: Folder) -> Recognized | None:
    inner = folder.sub("annotations", "labels", "json")
    for place in [folder, *([inner] if inner else [])]:
        if _has(place, LABELME.format, ".json"):
            spec = {"type": TYPES["labelme"], "root": str(folder.path)}
            name = "" if place is folder else f"{place.path.name}/"
            return _made("labelme", f"{name}*.json, one for each image", {ALL: spec})
    return None


def _masks(folder: Folder) -> Recognized | None:
    images, maps = folder.sub(*IMAGE_FOLDERS), folder.sub(*MAP_FOLDERS)
    if images is None or maps is None:
        return None
    ours, theirs = images.parts(), maps.parts()
    pairs = {part: (ours[part], theirs[part]) for part in ours if part in theirs}
    specs = {
        part: {"type": TYPES["masks"], "images": str(image), "labels": str(map_)}
        for part, (image, map_) in (pairs or {ALL: (images.path, maps.path)}).items()
        if ".png" in Folder(map_).files and Folder(image).has_images
    }
    evidence = f"{maps.path.name}/*.png next to {images.path.name}/"
    return _made("masks", evidence, specs) if specs else None


def _csv(folder: Folder) -> Recognized | None:
    files = [file for file in folder.ending(".csv") if kind_of_file(file) is CSV]
    specs = {part: spec for file in files for part, spec in _csv_parts(file).items()}
    if len(specs) > 1:
        specs.pop(ALL, None)
    columns = listed([*csv_rows(files[0])[0]], 4) if files else ""
    evidence = f"{listed([file.name for file in files], 3)} with the columns {columns}"
    return _made("csv", evidence, specs) if specs else None


def _csv_parts(file: Path) -> dict[str, dict[str, Any]]:
    """Those of a column `split`, else that of the file's name."""
    spec = {"type": TYPES["csv"], "root": str(file)}
    values = dict.fromkeys(row["split"] for row in csv_rows(file) if row.get("split"))
    return {part_of(v): {**spec, "split": v} for v in values} or {part_of(file.stem): spec}


def _csv_gives(file: str) -> tuple[str, ...]:
    """What the columns of a CSV file give: objects, or classes of images."""
    is_box = {"xmin", "x1", "left", "x", "bboxx"} & csv_rows(Path(file))[0].keys()
    return ("boxes", "labels") if is_box else ("class_id", "identity")


def _class_folders(folder: Folder, least: int = 2) -> Recognized | None:
    """Folders of images, at least so many, that may be named after classes."""
    names = [path.name for path in folder.folders.values()]
    of_others = OF_OTHERS & folder.folders.keys() or any(part_of(n) != ALL for n in names)
    if len(names) < least or folder.has_images or of_others:
        return None
    for path in islice(folder.folders.values(), TRIED):
        inner = Folder(path)
        if not inner.has_images and not any(Folder(p).has_images for p in inner.folders.values()):
            return None
        if inner.folders.keys() & OF_OTHERS or any(detect(inner) for detect in DETECTORS[:-1]):
            return None
    spec = {"type": TYPES["folders"], "root": str(folder.path)}
    return _made("folders", f"{len(names)}: {listed(sorted(names), 5)}", {ALL: spec})


def _has(folder: Folder, format: str, suffix: str) -> bool:
    """Whether one of the first files with that suffix has the format."""
    found = (kind_of_file(file) for file in folder.ending(suffix))
    return any(kind is not None and kind.format == format for kind in found)


DETECTORS: tuple[Callable[[Folder], Recognized | None], ...] = (
    *(_coco, _yolo, _voc, _cvat, _labelme, _masks, _csv, _class_folders),
)


def _file(path: Path) -> Recognized:
    """What one file looks like."""
    where = printable(path)
    if clause := archive(path):
        raise DataError(f"{where} {clause}")
    kind = kind_of_file(path)
    if kind is PANOPTIC:
        return Recognized("coco", "a COCO panoptic file", {ALL: {"annotations": str(path)}})
    if kind is not None and not kind.format:
        raise DataError(f"{where}: it is in the format of {kind.name}: {kind.todo}")
    if kind in (VOC, LABELME, YOLO):
        what = f"is a {kind.name} file of one image"
        raise DataError(f"{where} {what}: name the folder, {printable(path.parent)}")
    if path.suffix.lower() in (".yaml", ".yml") and (content := _data_yaml(path)):
        parts = _yaml_parts(content)
        count = plural(len(content["names"]), "class", "classes")
        return _made("yolo", f"{path.name} with {count}", _yolo_specs(path, parts))
    if kind is CSV:
        return _made(kind.format, path.name, _csv_parts(path))
    if kind is CVAT:
        spec = {"type": TYPES[kind.format], "root": str(path)}
        return _made(kind.format, path.name, {ALL: spec})
    if path.suffix.lower() == ".json":  # whose reader says what is wrong with it
        images = _images_of(path, Folder(path.parent)) if kind_of_json(path) else path.parent
        spec = {"type": TYPES["coco"], "images": str(images), "annotations": str(path)}
        return Recognized("coco", "a COCO annotation file", {ALL: spec})
    raise DataError(f"{where}: the format is not recognized; name it with --from")


def _unknown(folder: Folder) -> str:
    """What a folder that is not recognized has, and what was looked for."""
    counts = Counter({suffix or "no suffix": len(n) for suffix, n in folder.files.items()})
    files = listed([f"{count} {suffix}" for suffix, count in counts.most_common()], 5)
    names = listed(sorted(printable(path.name) for path in folder.folders.values()), 5)
    zips = [p for p in folder.path.iterdir() if archive(p)] if sum(counts.values()) < TRIED else []
    hint = f"; {printable(zips[0].name)} {archive(zips[0])}" if zips else ""
    return (
        f"{printable(folder.path)}: the format is not recognized{hint}; it has the folders {names} "
        f"and the files {files}; known are {', '.join(name for name in NAMES.values())}: "
        "docs/guide/data.md shows their files; name the format (`visionkit data convert "
        "--from`), or the dataset in a config as `data.train: {type: ..., ...}`"
    )
