"""What a run uses of its data: data.json in the run directory, and one line a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from visionkit.data.checks.findings import DONE, Finding, count_findings, no_findings
from visionkit.data.checks.kinds import FINDING_KINDS, title
from visionkit.data.loading.source import Source
from visionkit.errors import plural
from visionkit.types import Dataset

VERSION = 1  # of data.json


def data_used(
    sources: Iterable[Source],
    across: Iterable[Finding],
    images: Mapping[str, Iterable[Finding]] | None = None,
) -> dict[str, Any]:
    """The content of data.json: each data set, with what was found in its `images`, by
    `split_key`; and how often each kind of `across`, which is what was found about data sets
    together, occurs."""
    kinds: dict[str, int] = {}
    for found in across:
        kinds[found.kind] = kinds.get(found.kind, 0) + 1
    found = {
        source.name: {
            split: describe(dataset, (images or {}).get(split_key(source.name, split), ()))
            for split, dataset in iter_splits(source)
        }
        for source in sources
    }
    return {"version": VERSION, "sources": found, "cross_split": kinds}


def describe(dataset: Dataset, images: Iterable[Finding] = ()) -> dict[str, Any]:
    """Images and objects that are used, what was left out, fixed, and kept though something is
    wrong with it, by kind; a hash of the content; the class lists with the data's own ids."""
    tallied = dataset.counts() if hasattr(dataset, "counts") else no_findings()
    looked = count_findings(found for found in images if found.action != "error")
    tallied = {done: kinds | looked[done] for done, kinds in tallied.items()}
    objects = getattr(dataset, "num_objects", None)
    unused = dataset.num_unused() if hasattr(dataset, "num_unused") else 0
    if unused:
        objects -= unused
        tallied["dropped"]["unlabeled-class"] = unused
    return {
        "images": len(dataset),
        "objects": objects,
        **tallied,
        "fingerprint": fingerprint(dataset),
        "classes": {
            key: dict(zip(classes.names, classes.ids, strict=True))
            for key, classes in dataset.classes.items()
        },
    }


def fingerprint(dataset: Dataset) -> str | None:
    """Of annotations or of labels the hash of their content, of folders that of the file names."""
    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint
    names = getattr(dataset, "file_names", None)
    if names is None:
        return None
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def iter_splits(source: Source) -> Iterator[tuple[str, Dataset]]:
    """The data sets of a source by the name of their split."""
    for split in ("train", "val"):
        if getattr(source, split) is not None:
            yield split, getattr(source, split)


def line(where: str, said: dict[str, Any]) -> str:
    """One data set in words: "data.train: 8 images, 30 objects; left out: 2 boxes ..."."""
    objects = "" if said["objects"] is None else f", {plural(said['objects'], 'object')}"
    parts = [f"{where}: {plural(said['images'], 'image')}{objects}"]
    for done, label in zip(DONE.values(), ("left out", "fixed", "to look at"), strict=True):
        counts = [
            f"{count} {title(kind)}"
            for kind, count in said[done].items()
            if kind not in FINDING_KINDS
            or FINDING_KINDS[kind].severity != "note"
            or done == "dropped"
        ]
        parts += [f"{label}: {', '.join(counts)}"] if counts else []
    return "; ".join(parts)


def lines(used: dict[str, Any]) -> list[str]:
    """One for each data set."""
    return [
        line(split_key(name, split), said)
        for name, splits in used["sources"].items()
        for split, said in splits.items()
    ]


def across_lines(across: Iterable[Finding]) -> list[str]:
    """One for each kind of warning about data sets together, with the first of them."""
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for found in across:
        if found.severity != "note":
            by_kind.setdefault((found.kind, found.file), []).append(found)
    return [
        f"{file}: {found[0].message}{f', and {len(found) - 1} more' * (len(found) > 1)}: "
        f"{found[0].remedy}"
        for (_, file), found in by_kind.items()
    ]


def split_key(source: str, split: str) -> str:
    """The key of a data set in the config; of an annotation file just that word."""
    if split == "annotations":
        return split
    return f"data.{split}" if source == "main" else f"data.{source}.{split}"
