"""Count what is in data: classes, sizes, overlaps, near duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.config import load_config, missing_paths
from visionkit.config.components import head_class
from visionkit.data.build import open_sources
from visionkit.data.checks.findings import merge_errors
from visionkit.data.coco.annotations import Annotations
from visionkit.data.contracts import original
from visionkit.data.formats.recognize import is_data_yaml
from visionkit.data.image_io import Exif
from visionkit.data.loading.source import iter_splits, split_key
from visionkit.data.resize import ImageSize
from visionkit.data.tools.near_duplicates import Look, look_all, near_groups
from visionkit.data.tools.object_stats import Objects, deciles, describe_objects
from visionkit.data.tools.opened import open_parts
from visionkit.data.tools.suggestions import suggestions
from visionkit.errors import ArgumentError, ConfigError, DataError, printable
from visionkit.runs.terminal import progress_bar
from visionkit.types import IGNORE

SHOWN = 5  # first places of each kind
Record = dict[str, Any]


@dataclass
class Part:
    """One dataset to count.

    split: images that are near duplicates in two parts of different splits are reported.
    """

    name: str
    dataset: Any
    split: str
    image_size: ImageSize | None = None
    heads: list[str] = field(default_factory=list)  # the types that learn from it
    looks: list[Look | None] = field(default_factory=list)  # what each image shows; empty: not read

    @property
    def inner(self) -> Any:
        """The dataset before its classes were matched to others."""
        return original(self.dataset)

    def image_name(self, index: int) -> str:
        names = getattr(self.inner, "file_names", None)
        return printable(names[index]) if names is not None else f"image {index}"

    def sizes(self) -> np.ndarray:
        """(N, 2) h, w of the images whose size is known."""
        known = getattr(self.inner, "sizes", None)
        if known is not None:
            return np.asarray(known)
        seen = {i: one for i, one in enumerate(self.looks) if one is not None and not one.fault}
        return np.array([(one.height, one.width) for one in seen.values()]).reshape(-1, 2)


def data_stats(
    targets: str | Path | Sequence[str | Path],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    images: str | Path | None = None,
    read_images: bool = True,
    allow_plugins: bool = False,
) -> tuple[Record, list[Part]]:
    """What is in the data of a config, or in files of annotations of any format; and the datasets.

    targets: a config, or one or more files or folders of annotations, each a split.
    images: the folder of the images of the files, where it is not found.
    read_images: False does not open images: nothing is known of near duplicates then.

    Raises ConfigError and DataError for what cannot be read; images that are missing or damaged are
    counted.
    """
    names = [targets] if isinstance(targets, (str, Path)) else [*targets]
    if len(names) == 1 and is_config(names[0]):
        if images is not None:
            raise ArgumentError("data stats: --images needs a file; a config names its images")
        parts = _of_config(names[0], overrides, allow_plugins=allow_plugins)
    else:
        if overrides:
            raise ArgumentError("data stats: overrides apply to a config only")
        opened = [one for name in names for one in open_parts(name, images).items()]
        parts = [Part(name, data, name) for name, data in opened]
    for part in parts if read_images else ():
        part.looks = _looks(part)
    described, across = {part.name: describe(part) for part in parts}, across_splits(parts)
    record: Record = {"data": described, "near_duplicates_across": across}
    sizes, heads = ({one.name: getattr(one, k) for one in parts} for k in ("image_size", "heads"))
    record["suggestions"] = [found._asdict() for found in suggestions(record, sizes, heads)]
    return record, parts


def is_config(target: str | Path) -> bool:
    """Whether it is a YAML file that is not a YOLO dataset's, or the name of a shipped config:
    without a suffix, and not a file or folder."""
    path = Path(target)
    named = path.suffix in (".yaml", ".yml") and not path.is_dir() and not is_data_yaml(path)
    return named or not (path.exists() or path.suffix)


def _of_config(target: Any, overrides: Any, *, allow_plugins: bool) -> list[Part]:
    config = load_config(target, overrides, allow_plugins=allow_plugins)
    if missing := missing_paths(config):
        raise ConfigError(*missing)
    sources, errors = open_sources(config, ("train", "val"))
    if errors:
        raise merge_errors(errors)
    return [
        Part(
            split_key(source.name, split),
            dataset,
            split,
            source.image_size,
            [head_class(config, head).__name__ for head in source.feeds],
        )
        for source in sources
        for split, dataset in iter_splits(source)
    ]


def _looks(part: Part) -> list[Look | None]:
    """What each image file shows; None where the file is known to be missing."""
    inner: Any = part.inner
    if not hasattr(inner, "image_path"):
        return []
    absent = getattr(inner, "absent", {})
    here = [index for index in range(len(inner)) if index not in absent]
    if not getattr(inner, "has_images", True):
        return []
    exif: Exif = getattr(inner, "exif", "apply")
    value_range = getattr(inner, "value_range", None)
    paths = [inner.image_path(index) for index in here]
    seen = look_all(paths, f"images of {part.name}", exif, value_range)
    looks: list[Look | None] = [None] * len(inner)
    for index, one in zip(here, seen, strict=True):
        looks[index] = one
    return looks


def describe(part: Part) -> Record:
    """The numbers of one dataset."""
    inner: Any = part.inner
    record: Record = {"images": len(part.dataset), **_unreadable(part)}
    record["image_sizes"] = _image_sizes(part.sizes())
    if isinstance(inner, Annotations) and inner.index.categories:
        objects = Objects.of(inner, getattr(part.dataset, "unlabeled", {}).get("labels", ()))
        if len(objects) or not _has_image_labels(inner):
            record |= describe_objects(objects, part.image_size)
            record["dropped"] = {k: n for k, n in inner.selected.dropped.items() if n}
    record["image_classes"] = _image_classes(inner)
    if "semantic" in inner.keys and hasattr(inner, "semantic_truth") and part.looks:
        record["semantic"] = _semantic(inner, part.name)
    record["near_duplicates"] = _near_duplicates(part)
    return record


def _has_image_labels(inner: Any) -> bool:
    return bool({"class_id", "semantic", "identity"} & {*inner.keys})


def _unreadable(part: Part) -> Record:
    """How many image files are missing or damaged, with the first of them."""
    absent: Mapping[int, str] = getattr(part.inner, "absent", {})
    looks = part.looks
    damaged = {i: one.fault for i, one in enumerate(looks) if one is not None and one.fault}
    if not getattr(part.inner, "has_images", True):
        return {"images_read": False, "missing": 0, "damaged": 0, "unreadable": []}
    shown = [*absent.values()][:SHOWN]
    shown += [f"{part.image_name(i)} {why}" for i, why in [*damaged.items()][:SHOWN]]
    counts = {"missing": len(absent), "damaged": len(damaged)}
    return {"images_read": bool(looks), **counts, "unreadable": shown}


def _image_sizes(sizes: np.ndarray) -> Record:
    """How large the images are, (N, 2) h, w."""
    common = Counter(map(tuple, sizes.tolist())).most_common()
    return {
        "known": len(sizes),
        "distinct": len(common),
        "most_common": [
            {"width": w, "height": h, "images": count} for (h, w), count in common[:SHOWN]
        ],
        "longest_side": deciles(sizes.max(1) if len(sizes) else sizes),
        "aspect_ratio": deciles(sizes[:, 1] / sizes[:, 0].clip(1)),
    }


def _image_classes(inner: Any) -> Record | None:
    """How many images each class has, where images as a whole have classes."""
    if not hasattr(inner, "class_counts") or "class_id" not in inner.classes:
        return None
    counts = inner.class_counts()["class_id"].tolist()
    return dict(zip(inner.classes["class_id"].names, counts, strict=True))


def _semantic(inner: Any, name: str) -> Record:
    """Pixels and images of each class in semantic maps; maps that cannot be read are counted."""
    names = inner.classes["semantic"].names
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    faults: list[str] = []
    ids = getattr(inner, "image_ids", range(len(inner)))
    maps = 0
    for id_ in progress_bar(ids, f"semantic maps of {name}"):
        try:
            labels = inner.semantic_truth(id_)
        except DataError as error:
            faults.append(str(error))
            continue
        if labels is not None:
            counts = np.bincount(np.asarray(labels).ravel(), minlength=256)
            pixels, images, maps = pixels + counts, images + (counts > 0), maps + 1
    total = max(1, int(pixels[:IGNORE].sum()))
    return {
        "maps": maps,
        "unreadable": len(faults),
        "first": faults[:SHOWN],
        "ignored_pixels": int(pixels[IGNORE]),
        "classes": [
            {
                "name": one,
                "pixels": int(pixels[i]),
                "share": round(float(pixels[i]) / total, 6),
                "images": int(images[i]),
            }
            for i, one in enumerate(names)
        ],
    }


def _hashed(part: Part) -> Iterator[tuple[int, int]]:
    """The index and the hash of each image file, of each file once."""
    seen = set()
    for index, one in enumerate(part.looks):
        if one is not None and not one.fault:
            path = str(part.inner.image_path(index))
            if path not in seen:
                seen.add(path)
                yield index, one.hash


def near_places(part: Part) -> list[list[int]]:
    """The indices of near duplicates in one dataset, a list for each group."""
    found = [*_hashed(part)]
    groups = near_groups(np.array([value for _, value in found], np.uint64))
    return [[found[place][0] for place in group] for group in groups]


def _near_duplicates(part: Part) -> Record | None:
    """Groups of images of one dataset; None if they were not read."""
    if not part.looks:
        return None
    groups = near_places(part)
    return {
        "images": sum(map(len, groups)),
        "groups": [[part.image_name(index) for index in group] for group in groups],
    }


def across_splits(parts: Sequence[Part]) -> list[Record]:
    """For each pair of parts of different splits, how many images of the second have a near
    duplicate in the first, with the pairs; pairs of parts without any are not in the list."""
    found = [(part, index, value) for part in parts for index, value in _hashed(part)]
    groups = near_groups(np.array([value for *_, value in found], np.uint64))
    places = {part.name: i for i, part in enumerate(parts)}
    pairs: dict[tuple[int, int], list[list[str]]] = {}
    for group in groups:
        by_part: dict[int, list[str]] = {}
        for part, index, _ in (found[place] for place in group):
            by_part.setdefault(places[part.name], []).append(part.image_name(index))
        for a, b in combinations(sorted(by_part), 2):
            if parts[a].split != parts[b].split:
                pairs.setdefault((a, b), []).extend([by_part[a][0], name] for name in by_part[b])
    return [
        {"parts": [parts[a].name, parts[b].name], "images": len(names), "pairs": names}
        for (a, b), names in sorted(pairs.items())
    ]
