"""The pages for users of other programs: what they name of visionkit exists, examples agree."""

import re

import pytest
from test_docs_blocks import blocks

from support.config_keys import exists
from support.paths import ROOT
from visionkit.cli import main
from visionkit.config import load_config

PAGES = sorted((ROOT / "docs/migrate").glob("*.md"))
KEY = re.compile(r"(?:train|data|head|backbone|neck)\.[a-z]")
METRICS = {"AP", "AP50", "APs", "mIoU", "top1", "f1", "recall@1"}
ENTRIES = {"visionkit.load", "head.loss", "boxes", "labels", "Batch", "CocoEvaluator"}
TERMS = {"objectness", "rpn_box", "classifier", "box_reg", "mask", "classification"}


def tables(page):
    """The tables of a page, each a list of rows of cells, titles first."""
    found = re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE)
    for table in found:
        lines = [line for line in table.splitlines() if not line.startswith("|---")]
        yield [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def is_metric(text):
    parts = text.split("/")
    return not METRICS.isdisjoint(parts) or ("/" in text and parts[-1] in TERMS)


def is_command(text):
    words = text.removeprefix("torchrun --standalone --nproc-per-node 2 -m ").split()
    if words[0] != "visionkit":
        return False
    parser, _ = main._parser()
    main._parse(parser, words[1:])  # raises ArgumentError
    return True


def is_ours(text):
    if exists(text) or is_metric(text) or text.partition("(")[0] in ENTRIES:
        return True
    return text == "metrics.jsonl" or is_command(text)


def test_there_is_a_page_for_each():
    names = ["detectron2", "luxonis-train", "mmdetection", "torchvision", "ultralytics"]
    assert [page.stem for page in PAGES] == names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_the_tables_name_of_visionkit_exists(page):
    rows = 0
    for titles, *table in tables(page):
        assert titles[1] == "visionkit", titles
        for row in table:
            assert len(row) == len(titles), row
            named = re.findall(r"`([^`]+)`", row[1])
            assert named or row[1] == "none", row
            assert all(map(is_ours, named)), [text for text in named if not is_ours(text)]
            rows += 1
    assert rows >= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_keys_in_the_text_exist(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    named = [name for name in re.findall(r"`([^`]+)`", text) if KEY.match(name)]
    assert len(named) > 20 and not [name for name in named if not exists(name)]


def test_a_wrong_key_is_found():
    assert not exists("train.learning_rate") and not exists("train.lr=-1")
    assert not exists("{type: ScaleJitter, lowest: 1}") and not exists("{type: Flip}")
    assert exists("train.lr=1e-3") and exists("{type: ScaleJitter, low: 0.5}")


# What the snippet of the other program says, at our keys.
EXAMPLES = {
    "ultralytics": {"train.epochs": 60, "train.optimizer": "adamw", "train.lr": 0.002},
    "detectron2": {"train.steps": 90000, "train.lr": 0.02, "train.milestones": [6 / 9, 8 / 9]},
    "mmdetection": {"train.epochs": 12, "train.lr": 0.02, "train.milestones": [8 / 12, 11 / 12]},
    "torchvision": {"train.epochs": 26, "train.lr": 0.02, "train.milestones": [16 / 26, 22 / 26]},
    "luxonis-train": {"train.epochs": 100, "train.validate": 5, "train.momentum": 0.937},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_example_is_a_good_config_with_the_same_values(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (text,) = blocks(page, "yaml")
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml")
    for key, value in EXAMPLES[page.stem].items():
        assert getattr(config.train, key.removeprefix("train.")) == pytest.approx(value, abs=1e-4)
    batch = {"ultralytics": 8, "luxonis-train": 8}.get(page.stem, 16)
    assert {source.batch_size for source in config.data.values()} == {batch}
