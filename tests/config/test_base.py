"""`base:` and `version:`: what a config keeps of its base, and where its values are from."""

import logging
from itertools import pairwise
from typing import get_args

import pytest
from test_config import LONG, SHORT, parts  # noqa: F401

from visionkit.config import load_config, validate
from visionkit.config.config import VERSION
from visionkit.config.yaml import parse
from visionkit.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*overrides])
    return str(caught.value).split("\n")


def test_a_base_is_changed_and_not_read_alone(write):
    write(
        a=SHORT, b="base: a.yaml\ntrain: {lr: 0.5}\ndata: {batch_size: 3, val: null}\nneck: null\n"
    )
    plain = load_config(
        "a.yaml", ["train.lr=0.5", "data.batch_size=3", "data.val=null", "neck=null"]
    )
    assert plain.data["main"].val is None and plain.neck is None
    based = load_config("b.yaml")
    assert based.to_dict() == {**plain.to_dict(), "name": "b"}
    assert "base" not in based.to_dict()


@pytest.mark.parametrize(
    ("base", "child"),
    [
        (SHORT, "train.lr=0.5"),
        (SHORT, "train.steps=7"),
        (SHORT, "backbone.depth=50"),
        (SHORT, "head.type=toy.Tags"),
        (SHORT, "head={type: toy.Tags, dropout: 0.5}"),
        (SHORT, "data.transforms=[]"),
        (SHORT, "data.train={type: toy.Made, seed: 4}"),
        (SHORT, "neck=null"),
        (SHORT, "train.freeze=[a, b]"),
        (LONG, "heads.tags={type: toy.Plain, weight: 3}"),
        (LONG, "heads.boxes.type=toy.Tags"),
        (LONG, "data.workers=0"),
    ],
)
def test_a_base_is_changed_as_by_overrides(base, child, write):
    key, _, value = child.partition("=")
    nested = parse(value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    write(a=base)
    assert load_config({"base": "a.yaml", **nested, "name": "a"}) == load_config("a.yaml", [child])


def test_mappings_are_merged_and_lists_replaced(write):
    write(
        a=SHORT + "rename: {a: b, c: d}\nweights: w.pt\n",
        b="base: a.yaml\nrename: {c: e, 'f.g': h}\ndata: {}\nhead: {}\n"
        "train: {lr_scale: {'^x': 2}, freeze: [z]}\n",
    )
    config = load_config("b.yaml", ["train.lr_scale={}"])
    assert config.rename == {"a": "b", "c": "e", "f.g": "h"}
    assert load_config("b.yaml").train.lr_scale == {"^x": 2.0}
    assert config.train.freeze == ["z"]
    before = load_config("a.yaml")
    assert config.heads == before.heads and config.data == before.data


def test_a_value_of_another_kind_replaces_the_whole(write):
    scores = "train: {best_metric: toys/AP}\n"
    write(a="task: toys\n" + scores, b="base: a.yaml\ntrain: {best_metric: {toys/AR: 1}}\n")
    write(c="base: b.yaml\n" + scores)
    data = {"data.train.images": "i", "data.train.annotations": "j"}
    assert load_config("b.yaml", data).train.best_metric == {"toys/AR": 1.0}
    assert load_config("c.yaml", data).train.best_metric == "toys/AP"


def test_another_type_starts_a_section_again(write):
    write(
        a="task: toys\nhead: {type: toy.Boxes, convs: 2, weight: 3}\n"
        "data: {train: {type: toy.Made, num_images: 3}}\n",
        b="base: a.yaml\nhead: {type: toy.Tags}\n",
        c="base: a.yaml\nhead: {type: toy.Boxes}\ndata: {train: {seed: 2}}\n",
    )
    head = {"type": "toy.Tags", "weight": 3.0}
    assert load_config("b.yaml").heads["toys"].items() >= head.items()
    assert "convs" not in load_config("b.yaml").heads["toys"]
    assert load_config("c.yaml").heads["toys"]["convs"] == 2
    assert load_config("c.yaml").data["main"].train == {
        "type": "toy.Made", "num_images": 3, "seed": 2,
    }  # fmt: skip


def test_an_empty_mapping_is_a_value_where_the_type_changed(write, tmp_path):
    code = "    def __init__(self, levels, classes, *, options: dict[str, int] = {'x': 1}): ...\n"
    with (tmp_path / "toy.py").open("a") as file:
        file.write(f"\nclass Options(Whole):\n{code}\nclass Other(Options):\n{code}\n")
    write(
        a="task: toys\nhead: {type: toy.Options, options: {y: 2}}\n"
        "data: {train: {type: toy.Made}}\n",
        b="base: a.yaml\nhead: {type: toy.Other, options: {}}\n",
        c="base: a.yaml\nhead: {options: {}}\n",
        d="base: a.yaml\nhead: {type: toy.Other, options: {z: 3}}\n",
    )
    assert load_config("b.yaml").heads["toys"]["options"] == {}
    assert load_config("c.yaml").heads["toys"]["options"] == {"y": 2}
    assert load_config("d.yaml").heads["toys"]["options"] == {"z": 3}


def test_another_task_starts_the_head_again_and_a_neck_that_it_does_not_have():
    def types(config):
        head = {key: next(iter(config.heads.values()))[key] for key in ("type", "weight")}
        return head["type"], config.neck and config.neck["type"]

    masks = load_config({"base": "detection", "task": "instance_segmentation"})
    assert types(masks) == ("MaskRCNN", "FPN") and masks.neck["channels"] == 64
    assert types(load_config("detection", ["task=instance_segmentation"])) == ("MaskRCNN", "FPN")
    vectors = load_config(
        {"base": "detection", "task": "embedding", "head": {"loss": "contrastive"}}
    )
    assert types(vectors) == ("Embedding", None)
    assert vectors.heads["embedding"]["loss"] == "contrastive"
    pixels = load_config({"base": "classification", "task": "semantic_segmentation"})
    assert types(pixels) == ("SemanticFPN", "FPN")
    with pytest.raises(ConfigError, match="unknown task 'detecton'"):
        load_config({"base": "detection", "task": "detecton"})


def test_arguments_of_another_dataset_change_its_type(caplog):
    caplog.set_level(logging.INFO, "visionkit")
    data = {"train": {"images": "i", "annotations": "j"}, "val": {"images": "i"}}
    with pytest.raises(ConfigError, match=r"data.val.annotations: missing"):
        load_config({"base": "detection_small", "data": data})
    del data["val"]
    config = load_config({"base": "detection_small", "data": data})
    assert config.data["main"].train["type"] == "Coco"
    assert config.data["main"].val["type"] == "Shapes"
    assert "data.train: dataset type set to Coco, inferred from images=" in caplog.text


def test_short_keys_fit_a_complete_config(write):
    write(a=load_config("detection_small").to_yaml())
    config = load_config(
        {"base": "a.yaml", "head": {"max_detections": 7}, "data": {"batch_size": 2}}
    )
    assert config.heads["detection"]["max_detections"] == 7
    assert config.data["main"].batch_size == 2
    assert config.name == "detection_small"


def test_both_forms_at_once_are_refused_with_both_places(write):
    write(a=SHORT, b="base: a.yaml\nheads:\n  one: {type: toy.Tags}\ndata: {x: {feeds: [one]}}\n")
    assert problems("b.yaml") == [
        "b.yaml:2: heads: conflicts with 'task' (a.yaml:1), which is one head; give one of them"
    ]
    write(a=LONG, b="base: a.yaml\ntask: toys\n")
    assert problems("b.yaml")[0].startswith("a.yaml:2: heads: conflicts with 'task' (b.yaml:2)")


def test_a_chain_is_relative_to_each_file(write, tmp_path, monkeypatch):
    write(**{"x/a": SHORT, "x/b": "base: a.yaml\ntrain: {lr: 0.2, seed: 1}\n"})
    write(**{"y/c": "base: ../x/b.yaml\ntrain: {lr: 0.3}\n", "d": "base: y/c.yaml\n"})
    config = load_config("d.yaml")
    assert (config.name, config.train.lr, config.train.seed, config.train.epochs) == (
        "d",
        0.3,
        1,
        3,
    )
    (tmp_path / "z").mkdir()
    monkeypatch.chdir(tmp_path / "z")
    assert load_config("../y/c.yaml").train == config.train
    for base in (str(tmp_path / "x" / "b.yaml"), tmp_path / "x" / "b.yaml"):
        assert load_config({"base": base}).train.lr == 0.2


def test_a_link_has_the_base_of_its_file(write, tmp_path):
    """A config means the same through a link, wherever that is."""
    write(**{"x/a": SHORT, "x/b": "base: a.yaml\ntrain: {lr: 0.2}\n", "a": "task: wrong\n"})
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "folder").symlink_to(tmp_path / "x")
    (tmp_path / "link.yaml").symlink_to("y/folder/b.yaml")
    (tmp_path / "again.yaml").symlink_to("link.yaml")
    for path in ("x/b.yaml", "link.yaml", "again.yaml", "y/folder/b.yaml"):
        assert load_config(path).train.lr == 0.2
    (tmp_path / "x" / "a.yaml").unlink()
    assert f"base: a.yaml: not found (relative to {tmp_path / 'x'})" in problems("link.yaml")[0]


def test_a_shipped_config_is_a_base_by_its_name(write, caplog):
    write(vae="base: vae\ntrain: {epochs: 2}\n", other="base: vae\n")
    config = load_config("vae.yaml")
    assert config.train.epochs == 2 and config.heads == load_config({"base": "vae"}).heads
    caplog.clear()
    assert load_config("vae.yaml") == config and not caplog.records  # it cannot mean itself
    load_config("other.yaml")
    assert "is the shipped config; for the file there write vae.yaml" in caplog.text


def test_problems_name_the_file_and_the_line_they_are_in(write):
    write(
        a="task: toys\nhead:\n  convs: x\ntrain:\n  epochs: ten\n  lr: -1\n  optmizer: sgd\n"
        "data:\n  train: {type: toy.Made}\n  transforms:\n  - {type: toy.Flip, p: 7}\n",
        b="base: a.yaml\ntrain:\n  lr: fast\n  seed: -5\n",
        c="base: b.yaml\ntrain:\n  seed: -6\n  best: x\n",
    )
    found = problems("c.yaml", "train.ema=4")
    assert [line.partition(": got")[0].partition("; ")[0] for line in found] == [
        "a.yaml:3: head.convs",
        "a.yaml:5: train.epochs",
        "a.yaml:7: train.optmizer: unknown key",
        "a.yaml:11: data.transforms.0.p",
        "b.yaml:3: train.lr",
        "c.yaml:3: train.seed",
        "c.yaml:4: train.best: renamed to 'best_metric' in 0.2",
        "override train.ema=4: train.ema",
    ]
    flips = "  - {type: toy.Flip}\n  - {type: toy.Flip, p: 8}\n"
    write(d=f"base: a.yaml\ndata:\n  transforms:\n{flips}")
    assert "d.yaml:5: data.transforms.1.p: got 8" in "\n".join(problems("d.yaml"))
    write(e="base: f.yaml\n", f="train: {lr: 1}\n")
    assert problems("e.yaml")[0].startswith("e.yaml: missing 'task'")


def test_problems_of_a_dict_and_its_base(write):
    write(a=SHORT.replace("epochs: 3", "epochs: -3"))
    assert problems({"base": "a.yaml", "train": {"lr": "x"}}) == [
        "a.yaml:7: train.epochs: got -3; expected an integer >= 1 or null",
        "config: train.lr: got 'x'; expected a number > 0",
    ]


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c"], ["x", "b", "c", "b"]])
def test_a_circle_is_refused_with_its_names(circle, write):
    for name, base in pairwise([*circle, circle[0]] if circle[0] == "a" else circle):
        write(**{name: f"task: toys\nbase: ./{base}.yaml\n"})
    names = [f"{name}.yaml" for name in (circle if circle[0] == "x" else [*circle, circle[0]])]
    last = names[-2]
    (found,) = problems(f"{circle[0]}.yaml")
    assert found == (f"{last}:2: base: is circular: {' -> '.join(names)}; remove one of them")


def test_a_circle_through_a_link_is_refused(write, tmp_path):
    write(a="base: b.yaml\n")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    assert "is circular: a.yaml -> b.yaml" in problems("a.yaml")[0]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("street.yml", "b.yaml:2: base: street.yml: not found (relative to {}); nearest: street."),
        ("detecton", "b.yaml:2: base: unknown config 'detecton', neither a file nor a shipped"),
        ("configs/vae.yaml", "(relative to {}); the shipped config of that name is 'vae'"),
        ("[a.yaml, c.yaml]", "b.yaml:2: base: got ['a.yaml', 'c.yaml']; expected one file or the"),
        ("{a: b}", "b.yaml:2: base: got {{'a': 'b'}}; expected one file"),
        ("3", "b.yaml:2: base: got 3; expected one file"),
        ("note.txt", "note.txt: a config is a .yaml file\nb.yaml:2: base: names that file"),
        ("folder.yaml", "folder.yaml: cannot be read"),
        ("empty.yaml", "empty.yaml: is empty; a config begins with a line like"),
        ("twice.yaml", "twice.yaml:2:1: duplicate key 'task'"),
        ("items.yaml", "items.yaml:1: a config is a mapping"),
        ("''", "a config is a .yaml file"),
    ],
)
def test_what_is_no_base_is_refused(base, expected, write, tmp_path):
    write(street="", empty="", twice="task: toys\ntask: toys\n", items="- 1\n")
    (tmp_path / "note.txt").write_text("task: toys\n")
    (tmp_path / "folder.yaml").mkdir()
    write(b=f"task: toys\nbase: {base}\n")
    assert expected.format(tmp_path) in "\n".join(problems("b.yaml"))


def test_no_base_is_none(write):
    write(a=SHORT, b="base: null\n" + SHORT)
    assert load_config("b.yaml").to_dict() == {**load_config("a.yaml").to_dict(), "name": "b"}


def test_an_override_is_no_base(write):
    write(a=SHORT)
    for given in (["base=a.yaml"], {"base": "a.yaml"}):
        with pytest.raises(ConfigError, match=r"base: only a config file can name its base"):
            load_config("a.yaml", given)


def test_a_config_that_the_user_did_not_name_has_no_base(write):
    """It would open any file and show what is in it."""
    write(a=SHORT, b="base: a.yaml\n")
    for source in ("b.yaml", {"base": "a.yaml"}):
        for allowed in (False, True):
            with pytest.raises(ConfigError, match=r"^RUN: its config names a base; only a config"):
                load_config(source, origin="RUN", allow_plugins=allowed)


def test_the_custom_classes_of_a_base_are_those_of_its_config(write):
    write(a=SHORT, b="base: a.yaml\n")
    assert load_config("b.yaml").heads["toys"]["type"] == "toy.Boxes"


def test_the_version_is_that_of_this_visionkit_or_missing(write):
    assert get_args(validate.TOP["version"]) == (VERSION,)
    write(a=SHORT, b=f"version: {VERSION}\n" + SHORT)
    assert load_config("b.yaml").to_dict() == {**load_config("a.yaml").to_dict(), "name": "b"}
    assert load_config("a.yaml").to_yaml().startswith(f"version: {VERSION}\n")
    for wrong in ("0", "-1", "1.0", "true", "null", "'1'", "x"):
        write(c=f"version: {wrong}\n" + SHORT)
        assert problems("c.yaml")[0].startswith("c.yaml:1: version: got ")
        assert problems("c.yaml")[0].endswith("expected 1")


def test_a_newer_version_says_what_to_do_and_nothing_else(write):
    write(
        a="task: toys\nversion: 2\nnew_key: 1\n", b="base: a.yaml\n", c="version: 3\nbase: a.yaml\n"
    )
    newer = "a.yaml:2: version: got 2, this visionkit reads version 1; upgrade it: pip install "
    for path in ("a.yaml", "b.yaml"):
        (found,) = problems(path)
        assert found == newer + "--upgrade visionkit-torch"
    assert problems("c.yaml")[0].startswith("c.yaml:1: version: got 3")
    with pytest.raises(ConfigError, match=r"^RUN: version: got 2"):
        load_config({"version": 2}, origin="RUN")


def test_old_keys_are_answered_through_a_base_and_at_the_top(write):
    write(
        a="task: toys\nweights: w.pt\nweights_strict: false\ndata: {labelled: [x]}\n",
        b="base: a.yaml\ntrain: {accumulate: 2}\n",
    )
    found = problems("b.yaml")
    assert (
        "a.yaml:3: weights_strict: is called 'partial_weights' and means the opposite: "
        "weights_strict: false is partial_weights: true"
    ) in found
    assert "a.yaml:4: data.labelled: renamed to 'labeled_classes' in 0.2" in found
    assert "b.yaml:2: train.accumulate: renamed to 'accumulate_grad_batches' in 0.2" in found


def test_arguments_of_old_backbones_are_no_names_of_a_run(write):
    write(a=SHORT + "size: 3\n")
    assert problems("a.yaml")[0].startswith("a.yaml:8: size: unknown key")
