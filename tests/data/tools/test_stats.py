"""What is in data, against numbers worked out by hand and naive loops."""

import json

import numpy as np
import pytest
from PIL import Image

from visionkit.data.tools.stats import data_stats
from visionkit.errors import ArgumentError, DataError


def noise(path, seed, size=(80, 60)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


def coco(path, images, objects, names=("cat", "dog"), **more):
    """A file of `images` (name, w, h) and `objects` (place of the image, class, x, y, w, h)."""
    content = {
        "images": [
            {"id": i + 1, "file_name": name, "width": w, "height": h}
            for i, (name, w, h) in enumerate(images)
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": image + 1,
                "category_id": names.index(name) + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, (image, name, *box) in enumerate(objects)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def only(record):
    [part] = record["data"].values()
    return part


def test_counts_worked_out_by_hand(tmp_path):
    """Three images of 640x480; at image_size 320 each side is half as long."""
    images = [("a.jpg", 640, 480), ("b.jpg", 640, 480), ("c.jpg", 640, 480)]
    objects = [
        (0, "cat", 0, 10, 20, 20),  # small, at the border
        (0, "cat", 100, 100, 40, 60),  # medium
        (0, "dog", 100, 110, 40, 60),  # IoU 50 / 70 = 0.71 with the last one
        (1, "cat", 300, 200, 200, 10),  # 20 times as long as wide; medium by its area
    ]
    record, _ = data_stats(coco(tmp_path / "gt.json", images, objects))
    part = only(record)
    assert (part["images"], part["objects"], part["empty_images"], part["crowds"]) == (3, 4, 1, 0)
    assert part["sizes"] == {"small": 1, "medium": 3, "large": 0}
    assert part["side"] == np.quantile([20, 40, 40, 10], np.arange(11) / 10).round(3).tolist()
    assert part["at_image_size"]["320"]["side"][0::10] == [5, 20]
    assert part["at_image_size"]["320"]["sizes"] == {"small": 4, "medium": 0, "large": 0}
    assert part["at_image_size"]["960"]["sizes"] == {"small": 1, "medium": 3, "large": 0}
    assert part["aspect_ratio"][0::10] == [0.667, 20]
    assert part["elongated"] == 1
    assert part["at_border"] == 1
    assert part["overlapping"] == {"0.5": 2, "0.7": 2}
    assert part["overlapping_same_class"] == {"0.5": 0, "0.7": 0}
    assert part["overlapping_classes"] == [{"classes": ["cat", "dog"], "pairs": 1}]
    assert part["objects_per_image"]["mean"] == round(4 / 3, 3)
    cat, dog = part["classes"]
    assert (cat["name"], cat["objects"], cat["images"]) == ("cat", 3, 2)
    assert (dog["name"], dog["objects"], dog["images"]) == ("dog", 1, 1)
    assert dog["overlapping"] == {"0.5": 1, "0.7": 1}
    assert part["image_sizes"]["most_common"] == [{"width": 640, "height": 480, "images": 3}]
    assert not part["images_read"]  # no image is near the file
    assert part["near_duplicates"] is None


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = np.prod((high - low).clip(0))
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_overlaps_are_those_of_a_loop_over_all_pairs(tmp_path):
    rng = np.random.default_rng(0)
    images = [(f"{i}.jpg", 200, 200) for i in range(6)]
    objects = []
    for _ in range(300):
        x, y = rng.integers(0, 60, 2).tolist()
        w, h = rng.integers(20, 100, 2).tolist()
        objects.append((int(rng.integers(6)), ["cat", "dog"][rng.integers(2)], x, y, w, h))
    part = only(data_stats(coco(tmp_path / "gt.json", images, objects))[0])
    for limit in (0.5, 0.7):
        for key, same in (("overlapping", False), ("overlapping_same_class", True)):
            found = {
                i
                for i, one in enumerate(objects)
                for j, other in enumerate(objects)
                if i != j and one[0] == other[0] and (one[1] == other[1] or not same)
                if iou(np.array(one[2:], float), np.array(other[2:], float)) > limit
            }
            assert part[key][f"{limit}"] == len(found)
            assert found


def test_crowds_are_counted_and_no_objects(tmp_path):
    path = coco(tmp_path / "gt.json", [("a.jpg", 100, 100)], [(0, "cat", 10, 10, 20, 20)] * 2)
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    part = only(data_stats(path)[0])
    assert (part["objects"], part["crowds"], part["overlapping"]["0.5"]) == (1, 1, 0)


def test_missing_and_damaged_images_are_counted(tmp_path):
    noise(tmp_path / "images/a.jpg", 0)
    (tmp_path / "images/b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    images = [("a.jpg", 80, 60), ("b.jpg", 80, 60), ("c.jpg", 80, 60)]
    record, _ = data_stats(coco(tmp_path / "gt.json", images, [(0, "cat", 1, 1, 30, 30)]))
    part = only(record)
    assert (part["missing"], part["damaged"], part["images_read"]) == (1, 1, True)
    assert "c.jpg" in part["unreadable"][0]
    assert "b.jpg" in part["unreadable"][1]
    assert kinds(record)["unreadable"]["value"] == 2


def kinds(record):
    return {one["kind"]: one for one in record["suggestions"]}


def test_near_duplicates_within_and_across_files(tmp_path):
    for i in range(4):
        noise(tmp_path / f"images/{i}.jpg", i)
    with Image.open(tmp_path / "images/0.jpg") as image:
        image.resize((40, 30)).save(tmp_path / "images/4.jpg")
        image.save(tmp_path / "images/5.jpg", quality=50)
    train = coco(
        tmp_path / "train.json",
        [(f"{i}.jpg", 80, 60) for i in (0, 1, 2)] + [("4.jpg", 40, 30)],
        [(0, "cat", 1, 1, 30, 30)],
    )
    val = coco(
        tmp_path / "val.json",
        [("3.jpg", 80, 60), ("5.jpg", 80, 60)],
        [(0, "cat", 1, 1, 30, 30), (1, "dog", 1, 1, 30, 30)],
    )
    record, _ = data_stats([train, val])
    assert record["data"][str(train)]["near_duplicates"]["groups"] == [["0.jpg", "4.jpg"]]
    assert record["data"][str(val)]["near_duplicates"] == {"images": 0, "groups": []}
    assert record["near_duplicates_across"] == [
        {"parts": [str(train), str(val)], "images": 1, "pairs": [["0.jpg", "5.jpg"]]}
    ]
    leak = kinds(record)["near-duplicates-across"]
    assert leak["where"] == str(val)
    assert "0.jpg and 5.jpg" in leak["text"]
    absent = kinds(record)["absent-classes"]  # a dog is in one file only
    assert (absent["where"], absent["value"]) == (str(train), 1)


def test_the_parts_of_a_folder_are_counted_apart(tmp_path):
    """A YOLO dataset whose parts have an image in common."""
    for part, seeds in (("train", (0, 1)), ("val", (2, 0))):
        for seed in seeds:
            noise(tmp_path / f"data/images/{part}/{seed}.jpg", seed)
            label = tmp_path / f"data/labels/{part}/{seed}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.25 0.5\n")
    text = "path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n"
    (tmp_path / "data/data.yaml").write_text(text)
    record, _ = data_stats(tmp_path / "data")
    train, val = record["data"]
    assert (train, val) == (f"{tmp_path / 'data'} train", f"{tmp_path / 'data'} val")
    assert record["data"][train]["sizes"] == {"small": 2, "medium": 0, "large": 0}  # 20x30
    [found] = record["near_duplicates_across"]
    assert found["images"] == 1


def test_without_images_nothing_is_opened(tmp_path):
    noise(tmp_path / "images/a.jpg", 0)
    path = coco(tmp_path / "gt.json", [("a.jpg", 80, 60)], [(0, "cat", 1, 1, 30, 30)])
    record, _ = data_stats(path, read_images=False)
    assert only(record)["near_duplicates"] is None
    assert not only(record)["images_read"]


@pytest.mark.parametrize(
    ("objects", "kind", "part_of_the_text"),
    [
        # At image_size 320, images of 640 px are halved: 20 px become 10.
        (
            [(0, "cat", 10, 10, 20, 20)] * 1 + [(0, "cat", 10, 60 + i, 20, 20) for i in range(9)],
            "small-objects",
            "tenth percentile of object sides is 10 px at image_size 320: use image_size 512 or",
        ),
        (
            [(0, "cat", 10 * i, 200, 60, 60) for i in range(4)] + [(1, "dog", 0, 0, 60, 60)],
            "overlaps",
            "4 of 5 objects (80.0%) overlap another of their class",
        ),
        (
            [(0, "cat", 50 * i, 200, 40, 300) for i in range(3)],
            "elongated-objects",
            "100.0% of the objects are more than 4.5 times as long as wide",
        ),
        (
            [(0, "cat", 50 * i, 200, 40, 40) for i in range(11)] + [(0, "dog", 0, 0, 40, 40)],
            "imbalance",
            "'cat' has 11 objects, 11 times as many as 'dog' (1)",
        ),
        ([(0, "cat", 0, 200, 40, 40)], "few", "1 class has fewer than 50 objects: 'cat' (1)"),
        ([(0, "cat", 0, 200, 40, 40)], "empty-images", "1 of 2 images (50.0%) have no object"),
    ],
)
def test_suggestions_have_their_numbers(tmp_path, objects, kind, part_of_the_text):
    images = [("a.jpg", 640, 640), ("b.jpg", 640, 640)]
    record, _ = data_stats(coco(tmp_path / "gt.json", images, objects))
    assert part_of_the_text in kinds(record)[kind]["text"]


def test_plain_data_have_no_suggestions(tmp_path):
    images = [(f"{i}.jpg", 640, 480) for i in range(50)]
    objects = [
        (i, name, x, 100, 90, 100) for i in range(50) for name, x in (("cat", 9), ("dog", 300))
    ]
    record, _ = data_stats(coco(tmp_path / "gt.json", images, objects))
    assert record["suggestions"] == []


def config(folder, train, val, **data):
    return {
        "task": "detection",
        "backbone": {"type": "TinyCNN"},
        "data": {
            "train": {"images": str(folder / "images"), "annotations": str(train)},
            "val": {"images": str(folder / "images"), "annotations": str(val)},
            **data,
        },
    }


def write_config(path, content):
    path.write_text(json.dumps(content))  # which is YAML, too
    return path


@pytest.fixture
def small(tmp_path):
    """A dataset of 4 images of 80x60, and a config."""
    images = [(f"{i}.jpg", 80, 60) for i in range(4)]
    for i in range(4):
        noise(tmp_path / f"images/{i}.jpg", i)
    objects = [(i, ("cat", "dog")[i % 2], 10, 10, 40, 30) for i in range(4)]
    train = coco(tmp_path / "train.json", images[:3], objects[:3])
    val = coco(tmp_path / "val.json", [images[3]], [(0, "dog", 10, 10, 40, 30)])
    return write_config(tmp_path / "c.yaml", config(tmp_path, train, val, image_size=160))


def test_a_config_has_its_splits_and_its_image_size(small):
    record, _ = data_stats(small)
    assert [*record["data"]] == ["data.train", "data.val"]
    train = record["data"]["data.train"]
    assert train["at_image_size"]["160"]["side"] == [60] * 11  # twice as large
    assert "use image_size 96" in kinds(record)["enlarged-images"]["text"]
    record, _ = data_stats(small, ["data.image_size=320x80"])
    assert kinds(record)["stretched-images"]["value"] == pytest.approx(80 / 60, abs=1e-3)
    assert record["data"]["data.train"]["at_image_size"]["320x80"]["side"] == [40] * 11


def test_the_same_images_in_both_splits_are_found(small, tmp_path):
    record, _ = data_stats(small, [f"data.val.annotations={tmp_path / 'train.json'}"])
    [found] = record["near_duplicates_across"]
    assert (found["parts"], found["images"]) == (["data.train", "data.val"], 3)


def test_class_folders(tmp_path):
    for name, count in (("cat", 3), ("dog", 1)):
        for i in range(count):
            noise(tmp_path / f"data/{name}/{i}.jpg", i, (40 + 10 * i, 40))
    path = write_config(
        tmp_path / "c.yaml",
        {
            "task": "classification",
            "backbone": {"type": "TinyCNN"},
            "data": {"train": {"root": str(tmp_path / "data")}, "val": None},
        },
    )
    part = only(data_stats(path)[0])
    assert part["image_classes"] == {"cat": 3, "dog": 1}
    assert part["image_sizes"]["distinct"] == 3
    assert part["near_duplicates"]["groups"] == [["cat/0.jpg", "dog/0.jpg"]]
    assert "objects" not in part


def test_semantic_maps(tmp_path):
    """Two maps of 10 x 10: 99 and 50 pixels of class 0, 1 of class 1, 50 ignored."""
    (tmp_path / "labels").mkdir()
    for i in range(2):
        noise(tmp_path / f"images/{i}.png", i, (10, 10))
        labels = np.zeros((10, 10), np.uint8)
        if i == 0:
            labels[0, 0] = 1
        else:
            labels[:5] = 255
        Image.fromarray(labels).save(tmp_path / f"labels/{i}.png")
    path = write_config(
        tmp_path / "c.yaml",
        {
            "task": "semantic_segmentation",
            "backbone": {"type": "TinyCNN"},
            "data": {
                "train": {
                    "images": str(tmp_path / "images"),
                    "labels": str(tmp_path / "labels"),
                    "classes": ["road", "sign"],
                },
                "val": None,
            },
        },
    )
    record, _ = data_stats(path)
    maps = only(record)["semantic"]
    assert (maps["maps"], maps["ignored_pixels"], maps["unreadable"]) == (2, 50, 0)
    assert maps["classes"] == [
        {"name": "road", "pixels": 149, "share": round(149 / 150, 6), "images": 2},
        {"name": "sign", "pixels": 1, "share": round(1 / 150, 6), "images": 1},
    ]


def test_wrong_arguments(small, tmp_path):
    with pytest.raises(ArgumentError, match="--images needs a file"):
        data_stats(small, images=tmp_path)
    with pytest.raises(ArgumentError, match="overrides"):
        data_stats(tmp_path / "train.json", ["train.epochs=1"])
    with pytest.raises(ArgumentError, match="not a folder"):
        data_stats(tmp_path / "train.json", images=tmp_path / "no")
    with pytest.raises(DataError, match=r"nothing\.json does not exist"):
        data_stats(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(DataError, match="not an object"):
        data_stats(tmp_path / "bad.json")


def test_real_numbers(real_data):
    """The counts of the README of the data, and the near duplicates in them: seen by eye."""
    folder = real_data / "bccd/annotations"
    record, _ = data_stats([folder / "train.json", folder / "val.json"])
    parts = [*record["data"].values()]
    assert [part["images"] for part in parts] == [205, 87]
    assert all(part["near_duplicates"]["images"] == 0 for part in parts)
    assert record["near_duplicates_across"] == []
    folder = real_data / "raccoon/annotations"
    record, _ = data_stats([folder / "train.json", folder / "val.json"])
    [found] = record["near_duplicates_across"]
    assert found["images"] == 3
    assert sorted({name for _, name in found["pairs"]}) == [
        "raccoon-50.jpg",
        "raccoon-51.jpg",
        "raccoon-74.jpg",
    ]
