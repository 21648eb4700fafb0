"""Detection AP by seconds of training, from scratch.

    python scripts/bench/time_to_quality.py --train IMAGES FILE.json --val IMAGES FILE.json \
        --epochs 20 60 170 [--seeds 0 1 2] [--precision auto fp32] [--rival] [key=value ...]

Trains `configs/detection_small.yaml`, with the overrides, once for each number of epochs, precision
and seed; the schedule ends with the run. Training seconds include loading and augmentation, not
model building and validation. Prints a JSON record for each run, then the medians over the seeds.

With --rival it also trains the nano detector of the package `ultralytics`, if installed, from
scratch with its defaults (30 epochs, batches of 8), and scores its boxes in the same way.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arguments import count, existing, start

import visionkit
from visionkit.data.datasets.coco import Coco
from visionkit.metrics.coco.evaluator import evaluate_coco
from visionkit.metrics.coco.ground_truth import scored

CONFIG = Path(__file__).parents[2] / "configs/detection_small.yaml"
RIVAL_EPOCHS, BATCH = 30, 8


def ours(args: argparse.Namespace, epochs: int, precision: str, seed: int) -> dict[str, Any]:
    """One training, scored after its last step."""
    with tempfile.TemporaryDirectory() as scratch:
        overrides = {
            "data.train.images": args.train[0],
            "data.train.annotations": args.train[1],
            "data.val.images": args.val[0],
            "data.val.annotations": args.val[1],
            "data.image_size": args.size,
            "train.epochs": epochs,
            "train.validate": epochs,
            "train.log_every": 1,
            "train.precision": precision,
            "train.seed": seed,
            "train.plots": False,
            "output": f"{scratch}/run",
        }
        words = [f"{key}={value}" for key, value in overrides.items()]
        config = visionkit.load_config(args.config, [*words, *args.overrides])
        run = visionkit.train(config)
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    images = config.data["main"].batch_size
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return {
        "what": "visionkit",
        "epochs": epochs,
        "precision": precision,
        "seed": seed,
        "steps": len(steps),
        "training_seconds": sum(images / step["images_per_second"] for step in steps),
        **of_interest(run.metrics),
    }


def of_interest(metrics: dict[str, float]) -> dict[str, float]:
    return {
        key.rpartition("bbox/")[2]: value
        for key, value in metrics.items()
        if "bbox/AP" in key and not key.endswith(("APs", "APm", "APl"))
    }


class Stopwatch:
    """Sums the seconds between starts and stops; both are callbacks with one argument."""

    def __init__(self) -> None:
        self.seconds = self._since = 0.0

    def start(self, _: Any) -> None:
        self._since = time.perf_counter()

    def stop(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._since


def rival(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The nano model of `ultralytics` on the same images."""
    from ultralytics import YOLO
    from ultralytics import __version__ as version

    threads, watch = torch.get_num_threads(), Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for split, (images, annotations) in {"train": args.train, "val": args.val}.items():
            write_yolo(Path(images), Path(annotations), root, split)
        truth = json.loads(Path(args.val[1]).read_text())
        names = {str(i): category["name"] for i, category in enumerate(truth["categories"])}
        paths = {"path": str(root), "train": "images/train", "val": "images/val"}
        (root / "data.yaml").write_text(json.dumps({**paths, "names": names}))  # JSON is YAML

        model = YOLO(f"{args.rival_model}.yaml")
        model.add_callback("on_train_epoch_start", watch.start)
        model.add_callback("on_train_epoch_end", watch.stop)  # before it validates
        model.train(
            data=str(root / "data.yaml"),
            epochs=args.rival_epochs,
            batch=BATCH,
            imgsz=args.size,
            pretrained=False,
            seed=seed,
            project=str(root / "runs"),
            plots=False,
            verbose=False,
        )
        results = rival_results(model, Path(args.val[0]), truth, args.size)
    torch.set_num_threads(threads)  # it reduces them by one for the whole process
    truth = scored(Coco(*args.val).ground_truth(), "bbox")
    metrics = evaluate_coco(truth, results, "bbox", trust=True)  # also of a weak model
    return {
        "what": f"{args.rival_model}, ultralytics {version}",
        "epochs": args.rival_epochs,
        "precision": "default",
        "seed": seed,
        "training_seconds": watch.seconds,
        **of_interest({f"bbox/{key}": value for key, value in metrics.items()}),
    }


def rival_results(model: Any, images: Path, truth: dict, size: int) -> list[dict[str, Any]]:
    """COCO records of its predictions, with the thresholds of its validation."""
    results = []
    for image in truth["images"]:
        (found,) = model.predict(
            str(images / image["file_name"]),
            imgsz=size,
            conf=0.001,
            iou=0.7,
            max_det=300,
            verbose=False,
        )
        columns = (found.boxes.xyxy, found.boxes.conf, found.boxes.cls.int())
        for (x1, y1, x2, y2), score, label in zip(*(c.tolist() for c in columns), strict=True):
            record = {"image_id": image["id"], "category_id": truth["categories"][label]["id"]}
            results.append({**record, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    return results


def write_yolo(images: Path, annotations: Path, root: Path, split: str) -> None:
    """Convert COCO to the rival's layout: a text file per image with `class x y w h` in 0..1."""
    data = json.loads(annotations.read_text())
    numbers = {category["id"]: number for number, category in enumerate(data["categories"])}
    lines: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    for record in data["annotations"]:
        (width, height), (x, y, w, h) = sizes[record["image_id"]], record["bbox"]
        numbers_of_box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        words = [str(numbers[record["category_id"]]), *(f"{value:.6f}" for value in numbers_of_box)]
        lines[record["image_id"]].append(" ".join(words))
    for image in data["images"]:
        link = root / "images" / split / image["file_name"]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((images / image["file_name"]).resolve())
        text = (root / "labels" / split / image["file_name"]).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(lines[image["id"]]))


def medians(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the runs that differ only in their seed."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["what"], run["epochs"], run["precision"]), []).append(run)
    return [
        {
            **dict(zip(("what", "epochs", "precision"), key, strict=True)),
            "seeds": len(group),
            **{
                name: statistics.median(run[name] for run in group)
                for name in ("training_seconds", "AP", "AP50", "AP75")
            },
            "AP_lowest": min(run["AP"] for run in group),
            "AP_highest": max(run["AP"] for run in group),
        }
        for key, group in groups.items()
    ]


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """With null for NaN, which JSON lacks: a class without objects has no AP."""
    floats = {k: v for k, v in record.items() if isinstance(v, float)}
    return record | {k: None if math.isnan(v) else round(v, 4) for k, v in floats.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--train", type=existing, nargs=2, required=True, metavar=("IMAGES", "FILE")
    )
    parser.add_argument("--val", type=existing, nargs=2, required=True, metavar=("IMAGES", "FILE"))
    parser.add_argument("--config", type=existing, default=str(CONFIG))
    parser.add_argument("--size", type=count, default=320)
    parser.add_argument("--epochs", type=count, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--rival", action="store_true")
    parser.add_argument("--rival-model", default="yolo11n")
    parser.add_argument("--rival-epochs", type=count, default=RIVAL_EPOCHS)
    args = parser.parse_intermixed_args()
    logging.getLogger("visionkit").setLevel(logging.WARNING)
    runs = []
    # Seeds are the outermost loop, so that a slow hour of the machine affects all settings.
    for seed in args.seeds:
        todo = [(ours, epochs, precision) for epochs in args.epochs for precision in args.precision]
        for train, *setting in todo:
            runs.append(train(args, *setting, seed))
            print(json.dumps(rounded(runs[-1])), flush=True)
        if args.rival:
            try:
                runs.append(rival(args, seed))
                print(json.dumps(rounded(runs[-1])), flush=True)
            except ModuleNotFoundError as error:
                print(json.dumps({"rival": f"not measured: {error}"}), flush=True)
    cores = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    found = [rounded(group) for group in medians(runs)]
    print(json.dumps({**cores, "torch": torch.__version__, "medians": found}, indent=2))


if __name__ == "__main__":
    start(main)
