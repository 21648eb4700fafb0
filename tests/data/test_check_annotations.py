"""`visionkit check ANNOTATIONS.json`: what it finds, prints, writes and leaves alone."""

import json
import logging
import re

import pytest

from support.coco_files import SQUARE, save, small
from visionkit.cli.main import main
from visionkit.data.datasets import Coco
from visionkit.errors import DataError

KEYS = {
    "kind", "severity", "file", "list", "index", "id", "key", "value", "message", "hint",
    "action",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, small())
    (tmp_path / "out").mkdir()
    return tmp_path


def check(folder, content=None, *words):
    """The exit code and the report."""
    if content is not None:
        (folder / "a.json").write_text(json.dumps(content))
    out = folder / "out/report.json"
    code = main(["check", str(folder / "a.json"), "--json", str(out), *words])
    return code, json.loads(out.read_text())


def state(folder):
    """Content and time of every file but the report."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "out"
    }


def many(count):
    """A file with that many objects of an unknown category, and one duplicate."""
    content = small()
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": 100 + i, "category_id": 7} for i in range(count)]
    content["annotations"].append({**content["annotations"][1], "id": 99})
    return content


def test_a_sound_file(folder, capsys):
    before = state(folder)
    code, report = check(folder)
    assert code == 0 and report["version"] == 1 and report["file"] == str(folder / "a.json")
    assert report["counts"]["errors"] == 0
    assert report["data"]["sources"]["main"]["annotations"]["images"] == 2
    printed = capsys.readouterr().out
    assert "data used: annotations: 2 images, 1 object" in printed
    assert state(folder) == before
    assert logging.getLogger("visionkit").isEnabledFor(logging.INFO)  # as main() leaves it


def test_one_of_a_kind_is_on_the_screen_though_there_are_thousands_of_another(folder, capsys):
    content = small()
    template = {**content["annotations"][0], "bbox": [15, 2, 9, 6]}
    content["annotations"] = [{**template, "id": i} for i in range(100)]
    content["annotations"][99]["bbox"] = [1, 1, 0, 0]
    check(folder, content)
    printed = capsys.readouterr().out
    assert "warning empty-box: " in printed and printed.count("warning overhanging-box: ") == 3
    assert "  note " in printed and re.search(r"\.\.\. and \d+ more; all are in ", printed)
    counts = re.findall(r"^  (\d+) x ([\w-]+) \(", printed, re.MULTILINE)
    assert ("99", "overhanging-box") in counts and ("1", "empty-box") in counts
    assert printed.index(" x overhanging-box") < printed.index("warning overhanging-box: ")


def test_an_image_without_a_good_id_is_told_once(folder):
    """Its annotations are not of an unknown image: nobody can know."""
    content = small()
    content["images"][0]["id"] = str(content["images"][0]["id"])
    code, report = check(folder, content)
    assert code == 3 and report["counts"]["errors"] == 1


def test_the_report_needs_a_folder(folder, capsys):
    (folder / "a.json").write_text(json.dumps(small()))
    assert main(["check", str(folder / "a.json"), "--json", str(folder / "none/x.json")]) == 2
    assert "none/x.json does not exist" in capsys.readouterr().err


def test_exit_codes(folder):
    content = small()
    content["annotations"].append({**content["annotations"][0], "id": 9})
    assert check(folder, content)[0] == 0
    assert check(folder, content, "--strict")[0] == 3
    content["annotations"][0]["bbox"] = [1]
    assert check(folder, content)[0] == 3
    assert main(["check", str(folder / "none.json")]) == 3
    assert main(["check", str(folder / "none.yaml")]) == 2
    assert main(["check", str(folder / "a.json"), "train.lr=1"]) == 2
    assert main(["check", str(folder / "a.yaml"), "--images", "x"]) == 2


def test_ten_thousand_faults_are_told_in_twenty_lines_and_all_in_the_file(folder, capsys):
    before = set(folder.rglob("*"))
    code, report = check(folder, many(10_000))
    printed = capsys.readouterr().out.splitlines()
    assert code == 3 and len(printed) < 30
    shown = [line for line in printed if line.startswith("  error ")]
    assert len(shown) == 20
    assert "annotations[2] (id 100): 'category_id' 7 is not in 'categories'" in shown[0]
    assert any("9981 more; all are in" in line for line in printed)
    assert any(line.startswith("  10000 x unknown-category") for line in printed)
    assert report["counts"]["kinds"] == {"unknown-category": 10_000, "duplicate-box": 1}
    assert report["counts"]["errors"] == len(report["findings"]) - 1 == 10_000
    assert all(found.keys() == KEYS for found in report["findings"])
    assert report["findings"][7] | {"message": ""} == {
        "kind": "unknown-category", "severity": "error", "file": str(folder / "a.json"),
        "list": "annotations", "index": 9, "id": 107, "key": "category_id", "value": "7",
        "message": "", "hint": "add the category or remove the annotation", "action": "error",
    }  # fmt: skip
    assert set(folder.rglob("*")) - before == {folder / "out/report.json"}


def test_what_is_no_error_is_found_beside_errors_but_not_because_of_them(folder):
    content = small()
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 5, "bbox": [1]},  # with a bad box, which is no empty one
        {**first, "id": 6, "bbox": [1, 1, 0, 3]},
        {**first, "id": 7, "iscrowd": "0"},
    ]
    code, report = check(folder, content)
    assert code == 3 and report["counts"]["kinds"] == {
        "value": 1, "empty-box": 1, "crowd-value": 1, "duplicate-box": 1, "duplicate-id": 1,
    }  # fmt: skip


def test_the_report_is_the_same_each_time_and_replaces_nothing_else(folder, capsys):
    first = check(folder, many(3))
    assert check(folder, many(3)) == first
    code = main(["check", str(folder / "a.json"), "--json", str(folder / "a.json")])
    assert code == 2 and "is not a visionkit report" in capsys.readouterr().err
    assert json.loads((folder / "a.json").read_text()) == many(3)


def test_images_are_looked_for_if_their_folder_is_named(folder):
    (folder / "images/a.png").unlink()
    assert check(folder)[0] == 0
    content = small()
    content["annotations"][0]["bbox"] = [1]
    code, report = check(folder, content, "--images", str(folder / "images"))
    assert code == 3  # both at once
    assert [f["kind"] for f in report["findings"]] == ["value", "missing-file"]
    assert report["findings"][1]["value"] == "'a.png'"
    assert check(folder, None, "--images", str(folder / "none"))[0] == 3


def test_broken_images_are_found_with_their_record(folder):
    (folder / "images/a.png").write_bytes(b"garbage")
    code, report = check(folder, None, "--images", str(folder / "images"))
    (found,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert code == 3 and (found["kind"], found["list"], found["id"]) == (
        *("image-damaged", "images", 70),
    )
    assert str(folder / "images/a.png") in found["message"] and found["file"].endswith("a.json")


def outlined(**change):
    """A file whose first object has that."""
    content = small()
    content["annotations"][0] = {**content["annotations"][0], "area": 36, **change}
    return content


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"segmentation": [[2, 2, 8, 8, 5, 5]], "area": 20}, "empty-mask"),
        ({"segmentation": [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2]], "bbox": [2, 2, 1, 1]}, "empty-mask"),
        ({"segmentation": {"size": [10, 20], "counts": [200]}}, "empty-mask"),
        ({"bbox": [11, 2, 6, 6]}, "mask-box-mismatch"),
        ({"bbox": [2, 2, 16, 6]}, "mask-box-mismatch"),
        ({"area": 25}, "wrong-area"),
        ({"area": 300}, "wrong-area"),
        ({"segmentation": [[2, 2, 8, 8, 8, 2, 2, 8]], "area": 18}, None),  # crosses itself
        ({"area": 33}, None),
        ({"area": None}, None),
        ({"bbox": [1, 1, 8, 8]}, None),
        ({"segmentation": SQUARE * 2}, None),
    ],
)
def test_outlines_against_boxes_and_areas(folder, change, kind):
    _, report = check(folder, outlined(**change))
    found = [f for f in report["findings"] if f["severity"] == "warning" and f["id"] == 0]
    kinds = {f["kind"] for f in found}
    assert (
        (kind in kinds) if kind else not kinds & {"empty-mask", "mask-box-mismatch", "wrong-area"}
    )
    assert all(f["index"] == 0 and f["message"] for f in found)


def test_class_maps_that_the_file_names(folder):
    import numpy as np
    from PIL import Image

    content = small()
    content["semantic_classes"] = ["ground", "sky"]
    for record, values in zip(content["images"], (255, 7), strict=True):
        record["semantic"] = f"{values}.png"
        Image.fromarray(np.full((10, 20), values, np.uint8)).save(folder / f"{values}.png")
    _, report = check(folder, content, "--images", str(folder / "images"))
    found = {f["kind"]: f["message"] for f in report["findings"]}
    assert "has the value 7" in found["class-map"] and "70" in found["unlabeled-map"]


def test_a_folder_without_any_of_the_images_is_named_first(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 6} for i in range(3)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Coco(tmp_path, tmp_path / "gt.json")
    first, *others = caught.value.findings
    assert "none of the 3 images is in" in first.message and "images=DIR" in first.hint
    assert [found.place.index for found in others] == [0, 1, 2]
