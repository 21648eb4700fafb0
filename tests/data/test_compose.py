"""Transforms for a dataset that is not visionkit's: `Sample.from_target` and `Compose`."""

import signal
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.items import TransformedDataset
from visionkit.data.loading.source import collate
from visionkit.data.sample import Sample
from visionkit.data.transforms import (
    ColorJitter,
    Compose,
    HorizontalFlip,
    RandomCrop,
    ScaleJitter,
    VerticalFlip,
)
from visionkit.errors import ArgumentError, DataError
from visionkit.types import Loss, Target

IMAGE = torch.zeros(3, 40, 60, dtype=torch.uint8)
MASKS = torch.zeros(3, 40, 60, dtype=torch.bool)
MASKS[0, 10:30, 5:25] = MASKS[1, 5:35, 30:50] = True  # the third has no pixel: not known
TARGET = {
    "boxes": torch.tensor([[5.0, 10, 25, 30], [30, 5, 50, 35], [0, 0, 9, 9]]),
    "labels": torch.tensor([1, 0, 1]),
    "masks": MASKS,
    "iscrowd": torch.tensor([0, 0, 1]),
    "area": torch.tensor([400.0, 600, 81]),
    "attributes": torch.tensor([[0.0, 1], [1, 1], [float("nan"), 0]]),
    "image_id": torch.tensor([7]),
    "semantic": torch.arange(60).repeat(40, 1).byte(),
    "class_id": 3,
    "identity": torch.tensor(4),
    "labeled": torch.tensor([True, False]),
    "semantic_labeled": np.array([True, False]),
}


def arrays(target):
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in target.items()}


@pytest.mark.parametrize("form", [dict, arrays])
def test_a_target_becomes_a_sample_and_comes_back(form):
    back = Sample.from_target(IMAGE, form(TARGET)).target()
    assert back["image_id"] == 7 and back["size"] == back["orig_size"] == (40, 60)
    for key, value in TARGET.items():
        if key != "image_id":
            given = torch.as_tensor(value)
            assert torch.equal(back[key].nan_to_num(-1).to(given.dtype), given.nan_to_num(-1)), key


def test_every_key_of_a_target_is_taken():
    own = {*Target.__annotations__} - {"size", "orig_size", "position", "replaces", "not_pasted"}
    assert own == {*TARGET} and {f.name for f in fields(Sample)} >= own - {"masks"}


def test_other_keys_are_kept_and_no_labels_are_none():
    sample = Sample.from_target(IMAGE, {"depth": torch.ones(2), "size": (1, 2)})
    assert sample.boxes is None and sample.target()["depth"].tolist() == [1, 1]
    assert sample.target()["size"] == (40, 60)
    empty = Sample.from_target(IMAGE, {"boxes": torch.zeros(0), "labels": [], "masks": MASKS[:0]})
    assert empty.target()["boxes"].shape == (0, 4) and empty.target()["masks"].shape == (0, 40, 60)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes has the shape (3, 5); expected (3, 4)"),
        ({"boxes": torch.zeros(4)}, "boxes has the shape (4,); expected (4, 4)"),
        ({"labels": torch.zeros(2)}, "labels has the shape (2,); expected (3,)"),
        ({"masks": MASKS[:2]}, "masks has the shape (2, 40, 60); expected (3, 40, 60)"),
        ({"masks": MASKS[:, :5]}, "masks has the shape (3, 5, 60); expected (3, 40, 60)"),
        ({"attributes": torch.zeros(3)}, "attributes has the shape (3,); expected (3, A)"),
        ({"semantic": torch.zeros(4, 4)}, "semantic has the shape (4, 4); expected (40, 60)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, says):
    with pytest.raises(DataError) as caught:
        Sample.from_target(IMAGE, {**TARGET, **change})
    assert f"target: {says}" in str(caught.value)


def test_flips_and_sizes_worked_out_by_hand():
    image, target = Compose([HorizontalFlip(p=1.0)], image_size=30)(IMAGE, TARGET)
    assert image.shape == (3, 20, 30) and target["size"] == (20, 30)
    assert target["orig_size"] == (40, 60)
    assert target["boxes"].tolist() == [[17.5, 5, 27.5, 15], [5, 2.5, 15, 17.5], [25.5, 0, 30, 4.5]]
    assert target["masks"].sum((1, 2)).tolist() == [10 * 10, 15 * 10, 0]
    assert target["semantic"][0].tolist() == [59 - 2 * x for x in range(30)]
    up, _ = Compose([VerticalFlip(p=1.0)], image_size=60)(
        torch.arange(40).byte().view(1, 40, 1).expand(3, 40, 60)
    )
    assert up[0, :, 0].tolist() == [*range(39, -1, -1)]


def test_images_of_all_forms_are_the_same():
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    compose = Compose([], 32)
    want = compose(torch.from_numpy(pixels).permute(2, 0, 1))[0]
    for image in (pixels, Image.fromarray(pixels)):
        assert torch.equal(compose(image)[0], want)


def test_it_does_what_a_source_does():
    """The same transforms in the same order, for the same random numbers."""
    dataset = Shapes(num_images=4, size=64)
    transforms = [ScaleJitter(), HorizontalFlip(), RandomCrop(p=1.0), ColorJitter()]
    compose = Compose(transforms, 48)
    for index in range(4):
        torch.manual_seed(index)
        seed = int(torch.randint(2**63 - 1, ()))
        torch.manual_seed(index)
        sample = dataset[index]
        target = sample.target()
        image, found = compose(sample.image, target)
        rng = np.random.default_rng(seed)
        for transform in transforms:
            sample = transform(sample, rng, 48)
        assert torch.equal(image, sample.image)
        want = sample.target()
        assert torch.equal(found["boxes"].round(), want["boxes"].round())
        assert torch.equal(found["labels"], want["labels"])
        overlap = (found["masks"] & want["masks"]).sum((1, 2)) / want["masks"].sum((1, 2))
        assert len(overlap) == len(want["boxes"]) and (overlap > 0.8).all()
    plain = TransformedDataset(dataset, [], 48, 0)[0, 0]
    assert torch.equal(plain[0], Compose([], 48)(dataset[0].image)[0])


class Data(torch.utils.data.Dataset):
    def __init__(self, compose):
        self.compose = compose

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.compose(IMAGE, {**TARGET, "image_id": index})


@pytest.fixture
def no_handler_left():
    """torch's loader leaves a handler of SIGCHLD that raises when any worker dies."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("no_handler_left")
@pytest.mark.parametrize("workers", [0, 2])
def test_random_numbers_repeat_and_differ_between_images(workers):
    data = Data(Compose([ScaleJitter(low=0.5, high=1.0)], 48))

    def sizes():
        torch.manual_seed(3)
        loader = DataLoader(data, batch_size=2, collate_fn=collate, num_workers=workers)
        return [size for batch in loader for size in batch.sizes]

    first = sizes()
    assert first == sizes() and len({*first}) > 3
    batch = collate([data[0], data[1]])
    assert batch.images.dtype == torch.uint8 and [t["image_id"] for t in batch.targets] == [0, 1]


@pytest.mark.parametrize("transforms", [[HorizontalFlip], ["HorizontalFlip"]])
def test_what_is_no_transform(transforms):
    with pytest.raises(ArgumentError, match=r"transforms: got .*; expected a list of instances"):
        Compose(transforms, 32)


def test_the_value_of_a_loss():
    total = torch.tensor(6.0, requires_grad=True)
    assert Loss(total, torch.tensor(4)).value == 1.5
    assert Loss(total, torch.tensor(0)).value == 6
    assert Loss(total, torch.tensor(1), min_count=12).value == 0.5
    Loss(total, torch.tensor(3)).value.backward()
    assert total.grad == pytest.approx(1 / 3)
