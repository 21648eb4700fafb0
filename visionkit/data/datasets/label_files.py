"""Datasets in other formats than COCO, read without conversion."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

from visionkit.config.schema import InputPath
from visionkit.data.checks.kinds import Action
from visionkit.data.datasets.coco import Coco
from visionkit.data.files import Links
from visionkit.data.formats.convert import open_reader_index
from visionkit.data.image_io import Exif

log = logging.getLogger("visionkit")


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
            self.format, root, split=split, images=images, classes=names, links=links, exif=exif
        )
        if reader.losses.counts:
            found = [f"{count} {kind}" for kind, count in reader.losses.counts.items()]
            log.warning("%s: not read: %s", reader.problems.source, "; ".join(found))
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


class Csv(LabelFiles):
    """Images with a CSV file: the class of each image, a column for each class, or boxes.

    The header says what the file has:

    - `file,label`: one class for each image, which is also its identity
    - `file,cat,dog,...`: any number of classes; 1 yes, 0 no, -1 or nothing: not known. A head needs
      `multilabel: true`
    - `file,label,xmin,ymin,xmax,ymax`, or `x1,y1,x2,y2`, or `x,y,width,height`: a row for each
      object, in pixels

    Separators are commas, semicolons or tabs. All bad rows are listed with their line.

    root: the CSV file.
    split: read only the rows with this in the column `split`.
    images: the folder of the images; by default that of the file, or `images` in it.
    names: class names, where the file has only numbers or they are to have this order.
    classes and the other arguments: as in `Coco`, of boxes.
    """

    format = "csv"


class Cvat(LabelFiles):
    """The images and labels of CVAT for images 1.1: `annotations.xml` or its folder.

    Boxes, polygons, masks and ellipses are objects; shapes with one `group_id` and label are one.
    The attributes are those of the labels, and `occluded`; tags are the classes of images.

    root: the file or folder. The images are in its folder `images`, or next to the file.
    split: the subset to read; by default all.
    images: the folder of the images, if they are elsewhere.
    names: all labels, in order; by default those of the file.
    classes and the other arguments: as in `Coco`.
    """

    format = "cvat"


class LabelMe(LabelFiles):
    """The images and labels of a folder of LabelMe's JSON files.

    Polygons, rectangles, circles and masks are objects; shapes with one `group_id` and label are
    one. Flags are attributes; the flag `iscrowd` marks crowd regions.

    root: the folder.
    split: the folder in it to read; by default all.
    images: the folder of the images, if they are elsewhere than next to the JSON files.
    names: all labels, in order; by default those of `labels.txt`, then others sorted.
    classes and the other arguments: as in `Coco`.
    """

    format = "labelme"


class Voc(LabelFiles):
    """The images and labels of Pascal VOC: a folder with `Annotations`, or of XML files next to
    images.

    `difficult`, `truncated`, `occluded` and `pose` are attributes; difficult objects count as any
    other. Where there is a folder `SegmentationObject`, its masks are read.

    root: the folder, such as `VOCdevkit/VOC2012`.
    split: the list `ImageSets/Main/<split>.txt` or the folder to read; by default all.
    images: the folder of the images; by default `JPEGImages`.
    names: all classes, in order; by default those that occur, sorted.
    classes and the other arguments: as in `Coco`.
    """

    format = "voc"


class Yolo(LabelFiles):
    """The images and labels of a YOLO dataset: a folder with images and text files, or its
    `data.yaml`.

    Lines of 4 numbers are boxes, longer ones polygons. Images without a text file have no objects.

    root: the folder or file.
    split: "train", "val" or "test"; by default all images.
    images: the folder of the images, if they are elsewhere.
    names: all classes by number; by default those of `data.yaml` or `classes.txt`.
    classes and the other arguments: as in `Coco`.
    """

    format = "yolo"
