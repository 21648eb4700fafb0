"""Kept images are those that decoding gives, within the limit, whatever happens to the files."""

import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.config import load_config
from visionkit.data.datasets.crops import Crops
from visionkit.data.datasets.folder import ImageFolder, Images
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.image_io import ResizedImage, load_image
from visionkit.data.loading import image_cache
from visionkit.data.loading.image_cache import ImageCache
from visionkit.data.loading.source import Source
from visionkit.data.sample import Sample
from visionkit.data.transforms import ColorJitter, HorizontalFlip, RandomCrop, ScaleJitter
from visionkit.errors import ConfigError, DataError
from visionkit.models import build

BLOCK = image_cache.BLOCK


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def save(path, seed=0, size=(40, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    return [save(tmp_path / "photos" / f"{i}.png", seed=i) for i in range(12)]


def entries(root):
    return sorted(path for path in root.glob("*/*") if not path.name.startswith("."))


def no_decoding(*_, **__):
    raise AssertionError("was decoded")


def of_shapes(tmp_path):
    return Shapes(num_images=12, size=48)


def of_crops(tmp_path):
    shapes = Shapes(num_images=6, size=64)
    return Crops(str(shapes.images), str(shapes.annotations), min_size=4)


def of_folder(tmp_path):
    for i in range(12):
        save(tmp_path / "classes" / "ab"[i % 2] / f"{i}.png", seed=i, size=(30 + i, 50))
    return ImageFolder(str(tmp_path / "classes"))


def of_label_maps(tmp_path):
    for i in range(6):
        save(tmp_path / "images" / f"{i}.jpg", seed=i)
        (tmp_path / "maps").mkdir(exist_ok=True)
        classes = np.random.default_rng(i).integers(0, 2, (40, 60), dtype=np.uint8)
        Image.fromarray(classes).save(tmp_path / "maps" / f"{i}.png")
    return LabelMaps(str(tmp_path / "images"), str(tmp_path / "maps"), classes=["a", "b"])


def of_images(tmp_path):
    """One is turned by its EXIF record, one has the size for the network."""
    save(tmp_path / "plain" / "a.png", size=(32, 20))
    save(tmp_path / "plain" / "b.png", seed=1, size=(70, 33))
    turned = Image.open(save(tmp_path / "plain" / "c.png", seed=2, size=(50, 90)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "plain" / "c.png", exif=exif)
    return Images(str(tmp_path / "plain"))


MAKERS = (of_shapes, of_crops, of_folder, of_label_maps, of_images)
FITTING = [HorizontalFlip(), RandomCrop(), ColorJitter()]
WHOLE = [ScaleJitter(), ColorJitter(), HorizontalFlip()]


def batches(dataset, transforms, kept, workers=0):
    source = Source("main", ["x"], dataset, dataset, 3, 32, transforms, cache=kept)
    train = source.train_batches(seed=1, start=0, workers=workers)
    found = [next(train) for _ in range(-(-len(dataset) // 3))]
    train.close()
    return [*found, *source.val_batches(workers=workers)]


def check_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else None
                if same is None or not same:  # unknown attributes are NaN
                    np.testing.assert_array_equal(value, b[key])


@pytest.mark.parametrize("transforms", [FITTING, WHOLE], ids=["fitting", "whole"])
@pytest.mark.parametrize("make", MAKERS)
def test_batches_are_the_same_with_and_without(make, transforms, tmp_path, monkeypatch, caplog):
    dataset = make(tmp_path)
    expected = batches(dataset, transforms, None)
    check_same(batches(dataset, transforms, ImageCache(1)), expected)
    monkeypatch.setattr(image_cache, "load_image", no_decoding)
    check_same(batches(dataset, transforms, ImageCache(1)), expected)
    assert not caplog.records


def test_workers_fill_and_read_it(tmp_path, root, monkeypatch):
    dataset = of_shapes(tmp_path)
    expected = batches(dataset, FITTING, None)
    check_same(batches(dataset, FITTING, ImageCache(1), workers=2), expected)
    assert len(entries(root)) == 12
    monkeypatch.setattr(image_cache, "load_image", no_decoding)
    check_same(batches(dataset, FITTING, ImageCache(1), workers=2), expected)


def test_images_of_real_data_are_the_same(real_data, monkeypatch):
    from visionkit.data.datasets.coco import Coco

    folder = real_data / "coco_mini"
    dataset = Coco(folder / "val2017", folder / "annotations/instances_val2017.json")
    source = Source("main", ["x"], None, dataset, 8, 320)
    expected = list(source.val_batches(workers=0))
    source.cache = ImageCache(1)
    check_same(list(source.val_batches(workers=0)), expected)
    monkeypatch.setattr(image_cache, "load_image", no_decoding)
    check_same(list(source.val_batches(workers=0)), expected)


def test_pixels_lie_in_memory_as_after_decoding(photos):
    for size in (None, 30, (20, 33)):
        for _ in range(2):
            found = ImageCache(1).load(photos[0], image_size=size)
            pixels = found.pixels if size else found
            assert pixels.permute(1, 2, 0).is_contiguous()


def test_the_small_pixels_are_kept_if_the_image_is_fitted_first(photos, root):
    fitted = ImageCache(1).load(photos[0], image_size=30)
    assert isinstance(fitted, ResizedImage) and fitted.shape == (3, 40, 60)
    assert fitted.pixels.shape == (3, 20, 30)
    assert entries(root)[0].stat().st_size == 72 + 20 * 30 * 3
    assert Sample(fitted, 0, (40, 60)).size == (40, 60)
    with pytest.raises(ValueError, match="fitted to"):
        Sample(fitted, 0, (40, 60)).resize((10, 15))


def test_a_changed_image_is_noticed(photos, root, caplog):
    kept = ImageCache(1)
    before = kept.load(photos[0])
    save(photos[0], seed=99)
    after = kept.load(photos[0])
    assert not torch.equal(before, after) and torch.equal(after, load_image(photos[0]))
    assert torch.equal(kept.load(photos[0]), after)
    status = photos[0].stat()
    os.utime(photos[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert ImageCache(1)._find(entries(root)[0], b"another state") is None
    assert len(entries(root)) == 1 and not caplog.records


def test_a_image_that_changes_while_it_is_read_is_not_kept(photos, root, monkeypatch):
    def slow(path, **options):
        image = load_image(path, **options)
        os.utime(path, ns=(0, 0))
        return image

    monkeypatch.setattr(image_cache, "load_image", slow)
    ImageCache(1).load(photos[0])
    assert entries(root) == []


def test_what_decoding_depends_on_tells_entries_apart(photos, root, monkeypatch):
    kept = ImageCache(1)
    for options in ({}, {"exif": "ignore"}, {"image_size": 30}, {"image_size": (30, 50)}):
        kept.load(photos[0], **options)
    monkeypatch.setattr(image_cache, "_MADE_BY", (2, "another Pillow"))
    kept.load(photos[0])
    shutil.copy2(photos[0], photos[0].with_name("copy.png"))
    kept.load(photos[0].with_name("copy.png"))
    assert len(entries(root)) == 6


def spoil_truncate(entry):
    os.truncate(entry, entry.stat().st_size - 8)


def spoil_cut_a_byte(entry):
    os.truncate(entry, entry.stat().st_size - 1)


def spoil_empty(entry):
    os.truncate(entry, 0)


def spoil_zeros(entry):
    entry.write_bytes(entry.read_bytes()[:4096] + bytes(entry.stat().st_size - 4096))


def spoil_a_bit(entry):
    data = bytearray(entry.read_bytes())
    data[-200] ^= 1
    entry.write_bytes(data)


def spoil_the_size(entry):
    data = bytearray(entry.read_bytes())
    data[56], data[64] = data[64], data[56]  # height and width of the pixels
    entry.write_bytes(data)
    entry.write_bytes(data[:8] + data[8:][::-1])


def spoil_by_another_file(entry):
    entry.write_bytes(b"GIF89a" * 1000)


def spoil_by_a_folder(entry):
    entry.unlink()
    entry.mkdir()


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_damaged_entry_is_noticed_and_made_anew(spoil, photos, root, caplog):
    kept = ImageCache(1)
    expected = kept.load(photos[0])
    spoil(entries(root)[0])
    assert torch.equal(kept.load(photos[0]), expected)
    assert "made again (1 so far)" in caplog.text
    caplog.clear()
    assert torch.equal(kept.load(photos[0]), expected)
    assert not caplog.records


def test_damaged_entries_are_counted(photos, root, caplog):
    kept = ImageCache(1)
    for _ in range(2):
        for path in photos:
            kept.load(path)
        for entry in entries(root):
            spoil_empty(entry)
    assert [r.getMessage().rpartition("(")[2] for r in caplog.records] == [
        "1 so far)",
        "10 so far)",
    ]


def test_the_entry_of_another_image_is_not_taken(photos, root):
    kept = ImageCache(1)
    kept.load(photos[0])
    one = entries(root)[0]
    kept.load(photos[1])
    other = next(entry for entry in entries(root) if entry != one)
    shutil.copy(one, other)
    assert torch.equal(kept.load(photos[1]), load_image(photos[1]))


def test_a_broken_or_missing_image_is_the_same_error(tmp_path, root):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    for path in (broken, tmp_path / "missing.png"):
        with pytest.raises(DataError) as expected:
            load_image(path)
        for _ in range(2):
            with pytest.raises(DataError) as found:
                ImageCache(1).load(path)
            assert str(found.value) == str(expected.value)
    assert entries(root) == []


def used(root):
    return sum(-(-entry.stat().st_size // BLOCK) for entry in entries(root))


def limit(blocks):
    return blocks * BLOCK / 2**30


ONE = 2  # blocks of an entry of 40 x 60 pixels: 72 + 7200 bytes


def test_what_is_there_stays_when_it_is_full(photos, root, caplog):
    caplog.set_level(logging.INFO, "visionkit")
    kept = ImageCache(limit(7 * ONE))
    for _ in range(2):
        for path in photos:
            assert torch.equal(kept.load(path), load_image(path))
        first = entries(root)
        assert used(root) == 7 * ONE
    assert entries(root) == first
    assert [r.getMessage() for r in caplog.records] == [
        f"{root} is full: the other images are decoded each time"
    ]


def test_other_data_make_room_the_oldest_first(photos, tmp_path, root):
    for name, age in (("old", 300), ("older", 400)):
        for i in range(4):
            ImageCache(1).load(save(tmp_path / name / f"{i}.png", seed=i))
        newest = max(root.iterdir(), key=lambda folder: folder.stat().st_mtime)
        before = newest.stat().st_mtime - age
        os.utime(newest, (before, before))
    old, older = sorted(
        filter(Path.is_dir, root.iterdir()), key=lambda folder: -folder.stat().st_mtime
    )
    kept = ImageCache(limit(10 * ONE))
    assert used(root) == 8 * ONE
    for path in photos[:4]:
        kept.load(path)
    assert used(root) <= 10 * ONE
    assert len(list(older.iterdir())) < 4 == len(list(old.iterdir()))
    for path in photos:
        kept.load(path)
    assert used(root) == 10 * ONE
    assert not list(older.iterdir()) and not list(old.iterdir())


def test_a_lower_limit_holds_from_the_start(photos, root):
    kept = ImageCache(1)
    for path in photos:
        kept.load(path)
    ImageCache(limit(5 * ONE))
    assert used(root) == 5 * ONE
    ImageCache(limit(1))
    assert used(root) == 0


def test_what_a_dead_process_left_is_removed(photos, root):
    ImageCache(1).load(photos[0])
    folder = entries(root)[0].parent
    for name, age in ((".dead", 90_000), (".alive", 0)):
        (folder / name).write_bytes(b"x")
        now = (folder / name).stat().st_mtime
        os.utime(folder / name, (now - age, now - age))
    ImageCache(1)
    assert (folder / ".alive").exists() and not (folder / ".dead").exists()


def _fill(kept, paths):
    return [int(kept.load(path).sum()) for path in paths]


def test_processes_keep_the_limit_together(photos, root):
    expected = [int(load_image(path).sum()) for path in photos]
    context = multiprocessing.get_context("fork")
    kept = ImageCache(limit(7 * ONE))
    orders = (photos, photos[::-1])
    processes = [context.Process(target=_fill, args=(kept, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert ONE <= used(root) <= 7 * ONE  # an image that both stored counts twice
    assert not list(root.glob("*/.*"))
    assert _fill(kept, photos) == expected


def test_without_a_folder_it_works_and_says_so_once(photos, root, caplog):
    root.parent.write_text("a file")
    dataset = Images(str(photos[0].parent))
    check_same(batches(dataset, FITTING, ImageCache(1)), batches(dataset, FITTING, None))
    assert len(caplog.records) == 1 and "VISIONKIT_CACHE" in caplog.text


def test_a_folder_that_is_read_only_is_still_read(photos, root, monkeypatch, caplog):
    ImageCache(1).load(photos[0])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_cache.Room, "_trim", refuse)
    kept = ImageCache(1)
    assert torch.equal(kept.load(photos[1]), load_image(photos[1]))
    assert len(caplog.records) == 1
    monkeypatch.setattr(image_cache, "load_image", no_decoding)
    kept.load(photos[0])


def test_a_full_disk_is_said_once(photos, root, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    kept = ImageCache(1)
    monkeypatch.setattr(image_cache.os, "replace", full)
    for path in photos:
        assert torch.equal(kept.load(path), load_image(path))
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert list(root.glob("*/*")) == []


CONFIG = {
    "task": "classification",
    "backbone": {"type": "TinyCNN"},
    "data": {"train": None, "val": None, "image_size": 32, "cache_gb": 0.5},
}


def sources(section, **settings):
    data = {**CONFIG["data"], "train": section, "val": section, **settings}
    return build.build_sources(load_config({**CONFIG, "data": data}), ("train", "val"))


def test_a_config_says_how_much(tmp_path, root):
    of_folder(tmp_path)
    section = {"type": "ImageFolder", "root": str(tmp_path / "classes")}
    (source,) = sources(section)
    list(source.val_batches(workers=0))
    assert len(entries(root)) == 12
    (source,) = sources(section, cache_gb=None)
    assert source.cache is None
    with pytest.raises(ConfigError, match=r"cache_gb: got 'ram'; expected a number > 0 or null"):
        sources(section, cache_gb="ram")


def test_data_without_image_files_keep_none(tmp_path):
    (tmp_path / "i").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(4))
    (tmp_path / "l").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1]) + bytes(1))
    section = {"type": "Idx", "images": str(tmp_path / "i"), "labels": str(tmp_path / "l")}
    with pytest.raises(DataError, match=r"Idx keeps no images; leave out cache_gb"):
        sources(section)
