"""`visionkit data convert` of CSV files and of maps: what is printed, and exit codes."""

import json

import numpy as np
from PIL import Image

from visionkit.cli.main import main


def image(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((2, 3), np.uint8) if values is None else np.array(values, np.uint8)
    Image.fromarray(pixels).save(path)


def run(capsys, *arguments):
    code = main(["data", "convert", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_classes_of_images_are_counted(tmp_path, capsys):
    image(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("file,cat,dog\na.png,1,0\n")
    code, text = run(capsys, tmp_path / "l.csv", tmp_path / "o.json", "--json", tmp_path / "r.json")
    assert code == 0 and "read 1 image of 2 classes as CSV" in text and "nothing is lost" in text
    assert json.loads((tmp_path / "r.json").read_text())["image_classes"] == 2
    code, text = run(capsys, tmp_path / "o.json", tmp_path / "csv", "--to", "csv")
    assert code == 0 and text.endswith(f"wrote {tmp_path / 'csv'}\n")


def test_bad_rows_and_maps_have_exit_code_3_and_are_dropped_on_demand(tmp_path, capsys):
    image(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
    code, text = run(capsys, tmp_path / "l.csv", tmp_path / "o.json")
    assert code == 3 and "l.csv:3: the image 'b.png' is not in" in text
    code, text = run(capsys, tmp_path / "l.csv", tmp_path / "o.json", "--skip-bad")
    assert code == 0 and "dropped: 1 bad (image)" in text


def test_names_colors_and_numbers_of_classes_come_from_a_file_or_are_known(tmp_path, capsys):
    image(tmp_path / "in" / "images" / "a.png")
    image(tmp_path / "in" / "labels" / "a.png", [[0, 7, 7], [0, 0, 15]])
    code, text = run(capsys, tmp_path / "in", tmp_path / "o.json", "--from", "masks")
    assert code == 3 and "unknown classes: write their names" in text
    arguments = (tmp_path / "in", "--from", "masks", "--classes")
    code, text = run(capsys, *arguments[:1], tmp_path / "o.json", *arguments[1:], "voc")
    assert code == 0 and "read 1 image, 2 objects of 20 classes as maps of classes" in text
    assert "lost: 2 regions of a class, of which each becomes one object" in text
    (tmp_path / "c.yaml").write_text("background: 0\ncar: 7\nman: 15\n")
    code, _ = run(capsys, *arguments[:1], tmp_path / "p.json", *arguments[1:], tmp_path / "c.yaml")
    assert code == 0
    names = [one["name"] for one in json.loads((tmp_path / "p.json").read_text())["categories"]]
    assert names == ["car", "man"]
    code, text = run(capsys, *arguments[:1], tmp_path / "q.json", *arguments[1:], "nothing.txt")
    assert code == 3 and "file of classes nothing.txt does not exist" in text
