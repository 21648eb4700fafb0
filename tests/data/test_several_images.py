"""The loader with transforms of several images: the same bytes whatever the workers and start."""

from collections import Counter
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest
import torch

from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.items import TransformedDataset, scaled
from visionkit.data.loading.source import Source
from visionkit.data.sample import Sample
from visionkit.data.transforms import (
    Compose,
    CopyPaste,
    CutMix,
    HorizontalFlip,
    MixUp,
    Mosaic,
    RandomResizedCrop,
)
from visionkit.distributed import collectives
from visionkit.engine.train import train
from visionkit.errors import ArgumentError, ConfigError, DataError
from visionkit.types import Classes


class Plain:
    """Images of one color, their index; some cannot be read. Counts what is read."""

    keys = ("class_id",)
    classes: ClassVar = {"class_id": Classes(("a", "b", "c"), (0, 1, 2))}

    def __init__(self, count, corrupt=()):
        self.count, self.corrupt, self.reads = count, set(corrupt), Counter()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads[index] += 1
        if index in self.corrupt:
            raise DataError(f"image {index}.jpg is empty")
        image = torch.full((3, 32, 32), index, dtype=torch.uint8)
        return Sample(image, index, (32, 32), class_id=index % 3)


class Pair:
    """Puts the other image to the right; both keep their pixels."""

    others = 1

    def __call__(self, sample, rng, size, others):
        half = sample.size[1] // 2
        image = torch.cat([sample.image[..., :half], others[0].image[..., :half]], 2)
        return Sample(image, sample.image_id, sample.orig_size)


def batches(source, count, workers=0, start=0, total=None):
    stream = source.train_batches(seed=2, start=start, workers=workers, total=total)
    found = list(islice(stream, count))
    stream.close()
    return found


def same(one, other):
    assert torch.equal(one.images, other.images)
    for a, b in zip(one.targets, other.targets, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            alike = value == b[key]
            assert alike.all() if isinstance(value, torch.Tensor) else alike, key


LISTS = {
    "objects": [HorizontalFlip(), CopyPaste(p=0.7), Mosaic(p=0.7), MixUp(alpha=8, p=0.3)],
    "classes": [RandomResizedCrop(), MixUp(p=0.5), CutMix(p=0.5)],
}


@pytest.mark.parametrize("name", LISTS)
def test_workers_and_start_change_nothing(name):
    data = Shapes(num_images=40, size=64, seed=1)
    source = Source("main", ["x"], data, None, 4, 64, LISTS[name], multi_scale=(0.5, 1.5))
    alone = batches(source, 10)
    for one, other in zip(alone, batches(source, 10, workers=2), strict=True):
        same(one, other)
    for one, other in zip(alone[5:], batches(source, 5, start=5), strict=True):
        same(one, other)


def test_ranks_share_the_batches_of_one(monkeypatch):
    source = Source("main", ["x"], Plain(30), None, 4, 32, [Pair()])
    whole = batches(source, 6)
    for rank in range(2):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(collectives, "world_size", lambda: 2)
        for one, share in zip(whole, batches(source, 6), strict=True):
            assert torch.equal(one.images[rank::2], share.images)


def test_others_are_near_in_the_stream_and_read_once():
    data = Plain(200)
    source = Source("main", ["x"], data, None, 8, 32, [Pair()])
    found = batches(source, 8)  # 64 positions, which are near to each other
    pairs = [(int(i[0, 0, 0]), int(i[0, 0, -1])) for batch in found for i in batch.images]
    firsts, seconds = zip(*pairs, strict=True)
    assert {*seconds} <= {*firsts} and all(a != b for a, b in pairs)
    assert len({*seconds}) > 30 and max(data.reads.values()) == 1 and len(data.reads) == 64


def test_few_images_are_repeated_as_others():
    class Many(Pair):
        others = 5

    items = TransformedDataset(Plain(3), [Many()], 32, 0)
    image, _ = items[0, 0]
    assert int(image[0, 0, -1]) in (1, 2)


def test_they_end_before_the_run_does():
    source = Source("main", ["x"], Plain(30), None, 4, 32, [Pair()], close_last=0.25)
    found = batches(source, 8, total=8)
    mixed = [bool((b.images[:, 0, 0, 0] != b.images[:, 0, 0, -1]).all()) for b in found]
    assert mixed == [True] * 6 + [False] * 2
    resumed = batches(source, 3, start=5, total=8)
    for one, other in zip(found[5:], resumed, strict=True):
        same(one, other)
    for one, other in zip(found[:6], batches(source, 6), strict=True):
        same(one, other)  # a run without an end


def test_p_is_the_probability_of_a_call():
    class Sometimes(Pair):
        p = 0.3

    found = batches(Source("main", ["x"], Plain(50), None, 8, 32, [Sometimes()]), 50)
    images = torch.cat([batch.images for batch in found])
    share = (images[:, 0, 0, 0] != images[:, 0, 0, -1]).float().mean()
    assert share == pytest.approx(0.3, abs=0.08)


def test_classes_become_shares():
    source = Source("main", ["x"], Plain(30), None, 6, 32, [MixUp(p=0.5)])
    targets = [target["class_id"] for batch in batches(source, 6) for target in batch.targets]
    assert all(one.shape == (3,) and one.sum() == pytest.approx(1) for one in targets)
    assert {bool((one == one.round()).all()) for one in targets} == {True, False}


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_others_are_replaced_and_counted(caplog, workers):
    source = Source("main", ["x"], Plain(60, {3, 17}), None, 6, 32, [Pair()], skip_unreadable=True)
    found = batches(source, 20, workers=workers)
    shown = {int(x) for batch in found for x in batch.images[:, 0, 0, -1]}
    assert not {3, 17} & shown and len(source.unreadable) == 2
    assert not any("replaces" in target for batch in found for target in batch.targets)
    assert "2 of 60 training images were unreadable" in caplog.text
    strict = Source("main", ["x"], Plain(60, {3}), None, 6, 32, [Pair()])
    with pytest.raises(DataError, match=r"image 3\.jpg is empty"):
        batches(strict, 20)


def test_objects_that_are_not_pasted_are_reported(caplog):
    class Partly(Shapes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample.labeled = np.arange(5) < 2 if index % 2 else None
            return sample

    data = Partly(num_images=20, size=64, seed=1)
    source = Source("main", ["x"], data, None, 4, 64, [CopyPaste(p=1.0)])
    found = batches(source, 5)
    assert source.not_pasted > 0 and not any("not_pasted" in t for b in found for t in b.targets)
    text = f"{source.not_pasted} objects were not pasted into images that do not label their class"
    assert text in caplog.text


def test_the_size_of_a_batch_is_that_of_its_number():
    source = Source("main", ["x"], Plain(30), None, 2, "64x96", multi_scale=(0.5, 2.0))
    shapes = [tuple(batch.images.shape[-2:]) for batch in batches(source, 12)]
    assert len({*shapes}) > 3 and all(h % 32 == w % 32 == 0 for h, w in shapes)
    assert [tuple(b.images.shape[-2:]) for b in batches(source, 4, start=8)] == shapes[8:]
    assert scaled(320, None, 0, 5) == 320 and scaled((320, 640), (1.0, 1.0), 0, 5) == (320, 640)
    sides = [scaled(320, (0.75, 1.25), 1, step) for step in range(500)]
    assert {*sides} == {256, 288, 320, 352, 384}  # 240 to 400, to multiples of 32


def test_progressive_sizes_grow_and_then_stay():
    data, scales = Plain(30), {"multi_scale": (0.5, 1.0), "progressive": True}
    source = Source("main", ["x"], data, None, 2, "128x128", **scales)
    shapes = [tuple(b.images.shape[-2:]) for b in batches(source, 20, total=20)]
    sides = [h for h, _ in shapes]
    # The factor is 0.5 + 0.5 k / 14 in batch k, up to batch 14 = 0.7 x 20; 0.625 is half-way to 96.
    assert sides == [64] * 4 + [96] * 7 + [128] * 9
    assert [b.images.shape[-1] for b in batches(source, 4, start=9, total=20)] == sides[9:13]
    # Without the length of the run, as in a benchmark, the factor is random.
    assert {b.images.shape[-1] for b in batches(source, 20)} == {64, 96, 128}
    assert scaled(320, (0.5, 1.0), 0, 0, 0) == 320  # a run without steps to grow in


def test_multi_scale_resizes_images_and_labels():
    data = Shapes(num_images=8, size=64, seed=1)
    source = Source("main", ["x"], data, None, 2, 64, multi_scale=(1.5, 1.5))
    target = batches(source, 1)[0].targets[0]
    assert target["size"] == (96, 96) == tuple(target["masks"].shape[1:])
    stored = data[data.image_ids.index(target["image_id"])].target()
    torch.testing.assert_close(target["boxes"], stored["boxes"] * 1.5)


def test_a_fault_in_another_image_names_it():
    class Odd(Plain):
        def __getitem__(self, index):
            if index == 1:
                raise KeyError("x")
            return super().__getitem__(index)

    items = TransformedDataset(Odd(2), [Pair()], 32, 0)
    with pytest.raises(DataError, match=r"image 1: reading it: KeyError: 'x'"):
        items[0, 0]


def test_compose_has_a_single_image():
    with pytest.raises(ArgumentError, match="Mosaic takes several images, and Compose gets one"):
        Compose([HorizontalFlip(), Mosaic()], 64)


def config_file(tmp_path, task, transforms, *lines):
    path = tmp_path / "c.yaml"
    path.write_text(
        "\n".join(
            [
                f"task: {task}",
                "backbone: {type: TinyCNN, channels: [8, 16]}",
                "neck: null",
                "data:",
                *(lines or ["  train: {type: Shapes, num_images: 8, size: 64}"]),
                "  val: null",
                "  image_size: 64",
                "  transforms:",
                *(f"    - {transform}" for transform in transforms),
                "train: {steps: 2, validate: false, plots: false}",
            ]
        )
    )
    return path


@pytest.mark.parametrize(
    ("task", "name", "text"),
    [
        ("localization", "Mosaic", r"Mosaic makes images of several objects, but head"),
        ("localization", "CopyPaste", r"CopyPaste makes images of several objects"),
        ("classification", "Mosaic", r"an image of several has no class of its own; use MixUp"),
        ("classification", "CopyPaste", r"may change the class of the image"),
        ("semantic_segmentation", "MixUp", r"a pixel of two images has no single class"),
        ("detection", "CutMix", r"it would cut objects at random; use Mosaic"),
        ("embedding", "MixUp", r"MixUp conflicts with 'images_per_identity'"),
        ("embedding", "Mosaic", r"no single identity"),
    ],
)
def test_the_config_refuses_what_does_not_suit_a_head(tmp_path, task, name, text):
    path = config_file(tmp_path, task, ["{type: HorizontalFlip}", f"{{type: {name}}}"])
    with pytest.raises(ConfigError, match=rf"c.yaml:10: data.transforms.1: .*{text}"):
        load_config(path)


def test_the_data_must_have_enough_images_and_masks(tmp_path):
    few = "  train: {type: Shapes, num_images: 8, size: 64, masks: false}"
    for name, text in (
        ("{type: Mosaic, grid: 9}", r"Mosaic makes an image of 9, but .* has 8 images; remove it"),
        ("CopyPaste", r"transforms.0: CopyPaste needs 'masks', which the training data does not"),
    ):
        spec = name if "{" in name else f"{{type: {name}}}"
        config = load_config(config_file(tmp_path, "detection", [spec], few))
        with pytest.raises(ConfigError, match=text):
            build_sources(config, ("train",))


def test_mixing_does_not_suit_classes_of_images_and_objects_together(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "backbone: {type: TinyCNN, channels: [8, 16]}\n"
        "heads: {scene: {type: Classification}, objects: {type: FCOS}}\n"
        "data:\n  main:\n    feeds: [scene, objects]\n    train: {type: Shapes, num_images: 8}\n"
        "    transforms: [{type: MixUp}]\n"
    )
    with pytest.raises(ConfigError, match=r"c.yaml:7: .*'scene' and 'objects': .* two sources"):
        load_config(path)


def test_a_run_tells_the_loader_its_length(tmp_path, monkeypatch):
    path = config_file(tmp_path, "classification", ["{type: MixUp, p: 1.0}"])
    found, load = [], Source.train_batches

    def recorded(self, **options):
        found.append(options["total"])
        for batch in load(self, **options):
            found.append([bool((t["class_id"].max() < 1).item()) for t in batch.targets])
            yield batch

    monkeypatch.setattr(Source, "train_batches", recorded)
    overrides = {"train.steps": 5, "data.close_last": 0.4, "data.train.num_images": 40}
    train(path, {**overrides, "data.workers": 0, "output": str(tmp_path / "run")})
    total, *mixed = found
    assert total == 5 and [any(batch) for batch in mixed[:5]] == [True] * 3 + [False] * 2
