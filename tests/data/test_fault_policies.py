"""Faults of quality in a COCO file: what each policy does to training, counts and the truth."""

import json

import pytest

from support.coco_files import SQUARE, save, small
from support.coco_scenes import truth_records
from support.paths import ROOT
from visionkit.data.checks.kinds import FINDING_KINDS, policies
from visionkit.data.datasets.coco import Coco
from visionkit.errors import ConfigError, DataError

PAGE = ROOT / "docs/guide/data-checks.md"
BASE = {"image_id": 70, "category_id": 1, "iscrowd": 0, "area": 36, "segmentation": SQUARE}


def content(kind):
    """A file with one sound object, and at place 1 of its list what has that fault."""
    data = small()
    data["categories"] = [{"id": 1, "name": "ox"}]
    first = {"id": 1, **BASE, "bbox": [2, 2, 6, 6]}
    second = {"id": 2, **BASE, "bbox": [3, 3, 5, 5], "area": 25}
    change = {
        "unknown-image": {"image_id": 4},
        "negative-area": {"area": -3},
        "bad-mask": {"segmentation": [[1, 1, 5, 5, 3]]},
        "empty-box": {"bbox": [2, 2, 0, 5], "segmentation": []},
        "outside-box": {"bbox": [30, 2, 5, 5]},
        "overhanging-box": {"bbox": [15, 2, 8, 6], "area": 40},
        "crowd-value": {"iscrowd": "0"},
        "missing-box": {"bbox": None, "area": 36},
        "missing-area": {"area": None},
        "missing-mask": {"segmentation": None},
        "duplicate-box": {"bbox": [2.0, 2, 6, 6], "area": 36},
        "duplicate-id": {"id": 1},
    }
    data["annotations"] = [first, {**second, **change.get(kind, {})}]
    if kind == "duplicate-name":
        data["images"][1]["file_name"] = "a.png"
    return data


CASES = [(kind, action) for kind in FINDING_KINDS for action in FINDING_KINDS[kind].choices]


@pytest.mark.parametrize(("kind", "action"), CASES)
def test_each_policy_of_each_kind(tmp_path, kind, action):
    data = content(kind)
    chosen = {} if FINDING_KINDS[kind].default == action else {kind: action}
    if action == "error":
        with pytest.raises(DataError) as caught:
            save(tmp_path, data, on_fault=chosen)
        (found,) = [f for f in caught.value.findings if f.kind == kind]
        assert found.severity == found.action == "error" and found.hint
        assert found.file == str(tmp_path / "a.json") and found.place.index == 1
        assert str(found) in str(caught.value) and str(found.place) in str(found)
        return
    opened = save(tmp_path, data, on_fault=chosen)
    findings = [found for found in opened.findings() if found.kind == kind]
    assert [(f.place.index, f.action) for f in findings] == [(1, action)]
    done = {"drop": "dropped", "fix": "fixed", "keep": "kept"}[action]
    assert opened.counts()[done][kind] == 1
    assert opened.num_objects == (1 if action == "drop" else 2)
    assert sum(len(sample.boxes) for sample in opened) == opened.num_objects

    truth = [{"id": 1 + i, **a} for i, a in enumerate(truth_records(opened.ground_truth()))]
    if kind == "unknown-image":
        assert truth == data["annotations"][:1]
    else:  # the file's own, whatever training does
        expected = {**data["annotations"][1], "id": 2}
        expected["segmentation"] = expected["segmentation"] or None
        fixed = {
            "bad-mask": {"segmentation": None},
            "crowd-value": {"iscrowd": 0},
            "missing-box": {"bbox": [2, 2, 6, 6]},
            "missing-area": {"area": 36.0},
            "negative-area": {"area": 36.0},
        }
        assert truth[1] == {**expected, **fixed.get(kind, {})}


def test_what_a_fix_makes_of_an_object(tmp_path):
    clipped = save(tmp_path, content("overhanging-box"))[0]
    assert clipped.boxes.tolist()[1] == [15, 2, 20, 8]
    unknown = save(tmp_path, content("bad-mask"), on_fault={"bad-mask": "fix"})[0]
    assert unknown.target()["masks"].sum((1, 2)).tolist() == [36, 0]
    data = content("")
    data["annotations"][1]["segmentation"] = {"size": [9, 9], "counts": [0, 81]}
    unknown = save(tmp_path, data, on_fault={"bad-mask": "fix"})[0]  # RLE of another image
    assert unknown.target()["masks"].sum((1, 2)).tolist() == [36, 0]
    assert unknown.boxes.shape == (2, 4)


@pytest.mark.parametrize(
    ("value", "crowd"), [("1", True), ("0", False), (True, True), (False, False)]
)
def test_iscrowd_of_another_kind_is_taken_for_what_it_says(tmp_path, value, crowd):
    data = content("")
    data["annotations"][1]["iscrowd"] = value
    opened = save(tmp_path, data)
    assert opened[0].iscrowd.tolist() == [False, crowd]
    assert opened.ground_truth().iscrowd.tolist() == [False, crowd]
    assert opened.counts()["fixed"] == {"crowd-value": 1}


def test_duplicates_are_those_of_one_image_class_and_box(tmp_path):
    data = content("")
    data["categories"].append({"id": 2, "name": "cow"})
    first = data["annotations"][0]
    others = [{"image_id": 3}, {"category_id": 2}, {"bbox": [2, 2, 6, 6.001]}, {}, {}]
    data["annotations"] = [first, *({**first, "id": 5 + i, **o} for i, o in enumerate(others))]
    opened = save(tmp_path, data, on_fault={"duplicate-box": "drop"})
    assert [f.place.id for f in opened.findings() if f.kind == "duplicate-box"] == [8, 9]
    assert opened.num_objects == 4


def test_rounding_beyond_the_border_is_not_a_finding(tmp_path):
    data = content("")
    data["annotations"][1] |= {"bbox": [14.5, 2, 6.4, 8.3], "area": 50}
    opened = save(tmp_path, data)
    assert opened.counts() == {
        "dropped": {},
        "fixed": {},
        "kept": {"no-annotations": 1},
    }


def test_areas_that_cannot_be(tmp_path):
    data = content("")
    data["annotations"][0]["area"], data["annotations"][1]["area"] = 0, 100
    opened = save(tmp_path, data)
    found = [f for f in opened.findings() if f.kind == "wrong-area"]
    assert [(f.place.index, f.value) for f in found] == [(0, "0.0"), (1, "100.0")]
    assert opened.ground_truth().areas.tolist() == [0, 100]


def test_remarks_about_a_whole_file(tmp_path):
    data = content("")
    for record in data["annotations"]:
        record["iscrowd"] = 1
    kinds = {f.kind: f for f in save(tmp_path, data).findings()}
    assert kinds.keys() == {"all-crowd", "no-annotations"}
    assert "'sub/b.png': no object" in kinds["no-annotations"].message


def test_policies_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"'badmask' has no policy; did you mean 'bad-mask'"):
        policies({"badmask": "drop"})
    with pytest.raises(ValueError, match="empty-box: expected drop or error, got 'fix'"):
        policies({"empty-box": "fix"})
    with pytest.raises(ValueError, match="'coordinate-range' has no policy"):
        policies({"coordinate-range": "drop"})


def test_a_wrong_policy_in_a_config_is_an_error_of_the_config(tmp_path):
    from visionkit.config.components import build as _make

    save(tmp_path, content(""))
    spec = {"type": "Coco", "images": str(tmp_path / "images")}
    spec |= {"annotations": str(tmp_path / "a.json"), "on_fault": {"coordinate-range": "drop"}}
    with pytest.raises(ConfigError, match=r"Coco: on_fault: 'coordinate-range'"):
        _make("datasets", spec)


def test_files_with_faults_of_quality_are_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("visionkit.data.coco.index.SMALLEST", 0)
    save(tmp_path, content("crowd-value"))
    words = (str(tmp_path / "images"), str(tmp_path / "a.json"))
    monkeypatch.setattr("visionkit.data.coco.index.read_index", None)  # would be called
    again = Coco(*words)
    assert again.counts()["fixed"] == {"crowd-value": 1}
    assert [f.place.id for f in again.findings() if f.kind == "crowd-value"] == [2]


def test_all_faults_of_structure_are_kept_as_findings(tmp_path):
    data = content("")
    bad = {**data["annotations"][0], "bbox": [1, 2, 3]}
    data["annotations"] = [{**bad, "id": i} for i in range(50)]
    save(tmp_path, content(""))
    (tmp_path / "a.json").write_text(json.dumps(data))
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match="51 problems") as caught:
        Coco(str(tmp_path / "images"), str(tmp_path / "a.json"))
    findings = caught.value.findings
    assert [f.place.id for f in findings[:50]] == list(range(50))
    assert findings[0].record() == {
        "kind": "value",
        "message": "'bbox' is [1, 2, 3]",
        "file": str(tmp_path / "a.json"),
        "key": "bbox",
        "value": "[1, 2, 3]",
        "hint": "must be four numbers [x, y, width, height]",
        "action": "error",
        "severity": "error",
        "list": "annotations",
        "index": 0,
        "id": 0,
    }
    assert findings[50].kind == "missing-file" and findings[50].place.id == 70


def test_the_page_has_the_table_of_kinds():
    rows = [
        "| kind | what | severity | default | `fix` | `drop` | `keep` |",
        "|---|" * 1 + "---|" * 6,
    ]
    for name, kind in FINDING_KINDS.items():
        what = kind.title + " (`check` alone)" * kind.slow
        cells = (f"`{name}`", what, kind.severity, kind.default, kind.fix, kind.drop, kind.keep)
        rows.append(f"| {' | '.join(cells)} |")
    assert "\n".join(rows) in PAGE.read_text(), "\n" + "\n".join(rows)


def test_dropped_objects_are_ignored_in_painted_maps_and_by_other_checks(tmp_path):
    """An object whose box is elsewhere, and whose area is wrong, too."""
    data = content("outside-box")
    odd = data["annotations"][1]
    odd |= {"segmentation": [[12, 2, 16, 2, 16, 6, 12, 6]], "area": 0}
    opened = save(tmp_path, data, semantic="paint")
    assert opened.counts()["dropped"] == {"outside-box": 1}
    assert "wrong-area" not in opened.counts()["kept"]
    (sample,) = [s for s in opened if s.image_id == odd["image_id"]]
    assert sample.semantic[4, 14] == 255
