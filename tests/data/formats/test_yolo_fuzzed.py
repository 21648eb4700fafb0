import pytest

from support.fuzz_formats import fuzz
from support.yolo_files import write

BOXES = "1 0.5 0.5 0.2 0.4\n0 0.25 0.25 0.1 0.1 0.9\n"
FILES = {
    "images/train/a.png": None,
    "images/val/b.png": None,
    "labels/train/a.txt": BOXES + "0 0.1 0.2 0.5 0.2 0.3 0.6\n",
    "labels/val/b.txt": "2 0.5 0.2 0.7 0.6 0.5 1 0.3 0.6\n",
    "train.txt": "./images/train/a.png\n",
    "data.yaml": (
        "path: .\ntrain: [images/train, train.txt]\nval: images/val\nnc: 3\n"
        "names:\n  0: cat\n  1: dog\n  2: ox\nvisionkit: {category_ids: [1, 2, 7]}\n"
    ),
    "classes.txt": "cat\ndog\nox\n",
}


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", [".", "data.yaml"])
def test_damaged_datasets_are_read_or_a_data_error(tmp_path, count, source):
    root = write(tmp_path / "yolo", FILES, size=(20, 10))
    sound = fuzz(root, "yolo", count, seed=len(source), source=source)
    assert 0 < sound < count


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_datasets_without_data_yaml(tmp_path, count):
    files = {name: FILES[name] for name in FILES if name != "data.yaml"}
    sound = fuzz(write(tmp_path / "yolo", files, size=(20, 10)), "yolo", count)
    assert 0 < sound < count
