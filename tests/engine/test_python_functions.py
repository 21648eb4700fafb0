"""The functions behind the commands, called from Python: what they return and how it reads."""

import json
import logging

import pytest
import torch
import yaml
from PIL import Image

import visionkit
from support import small_runs
from visionkit.errors import ArgumentError, CheckpointError, ConfigError
from visionkit.runs.files import to_json

SHORT = small_runs.SMALL_RUNS["embedding"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "short"
    return visionkit.train(SHORT, {"output": str(output)})


def test_what_train_returns(run):
    directory, metrics = run
    assert run.directory == directory and run.metrics is metrics and "embedding/recall@1" in metrics
    assert run.checkpoint == directory / "checkpoints/best.pt" and run.checkpoint.is_file()
    first, *lines = repr(run).splitlines()
    assert first == f"TrainedRun in {directory}"
    assert any(line.startswith("  embedding/recall@1 ") for line in lines)
    model = run.load({"data.image_size": 64}, heads=["embedding"], fold=False)
    assert isinstance(model, visionkit.Predictor) and model.config.data["main"].image_size == 64
    assert run.load().predict(torch.zeros(3, 8, 8).byte()).embedding.norm() == pytest.approx(1)


def test_the_repr_of_a_run_that_was_not_validated_and_of_one_with_many_metrics(tmp_path):
    none = visionkit.TrainedRun(tmp_path / "a\nb", {})
    assert repr(none) == f"TrainedRun in {tmp_path}/a\\nb\n  not validated"
    many = visionkit.TrainedRun(tmp_path, {f"m{i}": 0.5 for i in range(50)})
    assert repr(many).splitlines()[-1] == "  ... and 30 more in .metrics"


def test_a_run_is_resumed_by_its_directory(tmp_path):
    first = visionkit.train(SHORT, {"output": str(tmp_path / "run")})
    moved = first.directory.rename(tmp_path / "moved")
    again = visionkit.train(resume=moved, overrides={"train.steps": 5})
    assert again.directory == moved and not (tmp_path / "run").exists()
    assert json.loads((moved / "status.json").read_text())["step"] == 5
    with pytest.raises(ConfigError, match=r"resume: .*nowhere is not a run directory"):
        visionkit.train(resume=tmp_path / "nowhere")
    for overrides in ({"output": "x"}, ["output=x"], ["--output=x"]):
        with pytest.raises(ConfigError, match=r"resume: .*moved continues where it is; remove out"):
            visionkit.train(resume=str(moved), overrides=overrides)
    with pytest.raises(ArgumentError, match="expected a config file or a dict, got a NoneType"):
        visionkit.train()


def test_search_finds_the_most_similar(run, tmp_path):
    for name, color in {"a": "red", "b": "green", "same": "red"}.items():
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{name}.png")
    (result,) = visionkit.search(run.directory, tmp_path / "a.png", [tmp_path], top=2)
    assert isinstance(result, visionkit.SearchResult) and result.path == tmp_path / "a.png"
    assert [match.name for match in result.nearest] == ["same.png", "b.png"]
    assert result.nearest[0].similarity == pytest.approx(1)
    assert [m.path for m in result.nearest] == [tmp_path / "same.png", tmp_path / "b.png"]
    many = visionkit.search(run.load(), str(tmp_path), str(tmp_path), head="embedding")
    assert [r.name for r in many] == ["a.png", "b.png", "same.png"]
    with pytest.raises(ArgumentError, match="overrides: do not apply to a loaded model"):
        visionkit.search(run.load(), "a", "b", {"train.device": "cpu"})


def test_predictions_are_written_from_python(run, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"no image")
    assert visionkit.predict_files(run.directory, tmp_path / "in", tmp_path / "out") == 1
    (record,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["file_name"] == "a.png"
    with pytest.raises(ArgumentError, match="batch_size: got 0; expected an integer >= 1"):
        visionkit.predict_files(run.load(), tmp_path / "in", tmp_path / "out", batch_size=0)
    with pytest.raises(CheckpointError):
        visionkit.predict_files(tmp_path, tmp_path / "in", tmp_path / "out")


def test_a_report_reads_like_the_command(tmp_path, capsys, caplog):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**SHORT, "backbone": {"type": "TinyCNM"}}))
    report = visionkit.check(tmp_path / "c.yaml")
    assert isinstance(report, visionkit.CheckReport)
    (error,) = report.errors
    assert "did you mean 'TinyCNN'" in error.message and not report.warnings
    text = f"{tmp_path}/c.yaml: 1 error, 0 warnings, 0 notes\n  error config: "
    assert repr(report).startswith(text) and str(report) == repr(report)
    from visionkit.cli.main import main

    assert main(["check", str(tmp_path / "c.yaml"), "--json", str(tmp_path / "r.json")]) == 2
    assert capsys.readouterr().out == f"{report}\n"
    assert (tmp_path / "r.json").read_text() == to_json(report.to_dict()) + "\n"


def test_an_annotation_file_is_checked_with_its_images(tmp_path, caplog):
    visionkit.generate_shapes(tmp_path / "s", images=2, size=32)
    (tmp_path / "s/images/000001.jpg").unlink()
    file = tmp_path / "s/annotations.json"
    with caplog.at_level(logging.WARNING):
        report = visionkit.check(file, images=tmp_path / "s/images")
    assert [found.kind for found in report.errors] == ["missing-file"]
    assert not caplog.messages  # the report has them
    alone = visionkit.check(str(file))
    assert not alone.errors and "data used: annotations: 2 images" in str(alone)


def test_the_repr_of_a_config():
    config = visionkit.load_config(small_runs.joint())
    assert repr(config).splitlines() == [
        "Config 'run': TinyCNN + FPN",
        "  data street: Shapes -> objects (FCOS), looks (Attributes)",
        "  data places: Shapes -> scene (Classification)",
        "  train: 3 steps, output: None",
    ]
    resnet = visionkit.load_config(
        {**SHORT, "backbone": {"type": "Torchvision", "name": "resnet18"}}
    )
    assert repr(resnet).startswith("Config 'run': Torchvision resnet18\n  data main: Shapes -> emb")


def test_a_config_is_copied_and_weights_are_listed(tmp_path, monkeypatch):
    file = visionkit.init("detection_small", tmp_path / "mine.yaml")
    assert file == tmp_path / "mine.yaml"
    copied, shipped = visionkit.load_config(file), visionkit.load_config("detection_small")
    assert copied.to_dict() | {"name": ""} == shipped.to_dict() | {"name": ""}
    with pytest.raises(ConfigError, match="already exists and stays as it is"):
        visionkit.init("detection_small", str(file))
    monkeypatch.chdir(tmp_path)
    assert str(visionkit.init("autoencoder")) == "autoencoder.yaml"
    assert {"detection_small", "autoencoder"} <= {one.name for one in visionkit.list_configs()}
    assert "fcos_resnet50_fpn" in {one.name for one in visionkit.list_weights()}
    monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="downloads are off"):
        visionkit.fetch_weights("fcos_resnet50_fpn")
    with pytest.raises(ConfigError, match="fcos_resnet50_fpn"):
        visionkit.fetch_weights("fcos_resnet50")


def test_every_public_name_is_there_and_documented():
    for name in visionkit.__all__:
        assert getattr(visionkit, name).__doc__.strip(), name
    assert visionkit.__all__ == sorted(visionkit.__all__)
