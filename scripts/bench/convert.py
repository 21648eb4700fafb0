"""Time and memory to convert a YOLO folder of the size of COCO train2017, each in a new process.

    python scripts/bench/convert.py [--rounds 1] [--images 118287] [--objects 860001] [--polygons]

The images are hard links of a small JPEG for each of eight sizes; labels are boxes, or with
--polygons outlines of 8 to 39 corners. Prints as JSON the medians of the seconds and of the peak
resident memory of

- `convert`: `visionkit data convert FOLDER OUT.json`,
- `back`: `visionkit data convert OUT.json FOLDER --to yolo`, labels alone,
- `first`: `Yolo(FOLDER)` with an empty cache, as training opens it,
- `later`: the same again.

Imports are not timed. `{side}_base_mb` is the memory after the imports alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from annotations import peak_mb
from arguments import count, start
from PIL import Image

SIZES = [(64 + 8 * i, 48) for i in range(8)]
LINKS = 10_000  # to one file; file systems have a limit
CLASSES = 80


def write_folder(root: Path, num_images: int, num_objects: int, polygons: bool) -> None:
    """A YOLO dataset; each image has at least one object if there are enough."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels", "sources"):
        (root / name).mkdir(parents=True)
    names = ", ".join(f"class {i}" for i in range(CLASSES))
    (root / "data.yaml").write_text(f"train: images\nnames: [{names}]\n")
    owner = np.concatenate([np.arange(num_images), rng.integers(0, num_images, num_objects)])
    per_image = np.bincount(owner[:num_objects], minlength=num_images)
    for i in range(num_images):
        source = root / "sources" / f"{i % len(SIZES)}-{i // LINKS}.jpg"
        if not source.exists():
            Image.new("RGB", SIZES[i % len(SIZES)], (90, 90, 90)).save(source)
        os.link(source, root / "images" / f"{i:012d}.jpg")
        lines = []
        for _ in range(int(per_image[i])):
            center, half = rng.random(2) * 0.6 + 0.2, rng.random(2) * 0.19 + 0.01
            values = [*center, *(2 * half)]
            if polygons:
                angles = np.sort(rng.random(int(rng.integers(8, 40)))) * 2 * np.pi
                values = (center + half * np.stack([np.cos(angles), np.sin(angles)], 1)).ravel()
            numbers = " ".join(f"{value:.6f}" for value in values)
            lines.append(f"{int(rng.integers(CLASSES))} {numbers}\n")
        (root / "labels" / f"{i:012d}.txt").write_text("".join(lines))


def measure_convert(root: Path, work: Path) -> dict[str, float]:
    from visionkit.data.formats.convert import convert

    base, begin = peak_mb(), time.perf_counter()
    done = convert(root, work / "out.json", format="yolo")
    seconds = time.perf_counter() - begin
    found = {"images": done.images, "objects": done.objects}
    return {"seconds": seconds, "peak_mb": peak_mb(), "base_mb": base, **found}


def measure_back(root: Path, work: Path) -> dict[str, float]:
    from visionkit.data.formats.convert import convert

    base, begin = peak_mb(), time.perf_counter()
    convert(work / "out.json", work / "back", format="coco", to="yolo")
    return {"seconds": time.perf_counter() - begin, "peak_mb": peak_mb(), "base_mb": base}


def measure_open(root: Path, work: Path) -> dict[str, float]:
    from visionkit.data.datasets import Yolo

    base, begin = peak_mb(), time.perf_counter()
    Yolo(str(root))
    return {"seconds": time.perf_counter() - begin, "peak_mb": peak_mb(), "base_mb": base}


MEASURES = {"convert": measure_convert, "back": measure_back, "open": measure_open}


def run(side: str, root: Path, work: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", side, "--folder", str(root)]
    result = subprocess.run(
        [*command, "--work", str(work)],
        env={**os.environ, "VISIONKIT_CACHE": str(work / "cache")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=count, default=118_287)
    parser.add_argument("--objects", type=count, default=860_001)
    parser.add_argument("--polygons", action="store_true", help="outlines instead of boxes")
    parser.add_argument("--rounds", type=count, default=1)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args.folder, args.work)))
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "yolo"
        write_folder(root, args.images, args.objects, args.polygons)
        for number in range(args.rounds):
            work = Path(name) / str(number)
            work.mkdir()
            turns = {"convert": "convert", "back": "back", "first": "open", "later": "open"}
            for key, side in turns.items():
                for what, value in run(side, root, work).items():
                    found.setdefault(f"{key}_{what}", []).append(value)
    medians = {key: round(statistics.median(values), 3) for key, values in found.items()}
    record = {"cores": os.cpu_count(), "python": platform.python_version(), **medians}
    record["later_ratio"] = round(medians["first_seconds"] / medians["later_seconds"], 2)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    start(main)
