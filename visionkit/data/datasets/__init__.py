"""Datasets: what `type:` can name under `data.train` and `data.val`."""

from visionkit.data.datasets.coco import Coco, Crops
from visionkit.data.datasets.folder import ImageFolder, Images
from visionkit.data.datasets.idx import Idx
from visionkit.data.datasets.label_files import Csv, Cvat, LabelMe, Voc, Yolo
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.data.datasets.shapes import Shapes

__all__ = [
    "Coco",
    "Crops",
    "Csv",
    "Cvat",
    "Idx",
    "ImageFolder",
    "Images",
    "LabelMaps",
    "LabelMe",
    "Shapes",
    "Voc",
    "Yolo",
]
