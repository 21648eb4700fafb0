"""Resizing without torch gives the pixels of torchvision."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visionkit.data.resize import fit_within, resized, resized_floats
from visionkit.data.sample import Sample

SIZES = [(7, 5), (1, 1), (480, 640), (123, 457), (640, 31), (300, 2)]
NEW = [(1, 1), (3, 2), (7, 5), (237, 178), (320, 240), (480, 640), (33, 700)]
INTEGERS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("new", NEW)
def test_bytes_are_those_of_the_eager_path(size, new):
    shape = (*size, 3)
    image = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8).transpose(2, 0, 1)
    expected = Sample(torch.from_numpy(image), 0, size).resize(new).image.numpy()
    found = resized(image, new)
    assert found.shape == (3, *new) and found.dtype == np.uint8
    differ = np.abs(found.astype(int) - expected)
    # One weight in thousands is halfway between two integers.
    assert differ.max() <= 1 and (differ > 0).mean() <= (0.001 if INTEGERS else 0.3)


def test_extreme_values_stay():
    for value in (0, 255):
        image = np.full((3, 97, 61), value, np.uint8)
        assert (resized(image, (333, 20)) == value).all()


@pytest.mark.parametrize("new", [(8, 8), (30, 64), (5, 3)])
def test_floats_are_those_of_torch(new):
    image = torch.rand(3, 8, 8)
    expected = F.interpolate(image[None], new, mode="bilinear", antialias=True)[0]
    found = resized_floats(image.numpy(), new)
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize(
    ("size", "rule", "limit", "fitted"),
    [
        ((50, 100), 64, None, (32, 64)),
        ((50, 100), 64, (32, 64), (32, 64)),
        ((100, 100), 64, (32, 64), (32, 32)),
        ((640, 64), 64, (32, 64), (32, 3)),
        ((9, 9), "28x14", (14, 28), (14, 28)),
        ((9, 9), "28x14", (32, 32), (32, 32)),
        ((9, 9), "28x14", None, (14, 28)),
    ],
)
def test_a_size_within_an_input(size, rule, limit, fitted):
    assert fit_within(size, rule, limit) == fitted


def test_torch_is_not_imported():
    code = "import sys; sys.modules['torch'] = None; import visionkit.data.resize"
    subprocess.run([sys.executable, "-c", code], check=True)
