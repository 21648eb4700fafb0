"""load_config: both forms, every kind of problem in one report, and the way back."""

import os
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from visionkit.config import Config, SourceConfig, TrainConfig, load_config, missing_paths, tasks
from visionkit.config.components import components
from visionkit.config.tasks import Task
from visionkit.errors import ConfigError

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

PARTS = """
from typing import Literal
from torch import nn
from visionkit.config.schema import Count, Fraction, InputPath
from visionkit.models.head import Head
from visionkit.types import Level

class Net(nn.Module):
    levels: dict[str, Level]
    def forward(self, images, sizes=None): ...
    def __init__(self, *, depth: Literal[18, 50] = 18, weights: str | None = None): ...

class Neck(nn.Module):
    levels: dict[str, Level]
    def forward(self, features, sizes=None): ...
    def __init__(self, levels, *, channels: Count = 256): ...

class Whole(Head):
    required_targets, main_metric = ("labels",), "score"
    def loss(self, features, batch): ...
    forward = decode = evaluator = loss

class Boxes(Whole):
    default_transforms = ("toy.Flip",)
    def __init__(self, levels: dict[str, Level], classes: list[str], *, convs: Count = 4): ...

class Plain(Whole):
    default_transforms = ()
    def __init__(self, levels, classes): ...

class Tags(Whole):
    def __init__(self, levels, classes, *, dropout: Fraction = 0.0): ...

class Read:
    keys, classes = (), {}
    def __len__(self): ...
    def __getitem__(self, index): ...

class Files(Read):
    def __init__(self, images: InputPath, annotations: InputPath, *, exif: bool = True): ...

class Made(Read):
    def __init__(self, *, num_images: Count = 10, seed: int = 0): ...

class Flip:
    def __call__(self, sample, rng, size): ...
    def __init__(self, *, p: Fraction = 0.5): ...
"""


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    """A module of small components in the current directory, and a task that is made of them."""
    (tmp_path / "toy.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    task = Task("toy.Boxes", "toy.Files", "toy.Neck", "toy.Net")
    monkeypatch.setitem(tasks.TASKS, "toys", task)
    yield
    sys.modules.pop("toy", None)


SHORT = """\
task: toys
backbone: {depth: 50}
head: {convs: 2}
data:
  train: {images: a, annotations: b}
  image_size: 64
train: {epochs: 3, lr: 1e-3}
"""

LONG = """\
backbone: {type: toy.Net}
heads:
  boxes: {type: toy.Boxes, weight: 2}
  tags: {type: toy.Tags}
data:
  workers: 0
  street: {feeds: [boxes, tags], train: {type: toy.Made}, transforms: []}
  places: {feeds: [tags], image_size: [32, 64], val: {type: toy.Made, seed: 1}}
train: {best_metric: places/tags/top1}
"""


def load(text, *overrides):
    Path("c.yaml").write_text(text)
    return load_config("c.yaml", overrides)


def problems(text, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


def test_short_form_becomes_long_form():
    config = load(SHORT)
    assert config == Config(
        name="c",
        backbone={"type": "toy.Net", "depth": 50},
        neck={"type": "toy.Neck"},
        heads={"toys": {"type": "toy.Boxes", "weight": 1.0, "convs": 2}},
        data={
            "main": SourceConfig(
                feeds=["toys"],
                batch_size=8,
                image_size=64,
                transforms=[{"type": "toy.Flip"}],
                train={"type": "toy.Files", "images": "a", "annotations": "b"},
                val=None,
            )
        },
        workers=min(2, os.cpu_count()),
        train=TrainConfig(epochs=3, lr=0.001),
        weights=None,
        output=None,
    )


def test_null_is_no_neck_and_an_empty_list_no_augmentation():
    config = load(SHORT + "neck: null\n", "data.transforms=[]")
    assert config.neck is None
    assert config.data["main"].transforms == []


def test_long_form():
    config = load(LONG)
    assert config.neck is None and config.workers == 0
    assert config.heads["boxes"] == {"type": "toy.Boxes", "weight": 2.0}
    assert config.data["places"].image_size == (32, 64)
    assert config.data["street"].transforms == []
    assert config.data["places"].transforms == []  # a custom head


def test_default_transforms_belong_to_the_class(tmp_path):
    """Whatever leads to it: its name, its import path, a class derived from it."""
    for name in ("FCOS", "visionkit.models.heads.FCOS", "visionkit.models.heads.fcos.FCOS"):
        assert tasks.default_transforms([name]) == tasks.default_transforms(["FasterRCNN"])
    code = "from visionkit.models.heads import FCOS\nclass Derived(FCOS): ...\n"
    (tmp_path / "toy_heads.py").write_text(code)
    assert tasks.default_transforms(["toy_heads.Derived"]) == tasks.default_transforms(["FCOS"])
    heads = {"objects": {"type": "toy_heads.Derived"}}
    data = {"main": {"feeds": ["objects"], "train": {"type": "Shapes"}}}
    config = load_config({"backbone": {"type": "toy.Net"}, "heads": heads, "data": data})
    assert config.data["main"].transforms == tasks.default_transforms(["FCOS"])


def test_a_short_form_with_a_custom_head_has_the_transforms_of_its_class_or_of_the_task():
    both = [{"type": "HorizontalFlip"}, {"type": "RandomResizedCrop"}]
    short = {"task": "classification", "data": {"train": {"root": "x"}}}
    flip = [{"type": "toy.Flip"}]
    for head, expected in (("toy.Tags", both), ("toy.Boxes", flip), ("toy.Plain", [])):
        config = load_config({**short, "head": {"type": head}})
        assert config.data["main"].transforms == expected


def test_default_transforms_of_several_heads_are_the_ones_they_share():
    flip = {"type": "HorizontalFlip"}
    assert tasks.default_transforms(["FasterRCNN"])[0] == flip
    assert len(tasks.default_transforms(["FasterRCNN"])) == 2
    both = ["FasterRCNN", "Classification"]
    assert tasks.default_transforms(both) == [flip]
    assert tasks.default_transforms([*both, "toy.Boxes"]) == []
    assert tasks.default_transforms(["toy.Boxes"]) == [{"type": "toy.Flip"}]
    assert tasks.default_transforms(["toy.Tags"]) == []


def test_every_head_has_default_transforms():
    found = {name: len(tasks.default_transforms([name])) for name in components("heads")}
    only_flips = {"Autoencoder", "VAE"}
    assert found == {name: 1 if name in only_flips else 2 for name in found}
    for objects in ("FCOS", "FCN", "Attributes"):
        assert tasks.default_transforms([objects])[1] == {"type": "ScaleJitter"}


@pytest.mark.parametrize("text", [SHORT, LONG, SHORT.replace("epochs: 3", "steps: 9")])
def test_resolved_config_reloads_to_itself(text):
    config = load(text)
    assert load_config(config.to_dict()) == config
    Path("again.yaml").write_text(config.to_yaml())
    assert load_config("again.yaml") == config
    assert config.to_dict()["name"] == "c"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_reload_to_themselves(path, tmp_path):
    config = load_config(path)
    assert len(path.read_text().splitlines()) <= 50
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    assert load_config(config.to_dict()) == config


def test_the_callers_dict_is_not_changed():
    given = {"task": "toys", "data": {"train": {"images": Path("a"), "annotations": "b"}}}
    config = load_config(given, {"train.epochs": 2, "data.batch_size": 4})
    assert given == {"task": "toys", "data": {"train": {"images": Path("a"), "annotations": "b"}}}
    assert config.data["main"].train["images"] == "a"
    assert (config.name, config.train.epochs, config.data["main"].batch_size) == ("run", 2, 4)


def test_what_is_no_config():
    for wrong in (3, None, ["task"], {5: 1}, {"data": {5: {}}}):
        with pytest.raises(ConfigError, match="config"):
            load_config(wrong)


def test_all_problems_are_told_at_once_with_their_lines():
    text = """\
task: toys
backbone: {type: toy.Net, depht: 50}
neck: {channels: 0}
head: {convs: 2.5, weight: -1}
data:
  train: {images: a, anotations: b}
  image_size: [64, 32]
  batch_size: true
  workers: -1
  transforms: [{type: toy.Flip, p: 2}, {p: 1}]
train:
  epochs: ten
  lr: .nan
  ema: 1
  optmizer: sgd
  freeze: [ok, "("]
  best_metric: toy/AP
  seed: 4294967296
weight: x
"""
    assert problems(text) == [
        "c.yaml:2: backbone.depht: unknown key; did you mean 'depth'? valid: depth, weights",
        "c.yaml:3: neck.channels: got 0; expected an integer >= 1",
        "c.yaml:4: head.convs: got 2.5; expected an integer >= 1",
        "c.yaml:4: head.weight: got -1; expected a number >= 0",
        "c.yaml:6: data.train.annotations: missing; expected a path",
        "c.yaml:6: data.train.anotations: unknown key; did you mean 'annotations'? "
        "valid: annotations, exif, images",
        "c.yaml:7: data.image_size: got [64, 32]; expected [shortest, longest]",
        "c.yaml:8: data.batch_size: got True; expected an integer >= 1",
        "c.yaml:9: data.workers: got -1; expected an integer >= 0 and <= 256",
        "c.yaml:10: data.transforms.0.p: got 2; expected a number >= 0 and <= 1",
        *[p for p in problems(text) if ":10: data.transforms.1: missing 'type'; valid: " in p],
        "c.yaml:12: train.epochs: got 'ten'; expected an integer >= 1 or null",
        "c.yaml:13: train.lr: got nan; expected a number > 0",
        "c.yaml:14: train.ema: got 1.0; expected a number >= 0 and < 1",
        *[p for p in problems(text) if ":15: train.optmizer: unknown key; did you mean " in p],
        "c.yaml:16: train.freeze.1: got '(', which is not a regular expression: "
        "missing ), unterminated subpattern at position 0",
        "c.yaml:17: train.best_metric: got 'toy/AP'; expected head/metric, with a head; "
        "did you mean 'toys'? valid: toys",
        "c.yaml:18: train.seed: got 4294967296; expected an integer >= 0 and <= 4294967295",
        "c.yaml:19: weight: unknown key; did you mean 'weights'? "
        "valid: backbone, base, data, head, init_from, name, neck, output, partial_weights, "
        "rename, task, train, version, weights",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("feeds: [tags]", "feeds: [tag]", "c.yaml:8: data.places.feeds: unknown head 'tag'; "
         "did you mean 'tags'? valid: boxes, tags"),
        ("feeds: [boxes, tags]", "feeds: [tags]", "c.yaml:3: heads.boxes: no source feeds it"),
        ("feeds: [boxes, tags]", "feeds: [boxes, boxes]", "expected each head once"),
        ("feeds: [tags]", "feeds: []", "c.yaml:8: data.places.feeds: got []; expected at least"),
        ("feeds: [tags]", "feeds: [tags], labeled_classes: []", "labeled_classes: got []"),
        ("feeds: [tags], ", "", "c.yaml:8: data.places.feeds: missing; expected a list"),
        (", val: {type: toy.Made, seed: 1}", "", "data.places: has neither 'train' nor 'val'"),
        ("places/tags/top1", "places/tag/top1", "train.best_metric: got 'places/tag/top1'"),
        ("places/tags/top1", "tags", "c.yaml:9: train.best_metric: got 'tags'"),
        ("{best_metric: places/tags/top1}", "{epochs: 1, steps: 2}", "train.steps: conflicts"),
        ("{best_metric: places/tags/top1}", "{epochs: null}", "train.epochs: got null, and no"),
        ("  tags: {", "  keys: {", "c.yaml:4: heads.keys: 'keys' is a reserved name"),
        ("  places: {", "  batch_size: {", "'batch_size' is a reserved name"),
        ("  places: {", "  a/b: {", "got the name 'a/b'; expected letters"),
        ("backbone: {type: toy.Net}", "", "c.yaml: backbone: missing; expected a mapping"),
        ("backbone: {type: toy.Net}", "backbone: toy.Net", "got 'toy.Net'; expected a map"),
        ("{type: toy.Tags}", "{type: toy.Tag}", "unknown type 'toy.Tag'; did you mean 'toy.Tags'?"),
        ("{type: toy.Tags}", "{type: toy.Net}", "heads.tags.type: toy.Net: it must derive from"),
        ("{type: toy.Tags}", "{type: toy.Tags, levels: 1}", "heads.tags.levels: unknown key"),
        ("{type: toy.Tags}", "{type: 3}", "got 3; expected the name of a component or"),
        ("data:\n", "task: toys\ndata:\n", "c.yaml:2: heads: conflicts with 'task' (c.yaml:5)"),
        ("data:\n", "name: ../x\ndata:\n", "c.yaml:5: name: got '../x'"),
    ],
)  # fmt: skip
def test_problems_of_the_long_form(old, new, expected):
    assert old in LONG
    assert expected in "\n".join(problems(LONG.replace(old, new, 1)))


def test_missing_sections():
    names = ", ".join(tasks.TASKS)
    assert problems("name: x\n") == [
        f"c.yaml: missing 'task' ({names}) or, for several heads, 'heads'"
    ]
    assert problems("task: toyz\ntrain: {lr: 0}\n") == [
        f"c.yaml:1: task: unknown task 'toyz'; did you mean 'toys'? "
        f"valid: {', '.join(sorted(tasks.TASKS))}",
        "c.yaml:2: train.lr: got 0; expected a number > 0",
    ]
    assert problems("task: toys\n") == [
        "c.yaml: data: has neither 'train' nor 'val'; expected a dataset for one of them"
    ]
    assert (
        "c.yaml: data: has no source; expected one with 'feeds' and 'train' or 'val'"
        in problems("heads: {a: {type: toy.Tags}}\n")
    )
    assert problems("task: toys\ndata: 3\n") == [
        "c.yaml:2: data: got 3; expected a mapping or null"
    ]


def test_a_component_that_cannot_be_imported_says_why():
    Path("toy_broken.py").write_text("import toy_is_not_installed\n")
    found = problems(SHORT.replace("{convs: 2}", "{type: toy_broken.Head}"))
    assert found == [
        "c.yaml:3: head.type: cannot import toy_broken: ModuleNotFoundError: "
        "No module named 'toy_is_not_installed'"
    ]


def test_missing_paths_name_the_key_and_only_the_asked_splits():
    config = load(SHORT.replace("depth: 50", "weights: w.pth") + "weights: all.pth\n")
    Path("a").mkdir()
    missing = f"; not found (relative to {Path.cwd()})"
    assert missing_paths(config) == [
        f"weights: got 'all.pth'{missing}",
        f"backbone.weights: got 'w.pth'{missing}",
        f"data.train.annotations: got 'b'{missing}",
    ]
    assert missing_paths(config, ("val",)) == []
    assert (
        missing_paths(load(SHORT.replace("depth: 50", "weights: default")))[0][:10] == "data.train"
    )
