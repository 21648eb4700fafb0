"""Masks and maps in original pixels, against torchvision, pycocotools and torch's own sampling."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from visionkit.models.heads import pixel_loss
from visionkit.ops.boxes import rescale_boxes
from visionkit.ops.original import encode_columns, encode_masks, paste, rescaled, semantic_map


def paste_whole(probs, box, size):
    columns, top, left = paste(probs, box, size)
    whole = np.zeros(size, np.float32)
    whole[top : top + columns.shape[1], left : left + columns.shape[0]] = columns.T
    return torch.from_numpy(whole)


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 12, 50, 40],
        [10.3, 12.7, 11.1, 12.9],  # under a pixel
        [0.0, 0, 90, 60],
        [-20.5, -30.2, 40, 35.5],
        [70.0, 50, 200, 300],
        [-300.0, -200, 700, 500],  # far greater than the image
        [5.0, 5, 5, 5],
    ],
)
def test_paste_equals_torchvision(box):
    probs, size = torch.rand(28, 28), (60, 90)
    expected = paste_masks_in_image(probs[None, None], torch.tensor([box]), size)[0, 0]
    found = paste_whole(probs.numpy(), np.array(box, np.float32), size)
    torch.testing.assert_close(found, expected)
    assert expected.any()


@pytest.mark.parametrize(
    "box",
    [
        *([200.0, 10, 240, 30], [-50.0, -50, -10, -10], [10, 90, 30, 99]),
        *([np.nan] * 4, [-np.inf, 0, np.inf, 9]),
    ],
)
def test_paste_outside_of_the_image_is_empty(box):
    (mask,) = encode_masks(np.ones((1, 28, 28)), np.array([box], np.float32), (60, 90))
    assert mask["size"] == [60, 90]
    assert coco_mask.area(mask) == 0


def test_many_masks_equal_torchvision():
    """Blobs in boxes of all sizes, some beyond the image: pixel by pixel."""
    rng, size = np.random.default_rng(0), (120, 160)
    center, extent = rng.uniform(5, 115, (60, 2)), rng.uniform(1, 90, (60, 2))
    boxes = np.concatenate([center - extent / 2, center + extent / 2], 1).astype(np.float32)
    y, x = np.mgrid[:28, :28]
    blob = 10 - np.hypot(y - 14, x - 14) + rng.normal(0, 1.5, (60, 28, 28))
    probs = torch.from_numpy(blob.astype(np.float32)).sigmoid()
    whole = paste_masks_in_image(probs[:, None], torch.from_numpy(boxes), size)[:, 0] > 0.5
    found = np.stack([coco_mask.decode(rle) for rle in encode_masks(probs.numpy(), boxes, size)])
    assert np.array_equal(found, whole.numpy())


@pytest.mark.parametrize(
    ("top", "left", "shape"), [(0, 0, (7, 9)), (2, 3, (4, 5)), (6, 8, (1, 1)), (0, 8, (7, 1))]
)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_encoded_columns_equal_pycocotools(top, left, shape, density):
    patch = np.random.default_rng(0).random(shape) < density
    whole = np.zeros((7, 9), np.uint8, order="F")
    whole[top : top + shape[0], left : left + shape[1]] = patch
    assert encode_columns(patch.T, top, left, (7, 9)) == coco_mask.encode(whole)


@pytest.mark.parametrize(
    ("classes", "grid", "padded", "size", "orig"),
    [
        (3, (8, 8), (32, 32), (32, 32), (32, 32)),
        (21, (40, 40), (320, 320), (300, 320), (480, 512)),
        (2, (20, 20), (320, 320), (320, 213), (600, 400)),  # several parts
        (5, (9, 11), (64, 96), (33, 95), (17, 31)),  # smaller than the network's
        (4, (8, 8), (32, 32), (1, 32), (1, 700)),
        (1, (8, 8), (32, 32), (32, 32), (5, 5)),
        (3, (1, 1), (32, 32), (1, 1), (1, 1)),
    ],
)
def test_maps_equal_those_of_grid_sample(classes, grid, padded, size, orig):
    coarse = torch.randn(1, classes, 5, 5, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, grid, mode="bicubic")[0]
    found = semantic_map(logits.numpy(), size, padded, orig)
    assert found.shape == orig and found.dtype == np.uint8
    expected = pixel_loss.sampled_map(logits, size, padded, orig)
    assert np.array_equal(found, expected.numpy())
    shared = pixel_loss.semantic_map(logits, size, padded, orig)
    assert np.array_equal(found, shared.numpy())


def test_of_equal_logits_the_first_class_counts():
    assert not semantic_map(np.zeros((3, 2, 2)), (32, 32), (32, 32), (9, 9)).any()


def test_boxes_are_rescaled_as_those_of_heads():
    boxes = torch.rand(5, 4) * 300
    expected = rescale_boxes(boxes, (213, 320), (427, 640))
    found = rescaled(boxes.numpy(), (213, 320), (427, 640))
    assert found.dtype == np.float32 and np.array_equal(found, expected.numpy())


def test_torch_is_not_imported():
    code = "import sys; sys.modules['torch'] = None; import visionkit.ops.original"
    subprocess.run([sys.executable, "-c", code], check=True)
