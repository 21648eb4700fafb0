"""`show` draws the images of a class, and as augmented ones the batches of training."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import visionkit.engine.train as training
from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.engine.show import first_batches
from visionkit.engine.show import show_data as show
from visionkit.errors import ArgumentError, DataError
from visionkit.types import IGNORE


@pytest.fixture
def file(tmp_path):
    """Five images: cats in 0 to 2, a dog in 3, nothing in 4; all have a class and a map."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(5):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        labels = np.full((30, 40), IGNORE, np.uint8)
        labels[:10, :10] = i == 4
        Image.fromarray(labels).save(tmp_path / f"{i}-map.png")
        size = {"width": 40, "height": 30, "semantic": f"{i}-map.png"}
        more = {"class_id": i % 2, "identity": i}
        images.append({"id": i + 10, "file_name": f"{i}.png", **size, **more})
        polygon = [[5, 5, 25, 5, 25, 20, 5, 20]]
        box = {"bbox": [5, 5, 20, 15], "area": 300, "iscrowd": 0, "segmentation": polygon}
        record = {"id": i, "image_id": i + 10, "category_id": 1 + (i == 3), **box}
        annotations.append({**record, "attributes": {"color": "red" if i else "blue"}})
    content = {
        "images": images,
        "annotations": annotations[:4],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "image_classes": ["day", "night"],
        "semantic_classes": ["sky", "road"],
    }
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def config(file, tmp_path):
    data = {"images": str(tmp_path / "images"), "annotations": str(file)}
    content = {
        "task": "detection",
        "head": {"type": "FCOS", "num_convs": 1},
        "backbone": {"type": "TinyCNN"},
        "data": {
            "train": data,
            "val": None,
            "batch_size": 2,
            "image_size": 64,
            "workers": 0,
            "transforms": [{"type": "HorizontalFlip"}, {"type": "ColorJitter"}],
        },
        "train": {"steps": 3, "seed": 5, "device": "cpu", "validate": False, "plots": False},
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("class_name", "count"),
    [
        (None, 5),
        ("cat", 3),
        ("dog", 1),
        ("night", 2),  # class of the images 1 and 3
        ("road", 1),  # in the map of image 4 alone
        ("sky", 4),
        ("color=blue", 1),
    ],
)
def test_images_of_a_class(file, tmp_path, class_name, count):
    sheet = show(file, tmp_path / "a.jpg", class_name=class_name)
    assert sheet.shown == {str(file): count}
    assert sheet.unreadable == []
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "JPEG"


def test_the_first_images_and_no_more_than_there_are(file, tmp_path):
    assert show(file, tmp_path / "a.png", n=2).shown == {str(file): 2}
    assert show(file, tmp_path / "b.jpg", n=500).shown == {str(file): 5}
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height  # two images side by side


def test_missing_and_damaged_images_are_named(file, tmp_path):
    (tmp_path / "images/0.png").unlink()
    (tmp_path / "images/1.png").write_bytes(b"\x89PNG cut")
    sheet = show(file, tmp_path / "a.jpg", n=3)
    assert sheet.shown == {str(file): 3}
    assert len(sheet.unreadable) == 2
    assert "0.png" in sheet.unreadable[0]
    assert "1.png" in sheet.unreadable[1]


def test_augmented_images_are_the_batches_of_training(config, tmp_path, monkeypatch):
    """The tensors that three steps of a run get are those that `show` draws."""
    seen = []
    step = training.train_step

    def spy(learner, taken, *args, **kwargs):
        seen.extend(batch for _, batch in taken)
        return step(learner, taken, *args, **kwargs)

    monkeypatch.setattr(training, "train_step", spy)
    checked = load_config(config)
    training.train(checked)
    [source] = build_sources(checked, ("train",))
    ours = [*first_batches(source, checked.train.seed)]
    assert len(seen) == len(ours) == 3  # of 2 images each: an epoch of 5
    for one, other in zip(seen, ours, strict=True):
        assert torch.equal(one.images, other.images)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert (
                    torch.equal(value, b[key])
                    if isinstance(value, torch.Tensor)
                    else value == b[key]
                )


def test_augmented_sheets_have_the_drawn_batches(config, tmp_path):
    """The same for the same seed, other images for another one."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        sheet = show(config, tmp_path / f"{name}.jpg", [f"train.seed={seed}"], augmented=True, n=2)
        [(title, count)] = sheet.shown.items()
        assert title == f"data.train, as training sees it from step 0 on (seed {seed})"
        assert count == 2
    texts = [(tmp_path / f"{name}.jpg").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    stored = show(config, tmp_path / "d.jpg", n=1)
    assert [*stored.shown] == ["data.train, as stored"]


def test_augmented_images_of_a_class(config, tmp_path):
    """Of an epoch, five images and the first of the next one, those with a dog."""
    [(_, count)] = show(config, tmp_path / "a.jpg", augmented=True, class_name="dog").shown.items()
    assert count in (1, 2)


def test_each_source_has_its_images(config, tmp_path):
    content = json.loads(config.read_text())
    train = content["data"]["train"]
    content = {
        "backbone": content["backbone"],
        "heads": {"objects": {"type": "FCOS"}, "scene": {"type": "Classification"}},
        "neck": {"type": "FPN"},
        "data": {
            "boxes": {"feeds": ["objects"], "train": {"type": "Coco", **train}},
            "scenes": {"feeds": ["scene"], "train": {"type": "Coco", **train}},
        },
    }
    config.write_text(json.dumps(content))
    sheet = show(config, tmp_path / "a.jpg", n=2)
    assert sheet.shown == {"data.boxes.train, as stored": 2, "data.scenes.train, as stored": 2}
    sheet = show(config, tmp_path / "b.jpg", n=1, class_name="night")
    assert sheet.shown == {"data.scenes.train, as stored": 1}


def test_class_folders(tmp_path):
    for i, name in enumerate(("cat", "cat", "dog")):
        (tmp_path / f"data/{name}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"data/{name}/{i}.png")
    root = str(tmp_path / "data")
    content = {
        "task": "classification",
        "backbone": {"type": "TinyCNN"},
        "data": {"train": {"root": root}, "val": None},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(content))
    sheet = show(tmp_path / "c.yaml", tmp_path / "a.jpg", class_name="dog")
    assert [*sheet.shown.values()] == [1]


def test_no_image_to_show_is_an_error(file, tmp_path):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"cut")
    with pytest.raises(DataError, match=r"no image with 'cat' to show\n.*0\.png"):
        show(file, tmp_path / "a.jpg", class_name="cat")
    assert not (tmp_path / "a.jpg").exists()


def test_the_parts_of_a_folder_are_below_each_other(file, tmp_path):
    """COCO as Roboflow writes it: a folder for each part, with images and annotations."""
    content = json.loads(file.read_text())
    for one in content["images"]:
        del one["semantic"]
    for part in ("train", "valid"):
        shutil.copytree(tmp_path / "images", tmp_path / f"data/{part}")
        (tmp_path / f"data/{part}/_annotations.coco.json").write_text(json.dumps(content))
    sheet = show(tmp_path / "data", tmp_path / "a.jpg", n=1)
    folder = tmp_path / "data"
    assert sheet.shown == {f"{folder} train": 1, f"{folder} val": 1}


def test_wrong_arguments(config, file, tmp_path):
    out = tmp_path / "a.jpg"
    for target in (config, file):
        with pytest.raises(ArgumentError, match="unknown class 'dgo'; did you mean 'dog'"):
            show(target, out, class_name="dgo")
    with pytest.raises(ArgumentError, match="apply to a config only"):
        show(file, out, augmented=True)
    with pytest.raises(ArgumentError, match="--images needs a file"):
        show(config, out, images=tmp_path)
    with pytest.raises(ArgumentError, match="suffix"):
        show(file, tmp_path / "a.bmp")
    with pytest.raises(ArgumentError, match="does not exist"):
        show(file, tmp_path / "no/a.jpg")
    assert not out.exists()
    out.touch()
    with pytest.raises(ArgumentError, match="already exists"):
        show(file, out)
    (tmp_path / "images").rename(tmp_path / "x.images")
    for path in (tmp_path / "x.images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="--images DIR"):
        show(file, tmp_path / "b.jpg")


def test_real_data(real_data, tmp_path):
    """Of 18 images of nuts those with figs."""
    source = real_data / "nuts/annotations/all.json"
    content = json.loads(source.read_text())
    ids = {one["name"]: one["id"] for one in content["categories"]}
    figs = {o["image_id"] for o in content["annotations"] if o["category_id"] == ids["fig"]}
    assert 0 < len(figs) < 18
    sheet = show(source, tmp_path / "b.jpg", n=50, class_name="fig")
    assert [*sheet.shown.values()] == [len(figs)]
