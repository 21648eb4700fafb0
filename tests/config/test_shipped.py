"""Shipped configs by name: what a name means, and what a mistake is answered with."""

import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.paths import CONFIGS
from visionkit.config import load_config, shipped
from visionkit.config.shipped import find_config, list_configs, shipped_configs
from visionkit.errors import ConfigError

FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_of_the_folder_is_shipped_under_its_own_name():
    assert {path.resolve() for path in shipped_configs().values()} == {*FILES}
    assert [*shipped_configs()] == sorted(path.stem for path in FILES)
    twice = [name for name, times in Counter(path.stem for path in FILES).items() if times > 1]
    assert not twice
    for name in shipped_configs():
        assert name.isidentifier() and name == name.lower()  # neither a suffix nor a separator


def test_a_name_is_its_file():
    config = load_config("detection_small", ["train.epochs=2"])
    assert config == load_config(str(CONFIGS / "detection_small.yaml"), ["train.epochs=2"])
    assert config.name == "detection_small"
    assert find_config(Path("detection_small")) == shipped_configs()["detection_small"]
    with pytest.raises(ConfigError) as caught:
        load_config("detection_small", ["train.lrr=1", "head.typo=1"])
    assert "override train.lrr=1" in str(caught.value)


def test_errors_in_a_shipped_config_name_its_file_and_line(empty_folder, monkeypatch):
    (empty_folder / "configs").mkdir()
    file = empty_folder / "configs" / "broken.yaml"
    file.write_text("task: detection\nhead:\n  typo: 1\n")
    monkeypatch.setattr(shipped, "PACKAGE", empty_folder)
    with pytest.raises(ConfigError) as caught:
        load_config("broken")
    assert f"{file}:3: head.typo: unknown key" in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_lies_in_the_current_directory_does_not_change_what_a_name_means(kind, empty_folder):
    path = empty_folder / "detection_small"
    path.mkdir() if kind == "folder" else path.write_text("task: embedding\n")
    assert find_config("detection_small") == shipped_configs()["detection_small"]
    (empty_folder / "configs").mkdir()
    (empty_folder / "configs" / "detection_small.yaml").write_text("task: embedding\n")
    assert find_config("detection_small") == shipped_configs()["detection_small"]


def test_a_copy_in_the_current_directory_needs_its_suffix(empty_folder, caplog):
    (empty_folder / "vae.yaml").write_text("task: embedding\n")
    with caplog.at_level(logging.WARNING, "visionkit"):
        assert find_config("vae") == shipped_configs()["vae"]
        assert "for the file there write vae.yaml" in caplog.text
        caplog.clear()
        for own in ("vae.yaml", "./vae.yaml", str(empty_folder / "vae.yaml")):
            assert find_config(own).samefile(empty_folder / "vae.yaml")
        assert find_config("autoencoder").stem == "autoencoder"
    assert not caplog.records


def test_a_path_stays_a_path(empty_folder):
    (empty_folder / "note").write_text("task: embedding\n")
    (empty_folder / "vae").write_text("")
    for path in ("./vae", "a/none", "note", "a.json"):
        assert find_config(path) == Path(path)
    with pytest.raises(ConfigError, match=r"^note: a config is a .yaml file"):
        load_config("note")


def test_a_missing_file_is_answered_with_those_like_it(empty_folder):
    (empty_folder / "configs").mkdir()
    for name in ("street.yaml", "stret2.yml", "street.txt"):
        (empty_folder / "configs" / name).write_text("task: embedding\n")
    with pytest.raises(ConfigError) as caught:
        load_config("configs/stret.yaml")
    text = f"configs/stret.yaml: not found (relative to {empty_folder}); nearest: "
    assert str(caught.value) in (f"{text}street.yaml, stret2.yml", f"{text}stret2.yml, street.yaml")
    with pytest.raises(ConfigError, match=r"^nowhere/x.yaml: not found \(relative to \S+\)$"):
        load_config("nowhere/x.yaml")
    with pytest.raises(ConfigError, match=r"STREET.yaml: not found .*'street.yaml', with other"):
        load_config("configs/STREET.yaml")


def test_a_run_directory_is_answered_with_its_config(empty_folder):
    (empty_folder / "run").mkdir()
    (empty_folder / "run" / "config.yaml").write_text("task: embedding\n")
    with pytest.raises(ConfigError, match=r"^run: .*that of this run is run/config.yaml"):
        load_config("run")


def test_a_typo_is_answered_with_the_nearest_three():
    with pytest.raises(ConfigError) as caught:
        load_config("detecton_small")
    text = str(caught.value)
    assert "unknown config 'detecton_small', neither a file nor a shipped config" in text
    assert "did you mean 'detection_small'?" in text and "`visionkit list configs`" in text
    valid = text.partition("valid: ")[2].partition(" and ")[0].split(", ")
    assert len(valid) == 3 and "detection_small" in valid


def test_a_path_of_the_clone_is_answered_with_the_name():
    for path in ("configs/detection_small.yaml", "detection_small.yaml", "./detection_small"):
        with pytest.raises(ConfigError, match=r"not found .* name is 'detection_small'"):
            load_config(path)


def test_an_installed_package_has_its_configs_inside(empty_folder, monkeypatch):
    package = empty_folder / "site-packages" / "visionkit"
    (package / "configs" / "torchvision").mkdir(parents=True)
    strange = package.parent / "configs"  # of another package
    strange.mkdir()
    (strange / "strange.yaml").write_text("")
    monkeypatch.setattr(shipped, "PACKAGE", package)
    assert shipped_configs() == {}
    file = package / "configs" / "torchvision" / "one.yaml"
    file.write_text("task: detection\n")
    assert shipped_configs() == {"one": file}


def test_the_list_says_what_each_config_is_and_is_good_for():
    listed = {config.name: config for config in list_configs()}
    assert listed.keys() == shipped_configs().keys()
    assert [config.group for config in list_configs()] == sorted(c.group for c in listed.values())
    for name, found in listed.items():
        config = load_config(name)
        assert found.heads == tuple(head["type"] for head in config.heads.values())
        assert found.backbone == config.backbone.get("name", config.backbone["type"])
        assert found.task == (next(iter(config.heads)) if len(found.heads) == 1 else "joint")
        assert found.path.stem == name
        first = found.path.read_text().split("\n")[0]
        assert first == f"# {found.summary}" and 40 < len(first) < 120
        assert first.isascii() and first.endswith(".") and ". " not in first  # one sentence
        assert found.group == (found.path.parts[-2] if found.group else "")
    small = listed["detection_small"]
    assert (small.task, *small.heads, small.backbone) == ("detection", "TaskAligned", "LightResNet")


def test_a_config_in_the_list_may_have_a_base(empty_folder, monkeypatch):
    folder = empty_folder / "configs" / "torchvision"
    folder.mkdir(parents=True)
    head, backbone = "head: {type: FCOS}\n", "backbone: {type: MLP}\n"
    (folder / "one.yaml").write_text(f"# One.\ntask: detection\n{head}{backbone}")
    (folder.parent / "two.yaml").write_text("# Two.\nbase: one\nhead: {type: TaskAligned}\n")
    monkeypatch.setattr(shipped, "PACKAGE", empty_folder)
    two, one = list_configs()
    assert (two.name, two.task, two.heads, two.backbone) == (
        "two", "detection", ("TaskAligned",), "MLP"
    )  # fmt: skip
    assert (one.name, one.summary, one.group) == ("one", "One.", "torchvision")


def test_the_text_of_the_list_is_aligned_in_groups():
    ours, others = shipped.describe_configs().split("\n\n")[:2]
    for text, group in ((ours, ""), (others, "torchvision")):
        title, *lines = text.split("\n")
        assert title == f"{shipped.FOLDERS[group]}:"
        configs = [config for config in list_configs() if config.group == group]
        assert lines[1::2] == [f"    {config.summary}" for config in configs]
        starts = {}
        for line, config in zip(lines[::2], configs, strict=True):
            cells = re.split(r"  +", line)
            assert cells == [config.name, config.task, config.backbone, ", ".join(config.heads)]
            for index, cell in enumerate(cells[1:]):
                starts.setdefault(index, set()).add(line.index(f" {cell}", len(config.name)))
        assert [len(places) for places in starts.values()] == [1, 1, 1]


def test_names_are_found_without_torch():
    code = (
        "import sys; from visionkit.cli.main import main; "
        "from visionkit.config.shipped import find_config; find_config('detection'); "
        "assert main(['list', 'configs']) == 0; import visionkit; "
        "assert visionkit.list_configs()[0].task; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
