"""Parts and folds of labeled images, as COCO files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionkit.cli import main
from visionkit.data.datasets import Coco
from visionkit.data.tools.split import Divided, deviations
from visionkit.data.tools.split import kfold_data as kfold
from visionkit.data.tools.split import split_data as split
from visionkit.errors import ArgumentError, ConfigError, DataError

PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}
DATA = os.environ.get("VISIONKIT_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="needs VISIONKIT_TEST_DATA")


def coco(images: int = 60, *, shuffled: int | None = None) -> dict[str, Any]:
    """Images of videos of 6 images in folders of 20; every fifth has no object."""
    rng = random.Random(5)
    content: dict[str, Any] = {
        "images": [
            {"id": i + 1, "file_name": f"f{i // 20}/{i:03d}.jpg", "height": 20, "width": 30}
            | {"video": f"v{i // 6}"}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "no"}],
        "attribute_classes": ["red"],
    }
    for i in range(images):
        for k in range(0 if i % 5 == 0 else rng.randint(1, 4)):
            one = {"id": 100 + len(content["annotations"]), "image_id": i + 1, "area": 12.0}
            one |= {"category_id": rng.choice([7, 7, 3]), "bbox": [1.0 + k, 2.0, 4.0, 3.0]}
            content["annotations"].append(one | {"iscrowd": 0})
    if shuffled is not None:
        random.Random(shuffled).shuffle(content["images"])
    return content


def written(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "all.json"
    file.write_text(json.dumps(content))
    return file


def names(file: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(file.read_text())["images"]]


def parts_of(out: Path) -> dict[str, str]:
    return {name: file.stem for file in out.glob("*.json") for name in names(file)}


def test_every_record_is_in_one_part_unchanged(tmp_path: Path) -> None:
    content = coco()
    split(written(tmp_path, content), PARTS, tmp_path / "out")
    parts = [json.loads((tmp_path / f"out/{name}.json").read_text()) for name in PARTS]
    for key in ("images", "annotations"):
        found = sorted((one for part in parts for one in part[key]), key=lambda one: one["id"])
        assert found == content[key]
    for part in parts:
        ids = {image["id"] for image in part["images"]}
        assert {one["image_id"] for one in part["annotations"]} <= ids
        assert part["categories"] == content["categories"]
        assert part["attribute_classes"] == ["red"]
    assert [len(part["images"]) for part in parts] == [48, 6, 6]


def test_the_order_in_the_file_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    found = []
    for number, (order, seed) in enumerate(((None, 0), (1, 0), (2, 0), (None, 1))):
        file = written(tmp_path / str(number), coco(shuffled=order))
        split(file, PARTS, tmp_path / f"out{number}", seed=seed)
        found.append(parts_of(tmp_path / f"out{number}"))
    assert found[0] == found[1] == found[2] != found[3]
    again = tmp_path / "again"
    split(tmp_path / "0/all.json", PARTS, again)
    assert (again / "val.json").read_bytes() == (tmp_path / "out0/val.json").read_bytes()


@pytest.mark.parametrize("by", ["group:video", "folder"])
def test_groups_stay_together(tmp_path: Path, by: str) -> None:
    content = coco()
    parts = {"a": 0.5, "b": 0.5}
    split(written(tmp_path, content), parts, tmp_path / "out", by=by)
    part, together = parts_of(tmp_path / "out"), {}
    for image in content["images"]:
        key = image["video"] if by == "group:video" else image["file_name"][:2]
        together.setdefault(key, set()).add(part[image["file_name"]])
    assert len(together) == (10 if by == "group:video" else 3)
    assert all(len(found) == 1 for found in together.values())
    assert {*part.values()} == {"a", "b"}


def test_images_without_the_key_are_groups_of_their_own(tmp_path: Path) -> None:
    content = coco()
    for image in content["images"][:10]:
        del image["video"]
    found = split(written(tmp_path, content), PARTS, tmp_path / "out", by="group:video")
    assert "kept together: 9 groups by video" in found.notes
    assert "10 images without video: each is a group" in found.notes


def test_one_file_under_two_ids_is_in_one_part(tmp_path: Path) -> None:
    content = coco(20)
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number // 2}.jpg"
    split(written(tmp_path, content), {"a": 0.5, "b": 0.5}, tmp_path / "out")
    a, b = names(tmp_path / "out/a.json"), names(tmp_path / "out/b.json")
    assert len(a) == len(b) == 10 and not {*a} & {*b}


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    content = coco(24)
    rng = np.random.default_rng(0)
    for number, image in enumerate(content["images"]):
        if number % 4 == 0:
            base = rng.integers(0, 255, (5, 8, 3), np.uint8)
        pixels = np.array(Image.fromarray(base).resize((30, 20), Image.Resampling.NEAREST))
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels + float(number % 4), 0, 255).astype(np.uint8)).save(
            path, quality=90
        )
    file = written(tmp_path, content)
    done = split(file, {"a": 0.5, "b": 0.5}, tmp_path / "out", images=tmp_path / "images")
    part = [parts_of(tmp_path / "out")[image["file_name"]] for image in content["images"]]
    assert [len({*part[i : i + 4]}) for i in range(0, 24, 4)] == [1] * 6
    assert done.notes == ["near duplicates: 24 images in 6 groups"]
    (tmp_path / "images/f0/003.jpg").unlink()
    with pytest.raises(DataError, match=r"images\[3\]: f0/003.jpg: it is not in"):
        split(file, PARTS, tmp_path / "out2", images=tmp_path / "images")
    assert not (tmp_path / "out2").exists()


def test_classes_of_whole_images(tmp_path: Path) -> None:
    """Single classes, and lists of them: multi-label."""
    content = coco(50) | {"image_classes": ["day", "night", "fog"], "annotations": []}
    for number, image in enumerate(content["images"]):
        image["class_id"] = [number % 2, 2] if number % 5 == 0 else [number % 2]
    done = split(written(tmp_path, content), {"train": 0.8, "val": 0.2}, tmp_path / "out")
    val = json.loads((tmp_path / "out/val.json").read_text())
    shown = [place for image in val["images"] for place in image["class_id"]]
    assert [shown.count(place) for place in range(3)] == [5, 5, 2]
    assert val["image_classes"] == content["image_classes"]
    assert done.labeled.names == ["cat", "dog", "no", "day", "night", "fog"]
    for image in content["images"]:
        image["class_id"] = image["class_id"][0]
    split(written(tmp_path / "1", content), {"train": 0.8, "val": 0.2}, tmp_path / "single")
    val = json.loads((tmp_path / "single/val.json").read_text())
    assert sorted(image["class_id"] for image in val["images"]) == [0] * 5 + [1] * 5


def test_semantic_maps_are_copied(tmp_path: Path) -> None:
    content = coco(20) | {"semantic_classes": ["road", "sky"]}
    for image in content["images"]:
        image["semantic"] = f"maps/{image['id']}.png"
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.new("L", (30, 20), image["id"] % 2).save(tmp_path / image["semantic"])
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)
    file = written(tmp_path, content)
    done = split(file, {"train": 0.5, "val": 0.5}, tmp_path / "out")
    assert f"copied 20 semantic maps into the folder of {tmp_path}/out/" in "\n".join(done.lines())
    dataset = Coco(tmp_path / "images", tmp_path / "out/val.json")
    assert len(dataset) == 10
    for row, id_ in enumerate(dataset.image_ids):
        semantic = dataset[row].semantic
        assert semantic is not None and (semantic == id_ % 2).all()
    (tmp_path / "maps/3.png").unlink()
    with pytest.raises(DataError, match=r"3.png.* does not exist"):
        split(file, {"train": 0.5, "val": 0.5}, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_kfold(tmp_path: Path) -> None:
    content = coco()
    source = written(tmp_path, content)
    kfold(source, 4, tmp_path / "out", by="group:video", seed=3)
    seen: list[str] = []
    for number in range(1, 5):
        train, val = (
            names(tmp_path / f"out/fold-{number}/{part}.json") for part in ("train", "val")
        )
        assert sorted(train + val) == sorted(image["file_name"] for image in content["images"])
        seen += val
    assert sorted(seen) == sorted(image["file_name"] for image in content["images"])
    record = json.loads((tmp_path / "out/folds.json").read_text())
    assert record["source"].pop("file") == str(source)
    assert len(record["source"].pop("fingerprint")) == 64
    assert record == {"version": 1, "source": {}, "images": None, "k": 4, "seed": 3} | {
        "by": "group:video"
    }


def test_folds_know_the_folder_of_the_images(tmp_path: Path) -> None:
    file, content = written(tmp_path, coco(9)), coco(9)
    for image in content["images"]:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)
    kfold(file, 3, tmp_path / "out")
    record = json.loads((tmp_path / "out/folds.json").read_text())
    assert Path(record["images"]) == tmp_path / "images"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"by": "group:vidoe"}, ArgumentError, "no image record has the key 'vidoe'.*'video'"),
        ({"by": "video"}, ArgumentError, "expected class, group:KEY or folder"),
        ({"by": "group:"}, ArgumentError, "expected class, group:KEY or folder"),
        ({"images": "nowhere"}, ArgumentError, "nowhere is not a folder"),
        ({"parts": {"../a": 0.5, "b": 0.5}}, ArgumentError, r"got '\.\./a'"),
        ({"parts": {"A": 0.5, "a": 0.5}}, ArgumentError, "must differ"),
        ({"parts": {"a": 0.5, "b": 0.4}}, ArgumentError, "whose sum is 1"),
        ({"parts": {"a": 0.98, "b": 0.02}}, DataError, "20 images in 20 groups.*b would be empty"),
        ({"by": "folder"}, DataError, "20 images in 1 group do not fill.*val, test would be"),
    ],
)
def test_what_cannot_be_divided(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    file = written(tmp_path, coco(20))
    with pytest.raises(error, match=text):
        split(file, options.pop("parts", PARTS), tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]


def test_a_folder_that_exists_is_kept(tmp_path: Path) -> None:
    file = written(tmp_path, coco(20))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="already exists"):
        split(file, PARTS, tmp_path / "out")
    with pytest.raises(ConfigError, match="already exists"):
        kfold(file, 3, tmp_path / "out")


def test_too_few_images_for_folds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 image in 1 group do not fill the parts fold-1"):
        kfold(written(tmp_path, coco(1)), 2, tmp_path / "out")
    with pytest.raises(
        DataError, match=r"fold-5 \(0.05\) and 15 more: fold-\d+(, fold-\d+){4} and "
    ):
        kfold(written(tmp_path, coco(10)), 20, tmp_path / "out")
    with pytest.raises(ArgumentError, match="got 1; expected an integer >= 2"):
        kfold(written(tmp_path, coco(1)), 1, tmp_path / "out")


def test_malformed_records_are_all_listed(tmp_path: Path) -> None:
    content = coco(20)
    content["annotations"][3]["category_id"] = 55
    content["annotations"][5]["image_id"] = "x"
    with pytest.raises(DataError) as caught:
        split(written(tmp_path, content), PARTS, tmp_path / "out")
    assert "annotations[3]" in str(caught.value) and "annotations[5]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_large_group_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split(written(tmp_path, coco(60)), PARTS, tmp_path / "out", by="group:video")
    assert not caplog.text
    content = coco(60)
    for image in content["images"][:30]:
        image["video"] = "long"
    split(written(tmp_path, content), PARTS, tmp_path / "out2", by="group:video")
    assert "a group has 30 of 60 images, more than the smallest part is to have (6)" in caplog.text


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, coco()), tmp_path / "out"
    assert (
        main.main(["data", "split", str(file), "--parts", "train=.5,val=.5", f"--out={out}"]) == 0
    )
    text = capsys.readouterr().out
    twice = ["--parts", "a=0.9,b=0.2,b=0.1", f"--out={tmp_path / 'twice'}"]
    assert main.main(["data", "split", str(file), *twice]) == 2
    assert "b is there twice" in capsys.readouterr().err
    objects = len(coco()["annotations"])
    assert f"read 60 images, {objects} labels of 3 classes as COCO" in text
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    counts = {"cat": 0, "dog": 0}
    for one in coco()["annotations"]:
        counts["cat" if one["category_id"] == 7 else "dog"] += 1
    assert {name: int(table[name][0]) for name in counts} == counts
    assert table["no"] == ["0", "-", "-", "0", "-", "-"]
    assert f"data.val.annotations={out}/val.json" in text
    code = main.main(["data", "kfold", str(file), "--k", "3", "--out", str(tmp_path / "folds")])
    assert code == 0
    assert f"visionkit train CONFIG --folds {tmp_path}/folds" in capsys.readouterr().out
    assert (
        main.main(["data", "kfold", str(file), "--k", "3", "--out", str(tmp_path / "folds")]) == 2
    )


def check_shares(done: Divided) -> None:
    """The promise: within 2 points, of classes with at least 50 objects, and of those with at least
    50 images."""
    assert max(deviations(done).values()) <= 2.0
    values = np.array([*done.shares.values()])
    assert np.abs(np.bincount(done.part) / len(done.part) - values).max() < 0.02


@real
@pytest.mark.parametrize(
    "file", ["bccd/annotations/train.json", "coco_mini/annotations/instances_train2017.json"]
)
def test_shares_of_real_data(tmp_path: Path, file: str) -> None:
    done = split(Path(str(DATA)) / file, PARTS, tmp_path / "out")
    check_shares(done)
    objects = done.labeled.objects
    counts = done.counts(objects)
    for part in range(3):  # once more, by hand
        rows = json.loads((tmp_path / f"out/{[*PARTS][part]}.json").read_text())["annotations"]
        ids = [category["id"] for category in done.labeled.reader.categories]
        assert counts[part].tolist() == [
            sum(one["category_id"] == id_ for one in rows) for id_ in ids
        ]
    check_shares(kfold(Path(str(DATA)) / file, 3, tmp_path / "folds"))
