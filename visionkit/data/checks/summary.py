"""Which data a run uses: data.json in the run directory, and one line for each dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from visionkit.data.checks.findings import DONE, Finding, count_findings
from visionkit.data.checks.kinds import FINDING_KINDS, title
from visionkit.data.loading.source import Source
from visionkit.errors import plural
from visionkit.types import Dataset

VERSION = 1  # of data.json


def data_summary(
    sources: Iterable[Source],
    cross_split: Iterable[Finding],
    images: Mapping[str, Iterable[Finding]] | None = None,
) -> dict[str, Any]:
    """The content of data.json: each dataset, with the findings about its images by `split_key`,
    and the number of findings of each kind about training and validation data together."""
    described = {
        source.name: {
            split: dataset_summary(dataset, (images or {}).get(split_key(source.name, split), ()))
            for split, dataset in iter_splits(source)
        }
        for source in sources
    }
    kinds = dict(Counter(found.kind for found in cross_split))
    return {"version": VERSION, "sources": described, "cross_split": kinds}


def dataset_summary(dataset: Any, images: Iterable[Finding] = ()) -> dict[str, Any]:
    """How many images and objects are used; what was dropped, fixed, and kept although something
    is wrong with it, by kind; a hash of the content; the class lists with the data's own ids."""
    counts = dataset.counts() if hasattr(dataset, "counts") else count_findings()
    of_images = count_findings(images)
    counts = {done: kinds | of_images[done] for done, kinds in counts.items()}
    objects: Any = getattr(dataset, "num_objects", None)
    if unused := getattr(dataset, "num_unused", 0):
        objects -= unused
        counts["dropped"]["unlabeled-class"] = unused
    return {
        "images": len(dataset),
        "objects": objects,
        **counts,
        "fingerprint": fingerprint(dataset),
        "classes": {
            key: dict(zip(classes.names, classes.ids, strict=True))
            for key, classes in dataset.classes.items()
        },
    }


def fingerprint(dataset: Dataset) -> str | None:
    """A hash of the annotations or labels; for folders, of the file names."""
    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint
    names = getattr(dataset, "file_names", None)
    if names is None:
        return None
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def iter_splits(source: Source) -> Iterator[tuple[str, Dataset]]:
    """The datasets of a source, each after the name of its split."""
    for split in ("train", "val"):
        if getattr(source, split) is not None:
            yield split, getattr(source, split)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """One line for each dataset: `data.train: 8 images, 30 objects; dropped: ...`."""
    return [
        _summary_line(split_key(name, split), dataset)
        for name, splits in summary["sources"].items()
        for split, dataset in splits.items()
    ]


def _summary_line(key: str, dataset: dict[str, Any]) -> str:
    objects = "" if dataset["objects"] is None else f", {plural(dataset['objects'], 'object')}"
    parts = [f"{key}: {plural(dataset['images'], 'image')}{objects}"]
    for done in DONE.values():
        counts = [
            f"{title(kind)} ({count})"
            for kind, count in dataset[done].items()
            if kind not in FINDING_KINDS
            or FINDING_KINDS[kind].severity != "note"
            or done == "dropped"
        ]
        if counts:
            parts.append(f"{done}: {', '.join(counts)}")
    return "; ".join(parts)


def cross_split_lines(findings: Iterable[Finding]) -> list[str]:
    """One line for each kind of warning about training and validation data together, with the
    first finding."""
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for found in findings:
        if found.severity != "note":
            by_kind.setdefault((found.kind, found.file), []).append(found)
    return [
        f"{file}: {found[0].message}{f', and {len(found) - 1} more' * (len(found) > 1)}: "
        f"{found[0].hint}"
        for (_, file), found in by_kind.items()
    ]


def split_key(source: str, split: str) -> str:
    """The key of a dataset in the config; `annotations` for an annotation file alone."""
    if split == "annotations":
        return split
    return f"data.{split}" if source == "main" else f"data.{source}.{split}"
