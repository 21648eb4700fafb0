"""Generated shapes: a real COCO dataset, the same for the same seed, consistent in all labels."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.datasets.coco import Coco
from visionkit.data.datasets.shapes import COLORS, SHAPES, Shapes, color_name, generate_shapes
from visionkit.data.masks import Polygons
from visionkit.errors import ConfigError, DataError

NUM_IMAGES = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "train"
    generate_shapes(out, images=NUM_IMAGES, size=96, seed=7)
    return out


@pytest.fixture(scope="module")
def data(folder):
    return Coco(str(folder / "images"), str(folder / "annotations.json"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_target_key_is_there(data):
    assert set(data.keys) == {
        *("boxes", "labels", "iscrowd", "area", "masks", "class_id", "semantic", "identity"),
        "attributes",
    }
    assert len(data) == NUM_IMAGES and not any(data.dropped.values())
    assert len(data.classes["labels"].names) == 5
    for sample in data:
        assert set(data.keys) <= sample.target().keys()
        assert sample.size == (96, 96)


def test_labels_agree_with_each_other(data):
    """Masks of visible parts: disjoint, tightly boxed, and the same as the semantic map."""
    for sample in data:
        target = sample.target()
        masks = target["masks"]
        assert masks.sum(0).max() == 1
        semantic = ((target["labels"] + 1)[:, None, None] * masks).sum(0)
        assert torch.equal(semantic.byte(), target["semantic"])
        assert target["area"].tolist() == masks.sum((1, 2)).tolist()
        for box, mask in zip(target["boxes"], masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(side) for side in tight]


def test_both_kinds_of_segmentation_overlaps_and_a_range_of_sizes(data):
    outlines = [outline for sample in data for outline in sample.segmentations]
    plain = sum(isinstance(outline, Polygons) for outline in outlines)
    assert 0.25 < plain / len(outlines) < 0.75
    sides = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]).max(1) for s in data])
    assert sides.max() > 3.5 * sides.min()
    counts = {len(sample.boxes) for sample in data}
    assert min(counts) >= 1 and max(counts) == 5
    labels = np.bincount(np.concatenate([sample.labels for sample in data]))
    assert len(labels) == 5 and labels.min() > 0.5 * labels.mean()


def test_objects_can_be_seen(data):
    """The colors inside a mask differ from those around it."""
    for sample in list(data)[:30]:
        target = sample.target()
        image = sample.image.float()
        ground = image[:, target["semantic"] == 0].mean(1)
        for mask in target["masks"]:
            assert (image[:, mask].mean(1) - ground).abs().max() > 15


def test_images_of_one_identity_show_one_place(data):
    by_identity = {}
    for sample in data:
        by_identity.setdefault(sample.identity, []).append(sample)
    assert len(by_identity) == NUM_IMAGES / 8
    grounds = []
    for samples in by_identity.values():
        assert len(samples) == 8 and len({sample.class_id for sample in samples}) == 1
        means = [s.image[:, s.semantic == 0].float().mean(1).numpy() for s in samples]
        grounds.append(np.array(means))
    within = np.mean([ground.std(0).mean() for ground in grounds])
    between = np.array([ground.mean(0) for ground in grounds]).std(0).mean()
    assert between > 3 * within
    classes = [samples[0].class_id for samples in by_identity.values()]
    assert np.bincount(classes).tolist() == [2] * 6


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    generate_shapes(tmp_path / "again", images=NUM_IMAGES, size=96, seed=7)
    assert contents(tmp_path / "again") == contents(folder)
    generate_shapes(tmp_path / "other", images=3, size=96, seed=8)
    assert contents(tmp_path / "other")["000001.jpg"] != contents(folder)["000001.jpg"]


def test_only_generated_datasets_are_replaced(tmp_path):
    out = tmp_path / "out"
    generate_shapes(out, images=2, size=48, seed=0)
    generate_shapes(out, images=3, size=48, seed=0)
    assert len(list((out / "images").iterdir())) == 3
    assert list(tmp_path.iterdir()) == [out]
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="choose another folder"):
        generate_shapes(out, images=2, size=48)
    assert (out / "mine.txt").read_text() == "keep"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError):
        generate_shapes(file, images=2, size=48)
    with pytest.raises(ConfigError, match="images=0"):
        generate_shapes(tmp_path / "none", images=0, size=48)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    generate_shapes(tmp_path / "empty", images=1, size=48)


@pytest.mark.parametrize(
    "name",
    [
        *("images/my_photo.jpg", "images/000003.jpg", "images/0000001.jpg", "images/000001.png"),
        *("images/own/000001.jpg", "semantic/my_map.png", "semantic/000000.png", "notes.txt"),
    ],
)
def test_a_file_of_the_user_is_never_replaced(tmp_path, capsys, name):
    out = tmp_path / "out"
    generate_shapes(out, images=2, size=48)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("keep")
    before = contents(out)
    assert main(["data", "shapes", str(out), "--images", "5"]) == 2
    assert name in (told := capsys.readouterr().err) and "choose another folder" in told
    assert contents(out) == before and list(tmp_path.iterdir()) == [out]


def test_a_file_that_is_added_to_the_annotations_is_still_the_users(tmp_path):
    out = tmp_path / "out"
    generate_shapes(out, images=1, size=48)
    content = json.loads((out / "annotations.json").read_text())
    content["images"].append({**content["images"][0], "id": 2, "file_name": "my_photo.jpg"})
    (out / "annotations.json").write_text(json.dumps(content))
    (out / "images" / "my_photo.jpg").write_text("keep")
    with pytest.raises(ConfigError, match=r"\(images/my_photo\.jpg\): move them"):
        generate_shapes(out, images=1, size=48)
    assert (out / "images" / "my_photo.jpg").read_text() == "keep"


def test_a_file_that_appears_while_images_are_drawn_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "out"
    generate_shapes(out, images=1, size=48)

    def draw_slowly(*args):
        (out / "images" / "my_photo.jpg").write_text("keep")

    monkeypatch.setattr("visionkit.data.datasets.shapes._write", draw_slowly)
    with pytest.raises(ConfigError, match="my_photo"):
        generate_shapes(out, images=1, size=48)
    assert sorted(contents(out)) == ["000001.jpg", "000001.png", "annotations.json", "my_photo.jpg"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_asked_for_wrongly_is_a_usage_error(tmp_path, monkeypatch, capsys):
    """Not one of the data. A dataset that is, or holds, the current folder is not replaced."""
    out = tmp_path / "out"
    for words in (["--size", "8"], ["--size", "9000"], ["--seed", "-1"], ["--images", "0"]):
        with contextlib.suppress(SystemExit):
            assert main(["data", "shapes", str(out), *words]) == 2
        assert not out.exists()
    generate_shapes(out, images=1, size=48)
    for folder, name in ((out, "."), (out, str(out)), (out / "images", "..")):
        monkeypatch.chdir(folder)
        assert main(["data", "shapes", name, "--images", "1"]) == 2
        assert "choose another folder" in capsys.readouterr().err
    assert main(["data", "shapes", str(out / "images"), "--images", "1"]) == 2
    assert len(list((out / "images").iterdir())) == 1
    with pytest.raises(ConfigError, match=r"data\.train\.size: got 9000; expected .* <= 8192"):
        load_config({"task": "detection", "data": {"train": {"type": "Shapes", "size": 9000}}})


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("visionkit.data.datasets.shapes._annotation", fail)
    with pytest.raises(DataError, match="No space left"):
        generate_shapes(tmp_path / "out", images=2, size=48)
    assert not list(tmp_path.iterdir())


def test_the_dataset_class_draws_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path))
    first = Shapes(num_images=4, size=64, seed=1)
    times = [path.stat().st_mtime_ns for path in tmp_path.rglob("*")]
    order = ["star", "ring", "circle", "square", "triangle"]
    second = Shapes(num_images=4, size=64, seed=1, classes=order)
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*")] == times
    assert second.classes["labels"].names == tuple(order)
    assert torch.equal(first[2].image, second[2].image)
    assert len(first.ground_truth().image_ids) == 4
    other = Shapes(num_images=4, size=64, seed=2)
    assert not torch.equal(first[2].image, other[2].image)
    assert "masks" not in Shapes(num_images=4, size=64, seed=1, masks=False).keys


def test_images_stay_those_of_the_first_version(tmp_path):
    """Whatever is added to the annotations; results on them can be compared over the years."""
    generate_shapes(tmp_path / "out", images=2, size=48, seed=3)
    for name, mean, pixels in (
        ("000001", [139.1, 106.2, 121.6], [1625, 494, 185, 0, 0, 0]),
        ("000002", [133.5, 110.3, 92.8], [1980, 0, 324, 0, 0, 0]),
    ):
        image = np.asarray(Image.open(tmp_path / "out" / "images" / f"{name}.jpg"))
        assert image.mean((0, 1)) == pytest.approx(mean, abs=0.5)
        classes = np.asarray(Image.open(tmp_path / "out" / "semantic" / f"{name}.png"))
        assert np.bincount(classes.ravel(), minlength=6).tolist() == pixels


def test_attributes_tell_what_can_be_seen(folder, data):
    content = json.loads((folder / "annotations.json").read_text())
    records = content["annotations"]
    assert {r["attributes"]["color"] for r in records} == set(COLORS)
    covered = [r["attributes"]["covered"] for r in records]
    assert 0.1 < np.mean(covered) < 0.6
    overlaps = [r["attributes"]["overlaps"] for r in records]
    assert {kind for kinds in overlaps for kind in kinds} == set(SHAPES)
    assert all(kinds == sorted(set(kinds)) for kinds in overlaps)
    assert all(kinds for kinds, hidden in zip(overlaps, covered, strict=True) if hidden)
    # A plain outline is drawn for what is whole and inside; overlapping boxes go with overlaps.
    plain = [isinstance(r["segmentation"], list) for r in records]
    assert not any(p and hidden for p, hidden in zip(plain, covered, strict=True))
    objects = [(i, box) for i, sample in enumerate(data) for box in sample.boxes]
    for (image, box), kinds in zip(objects, overlaps, strict=True):
        near = [b for p, b in objects if p == image and b is not box and meets(b, box)]
        assert len(kinds) <= len(near)


def meets(a, b):
    return (np.maximum(a[:2], b[:2]) <= np.minimum(a[2:], b[2:])).all()


def test_the_class_list_of_attributes_is_that_of_all_images(tmp_path):
    generate_shapes(tmp_path / "one", images=1, size=48)
    content = json.loads((tmp_path / "one" / "annotations.json").read_text())
    assert content["attribute_classes"] == [
        *("color=red", "color=yellow", "color=green", "color=cyan", "color=blue"),
        *("color=magenta", "color=gray", "covered", "overlaps:circle", "overlaps:ring"),
        *("overlaps:square", "overlaps:star", "overlaps:triangle"),
    ]


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((1, 0, 0), "red"),
        ((1, 0.1, 0.3), "red"),
        ((0.9, 0.8, 0.1), "yellow"),
        ((0.2, 0.7, 0.1), "green"),
        ((0.1, 0.6, 0.7), "cyan"),
        ((0.1, 0.2, 0.9), "blue"),
        ((0.6, 0.1, 0.7), "magenta"),
        ((0.5, 0.5, 0.5), "gray"),
        ((0.7, 0.5, 0.45), "gray"),
    ],
)
def test_names_of_colors(color, name):
    assert color_name(np.array(color, np.float32)) == name


def test_plain_coco_json(folder):
    content = json.loads((folder / "annotations.json").read_text())
    assert {"images", "annotations", "categories"} <= content.keys()
    assert all(len(a["bbox"]) == 4 and a["area"] > 0 for a in content["annotations"])
