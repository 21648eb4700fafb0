"""torchvision's detectors against visionkit's on the same work: training steps and predictions.

    python scripts/bench/detectors.py train   --images DIR --annotations FILE.json
    python scripts/bench/detectors.py predict --images DIR --annotations FILE.json --model fasterrcnn

Both sides start from the same random weights, read the same COCO files at 320 px in batches of 2,
one process, loader included, and learn the same parameters with the same numbers of proposals and
regions. Every measurement is a process of its own; the sides take turns. Prints medians over all
counted steps, the ratio to torchvision's, and peak memory, as JSON. For predictions the outputs
are compared too.
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
from itertools import islice
from pathlib import Path

import torch
import torchvision
from torchvision.transforms import v2

import visionkit
from visionkit.config import Config, load_config
from visionkit.data.coco import Coco
from visionkit.predict import Predictor

SIZE, BATCH, WARM_UP = 320, 2, 3
NAMES = {
    "maskrcnn": "maskrcnn_resnet50_fpn",
    "fasterrcnn": "fasterrcnn_mobilenet_v3_large_320_fpn",
}
SIDES = {"torchvision": "fp32", "visionkit fp32": "fp32", "visionkit": "auto"}  # precisions
CONFIGS = {
    "maskrcnn": {
        "task": "instance_segmentation",
        "backbone": {"type": "resnet.ResNet", "depth": 50, "norm": "batch"},
        "neck": {"type": "fpn.FPN", "channels": 256},
        "head": {"type": "instance.MaskRCNN"},
    },
    "fasterrcnn": {
        "task": "detection",
        "backbone": {
            "type": "mobilenet.MobileNetV3",
            "size": "large",
            "taps": [13, 16],
            "norm": "batch",
            "norm_eps": 1e-5,
        },
        "neck": {"type": "fpn.FPN", "channels": 256},
        "head": {
            "type": "detection.FasterRCNN",
            "anchor_sizes": [[32, 64, 128, 256, 512]] * 3,
            "rpn_pre_nms_test": 150,
            "rpn_post_nms_test": 150,
            "rpn_score_threshold": 0.05,
        },
    },
}


def rival(args: argparse.Namespace) -> torch.nn.Module:
    """torchvision's model, with predictors turned up so that predictions find something."""
    torch.manual_seed(0)
    model = getattr(torchvision.models.detection, NAMES[args.model])(
        weights=None,
        weights_backbone=None,
        num_classes=len(dataset(args).vocabularies["labels"].names) + 1,
        min_size=SIZE,
        max_size=SIZE,
    )
    if args.what == "predict":
        gains = {"cls_score": args.gain, "rpn.head.cls_logits": 5, "mask_fcn_logits": 5}
        for name, parameter in model.named_parameters():
            for layer, gain in gains.items():
                parameter.data *= gain if name.endswith(f"{layer}.weight") else 1
    return model


def dataset(args: argparse.Namespace) -> Coco:
    return Coco(args.images, args.annotations, masks=False)


def rival_loader(args: argparse.Namespace) -> torch.utils.data.DataLoader:
    """torchvision's data set wrapper and v2 transforms, as its references use them. The pictures
    are those with objects, which its models need in training."""
    steps = [v2.ToImage()]
    if args.what == "train":
        steps.append(v2.RandomHorizontalFlip(0.5))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    pictures = torchvision.datasets.CocoDetection(
        args.images, args.annotations, transforms=v2.Compose(steps)
    )
    keys = ["boxes", "labels"] + ["masks"] * (args.model == "maskrcnn")
    wrapped = torchvision.datasets.wrap_dataset_for_transforms_v2(pictures, target_keys=keys)
    records = pictures.coco.imgToAnns
    usable = [
        i
        for i, image_id in enumerate(pictures.ids)
        if any(not a["iscrowd"] and min(a["bbox"][2:]) > 1 for a in records[image_id])
    ]
    return torch.utils.data.DataLoader(
        torch.utils.data.Subset(wrapped, usable),
        batch_size=BATCH,
        shuffle=args.what == "train",
        drop_last=True,
        collate_fn=lambda items: tuple(zip(*items, strict=True)),
    )


def rival_train(args: argparse.Namespace) -> list[float]:
    model = rival(args).train()
    numbers = {id_: n for n, id_ in enumerate(dataset(args).vocabularies["labels"].ids, start=1)}
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
                "transforms": [{"type": "transforms.HorizontalFlip"}],
            },
            "train": {"precision": precision, "lr": 1e-3, "plots": False, **train},
        }
    )


def our_train(args: argparse.Namespace, precision: str) -> list[float]:
    """The whole of `visionkit.train`; the run directory's log tells the time of every step."""
    steps = args.steps + WARM_UP
    with tempfile.TemporaryDirectory() as scratch:
        config = our_config(
            args, precision, epochs=None, steps=steps, validate=False, log_every=1, warmup_steps=0
        )
        run = visionkit.train(config, {"output": f"{scratch}/run"}).directory
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [BATCH / json.loads(line)["images_per_second"] for line in lines][WARM_UP:]


def rival_predict(args: argparse.Namespace) -> tuple[list[float], list[dict]]:
    model = rival(args)
    model.load_state_dict(torch.load(args.weights))
    model.eval()
    seconds, found, start = [], [], time.perf_counter()
    with torch.inference_mode():
        for images, _ in islice(rival_loader(args), args.steps + WARM_UP):
            found += model(list(images))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    return seconds[WARM_UP:], found


def our_predict(args: argparse.Namespace, precision: str) -> tuple[list[float], list[dict]]:
    """As `visionkit.load` would prepare it, without the training run that it needs."""
    torch.manual_seed(0)
    config = our_config(args, precision)
    data = dataset(args)
    classes = {"main": data.vocabularies["labels"]}
    predictor = Predictor.of(build_model(config, classes), config, classes)
    files = [data.image_path(i) for i in range(len(data)) if data[i].boxes.size]
    seconds, found, start = [], [], time.perf_counter()
    for number in range(args.steps + WARM_UP):
        predictions = predictor.predict_batch(files[number * BATCH : (number + 1) * BATCH])
        seconds.append(time.perf_counter() - start)
        found += [one.heads["main"] for one in predictions]
        start = time.perf_counter()
    return seconds[WARM_UP:], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("--model", choices=[*NAMES], default="maskrcnn")
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--gain", type=float, default=30, help="of the class scores")
