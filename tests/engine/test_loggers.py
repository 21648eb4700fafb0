"""Experiment trackers: what they get, and that a run survives them."""

import copy
import json
import sys

import numpy as np
import pytest

from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.engine.loggers import Loggers
from visionkit.engine.train import train
from visionkit.errors import ConfigError

CALLS: list = []


class Recorder:
    """Remembers its calls."""

    def __init__(self, *, fail: str = "") -> None:
        self.fail = fail

    def _call(self, name, *arguments):
        if name == self.fail:
            raise RuntimeError("no connection")
        CALLS.append((name, *arguments))

    def begin(self, run, config):
        self._call("begin", run, config)

    def scalars(self, step, values):
        self._call("scalars", step, values)

    def images(self, step, images):
        self._call("images", step, {name: image.size for name, image in images.items()})

    def end(self, status):
        self._call("end", status)


RECORDER = f"{__name__}.Recorder"


@pytest.fixture(autouse=True)
def fresh():
    CALLS.clear()


def config(*loggers, **settings):
    spec = copy.deepcopy(SMALL_RUNS["fcos"])
    spec["train"] |= {"loggers": list(loggers), **settings}
    return spec


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(record):
    return {
        name: value
        for name, value in record.items()
        if name not in ("kind", "step") and value is not None
    }


def test_a_logger_gets_what_metrics_jsonl_gets(tmp_path):
    run = train(config(RECORDER), {"output": str(tmp_path / "run")}).directory
    assert [name for name, *_ in CALLS] == ["begin", *["scalars"] * 4, "end"]
    assert CALLS[0][1:2] == (run,) and CALLS[0][2]["train"]["steps"] == 3
    logged = [(step, values) for name, step, values in CALLS[1:-1]]
    assert logged == [(r["step"], pytest.approx(numbers(r))) for r in records(run)]
    assert CALLS[-1] == ("end", "finished")


def test_images_of_training_and_validation_are_logged(tmp_path):
    train(config(RECORDER, plots=True), {"output": str(tmp_path / "run")})
    images = [(step, [*found]) for name, step, found in CALLS[1:-1] if name == "images"]
    assert images[0] == (0, ["train_main_1"]) and images[-1] == (3, ["val_main"])
    assert [(step, *names) for step, names in images if names[0].startswith("train")] == [
        (0, "train_main_1"),
        (1, "train_main_2"),
        (2, "train_main_3"),
    ]


@pytest.mark.parametrize("method", ["begin", "scalars", "end"])
def test_a_failing_logger_is_reported_once_and_ends_nothing(tmp_path, caplog, method):
    both = config({"type": RECORDER, "fail": method}, RECORDER)
    run = train(both, {"output": str(tmp_path / "run")}).directory
    assert caplog.text.count("failed and logs no more: RuntimeError: no connection") == 1
    assert len(records(run)) == 4 and CALLS[-1] == ("end", "finished")


def test_a_missing_package_says_what_to_install(tmp_path, caplog, monkeypatch):
    loggers = Loggers(["TensorBoard", "WandB", "MLflow"])
    for name in ("torch.utils.tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    loggers.begin(tmp_path, {})
    assert caplog.text.count('pip install "visionkit-torch[trackers]"') == 3
    assert not loggers.active


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tensorbord", "TensorBoard"),
        ({"type": "wandb", "projct": "x"}, "project"),
        ({"project": "x"}, "missing 'type'"),
        ("support.heads.HEADS", "unknown type"),
        (f"{__name__}.fresh", "expected a class"),
        ("support.small_runs.Absent", "unknown type"),
    ],
)
def test_a_wrong_logger_is_a_problem_of_the_config(spec, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config(spec))


def test_names_are_taken_in_any_case():
    found = load_config(config("tensorboard", {"type": "WANDB", "project": "x"}))
    assert [spec["type"] for spec in found.train.loggers] == ["TensorBoard", "WandB"]


def test_a_run_of_somebody_else_imports_no_logger(tmp_path):
    run = train(config(RECORDER), {"output": str(tmp_path / "run")}).directory
    with pytest.raises(ConfigError, match="allow-plugins"):
        load_config(run / "config.yaml", origin=run / "config.yaml")
    text = (run / "config.yaml").read_text()
    assert RECORDER in text


def events(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.slow
def test_tensorboard_reads_back_what_metrics_jsonl_has(tmp_path):
    pytest.importorskip("tensorboard")
    settings = {"output": str(tmp_path / "run")}
    run = train(config("tensorboard", plots=True), settings).directory
    train(config("tensorboard", plots=True), {**settings, "train.steps": 6}, resume=True)
    found = events(run / "tensorboard")
    expected = {}
    for record in records(run):
        for name, value in numbers(record).items():
            expected.setdefault(name, []).append((record["step"], np.float32(value)))
    assert {*found.Tags()["scalars"]} == {*expected}
    for name, values in expected.items():
        assert [(e.step, np.float32(e.value)) for e in found.Scalars(name)] == values, name
    assert {"train_main_1", "train_main_3", "val_main"} <= {*found.Tags()["images"]}


@pytest.mark.slow
def test_mlflow_continues_the_same_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    spec = {"type": "mlflow", "uri": uri, "experiment": "shapes"}
    settings = {"output": str(tmp_path / "run")}
    run = train(config(spec), settings).directory
    train(config(spec), {**settings, "train.steps": 6}, resume=True)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'shapes'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    history = client.get_metric_history(found.info.run_id, "train.total")
    expected = [(r["step"], r["train/total"]) for r in records(run) if "train/total" in r]
    assert [(m.step, m.value) for m in history] == expected


@pytest.mark.slow
def test_wandb_continues_the_same_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    spec = {"type": "wandb", "project": "shapes", "mode": "offline"}
    settings = {"output": str(tmp_path / "run")}
    run = train(config(spec), settings).directory
    train(config(spec), {**settings, "train.steps": 6}, resume=True)
    id_ = json.loads((run / "loggers.json").read_text())["WandB"]
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(id_) for folder in folders)
    assert all([*folder.glob(f"run-{id_}.wandb")] for folder in folders)
