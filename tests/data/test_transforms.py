"""Transforms move images, boxes, masks and maps alike, and draw only from the given generator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from visionkit.data import transforms as T
from visionkit.data.masks import Bitmap, Polygons, paint, scaling
from visionkit.data.resize import fit
from visionkit.data.sample import Sample
from visionkit.data.transforms.color import color_map

COLORS = torch.tensor([[60, 200, 90], [230, 80, 40], [30, 90, 220]], dtype=torch.uint8)
GEOMETRIC = [
    T.HorizontalFlip(p=1),
    T.VerticalFlip(p=1),
    T.ScaleJitter(low=0.4, high=2.5),
    T.RandomResizedCrop(scale=(0.2, 1.0)),
    T.RandomCrop(low=0.3, p=1),
]
ALL = [
    *GEOMETRIC,
    T.Affine(degrees=30),
    T.Perspective(p=1),
    T.Rotate90(p=1),
    T.Letterbox(),
    T.ColorJitter(hue=0.3),
    T.Equalize(p=1),
    T.GaussianBlur(p=1),
    T.Grayscale(p=1),
    T.Jpeg(p=1),
    T.Noise(p=1),
    T.RandAugment(),
    T.RandomErasing(p=1),
    T.TrivialAugment(),
]
ALWAYS_THE_SAME = (T.HorizontalFlip, T.VerticalFlip, T.Grayscale, T.Equalize, T.Letterbox)


def scene(seed, size=(120, 160)):
    """Three ellipses that do not touch, in flat colors: the image itself shows the masks."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    semantic = torch.zeros(height, width, dtype=torch.uint8)
    boxes, segmentations = [], []
    for i in range(3):
        radius = rng.uniform(0.3, 0.48, 2) * [width / 3, height]
        center = np.array([width * (i + 0.5) / 3, height / 2])
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        outline = Polygons(points, np.array([60]))
        mask = paint([outline], size)[0]
        image[:, mask] = COLORS[i][:, None]
        semantic[mask] = i + 1
        if i == 1:
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            outline = Bitmap(rle["counts"], size)
        segmentations.append(outline)
        boxes.append([*points.min(0), *points.max(0)])
    return Sample(
        image,
        image_id=seed,
        orig_size=size,
        boxes=np.array(boxes, np.float32),
        labels=np.arange(3),
        iscrowd=np.zeros(3, bool),
        area=np.ones(3, np.float32),
        segmentations=segmentations,
        semantic=semantic,
        class_id=1,
        identity=2,
    )


def shown(image, label):
    """Where that object's color is the nearest: the mask that it must have."""
    colors = torch.cat([torch.zeros(1, 3), COLORS.float()])
    distances = (image.float()[None] - colors[:, :, None, None]).norm(dim=1)
    return distances.argmin(0) == label + 1


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("image_size", [96, 200, (80, 128), "200x120"])
@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_masks_boxes_and_maps_stay_on_what_the_image_shows(transform, image_size):
    seen = 0
    for seed in range(6):
        moved = transform(scene(seed, (240, 320)), np.random.default_rng(seed), image_size)
        target = moved.target()
        assert target["size"] == tuple(moved.image.shape[1:])
        for label, mask, box in zip(
            target["labels"], target["masks"], target["boxes"], strict=True
        ):
            truth = shown(moved.image, label)
            if truth.sum() < 200:
                continue
            seen += 1
            assert iou(mask, truth) > 0.9
            assert iou(target["semantic"] == label + 1, truth) > 0.9
            rows, columns = truth.nonzero(as_tuple=True)
            tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (box - tight).abs().max() <= 3.5
        for label in set(range(3)) - set(target["labels"].tolist()):
            assert shown(moved.image, label).sum() < 200
    assert seen > 5


@pytest.mark.parametrize("name", ["hflip", "vflip", "crop"])
def test_flips_and_crops_equal_those_of_the_full_masks(name):
    sample = scene(3)
    masks = torch.from_numpy(paint(sample.segmentations, sample.size))
    if name == "crop":
        moved, expected = sample.crop(20, 33, 70, 90), masks[:, 20:90, 33:123]
    else:
        dim = -1 if name == "hflip" else -2
        moved, expected = getattr(sample, name)(), masks.flip(dim)
    found = moved.target()["masks"]
    assert torch.equal(found[1], expected[1])  # the bitmap, exactly
    assert all(iou(a, b) > 0.98 for a, b in zip(found, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(range(len(GEOMETRIC))), min_size=1, max_size=4),
)
def test_boxes_equal_a_point_by_point_reference(seed, chain):
    """Any chain moves a box as it moves the two corners of a polygon, clipped to the image."""
    rng = np.random.default_rng(seed)
    sample = scene(1)
    corners = rng.uniform(0, [160, 120], (5, 2, 2))
    sample.boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    sample.labels, sample.iscrowd = np.arange(5), np.zeros(5, bool)
    sample.area = np.ones(5, np.float32)
    sample.segmentations = [
        Polygons(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float), np.array([4]))
        for x0, y0, x1, y1 in sample.boxes
    ]
    for index in chain:
        before = sample.size
        sample = GEOMETRIC[index](sample, rng, 100)
        limit = np.array([sample.size[1], sample.size[0]])
        assert before[0] >= 1 and limit.min() >= 1
    assert (sample.boxes >= 0).all() and (sample.boxes[:, 2:] <= limit).all()
    target = sample.target()
    for box, outline in zip(sample.boxes, sample.segmentations, strict=True):
        visible = outline.points.clip(0, limit)
        # An earlier crop may have cut the box where the outline goes on, never the other way.
        assert (box[:2] >= visible.min(0) - 1e-3).all()
        assert (box[2:] <= visible.max(0) + 1e-3).all()
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
    assert ((target["boxes"][:, 2:] - target["boxes"][:, :2]) >= 1).all()


def test_resize_and_flip_of_boxes_by_hand():
    sample = scene(0, (100, 200))
    sample.boxes = np.array([[20, 10, 60, 50], [0, 0, 200, 100], [1, 1, 2, 2]], np.float32)
    assert sample.resize((50, 50)).boxes.tolist() == [
        [5, 5, 15, 25],
        [0, 0, 50, 50],
        [0.25, 0.5, 0.5, 1],
    ]
    assert sample.hflip().boxes[0].tolist() == [140, 10, 180, 50]
    assert sample.vflip().boxes[0].tolist() == [20, 50, 60, 90]
    assert sample.crop(20, 40, 60, 100).boxes.tolist() == [
        [0, 0, 20, 30],
        [0, 0, 100, 60],
        [0, 0, 0, 0],
    ]
    shrunk = sample.resize((50, 50)).target()
    assert shrunk["labels"].tolist() == [0, 1] and shrunk["masks"].shape == (2, 50, 50)
    assert shrunk["class_id"] == 1 and shrunk["identity"] == 2
    assert shrunk["orig_size"] == (100, 200) and shrunk["size"] == (50, 50)


def test_the_box_of_a_cut_object_is_that_of_what_is_left_of_it():
    sample = scene(0, (100, 100))
    half = Polygons(np.array([[0, 0], [80, 0], [0, 80]], float), np.array([3]))
    sample.boxes = np.array([[0, 0, 80, 80]] * 2, np.float32)
    sample.labels, sample.iscrowd = np.arange(2), np.zeros(2, bool)
    sample.area = np.ones(2, np.float32)
    sample.segmentations = [half, half.map(scaling([-1, -1], [80, 80]))]
    right = sample.crop(0, 60, 100, 40).target()  # the first has a corner of 20 x 20 left
    assert np.abs(right["boxes"].numpy() - [[0, 0, 20, 20], [0, 0, 20, 80]]).max() <= 1
    below = sample.crop(50, 50, 50, 50).hflip().resize((100, 100)).target()
    assert below["labels"].tolist() == [1]  # of the first nothing is left
    assert np.abs(below["boxes"].numpy() - [[40, 0, 100, 60]]).max() <= 1
    sample.segmentations = None
    assert sample.crop(50, 50, 50, 50).target()["boxes"].tolist() == [[0, 0, 30, 30]] * 2


def test_nothing_is_changed_in_place():
    for transform in ALL:
        sample, same = scene(5), scene(5)
        transform(sample, np.random.default_rng(0), 96)
        assert torch.equal(sample.image, same.image)
        assert torch.equal(sample.semantic, same.semantic)
        assert (sample.boxes == same.boxes).all() and sample.size == same.size


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_only_the_given_generator_matters(transform):
    def images(seed):
        rng = np.random.default_rng(seed)
        return [transform(scene(0), rng, 96).image for _ in range(4)]

    first = images(0)
    np.random.seed(5)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, images(0), strict=True))
    if not isinstance(transform, ALWAYS_THE_SAME):
        others = images(1)
        assert not all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, others, strict=True)
        )


@pytest.mark.parametrize("kind", [type(one) for one in ALL if hasattr(one, "p")])
def test_probabilities(kind):
    sample, rng = scene(0, (24, 32)), np.random.default_rng(0)
    if kind is T.ScaleJitter:  # which resizes always
        assert kind(p=0)(sample, rng, 32) is sample
        return
    changed = sum(kind(p=0.3)(sample, rng, 96) is not sample for _ in range(500))
    assert 110 < changed < 190
    assert kind(p=0)(sample, rng, 96) is sample


def test_images_without_labels_and_without_objects():
    plain = Sample(scene(0).image, image_id=0, orig_size=(120, 160))
    empty = scene(0)
    empty.boxes, empty.labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    empty.iscrowd, empty.area, empty.segmentations = np.zeros(0, bool), np.zeros(0, np.float32), []
    for transform in ALL:
        for seed in range(3):
            moved = transform(plain, np.random.default_rng(seed), 96)
            assert moved.target().keys() == {"image_id", "size", "orig_size"}
            target = transform(empty, np.random.default_rng(seed), 96).target()
            assert target["boxes"].shape == (0, 4)
            assert target["masks"].shape == (0, *target["size"])


def test_fit_makes_the_longest_side_the_size():
    assert fit((480, 640), 320) == (240, 320)
    assert fit((640, 480), 320) == (320, 240)
    assert fit((1, 1000), 100) == (1, 100)
    for side in range(1, 300):
        assert max(fit((side, 97), 224)) == 224
        assert fit((side, 300), 300) == (side, 300)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(20, 400), st.integers(20, 400), st.sampled_from([(80, 133), (100, 100), (64, 500)])
)
def test_fit_rounds_as_torchvision_does(height, width, image_size):
    transform = GeneralizedRCNNTransform(*image_size, [0.0] * 3, [1.0] * 3, size_divisible=1)
    (expected,) = transform([torch.zeros(3, height, width)])[0].image_sizes
    assert fit((height, width), image_size) == tuple(expected)


def test_a_fixed_size_is_that_of_every_image():
    for size in ((480, 640), (640, 480), (1, 1000), (300, 200)):
        assert fit(size, "300x200") == (200, 300)  # width first
    sample, rng = scene(0), np.random.default_rng(0)
    moved = sample.resize(fit(sample.size, "96x30"))  # from 160x120
    np.testing.assert_allclose(moved.boxes, sample.boxes * ([96 / 160, 30 / 120] * 2), rtol=1e-6)
    assert T.RandomResizedCrop()(sample, rng, "50x70").size == (70, 50)
    assert T.ScaleJitter(low=0.5, high=0.5)(sample, rng, "50x70").size == (35, 25)
    sizes = [T.ScaleJitter(low=0.5, high=2)(sample, rng, "50x70").size for _ in range(40)]
    assert all(h <= 70 and w <= 50 for h, w in sizes) and (70, 50) in sizes


def test_scale_jitter_sizes():
    rng = np.random.default_rng(0)
    sizes = [T.ScaleJitter(low=0.5, high=2)(scene(0), rng, 96).size for _ in range(80)]
    assert all(h <= 96 and w <= 96 for h, w in sizes)
    assert (96, 96) in sizes  # a window that is full on both sides
    assert min(w for _, w in sizes) < 60
    assert T.ScaleJitter(low=0.5, high=0.5)(scene(0), rng, 96).size == (36, 48)
    assert T.ScaleJitter(low=2, high=2, p=0)(scene(0), rng, 96).size == (72, 96)
    assert T.ScaleJitter(low=2, high=2)(scene(0), rng, (60, 100)).size == (60, 80)
    with pytest.raises(ValueError, match="low"):
        T.ScaleJitter(low=2, high=1)


def test_random_resized_crop_sizes_and_parts():
    sample, rng = scene(0), np.random.default_rng(0)
    assert T.RandomResizedCrop()(sample, rng, 64).size == (64, 64)
    assert T.RandomResizedCrop()(sample, rng, (60, 100)).size == (60, 80)
    whole = T.RandomResizedCrop(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))(sample, rng, 64)
    assert torch.equal(whole.image, sample.resize((64, 64)).image)
    for wrong in ({"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"ratio": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="scale"):
            T.RandomResizedCrop(**wrong)


def test_random_crop_keeps_the_center_of_an_object():
    rng = np.random.default_rng(0)
    centers = scene(0).boxes.reshape(3, 2, 2).mean(1)
    for _ in range(100):
        sample = scene(0)
        sample.iscrowd[2] = True
        moved = T.RandomCrop(low=0.1, p=1)(sample, rng, 96)
        left, top = moved.segmentations[0].points[0] - sample.segmentations[0].points[0]
        inside = centers[:2] + np.array([left, top])
        assert ((inside >= 0) & (inside <= [moved.size[1], moved.size[0]])).all(1).any()
        assert moved.size[0] >= 12 and moved.size[1] >= 16


def noise(seed=0):
    values = np.random.default_rng(seed).integers(20, 120, (3, 30, 40), np.uint8)
    return Sample(torch.from_numpy(values), image_id=0, orig_size=(30, 40))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colors_equal_torchvision(name):
    """Where nothing is clipped in between, up to the rounding."""
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    jitter = T.ColorJitter(**{**off, name: 0.4})
    for seed in range(8):
        position = ["brightness", "contrast", "saturation"].index(name)
        factor = np.random.default_rng(seed).random(3)[position] * 0.8 + 0.6
        found = jitter(noise(), np.random.default_rng(seed), 40).image
        expected = getattr(F, f"adjust_{name}")(noise().image, factor)
        assert (found.int() - expected.int()).abs().max() <= 1
        assert found.dtype == torch.uint8


def test_no_color_jitter_is_no_change():
    jitter = T.ColorJitter(brightness=0, contrast=0, saturation=0, hue=0)
    assert torch.equal(jitter(noise(), np.random.default_rng(0), 40).image, noise().image)


def test_hue_turns_red_to_green_and_keeps_gray_and_luma():
    red, gray = np.array([200.0, 40, 40]), np.array([90.0, 90, 90])
    luma = np.array([0.299, 0.587, 0.114])
    for turn in (0.05, 1 / 3, -0.2):
        turned = color_map(1, turn) @ red
        assert turned @ luma == pytest.approx(red @ luma)
        assert color_map(1, turn) @ gray == pytest.approx(gray)
        assert color_map(1, -turn) @ turned == pytest.approx(red)
    assert np.argmax(color_map(1, 1 / 3) @ red) == 1
    assert np.argmax(color_map(1, -1 / 3) @ red) == 2
    assert color_map(1, 1) == pytest.approx(np.eye(3))


def test_colors_saturate_instead_of_wrapping_around():
    white = Sample(torch.full((3, 4, 4), 250, dtype=torch.uint8), image_id=0, orig_size=(4, 4))
    jitter = T.ColorJitter(brightness=1.0, contrast=0, saturation=0, hue=0)
    values = [int(jitter(white, np.random.default_rng(s), 4).image[0, 0, 0]) for s in range(30)]
    assert max(values) == 255 and min(values) < 100


def test_grayscale_is_torchvisions():
    found = T.Grayscale(p=1)(noise(), np.random.default_rng(0), 40).image
    expected = F.rgb_to_grayscale(noise().image, num_output_channels=3)
    assert (found.int() - expected.int()).abs().max() <= 1
