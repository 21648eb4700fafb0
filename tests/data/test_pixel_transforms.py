"""Blur, noise, compression, erasing, colors and the two policies against torchvision and Pillow."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from visionkit.data import transforms as T
from visionkit.data.masks import Bitmap
from visionkit.data.sample import Sample
from visionkit.data.transforms.policies import ONE_WAY, OPERATIONS, _largest
from visionkit.types import IGNORE

SIZE = (60, 80)


def smooth(seed=0, size=SIZE):
    values = np.random.default_rng(seed).integers(10, 240, (3, 9, 9), np.uint8)
    return Sample(F.resize(torch.from_numpy(values), list(size)), image_id=0, orig_size=size)


def labeled(*boxes):
    count = len(boxes)
    return replace(
        smooth(),
        boxes=np.array(boxes, np.float32),
        labels=np.arange(count),
        iscrowd=np.zeros(count, bool),
        area=np.ones(count, np.float32),
        semantic=torch.full(SIZE, 3, dtype=torch.uint8),
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def difference(one, other):
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("size", [SIZE, (3, 50), (1, 9)])
def test_blur_is_torchvisions(size):
    sample = smooth(size=size)
    found = T.GaussianBlur(sigma=(1.5, 1.5), p=1)(sample, rng(), 80)
    width = 2 * min(5, min(size) - 1) + 1
    assert difference(found.image, F.gaussian_blur(sample.image, [width] * 2, [1.5, 1.5])) <= 1


def test_noise_has_its_deviation_and_does_not_wrap_around():
    gray = Sample(torch.full((3, 100, 100), 128, dtype=torch.uint8), 0, (100, 100))
    found = T.Noise(std=(10, 10), p=1)(gray, rng(), 100).image.float()
    assert found.mean() == pytest.approx(128, abs=0.3)
    assert found.std() == pytest.approx(10, abs=0.2)
    assert not torch.equal(found[0], found[1])  # each channel has its own
    assert torch.equal(T.Noise(std=(0, 0), p=1)(gray, rng(), 100).image, gray.image)
    white = replace(gray, image=torch.full((3, 100, 100), 250, dtype=torch.uint8))
    assert T.Noise(std=(5, 5), p=1)(white, rng(), 100).image.min() > 220


def test_jpeg_is_pillows():
    sample, file = smooth(), io.BytesIO()
    Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=20)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(T.Jpeg(quality=(20, 20), p=1)(sample, rng(), 80).image, expected)
    worse, better = (
        (T.Jpeg(quality=(q, q), p=1)(sample, rng(), 80).image.float() - sample.image).std()
        for q in (5, 95)
    )
    assert worse > 2 * better


def test_equalize_is_torchvisions():
    assert torch.equal(T.Equalize(p=1)(smooth(), rng(), 80).image, F.equalize(smooth().image))


def test_erasing_leaves_labels_but_what_is_hidden():
    hidden, half, free = [25, 20, 35, 30], [10, 10, 45, 50], [70, 0, 78, 9]
    sample = labeled(hidden, half, free)
    erase = T.RandomErasing(scale=(0.2, 0.2), ratio=(1, 1), value=7, p=1)
    seen = set()
    for seed in range(60):
        new = erase(sample, rng(seed), 80)
        gone = (new.image == 7).all(0)
        assert gone.sum() == 31 * 31 and torch.equal(new.semantic == IGNORE, gone)
        assert torch.equal(new.image[:, ~gone], sample.image[:, ~gone])
        kept = new.target()["labels"].tolist()
        for label, (x0, y0, x1, y1) in enumerate((hidden, half, free)):
            assert (label in kept) == (not gone[y0:y1, x0:x1].all())
        assert torch.equal(new.target()["boxes"], torch.from_numpy(sample.boxes[kept]))
        seen.add(tuple(kept))
    assert {(0, 1, 2), (1, 2)} <= seen


def test_erased_objects_stay_gone():
    """Also where a later warp computes boxes from outlines."""
    sample = labeled([20, 20, 30, 30])
    sample.segmentations = [Bitmap.of(np.pad(np.ones((10, 10), bool), ((20, 30), (20, 50))))]
    erase = T.RandomErasing(scale=(0.6, 0.6), ratio=(1, 1), p=1)
    counts = set()
    for seed in range(20):
        new = erase(sample, rng(seed), 80)
        there = len(new.target()["boxes"])
        assert len(T.Affine(translate=0)(new, rng(seed), 80).target()["boxes"]) == there
        counts.add(there)
    assert counts == {0, 1}


def test_erased_shares_and_random_values():
    sample, shares, ratios = smooth(), [], []
    for seed in range(100):
        new = T.RandomErasing(scale=(0.1, 0.3), ratio=(0.5, 2), value=0, p=1)(sample, rng(seed), 80)
        rows, columns = (new.image == 0).all(0).nonzero(as_tuple=True)
        height, width = (int(x.max() - x.min() + 1) for x in (rows, columns))
        shares.append(height * width / 4800)
        ratios.append(height / width)
    assert 0.09 < min(shares) < 0.12 and 0.27 < max(shares) < 0.31
    assert 0.48 < min(ratios) < 0.6 and 1.6 < max(ratios) < 2.1
    changed = T.RandomErasing(scale=(0.5, 0.5), p=1)(sample, rng(1), 80).image != sample.image
    assert 0.4 < changed.float().mean() < 0.55
    whole = T.RandomErasing(scale=(1.0, 1.0), ratio=(1, 1), p=1)(sample, rng(), 80)
    assert whole is sample  # no such rectangle fits


def test_ranges_of_color_jitter():
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    sample = smooth()
    darker = T.ColorJitter(**{**still, "brightness": (0.5, 0.5)})(sample, rng(), 80)
    assert difference(darker.image, F.adjust_brightness(sample.image, 0.5)) <= 1
    gray = T.ColorJitter(**{**still, "saturation": (0, 0)})(sample, rng(), 80)
    assert difference(gray.image, T.Grayscale(p=1)(sample, rng(), 80).image) <= 1
    turned = T.ColorJitter(**{**still, "hue": (0.25, 0.25)})(sample, rng(), 80)
    back = T.ColorJitter(**{**still, "hue": (-0.25, -0.25)})(turned, rng(), 80)
    assert (back.image.float() - sample.image).abs().mean() < 8  # but for what was clipped


def test_channels_are_exchanged_and_each_change_has_its_probability():
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    sample = smooth()
    orders = set()
    for seed in range(60):
        new = T.ColorJitter(**still, shuffle=1.0)(sample, rng(seed), 80).image
        match = [[torch.equal(a, b) for b in sample.image] for a in new]
        assert np.array(match).sum() == 3
        orders.add(tuple(row.index(True) for row in match))
    assert len(orders) == 6
    jitter = T.ColorJitter(brightness=(0.5, 0.5), contrast=0, saturation=0, hue=0, each=0.3)
    changed = sum(
        not torch.equal(jitter(sample, rng(seed), 80).image, sample.image) for seed in range(300)
    )
    assert 60 < changed < 120


@pytest.mark.parametrize("kind", [T.RandAugment, T.TrivialAugment])
def test_operations_are_those_of_torchvision(kind):
    theirs = (v2.RandAugment if kind is T.RandAugment else v2.TrivialAugmentWide)()
    assert {*theirs._AUGMENTATION_SPACE} == {*OPERATIONS}
    for name, (_, signed) in theirs._AUGMENTATION_SPACE.items():
        assert signed == (name not in ONE_WAY)


@pytest.mark.parametrize("level", [0, 9, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_at_a_magnitude_is_torchvisions(name, level):
    theirs, sample = v2.RandAugment(), smooth()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    values = magnitudes(31, *SIZE)
    for sign in (1, -1) if signed else (1,):
        strength = 0.0 if values is None else sign * float(values[level])
        expected = theirs._apply_image_or_video_transform(
            sample.image, name, strength, F.InterpolationMode.BILINEAR, {torch.Tensor: [114.0] * 3}
        )
        ours = sign * level / 30 * _largest(name, SIZE)
        found = OPERATIONS[name](sample, ours, 114).image
        if name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
            near = (found.int() - expected.int()).abs().amax(0) <= 1
            assert near.float().mean() > 0.95  # all but where the fill begins
        else:
            assert difference(found, expected) <= 1


def test_policies_use_every_operation(monkeypatch):
    used, strengths = [], []

    def spy(name):
        def apply(sample, strength, fill):
            used.append(name)
            strengths.append(strength)
            return sample

        return apply

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, spy(name))
    for seed in range(100):
        T.RandAugment(num_ops=3, magnitude=15)(smooth(), rng(seed), 80)
    assert len(used) == 300 and {*used} == {*OPERATIONS}
    angles = {s for n, s in zip(used, strengths, strict=True) if n == "Rotate"}
    assert angles == {-15.0, 15.0}
    used.clear()
    strengths.clear()
    for seed in range(1000):
        T.TrivialAugment()(smooth(), rng(seed), 80)
    assert len(used) == 1000 and {*used} == {*OPERATIONS}
    angles = {s for n, s in zip(used, strengths, strict=True) if n == "Rotate"}
    assert -135 <= min(angles) < -110 and 110 < max(angles) <= 135
