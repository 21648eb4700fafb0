"""Images from their own features: an autoencoder of any size, a variational one of a fixed size.

The ground truth is the image itself, as floats in [0, 1], so no labels are needed. Padding is
excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, NonNegative
from visionkit.errors import ConfigError
from visionkit.metrics.reconstruction import Reconstruction
from visionkit.models.head import Head
from visionkit.models.heads.classification import coarsest_useful, pick_level
from visionkit.ops.layers import (
    adaptive_mean,
    constant_bias,
    conv_norm_relu,
    normal_noise,
    valid_cells,
)
from visionkit.types import Batch, Dataset, Evaluator, Features, HeadPrediction, Level, Loss, Size

NARROWEST = 16  # channels at full size, where each costs most
COARSEST = 32  # stride of the map that a VAE's decoder begins with
FIRST_LOG_VAR = -2.0
LOG_VAR_LIMIT = 10.0  # exp() of more loses all digits

Error = Literal["mse", "l1", "bce"]


class Decoder(nn.Module):
    """(B, in_channels, h, w) to logits (B, 3, h * stride, w * stride).

    One block (3x3 convolution, group norm, ReLU) at the stride of the input, then one for each
    doubling of the sides, then a 3x3 convolution to RGB. There are no connections from the encoder
    but the input.

    Doubling repeats the cells and convolves them. A transposed convolution would cover pixels
    unevenly and leave a checkerboard (Odena et al. 2016).

    widths: channels of the blocks, the coarsest first; the stride is 2 ** (len(widths) - 1).
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in widths:
            self.blocks.append(nn.Sequential(*conv_norm_relu(in_channels, width)))
            in_channels = width
        self.rgb = nn.Conv2d(in_channels, 3, 3, padding=1)
        # Nearly medium gray at the start. Exact gray would give the layers before no gradient.
        nn.init.normal_(self.rgb.weight, std=0.01)
        constant_bias(self.rgb, 0.0)

    def forward(self, cells: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            cells = block(F.interpolate(cells, scale_factor=2) if index else cells)
        return self.rgb(cells).float()


def mirrored_widths(levels: dict[str, Level], stride: int, widest: int) -> list[int]:
    """Channels of a decoder's blocks at the strides s, s/2, ..., 1, with s a power of two.

    They are the channels of the level of that stride, half the width before where there is none,
    and never above `widest`.
    """
    by_stride = {level.stride: level.channels for level in levels.values()}
    widths: list[int] = []
    while stride:
        halved = max(NARROWEST, widths[-1] // 2) if widths else widest
        widths.append(min(by_stride.get(stride, halved), widest))
        stride //= 2
    return widths


class Autoencoder(Head):
    """An image squeezed into a few channels of a coarse map and decoded again, at any size.

    A 1x1 convolution turns the features into a code; the decoder brings it to the full size through
    blocks that mirror the levels. It gets the code alone.
    Loss term: `reconstruction`, the mean over all valid pixels and channels of the batch.

    level: the feature map to read, of a stride that is a power of two; by default the coarsest
        whose stride is at most 32.
    code: channels of the bottleneck. An image of h x w keeps code * h * w / stride² numbers.
    channels: the widest that a block of the decoder may be.
    loss: of a value in [0, 1]: the squared error, the absolute error, or the binary cross-entropy,
        whose least value is above 0 where an image is not black or white.
    """

    required_targets = ()
    main_metric = "psnr"
    default_transforms = ("HorizontalFlip",)

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        code: Count = 64,
        channels: Count = 128,
        loss: Error = "mse",
    ):
        super().__init__()
        self.level = pick_level(levels, level, default=coarsest_useful(levels))
        in_channels, stride = levels[self.level]
        if stride & (stride - 1):
            listed = ", ".join(f"{name} ({found.stride})" for name, found in levels.items())
            raise ConfigError(
                f"level: {self.level!r} has stride {stride}, which is not a power of two; "
                f"choose a level whose stride is, of {listed}"
            )
        self.error = loss
        self.bottleneck = nn.Conv2d(in_channels, code, 1)
        self.decoder = Decoder(code, mirrored_widths(levels, stride, channels))

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, 3, h, w) of the pixels, h and w as of the map times its stride."""
        return {"logits": self.decoder(self.bottleneck(features[self.level]))}

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        logits = fitted(self(features)["logits"], batch.padded_size)
        errors = pixel_errors(logits, batch.images.float() / 255, self.error)
        valid = valid_cells(batch.size_tensor, logits, stride=1)[:, None]  # (B, 1, H, W)
        return {"reconstruction": Loss((errors * valid).sum(), 3 * valid.sum())}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """`reconstruction` (B, 3, H, W) uint8."""
        return {"reconstruction": to_bytes(fitted(outputs["logits"], size).sigmoid())}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `reconstruction` (3, h, w) uint8, at its size in the batch."""
        images = self.postprocess(outputs, batch.padded_size)["reconstruction"]
        return [
            {"reconstruction": image[:, :h, :w]}
            for image, (h, w) in zip(images, batch.sizes, strict=True)
        ]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return Reconstruction()


class VAE(Head):
    """A variational autoencoder (Kingma and Welling 2014): images as points of a latent space
    that is a standard normal, so that a sample of it decodes to a new image.

    The features, pooled to a fixed grid, give the mean and the log variance of the latent z; a
    sample of z (for a prediction: the mean) is decoded to `size` x `size` pixels, through blocks
    that mirror the levels. The ground truth is the image resized to that square, and a
    reconstruction is resized back.

    Loss terms, both per image and per value of it (3 * size² values), averaged over the batch:
    `reconstruction`, minus the log likelihood up to a constant: the squared error (a normal of
    variance 1/2), the absolute error (a Laplace of scale 1) or the binary cross-entropy; and `kl`,
    beta times the divergence from the standard normal. With beta 1 their sum times the number of
    values is minus the evidence lower bound. Per value, because the loss then is of the size of
    other heads' losses, whatever `size` is.

    level: the feature map to read; by default the coarsest whose stride is at most 32.
    size: side of the decoded images in pixels. Give it the `image_size` of the source.
    latent: dimensions of z. With 2, `visionkit predict` draws the whole plane.
    beta: weight of the divergence (Higgins et al. 2017). With the squared error it is the bound of
        a normal of variance beta/2. Lower keeps more of an image and makes worse samples.
    channels: the widest that a block of the decoder may be.
    loss: the error of a value, and so the likelihood, as above.
    """

    required_targets = ()
    main_metric = "psnr"
    default_transforms = ("HorizontalFlip",)

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        level: str | None = None,
        size: Count = 32,
        latent: Count = 16,
        beta: NonNegative = 1.0,
        channels: Count = 128,
        loss: Error = "mse",
    ):
        super().__init__()
        self.level = pick_level(levels, level, default=coarsest_useful(levels))
        in_channels, self.stride = levels[self.level]
        self.size, self.latent, self.beta, self.error = size, latent, beta, loss
        self.cells = -(-size // self.stride)  # on a side of the map that is read
        self.to_latent = nn.Linear(in_channels * self.cells**2, 2 * latent)
        # Samples begin close to their mean: with the prior's width, noise hides the images.
        nn.init.constant_(self.to_latent.bias[latent:], FIRST_LOG_VAR)
        # For any level the decoder begins with a map of 4 to 7 cells a side: from a single cell it
        # learns positions slowly.
        first = min(COARSEST, 1 << (max(1, size // 4).bit_length() - 1))
        self.grid = -(-size // first)  # rounded up; the excess is cut off
        widths = mirrored_widths(levels, first, channels)
        self.from_latent = nn.Linear(latent, widths[0] * self.grid**2)
        self.decoder = Decoder(widths[0], widths)

    def encode(self, features: Features, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each image's z, both (B, latent) float32."""
        pooled = adaptive_mean(features[self.level], sizes, self.stride, self.cells)
        mean, log_var = self.to_latent(pooled.flatten(1)).float().chunk(2, dim=1)
        return mean, log_var.clamp(-LOG_VAR_LIMIT, LOG_VAR_LIMIT)

    def decode_latent(self, z: Tensor) -> Tensor:
        """The images (N, 3, size, size) float32 in [0, 1] of the latents z (N, latent)."""
        return self._logits(z).float().sigmoid()

    def _logits(self, z: Tensor) -> Tensor:
        cells = self.from_latent(z).relu().unflatten(1, (-1, self.grid, self.grid))
        return self.decoder(cells)[..., : self.size, : self.size]

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        mean, log_var = self.encode(features, batch.size_tensor)
        z = mean + (log_var / 2).exp() * normal_noise(mean, batch.targets)
        errors = pixel_errors(self._logits(z), self._truth(batch), self.error)
        values = errors.new_full((), errors.numel())
        divergence = self.beta * kl_from_standard_normal(mean, log_var).sum()
        return {"reconstruction": Loss(errors.sum(), values), "kl": Loss(divergence, values)}

    def _truth(self, batch: Batch) -> Tensor:
        """The valid part of each image at size x size: (B, 3, size, size) float32 in [0, 1]."""
        square = (self.size, self.size)
        return for_each_size(
            batch.sizes,
            lambda rows, size: resized(batch.images[rows, :, : size[0], : size[1]] / 255, square),
        )

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """`images` (B, 3, size, size) in [0, 1], decoded from `latent_mean` (B, latent), and the
        divergence `kl` (B,) from the standard normal in nats, without beta."""
        mean, log_var = self.encode(features, sizes)
        kl = kl_from_standard_normal(mean, log_var)
        return {"images": self.decode_latent(mean), "latent_mean": mean, "kl": kl}

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The outputs as they are: `images` are resized one by one, since their sizes differ."""
        return outputs

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
        """Each image's `reconstruction` (3, h, w) uint8 at its size in the batch, `latent_mean`
        (latent,) and `kl` ()."""
        found = self.postprocess(outputs, batch.padded_size)
        return [
            {
                "reconstruction": to_bytes(resized(image[None], size)[0]),
                "latent_mean": mean,
                "kl": kl,
            }
            for image, size, mean, kl in zip(
                found["images"], batch.sizes, found["latent_mean"], found["kl"], strict=True
            )
        ]

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return Reconstruction(latent=True)


def fitted(logits: Tensor, size: Size) -> Tensor:
    """Logits (B, 3, h, w) at the size (h, w) of the batch's images."""
    height, width = size
    if logits.shape[-2] < height or logits.shape[-1] < width:
        # Maps of backbones without padding are a little smaller than the stride says.
        larger = max(logits.shape[-2], height), max(logits.shape[-1], width)
        logits = F.interpolate(logits, larger, mode="bilinear")
    return logits[..., :height, :width]


def pixel_errors(logits: Tensor, images: Tensor, error: Error) -> Tensor:
    """The error of each value of `images` in [0, 1], against the sigmoid of `logits`."""
    if error == "bce":
        return F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    difference = logits.sigmoid() - images
    return difference.square() if error == "mse" else difference.abs()


def kl_from_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Divergence of normals N(mean, exp(log_var)) from N(0, 1) in nats: (B, L), (B, L) to (B,)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def for_each_size(sizes: Sequence[Size], function: Callable[[list[int], Size], Tensor]) -> Tensor:
    """`function(rows, size)` for all images of one size at a time; the results in batch order."""
    groups: dict[Size, list[int]] = {}
    for row, size in enumerate(sizes):
        groups.setdefault(size, []).append(row)
    results = torch.cat([function(rows, size) for size, rows in groups.items()])
    order = torch.tensor([row for rows in groups.values() for row in rows])
    return results[order.argsort().to(results.device)]


def resized(images: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) floats at `size`, antialiased as the data path resizes; the same if it fits."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8."""
    return (images * 255).round().to(torch.uint8)
