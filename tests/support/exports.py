"""Small exports of annotation tools, written by hand after their documented layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog"]
SIZE = (32, 24)  # width, height


def image(path: Path, seed: int = 0) -> Path:
    """An image of noise, which differs for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def text(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(names: list[str], first_category: int = 1) -> dict[str, Any]:
    """A box in each image, of the two classes in turn."""
    width, height = SIZE
    return {
        "info": {"description": "exported"},
        "licenses": [{"id": 1, "name": "x"}],
        "categories": [{"id": first_category + i, "name": n} for i, n in enumerate(CLASSES)],
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height, "license": 1}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": first_category + i % 2,
                "bbox": [4, 4, 12, 10],
                "area": 120,
                "segmentation": [[4, 4, 16, 4, 16, 14, 4, 14]],
                "iscrowd": 0,
            }
            for i in range(len(names))
        ],
    }


def images(folder: Path, count: int, stem: str = "p", suffix: str = ".jpg") -> list[str]:
    return [image(folder / f"{stem}{i}{suffix}", i).name for i in range(count)]


def roboflow_coco(root: Path, parts: tuple[str, ...] = ("train", "valid", "test")) -> Path:
    """Images and JSON side by side; a root category 0 that has no object."""
    for n, part in enumerate(parts):
        stem = f"{part}_jpg.rf.{n}123456789abcdef"
        content = coco(images(root / part, 2, stem), first_category=1)
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        text(root / part / "_annotations.coco.json", content)
    text(root / "README.roboflow.txt", "pets - v1\n==============================\n")
    text(root / "README.dataset.txt", "# pets\nhttps://example.com\n")
    return root


def yolo_pair(folder: Path, count: int, labels: Path | None = None, stem: str = "p") -> None:
    """Images in a folder, and their labels next to it or elsewhere."""
    for i, name in enumerate(images(folder, count, stem)):
        lines = f"{i % 2} 0.3125 0.375 0.375 0.416667\n"
        place = labels or folder.parent / "labels"
        text(place / f"{Path(name).stem}.txt", lines if i else lines + "\n")


def roboflow_yolo(root: Path, parts: tuple[str, ...] = ("train", "valid")) -> Path:
    """Paths in data.yaml that are relative to another folder, and a part that is not there."""
    for part in parts:
        yolo_pair(root / part / "images", 3, stem=part)
    text(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['cat', 'dog']\n\nroboflow:\n  workspace: w\n  version: 1\n",
    )
    text(root / "README.roboflow.txt", "pets\n")
    return root


def ultralytics(root: Path) -> Path:
    """`names` as a map, images/PART next to labels/PART, an empty `test:`, another file name."""
    for part in ("train", "val"):
        yolo_pair(root / "images" / part, 3, root / "labels" / part, stem=part)
    text(
        root / "pets.yaml",
        "path: pets # dataset root dir\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  0: cat\n  1: dog\n",
    )
    return root


VOC = """<annotation>
  <folder>{folder}</folder><filename>{name}</filename>
  <size><width>32</width><height>24</height><depth>3</depth></size><segmented>0</segmented>
  <object><name>{class_name}</name><difficult>0</difficult>
    <bndbox><xmin>5</xmin><ymin>5</ymin><xmax>16</xmax><ymax>14</ymax></bndbox></object>
</annotation>
"""


def voc(folder: Path, names: list[str], stem_of: str = "") -> None:
    for i, name in enumerate(names):
        content = VOC.format(folder=folder.name, name=name, class_name=CLASSES[i % 2])
        text(folder / f"{Path(name).stem}.xml", content)


def voc_devkit(root: Path) -> Path:
    """VOCdevkit/VOC2012 with the lists of its parts and folders that hold no boxes."""
    home = root / "VOCdevkit" / "VOC2012"
    names = images(home / "JPEGImages", 4)
    voc(home / "Annotations", names)
    for part, chosen in (("train", names[:3]), ("val", names[3:]), ("trainval", names)):
        lines = "".join(f"{Path(name).stem}\n" for name in chosen)
        text(home / "ImageSets" / "Main" / f"{part}.txt", lines)
    return root


def voc_flat(root: Path) -> Path:
    """XML next to each image, as labelImg writes it."""
    voc(root, images(root, 3))
    return root


def roboflow_voc(root: Path) -> Path:
    for part in ("train", "valid"):
        voc(root / part, images(root / part, 3, part))
    return root


def cvat(root: Path) -> Path:
    """CVAT for images 1.1: annotations.xml next to images/."""
    names = images(root / "images", 2)
    records = "".join(
        f'<image id="{i}" name="{name}" width="32" height="24"><box label="{CLASSES[i]}" '
        'source="manual" occluded="0" xtl="4.00" ytl="4.00" xbr="16.00" ybr="14.00" z_order="0">'
        "</box></image>"
        for i, name in enumerate(names)
    )
    labels = "".join(f"<label><name>{n}</name><attributes/></label>" for n in CLASSES)
    text(
        root / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"<meta><task><labels>{labels}</labels></task></meta>{records}</annotations>\n",
    )
    return root


def labelme_file(name: str, class_name: str) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": [
            {
                "label": class_name,
                "points": [[4.0, 4.0], [16.0, 14.0]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {},
            }
        ],
        "imagePath": name,
        "imageData": None,
        "imageHeight": 24,
        "imageWidth": 32,
    }


def labelme(root: Path) -> Path:
    """A JSON file next to each image."""
    for i, name in enumerate(images(root, 3)):
        text(root / f"{Path(name).stem}.json", labelme_file(name, CLASSES[i % 2]))
    return root


def label_studio(root: Path) -> Path:
    """result.json with names from elsewhere, categories from 0, and images/."""
    names = images(root / "images", 3, "0a1b2c3d-p")
    content = coco([f"images/{name}" for name in names], first_category=0)
    text(root / "result.json", content)
    return root


def class_folders(root: Path, count: int = 3) -> Path:
    for number, name in enumerate(CLASSES):
        for i in range(count):
            image(root / name / f"{name}{i}.jpg", 10 * number + i)
    return root


def split_class_folders(root: Path) -> Path:
    class_folders(root / "train")
    class_folders(root / "val", 2)
    return root


def label_maps(images_: Path, maps: Path, count: int = 4) -> None:
    """A map next to each image: the class of a left part, and of the rest."""
    maps.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(images(images_, count)):
        values = np.zeros(SIZE[::-1], np.uint8)
        values[:, : 8 + 4 * i] = 1
        Image.fromarray(values).save(maps / f"{Path(name).stem}.png")


def masks(root: Path, count: int = 4) -> Path:
    """images/ and masks/ with classes.txt."""
    label_maps(root / "images", root / "masks", count)
    text(root / "classes.txt", "background\npet\n")
    return root


def csv(root: Path) -> Path:
    names = images(root / "images", 3)
    rows = [f"{name},{CLASSES[i % 2]}" for i, name in enumerate(names)]
    text(root / "labels.csv", "\n".join(["file,label", *rows]) + "\n")
    return root


def left_by_systems(root: Path) -> Path:
    """What macOS, Windows and Synology leave in a folder."""
    for name in ("__MACOSX/._a.jpg", "@eaDir/a.jpg/x.jpg"):
        text(root / name, "x")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._data.yaml"):
        text(root / name, "x")
    return root
