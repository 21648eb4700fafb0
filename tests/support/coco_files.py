"""A small COCO file with sparse ids, and a way to write such files with their images."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from visionkit.data.datasets.coco import Coco

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def small():
    """Two images, ids and categories sparse and unsorted, the second without objects."""
    rle = coco_mask.encode(np.asfortranarray(np.eye(10, 20, dtype=np.uint8)))
    return {
        "images": [
            {"id": 70, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 3, "file_name": "sub/b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 0, "image_id": 70, "category_id": 90, "bbox": [2, 2, 6, 6], "area": 33.5,
             "iscrowd": 0, "segmentation": SQUARE},
            {"id": 5, "image_id": 70, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 10,
             "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": rle["counts"].decode()}},
        ],
        "categories": [
            {"id": 90, "name": "dog"}, {"id": 0, "name": "cat"}, {"id": 1, "name": "ox"},
        ],
    }  # fmt: skip


def save(folder, data, **options):
    """The dataset of that JSON, with gray images of the sizes it names."""
    for record in data["images"]:
        path = folder / "images" / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (record["width"], record["height"]), 50).save(path)
    (folder / "a.json").write_text(json.dumps(data))
    return Coco(str(folder / "images"), str(folder / "a.json"), **options)
