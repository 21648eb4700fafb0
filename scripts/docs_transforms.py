"""Draw docs/images/transforms/*.jpg: what each transform makes of a generated image.

    python scripts/docs_transforms.py [NAME ...]

The first image of a row is the one before. Boxes and masks are those of the training targets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from visionkit.config.components import components
from visionkit.data.datasets.shapes import SHAPES, Shapes
from visionkit.data.sample import Sample
from visionkit.visualization.draw import contact_sheet, draw_target, save_image

FOLDER = Path(__file__).parents[1] / "docs/images/transforms"
SIZE = 160
SHOWN = {  # what is not the default, so that the effect can be seen
    "Affine": {"degrees": 30.0},
    "ColorJitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.8, "hue": 0.2},
    "GaussianBlur": {"sigma": (1.0, 4.0)},
    "Jpeg": {"quality": (3, 15)},
    "Noise": {"std": (15.0, 40.0)},
    "Perspective": {"distortion": 0.45},
    "RandAugment": {"magnitude": 15},
}


def drawn(sample: Sample) -> Image.Image:
    target = sample.target()
    shown = {key: target[key] for key in ("boxes", "labels", "masks")}
    return draw_target(sample.image, shown, {"labels": SHAPES})


def row(name: str, sample: Sample) -> Image.Image:
    """The image before, and up to three results that differ."""
    arguments = dict(SHOWN.get(name, {}))
    make = components("transforms")[name]
    if "p" in (make.__init__.__kwdefaults__ or {}):
        arguments["p"] = 1.0
    transform, images = make(**arguments), [drawn(sample)]
    for seed in range(12):
        moved = transform(sample, np.random.default_rng((seed, 4)), SIZE)
        if (new := drawn(moved)) not in images:
            images.append(new)
    return contact_sheet(images[:4], columns=4, limit=SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # Those with images of several others are in the page of data.
    names = [name for name, one in components("transforms").items() if not hasattr(one, "others")]
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every transform")
    chosen = parser.parse_args().names or names
    if unknown := sorted({*chosen} - {*names}):
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(names)}")
    dataset = Shapes(num_images=24, size=SIZE, seed=5)
    sample = dataset[14].crop(0, 0, 120, SIZE)
    for name in chosen:
        save_image(row(name, sample), FOLDER / f"{name}.jpg", quality=80)


if __name__ == "__main__":
    main()
