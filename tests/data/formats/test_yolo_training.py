import json
import logging

import pytest

import visionkit
from support import small_runs
from support.yolo_files import write
from visionkit.data.datasets import Yolo
from visionkit.data.formats import convert as module
from visionkit.data.formats.convert import convert

YAML = "train: images\nnames: [cat, dog]\n"


@pytest.fixture
def counted(monkeypatch):
    """How often readers have read all records."""
    calls = []

    def read(reader):
        calls.append(reader)
        return original(reader)

    original = module.read_index_of
    monkeypatch.setattr(module, "read_index_of", read)
    monkeypatch.setattr(module, "FEW_FILES", 3)
    return calls


def dataset_in(root):
    return write(
        root,
        {
            "images/a.png": None,
            "images/b.png": None,
            "labels/a.txt": "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.3 0.6\n",
            "data.yaml": YAML,
        },
    )


def test_unchanged_labels_are_not_read_again(tmp_path, counted):
    root = str(dataset_in(tmp_path))
    first, second = Yolo(root), Yolo(root)
    assert len(counted) == 1
    assert first.fingerprint == second.fingerprint
    assert first.classes == second.classes and first.sizes.tolist() == second.sizes.tolist()
    for one, other in zip(first, second, strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
        assert one.labels.tolist() == other.labels.tolist()
    assert [mask.known for mask in second[0].segmentations] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"labels/a.txt": "0 0.5 0.5 0.2 0.4\n"},
        {"labels/b.txt": ""},
        {"images/c.png": None},
        {"data.yaml": YAML.replace("cat", "ox")},
    ],
)
def test_changes_are_read(tmp_path, counted, changes):
    root = dataset_in(tmp_path)
    Yolo(str(root))
    write(root, changes)
    Yolo(str(root))
    assert len(counted) == 2


def test_other_options_and_a_few_files_are_read_again(tmp_path, counted, monkeypatch):
    root = str(dataset_in(tmp_path))
    Yolo(root)
    Yolo(root, names=["x", "y"])
    Yolo(root, exif="ignore")
    assert len(counted) == 3
    monkeypatch.setattr(module, "FEW_FILES", 1000)
    Yolo(root)
    assert len(counted) == 4


def test_what_is_lost_is_logged_each_time(tmp_path, counted, caplog):
    root = write(dataset_in(tmp_path), {"labels/a.txt": "1 0.5 0.5 0.2 0.4 0.9\n"})
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            Yolo(str(root))
    assert caplog.text.count("1 sixth numbers of lines") == 2 == len(counted)


@pytest.mark.slow
def test_training_is_that_of_the_coco_file(real_data, tmp_path):
    """BCCD as YOLO gives each loss and metric of a run on its COCO file."""
    images, losses = real_data / "bccd/images", []
    sources = {}
    for part in ("train", "val"):
        file = real_data / f"bccd/annotations/{part}.json"
        convert(file, tmp_path / part, to="yolo", images=images)
        coco = {"type": "Coco", "images": str(images), "annotations": str(file)}
        sources[part] = coco, {"type": "Yolo", "root": str(tmp_path / part)}
    for i, name in enumerate(("coco", "yolo")):
        run = small_runs.config("detection", "FCOS", pyramid=True)
        run["data"] |= {"train": sources["train"][i], "val": None, "image_size": 64}
        run["train"] |= {"steps": 5}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(run | {"output": str(tmp_path / name)}))
        visionkit.train(tmp_path / f"{name}.yaml")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        losses.append([
            {key: value for key, value in row.items() if "loss" in key or key.startswith("train/")}
            for row in rows
        ])  # fmt: skip
    assert len(losses[0]) >= 5 and losses[0] == losses[1]
