"""`visionkit eval --gt FILE --pred FILE`: COCO result files scored without a model."""

import json
import math
import re
import subprocess
import sys

import pytest

from support.coco_scenes import only, raw_pycocotools, scene
from support.paths import ROOT
from visionkit.cli.main import main
from visionkit.errors import DataError
from visionkit.metrics.coco.evaluator import STATS, evaluate_coco, evaluate_files, read_results
from visionkit.metrics.coco.ground_truth import log_once

GOLDEN = ROOT / "tests/golden"


@pytest.fixture
def files(tmp_path):
    """A truth and results with boxes and with masks, written as COCO files."""
    truth, results = scene(3)
    contents = {"gt": truth, "bbox": only(results, "bbox"), "segm": only(results, "segm")}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def run(capsys, folder, pred, *words, gt="gt.json"):
    code = main(["eval", "--gt", str(folder / gt), "--pred", str(folder / pred), *words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_stored_files_have_the_figures_that_pycocotools_gave_them(engine, iou_type):
    """27 objects in 8 images: polygons, codes of both kinds, crowds, gaps in the ids, a class
    without an object; the figures are those of pycocotools 2.0.11."""
    pytest.importorskip(engine)
    stored = json.loads((GOLDEN / "coco_figures.json").read_text())[iou_type]
    files = GOLDEN / "coco_truth.json", GOLDEN / f"coco_{iou_type}.json"
    found = evaluate_files(*files, iou_type, engine)
    assert {name: -1 if math.isnan(x) else x for name, x in found.items()} == stored
    truth, results = (json.loads(file.read_text()) for file in files)
    assert raw_pycocotools(truth, results, iou_type).stats.tolist() == [stored[n] for n in STATS]


def test_why_a_figure_is_not_defined_is_told_once(caplog):
    log_once.cache_clear()
    files = GOLDEN / "coco_truth.json", GOLDEN / "coco_bbox.json"
    for _ in range(2):
        evaluate_files(*files, "bbox")
    (told,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "metrics APl, ARl, AP/never there are undefined: there is no object" in told


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_the_command_prints_pycocotools_figures(files, capsys, iou_type, engine):
    pytest.importorskip(engine)
    words = ["--type", iou_type, "--engine", engine]
    code, printed, _ = run(capsys, files, f"{iou_type}.json", *words, "--json")
    found = json.loads(printed)
    truth, results = (json.loads((files / f"{name}.json").read_text()) for name in ("gt", iou_type))
    expected = raw_pycocotools(truth, results, iou_type).stats
    assert code == 0 and 0.05 < found["AP"] < 0.95
    assert [found[name] for name in STATS] == [None if v == -1 else v for v in expected]
    assert found.pop("coco_engine").split()[0] == engine
    assert found.pop("scoring").startswith("COCO: at most 100 detections of a class in an image")
    assert found.pop("classes") == {
        "AP": {"scored": 3, "total": 3, "without_ground_truth": []},
    }
    assert list(found) == [*STATS, *(f"AP/{c['name']}" for c in truth["categories"])]

    code, printed, _ = run(capsys, files, f"{iou_type}.json", *words)
    *lines, rule = printed.splitlines()
    assert lines.pop(0).endswith(f"{found['AP']:.4f}  3 classes")
    assert rule.startswith(f"scored by {engine} ") and "at most 100 detections" in rule
    figures = dict(line.rsplit(maxsplit=1) for line in lines)
    del found["AP"]
    assert code == 0 and figures["AP50"] == f"{found['AP50']:.4f}"
    assert figures.keys() == found.keys()


def test_without_objects_figures_are_null_and_without_detections_zero(files, capsys):
    truth = json.loads((files / "gt.json").read_text())
    (files / "empty.json").write_text("[]")
    (files / "none.json").write_text(json.dumps({**truth, "annotations": []}))
    code, printed, _ = run(capsys, files, "empty.json", "--json")
    assert code == 0 and json.loads(printed)["AP"] == 0
    code, printed, _ = run(capsys, files, "bbox.json", "--json", gt="none.json")
    assert code == 0 and json.loads(printed)["AP"] is None
    _, printed, _ = run(capsys, files, "bbox.json", gt="none.json")
    assert "n/a" in printed and "nan" not in printed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ('[{"image_id": 1}', "is damaged, cut short"),
        ('[{"image_id": 1}] more', "is damaged, cut short"),
        ('{"annotations": []}', "is an object, not a list of records"),
        ("7", "is a number, not a list"),
        ("[[1, 2]]", "result 0: [1, 2] is not an object"),
        ('[{"image_id": 7}]', "result 0 (image_id 7): lacks the key 'category_id'"),
        (b"\xff\xfe[", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("<html>", "web page"),
    ],
)
def test_result_files_that_are_none(files, capsys, content, says):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (files / "bad.json").write_bytes(data)
    code, printed, told = run(capsys, files, "bad.json")
    assert code == 3 and not printed and "bad.json" in told and says in told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": ...}, "'images' is missing"),
        ({"annotations": {}}, "'annotations' is {}, not a list of objects"),
        ({"annotations": [None]}, "annotations[0] is None, not an object: remove it"),
        ({"annotations": [{"id": 3, "image_id": 5}]}, "annotations[0] (id 3): 'category_id'"),
        ({"images": [{"id": 7}, {"id": 7}]}, "images[1] (id 7): 'id' 7 is also that of"),
    ],
)
def test_annotation_files_that_are_wrong(files, capsys, change, says):
    truth = json.loads((files / "gt.json").read_text()) | change
    truth = {key: value for key, value in truth.items() if value is not ...}
    (files / "bad.json").write_text(json.dumps(truth))
    code, printed, told = run(capsys, files, "bbox.json", gt="bad.json")
    assert code == 3 and not printed and "bad.json" in told and says in told


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_list_that_is_there_twice_is_told(files, capsys, iou_type):
    text = (files / "gt.json").read_text()
    (files / "bad.json").write_text('{"images": [], ' + text.lstrip()[1:])
    code, _, told = run(capsys, files, "bbox.json", "--type", iou_type, gt="bad.json")
    assert code == 3 and "bad.json" in told and "the key 'images' is there twice: rem" in told


def test_swapped_files_are_told(files, capsys):
    code, _, told = run(capsys, files, "gt.json", gt="bbox.json")
    assert code == 3 and "a list is COCO's format for results" in told


def test_all_wrong_records_are_told_at_once_by_their_place_in_the_file(files, capsys):
    results = json.loads((files / "bbox.json").read_text())
    results[5]["score"] = math.nan
    results[7]["bbox"][2] = math.inf
    results[9]["image_id"] = 424242
    results[11]["category_id"] = "cat"
    (files / "bad.json").write_text(json.dumps(results))
    code, _, told = run(capsys, files, "bad.json")
    assert code == 3 and "bad.json: 4 of " in told
    for number, says in (
        (5, "score nan"),
        (7, "bbox ["),
        (9, "is not in the annotations"),
        (11, "'cat'"),
    ):
        assert any(f"result {number} " in line and says in line for line in told.splitlines())


def test_a_truth_value_is_no_score(files, capsys):
    results = json.loads((files / "bbox.json").read_text())
    results[3]["score"] = True
    (files / "bad.json").write_text(json.dumps(results))
    code, _, told = run(capsys, files, "bad.json")
    assert code == 3 and "result 3 " in told and "score True is not a number" in told


def test_records_that_name_another_image_are_refused(files, capsys):
    truth = json.loads((files / "gt.json").read_text())
    for image in truth["images"]:
        image["file_name"] = f"b/{image['id']}.jpg"
    (files / "named.json").write_text(json.dumps(truth))
    results = json.loads((files / "bbox.json").read_text())
    named = [r | {"file_name": f"images/{r['image_id']}.jpg"} for r in results]
    (files / "good.json").write_text(json.dumps(named))
    code, expected, _ = run(capsys, files, "bbox.json")
    assert code == 0 and run(capsys, files, "good.json", gt="named.json")[:2] == (0, expected)
    named[4]["file_name"] = "another.jpg"
    del named[0]["file_name"]  # it says nothing of the others
    (files / "bad.json").write_text(json.dumps(named))
    code, printed, told = run(capsys, files, "bad.json", gt="named.json")
    assert code == 3 and not printed
    assert "result 4: image_id" in told and "'another.jpg'" in told and "RUN/eval" in told
    assert "--trust" in told
    assert run(capsys, files, "bad.json", "--trust", gt="named.json")[0] == 0


def test_annotations_without_any_mask_are_told(files, capsys, caplog):
    truth = json.loads((files / "gt.json").read_text())
    for record in truth["annotations"]:
        record.pop("segmentation", None)
    (files / "boxes.json").write_text(json.dumps(truth))
    code, _, _ = run(capsys, files, "segm.json", "--type", "segm", gt="boxes.json")
    assert code == 0 and "boxes.json has no object with a segmentation to score" in caplog.text


def test_segm_on_boxes_and_boxes_next_to_masks(files, capsys, caplog):
    code, _, told = run(capsys, files, "bbox.json", "--type", "segm")
    assert code == 3 and "lacks the key 'segmentation'" in told
    truth, results = scene(3)
    (files / "both.json").write_text(json.dumps(results))
    caplog.set_level("INFO", "visionkit")
    found = evaluate_files(files / "gt.json", files / "both.json", "segm")
    assert "use the area of the masks" in caplog.text
    assert found == pytest.approx(evaluate_coco(truth, only(results, "segm"), "segm"), nan_ok=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gt", "a.json"], "give both"),
        (["--pred", "a.json"], "give both"),
        ([], "give RUN, or --gt"),
        (["RUN", "--gt", "a.json", "--pred", "b.json"], "do not apply"),
        (["--gt", "a.json", "--pred", "b.json", "data.workers=0"], "do not apply"),
        (["RUN", "--type", "bbox"], "need --gt and --pred"),
        (["RUN", "--engine", "pycocotools"], "VISIONKIT_COCO_ENGINE"),
    ],
)
def test_words_that_do_not_go_together(words, says, capsys):
    assert main(["eval", *words]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and not printed.out


@pytest.mark.parametrize("words", [["--json", "nowhere"], ["nowhere", "--json", "a.b=1"]])
def test_a_run_may_stand_behind_an_option(words, capsys):
    assert main(["eval", *words]) == 4
    assert "nowhere: not found" in capsys.readouterr().err


@pytest.mark.parametrize("block", [1, 7, 50, 333, 10**6])
def test_a_file_is_read_in_blocks_of_any_size(tmp_path, block):
    records = [
        {"image_id": 1, "note": 'a } , { trap, \\" é €', "list": [{}, {"x": {}}, {"y": 2}]},
        {"image_id": 2, "segmentation": {"size": [1, 2], "counts": "}],[{"}, "score": 0.5},
        *({"image_id": i, "bbox": [i, 2, 3, 4]} for i in range(40)),
    ]
    file = tmp_path / "results.json"
    for text in (
        json.dumps(records),
        json.dumps(records, indent=2, ensure_ascii=False),
        json.dumps(records, separators=(",", ":")),
        "\ufeff \n" + json.dumps(records).replace("}, {", "}\n ,\t{") + "\n ",
    ):
        file.write_text(text, encoding="utf-8")
        parts = []
        read_results(file, parts.append, block)
        assert [record for part in parts for record in part] == records
        assert len(parts) > 1 or block > len(text)
    file.write_text(json.dumps(records)[:-20])
    with pytest.raises(DataError, match="cut short"):
        read_results(file, lambda records: None, block)


def test_results_that_are_cut_short_have_the_byte_where_they_end(files):
    text = (files / "bbox.json").read_bytes()
    (files / "cut.json").write_bytes(text[: len(text) // 2])
    for block in (64, 10**6):
        with pytest.raises(DataError, match=r"byte \d+") as caught:
            read_results(files / "cut.json", lambda records: None, block)
        place = int(re.search(r"byte (\d+)", str(caught.value))[1])
        assert abs(place - len(text) // 2) < 200


def test_no_torch_is_imported_for_it(files):
    code = (
        "import sys; from visionkit.cli.main import main; "
        f"code = main(['eval', '--gt', r'{files / 'gt.json'}', '--pred', r'{files / 'bbox.json'}',"
        " '--json']); "
        "assert not {'torch', 'matplotlib', 'PIL'} & sys.modules.keys(), sorted(sys.modules); "
        "sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 0 < json.loads(result.stdout)["AP"] < 1


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_boxes_are_scored_whatever_the_image_size_says(files, engine):
    pytest.importorskip(engine)
    paths = files / "gt.json", files / "bbox.json"
    expected = evaluate_files(*paths, "bbox", engine)
    truth = json.loads(paths[0].read_text())
    truth["images"][0]["width"] = 10**12
    paths[0].write_text(json.dumps(truth))
    assert repr(evaluate_files(*paths, "bbox", engine)) == repr(expected)
