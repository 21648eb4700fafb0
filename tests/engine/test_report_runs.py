"""`visionkit report RUN`: its numbers, the parts of each head, comparisons, and runs that lack
something."""

import copy
import json
import shutil

import pytest
import torch
from PIL import Image

from support.pages import EVIL, Parsed
from support.ranks import on_ranks
from support.small_runs import SMALL_RUNS, TASKS, joint
from visionkit.cli.main import main
from visionkit.engine import report_runs
from visionkit.engine.evaluate import evaluate, evaluated_run
from visionkit.engine.progress import Best
from visionkit.engine.reporting import report
from visionkit.engine.train import train
from visionkit.errors import ArgumentError, ConfigError, DataError
from visionkit.metrics.intervals import FEWEST, REPLICATES
from visionkit.metrics.parts import Bars, Chart, Gallery, Matrix, Series, Table, Text
from visionkit.visualization.html import render

USAGE, DATA, CHECKPOINT = 2, 3, 4
DETECTION = [
    "By class",
    "Precision and recall",
    "Precision and recall by class, IoU 0.5",
    "By score, all classes",
    "F1 by score and class",
    "Confusion",
    "AP by size of the objects",
    "Calibration",
    "Worst images",
]
PARTS = {
    "classification": ["By class", "Confusion", "Calibration", "Most confident mistakes"],
    "localization": ["By class", "IoU of the box", "Worst images"],
    "fcos": DETECTION,
    "mask_rcnn": ["Masks", *DETECTION, "Boxes", *DETECTION],
    "semantic": ["By class", "Pixel confusion", "Worst images"],
    "embedding": ["Failed queries"],
    "vae": ["Error", "Worst reconstructions"],
}
HOTCOCO = {"Error types", "Suspected label errors"}


def config(name, **settings):
    spec = copy.deepcopy(SMALL_RUNS[name])
    spec["data"]["val"]["num_images"] = FEWEST
    spec["train"] |= settings
    return spec


def trained(folder, name, **settings):
    return train(config(name, **settings), {"output": str(folder / name)}).directory


def page_of(run, **options):
    """The numbers of a report, and the page as a browser reads it."""
    record = report(run, **{"bootstrap": 20, "images": 2, **options})
    with open(record["page"], encoding="utf-8") as file:
        return record, Parsed(file.read())


def titles(parsed):
    """The words of all elements of a page."""
    return [text.strip() for text in parsed.text if text.strip()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Called with a task: its run, trained at the first call."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name):
        done = folder / name
        return done if done.exists() else trained(folder, name)

    return run


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[pytest.mark.slow] * (t == "mask_rcnn")) for t in TASKS]
)
def test_the_numbers_are_those_of_evaluate_and_each_head_has_its_parts(runs, task):
    run = runs(task)
    record, parsed = page_of(run)
    expected = evaluate(run)
    assert {k: repr(v) for k, v in record["metrics"].items()} == {
        k: repr(v) for k, v in expected.items()
    }
    words = titles(parsed)
    first = words.index("Metrics", words.index("Metrics") + 1)
    found = [word for word in words[first:] if word in {*PARTS[task], *HOTCOCO}]
    kept = [word for word in found if word not in HOTCOCO]
    # A class may be named as a part is; each part is there, in its order.
    assert [word for word in kept if word in PARTS[task]] == PARTS[task]
    assert "not shown" not in " ".join(words)
    name = next(k for k in expected if "loss" not in k)
    assert f"{expected[name]:.3f}" in words or expected[name] != expected[name]
    for low, high in record["intervals"].values():
        assert low <= high or low != low


def test_the_page_is_beside_the_run_and_an_earlier_one_is_replaced(runs, tmp_path):
    run = runs("classification")
    assert main(["report", str(run), "--bootstrap", "0"]) == 0
    first = (run / "report.html").read_text()
    assert main(["report", str(run), "--bootstrap", "0", "--images", "1"]) == 0
    assert (run / "report.html").read_text().count("<img ") < first.count("<img ")
    theirs = tmp_path / "theirs.html"
    theirs.write_text("<html>")
    assert main(["report", str(run), "--out", str(theirs)]) == USAGE
    assert theirs.read_text() == "<html>"


def test_the_json_file_has_the_numbers(runs, tmp_path, capsys):
    run = runs("fcos")
    out, numbers = tmp_path / "x.html", tmp_path / "x.json"
    words = ["report", str(run), "--bootstrap", "20", "--out", str(out), "--json", str(numbers)]
    assert main(words) == 0
    record = json.loads(numbers.read_text())
    expected = evaluate(run)["detection/bbox/AP50"]
    assert record["metrics"]["detection/bbox/AP50"] == pytest.approx(expected)
    assert record["intervals"].keys() <= record["metrics"].keys()
    assert f"wrote {out}" in capsys.readouterr().out


def test_a_run_against_itself_differs_by_nothing(runs, tmp_path):
    run = runs("fcos")
    record, parsed = page_of([run, run], out=tmp_path / "x.html")
    (found,) = record["differences"].values()
    assert found and all(one == {"value": 0, "low": 0, "high": 0} for one in found.values())
    assert "A and B are equal" in record["summary"][0]
    assert "0 settings differ." in titles(parsed)


def test_the_page_on_several_runs_is_here_unless_out_names_it(runs, tmp_path, monkeypatch, capsys):
    run = str(runs("classification"))
    monkeypatch.chdir(tmp_path)
    assert main(["report", run, run, "--bootstrap", "0", "--images", "1"]) == 0
    assert "wrote comparison.html" in capsys.readouterr().out
    assert "Differences" in titles(Parsed((tmp_path / "comparison.html").read_text()))
    (tmp_path / "comparison.html").write_text("<html>mine")
    assert main(["report", run, run, "--bootstrap", "0"]) == USAGE
    assert (tmp_path / "comparison.html").read_text() == "<html>mine"


def test_what_two_runs_differ_in_is_shown(runs, tmp_path):
    run = runs("classification")
    other = trained(tmp_path, "classification", lr=0.5)
    record, parsed = page_of([run, other], out=tmp_path / "x.html")
    values = [record["runs"][name]["metrics"]["classification/top1"] for name in "AB"]
    found = record["differences"]["B/classification"]["top1"]
    assert found["value"] == pytest.approx(values[1] - values[0])
    words = titles(parsed)
    assert words[words.index("differs") - 3] in ("output", "train.lr")
    assert words.count("differs") == 1 + words.count("output")


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task not in ("embedding", "mask_rcnn")]
)  # all found
def test_two_runs_show_the_same_images_side_by_side(runs, tmp_path, task):
    """Each image of a gallery, with what the other run makes of it next to it."""
    run = runs(task)
    for name in "ab":
        shutil.copytree(run, tmp_path / name)
    pair = [tmp_path / "a", tmp_path / "b"]
    page, _ = report_runs.report_runs(pair, images=4, replicates=0)
    galleries = [
        part
        for section in page.sections
        for part in section.parts
        if isinstance(part, Gallery) and "Predictions" not in part.title
    ]
    assert sum(len(part.images) for part in galleries) >= 4
    for part in galleries:
        assert len(part.images) <= 2
        for shown in part.images:
            (other,) = shown.others
            assert other.image_id == shown.image_id and other.neighbors == shown.neighbors
            assert other.caption[3:] == shown.caption[3:]  # the same model
            assert {other.caption[:3], shown.caption[:3]} == {"A: ", "B: "}
    assert '<div class="row">' in render(page, "1")


def test_three_runs_are_each_compared_with_the_first(runs, tmp_path):
    run = runs("classification")
    worse = trained(tmp_path, "classification", lr=0.5, steps=4)
    record, parsed = page_of([run, run, worse], out=tmp_path / "x.html")
    assert [*record["differences"]] == ["B/classification", "C/classification"]
    assert "A and B are equal" in record["summary"][0]
    assert " B " not in record["summary"][1] and "B is" not in record["summary"][1]
    for name in "ABC":
        assert f"{name}: classification/" in titles(parsed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.val.seed": 7}, "have other ground truth and cannot be compared"),
        ({"data.val.num_images": FEWEST + 1}, "were evaluated on other images (20 and 21)"),
    ],
)
def test_runs_on_other_data_are_refused(runs, tmp_path, change, message, capsys):
    run = runs("fcos")
    other = train(config("fcos"), {"output": str(tmp_path / "other"), **change}).directory
    out = tmp_path / "x.html"
    assert main(["report", str(run), str(other), "--out", str(out)]) == DATA
    assert message in capsys.readouterr().err and not out.exists()


def test_other_labels_of_the_same_images_are_refused(runs, tmp_path):
    """Of heads that say something about whole images too."""
    for task in ("localization", "semantic"):
        run = runs(task)
        change = {"data.val.seed": 7, "output": str(tmp_path / task)}
        other = train(config(task), change).directory
        with pytest.raises(DataError, match="other ground truth"):
            page_of([run, other], out=tmp_path / "x.html")


def test_heads_in_common_alone_are_compared_and_none_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match="no head in common"):
        page_of([runs("fcos"), runs("vae")], out=tmp_path / "x.html")


def test_an_unfinished_run_is_marked(runs, tmp_path):
    run = shutil.copytree(runs("classification"), tmp_path / "run")
    status = json.loads((run / "status.json").read_text())
    status |= {"state": "preempted", "step": 2, "reason": "SIGTERM"}
    (run / "status.json").write_text(json.dumps(status))
    record, _ = page_of(run)
    assert "this run is preempted, not finished, at step 2 of 3: SIGTERM" in record["summary"][0]
    (run / "status.json").unlink()
    assert "may not be finished" in page_of(run)[0]["summary"][0]


def test_files_that_a_run_lost_are_done_without(runs, tmp_path):
    run = shutil.copytree(runs("classification"), tmp_path / "run")
    for name in ("metrics.jsonl", "data.json", "config.yaml"):
        (run / name).unlink(missing_ok=True)
    folder = run / "plots" / "over_time"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("main_0000001.jpg", "main_1x.jpg", "notes.jpg"):
        (folder / name).write_bytes(b"no image")
    assert page_of(run)[0]["metrics"]


def test_no_run_no_checkpoint_no_validation_data(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == CHECKPOINT
    assert main(["report", str(tmp_path / "none")]) == CHECKPOINT
    spec = config("classification", validate=False)
    del spec["data"]["val"]
    run = train(spec, {"output": str(tmp_path / "run")}).directory
    capsys.readouterr()
    assert main(["report", str(run)]) == USAGE
    assert "no source has a 'val' section" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    # Given here, it is evaluated.
    words = ["data.val.type=Shapes", "data.val.num_images=20", "data.val.size=32"]
    assert main(["report", str(run), "--bootstrap", "0", *words]) == 0


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.pt").write_bytes(b"not a checkpoint")
    assert main(["report", str(tmp_path / "run")]) == CHECKPOINT
    assert "best.pt" in capsys.readouterr().err


def coco(folder, names, *, objects=True, images=4, seed=0):
    """A COCO file with an image for each of some classes, and its `data` section."""
    import numpy as np

    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    records, annotations = [], []
    for number in range(1, images + 1):
        path = folder / "images" / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        records.append({"id": number, "file_name": path.name, "width": 32, "height": 32})
        for category in range(min(len(names), 8)) if objects else ():
            box = [int(v) for v in (*rng.integers(0, 12, 2), *rng.integers(8, 20, 2))]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category + 1}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return {"images": str(folder / "images"), "annotations": str(folder / "a.json")}


def detector(tmp_path, names, val_objects=True, **settings):
    spec = config("fcos", **settings)
    spec["data"]["train"] = coco(tmp_path / "train", names)
    spec["data"]["val"] = coco(tmp_path / "val", names, objects=val_objects, images=FEWEST)
    return train(spec, {"output": str(tmp_path / "run")}).directory


def test_names_that_try_to_break_out_stay_text_from_the_file_to_the_page(tmp_path):
    names = [name.replace("\x00", "") for name in EVIL]
    run = detector(tmp_path, names, report=True)
    for path in (run / "report.html", page_of(run)[0]["page"]):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        assert text.isprintable() or not {*text} & {chr(i) for i in range(32) if i not in (10,)}
        parsed = Parsed(text)
        assert sum(tag == "script" for tag, _ in parsed.elements) == 1
        assert not [1 for _, attributes in parsed.elements if "onerror" in attributes]
        for tag, attributes in parsed.elements:
            assert not attributes.get("src", "data:").startswith(("http", "x")), tag
        assert "=cmd|' /C calc'!A0" in " ".join(parsed.text)


def test_one_class(tmp_path):
    record, parsed = page_of(detector(tmp_path, ["cell"]), bootstrap=5)
    assert sum(name.startswith("detection/bbox/AP/") for name in record["metrics"]) == 1
    assert "Worst images" in titles(parsed)


def test_validation_data_without_objects(tmp_path):
    run = detector(tmp_path, ["a", "b"], val_objects=False, report=True)
    record, _ = page_of(run)
    assert record["metrics"]["detection/bbox/AP"] != record["metrics"]["detection/bbox/AP"]
    assert main(["report", str(run), "--bootstrap", "5"]) == 0


@pytest.mark.parametrize("task", ["semantic", "vae", "classification"])
def test_an_image_that_is_gone_is_named_in_its_place(runs, monkeypatch, task):
    """Gone since the evaluation, which refuses data without all images."""
    run = runs(task)

    def then_lost(*arguments, **options):
        found = evaluated_run(*arguments, **options)
        (source,) = found.sources

        def missing(self, index):
            raise FileNotFoundError(2, "No such file or directory", f"{index}.png")

        monkeypatch.setattr(type(source.val), "__getitem__", missing)
        return found

    monkeypatch.setattr(report_runs, "evaluated_run", then_lost)
    _, parsed = page_of(run)
    assert "not shown: " in " ".join(parsed.text)


def test_the_report_at_the_end_of_training_has_the_numbers_of_the_command(tmp_path):
    run = trained(tmp_path, "fcos", report=True)
    at_the_end = (run / "report.html").read_text()
    page_of(run, out=tmp_path / "again.html", bootstrap=REPLICATES, images=24)
    again = (tmp_path / "again.html").read_text()
    assert at_the_end == again


def test_train_report_false_writes_none(tmp_path):
    assert not (trained(tmp_path, "vae", report=False) / "report.html").exists()
    assert (trained(tmp_path / "b", "vae", report=True) / "report.html").exists()


def test_a_failure_of_the_report_is_told_and_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr(report_runs, "render", fail)
    run = trained(tmp_path, "vae", report=True)
    assert "the report failed: RuntimeError: no page today" in caplog.text
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def earlier_is_better(monkeypatch):
    """Let the first validation of a run be its best."""
    scores = iter(range(100, 0, -1))
    monkeypatch.setattr(Best, "score", lambda *_: float(next(scores)))


def resumed(folder):
    """A run whose best validation was before it was resumed."""
    spec = config("classification", report=True, validate=1)
    run = train(spec, {"output": f"{folder}/run"}).directory
    train(spec, {"output": str(run), "train.steps": 4}, resume=True)
    return run


def test_a_resumed_run_whose_best_validation_was_before_is_evaluated_again(tmp_path, monkeypatch):
    earlier_is_better(monkeypatch)
    run = resumed(tmp_path)
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] < 3
    at_the_end = (run / "report.html").read_text()
    assert f"{best['metrics']['classification/top1']:.3f}" in titles(Parsed(at_the_end))
    page_of(run, out=tmp_path / "again.html", bootstrap=REPLICATES, images=24)
    assert (tmp_path / "again.html").read_text() == at_the_end


def test_a_failure_of_that_evaluation_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    earlier_is_better(monkeypatch)
    monkeypatch.setattr(report_runs, "evaluate_model", lambda *_, **__: 1 / 0)
    run = resumed(tmp_path)
    assert "the report failed: ZeroDivisionError" in caplog.text
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def resumed_with_report(folder):
    with pytest.MonkeyPatch.context() as patch:
        earlier_is_better(patch)
        resumed(folder)


def test_two_ranks_evaluate_the_best_checkpoint_again(tmp_path):
    assert on_ranks(2, resumed_with_report, str(tmp_path), folder=tmp_path) == [None, None]
    assert "Confusion" in titles(Parsed((tmp_path / "run" / "report.html").read_text()))


def train_with_report(folder):
    train(config("fcos", report=True), {"output": f"{folder}/run"})


def test_two_ranks_write_one_report(tmp_path):
    assert on_ranks(2, train_with_report, str(tmp_path), folder=tmp_path) == [None, None]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Worst images" in Parsed(page).text


def test_heads_of_a_joint_run_have_their_own_sections(tmp_path):
    spec = joint(report=True)
    for source in ("street", "places"):
        spec["data"][source]["val"]["num_images"] = FEWEST
    run = train(spec, {"output": str(tmp_path / "run")}).directory
    record, parsed = page_of(run)
    words = titles(parsed)
    for title in ("street/objects (FCOS)", "street/looks (Attributes)"):
        assert title in words
    assert "By attribute" in words and "places/scene (Classification)" in words
    assert "street/objects/bbox/AP" in record["intervals"]
    chosen = page_of(run, heads=["scene"])[1]
    assert "places/scene (Classification)" in titles(chosen)
    assert "street/objects (FCOS)" not in titles(chosen)


MANY = """
from visionkit.data.datasets.shapes import Shapes

class Many(Shapes):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample.class_id = [float(k in sample.labels) for k in range(6)]
        return sample
"""


def test_multilabel_heads_have_their_thresholds_and_curves(tmp_path, monkeypatch):
    (tmp_path / "many_labels.py").write_text(MANY)
    monkeypatch.syspath_prepend(tmp_path)
    spec = config("classification", report=True)
    spec["head"]["multilabel"] = True
    for split in ("train", "val"):
        spec["data"][split]["type"] = "many_labels.Many"
    run = train(spec, {"output": str(tmp_path / "run")}).directory
    record, parsed = page_of(run, allow_plugins=True)
    words = titles(parsed)
    for title in ("By class", "By probability, all classes", "F1 by probability and class"):
        assert title in words
    assert record["metrics"] == pytest.approx(evaluate(run, allow_plugins=True), nan_ok=True)


CUSTOM = """
from visionkit.metrics.accuracy import Accuracy
from visionkit.metrics.parts import Text
from visionkit.models.heads import Classification

WHAT = {}

class Own(Classification):
    def evaluator(self, dataset):
        return OwnAccuracy(dataset.classes["class_id"].names)

class OwnAccuracy(Accuracy):
    def report(self, context):
        assert context.images == 2 and context.predicted(1)
        return WHAT["parts"]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_head.py").write_text(CUSTOM)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec = config("classification")
        spec["head"]["type"] = "own_head.Own"
        yield train(spec, {"output": str(folder / "run")}).directory


def test_a_custom_head_has_what_its_evaluator_reports(own):
    import own_head

    own_head.WHAT["parts"] = [Text("My part", ["<b>it works</b>"])]
    _, parsed = page_of(own, allow_plugins=True)
    assert "My part" in titles(parsed) and "<b>it works</b>" in titles(parsed)


def test_a_custom_head_without_parts_has_its_metrics(own):
    import own_head

    own_head.WHAT["parts"] = []
    assert "classification (Own)" in titles(page_of(own, allow_plugins=True)[1])


@pytest.mark.parametrize(
    "parts",
    [None, "text", {}, ["text"], (Text("a", []),), [Text(1, [])], [Text("a", "no list")],
     [Table("a", ["x"], [[1, 2]])], [Table("a", ["x"], [[{}]])], [Bars("a", {"x": "1"})],
     [Chart("a", "", "", [Series("s", [1], [1, 2])])], [Matrix("a", ["r"], ["c"], [[1, 2]])],
     [Gallery("a", [1])]],
)  # fmt: skip
def test_parts_that_are_none_are_refused_by_the_name_of_the_head(own, parts):
    import own_head

    own_head.WHAT["parts"] = parts
    with pytest.raises(ConfigError, match=r"heads.classification: report\(\) of its evaluator"):
        page_of(own, allow_plugins=True)


def test_a_custom_report_that_fails_is_named(own):
    import own_head

    own_head.WHAT.clear()
    with pytest.raises(ConfigError, match=r"heads.classification: report\(\).*KeyError"):
        page_of(own, allow_plugins=True)


def test_another_overlap_and_one_that_coco_does_not_have(runs):
    assert "IoU 0.75" in " ".join(page_of(runs("fcos"), iou=0.75)[1].text)
    with pytest.raises(ArgumentError, match=r"--iou: got 0\.3; expected one of 0\.5, 0\.55"):
        page_of(runs("fcos"), iou=0.3)
