"""Generate annotation and result files of the size of COCO val2017, without images.

    python scripts/bench/coco_scale.py OUT [--images 5000] [--objects 36000]

Writes truth.json (objects with polygons, 1 % of them crowd regions as run lengths), bbox.json
(eight detections per object on average, most of them near an object) and segm.json (three RLE
masks per object, its polygon moved and scaled) into OUT.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from arguments import count, start
from pycocotools import mask as coco_mask

WIDTH, HEIGHT, CLASSES = 640, 480, 80


def make_truth(num_images: int, num_objects: int, rng: np.random.Generator) -> dict[str, Any]:
    """Objects of log-normal size at random places, outlined by uneven polygons."""
    images = [
        {"id": 11 + 7 * i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for i in range(num_images)
    ]
    categories = [{"id": 1 + k + k // 10, "name": f"class {k}"} for k in range(CLASSES)]
    annotations = []
    for number in range(1, num_objects + 1):
        w, h = np.exp(rng.normal(4, 0.8, 2)).clip(8, 400)
        center = rng.uniform((w / 2, h / 2), (WIDTH - w / 2, HEIGHT - h / 2))
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(8, 40)))
        outline = center + np.stack([w * np.cos(angles), h * np.sin(angles)], 1) / 2
        outline = outline.round(2)
        low, high = outline.min(0), outline.max(0)
        segmentation: Any = [outline.ravel().tolist()]
        rle = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)[0]
        crowd = bool(rng.random() < 0.01)
        if crowd:
            segmentation = {"size": [HEIGHT, WIDTH], "counts": _run_lengths(rle)}
        annotations.append(
            {
                "id": number,
                "image_id": images[rng.integers(num_images)]["id"],
                "category_id": categories[rng.integers(CLASSES)]["id"],
                "iscrowd": int(crowd),
                "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
                "area": float(coco_mask.area(rle)),
                "segmentation": segmentation,
            }
        )
    return {"images": images, "annotations": annotations, "categories": categories}


def _run_lengths(rle: dict[str, Any]) -> list[int]:
    flat = coco_mask.decode(rle).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return lengths if flat[0] == 0 else [0, *lengths]


def box_results(truth: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One to four detections near each object, a fifth with a wrong class, and 40 with low scores
    at random places of each image."""
    ids = [category["id"] for category in truth["categories"]]
    results = []

    def add(image_id: int, category_id: int, box: np.ndarray, score: float) -> None:
        record = {"image_id": image_id, "category_id": int(category_id), "bbox": box.tolist()}
        results.append({**record, "score": float(score)})

    for annotation in truth["annotations"]:
        for _ in range(rng.integers(1, 5)):
            box = np.maximum(np.array(annotation["bbox"]) + rng.normal(0, 4, 4), 1)
            right = rng.random() < 0.8
            category = annotation["category_id"] if right else rng.choice(ids)
            add(annotation["image_id"], category, box, rng.random())
    for image in truth["images"]:
        for box in rng.uniform((0, 0, 20, 20), (500, 400, 120, 120), (40, 4)):
            add(image["id"], rng.choice(ids), box, 0.3 * rng.random())
    return results


def mask_results(truth: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Three masks per object: its polygon (the box of a crowd), slightly moved and scaled."""
    results = []
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        outline = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
        if not annotation["iscrowd"]:
            outline = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        for _ in range(3):
            center = outline.mean(0)
            moved = center + (outline - center) * rng.normal(1, 0.08, 2) + rng.normal(0, 3, 2)
            moved = moved.clip(0, (WIDTH, HEIGHT)).ravel().tolist()
            rle = coco_mask.frPyObjects([moved], HEIGHT, WIDTH)[0]
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "score": float(rng.random()),
                }
            )
    return results


def write_files(out: Path, num_images: int, num_objects: int) -> None:
    """Write the three files into `out`."""
    rng = np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    truth = make_truth(num_images, num_objects, rng)
    for name, content in (
        ("truth", truth),
        ("bbox", box_results(truth, rng)),
        ("segm", mask_results(truth, rng)),
    ):
        (out / f"{name}.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=count, default=5000)
    parser.add_argument("--objects", type=count, default=36000)
    args = parser.parse_args()
    write_files(args.out, args.images, args.objects)


if __name__ == "__main__":
    start(main)
