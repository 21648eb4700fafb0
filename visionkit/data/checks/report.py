"""Before training: all images of a run looked at, and what is said about them."""

from __future__ import annotations

import logging
from itertools import chain

from visionkit.config import Config
from visionkit.data.checks.findings import Finding, Place, Problems
from visionkit.data.checks.images import examine_dataset
from visionkit.data.checks.summary import iter_splits, split_key
from visionkit.data.loading.source import Source, max_unreadable
from visionkit.distributed import collectives
from visionkit.types import Dataset

log = logging.getLogger("visionkit")


def check_images(config: Config, sources: list[Source]) -> dict[str, list[Finding]]:
    """Look at the images of all sources that want it; the processes share the work.

    DataError lists those that cannot be used, but for training images that may be skipped. These
    are counted in the log, and so is what reading the others loses. Returns all that was found, by
    section: `data.train`, for example.
    """
    problems, found = Problems("images"), {}
    for source in sources:
        for split, dataset in iter_splits(source):
            if not config.data[source.name].check_images:
                continue
            section = split_key(source.name, split)
            mine = image_findings(
                dataset, section, first=collectives.rank(), step=collectives.world_size()
            )
            all_found = sorted(chain.from_iterable(collectives.gather(mine)), key=_order)
            all_found = forgiven(source, split, all_found)
            _tell_broken(section, [fault for fault in all_found if fault.action == "drop"])
            problems.findings += [fault for fault in all_found if fault.severity == "error"]
            _tell_others(section, [fault for fault in all_found if fault.action == "keep"])
            found[section] = all_found
    problems.raise_any()
    return found


def image_findings(
    dataset: Dataset, section: str, *, first: int = 0, step: int = 1
) -> list[Finding]:
    """What is wrong with the images of a data set, for every `step`-th sample from `first` on."""
    ids = getattr(dataset, "image_ids", None)
    return [
        Finding(
            kind=f"image-{fault.kind.replace(' ', '-')}",
            message=fault.message,
            file=section,
            place=Place("images", fault.index, None if ids is None else ids[fault.index]),
            action="error" if fault.severity == "error" else "keep",
            severity=fault.severity,
        )
        for fault in examine_dataset(dataset, section, first=first, step=step)
    ]


def forgiven(source: Source, split: str, found: list[Finding]) -> list[Finding]:
    """The same, where training images that are broken may be skipped as what is skipped."""
    broken = [fault for fault in found if fault.severity == "error"]
    if (
        not source.skip_unreadable
        or split != "train"
        or len(broken) > max_unreadable(len(source.train))
    ):
        return found
    return [
        fault._replace(action="drop", severity="warning") if fault in broken else fault
        for fault in found
    ]


def _order(found: Finding) -> int:
    return found.place.index


def _tell_broken(section: str, broken: list[Finding]) -> None:
    for fault in broken if collectives.rank() == 0 else ():
        log.warning("%s: will be replaced by another: %s", section, fault.message)


def _tell_others(section: str, faults: list[Finding]) -> None:
    """One line for all that have the same."""
    groups: dict[str, list[Finding]] = {}
    for fault in faults if collectives.rank() == 0 else ():
        if fault.severity != "error":
            groups.setdefault(fault.kind, []).append(fault)
    for alike in groups.values():
        level = logging.WARNING if alike[0].severity == "warning" else logging.INFO
        others = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
        log.log(level, "%s: %s%s", section, alike[0].message, others)
