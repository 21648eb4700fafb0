"""A run that goes on with something else than it began with, and files of older versions."""

import json
import logging
import shutil

import pytest
from PIL import Image

import visionkit
from support.paths import ROOT
from support.runs import SIZE, config, lines, read_status, same, start, state
from support.runs import spec as spec_of
from visionkit.cli.main import main
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.distributed import collectives
from visionkit.engine import train as training
from visionkit.engine.train import train
from visionkit.errors import CheckpointError, ConfigError, DataError
from visionkit.runs import checkpoint, files

OLD = ROOT / "tests/fixtures/checkpoint_v1.pt"


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Two of four steps."""
    folder = tmp_path_factory.mktemp("half") / "run"
    return train(config(folder, steps=2, validate=False)).directory


@pytest.fixture
def begun(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


def told(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


def changed(spec, *path, to):
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = to


def test_another_best_metric_judges_the_best_checkpoint_anew(tmp_path, monkeypatch):
    """What counted before, an accuracy, is no bound for a loss, which counts negatively."""
    figures = iter([0.9, 0.8, 0.7, 0.6, 0.5])

    def evaluate(*_, **__):
        value = next(figures)
        return {"classification/top1": value, "classification/loss/total": value}, {}

    monkeypatch.setattr(training, "evaluate_model", evaluate)
    run = tmp_path / "run"
    train(config(run, steps=6, validate=1, early_stop=5))  # validates every third step
    assert state(run)["best"] == {"score": 0.9, "stale": 1}
    train(config(run, steps=9, validate=1, best_metric="classification/loss/total"), resume=True)
    assert state(run)["best"] == {"score": -0.7, "stale": 0}
    assert state(run, "best.pt")["metrics"]["classification/loss/total"] == 0.7
    train(config(run, steps=12, validate=1, best_metric="classification/top1"), resume=True)
    assert state(run)["best"] == {"score": 0.7, "stale": 1}  # that of best.pt


CHANGES = {
    "more steps": (("train", "steps"), 4, "train.steps: 4 instead of 2"),
    "batch size": (("data", "batch_size"), 2, "data.main.batch_size: 2 instead of 4"),
    "seed": (("train", "seed"), 3, "train.seed: 3 instead of 0"),
    "images": (
        *(("data", "train", "num_images"), 11),
        "11 images in data.main.train instead of 12",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_change_is_told_and_counts_from_now_on(change, begun, caplog):
    caplog.set_level(logging.WARNING, "visionkit")
    path, value, text = CHANGES[change]
    spec = config(begun, steps=4, validate=False)
    changed(spec, *path, to=value)
    train(spec, resume=True)
    assert f"resumed with {text}" in told(caplog)
    assert state(begun)["step"] == 4 and read_status(begun)["state"] == "finished"
    assert [line["step"] for line in lines(begun)] == [1, 2, 3, 4]


def test_settings_that_are_newer_than_the_run_are_no_changes(begun, caplog):
    """Whether the config names them with their defaults or not; another value is a change."""
    last = begun / "checkpoints/last.pt"
    saved = checkpoint.load(last)
    for key in ("clip_norm", "milestones", "sync_batchnorm"):
        del saved["config"]["train"][key]
    for key in ("check_images", "group_by_aspect_ratio"):
        del saved["config"]["data"]["main"][key]
    del saved["config"]["init_from"]
    checkpoint.save(saved, last)
    spec = config(begun, steps=4, validate=False, clip_norm=9.0)
    spec["head"] = {"dropout": 0.0}
    spec["data"]["train"]["masks"] = None
    train(spec, resume=True)
    found = [line for line in told(caplog).splitlines() if line.startswith("resumed with")]
    assert found == [
        "resumed with train.steps: 4 instead of 2",
        "resumed with train.clip_norm: 9.0 instead of 10.0",
    ]


def relabeled(path):
    """Another class for the first object."""
    data = json.loads(path.read_text())
    ids = [category["id"] for category in data["categories"]]
    first = data["annotations"][0]
    first["category_id"] = next(i for i in ids if i != first["category_id"])
    path.write_text(json.dumps(data))


def darker(folder):
    """Other images of the same names."""
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.point(lambda value: value // 4).save(path, quality=50)


OTHER_DATA = {
    "labels": (relabeled, "annotations.json", "another fingerprint of labels ("),
    "images": (darker, "images", "another fingerprint of file sizes ("),
}


@pytest.mark.parametrize("what", OTHER_DATA)
def test_other_data_at_the_same_path_is_told_and_refused_if_strict(what, tmp_path, caplog):
    change, part, text = OTHER_DATA[what]
    generate_shapes(tmp_path / "data", images=6, size=SIZE)
    coco = {"type": "Coco", "images": str(tmp_path / "data/images"),
            "annotations": str(tmp_path / "data/annotations.json")}  # fmt: skip
    spec = spec_of("localization", tmp_path / "run", steps=1, validate=False)
    spec["data"]["main"] |= {"train": coco, "val": None}
    train(spec)
    spec["train"]["steps"] = 2
    before = state(tmp_path / "run")
    change(tmp_path / "data" / part)
    with pytest.raises(DataError, match=r"--resume --strict: other data in data\.main\.train"):
        train(spec, resume=True, strict=True)
    assert same(state(tmp_path / "run"), before)
    train(spec, resume=True)
    warning = next(line for line in told(caplog).splitlines() if "other data" in line)
    assert warning.startswith("resumed with other data in data.main.train (") and text in warning
    assert f"annotations: {coco['annotations']}" in warning
    spec["train"]["steps"] = 3
    caplog.clear()
    train(spec, resume=True, strict=True)  # it is the run's data now
    assert "other data" not in told(caplog)


def test_a_run_of_a_version_without_fingerprints_is_resumed(begun, caplog):
    saved = checkpoint.load(begun / "checkpoints/last.pt")
    del saved["fingerprints"]
    checkpoint.save(saved, begun / "checkpoints/last.pt")
    train(config(begun, steps=4, validate=False), resume=True, strict=True)
    assert "other data" not in told(caplog)


def test_the_number_of_processes_is_compared(begun, caplog, monkeypatch):
    saved = checkpoint.load(begun / "checkpoints/last.pt")
    checkpoint.save({**saved, "world_size": 2}, begun / "checkpoints/last.pt")
    train(config(begun, steps=4, validate=False), resume=True)
    assert f"resumed with {collectives.world_size()} ranks instead of 2" in told(caplog)


def test_classes_and_models_that_do_not_fit_are_refused(begun):
    last = begun / "checkpoints/last.pt"
    saved = checkpoint.load(last)
    names = saved["classes"]["classification"]["names"]
    renamed = {"classification": {"names": ["cat", *names[1:]], "ids": [*range(len(names))]}}
    checkpoint.save({**saved, "classes": renamed}, last)
    with pytest.raises(CheckpointError, match=r"the run has the classes .*'cat'.*the data now"):
        train(config(begun, steps=4, validate=False), resume=True)
    checkpoint.save(saved, last)
    spec = config(begun, validate=False)
    spec["backbone"]["channels"] = [4, 8, 8]
    with pytest.raises(CheckpointError, match=r"--resume: .*does not fit.*\s.*missing: backbone"):
        train(spec, resume=True)
    with pytest.raises(CheckpointError, match=r"train\.optimizer is 'sgd', but the run's is 'adam"):
        train(config(begun, validate=False, optimizer="sgd"), resume=True)
    checkpoint.save({**saved, "average": None}, last)
    with pytest.raises(CheckpointError, match="--resume: the checkpoint does not fit the config"):
        train(config(begun, validate=False), resume=True)
    checkpoint.save(saved, last)
    assert same(checkpoint.load(last), saved)
    assert read_status(begun)["state"] == "finished"


BROKEN_PROGRESS = {
    "step": ["2", -1, None, 2.0, True, "missing"],
    "validated_at": ["x", -3, "missing"],
    "best": [None, {"score": "high", "stale": 0}, {"score": 0.1, "stale": -1}, "missing"],
    "skipped": [[0, 0], [0, 0, "1"], "missing"],
    "window": [{"sums": {}, "steps": "1"}, {"sums": {"a": 1}, "steps": 1}, "missing"],
    "metrics": [{"a": "1"}, "missing"],
    "images": [["x"], "missing"],
    "world_size": [0, "1", "missing"],
    "optimizer": [[], "missing"],
}


@pytest.mark.parametrize("key", BROKEN_PROGRESS)
def test_a_checkpoint_whose_progress_is_damaged_is_refused(key, begun, tmp_path, capsys):
    last = begun / "checkpoints/last.pt"
    saved = checkpoint.load(last)
    files.write_text(tmp_path / "c.yaml", files.to_json(config(begun, steps=4, validate=False)))
    for value in BROKEN_PROGRESS[key]:
        broken = {k: v for k, v in saved.items() if k != key}
        checkpoint.save(broken if value == "missing" else {**broken, key: value}, last)
        before = last.read_bytes()
        assert main(["train", str(tmp_path / "c.yaml"), "--resume"]) == 4
        assert f"last.pt: cannot be resumed: its {key!r} is" in capsys.readouterr().err
        assert last.read_bytes() == before


@pytest.mark.parametrize("steps", [2, 1], ids=["as many", "fewer"])
def test_a_run_that_is_done_says_so_and_is_left_as_it_is(steps, begun, tmp_path):
    before = {p.name: p.read_bytes() for p in (begun / "checkpoints").iterdir()}
    spec = config(begun, steps=steps, validate=False)
    files.write_text(tmp_path / "c.yaml", files.to_json(spec))
    child = start(["train", tmp_path / "c.yaml", "--resume"], tmp_path / "log")
    child.join(60)
    text = (tmp_path / "log").read_text()
    assert child.exitcode == 0 and "is finished at step 2; raise train.steps" in text, text
    assert {p.name: p.read_bytes() for p in (begun / "checkpoints").iterdir()} == before
    assert read_status(begun)["state"] == "finished"


def test_a_checkpoint_of_an_older_version_is_refused_with_the_new_names():
    with pytest.raises(ConfigError, match=r"of visionkit 0\.1: .*renamed to 'type: TinyCNN'"):
        visionkit.load(OLD)


def test_metrics_of_a_head_that_gives_numpy_numbers_can_be_saved(tmp_path, monkeypatch):
    """A checkpoint with numpy's numbers could not be loaded again."""
    import numpy as np

    from visionkit.engine import train as training

    evaluate_model = training.evaluate_model

    def numpy_numbers(*args, **kwargs):
        metrics, evaluators = evaluate_model(*args, **kwargs)
        return {name: np.float64(value) for name, value in metrics.items()}, evaluators

    monkeypatch.setattr(training, "evaluate_model", numpy_numbers)
    run = train(config(tmp_path / "run", steps=3)).directory
    assert state(run)["metrics"].keys() == state(run, "best.pt")["metrics"].keys()


def test_a_run_resumes_although_the_file_of_its_weights_is_gone(begun, tmp_path):
    """All weights are in its checkpoint."""
    first = begun / "checkpoints" / "best.pt"
    copy = shutil.copy(first, tmp_path / "start.pt")
    run = tmp_path / "second"
    train(config(run, steps=2, validate=False) | {"weights": str(copy)})
    (tmp_path / "start.pt").unlink()
    train(config(run, steps=4, validate=False) | {"weights": str(copy)}, resume=True)
    assert read_status(run)["step"] == 4
    with pytest.raises(ConfigError, match=r"weights: got .*not found"):
        train(config(tmp_path / "third", steps=2) | {"weights": str(copy)})
