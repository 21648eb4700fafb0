"""Random transforms of training images with their labels, and the network's input size.

A transform is called as `transform(sample, rng, image_size)`; all its randomness comes from `rng`.
A transform with `resizes = True` resizes the image to the network's size itself. If a list has
none, the image is resized before the first.
"""

from visionkit.data.transforms.color import ColorJitter, Grayscale
from visionkit.data.transforms.compose import Compose as Compose  # for other training loops
from visionkit.data.transforms.geometry import (
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    ScaleJitter,
    VerticalFlip,
)

__all__ = [  # what `type:` can name under `transforms`
    "ColorJitter",
    "Grayscale",
    "HorizontalFlip",
    "RandomCrop",
    "RandomResizedCrop",
    "ScaleJitter",
    "VerticalFlip",
]
