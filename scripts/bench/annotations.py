"""Time to open a COCO annotation file with pycocotools and with visionkit, each in a new process.

    python scripts/bench/annotations.py [--rounds 3] [--images 118287] [--objects 860001]
    python scripts/bench/annotations.py --file instances_train2017.json

By default it generates a file of the size of COCO train2017 (0.5 GB, all objects with polygons).
Prints as JSON the medians of the seconds and of the peak resident memory of

- `pycocotools`: `COCO(file)`,
- `first`: `Coco(folder, file)` with an empty cache,
- `later`: the same again,
- `plain`: `first` without msgspec (the extra `fast`),
- `worker`: the memory of a loader worker that has read samples from the whole file, as far as it
  shares it with no other process: its own (`private_mb`), and pages of files (`page_cache_mb`),

and the ratios. Imports are not timed. `{side}_base_mb` is the memory after the imports alone.
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
from arguments import count, existing, start

WIDTH, HEIGHT = 640, 480
SAMPLES = 2000  # that a worker reads before its memory is measured


def write_file(path: Path, num_images: int, num_objects: int) -> None:
    """Synthetic annotations: outlines with 8 to 39 corners, two decimals, 80 classes."""
    rng = np.random.default_rng(0)
    images = [
        {"id": 5 * i + 3, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in range(num_images)
    ]
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(80)]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, ')
        file.write('"annotations": [')
        for k in range(num_objects):
            corners = int(rng.integers(8, 40))
            angles = np.sort(rng.random(corners)) * 2 * np.pi
            radii = np.exp(rng.normal(3.3, 0.8, 2)).clip(4, 200)
            center = radii + rng.random(2) * ([WIDTH, HEIGHT] - 2 * radii)
            points = center + radii * np.stack([np.cos(angles), np.sin(angles)], 1)
            low, high = points.min(0), points.max(0)
            record = {
                "id": k + 1,
                "image_id": 5 * int(rng.integers(num_images)) + 3,
                "category_id": int(rng.integers(1, 81)),
                "iscrowd": 0,
                "bbox": np.concatenate([low, high - low]).round(2).tolist(),
                "area": float(np.prod(high - low)) * 0.7,
                "segmentation": [points.round(2).ravel().tolist()],
            }
            file.write((", " if k else "") + json.dumps(record))
        file.write("]}")


def make_images(folder: Path, annotations: Path) -> None:
    """A gray image for each size, and a link to it for each name in the file."""
    from PIL import Image

    folder.mkdir()
    for record in json.loads(annotations.read_bytes())["images"]:
        size = record["width"], record["height"]
        source = folder.parent / f"{size[0]}x{size[1]}.jpg"
        if not source.exists():
            Image.new("RGB", size, (90, 90, 90)).save(source)
        path = folder / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)


def peak_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would include that of its parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def private_mb() -> tuple[float, float]:
    """Memory that this process shares with no other: its own, and pages of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {key: int(rest.split()[0]) / 1024 for key, rest in (line.split(":") for line in lines)}
    return sizes["Private_Dirty"], sizes["Private_Clean"]


def measure_pycocotools(annotations: str, folder: str) -> dict[str, float]:
    from pycocotools.coco import COCO

    base, start = peak_mb(), time.perf_counter()
    sys.stdout = sys.stderr  # it prints its progress
    COCO(annotations)
    sys.stdout = sys.__stdout__
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), "base_mb": base}


def measure_visionkit(annotations: str, folder: str) -> dict[str, float]:
    from visionkit.data.datasets.coco import Coco

    base, start = peak_mb(), time.perf_counter()
    Coco(folder, annotations, links="any")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_mb(), "base_mb": base}


def measure_plain(annotations: str, folder: str) -> dict[str, float]:
    from visionkit.data.coco import records

    records.fast_json = None
    return measure_visionkit(annotations, folder)


class Probe:
    """A dataset whose items are the private memory of the process that reads them."""

    def __init__(self, dataset, samples):
        self.dataset, self.samples = dataset, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        self.dataset[index * len(self.dataset) // self.samples].target()
        return private_mb() if index == self.samples - 1 else (0.0, 0.0)


def measure_worker(annotations: str, folder: str) -> dict[str, float]:
    """Two workers, so that what both use counts as shared; the larger value counts."""
    from torch.utils.data import DataLoader

    from visionkit.data.datasets.coco import Coco

    dataset = Coco(folder, annotations, links="any")
    samples = min(SAMPLES, 2 * len(dataset))
    loader = DataLoader(Probe(dataset, samples), batch_size=1, num_workers=2)
    own, pages = max(tuple(float(value) for value in batch) for batch in loader)
    return {"private_mb": own, "page_cache_mb": pages}


def run(side: str, annotations: Path, folder: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", side, "--file", str(annotations)]
    environment = {**os.environ, "VISIONKIT_CACHE": str(cache)}
    result = subprocess.run(
        [*command, "--folder", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(result.stdout)


def compare(annotations: Path, rounds: int, work: Path) -> dict[str, float]:
    folder = work / "images"
    make_images(folder, annotations)
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        cache = work / f"cache{number}"
        turns = {
            "pycocotools": ("pycocotools", cache),
            "first": ("visionkit", cache),
            "later": ("visionkit", cache),
            "worker": ("worker", cache),
            "plain": ("plain", work / f"plain{number}"),
        }
        for name, (side, place) in turns.items():
            for key, value in run(side, annotations, folder, place).items():
                found.setdefault(f"{name}_{key}", []).append(value)
    medians = {key: round(statistics.median(values), 3) for key, values in found.items()}
    slow = medians["pycocotools_seconds"]
    ratios = {
        f"{n}_ratio": round(slow / medians[f"{n}_seconds"], 2) for n in ("first", "later", "plain")
    }
    return medians | ratios


MEASURES = {
    "pycocotools": measure_pycocotools,
    "visionkit": measure_visionkit,
    "plain": measure_plain,
    "worker": measure_worker,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=existing, help="annotation file (default: generated)")
    parser.add_argument("--images", type=count, default=118_287)
    parser.add_argument("--objects", type=count, default=860_001)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args.file, args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        annotations = Path(args.file or work / "annotations.json")
        if args.file is None:
            write_file(annotations, args.images, args.objects)
        result = {
            "bytes": annotations.stat().st_size,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **compare(annotations.resolve(), args.rounds, work),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    start(main)
