"""A class outside visionkit is imported on the user's word alone, not on that of a checkpoint."""

import copy
import os
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import visionkit
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.config.components import SETTING
from visionkit.errors import ConfigError
from visionkit.runs import checkpoint

STRANGER = """
from pathlib import Path
Path({marker!r}).open("a").write("ran\\n")
from visionkit.data.datasets import Shapes
from visionkit.data.transforms import HorizontalFlip
from visionkit.models.backbones import MLP
from visionkit.models.heads import Embedding
class Net(MLP): ...
class Head(Embedding): ...
class Data(Shapes): ...
class Flip(HorizontalFlip): ...
"""

SPLIT = {"type": "stranger.Data", "num_images": 16, "size": 32}
CONFIG = {
    "backbone": {"type": "stranger.Net", "size": 16, "hidden": [8]},
    "heads": {"place": {"type": "stranger.Head"}},
    "data": {
        "workers": 0,
        "made": {
            "feeds": ["place"],
            "batch_size": 4,
            "images_per_identity": 2,
            "image_size": 16,
            "transforms": [{"type": "stranger.Flip"}],
            "train": SPLIT,
            "val": {**SPLIT, "seed": 1},
        },
    },
    "train": {"steps": 1, "plots": False, "device": "cpu"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with stranger.py, and a run that its classes made."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "stranger.py").write_text(STRANGER.format(marker=str(folder / "marker")))
    (folder / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """In that folder, with nothing of it imported yet."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(place))])
    monkeypatch.delenv(SETTING, raising=False)
    for name in ("stranger", "heads", "resnet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (place / "marker").unlink(missing_ok=True)


@pytest.fixture
def run(place):
    if not (place / "run").exists():
        assert main(["train", "own.yaml", "output=run"]) == 0
        sys.modules.pop("stranger")
        (place / "marker").unlink()
    return "run"


def imported():
    return Path("marker").exists() or "stranger" in sys.modules


VERBS = {
    "eval": ["eval", "run"],
    "predict": ["predict", "run/checkpoints/last.pt", "a.png", "--out", "out"],
    "search": ["search", "run", "a.png", "a.png", "--out", "found"],
    "resume": ["train", "--resume", "run", "train.steps=2"],
    "init_from": ["config", "grown.yaml"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_runs_own_word_imports_nothing(run, verb, capsys):
    grown = {"init_from": run, "heads": {"kind": {"type": "Classification"}}}
    shapes = {"type": "Shapes", "num_images": 16, "size": 32}
    grown["data"] = {"new": {"feeds": ["kind"], "image_size": 16, "train": shapes}}
    Path("grown.yaml").write_text(yaml.safe_dump(grown))
    assert main(VERBS[verb]) == 2
    told = capsys.readouterr().err
    assert not imported()
    source = "run/config.yaml" if verb == "resume" else "run/checkpoints/"
    for part in (source, "heads.place.type: stranger.Head", "backbone.type: stranger.Net",
                 "would import stranger", "--allow-plugins", f"{SETTING}=1",
                 "allow_plugins=True"):  # fmt: skip
        assert part in told
    assert "Traceback" not in told


def test_the_user_may_allow_it(run, monkeypatch, capsys):
    assert main([*VERBS["eval"], "--allow-plugins"]) == 0 and imported()
    assert main([*VERBS["resume"], "--allow-plugins"]) == 0
    monkeypatch.setenv(SETTING, "1")
    assert main(VERBS["predict"]) == 0
    assert main(["config", "own.yaml", "init_from=run"]) == 0
    for value in ("0", "", "no"):
        monkeypatch.setenv(SETTING, value)
        with pytest.raises(ConfigError, match="allow_plugins=True"):
            visionkit.load(run)
    assert visionkit.load(run, allow_plugins=True).predict("a.png").embedding.shape
    assert "place/recall@1" in visionkit.evaluate(run, allow_plugins=True)


def test_a_config_that_the_user_names_needs_no_permission(run):
    """The command line may also name the file that a run has written, and a resumed run."""
    for words in (["own.yaml"], ["run/config.yaml"], ["own.yaml", "head.margin=0.3"]):
        assert main(["config", *words]) == 0
    assert main(["train", "own.yaml", "--resume", "output=run", "train.steps=3"]) == 0
    assert imported()


KEYS = {
    "backbone": ("backbone",),
    "neck": ("neck",),
    "head": ("heads", "place"),
    "training data": ("data", "made", "train"),
    "validation data": ("data", "made", "val"),
    "transform": ("data", "made", "transforms", 0),
    "backbone, short form": ("backbone",),
    "head, short form": ("head",),
    "data, short form": ("data", "train"),
    "validation data, short form": ("data", "val"),
    "transform, short form": ("data", "transforms", 0),
}


def ours(short):
    """The config with visionkit's classes, in the short form or the long."""
    split = {**SPLIT, "type": "Shapes"}
    source = {"transforms": [{"type": "HorizontalFlip"}], "image_size": 16}
    source |= {"train": dict(split), "val": dict(split)}
    spec = {"backbone": {"type": "MLP", "size": 16}, "neck": {"type": "FPN"}}
    head = {"type": "Embedding"}
    if short:
        return {**spec, "task": "embedding", "head": head, "data": source}
    return {**spec, "heads": {"place": head}, "data": {"made": {"feeds": ["place"], **source}}}


@pytest.mark.parametrize("form", KEYS)
def test_every_place_that_names_a_class_is_looked_at(form):
    spec = ours("short" in form)
    load_config(spec, origin="last.pt")
    assert os.getcwd() not in sys.path  # where only visionkit's own classes are looked for
    section = copy.deepcopy(spec)
    target = section
    for part in KEYS[form]:
        target = target[part]
    target["type"] = "stranger.Anything"
    for overrides in ((), ["train.lr=1", ".".join(map(str, KEYS[form])) + ".type=MLP"]):
        with pytest.raises(ConfigError, match=r"last\.pt: .*stranger\.Anything"):
            load_config(section, overrides, origin="last.pt")
        assert not imported()
    with pytest.raises(ConfigError):  # the control: on the user's word it is looked for
        load_config(section)
    assert imported()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("head", "heads.Head"),  # heads.py lies in the current folder
        ("data", "resnet.Backbone"),  # resnet.py is in the current folder too
        ("data", "subprocess.Popen"),  # imported already, and runs its arguments
        ("data", "visionkit.data.image_io.Image"),  # visionkit's, but not a dataset
        ("data", "images.Path"),  # visionkit's module imports it, but it is not visionkit's
        ("head", "classification.nn"),
        ("head", "visionkit.cli.main.main"),
    ],
)
def test_only_components_of_that_section_are_visionkits(place, key, name):
    for module in ("heads", "resnet"):
        (place / f"{module}.py").write_text((place / "stranger.py").read_text())
    spec = ours(short=False)
    target = spec["heads"]["place"] if key == "head" else spec["data"]["made"]["val"]
    target.clear()
    target |= {"type": name, "args": ["touch", "marker"]}
    with pytest.raises(ConfigError, match="would import"):
        load_config(spec, origin="last.pt")
    assert not Path("marker").exists() and not {"heads", "resnet"} & sys.modules.keys()


def test_a_checkpoints_config_names_no_other_file(run, tmp_path):
    """Only a mapping is a config; a name in its place would be read as the user's own."""
    state = checkpoint.load("run/checkpoints/last.pt")
    checkpoint.save({**state, "config": "own.yaml"}, tmp_path / "x.pt")
    assert main(["eval", str(tmp_path / "x.pt")]) == 4
    assert not imported()


@pytest.mark.parametrize("key", ["train", "weights", "output", "init_from"])
def test_file_names_in_a_strangers_config_cause_no_more_than_an_error(place, tmp_path, key, capsys):
    """They are opened for reading where they are needed."""
    spec = load_config(ours(short=False)).to_dict()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntouch marker\n")
    program.chmod(0o755)
    if key == "train":
        for split in ("train", "val"):
            spec["data"]["made"][split] = {
                "type": "Coco",
                "images": str(tmp_path),
                "annotations": str(program),
            }
    else:
        spec[key] = {"run": str(program), "heads": []} if key == "init_from" else str(program)
    state = {"config": spec, "classes": {"place": {"names": [], "ids": []}}, "model": {}}
    checkpoint.save(state, tmp_path / "x.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["eval", str(tmp_path / "x.pt")]) in (2, 3, 4)
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert program.read_text().startswith("#!/bin/sh") and not Path("marker").exists()
