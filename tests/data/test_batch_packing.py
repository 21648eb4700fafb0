"""Batches that come out of loader workers in one block are the same batches."""

import pytest
import torch

from visionkit.data.loading.source import collate
from visionkit.data.loading.workers import ALIGNMENT, pack
from visionkit.data.sample import Sample
from visionkit.types import Batch


def target(count, size):
    return {
        "image_id": count,
        "size": size,
        "orig_size": (2 * size[0], size[1]),
        "class_id": torch.tensor(count),
        "boxes": torch.rand(count, 4),
        "labels": torch.arange(count),
        "iscrowd": torch.rand(count) < 0.5,
        "masks": torch.rand(count, *size) < 0.5,
        "attributes": torch.full((count, 3), float("nan")),
    }


def same(one, two):
    assert torch.equal(one.images, two.images) and one.images.stride() == two.images.stride()
    for expected, found in zip(one.targets, two.targets, strict=True):
        assert list(found) == list(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert found[key].dtype == value.dtype and found[key].shape == value.shape
                assert torch.equal(found[key].nan_to_num(-1), value.nan_to_num(-1))
            else:
                assert found[key] == value


@pytest.mark.parametrize("counts", [[3, 0, 1], [0]])
def test_a_batch_is_the_same_after_packing(counts):
    images = torch.randint(256, (len(counts), 3, 32, 64), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, [target(count, (7, 5 + count)) for count in counts])
    same(batch, pack(batch).unpack())


def test_tensors_in_a_block_do_not_overlap_and_are_aligned():
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [target(3, (5, 7))])
    found = pack(batch).unpack()
    found.images.fill_(7)
    for key, value in batch.targets[0].items():
        if isinstance(value, torch.Tensor):
            tensor = found.targets[0][key]
            assert tensor.data_ptr() % ALIGNMENT == found.images.data_ptr() % ALIGNMENT
            assert torch.equal(tensor.nan_to_num(-1), value.nan_to_num(-1))
            tensor.zero_()
    assert (found.images == 7).all()


def test_tensors_that_are_not_contiguous_are_packed_by_value():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    sample = Sample(image, image_id=0, orig_size=(4, 6), semantic=image[0], boxes=None)
    sample.extra = {"depth": torch.arange(24.0).view(4, 6)[:, ::2], "one": torch.ones(1).expand(5)}
    sample = sample.crop(1, 2, 3, 4)
    batch = collate([(sample.image, sample.target())])
    same(batch, pack(batch).unpack())
    assert pack(batch).unpack().targets[0]["one"].tolist() == [1.0] * 5


def test_a_block_is_shared_so_that_sending_it_copies_nothing():
    sample = Sample(torch.zeros(3, 4, 6, dtype=torch.uint8), 0, (4, 6), class_id=1)
    images = pack(collate([(sample.image, sample.target())])).unpack().images
    assert images.is_shared() and images.untyped_storage().nbytes() == 32 * 32 * 3 + ALIGNMENT
