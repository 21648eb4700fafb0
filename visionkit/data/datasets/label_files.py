"""Datasets in other formats than COCO, read without conversion."""

from __future__ import annotations

from typing import ClassVar, Literal

from visionkit.config.schema import InputPath
from visionkit.data.checks.kinds import Action
from visionkit.data.datasets.coco import Coco
from visionkit.data.files import Links
from visionkit.data.formats.convert import open_reader_index
from visionkit.data.image_io import Exif


class LabelFiles(Coco):
    """The images of a dataset whose labels are in a format that `format` names.

    They become the columns of a COCO file: checks, cache, training and scoring are those of `Coco`.
    """

    format: ClassVar[str]

    def __init__(
        self,
        root: InputPath,
        *,
        split: str | None = None,
        images: InputPath | None = None,
        names: list[str] | None = None,
        classes: list[str] | None = None,
        other_classes: Literal["error", "ignore"] = "error",
        ignore_categories: list[str] | None = None,
        masks: bool | None = None,
        semantic: Literal["files", "paint"] = "files",
        attributes: list[str] | None = None,
        exif: Exif = "apply",
        links: Links = "inside",
        on_fault: dict[str, Action] | None = None,
    ):
        reader, index = open_reader_index(
            self.format, root, split=split, images=images, classes=names, links=links
        )
        self._use(
            index,
            reader.problems.source,
            reader.images,
            classes=classes,
            other_classes=other_classes,
            ignore_categories=ignore_categories,
            masks=masks,
            semantic=semantic,
            attributes=attributes,
            exif=exif,
            links=links,
            on_fault=on_fault,
        )
