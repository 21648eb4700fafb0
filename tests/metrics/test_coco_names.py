"""Names in results that contradict the ids are refused, however they are spelled."""

import json
import unicodedata

import pytest

from support.coco_scenes import results_of, truth_of_six
from visionkit.cli.main import main
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import evaluate_files

NAMES = {
    "category_name": {"category_name": "dog"},
    "unknown name": {"category_name": "horse"},
    "file_name": {"file_name": "2.png"},
}
SOUND = [
    {"file_name": name, "note": ""}
    for name in (None, "", "C:\\data\\1.png", "other/1.png", "http://x/1.png?a=1", "1.JPG", "1", 0)
] + [
    {"category_name": name, "note": ""}
    for name in (None, "", " ", "Bär_1", "bär 1 ", "BÄR 1", unicodedata.normalize("NFD", "Bär 1"))
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_contradict_the_ids_are_refused(tmp_path, capsys, name):
    truth = truth_of_six()
    results = results_of(truth)
    for number in (4, 6):  # both cats, in the images 3 and 4
        results[number] |= NAMES[name]
    results[0] |= {
        "category_name": "CAT",
        "label": "an animal",
        "name": "result",
    }  # no contradiction
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    words = ["eval", "--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / "pred.json")]
    assert main(words) == 3
    told = capsys.readouterr().err
    assert "result 4: " in told and "in the annotations" in told
    assert "(and 1 more)" in told and "--trust" in told
    assert main([*words, "--trust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["AP"] == pytest.approx(1)


def evaluated(tmp_path, truth, results):
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    return evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", "bbox")["AP"]


@pytest.mark.parametrize("names", SOUND)
def test_names_that_are_spelled_in_another_way_are_scored(tmp_path, names):
    truth = truth_of_six()
    truth["categories"][0]["name"] = "Bär 1"
    results = results_of(truth)
    results[0] |= names  # a cat in image 1
    assert evaluated(tmp_path, truth, results) == pytest.approx(1)


@pytest.mark.parametrize("key", ["label", "class", "name"])
def test_other_keys_count_if_they_name_classes_in_another_order(tmp_path, key):
    truth = truth_of_six()
    names = {1: "dog", 2: "cat"}
    tagged = [r | {key: "cat"} for r in results_of(truth)]
    tagged[0][key] = "dog"
    assert evaluated(tmp_path, truth, tagged) == pytest.approx(1)
    results = [r | {key: names[r["category_id"]]} for r in results_of(truth)]
    with pytest.raises(DataError, match=f"{key} names the classes in another order: .*'cat' has"):
        evaluated(tmp_path, truth, results)


def test_names_are_compared_where_ids_are_floats(tmp_path):
    truth = truth_of_six()
    results = results_of(truth, category_id=lambda a: float(a["category_id"]))
    results[0]["category_name"] = "dog"
    with pytest.raises(DataError, match=r"category_name is .dog., but category_id 1\.0 is .cat."):
        evaluated(tmp_path, truth, results)
