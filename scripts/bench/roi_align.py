"""Compare torchvision's RoIAlign with visionkit's on a CPU: forward and backward over a pyramid.

    python scripts/bench/roi_align.py [--boxes 2048] [--channels 256] [--rounds 7]

Both pool the same boxes from the same four levels of two images of 320 px into 7 x 7 bins of 2 x 2
samples, alternating in one process. Prints medians, ratios, and the largest difference of outputs
and gradients in float32, as JSON; also visionkit in bfloat16, which torchvision does not support.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from arguments import count, start
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from visionkit.ops.roi_align import flatten_boxes, roi_align

STRIDES, SIZE, IMAGES = [4, 8, 16, 32], 320, 2


def levels(channels: int, dtype: torch.dtype) -> list[Tensor]:
    """Feature maps as convolutions in channels-last leave them."""
    torch.manual_seed(0)
    maps = [torch.randn(IMAGES, channels, SIZE // s, SIZE // s) for s in STRIDES]
    kept = [m.to(dtype).to(memory_format=torch.channels_last) for m in maps]
    return [m.requires_grad_() for m in kept]


def random_boxes(count: int) -> list[Tensor]:
    torch.manual_seed(1)
    center = torch.rand(count, 2) * SIZE
    extent = torch.exp(0.7 * torch.randn(count, 2) + 4.2)  # medians of 67 pixels
    boxes = torch.cat([center - extent / 2, center + extent / 2], 1).clamp(0, SIZE)
    return list(boxes.chunk(IMAGES))


def torchvision_pool(features: list[Tensor], boxes: list[Tensor]) -> Tensor:
    pool = MultiScaleRoIAlign([str(s) for s in STRIDES], 7, 2)
    named = dict(zip(map(str, STRIDES), features, strict=True))
    return pool(named, boxes, [(SIZE, SIZE)] * IMAGES)


def our_pool(features: list[Tensor], boxes: list[Tensor]) -> Tensor:
    return roi_align(features, *flatten_boxes(boxes), STRIDES, 7, 2)


def run(
    pool: Callable[[list[Tensor], list[Tensor]], Tensor],
    features: list[Tensor],
    boxes: list[Tensor],
) -> tuple[float, float, list[Tensor]]:
    """Seconds forward, seconds backward, and the output with the gradients."""
    start = time.perf_counter()
    pooled = pool(features, boxes)
    middle = time.perf_counter()
    torch.manual_seed(2)
    upstream = torch.randn(pooled.shape).to(pooled.dtype)
    before = time.perf_counter()
    gradients = torch.autograd.grad(pooled, features, upstream)
    return middle - start, time.perf_counter() - before, [pooled.detach(), *gradients]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=count, default=2048)
    parser.add_argument("--channels", type=count, default=256)
    parser.add_argument("--rounds", type=count, default=7)
    args = parser.parse_args()
    boxes = random_boxes(args.boxes)
    exact = levels(args.channels, torch.float32)
    sides = {
        "torchvision": (torchvision_pool, exact),
        "visionkit": (our_pool, exact),
        "visionkit bfloat16": (our_pool, levels(args.channels, torch.bfloat16)),
    }
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    results = {}
    for round_ in range(args.rounds + 1):
        for side, (pool, features) in sides.items():
            forward, backward, results[side] = run(pool, features, boxes)
            if round_:  # the first is a warm-up
                times[side].append((forward, backward))
    report: dict = {"boxes": args.boxes, "threads": torch.get_num_threads()}
    base = [statistics.median(column) for column in zip(*times["torchvision"], strict=True)]
    for side, pairs in times.items():
        forward, backward = (statistics.median(column) for column in zip(*pairs, strict=True))
        report[side] = {
            "forward_ms": round(forward * 1e3, 1),
            "backward_ms": round(backward * 1e3, 1),
            "ratio_forward": round(base[0] / forward, 2),
            "ratio_backward": round(base[1] / backward, 2),
            "ratio": round(sum(base) / (forward + backward), 2),
        }
    pairs = zip(results["torchvision"], results["visionkit"], strict=True)
    report["largest_difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    start(main)
