"""Before training: all pictures of a run looked at, and what is said about them."""

from __future__ import annotations

import logging
from itertools import chain

from visionkit import distributed
from visionkit.build import section_of
from visionkit.config import Config
from visionkit.data.dataset_pictures import examine_dataset
from visionkit.data.picture_check import PictureFault
from visionkit.data.problems import Problems
from visionkit.data.sources import Source, record_of
from visionkit.data.substitutes import allowed

log = logging.getLogger("visionkit")


def check_pictures(config: Config, sources: list[Source]) -> dict[str, list[PictureFault]]:
    """Look at the pictures of all sources that want it; the processes share the work.

    DataError lists those that cannot be used, but for training pictures that may be skipped. These
    are counted in the log, and so is what reading the others loses. Returns all that was found, by
    section: `data.train`, for example.
    """
    problems, found = Problems("pictures"), {}
    for source in sources:
        spec = config.data[source.name]
        for split, dataset in {"train": source.train, "val": source.val}.items():
            if dataset is None or not spec.check_pictures:
                continue
            section = section_of(source.name, split)
            mine = examine_dataset(
                dataset, section, first=distributed.rank(), step=distributed.world_size()
            )
            faults = found[section] = sorted(chain.from_iterable(distributed.gather(mine)))
            broken = [fault for fault in faults if fault.severity == "error"]
            if source.skip_broken and split == "train" and len(broken) <= allowed(len(dataset)):
                _tell_broken(section, broken)
            else:
                for fault in broken:
                    problems.add(f"{section}{record_of(dataset, fault.index)}", fault.message)
            _tell_others(section, faults)
    problems.raise_any()
    return found


def _tell_broken(section: str, broken: list[PictureFault]) -> None:
    for fault in broken if distributed.rank() == 0 else ():
        log.warning("%s: will be replaced by another: %s", section, fault.message)


def _tell_others(section: str, faults: list[PictureFault]) -> None:
    """One line for all that have the same."""
    groups: dict[str, list[PictureFault]] = {}
    for fault in faults if distributed.rank() == 0 else ():
        if fault.severity != "error":
            groups.setdefault(fault.kind, []).append(fault)
    for alike in groups.values():
        level = logging.WARNING if alike[0].severity == "warning" else logging.INFO
        others = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
        log.log(level, "%s: %s%s", section, alike[0].message, others)
