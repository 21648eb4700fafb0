"""Compare torchvision's detectors with visionkit's: training steps and predictions.

    python scripts/bench/detectors.py train --images DIR --annotations FILE
    python scripts/bench/detectors.py predict --model fasterrcnn --images DIR --annotations FILE

Both sides start from the same random weights, read the same COCO files at 320 px in batches of 2 in
one process, loader included, and train the same parameters with the same numbers of proposals and
regions. Every measurement runs in a new process; the sides alternate. Prints medians over all
measured steps, the ratio to torchvision's, and peak memory, as JSON. For predictions it also
compares the float32 outputs on images of exactly that size, which neither side resizes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import torchvision
from arguments import count, existing, start
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import visionkit
from visionkit.config import Config, load_config
from visionkit.data.datasets.coco import Coco
from visionkit.engine.torch_model import Predictor
from visionkit.models.build import build_model

SIZE, BATCH, WARM_UP = 320, 2, 3
NAMES = {
    "maskrcnn": "maskrcnn_resnet50_fpn",
    "fasterrcnn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
SIDES = {"torchvision": "fp32", "visionkit fp32": "fp32", "visionkit": "auto"}  # precisions
CONFIGS = {
    "maskrcnn": {
        "task": "instance_segmentation",
        "backbone": {"type": "Torchvision", "name": "resnet50", "norm": "batch"},
        "neck": {"type": "FPN", "channels": 256},
        "head": {"type": "MaskRCNN"},
    },
    "fasterrcnn": {
        "task": "detection",
        "backbone": {
            "type": "Torchvision",
            "name": "mobilenet_v3_large",
            "out_indices": [13, 16],
            "norm": "batch",
            "norm_eps": 1e-5,
        },
        "neck": {"type": "FPN", "channels": 256},
        "head": {
            "type": "FasterRCNN",
            "anchor_sizes": [[32, 64, 128, 256, 512]] * 3,
            "rpn_pre_nms_test": 150,
            "rpn_post_nms_test": 150,
            "rpn_score_threshold": 0.05,
        },
    },
}


def rival(args: argparse.Namespace) -> torch.nn.Module:
    """torchvision's model, with scaled predictors so that predictions find objects."""
    torch.manual_seed(0)
    model = getattr(torchvision.models.detection, NAMES[args.model])(
        weights=None,
        weights_backbone=None,
        num_classes=len(dataset(args).classes["labels"].names) + 1,
        min_size=SIZE,
        max_size=SIZE,
    )
    if args.what == "predict":
        settle_norms(model, args)
        gains = {"cls_score": args.gain, "rpn.head.cls_logits": 5, "mask_fcn_logits": 5}
        for name, parameter in model.named_parameters():
            for layer, gain in gains.items():
                parameter.data *= gain if name.endswith(f"{layer}.weight") else 1
    return model


@torch.no_grad()
def settle_norms(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """Set batch statistics from real images; with the initial ones all scores would be 0 or 1."""
    data = dataset(args)
    model.backbone.train()
    for norm in model.backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean
    for i in range(4):
        images = [data[2 * i].image / 255, data[2 * i + 1].image / 255]
        model.backbone(model.transform(images)[0].tensors)


def dataset(args: argparse.Namespace) -> Coco:
    return Coco(args.images, args.annotations, masks=False)


def rival_loader(args: argparse.Namespace) -> torch.utils.data.DataLoader:
    """torchvision's dataset wrapper and v2 transforms, as in its references, on the images with
    objects."""
    steps = [
        v2.ToImage(),
        v2.RandomHorizontalFlip(0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ]
    images = torchvision.datasets.CocoDetection(
        args.images, args.annotations, transforms=v2.Compose(steps)
    )
    keys = ["boxes", "labels"] + ["masks"] * (args.model == "maskrcnn")
    wrapped = torchvision.datasets.wrap_dataset_for_transforms_v2(images, target_keys=keys)
    records = images.coco.imgToAnns
    usable = [
        i
        for i, image_id in enumerate(images.ids)
        if any(not a["iscrowd"] and min(a["bbox"][2:]) > 1 for a in records[image_id])
    ]
    return torch.utils.data.DataLoader(
        torch.utils.data.Subset(wrapped, usable),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda items: tuple(zip(*items, strict=True)),
    )


def rival_train(args: argparse.Namespace, precision: str) -> list[float]:
    model = rival(args).train()
    numbers = {id_: n for n, id_ in enumerate(dataset(args).classes["labels"].ids, start=1)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    seconds, start = [], time.perf_counter()
    batches = (batch for _ in range(10**6) for batch in rival_loader(args))
    for images, targets in islice(batches, args.steps + WARM_UP):
        for target in targets:
            target["labels"].apply_(numbers.__getitem__)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds[WARM_UP:]


def our_config(args: argparse.Namespace, precision: str, **train: object) -> Config:
    data = {"images": args.images, "annotations": args.annotations}
    return load_config(
        {
            **CONFIGS[args.model],
            "weights": str(args.weights),
            "data": {
                "train": data,
                "val": data,
                "image_size": SIZE,
                "batch_size": BATCH,
                "workers": 0,
                "transforms": [{"type": "HorizontalFlip"}],
            },
            "train": {"precision": precision, "lr": 1e-3, "plots": False, **train},
        }
    )


def our_train(args: argparse.Namespace, precision: str) -> list[float]:
    """`visionkit.train`; metrics.jsonl has the time of every step."""
    steps = args.steps + WARM_UP
    with tempfile.TemporaryDirectory() as scratch:
        config = our_config(
            args, precision, epochs=None, steps=steps, validate=False, log_every=1, warmup_steps=0
        )
        run = visionkit.train(config, {"output": f"{scratch}/run"}).directory
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [BATCH / json.loads(line)["images_per_second"] for line in lines][WARM_UP:]


def our_predictor(args: argparse.Namespace, precision: str) -> Predictor:
    """As `visionkit.load` builds it, without a run."""
    config = our_config(args, precision)
    classes = {next(iter(config.heads)): dataset(args).classes["labels"]}
    return Predictor(build_model(config, classes), config, classes)


def rival_predictor(args: argparse.Namespace) -> Callable[[list[Path]], list[dict]]:
    model = rival(args)
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    model.eval()

    @torch.inference_mode()
    def predict(files: list[Path]) -> list[dict]:
        images = [Image.open(file).convert("RGB") for file in files]
        return model([F.to_dtype(F.to_image(p), torch.float32, scale=True) for p in images])

    return predict


def predict(args: argparse.Namespace, side: str) -> dict:
    """Seconds of each batch, from files to predictions, and the number of predicted objects."""
    if side == "torchvision":
        run = rival_predictor(args)
    else:
        run = our_predictor(args, SIDES[side]).predict_batch
    data = dataset(args)
    files = [data.image_path(i % len(data)) for i in range((args.steps + WARM_UP) * BATCH)]
    seconds, objects = [], 0
    for number in range(args.steps + WARM_UP):
        start = time.perf_counter()
        found = run(files[number * BATCH : (number + 1) * BATCH])
        seconds.append(time.perf_counter() - start)
        objects += sum(len(f["boxes"] if isinstance(f, dict) else f.boxes) for f in found)
    return {"seconds": seconds[WARM_UP:], "objects": objects}


def compare(args: argparse.Namespace) -> dict:
    """Both sides in float32 on 8 images of 320 px: the share of torchvision's objects that
    visionkit also finds, with the same label and nearly the same box, and their differences."""
    data, worst = dataset(args), {"box": 0.0, "score": 0.0, "mask pixels": 0.0}
    ours, theirs = our_predictor(args, "fp32"), rival_predictor(args)
    objects = found_too = 0
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(8):
            file, image = Path(scratch) / f"{i}.png", Image.open(data.image_path(i))
            scale = SIZE / max(image.size)
            image.resize([max(1, round(side * scale)) for side in image.size]).save(file)
            found, (expected,) = ours.predict(file), theirs([file])
            objects += len(expected["labels"])
            masks = torch.from_numpy(found.masks) if "masks" in expected else None
            for k, label in enumerate(expected["labels"] - 1):
                gaps = (found.boxes - expected["boxes"][k]).abs().amax(1)
                gaps[found.labels != label] = torch.inf
                if not len(gaps) or gaps.min() > 0.5:
                    continue
                found_too += 1
                same = int(gaps.argmin())
                differences = {"box": gaps[same]}
                differences["score"] = (found.scores[same] - expected["scores"][k]).abs()
                if masks is not None:
                    other = masks[same] ^ (expected["masks"][k, 0] > 0.5)
                    differences["mask pixels"] = other.float().mean()
                worst |= {name: max(worst[name], float(d)) for name, d in differences.items()}
    return {"objects": objects, "found by both": found_too / objects, "largest difference": worst}


def in_process(args: argparse.Namespace, side: str) -> dict:
    """One measurement in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--weights", args.weights, "--side", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, side: str) -> dict:
    if side == "compare":
        return compare(args)
    if args.what == "predict":
        result = predict(args, side)
    else:
        train = rival_train if side == "torchvision" else our_train
        result = {"seconds": train(args, SIDES[side])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**result, "peak_mb": peak}


def all_sides(args: argparse.Namespace) -> dict:
    rounds: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side in SIDES:
            rounds[side].append(in_process(args, side))
    report: dict = {"work": f"{args.what} {NAMES[args.model]}", "threads": torch.get_num_threads()}
    base = 0.0
    for side, results in rounds.items():
        median = statistics.median(second for r in results for second in r["seconds"])
        base = base or median
        report[side] = {
            "images_per_second": round(BATCH / median, 3),
            "ratio": round(base / median, 2),
            "peak_mb": statistics.median(r["peak_mb"] for r in results),
        }
        if args.what == "predict":
            report[side]["objects"] = results[0]["objects"]
    if args.what == "predict":
        report["compared"] = in_process(args, "compare")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("--model", choices=[*NAMES], default="maskrcnn")
    parser.add_argument("--images", type=existing, required=True)
    parser.add_argument("--annotations", type=existing, required=True)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--steps", type=count, default=8)
    parser.add_argument("--gain", type=float, default=10, help="of the class scores to predict")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args, args.side)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.weights = f"{scratch}/weights.pth"
        torch.save(rival(args).state_dict(), args.weights)
        print(json.dumps(all_sides(args), indent=2))


if __name__ == "__main__":
    start(main)
