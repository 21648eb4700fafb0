"""`visionkit eval RUN` on data that does not fit the run, and what it writes."""

import json
import re
import shutil

import pytest

import visionkit
from golden.recipes import config
from visionkit.cli.main import main
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.engine.prediction import to_records
from visionkit.engine.train import train
from visionkit.errors import DivergedError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A detector after two steps."""
    spec = config("fcos", tmp_path_factory.mktemp("run") / "run")
    spec["data"]["main"]["val"] = spec["data"]["main"]["train"]
    settings = {"train.steps": 2, "train.validate": False, "heads.objects.score_threshold": 0.0}
    return train(spec, settings).directory


@pytest.fixture
def data(tmp_path):
    """Other images on disk, with their annotations."""
    generate_shapes(tmp_path / "data", images=3, size=64, seed=5)
    return tmp_path / "data"


def change(data, edit):
    path = data / "annotations.json"
    contents = json.loads(path.read_text())
    edit(contents)
    path.write_text(json.dumps(contents))


def evaluate(run, data, capsys):
    val = {"type": "Coco", "images": str(data / "images")}
    val["annotations"] = str(data / "annotations.json")
    code = main(["eval", str(run), "--json", f"data.main.val={json.dumps(val)}"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if code:  # no metrics, but the error as an object
        assert json.loads(printed.out)["exit_code"] == code
        return code, "", printed.err
    return code, printed.out, printed.err


def strictly(text):
    """JSON as other programs read it: without NaN and Infinity, which Python's reads."""

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_metrics_are_not_written_through_a_link(run, data, capsys, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/eval", ignore_errors=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run/eval").symlink_to(tmp_path / "theirs")
    assert evaluate(tmp_path / "run", data, capsys)[0] == 0
    assert "eval: cannot be written: it is a link" in caplog.text
    assert not list((tmp_path / "theirs").iterdir())


def test_a_split_of_another_size_is_scored(run, data, capsys):
    code, printed, _ = evaluate(run, data, capsys)
    assert code == 0 and "objects/bbox/AP" in strictly(printed)
    results = strictly((run / "eval/objects_bbox.json").read_text())
    ids = {image["id"] for image in json.loads((data / "annotations.json").read_text())["images"]}
    assert len(ids) == 3 and {record["image_id"] for record in results} == ids


def test_other_classes_are_an_error_that_shows_the_difference(run, data, capsys):
    def rename(contents):
        contents["categories"][0]["name"] = "teapot"

    change(data, rename)
    code, printed, told = evaluate(run, data, capsys)
    assert code == 3 and not printed and "data.val" in told
    assert re.search("not expected: 'teapot'", told) and re.search(r"missing here: '\w+'", told)


def test_a_missing_image_is_an_error_and_nothing_is_scored_without_it(run, data, capsys):
    image = sorted((data / "images").iterdir())[1]
    image.unlink()
    code, printed, told = evaluate(run, data, capsys)
    assert code == 3 and not printed and image.name in told


def test_an_empty_split_is_an_error(run, data, capsys):
    change(data, lambda contents: contents.update(images=[], annotations=[]))
    code, printed, told = evaluate(run, data, capsys)
    assert code == 3 and not printed and "'images' is empty" in told


def test_without_objects_figures_are_null_in_strict_json(run, data, capsys):
    change(data, lambda contents: contents.update(annotations=[]))
    code, printed, _ = evaluate(run, data, capsys)
    found = strictly(printed)
    assert code == 0 and found["objects/bbox/AP"] is None
    assert strictly((run / "eval/metrics.json").read_text()) == found
    for file in run.rglob("*.json"):
        strictly(file.read_text())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        strictly(line)


def test_predictions_are_strict_json_and_never_of_numbers_that_are_none(run, data, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(run), str(data / "images"), "--out", str(out)]) == 0
    assert strictly((out / "predictions.json").read_text())
    prediction = visionkit.load(run).predict(next((data / "images").iterdir()))
    assert to_records(prediction, 4)
    prediction.heads["objects"]["scores"] = prediction.heads["objects"]["scores"] / 0
    with pytest.raises(DivergedError, match="objects: 'scores' of image 4 is not finite"):
        to_records(prediction, 4)


def test_a_diverged_model_is_told_by_the_image(run, data, capsys, monkeypatch):
    from visionkit.models.model import VisionModel

    predictions = VisionModel.predictions

    def broken(self, *args, **options):
        found = predictions(self, *args, **options)
        for one in found["objects"]:
            one["boxes"] = one["boxes"] * float("nan")
        return found

    monkeypatch.setattr(VisionModel, "predictions", broken)
    code, printed, told = evaluate(run, data, capsys)
    assert code == 5 and not printed
    assert re.search(r"image \d+: the predicted boxes are not finite", told)
