"""A COCO file as the other formats see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.data.coco.index import NAME_LISTS, open_index
from visionkit.data.formats.base import Reader, Record


class CocoReader(Reader):
    """The records of a COCO JSON file, unchanged. Faults are known before `read`, which raises them
    unless `skip_bad` drops their objects."""

    name = "COCO"

    def __init__(self, source: str | Path, **options: Any):
        super().__init__(source, **options)
        self.index = open_index(source)
        faults = self.index.faults.findings + self.index.mask_faults.findings
        self._dropped: set[int] = set()  # rows of objects
        for fault in faults:
            if self.skip_bad and fault.place is not None and fault.place.list == "annotations":
                self._dropped.add(fault.place.index)
                self.skipped[fault.kind] += 1
            else:
                self.problems.findings.append(fault)
        self.categories = self.index.categories
        self.lists = {key: self.index.names[key] for key in NAME_LISTS if self.index.names[key]}

    def files(self) -> list[Path]:
        return [self.source]

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        self.problems.raise_any()  # writers get sound records
        images, objects = self.index.images, self.index.objects
        rows = objects.rows_by_image()
        negative = set(np.flatnonzero((objects.bbox[:, 2:] < 0).any(1)).tolist())
        for row in sorted(negative - self._dropped):
            self.losses.add("objects whose boxes have a negative side", f"annotations[{row}]")
        starts = np.searchsorted(objects.image[rows], np.arange(len(images.ids) + 1))
        for i in range(len(images.ids)):
            own = rows[starts[i] : starts[i + 1]].tolist()
            own = [row for row in own if row not in self._dropped and row not in negative]
            yield images.record(i), [objects.record(row) for row in own]
        for row in rows[: starts[0]].tolist():  # of no image
            if row not in self._dropped:
                self.losses.add("objects of unknown images", f"annotations[{row}]")
