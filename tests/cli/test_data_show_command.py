"""`visionkit data show` on the command line."""

import json

import pytest
from PIL import Image

from visionkit.cli.main import main


@pytest.fixture
def file(tmp_path):
    Image.new("RGB", (32, 24)).save(tmp_path / "a.jpg")
    box = {"bbox": [1, 1, 8, 6], "area": 48, "iscrowd": 0}
    images = [
        {"id": i, "file_name": f"{n}.jpg", "width": 32, "height": 24} for i, n in enumerate("ab")
    ]
    content = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return tmp_path / "gt.json"


def test_the_sheet_is_written_and_what_is_missing_named(file, tmp_path, capsys):
    out = tmp_path / "sheet.jpg"
    assert main(["data", "show", str(file), "--out", str(out)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "not shown: " in first
    assert "b.jpg" in first
    assert last == f"wrote {out}: 1 image of {file}"
    assert out.is_file()


def test_wrong_arguments_have_their_exit_codes(file, tmp_path, capsys):
    out = str(tmp_path / "sheet.jpg")
    assert main(["data", "show", str(file), "--class", "cta", "--out", out]) == 2
    assert "did you mean 'cat'" in capsys.readouterr().err
    assert main(["data", "show", str(file), "--augmented", "--out", out]) == 2
    assert main(["data", "show", str(tmp_path / "no.yaml"), "--out", out]) == 2
    file.write_text("{}")
    assert main(["data", "show", str(file), "--out", out]) == 3
    assert not (tmp_path / "sheet.jpg").exists()
