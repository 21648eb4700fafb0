"""Random transforms of training images with their labels, and the network's input size.

A transform is called as `transform(sample, rng, image_size)`; all its randomness comes from `rng`.
Those in `mixing` get other images too.
A transform with `resizes = True` resizes the image to the network's size itself. If a list has
none, the image is resized before the first.
"""

from visionkit.data.transforms.color import ColorJitter, Equalize, Grayscale
from visionkit.data.transforms.compose import Compose as Compose  # for other training loops
from visionkit.data.transforms.geometry import (
    Affine,
    HorizontalFlip,
    Letterbox,
    Perspective,
    RandomCrop,
    RandomResizedCrop,
    Rotate90,
    ScaleJitter,
    VerticalFlip,
)
from visionkit.data.transforms.mixing import CopyPaste, CutMix, MixUp, Mosaic
from visionkit.data.transforms.policies import RandAugment, TrivialAugment
from visionkit.data.transforms.quality import GaussianBlur, Jpeg, Noise, RandomErasing

__all__ = [  # what `type:` can name under `transforms`
    "Affine",
    "ColorJitter",
    "CopyPaste",
    "CutMix",
    "Equalize",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Jpeg",
    "Letterbox",
    "MixUp",
    "Mosaic",
    "Noise",
    "Perspective",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "Rotate90",
    "ScaleJitter",
    "TrivialAugment",
    "VerticalFlip",
]
