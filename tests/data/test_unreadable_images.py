"""An image that cannot be read: found before training, an error in it, or replaced and counted."""

import json
import logging
from itertools import chain
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from support.damaged import image
from visionkit.cli.main import main
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.data.loading.source import Source, max_unreadable
from visionkit.data.sample import Sample
from visionkit.data.transforms import HorizontalFlip
from visionkit.engine import setup
from visionkit.engine.train import train
from visionkit.errors import DataError
from visionkit.types import Classes


class Data:
    """Images whose pixels tell their index; some cannot be read."""

    keys = ("class_id",)
    classes: ClassVar = {"class_id": Classes(("a", "b"), (0, 1))}

    def __init__(self, count, corrupt, identities=None):
        self.count, self.corrupt = count, set(corrupt)
        self.image_ids = [100 + i for i in range(count)]
        self.identities = identities

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.corrupt:
            raise DataError(f"image {index}.jpg is empty")
        image = torch.full((3, 32, 32), index, dtype=torch.uint8)
        return Sample(image, self.image_ids[index], (32, 32), class_id=index % 2)


def source(corrupt, count=60, skip=True, **options):
    data = Data(count, corrupt, options.pop("identities", None))
    flips = [HorizontalFlip(p=0.5)]
    return Source("main", ["x"], data, data, 6, 32, flips, skip_unreadable=skip, **options)


def shown(batches, count, skip=0):
    """The indices in each batch, by their pixels, which must agree with their labels."""
    found = []
    for batch in [next(batches) for _ in range(skip + count)][skip:]:
        found.append(batch.images[:, 0, 0, 0].tolist())
        assert [t["image_id"] - 100 for t in batch.targets] == found[-1]
        assert [int(t["class_id"]) for t in batch.targets] == [i % 2 for i in found[-1]]
        assert not any("replaces" in target for target in batch.targets)
    batches.close()
    return found


def flat(batches):
    return list(chain.from_iterable(batches))


def test_the_replacement_depends_on_neither_workers_nor_start(caplog):
    corrupt = {3, 17, 40}
    whole = shown(source(()).train_batches(seed=1, start=0, workers=0), 20)
    found = shown(source(corrupt).train_batches(seed=1, start=0, workers=0), 20)
    for plain, mended in zip(whole, found, strict=True):
        for before, after in zip(plain, mended, strict=True):
            assert (after not in corrupt) and (after == before or before in corrupt)
    changed = {p for p, m in zip(flat(whole), flat(found), strict=True) if p != m}
    assert changed == corrupt
    assert shown(source(corrupt).train_batches(seed=1, start=0, workers=2), 20) == found
    assert shown(source(corrupt).train_batches(seed=1, start=7, workers=0), 13) == found[7:]
    other = shown(source(corrupt).train_batches(seed=2, start=0, workers=0), 20)
    assert other != found


def test_each_turn_has_its_own_replacement():
    found = shown(source({5}, count=30).train_batches(seed=0, start=0, workers=0), 50)
    plain = shown(source((), count=30).train_batches(seed=0, start=0, workers=0), 50)
    turns = [m for p, m in zip(flat(plain), flat(found), strict=True) if p == 5]
    assert len(turns) == 10 and len(set(turns)) > 3


@pytest.mark.parametrize("workers", [0, 2])
def test_each_is_named_once_and_all_are_counted(caplog, workers):
    data = source({3, 17})
    shown(data.train_batches(seed=0, start=0, workers=workers), 30)
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(messages[:-1]) == [
        "data.main: replaced by another image: "
        f"image {i}.jpg is empty (record {i}, image id {100 + i})"
        for i in (17, 3)
    ]
    assert messages[-1].startswith("data.main: 2 of 60 training images were unreadable")
    assert messages[-1].endswith("6 times") and len(data.unreadable) == 2


@pytest.mark.parametrize(("count", "corrupt", "ends"), [(60, 10, False), (60, 11, True)])
def test_too_many_end_training(count, corrupt, ends):
    batches = source(range(corrupt), count).train_batches(seed=0, start=0, workers=0)
    if not ends:
        shown(batches, 30)
        return
    with pytest.raises(DataError, match=r"data.main: 11 of 60 .* more than 10.*\.jpg is empty"):
        shown(batches, 30)


def test_one_in_a_hundred_may_be_unreadable():
    assert [max_unreadable(n) for n in (5, 1000, 1100, 250_000)] == [10, 10, 11, 2500]


def test_nothing_that_can_be_read():
    with pytest.raises(DataError, match=r"is empty \(record \d, image id 10\d\)"):
        shown(source(range(4), 4).train_batches(seed=0, start=0, workers=0), 1)


def test_a_replacement_has_the_same_identity_where_batches_are_made_of_them():
    identities = np.repeat(np.arange(6), 5)
    options = {"count": 30, "identities": identities, "images_per_identity": 3}
    corrupt = {0, 7, 25}
    for seed in range(3):
        data = source(corrupt, **options)
        for batch in shown(data.train_batches(seed=seed, start=0, workers=0), 9):
            assert not corrupt & set(batch)
            groups = identities[batch].reshape(2, 3)
            assert (groups == groups[:, :1]).all()


def test_validation_never_skips():
    with pytest.raises(DataError, match=r"^image 3.jpg is empty \(record 3, image id 103\)$"):
        list(source({3}).val_batches(workers=0))


def test_an_error_of_several_lines_keeps_them():
    broken = source((), skip=False)
    error = DataError("image 9.jpg: 2 problems", "  no header", "  no end")
    broken.val.__class__ = type("Lines", (Data,), {"__getitem__": Mock(side_effect=error)})
    with pytest.raises(DataError) as caught:
        list(broken.val_batches(workers=0))
    assert caught.value.lines[1:] == ["  no header", "  no end (record 0, image id 100)"]


@pytest.mark.parametrize("workers", [0, 1])
def test_without_skip_it_is_an_error_with_the_record(workers):
    with pytest.raises(DataError, match=r"^image 9.jpg is empty \(record 9, image id 109\)$"):
        shown(source({9}, skip=False).train_batches(seed=0, start=0, workers=workers), 20)


@pytest.fixture
def shapes(tmp_path):
    generate_shapes(tmp_path / "train", images=12, size=32)
    generate_shapes(tmp_path / "val", images=4, size=32, seed=1)
    return tmp_path


def settings(folder, **data):
    sections = {
        split: {
            "type": "Coco",
            "images": str(folder / split / "images"),
            "annotations": str(folder / split / "annotations.json"),
        }
        for split in ("train", "val")
    }
    return {
        "task": "classification",
        "backbone": {"type": "TinyCNN"},
        "data": {**sections, "image_size": 32, "batch_size": 4, "workers": 0, **data},
        "train": {"steps": 3, "log_every": 3, "precision": "fp32", "plots": False},
        "output": str(folder / "run"),
    }


def images(folder, split):
    return sorted((folder / split / "images").iterdir())


def test_all_unreadable_images_are_listed_before_training(shapes, capsys):
    images(shapes, "train")[2].write_bytes(b"")
    images(shapes, "train")[5].write_bytes(image("PNG", (30, 32)))
    images(shapes, "val")[0].write_bytes(images(shapes, "val")[0].read_bytes()[:99])
    (shapes / "c.yaml").write_text(json.dumps(settings(shapes)))
    assert main(["train", str(shapes / "c.yaml")]) == 3
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and not (shapes / "run").exists()
    assert "images: 3 problems" in printed
    for place, path, what in (
        ("data.train: images[2] (id ", images(shapes, "train")[2], "is empty"),
        ("data.train: images[5] (id ", images(shapes, "train")[5], "is 32x30, but the"),
        ("data.val: images[0] (id ", images(shapes, "val")[0], "cut short"),
    ):
        (line,) = (line for line in printed.splitlines() if str(path) in line)
        assert place in line and what in line


def test_training_images_that_may_be_skipped_are_reported_before(shapes, caplog):
    images(shapes, "train")[2].write_bytes(b"")
    for path in images(shapes, "val"):
        Image.new("RGBA", (32, 32)).save(path, "PNG")
    with caplog.at_level(logging.INFO, "visionkit"):
        run = train(settings(shapes, on_unreadable_image="skip"))
    first = images(shapes, "train")[2]
    assert f"data.train: training replaces it: image {first} is empty" in caplog.text
    val = images(shapes, "val")[0]
    assert f"data.val: image {val} has transparent pixels: alpha is dropped, and 3" in caplog.text
    assert "1 of 12 training images were unreadable" in caplog.messages[-1]
    text = (run.directory / "metrics.jsonl").read_text().splitlines()
    counts = [json.loads(line).get("unreadable_images") for line in text if '"train"' in line]
    assert counts == [1]


def spoil_delete(path):
    path.unlink()


def spoil_replace(path):
    path.write_bytes(b"garbage")


def spoil_shrink(path):
    path.write_bytes(image("PNG", (20, 20)))


SPOILERS = (spoil_delete, spoil_replace, spoil_shrink)


def spoil_after_check(monkeypatch, folder, spoilers):
    """Have the first training images change just before training; returns their paths."""
    check, paths = setup.check_images, images(folder, "train")[: len(spoilers)]

    def check_and_spoil(config, sources):
        found = check(config, sources)
        for spoil, path in zip(spoilers, paths, strict=True):
            spoil(path)
        return found

    monkeypatch.setattr(setup, "check_images", check_and_spoil)
    return paths


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_image_that_changes_after_the_check(shapes, spoil, monkeypatch):
    (path,) = spoil_after_check(monkeypatch, shapes, [spoil])
    with pytest.raises(DataError, match=rf"image {path} .*\(record 0, image id \d+\)"):
        train(settings(shapes))
    status = json.loads((shapes / "run/status.json").read_text())
    assert status["state"] == "failed" and path.name in status["reason"]


def test_images_that_change_after_the_check_may_be_replaced(shapes, monkeypatch, caplog):
    paths = spoil_after_check(monkeypatch, shapes, SPOILERS)
    train(settings(shapes, on_unreadable_image="skip"))
    assert all(f"replaced by another image: image {path} " in caplog.text for path in paths)
    assert "3 of 12 training images were unreadable" in caplog.text
