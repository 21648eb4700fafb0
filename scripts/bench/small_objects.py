"""Recall of small objects in large images, with tiles and without.

    python scripts/bench/small_objects.py RUN IMAGES ANNOTATIONS [key=value ...] [--tiles 640]

Pastes the images of a COCO dataset side by side into large ones (by default one of 4000x3000; the
order is drawn from `--seed`; `--paste 0.5` pastes them at half their size), predicts these with
one model from the whole image and from tiles, and prints for each

- the recall, at an IoU of 0.5, of all objects and of those below `--small` pixels (root of the
  area), of the best detections, `--detections` times as many as there are objects;
- the duplicates: of the drawn detections that fit an object, how many are a second one of the same
  object; of objects that a border of a tile cuts, and elsewhere;
- seconds per image.

Classes are matched by name; the dataset's other classes are skipped. To give both equally many
detections, override the head's `max_detections`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from arguments import count, existing, start
from PIL import Image

from visionkit.engine.predict import load
from visionkit.errors import DataError, package_version
from visionkit.ops.fusion import overlap
from visionkit.ops.views import Views
from visionkit.types import as_numpy

GAP = 8  # pixels between images
MATCH = 0.5  # IoU


class Scene(NamedTuple):
    """A large image (h, w, 3) and its objects."""

    pixels: np.ndarray
    boxes: np.ndarray  # (N, 4)
    labels: np.ndarray  # (N,), by the names of the model


def scenes(args: argparse.Namespace, names: tuple[str, ...]) -> list[Scene]:
    """The large images, row by row of small ones."""
    data = json.loads(Path(args.annotations).read_text())
    known = {c["id"]: names.index(c["name"]) for c in data["categories"] if c["name"] in names}
    if not known:
        raise DataError(f"{args.annotations}: has none of the classes {', '.join(names)}")
    objects: dict[int, list[tuple[list[float], int]]] = {}
    for one in data["annotations"]:
        if one["category_id"] in known and not one.get("iscrowd"):
            label = known[one["category_id"]]
            objects.setdefault(one["image_id"], []).append((one["bbox"], label))
    order = np.random.default_rng(args.seed).permutation(len(data["images"])).tolist()
    found = []
    for _ in range(args.scenes):
        pixels = np.full((args.size[1], args.size[0], 3), 114, np.uint8)
        boxes, labels = [], []
        left = top = row = 0
        while order:
            record = data["images"][order[-1]]
            with Image.open(Path(args.images, record["file_name"])) as image:
                size = [max(1, round(side * args.paste)) for side in image.size]
                part = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
            height, width = part.shape[:2]
            if left + width > args.size[0]:
                left, top, row = 0, top + row + GAP, 0
            if top + height > args.size[1]:
                break
            order.pop()
            pixels[top : top + height, left : left + width] = part
            for (x, y, w, h), label in objects.get(record["id"], ()):
                box = np.array([x, y, x + w, y + h]) * args.paste
                boxes.append([*(box + np.array([left, top, left, top]))])
                labels.append(label)
            left, row = left + width + GAP, max(row, height)
        found.append(Scene(pixels, np.array(boxes).reshape(-1, 4), np.array(labels)))
    return found


def matches(scene: Scene, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection, best first, the object that it finds and the one that it fits best,
    whether or not another detection has it; -1 for none."""
    taken = np.zeros(len(scene.boxes), bool)
    first, fits = np.full(len(boxes), -1), np.full(len(boxes), -1)
    for row in range(len(boxes)):
        ious = overlap(boxes[row], scene.boxes) * (scene.labels == labels[row])
        if ious.max(initial=0) >= MATCH:
            fits[row] = ious.argmax()
        ious[taken] = 0
        if ious.max(initial=0) >= MATCH:
            first[row] = ious.argmax()
            taken[first[row]] = True
    return first, fits


def at_seams(scene: Scene, args: argparse.Namespace) -> np.ndarray:
    """Which objects (N,) a border of a tile cuts."""
    cut = np.zeros(len(scene.boxes), bool)
    for view in Views.of(tiles=args.tiles, overlap=args.overlap).plan(scene.pixels.shape[:2])[1:]:
        window = np.array(view.window)
        low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
        seen = (low < window[2:]).all(1) & (high > window[:2]).all(1)
        inside = (low >= window[:2]).all(1) & (high <= window[2:]).all(1)
        cut |= seen & ~inside
    return cut


def measured(model: Any, head: str, all_scenes: list[Scene], args: argparse.Namespace) -> dict:
    """The metrics of a model with the views that it uses."""
    found: dict[str, list[np.ndarray]] = {"all": [], "small": [], "second": [], "other second": []}
    seconds = 0.0
    for scene in all_scenes:
        begin = time.perf_counter()
        prediction = model.predict(scene.pixels)
        seconds += time.perf_counter() - begin
        drawn = len(prediction.above().head(head).scores)
        result = prediction.heads[head]
        boxes, labels = as_numpy(result["boxes"]), as_numpy(result["labels"])
        first, fits = matches(scene, boxes, labels)
        best = first[: round(args.detections * len(scene.boxes))]
        hit = np.isin(np.arange(len(scene.boxes)), best)
        sides = np.sqrt((scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1))
        found["all"].append(hit)
        found["small"].append(hit[sides < args.small])
        cut = at_seams(scene, args)
        shown, second = fits[:drawn], (first[:drawn] < 0)
        for name, some in (("second", cut), ("other second", ~cut)):
            found[name].append(second[(shown >= 0) & some[shown]])
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return {
        **{f"recall, {n}": float(joined[n].mean()) for n in ("all", "small")},
        "duplicates at seams": f"{joined['second'].sum()} of {len(joined['second'])}",
        "elsewhere": f"{joined['other second'].sum()} of {len(joined['other second'])}",
        "s/image": round(seconds / len(all_scenes), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=existing, help="a run or a checkpoint of a detector")
    parser.add_argument("images", type=existing, help="folder of the images")
    parser.add_argument("annotations", type=existing, help="COCO annotations of these")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--size", type=count, nargs=2, default=[4000, 3000], metavar=("W", "H"))
    parser.add_argument("--scenes", type=count, default=1, help="large images (default: 1)")
    parser.add_argument("--paste", type=float, default=1.0, help="size of the small images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiles", type=count, default=640)
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--tta", help="for both, as of `visionkit predict`")
    parser.add_argument("--small", type=count, default=32, help="pixels (default: 32)")
    parser.add_argument("--detections", type=float, default=2.0, help="per object (default: 2)")
    parser.add_argument("--threshold", default="best", help="of what is drawn (default: best)")
    args = parser.parse_args()
    model = load(args.run, args.overrides)
    model.use_threshold(args.threshold if args.threshold == "best" else float(args.threshold))
    (head,) = model.heads
    all_scenes = scenes(args, model.classes[head].names)
    total = sum(len(scene.boxes) for scene in all_scenes)
    print(f"visionkit {package_version()}, {args.run}, {total} objects, seed {args.seed}")
    for name, tiles in (("whole", None), (f"tiles {args.tiles}", args.tiles)):
        model.use_views(args.tta, tiles, None if tiles is None else args.overlap)
        print(f"{name}: {measured(model, head, all_scenes, args)}")


if __name__ == "__main__":
    start(main)
