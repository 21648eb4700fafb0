"""`visionkit data stats` prints text, JSON or a page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from visionkit.cli.main import main


@pytest.fixture
def file(tmp_path):
    """Two images with 30 classes, one of a name that a terminal must not see."""
    names = [f"a very long name of the class number {i}" for i in range(29)] + ["\x1b[31mred"]
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / f"{i}.jpg")
    box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 60} for i in range(2)],
        "annotations": [{"id": i, "image_id": 0, "category_id": i, **box} for i in range(30)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return tmp_path / "gt.json"


def test_the_text_is_narrow_and_names_what_is_in_the_file(file, capsys):
    assert main(["data", "stats", str(file)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert (
        "  2 images, 30 objects of 30 classes, 0 crowd regions, 1 image without an object" in lines
    )
    assert "\\x1b[31mred" in out
    assert "\x1b" not in out
    assert "... and 10 more (--json has all)" in out
    assert "have no object" in out
    assert max(len(line) for line in lines if str(file) not in line) <= 100


def test_json_has_everything(file, capsys):
    assert main(["data", "stats", str(file), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    part = record["data"][str(file)]
    assert len(part["classes"]) == 30
    assert all(len(one["side"]) == 11 for one in part["classes"])
    assert {one["kind"] for one in record["suggestions"]} == {"empty-images", "few"}


def test_the_page_needs_nothing_else(file, capsys, tmp_path):
    page = tmp_path / "page.html"
    assert main(["data", "stats", str(file), "--html", str(page)]) == 0
    text = page.read_text()
    assert "Objects by class" in text
    assert "<svg" in text
    assert text.count("data:image/jpeg;base64,") == 2  # both images
    addresses = re.findall(r"(?:src|href)=\"(?!#|data:)([^\"]*)", text)
    assert not addresses
    assert "http:" not in text
    assert "https:" not in text
    before = page.read_bytes()
    assert main(["data", "stats", str(file), "--html", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert page.read_bytes() == before


def test_what_cannot_be_read_ends_with_its_exit_code(file, tmp_path, capsys):
    assert main(["data", "stats", str(tmp_path / "no.yaml")]) == 2
    (tmp_path / "bad.json").write_text('{"images": []}')
    assert main(["data", "stats", str(tmp_path / "bad.json")]) == 3
    assert "bad.json" in capsys.readouterr().err


def test_the_yaml_file_of_a_yolo_dataset_is_data_and_no_config(tmp_path, capsys):
    for part in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / part).mkdir(parents=True)
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / part / "a.jpg")
        (tmp_path / "labels" / part / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: raccoon}\n")
    assert main(["data", "stats", str(file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert [(name, one["images"]) for name, one in data.items()] == [
        (f"{file} train", 1),
        (f"{file} val", 1),
    ]
    assert main(["data", "show", str(file), "--out", str(tmp_path / "s.jpg")]) == 0
    assert "1 image of" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text("name: x\n0: 1\n")
    assert main(["data", "stats", str(tmp_path / "config.yaml")]) == 2
    assert "a key must be a string" in capsys.readouterr().err
