"""The records of a merged file: images of several files, lists of names, labeled classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from visionkit.data.checks.findings import Problems, short
from visionkit.data.coco.ground_truth import INCOMPLETE, NEGATIVE
from visionkit.data.coco.image_classes import SHOWN_KEY, UNKNOWN_KEY
from visionkit.data.coco.index import NAME_LISTS
from visionkit.data.coco.reader import elements, json_file, read_members
from visionkit.data.formats.base import Losses, Reader, Record
from visionkit.data.formats.coco import CocoReader
from visionkit.errors import DataError, printable

if TYPE_CHECKING:
    from visionkit.data.tools.merge import Input

# Keys of an image whose values may differ between files: those of the first file stay.
FREE = ("id", "file_name", "license", "coco_url", "flickr_url", "date_captured")
OWN = ("images", "annotations", "categories")
Members = dict[str, Any]


@dataclass(frozen=True)
class Lists:
    """The lists of names of the merged file, and what the numbers of each input become."""

    names: dict[str, list[str]]  # of `NAME_LISTS`
    image_classes: dict[str, list[int]]  # by the path of the input
    licenses: dict[str, dict[Any, Any]]  # by the path of the input: the new id of each


def other_members(reader: Reader) -> Members:
    """What is at the top of a COCO file, other than images, annotations and categories; of other
    formats the lists of names."""
    if not isinstance(reader, CocoReader):
        return dict(reader.lists)
    with json_file(reader.source, "annotation file") as data:
        skipped = dict.fromkeys(OWN[:2], lambda text: elements(text)[1])
        members = read_members(data, skipped)
    return {key: value for key, value in members.items() if key not in OWN}


def merged_members(
    members: Sequence[Members], paths: Sequence[str], losses: Losses
) -> tuple[Members, Lists]:
    """What the top of the merged file has but records: names and licenses of all files, the rest as
    in the first file that has it; what differs from that is a loss."""
    kept: Members = {}
    names: dict[str, list[str]] = {}
    image_classes: dict[str, list[int]] = {}
    licenses: dict[str, dict[Any, Any]] = {}
    for path, own in zip(paths, members, strict=True):
        for key, value in own.items():
            if key in NAME_LISTS:
                known = names.setdefault(key, [])
                if key == "semantic_classes":
                    _check_semantic(path, known, value)
                known += [name for name in value if name not in known]
                if key == "image_classes":
                    image_classes[path] = [known.index(name) for name in value]
            elif key == "licenses" and isinstance(value, list):
                licenses[path] = _merge_licenses(kept.setdefault(key, []), value)
            elif kept.setdefault(key, value) != value:
                losses.add(
                    "values at the top of files that differ from the first one", f"{path}: {key}"
                )
    return kept, Lists(
        {key: value for key, value in names.items() if value}, image_classes, licenses
    )


def _check_semantic(path: str, known: Sequence[str], value: Sequence[str]) -> None:
    """DataError unless the numbers in the semantic maps mean the same."""
    count = min(len(known), len(value))
    if [*known[:count]] != [*value[:count]]:
        raise DataError(
            f"{printable(path)}: 'semantic_classes' is {short(value)}, but that of an earlier file "
            f"{short(known)}: the numbers in the maps cannot be changed here; write the maps with "
            "the same classes in the same order"
        )


def _merge_licenses(kept: list[Any], value: Sequence[Any]) -> dict[Any, Any]:
    """Add licenses to `kept`; the new id of each."""
    new: dict[Any, Any] = {}
    for one in value:
        if not isinstance(one, Mapping):
            continue
        content = {key: item for key, item in one.items() if key != "id"}
        found = [k["id"] for k in kept if {a: b for a, b in k.items() if a != "id"} == content]
        taken = [k["id"] for k in kept]
        id_ = found[0] if found else one.get("id")
        if not found:
            if id_ in taken or not isinstance(id_, int):
                id_ = max((i for i in taken if isinstance(i, int)), default=0) + 1
            kept.append({**one, "id": id_})
        if isinstance(one.get("id"), int | str):
            new[one["id"]] = id_
    return new


def joined_image(
    places: Sequence[tuple[Input, int]],
    lists: Lists,
    folder: Path,
    out_folder: Path,
    problems: Problems,
    losses: Losses,
) -> Record:
    """The record of an image that one or several files have. What only a later file knows is added;
    a size or a class that differs is added to `problems`, another value to `losses`."""
    record: Record = {}
    for one, row in places:
        own = one.index.images.record(row)
        name = os.path.relpath(os.path.join(os.path.abspath(one.folder), one.names[row]), folder)
        own["file_name"] = name.replace(os.sep, "/")
        _translate(own, one, lists, out_folder, problems)
        for key, value in own.items():
            if key not in (NEGATIVE, INCOMPLETE) and record.setdefault(key, value) != value:
                where, what = own["file_name"], f"'{key}' is {short(record[key])}"
                what += f", but {short(value)} in {one.path}"
                if key in ("height", "width", SHOWN_KEY, "identity", "semantic"):
                    hint = "an image that several files have must be the same in all"
                    problems.add(printable(where), what, hint)
                elif key not in FREE:
                    losses.add(
                        "values of images that differ from an earlier file", f"{where}: {what}"
                    )
    return record


def _translate(own: Record, one: Input, lists: Lists, out_folder: Path, problems: Problems) -> None:
    """Change what refers to a list at the top of the file, or to a file next to it."""
    places = lists.image_classes.get(one.path, [])
    for key in (SHOWN_KEY, UNKNOWN_KEY):
        value = own.get(key)
        if isinstance(value, list):
            own[key] = [places[number] for number in value]
        elif value is not None:
            own[key] = places[value]
    if "license" in own:
        licenses = lists.licenses.get(one.path, {})
        if isinstance(own["license"], int | str):
            own["license"] = licenses.get(own["license"], own["license"])
    if name := own.get("semantic"):
        try:
            own["semantic"] = moved_map(one.index.path.parent, name, out_folder)
        except DataError as error:
            problems.add("", error)


def moved_map(folder: Path, name: str, new_folder: Path) -> str:
    """The name of a semantic map of an annotation file in `folder`, for one in `new_folder`.
    DataError if the map is not below that."""
    path = os.path.join(os.path.abspath(folder), name)
    found = os.path.relpath(path, os.path.abspath(new_folder)).replace(os.sep, "/")
    if found.startswith("../"):
        raise DataError(
            f"the semantic map {printable(path)} is not below the folder of the new file: write "
            "that to a folder above the maps"
        )
    return found


class Labels(NamedTuple):
    """The names of the classes that one file labels in an image."""

    full: set[str]  # each object
    some: set[str]  # some objects


def labels_of(one: Input, row: int, classes: set[str] | None) -> Labels:
    """The classes that an image of a file is labeled for, by its `NEGATIVE` and `INCOMPLETE` lists
    as in LVIS; without these for `classes`, by default those that the file lists."""
    extra = one.index.images.extra(row) if {NEGATIVE, INCOMPLETE} & {*one.index.image_keys} else {}
    some = {one.classes[id_] for id_ in extra.get(INCOMPLETE) or ()}
    full = {*one.classes.values()} if classes is None else classes
    if extra.get(NEGATIVE) is not None:
        full = {one.classes[id_] for id_ in extra[NEGATIVE]}
        full |= {one.class_of(at) for at in one.objects_of(row)}
    return Labels(full - some, some)


def labeled_keys(
    known: Sequence[Labels], present: Collection[str], ids: Mapping[str, int]
) -> Record:
    """The keys of an image record that say for which classes it is labeled; none if for all."""
    full = set().union(*(one.full for one in known))
    some = set().union(*(one.some for one in known)) - full
    if full == {*ids}:
        return {}
    record = {NEGATIVE: sorted(ids[name] for name in full - {*present})}
    return record | ({INCOMPLETE: sorted(ids[name] for name in some)} if some else {})
