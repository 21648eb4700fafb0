"""Compare an exported detector of visionkit with the ONNX file of another detector.

    python scripts/bench/export.py MODEL.onnx IMAGES [--also MODEL.int8.onnx] [--other OTHER.onnx]

Both run on onnxruntime with equally many threads, in turn in one process, one image at a time.
"graph" is the call of onnxruntime with the same pixels, with decoding and NMS. "whole" goes from a
decoded image to objects in its pixels: with resizing.

The other file takes floats from 0 to 1 (1, 3, SIZE, SIZE). It gives rows of box (xyxy), score and
class (1, N, 6), or centers, sizes and scores of each class (1, 4 + K, P), for which the script does
NMS. Prints milliseconds (medians over the rounds), images per second, how many objects were found,
and ratios to the other file (medians of the ratios of each round; above 1: faster).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from arguments import count, existing, start
from PIL import Image
from torchvision.ops import batched_nms

import visionkit
from visionkit.engine.inputs import find_images

PAUSE = 0.005  # seconds: threads of onnxruntime wait busily for the next call, for a while
LOWEST = 0.25  # score of an object of the other file, as its own predictions use
IOU = 0.7


def session(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options)


class Other:
    """A detector in the file of another program."""

    def __init__(self, path: str, size: int, threads: int) -> None:
        self.session = session(path, threads)
        (first, *_) = self.session.get_inputs()
        self.name, self.size = first.name, size
        if list(first.shape[1:]) != [3, size, size] and all(
            isinstance(s, int) for s in first.shape
        ):
            raise SystemExit(f"error: {path}: takes images {first.shape}; give --size")

    def graph(self, pixels: np.ndarray) -> np.ndarray:
        """Rows of box, score and class, from floats."""
        (found, *_) = self.session.run(None, {self.name: pixels})
        return found[0] if found.shape[-1] == 6 else self._suppressed(found[0])

    def _suppressed(self, found: np.ndarray) -> np.ndarray:
        scores, labels = torch.from_numpy(found[4:]).max(0)
        keep = scores > LOWEST
        centers, sizes = torch.from_numpy(found[:4, keep.numpy()]).T.split(2, 1)
        boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], 1)
        best = batched_nms(boxes, scores[keep], labels[keep], IOU)
        rows = [boxes[best], scores[keep][best, None], labels[keep][best, None].float()]
        return torch.cat(rows, 1).numpy()

    def whole(self, image: Image.Image) -> np.ndarray:
        pixels, scale = squared(image, self.size)
        rows = self.graph(pixels.astype(np.float32) / 255)
        rows[:, :4] /= scale
        return rows


def squared(image: Image.Image, size: int) -> tuple[np.ndarray, float]:
    """The image (1, 3, size, size) uint8, with its aspect ratio and padding, and its scale."""
    scale = size / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.BILINEAR)
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[: small.height, : small.width] = np.asarray(small)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), scale


def in_turn(sides: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after two that warm up."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-2, rounds):
        for side, run in sides.items():
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run(number)
            if number >= 0:
                seconds[side].append(time.perf_counter() - begin)
    return seconds


def report(seconds: dict[str, list[float]], base: str | None) -> dict[str, dict[str, float]]:
    found = {}
    for side, own in seconds.items():
        median = statistics.median(own)
        found[side] = {"ms": round(1000 * median, 2), "images_per_second": round(1 / median, 1)}
        if base is not None and side != base:
            ratios = [other / one for one, other in zip(own, seconds[base], strict=True)]
            found[side]["ratio"] = round(statistics.median(ratios), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=existing, help="a file of visionkit export")
    parser.add_argument("images", type=existing, help="a folder")
    parser.add_argument("--also", type=existing, nargs="+", default=[], help="more such files")
    parser.add_argument("--other", type=existing, help="an ONNX file of another program")
    parser.add_argument("--size", type=count, default=320, help="side of the input, in pixels")
    parser.add_argument("--limit", type=count, default=20, help="images")
    parser.add_argument("--rounds", type=count, default=100)
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    files = [file for file, _ in islice(find_images([args.images]), args.limit)]
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = [squared(image, args.size)[0] for image in images]
    floats = [one.astype(np.float32) / 255 for one in pixels]
    ours = {Path(path).name: visionkit.load(path) for path in (args.model, *args.also)}
    graph: dict[str, Callable[[int], object]] = {}
    whole: dict[str, Callable[[int], object]] = {}
    for path in (args.model, *args.also):
        own, model = session(path, args.threads), ours[Path(path).name]
        graph[Path(path).name] = lambda i, own=own: own.run(
            None, {"images": pixels[i % len(pixels)]}
        )
        whole[Path(path).name] = lambda i, model=model: model.predict(images[i % len(images)])
    base = None
    found = {name: sum(len(m.predict(i).above()) for i in images) for name, m in ours.items()}
    if args.other:
        other, base = Other(args.other, args.size, args.threads), Path(args.other).name
        graph[base] = lambda i: other.graph(floats[i % len(floats)])
        whole[base] = lambda i: other.whole(images[i % len(images)])
        found[base] = sum(int((other.whole(image)[:, 4] > LOWEST).sum()) for image in images)
    result = {
        "threads": args.threads,
        "images": len(images),
        "rounds": args.rounds,
        "load": [round(load, 1) for load in os.getloadavg()],
        "objects_per_image": {name: round(n / len(images), 1) for name, n in found.items()},
        "graph": report(in_turn(graph, args.rounds), base),
        "whole": report(in_turn(whole, args.rounds), base),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    start(main)
