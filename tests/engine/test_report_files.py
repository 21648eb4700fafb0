"""`visionkit report --gt --pred`: the page and its numbers, without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.coco_scenes import scene
from support.pages import EVIL, Parsed
from visionkit.cli.main import main
from visionkit.engine.report_files import report_files
from visionkit.metrics.coco.evaluator import evaluate_files
from visionkit.visualization.html import render

USAGE, DATA = 2, 3


@pytest.fixture
def files(tmp_path):
    """Annotations with their images, and two result files."""
    truth, results = scene(2, num_images=24)
    (tmp_path / "images").mkdir()
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
        Image.new("RGB", (120, 100), (90, 90, 90)).save(tmp_path / "images" / image["file_name"])
    rng = np.random.default_rng(0)
    worse = [r for r in results if rng.random() < 0.2]
    for name, content in (("gt", truth), ("a", worse), ("b", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_the_numbers_are_those_of_eval(files):
    page, record = report_files(files / "gt.json", [files / "b.json"], replicates=50)
    expected = evaluate_files(files / "gt.json", files / "b.json", "bbox")
    assert record["metrics"] == expected
    low, high = record["intervals"]["AP"]
    assert low < expected["AP"] < high
    assert page.headline[0].value == f"{expected['AP']:.3f}"


def test_two_files_are_compared(files):
    names = [files / "a.json", files / "b.json"]
    page, record = report_files(files / "gt.json", names, replicates=200)
    values = [record["models"][letter]["metrics"]["AP"] for letter in "AB"]
    assert record["differences"]["AP"]["value"] == pytest.approx(values[1] - values[0])
    assert page.summary[0].startswith("B is better: +")
    same = report_files(files / "gt.json", [names[0]] * 2, replicates=50)[1]["differences"]
    assert all(one == {"value": 0, "low": 0, "high": 0} for one in same.values())


def test_the_images_of_two_files_are_side_by_side(files):
    names = [files / "a.json", files / "b.json"]
    options = {"images": files / "images", "count": 3, "replicates": 0}
    page, _ = report_files(files / "gt.json", names, **options)
    worst = [
        part for section in page.sections for part in section.parts if part.title == "Worst images"
    ]
    assert [len(part.images) for part in worst] == [3, 3]
    for part, letters in zip(worst, ("AB", "BA"), strict=True):
        for shown in part.images:
            (other,) = shown.others
            assert other.image_id == shown.image_id and other.marks != shown.marks
            assert [one.caption[:3] for one in (shown, other)] == [f"{x}: " for x in letters]
    alone, _ = report_files(files / "gt.json", names[:1], **options)
    assert not any(one.others for one in alone.sections[1].parts[-2].images)
    assert render(page, "1").count("<img ") >= 12


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_command_writes_the_page_and_the_numbers(files, capsys, iou_type):
    words = ["report", "--gt", f"{files}/gt.json", "--pred", f"{files}/b.json", "--bootstrap", "20"]
    words += ["--type", iou_type, "--images", f"{files}/images", "--images", "3"]
    out, numbers = files / "out.html", files / "out.json"
    assert main([*words, "--out", str(out), "--json", str(numbers)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["metrics"]["AP"] > 0
    text = out.read_text()
    assert 3 <= text.count("<img ") <= 6 and "not shown" not in text
    assert main([*words, "--out", str(out)]) == 0  # an earlier page is replaced


def test_torch_is_not_imported(files):
    words = ["report", "--gt", "gt.json", "--pred", "b.json", "--images", "images"]
    code = f"import sys; from visionkit.cli.main import main; assert main({words}) == 0; " \
        "assert 'torch' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=files, check=True)
    assert (files / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--gt", "gt.json"], USAGE, "give runs, or --gt FILE and --pred FILE"),
        (["--pred", "b.json"], USAGE, "give runs, or --gt FILE and --pred FILE"),
        ([], USAGE, "give at least one run"),
        (["RUN", "--gt", "gt.json", "--pred", "b.json"], USAGE, "not both"),
        (["--gt", "gt.json", *["--pred", "b.json"] * 3], USAGE, "got 3 result files"),
        (["--gt", "gt.json", "--pred", "b.json", "--out", "gt.json"], USAGE, "not a report of"),
        (["--gt", "gt.json", "--pred", "b.json", "--out", "images"], USAGE, "is a directory"),
        (["--gt", "gt.json", "--pred", "b.json", "--out", "no/a.html"], USAGE, "does not exist"),
        (["--gt", "gt.json", "--pred", "b.json", "--images", "no"], DATA, "not a directory"),
        (["--gt", "gt.json", "--pred", "gt.json"], DATA, "gt.json"),
        (["--gt", "no.json", "--pred", "b.json"], DATA, "no.json"),
        (["--gt", "gt.json", "--pred", "b.json", "--bootstrap", "-1"], USAGE, "integer >= 0"),
    ],
)
def test_wrong_arguments(files, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(files)
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert main(["report", *words]) == code
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_a_missing_image_is_named_in_its_place(files):
    for path in (files / "images").iterdir():
        path.unlink()
    assert main(["report", "--gt", f"{files}/gt.json", "--pred", f"{files}/b.json", "--bootstrap",
                 "0", "--images", f"{files}/images", "--out", f"{files}/x.html"]) == 0  # fmt: skip
    assert "not shown: " in (files / "x.html").read_text()


def test_few_images_have_no_intervals_and_say_why(files):
    truth, results = scene(2, num_images=5)
    (files / "few.json").write_text(json.dumps(truth))
    (files / "r.json").write_text(json.dumps(results))
    page, record = report_files(files / "few.json", [files / "r.json"])
    assert record["intervals"] == {}
    assert "fewer than 20 images" in page.sections[0].parts[1].note


@pytest.mark.parametrize("lacking", ["detections", "objects", "both"])
def test_without_detections_or_objects(files, lacking):
    truth, results = scene(2, num_images=24)
    if lacking in ("detections", "both"):
        results = []
    if lacking in ("objects", "both"):
        truth["annotations"] = []
    (files / "gt.json").write_text(json.dumps(truth))
    (files / "a.json").write_text(json.dumps(results))
    page, record = report_files(files / "gt.json", [files / "a.json"], replicates=20)
    expected = evaluate_files(files / "gt.json", files / "a.json", "bbox")
    assert repr(record["metrics"]) == repr(expected)
    assert Parsed(render(page, "1")).text


@pytest.mark.parametrize("classes", [1, 1200])
def test_one_class_and_many(files, classes):
    """The tables have all; charts and the confusion matrix those that matter most."""
    truth, results = scene(2, num_images=24)
    truth["categories"] = [{"id": i + 1, "name": f"class {i}"} for i in range(classes)]
    for number, record in enumerate([*truth["annotations"], *results]):
        record["category_id"] = number % classes + 1
    (files / "gt.json").write_text(json.dumps(truth))
    (files / "a.json").write_text(json.dumps(results))
    page, record = report_files(files / "gt.json", [files / "a.json"], replicates=5)
    text = render(page, "1")
    rows = sum(tag == "tr" for tag, _ in Parsed(text).elements)
    assert rows > 2 * classes and len(text) < 3_000_000
    assert ("The 40 classes of 1200 that are confused most." in text) == (classes == 1200)


def test_names_that_try_to_break_out_stay_text(files):
    truth, results = scene(2, num_images=24)
    names = [name.replace("\x00", "") for name in EVIL]
    truth["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    for number, record in enumerate([*truth["annotations"], *results]):
        record["category_id"] = number % len(names) + 1
    for image, name in zip(truth["images"], EVIL, strict=False):
        image["file_name"] = name.replace("\x00", "").replace("/", "|")
    (files / "gt.json").write_text(json.dumps(truth))
    (files / "<b>.json").write_text(json.dumps(results))
    images = files / "images"
    page, _ = report_files(files / "gt.json", [files / "<b>.json"], images=images, replicates=5)
    parsed = Parsed(render(page, "1"))
    kinds = {tag for tag, _ in parsed.elements}
    assert "b" in kinds and sum(tag == "script" for tag, _ in parsed.elements) == 1
    assert all(attrs["src"].startswith("data:") for tag, attrs in parsed.elements if tag == "img")
    assert "detections in <b>.json" in " ".join(parsed.text)


@pytest.mark.skipif("VISIONKIT_TEST_DATA" not in os.environ, reason="needs BCCD")
def test_a_page_on_real_images_is_small(tmp_path):
    """BCCD's validation images, all objects found but one in four: under 5 MB with 24 images."""
    folder = Path(os.environ["VISIONKIT_TEST_DATA"]) / "bccd"
    truth = json.loads((folder / "annotations" / "val.json").read_text())
    results = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for number, one in enumerate(truth["annotations"])
        if number % 4
    ]
    (tmp_path / "a.json").write_text(json.dumps(results))
    page, record = report_files(
        folder / "annotations" / "val.json", [tmp_path / "a.json"], images=folder / "images"
    )
    text = render(page, "1")
    assert len(text) < 5_000_000 and text.count("<img ") >= 24 and "not shown" not in text
    confusion = np.array(record["confusion"])
    assert confusion[:-1].sum() == len(truth["annotations"])
    assert confusion[:, :-1].sum() == len(results)
