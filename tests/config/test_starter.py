"""`visionkit init`: a copy means the same as its config, and explains what one edits."""

import pytest

from visionkit.config import Config, SourceConfig, load_config, shipped
from visionkit.config.shipped import shipped_configs
from visionkit.config.starter import help_texts, starter_text
from visionkit.config.yaml import read


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", shipped_configs())
def test_a_copy_means_the_same(name, empty_folder):
    file = empty_folder / f"{name}.yaml"
    file.write_text(starter_text(name, file.name))
    assert load_config(file) == load_config(name)
    values, _ = read(file)
    assert values["version"] == 1 and values["output"] is None and "base" not in values
    text = file.read_text()
    assert text.startswith(shipped_configs()[name].read_text().partition("\n")[0] + "\n")
    assert f"visionkit train {file.name}" in text and f"visionkit train {name} " not in text
    assert max(map(len, text.split("\n"))) < 140


def test_what_one_edits_is_explained():
    lines = [line.strip() for line in starter_text("detection_small", "x.yaml").split("\n")]
    output = help_texts(Config)["output"]
    assert f"output: null  # {output}" in lines
    assert "epochs: 6  # passes over the largest source; null when `steps` is given" in lines
    assert f"image_size: 160  # {help_texts(SourceConfig)['image_size']}" in lines
    assert "head: {type: TaskAligned}  # see `visionkit list heads`" in lines
    at = lines.index("# Generated images. Put your data instead:")
    assert lines[at + 1 : at + 4] == [
        "#   train: {images: DIR, annotations: FILE.json}",
        "#   val: {images: DIR, annotations: FILE.json}",
        "# Coco: The images of a directory with the labels of a COCO JSON file.",
    ]


@pytest.mark.parametrize("name", ["detection_small", "classification", "semantic_segmentation"])
def test_the_data_of_the_comments_fits(name, empty_folder):
    lines = starter_text(name, "x.yaml").split("\n")
    kept = [line for line in lines if not line.startswith(("  train: ", "  val: "))]
    text = "\n".join(
        line.replace("#   train:", "train:").replace("#   val:", "val:") for line in kept
    )
    (empty_folder / "x.yaml").write_text(text)
    data = load_config("x.yaml").data["main"]
    assert data.train == data.val and "Shapes" not in data.train["type"]


def test_every_setting_of_a_source_has_a_help_text():
    assert help_texts(SourceConfig).keys() == SourceConfig.__dataclass_fields__.keys()
    assert {"output", "workers", "weights"} <= help_texts(Config).keys()


def test_a_copy_of_a_config_with_a_base_stands_alone(empty_folder, monkeypatch):
    folder = empty_folder / "configs"
    folder.mkdir()
    (folder / "one.yaml").write_text("# One.\ntask: detection\ntrain: {epochs: 3, lr: 0.5}\n")
    (folder / "two.yaml").write_text("# Two.\nbase: one.yaml\ntrain: {lr: 0.1}\n")
    monkeypatch.setattr(shipped, "PACKAGE", empty_folder)
    text = starter_text("two", "x.yaml")
    (empty_folder / "x.yaml").write_text(text)
    assert "base" not in text and text.startswith("# Two.\n")
    values, _ = read("x.yaml")
    assert values["train"] == {"epochs": 3, "lr": 0.1} and values["task"] == "detection"


def test_a_file_name_cannot_add_a_line():
    text = starter_text("vae", "a\ntask: x.yaml")
    assert "\ntask: x" not in text and r"'a\ntask: x.yaml'" in text
