"""`visionkit data merge` and `sample` on the command line."""

import json

import pytest
from PIL import Image

from visionkit.cli.main import main


@pytest.fixture
def files(tmp_path):
    for name, class_name in (("a", "cat"), ("b", "dog")):
        Image.new("RGB", (32, 24)).save(tmp_path / f"{name}.jpg")
        box = {"bbox": [1, 1, 8, 6], "area": 48, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": f"{name}.jpg", "width": 32, "height": 24}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
            "categories": [{"id": 1, "name": class_name}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_merge_prints_what_it_has_done(files, tmp_path, capsys):
    (tmp_path / "map.yaml").write_text("b.json: {dog: wolf}\n")
    out = tmp_path / "c.json"
    command = ["data", "merge", *files, "--map", str(tmp_path / "map.yaml"), "--labeled"]
    assert main([*command, "--out", str(out), "--images", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "changed: 1 image id, 1 object id, 1 category id that an earlier file has, too",
        f"wrote {out}: 2 images, 2 objects of 2 classes; images are in {tmp_path}; train with:",
        f"  visionkit train CONFIG data.train.images={tmp_path} data.train.annotations={out}",
    ]
    content = json.loads(out.read_text())
    assert [one["name"] for one in content["categories"]] == ["cat", "wolf"]
    assert main([*command, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_what_is_wrong_has_its_exit_code(files, tmp_path, capsys):
    out = ["--out", str(tmp_path / "c.json")]
    (tmp_path / "map.yaml").write_text("dgo: wolf\n")
    assert main(["data", "merge", *files, *out, "--map", str(tmp_path / "map.yaml")]) == 2
    assert "did you mean 'dog'" in capsys.readouterr().err
    (tmp_path / "map.yaml").write_text("")
    assert main(["data", "merge", *files, *out, "--map", str(tmp_path / "map.yaml")]) == 2
    assert "map.yaml: is empty; expected lines 'old: new'" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{}")
    bad = [str(tmp_path / "bad.json"), "--map", str(tmp_path / "no.yaml")]
    assert main(["data", "merge", *bad, *out]) == 2  # before the data are read
    assert "no.yaml" in capsys.readouterr().err
    assert main(["data", "merge", str(tmp_path / "bad.json"), *out]) == 3
    assert "'images' is missing" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_sample_names_its_file(files, tmp_path, capsys):
    assert main(["data", "sample", files[0], "--n", "1", "--by", "class"]) == 0
    out = tmp_path / "a-1.json"
    printed = capsys.readouterr().out
    assert f"wrote {out}: 1 of 1 image, 1 object" in printed
    assert f"train CONFIG data.train.images={tmp_path} data.train.annotations={out}" in printed
    assert out.is_file()
    assert main(["data", "sample", files[0], "--n", "5"]) == 2
    assert "has 1 image" in capsys.readouterr().err
