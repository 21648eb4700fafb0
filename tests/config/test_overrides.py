"""Overrides: where they go in both forms, what they replace, and how their problems read."""

import logging

import pytest
from test_config import LONG, SHORT, load, parts, problems  # noqa: F401

from visionkit.config import load_config
from visionkit.errors import ConfigError

GENERATED = SHORT.replace("{images: a, annotations: b}", "{type: toy.Made, num_images: 5, seed: 3}")
ONE_SOURCE = """\
backbone: {type: toy.Net}
heads:
  tags: {type: toy.Tags}
data:
  street: {feeds: [tags], train: {type: toy.Made, seed: 1}}
train: {steps: 5}
"""


def test_words_and_dicts_do_the_same():
    words = load(
        SHORT, "train.lr=1e-2", "data.batch_size=3", "output=runs/a b", "backbone.depth=18"
    )
    given = {"train.lr": 0.01, "data.batch_size": 3, "output": "runs/a b", "backbone.depth": 18}
    assert load_config("c.yaml", given) == words
    assert words.train.lr == 0.01 and words.train.epochs == 3
    assert words.output == "runs/a b"
    assert words.data["main"].batch_size == 3
    assert load_config("c.yaml", "train.lr=1e-2").train.lr == 0.01  # one word, not its letters


def test_overrides_make_sections_and_take_whole_values():
    config = load(
        SHORT, "neck.channels=8", "train={lr: 2, freeze: [a]}", "data.image_size=[32, 64]"
    )
    assert config.neck == {"type": "toy.Neck", "channels": 8}
    assert (config.train.lr, config.train.freeze, config.train.epochs) == (2.0, ["a"], 12)
    assert config.data["main"].image_size == (32, 64)
    assert load(SHORT, "neck=null").neck is None
    assert load("train: {lr: 1}\n", "task=toys", "data.train.images=a",
                "data.train.annotations=b").heads["toys"]["type"] == "toy.Boxes"  # fmt: skip


def test_problems_of_overrides_show_the_override():
    assert problems(SHORT, "train.epochs=ten", "train.lrr=1", "backbone.depth=19", "nonsense") == [
        "override nonsense: expected key=value",
        "override train.epochs=ten: train.epochs: got 'ten'; expected an integer >= 1 or null",
        *[p for p in problems(SHORT, "train.lrr=1") if "did you mean 'lr'?" in p],
        "override backbone.depth=19: backbone.depth: got 19; expected 18 or 50",
    ]
    assert problems(SHORT, "=1", "a..b=1", "train.lr=[1", "task.x=1")[:4] == [
        "override =1: '' is not a key; expected one like train.lr",
        "override a..b=1: 'a..b' is not a key; expected one like train.lr",
        "override train.lr=[1: expected ',' or ']', but got '<stream end>' "
        "(while parsing a flow sequence that begins on line 1)",
        "override task.x=1: task is not a mapping; override it as a whole",
    ]
    with pytest.raises(ConfigError, match=r"^override train.lr=-1: train.lr: got -1; expected"):
        load_config("c.yaml", {"train.lr": -1})


def test_an_override_fixes_an_error_of_the_file():
    wrong = SHORT.replace("epochs: 3", "epochs: {a: 1}")
    assert load(wrong, "train.epochs=4").train.epochs == 4


def test_steps_and_epochs_take_each_others_place():
    assert load(SHORT, "train.steps=7").train == load(SHORT.replace("epochs: 3", "steps: 7")).train
    assert load(SHORT, "train.steps=7").train.epochs is None
    assert load(ONE_SOURCE, "train.epochs=2").train.steps is None
    assert "conflicts with" in problems(SHORT, "train.epochs=2", "train.steps=3")[0]


def test_own_data_takes_the_place_of_generated_data(caplog):
    caplog.set_level(logging.INFO, "visionkit")
    config = load(GENERATED, "data.train.images=x", "data.train.annotations=y", "data.val.images=x",
                  "data.val.annotations=z")  # fmt: skip
    own = {"type": "toy.Files", "images": "x"}
    assert config.data["main"].train == {**own, "annotations": "y"}
    assert config.data["main"].val == {**own, "annotations": "z"}
    assert (
        "data.train: dataset type set to toy.Files, inferred from images= and annotations="
        in caplog.text
    )


def test_generated_data_keeps_its_type_for_its_own_arguments_and_for_mistakes():
    config = load(GENERATED, "data.train.num_images=2")
    assert config.data["main"].train == {"type": "toy.Made", "num_images": 2, "seed": 3}
    found = problems(GENERATED, "data.train.images=x", "data.train.seed=1")
    assert found[0].startswith("override data.train.images=x: data.train.images: unknown key")


@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("semantic_segmentation", "maps=x images=y", ["maps: unknown key; did you mean 'labels'"]),
        ("semantic_segmentation", "maps=x", ["did you mean 'labels'", "images: missing"]),
        ("semantic_segmentation", "masks=x images=y", ["did you mean 'labels'"]),
        ("classification", "path=x", ["path: unknown key; did you mean 'root'"]),
        ("detection", "img_dir=x ann_file=y", ["you mean 'images'", "you mean 'annotations'"]),
    ],
)
def test_words_of_other_programs_are_answered_with_ours(name, words, found):
    with pytest.raises(ConfigError) as caught:
        load_config(name, [f"data.train.{word}" for word in words.split()])
    assert all(text in str(caught.value) for text in found)
    assert "num_images" not in str(caught.value)  # not an answer about generated images
    with pytest.raises(ConfigError, match=r"data.train.maps: unknown key; did you mean 'labels'"):
        load_config("semantic_segmentation", {"data.train": {"type": "LabelMaps", "maps": "x"}})


def test_another_type_starts_a_section_again():
    config = load(GENERATED, "data.train.type=toy.Files", "data.train.images=a",
                  "data.train.annotations=b")  # fmt: skip
    assert config.data["main"].train == {"type": "toy.Files", "images": "a", "annotations": "b"}
    config = load(LONG, "heads.boxes.type=toy.Tags", "heads.boxes.dropout=0.5")
    assert config.heads["boxes"] == {"type": "toy.Tags", "weight": 2.0, "dropout": 0.5}
    config = load(SHORT, "backbone.type=toy.Net")
    assert config.backbone == {"type": "toy.Net", "depth": 50}


def test_a_single_source_and_a_single_head_have_short_keys(monkeypatch):
    monkeypatch.setattr("visionkit.config.overrides.OWN_DATA", ("toy.Files",))
    config = load(ONE_SOURCE, "data.batch_size=2", "head.dropout=0.1", "data.workers=0",
                  "data.val.images=a", "data.val.annotations=b", "data.train.images=c",
                  "data.train.annotations=d")  # fmt: skip
    assert config.data["street"].batch_size == 2 and config.workers == 0
    assert config.data["street"].val == {"type": "toy.Files", "images": "a", "annotations": "b"}
    assert config.data["street"].train == {"type": "toy.Files", "images": "c", "annotations": "d"}
    assert config.heads["tags"]["dropout"] == 0.1


def test_short_keys_are_refused_where_they_are_ambiguous():
    found = problems(LONG, "head.convs=1", "data.batch_size=2")
    assert found[0].startswith("override head.convs=1: head: unknown key; did you mean 'heads'?")
    assert "override data.batch_size=2: data.batch_size: 'batch_size' is a reserved" in found[1]


def test_a_saved_run_takes_the_same_overrides_as_its_short_form():
    words = ["data.train.images=n", "head.convs=9", "train.steps=4", "data.image_size=96"]
    assert load_config(load(SHORT).to_dict(), words) == load(SHORT, *words)
