"""The code blocks of README and docs: commands parse, their settings and configs are good ones.

The pages add-a-... and from-zero, which build something, have tests of their own.
"""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import visionkit
from support import exports
from support.paths import ROOT
from support.small_runs import quick_settings
from visionkit.cli import main
from visionkit.config import load_config
from visionkit.config.config import SOURCE_KEYS, TrainConfig
from visionkit.config.shipped import shipped_configs
from visionkit.config.validate import TOP
from visionkit.config.yaml import read

PARTS = ("head", "backbone", "dataset", "transform")
OWN_TESTS = (*(f"add-a-{part}.md" for part in PARTS), "from-zero.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHAPES = "{type: Shapes}"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """The words of each command, without `$`; a README line may hold two."""
    text = "".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in re.split(r"(?:^|\s{3,})\$ ", line)]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


EVERY = [(page, words) for page in PAGES for words in commands(page)]
COMPLETE = [c for c in EVERY if c[1][0] == "visionkit" and not re.search(r"[][]", " ".join(c[1]))]


@pytest.mark.parametrize(
    ("page", "words"), COMPLETE, ids=[f"{p.stem}-{' '.join(w[1:4])}" for p, w in COMPLETE]
)
def test_commands_parse_and_their_settings_fit_the_config(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser, _ = main._parser()
    numbers = {"N": "8", "S": "64", "K": "0"}
    args = main._parse(parser, [numbers.get(word, word) for word in words[1:]])
    config = getattr(args, "config", None)
    if config and (config.startswith("configs/") or config in shipped_configs()):
        given = [
            f"data={folder_for(config, tmp_path)}" if o == "data=DIR" else o for o in args.overrides
        ]
        load_config(config, given)


def folder_for(config, root):
    """Data that suit a shipped config, for the DIR of a page."""
    classes = config.startswith(("classification", "embedding"))
    make = exports.class_folders if classes else exports.roboflow_coco
    return make(root / "data")


def test_the_list_of_commands_is_that_of_the_program():
    listed = [words for page, words in EVERY if page.name == "commands.md" and len(words) > 1]
    listed = [words[1:] for words in listed if words[0] == "visionkit"]
    every = kinds(main._parser()[0])
    assert {*every} - {"val"} == {name for name, *_ in listed} & {*every}
    for group in ("data", "weights"):
        parsers = kinds(every[group])
        assert {*parsers} == {words[1] for words in listed if words[0] == group}
        every |= {f"{group} {kind}": parser for kind, parser in parsers.items()}
    for words in listed:
        nested = words[0] in ("data", "weights")
        shown = every.get(" ".join(words[: 1 + nested]))
        options = re.findall(r"--[a-z-]+", " ".join(words))
        assert shown is None or all(one in shown.format_help() for one in options), words


def kinds(parser):
    """The parsers below one, by their names."""
    return next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def test_scripts_that_are_named_exist_and_have_these_options():
    text = "\n".join(" ".join(words) for _, words in EVERY)
    named = re.findall(r"python (scripts/\S+)([^\n&]*)", text)
    assert len(named) >= 6
    for script, rest in named:
        source = (ROOT / script).read_text()
        assert all(option in source for option in re.findall(r"--[a-z-]+", rest)), script
    assert (ROOT / "scripts/demo").exists() and (ROOT / "scripts/test").exists()


CONFIGS = [
    (page, text) for page in PAGES for text in blocks(page, "yaml") if page.name not in OWN_TESTS
]


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=[p.stem for p, _ in CONFIGS])
def test_configs_of_the_pages_are_good_ones(number, tmp_path, monkeypatch):
    """Missing sections are added; a block that is only a part is only read."""
    monkeypatch.chdir(ROOT)
    _, text = CONFIGS[number]
    text = text.replace("{...}", SHAPES)
    if "images_per_identity" in text:  # the reference of all keys; it excludes these two
        text = re.sub(r"(?m)^ *(group_by_aspect_ratio|sampling):.*\n", "", text)
    (tmp_path / "c.yaml").write_text(text)
    config, _ = read(tmp_path / "c.yaml")
    if "init_from" in config or not {"task", "heads"} & config.keys():
        known = TrainConfig.__dataclass_fields__.keys()
        assert config.get("train", {}).keys() <= known
        return
    load_config(tmp_path / "c.yaml", () if "data" in config else [f"data.train={SHAPES}"])


def test_every_key_of_a_config_is_on_its_page():
    page = (ROOT / "docs/guide/config.md").read_text()
    for key in (*TOP, *SOURCE_KEYS, "workers", "task", "head", "type", "weight"):
        assert re.search(rf"`{key}`|\b{key}:", page), key


def test_readmes_python_runs(tmp_path, monkeypatch):
    """As it stands, but for settings that make it quick."""
    (code,) = blocks(ROOT / "README.md", "python")
    train = visionkit.train

    def quick(config, settings):
        assert settings == {"train.epochs": 2}
        return train(config, quick_settings("detection.yaml"))

    monkeypatch.setattr(visionkit, "train", quick)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60)).save("a.jpg")
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert Path("a-overlay.jpg").exists()
