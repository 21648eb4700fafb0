"""Where the points of an image went when transforms moved its pixels: read from the pixels alone.

Two images are moved: gradients, from which a map is fitted coarsely, and waves of 5 gray levels a
pixel, from which it is fitted to a few hundredths of a pixel. Masks that are moved as images and
cut at half their gray would lose what is thinner than a pixel, and are blurred once more by each
transform.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from visionkit.data.masks import Polygons, Segmentation, extent, moved, paint
from visionkit.data.sample import FILL, Sample

Moved = Callable[[Sequence[Sample]], Sample]
REACH, SLOPE, LOW = 48.0, 5.0, 8.0  # half a wave in pixels, levels a pixel, lowest level
SHOWN = (FILL + 255) / 2


@dataclass
class Places:
    """The map from points of a new image to those of an old one, and (h, w) where that is shown."""

    matrix: np.ndarray
    shown: np.ndarray
    size: tuple[int, int]  # (h, w) of the old image

    def points(self) -> np.ndarray:
        """The old places (h, w, 2) of the centers of all pixels."""
        y, x = np.mgrid[: self.shown.shape[0], : self.shown.shape[1]] + 0.5
        return moved(np.stack([x, y], -1), self.matrix)

    def mask(self, outline: Segmentation) -> torch.Tensor:
        """The pixels (h, w) whose centers show the object."""
        found = _inside(self.points(), outline, self.size)
        return torch.from_numpy(found & self.shown)

    def before(self, box: Sequence[float]) -> np.ndarray:
        """The old box xyxy of a new one, where the image was not turned but by quarters."""
        x1, y1, x2, y2 = box
        return extent(moved(np.array([[x1, y1], [x2, y2]]), self.matrix))


def places(move: Moved, samples: Sequence[Sample], which: int) -> Places | None:
    """Where image `which` of those that `move` makes into one is; None if hardly any is shown."""
    h, w = samples[which].size
    x, y = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
    noise = 2 * torch.randn(2, h, w, generator=torch.Generator().manual_seed(0))

    def shown(levels: list[torch.Tensor]) -> np.ndarray:
        marked = [replace(one, image=torch.full_like(one.image, FILL)) for one in samples]
        rows = [one + part for one, part in zip(levels, noise, strict=True)]
        image = torch.stack([*rows, torch.full((h, w), 255.0)])
        marked[which] = replace(samples[which], image=image.round().clip(0, 255).to(torch.uint8))
        return move(marked).image.numpy()

    coarse = shown([LOW + x * (240 / w), LOW + y * (240 / h)])
    rows, columns = np.nonzero(coarse[2] >= 254)
    if len(rows) < 300:
        return None
    new = np.stack([columns, rows], 1) + 0.5
    levels = coarse[:2, rows, columns].T.astype(float)
    first = _fitted(new, (levels - LOW) * [w / 240, h / 240])
    fine = shown([LOW + SLOPE * _wave(x), LOW + SLOPE * _wave(y)])
    guess = moved(new, first)
    turn = np.floor(guess / REACH)
    reach = (fine[:2, rows, columns].T - LOW) / SLOPE
    exact = np.where(turn % 2 == 0, turn * REACH + reach, (turn + 1) * REACH - reach)
    clear = (np.abs(guess - REACH * (turn + 0.5)) < REACH / 2 - 5).all(1)
    if clear.sum() < 100:
        return None
    return Places(_fitted(new[clear], exact[clear]), coarse[2] > SHOWN, (h, w))


def _wave(points: torch.Tensor) -> torch.Tensor:
    return REACH - (points % (2 * REACH) - REACH).abs()


def _fitted(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The (3, 3) matrix that moves points (N, 2) to others, by least squares of their distance."""
    some = np.random.default_rng(0).permutation(len(new))[:12_000]
    new, old = new[some], old[some]
    center, scale = new.mean(0), max(np.ptp(new), 1) / 2
    middle = old.mean(0)
    x, y = ((new - center) / scale).T
    u, v = ((old - middle) / scale).T
    one, none = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate(
        [
            np.stack([x, y, one, none, none, none, -u * x, -u * y], 1),
            np.stack([none, none, none, x, y, one, -v * x, -v * y], 1),
        ]
    )
    weights, wanted = np.ones(len(rows)), np.concatenate([u, v])
    for _ in range(3):  # divided by the divisors found: the distances themselves
        found = np.linalg.lstsq(rows * weights[:, None], wanted * weights, rcond=None)[0]
        weights = np.tile(1 / (found[6] * x + found[7] * y + 1), 2)
    inner = np.append(found, 1).reshape(3, 3)
    before = np.array([[1, 0, -center[0]], [0, 1, -center[1]], [0, 0, scale]])
    after = np.array([[scale, 0, middle[0]], [0, scale, middle[1]], [0, 0, 1]])
    matrix = after @ inner @ before
    return matrix / matrix[2, 2]


def _inside(points: np.ndarray, outline: Segmentation, size: tuple[int, int]) -> np.ndarray:
    """Whether points (h, w, 2) of an old image of `size` are in the object."""
    found = np.zeros(points.shape[:2], bool)
    near = ((points >= 0) & (points < [size[1], size[0]])).all(-1)
    if not isinstance(outline, Polygons):
        x, y = np.floor(points[near]).astype(int).T
        found[near] = paint([outline], size)[0][y, x]
        return found
    low, high = outline.points.min(0), outline.points.max(0)
    near &= ((points >= low) & (points <= high)).all(-1)
    x, y = points[near].T
    union = np.zeros(len(x), bool)
    for part in np.split(outline.points, outline.ends[:-1]):
        odd = np.zeros(len(x), bool)
        for (x1, y1), (x2, y2) in zip(part, np.roll(part, -1, 0), strict=True):
            if y1 != y2:
                odd ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        union |= odd
    found[near] = union
    return found
