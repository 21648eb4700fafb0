"""Compare `visionkit predict` with a loop over single images.

    python scripts/bench/predict.py RUN IMAGES [key=value ...] [--limit 60] [--rounds 5]

Both read the same files, run the same model and write the same overlays and records, alternating in
one process. "one by one" reads, predicts, draws and saves one image after another, and lets
autocast round the weights for each; the others are `predict_files` with that batch size. Prints
images per second (medians over the rounds), ratios to "one by one", CPU milliseconds per image,
and the largest differences of the records. Records are paired in order, so two objects of nearly
equal score in swapped order show a large difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from arguments import count, existing, start

from visionkit.engine.inputs import find_images
from visionkit.engine.predict import load
from visionkit.engine.prediction import to_records
from visionkit.engine.results import predict_files
from visionkit.engine.torch_model import Predictor
from visionkit.runs.files import to_json, write_text


def one_by_one(predictor: Predictor, files: list[Path], out: Path) -> None:
    records = []
    for image_id, file in enumerate(files, start=1):
        prediction = predictor.predict(file)
        records += to_records(prediction, image_id)
        prediction.draw().convert("RGB").save(out / f"{file.stem}.jpg", quality=92)
    write_text(out / "predictions.json", to_json(records) + "\n")


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest differences of the records of two runs, if both have equally many."""
    first, second = (json.loads((d / "predictions.json").read_text()) for d in (one, other))
    found: dict[str, float] = {"records more or less": len(second) - len(first)}
    if len(first) == len(second):
        for a, b in zip(first, second, strict=True):
            if "score" in a:
                gap = abs(a["score"] - b["score"])
                found["score"] = max(found.get("score", 0.0), gap)
            if "bbox" in a:
                gap = max(abs(x - y) for x, y in zip(a["bbox"], b["bbox"], strict=True))
                found["box in pixels"] = max(found.get("box in pixels", 0.0), gap)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=existing, help="a run or a checkpoint")
    parser.add_argument("images", type=existing, help="a folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--limit", type=count, default=60, help="images")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--batch-sizes", type=count, nargs="+", default=[1, 4])
    args = parser.parse_args()

    before, now = load(args.run, args.overrides), load(args.run, args.overrides)
    before.model.float()  # equal values, rounded at every call
    files = [file for file, _ in islice(find_images([args.images]), args.limit)]
    sides = {"one by one": lambda out: one_by_one(before, files, out)}
    for size in args.batch_sizes:
        sides[f"batches of {size}"] = lambda out, n=size: predict_files(
            now, files, out, batch_size=n
        )
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {side: Path(scratch) / str(i) for i, side in enumerate(sides)}
        for number in range(args.rounds + 1):
            for side, run in sides.items():
                folders[side].mkdir(exist_ok=True)
                wall, cpu = time.perf_counter(), time.process_time()
                run(folders[side])
                if number:  # the first round warms up
                    used = time.perf_counter() - wall, time.process_time() - cpu
                    seconds[side].append(used)
        base = folders["one by one"]
        report: dict = {"images": len(files), "threads": torch.get_num_threads()}
        first = statistics.median(wall for wall, _ in seconds["one by one"])
        for side, rounds in seconds.items():
            wall = statistics.median(wall for wall, _ in rounds)
            cpu = statistics.median(cpu for _, cpu in rounds)
            report[side] = {
                "images_per_second": round(len(files) / wall, 2),
                "ratio": round(first / wall, 2),
                "cpu_ms": round(1000 * cpu / len(files), 1),
                "differences": differences(base, folders[side]),
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    start(main)
