"""Cross-validation: one run for each fold, and what they have in common."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from support import small_runs
from support.runs import cut_off
from visionkit.cli import main
from visionkit.config import load_config
from visionkit.data.datasets.shapes import generate_shapes
from visionkit.data.tools.split import kfold_data as kfold
from visionkit.engine import folds
from visionkit.engine.reporting import report
from visionkit.engine.train import train
from visionkit.errors import ArgumentError, ConfigError, Preempted
from visionkit.metrics.folds import fold_lines, spread, spreads, student_t
from visionkit.runs import checkpoint
from visionkit.runs.directory import read_status

METRIC = "autoencoder/psnr"  # another number in each fold, however short the training


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of twelve images."""
    folder = tmp_path_factory.mktemp("folds")
    generate_shapes(folder / "shapes", images=12, size=32)
    kfold(folder / "shapes/annotations.json", 3, folder / "folds")
    return folder / "folds"


def spec(output: Path, **train: Any) -> dict[str, Any]:
    one = dict(small_runs.SMALL_RUNS["autoencoder"])
    settings = {**one["train"], "steps": 2, "validate": 1, **train}
    return {**one, "data": dict(one["data"]), "train": settings, "output": str(output)}


def weights(run: Path) -> list[list[float]]:
    state = checkpoint.load_latest(run)[1]["model"]
    return [tensor.flatten().tolist() for tensor in state.values()]


def test_students_t() -> None:
    """As in tables: 97.5 % quantiles."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 30: 2.042}
    assert {n: round(student_t(n), 3) for n in table} == table


def test_mean_deviation_and_interval() -> None:
    found = spread([0.2, 0.4, 0.6])
    assert found.mean == pytest.approx(0.4) and found.std == pytest.approx(0.2)
    reach = 4.302653 * 0.2 / math.sqrt(3)
    assert found.low == pytest.approx(0.4 - reach) and found.high == pytest.approx(0.4 + reach)
    of_two = spread([0.2, math.nan, 0.4])
    assert of_two.mean == pytest.approx(0.3)
    assert of_two.high == pytest.approx(0.3 + 12.7062 * math.sqrt(0.02) / math.sqrt(2), rel=1e-5)
    assert math.isnan(spread([0.5]).std) and math.isnan(spread([math.nan]).mean)
    lines = fold_lines(spreads([{"a": 0.25}, {"a": 0.75}]), ["a"])
    assert lines[1].split() == [
        "a",
        "0.2500",
        "0.7500",
        "0.5000",
        "0.3536",
        "-2.6766",
        "to",
        "3.6766",
    ]


@pytest.fixture(scope="module")
def trained(divided: Path) -> folds.TrainedFolds:
    return folds.train_folds(load_config(spec(divided.parent / "x")), divided)


def test_each_fold_is_an_ordinary_run(
    tmp_path: Path, divided: Path, trained: folds.TrainedFolds
) -> None:
    done = trained
    assert [run.name for run in done.runs] == ["x-fold-1", "x-fold-2", "x-fold-3"]
    alone = spec(tmp_path / "alone")
    for split in ("train", "val"):
        file = str(divided / f"fold-2/{split}.json")
        images = str(divided.parent / "shapes/images")
        alone["data"][split] = {"type": "Coco", "images": images, "annotations": file}
    reference = train(alone)
    assert weights(done.runs[1]) == weights(reference.directory)
    assert done.metrics[METRIC].values[1] == reference.metrics[METRIC]
    values = [checkpoint.load_latest(run)[1]["metrics"][METRIC] for run in done.runs]
    assert done.metrics[METRIC].values == tuple(values) and done.main == [METRIC]
    record = json.loads((divided.parent / "x-folds.json").read_text())
    assert record["metrics"][METRIC]["mean"] == pytest.approx(statistics.mean(values))
    assert record["metrics"][METRIC]["std"] == pytest.approx(statistics.stdev(values))
    assert record["runs"] == [str(run) for run in done.runs]


def test_interrupted_folds_continue(tmp_path: Path, divided: Path) -> None:
    """A signal in the second fold: with `resume` the first is kept, the second continues to the
    same weights, the third follows."""
    config = load_config(spec(tmp_path / "x", save_every=0))
    whole = folds.train_folds(load_config(spec(tmp_path / "whole", save_every=0)), divided)
    train_one, trained = folds.train, []

    def interrupted(config: Any, **options: Any) -> Any:
        trained.append((Path(config.output).name, options["resume"]))
        if len(trained) == 2:
            with cut_off(1, "signal"):
                return train_one(config, **options)
        return train_one(config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "train", interrupted)
        with pytest.raises(Preempted) as caught:
            folds.train_folds(config, divided)
        assert str(caught.value).startswith("fold 2 of 3: stopped by SIGTERM after step 1")
        assert "the same command with --resume" in str(caught.value)
        assert read_status(tmp_path / "x-fold-2")["state"] == "preempted"
        assert not (tmp_path / "x-folds.json").exists()
        before = (tmp_path / "x-fold-1/checkpoints/best.pt").read_bytes()
        done = folds.train_folds(config, divided, resume=True)
    first, then = [("x-fold-1", False), ("x-fold-2", False)], [("x-fold-2", True)]
    assert trained == [*first, *then, ("x-fold-3", False)]
    assert (tmp_path / "x-fold-1/checkpoints/best.pt").read_bytes() == before
    assert [weights(run) for run in done.runs] == [weights(run) for run in whole.runs]
    assert done.metrics == whole.metrics


def test_runs_that_are_there(
    tmp_path: Path,
    divided: Path,
    trained: folds.TrainedFolds,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = divided.parent / "x"
    config = load_config(spec(output))
    with pytest.raises(ConfigError, match=r"x-fold-1 already holds a run(.|\n)*x-fold-3 already"):
        folds.train_folds(config, divided)
    kfold(divided.parent / "shapes/annotations.json", 3, tmp_path / "others", seed=1)
    with pytest.raises(ConfigError, match="x-fold-2 was trained on other data"):
        folds.train_folds(config, tmp_path / "others", resume=True)
    divided.rename(tmp_path / "before")  # divided again into the same folder
    (tmp_path / "others").rename(divided)
    with pytest.raises(ConfigError, match=r"x-fold-1 was trained on other data(.|\n)*--overwrite"):
        folds.train_folds(config, divided, resume=True)
    divided.rename(tmp_path / "others")
    (tmp_path / "before").rename(divided)
    again = folds.train_folds(load_config(spec(output, lr=0.5)), divided, resume=True)
    assert "x-fold-1: was trained with other settings: train.lr" in caplog.text
    assert again.metrics == trained.metrics
    config = load_config(spec(tmp_path / "x"))
    (tmp_path / "x-folds.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="exists and is not of folds"):
        folds.train_folds(config, divided, overwrite=True)
    (tmp_path / "x-folds.json").unlink()
    with pytest.raises(ArgumentError, match="give only one"):
        folds.train_folds(config, divided, overwrite=True, resume=True)
    assert not [*tmp_path.glob("x*")]


def data_of(config: Any, divided: Path) -> dict[str, dict[str, Any]]:
    made = folds.fold_config(load_config(config), folds.read_folds(divided), 3)
    source = next(iter(made.data.values()))
    assert source.train is not None and source.val is not None
    return {"train": source.train, "val": source.val}


def test_arguments_of_the_dataset_are_kept(tmp_path: Path, divided: Path) -> None:
    config = spec(tmp_path / "x")
    file = str(divided / "fold-1/train.json")
    coco = {"images": "mine", "annotations": file, "exif": "ignore"}
    config["data"]["train"] = coco | {"type": "Coco"}
    config["data"]["val"] = coco | {"type": "Coco", "links": "any"}
    found = data_of(config, divided)
    assert found["train"]["annotations"] == str(divided / "fold-3/train.json")
    assert found["val"]["annotations"] == str(divided / "fold-3/val.json")
    assert {one["images"] for one in found.values()} == {"mine"}
    assert found["train"]["exif"] == "ignore" and found["val"]["links"] == "any"
    config["data"]["val"]["images"] = "others"
    known = str(divided.parent / "shapes/images")
    assert {one["images"] for one in data_of(config, divided).values()} == {known}
    del config["data"]["val"]
    assert data_of(config, divided)["val"]["exif"] == "ignore"
    config["data"]["holdout"] = 0.25
    assert data_of(config, divided)["val"]["annotations"] == str(divided / "fold-3/val.json")
    config["data"]["holdout"] = None
    yolo = {"type": "Yolo", "root": "somewhere", "classes": ["b", "a"]}
    config["data"] |= {"train": yolo, "val": {**yolo, "split": "val"}}
    found = data_of(config, divided)
    assert {one["type"] for one in found.values()} == {"Coco"}
    assert found["train"]["classes"] == ["b", "a"] and found["train"]["images"] == known


def test_the_long_form(tmp_path: Path, divided: Path) -> None:
    config = small_runs.joint()
    street = config["data"]["street"] | {"feeds": ["objects", "looks", "scene"]}
    with pytest.raises(ConfigError, match="the config has 2 sources; folds replace one"):
        folds.fold_config(load_config(config), folds.read_folds(divided), 1)
    config["data"] = {"street": street}
    found = data_of(config, divided)
    assert found["val"]["annotations"].endswith("fold-3/val.json")


def test_what_folds_cannot_replace(tmp_path: Path, divided: Path) -> None:
    config = spec(tmp_path / "x", validate=False)
    with pytest.raises(ConfigError, match=r"train\.validate: got false"):
        data_of(config, divided)
    config = spec(tmp_path / "x")
    config["data"]["train"] = {"type": "Images", "root": "somewhere"}
    with pytest.raises(ConfigError, match=r"data.train: has the type Images; folds are COCO files"):
        data_of(config, divided)
    config["data"]["train"] = {"type": "ImageFolder", "root": "somewhere", "only": ["a"]}
    with pytest.raises(ConfigError, match=r"data\.train\.only: does not apply"):
        data_of(config, divided)
    moved = tmp_path / "moved"
    kfold(divided / "fold-1/train.json", 2, moved)
    record = json.loads((moved / "folds.json").read_text())
    (moved / "folds.json").write_text(json.dumps(record | {"images": None}))
    with pytest.raises(
        ConfigError, match=r"data.train.images: missing.*give data.train.images=DIR"
    ):
        data_of(spec(tmp_path / "x"), moved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (None, "has no readable folds.json.*visionkit data kfold"),
        ("[1]", "was not written by this version"),
        ('{"version": 2, "k": 3, "images": null, "source": {"fingerprint": ""}}', "not written by"),
        ('{"version": 1, "k": 3, "images": null, "source": {"fingerprint": ""}}', "not found: .*"),
        ("{", "has no readable"),
    ],
)
def test_folders_without_folds(tmp_path: Path, change: str | None, text: str) -> None:
    if change is not None:
        (tmp_path / "folds.json").write_text(change)
    with pytest.raises(ConfigError, match=text):
        folds.read_folds(tmp_path)


def test_the_command(tmp_path: Path, divided: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(load_config(spec(tmp_path / "x")).to_yaml())
    words = ["train", str(file), "--folds", str(divided), f"output={tmp_path}/y"]
    assert main.main(words) == 0
    shown = capsys.readouterr().out
    titles, values = (line.split() for line in shown.splitlines()[:2])
    assert " ".join(titles) == "metric fold 1 fold 2 fold 3 mean std 95 % interval"
    assert values[0] == METRIC and "Student's t" in shown
    assert f"wrote {tmp_path}/y-folds.json" in shown
    assert main.main(words) == 2
    assert main.main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == shown
    assert main.main([*words, "--overwrite", "train.lr=0.5"]) == 0
    assert capsys.readouterr().out != shown
    assert (
        main.main(["train", "--folds", str(divided), "--resume", str(tmp_path / "y-fold-1")]) == 2
    )
    assert "visionkit train CONFIG --folds DIR --resume" in capsys.readouterr().err


def test_the_report_summarizes_folds(
    tmp_path: Path, trained: folds.TrainedFolds, capsys: pytest.CaptureFixture[str]
) -> None:
    page, numbers = tmp_path / "page.html", tmp_path / "page.json"
    words = [*map(str, reversed(trained.runs)), "--out", str(page), "--json", str(numbers)]
    assert main.main(["report", *words]) == 0
    found = trained.metrics[METRIC]
    shown = capsys.readouterr().out
    assert f"{METRIC}: mean {found.mean:.3f}, standard deviation {found.std:.3f} over 3" in shown
    record = json.loads(numbers.read_text())
    assert record["metrics"][METRIC]["values"] == pytest.approx(list(found.values))
    assert record["folds"]["numbers"] == [1, 2, 3]
    assert record["runs"]["fold 1"] == str(trained.runs[0])
    text = page.read_text()
    assert "x: 3 folds" in text and "fold 2" in text and "missing" not in text
    worst = min(found.values)
    fold = found.values.index(worst) + 1
    assert f"the worst is fold {fold} with {worst:.3f}" in shown
    assert "B is better" not in shown and "differences" not in record


def test_some_folds_are_missing(tmp_path: Path, trained: folds.TrainedFolds) -> None:
    record = report(trained.runs[1:], out=tmp_path / "page.html")
    assert "1 of 3 folds are missing: 1" in record["summary"]


def test_one_fold_twice_is_a_comparison(tmp_path: Path, trained: folds.TrainedFolds) -> None:
    record = report([trained.runs[0]] * 2, out=tmp_path / "page.html", bootstrap=0)
    assert [*record["runs"]] == ["A", "B"]
