"""Compare the training loader with torchvision's: decode, resize, flip, collate.

    python scripts/bench/loader.py IMAGES ANNOTATIONS [--size 320] [--batch 8] [--workers 2]

`torchvision_float` is CocoDetection with `wrap_dataset_for_transforms_v2` and a v2 pipeline that
resizes floats, as its detection models do; `torchvision_uint8` resizes before the conversion, which
is faster. Both pad the batch. `visionkit` is `Source.train_batches`; with `--affine` it also turns,
scales and shears images, which the others do not. All read the same images in
the same order, with masks and with only boxes. The sides alternate over multiple rounds, each with
new workers and some unmeasured batches first; prints medians and ratios as JSON. `--mosaic`
measures visionkit alone, with `Mosaic` and `Affine`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torchvision
from arguments import count, existing, start
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from visionkit.data.datasets.coco import Coco
from visionkit.data.loading.samplers import InfiniteBatchSampler
from visionkit.data.loading.source import Source
from visionkit.data.transforms import Affine, HorizontalFlip, Mosaic


class Indices:
    """The batches of visionkit's sampler without the positions."""

    def __init__(self, stream: InfiniteBatchSampler) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        return ([index for index, _ in batch] for batch in self.stream)


def padded(items: list) -> tuple[torch.Tensor, list[dict]]:
    """(B, 3, H, W) float32 with zeros at the right and the bottom, and the targets."""
    sides = [max(image.shape[axis] for image, _ in items) for axis in (1, 2)]
    height, width = (-(-side // 32) * 32 for side in sides)
    images = torch.zeros(len(items), 3, height, width)
    for slot, (image, _) in zip(images, items, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return images, [target for _, target in items]


def of_torchvision(args: argparse.Namespace, masks: bool, resize_floats: bool) -> Callable:
    to_float = v2.ToDtype(torch.float32, scale=True)
    resize = v2.Resize(None, max_size=args.size, antialias=True)
    middle = [to_float, resize] if resize_floats else [resize, to_float]
    steps = [v2.ToImage(), v2.RandomHorizontalFlip(), *middle]
    steps += [v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = torchvision.datasets.CocoDetection(
            args.images, args.annotations, transforms=v2.Compose(steps)
        )
    annotated = {index for index, id_ in enumerate(dataset.ids) if dataset.coco.imgToAnns[id_]}
    keys = ["image_id", "boxes", "labels", *(["masks"] if masks else [])]
    wrapped = torchvision.datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=keys)
    # The wrapper returns no boxes for images without objects, which the transforms reject.
    indices = torch.tensor(sorted(annotated))

    def batches(round_: int) -> Iterator:
        stream = InfiniteBatchSampler(len(indices), args.batch, seed=round_)
        subset = torch.utils.data.Subset(wrapped, indices.tolist())
        return iter(
            DataLoader(
                subset,
                batch_sampler=Indices(stream),
                num_workers=args.workers,
                collate_fn=padded,
            )
        )

    return batches


def of_visionkit(args: argparse.Namespace, masks: bool) -> Callable:
    dataset = Coco(args.images, args.annotations, masks=masks)
    first = Mosaic() if args.mosaic else HorizontalFlip()
    transforms = [first, *[Affine()] * (args.affine or args.mosaic)]
    source = Source("main", ["x"], dataset, None, args.batch, args.size, transforms)
    return lambda round_: source.train_batches(seed=round_, start=0, workers=args.workers)


def images_per_second(batches: Iterator, steps: int, batch: int, warmup: int) -> float:
    for _ in range(warmup):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * batch / (time.perf_counter() - start)


def measure(args: argparse.Namespace, masks: bool) -> dict:
    makers = {"visionkit": of_visionkit(args, masks)}
    if not args.mosaic:
        makers["torchvision_float"] = of_torchvision(args, masks, resize_floats=True)
        makers["torchvision_uint8"] = of_torchvision(args, masks, resize_floats=False)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for round_ in range(args.rounds):
        for name, maker in makers.items():
            batches = maker(round_)
            # More batches than the workers prefetch.
            warmup = 2 * max(args.workers, 1) + 1
            rates[name].append(images_per_second(batches, args.steps, args.batch, warmup))
            del batches
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        f"to_{name}": round(medians["visionkit"] / value, 2)
        for name, value in medians.items()
        if name != "visionkit"
    }
    return {"images_per_second": {n: round(v, 1) for n, v in medians.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=existing, help="a folder of images")
    parser.add_argument("annotations", type=existing, help="a COCO file")
    parser.add_argument("--size", type=count, default=320, help="longest side of the images")
    parser.add_argument("--batch", type=count, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=count, default=40, help="batches in a round")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--affine", action="store_true", help="visionkit warps images too")
    parser.add_argument("--mosaic", action="store_true", help="mosaics, of visionkit alone")
    parser.add_argument("--boxes", action="store_true", help="only the case without masks")
    args = parser.parse_args()
    torch.manual_seed(0)
    result = {"torch": torch.__version__, "torchvision": torchvision.__version__, **vars(args)}
    for name in ("boxes",) if args.boxes else ("masks", "boxes"):
        result[name] = measure(args, masks=name == "masks")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    start(main)
