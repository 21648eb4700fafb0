"""Open a file of annotations in any format, with those of its images that are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import Problems
from visionkit.data.coco.index import CocoIndex
from visionkit.data.datasets.coco import Coco
from visionkit.data.files import Links
from visionkit.data.formats.base import Reader
from visionkit.data.formats.coco import CocoReader
from visionkit.data.formats.convert import read_index_of
from visionkit.data.formats.detect import open_reader, recognize
from visionkit.data.tools.image_folder import find_images
from visionkit.errors import ArgumentError, printable


class LabeledFile(Coco):
    """A dataset of annotations in any format. Images that are not at hand are listed in `absent`
    instead of being errors.

    images: their folder; by default the one that the format names or, for COCO, that is found near
        the file.
    split: the part of the data to read; by default all.
    """

    def __init__(
        self, source: str | Path, images: str | Path | None = None, split: str | None = None
    ):
        reader, index = open_any(source, images, split)
        self.source = str(source)
        self.absent: dict[int, str] = {}  # by the row of the image, why
        folder = images_of(reader, index, images)
        self.has_images = folder is not None
        self._use(
            index,
            reader.problems.source,
            folder or Path(source).absolute().parent,
            classes=None,
            other_classes="error",
            ignore_categories=None,
            masks=None,
            semantic="files",
            attributes=None,
            exif="apply",
            links="inside",
            on_fault=None,
        )

    def _find_files(self, images: Path, problems: Problems, links: Links) -> None:
        found = Problems(problems.source, problems.file)
        super()._find_files(images, found, links)
        for fault in found.findings:
            if fault.place is None:
                problems.findings.append(fault)
            elif fault.key == "semantic":
                self.semantic_names[fault.place.index] = ""
                self.absent.setdefault(fault.place.index, fault.message)
            else:
                self.absent[fault.place.index] = fault.message


def open_parts(source: str | Path, images: str | Path | None = None) -> dict[str, LabeledFile]:
    """A file or folder of annotations, or each part of a folder with several parts, such as
    `train`, by name."""
    parts = recognize(source).parts
    if len(parts) < 2:
        return {str(source): LabeledFile(source, images)}
    found = {}
    for part, spec in parts.items():
        name = f"{source} {part}"
        if "annotations" in spec:
            found[name] = LabeledFile(spec["annotations"], images or spec["images"])
        else:
            found[name] = LabeledFile(source, images, part)
        found[name].source = name
    return found


def open_any(
    source: str | Path, images: str | Path | None = None, split: str | None = None
) -> tuple[Reader, CocoIndex]:
    """The reader of annotations whose format is recognized, and the records as a COCO index.
    DataError with all malformed records."""
    path = Path(source)
    if images is not None and not Path(images).is_dir():
        raise ArgumentError(f"--images: {printable(images)} is not a folder")
    options: dict[str, Any] = {"images": images, "split": split}
    reader = open_reader(recognize(path).format, path, **options)
    if isinstance(reader, CocoReader):
        reader.problems.raise_any()
        return reader, reader.index
    return reader, read_index_of(reader)


def images_of(reader: Reader, index: CocoIndex, given: str | Path | None) -> Path | None:
    """The folder of the images; None if it is not found."""
    if given is not None:
        return Path(given)
    if not isinstance(reader, CocoReader) or reader.images != reader.source:
        return reader.images
    return find_images(reader.source, index.images.names.texts())
