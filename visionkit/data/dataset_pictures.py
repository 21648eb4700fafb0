"""All pictures and class maps of a data set that are files, looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visionkit.data.picture_check import PictureFault, find_faults, look_at_all, size_seen
from visionkit.types import Dataset


def examine_dataset(
    dataset: Dataset, name: str = "pictures", *, first: int = 0, step: int = 1
) -> list[PictureFault]:
    """What is wrong with them. An `index` is a place in the data set, where several samples share
    a picture that of the first. Only every `step`-th sample from `first` on is looked at.

    Nothing is found in a data set without `image_path(index)`, such as `idx.Idx`.
    """
    if not hasattr(dataset, "image_path"):
        return []
    places: dict[Path, int] = {}
    for index in range(first, len(dataset), step):
        places.setdefault(dataset.image_path(index), index)
    paths, indices = [*places], [*places.values()]
    sizes, exif = getattr(dataset, "sizes", None), getattr(dataset, "exif", "apply")
    looks = look_at_all(paths, name)
    wanted = None if sizes is None else sizes[indices]
    found = find_faults(paths, looks, wanted, exif)
    faults = [fault._replace(index=indices[fault.index]) for fault in found]
    if hasattr(dataset, "map_path"):
        if wanted is None:
            wanted = [None if look.kind else size_seen(look, exif) for look in looks]
        faults += _faults_of_maps(dataset, name, indices, wanted)
    return sorted(faults, key=lambda fault: fault.index)


def _faults_of_maps(
    dataset: Dataset,
    name: str,
    indices: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
) -> list[PictureFault]:
    """`sizes` are those of the pictures, None where it is not known."""
    named = [
        (index, path, size)
        for index, size in zip(indices, sizes, strict=True)
        if (path := dataset.map_path(index)) is not None
    ]
    if not named:
        return []
    indices, paths, sizes = zip(*named, strict=True)
    looks = look_at_all(paths, f"class maps of {name}")
    colored = getattr(dataset, "colored_maps", False)  # then they may have any mode
    found = find_faults(paths, looks, sizes, "ignore", maps=not colored)
    return [fault._replace(index=indices[fault.index]) for fault in found]
