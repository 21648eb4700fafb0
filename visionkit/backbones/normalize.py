"""From bytes to what a trunk was trained on: scaled, shifted, zero beyond each picture's edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionkit.errors import ConfigError

Rgb = tuple[float, float, float]
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """`(images / 255 - mean) / std`, as torchvision's models expect, in one scale and one shift.

    The buffers are not persistent: a state_dict keeps the names of torchvision's models.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        if not all(value > 0 for value in std):
            raise ConfigError(f"std: got {list(std)}; each of the three must be above 0")
        mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * std_3)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean_3 / std_3).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None, like: nn.Module
    ) -> Tensor:
        """(B, 3, H, W) uint8 to float, laid out in memory as the weights of `like` are.

        What lies beyond each image's (h, w) in `sizes` becomes exactly 0.
        """
        pixels = (images * self.scale).add_(self.shift)
        pixels = pixels.contiguous(memory_format=memory_format(like))
        if sizes is not None:
            for image, (h, w) in zip(pixels, sizes, strict=True):
                image[:, h:] = 0
                image[:, :, w:] = 0
        return pixels


def memory_format(module: nn.Module) -> torch.memory_format:
    """Whether a trunk is kept channels-last; its first convolution tells."""
    weight = next(p for p in module.parameters() if p.dim() == 4)
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last
