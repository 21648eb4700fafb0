"""The pages docs/guide/add-a-*.md for datasets, transforms and backbones, run as they stand."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image, ImageDraw

from support.paths import ROOT
from visionkit.cli.main import main

PAGES = {"dataset": "yolo", "transform": "weather", "backbone": "stack"}


def blocks(page, language):
    text = (ROOT / f"docs/guide/add-a-{page}.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(params=PAGES)
def page(request, tmp_path, monkeypatch):
    """The name of the page; its code and config are in the current folder."""
    name = PAGES[request.param]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(blocks(request.param, "python")[0])
    (tmp_path / f"{name}.yaml").write_text(blocks(request.param, "yaml")[0])
    if name == "yolo":
        write_yolo(tmp_path / "shapes")
    return request.param


def write_yolo(root):
    """Four noisy images with a white square each, or a disk."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 99, (64, 64, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        pen = ImageDraw.Draw(image)
        draw = pen.rectangle if i % 2 == 0 else pen.ellipse
        draw([16, 8, 47, 39], fill="white")
        image.save(root / "images" / f"{i}.png")
        (root / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.375 0.5 0.5\n")


def test_the_commands_of_the_page_work(page, capsys):
    commands = [line.removeprefix("$ ") for line in blocks(page, "console")[0].splitlines()]
    assert [shlex.split(line)[1] for line in commands][:2] == ["check", "train"]
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_a_typing_mistake_is_reported(page, capsys):
    name = PAGES[page]
    key = {"yolo": "classes", "weather": "strength", "stack": "channels"}[name]
    text = blocks(page, "yaml")[0]
    line = next(n for n, t in enumerate(text.splitlines(), 1) if f"{name}." in t and key in t)
    with open("wrong.yaml", "w") as file:
        file.write(text.replace(f"{key}:", f"{key}s:"))
    assert main(["config", "wrong.yaml"]) == 2
    told = capsys.readouterr().err
    assert f"wrong.yaml:{line}: " in told and f"did you mean '{key}'?" in told


# What the examples of messages on the pages are made of: replacements in the page's code.
FAULTS = {
    "dataset": {
        "keys: got": ('keys = ("boxes", "labels")', 'keys = "boxes"'),
        "labels: got 7": ("rows[:, 0].astype(int)", "rows[:, 0].astype(int) + 7"),
    },
    "transform": {
        "does not take": ("self, sample, rng, size):\n        if", "self, sample):\n        if"),
        "got None": ("return replace(sample, image=image)", "replace(sample, image=image)"),
        "image: got": ("return replace(sample, image=image)",
                       "return replace(sample, image=image / 2)"),
    },
    "backbone": {
        "must derive": ("class Stack(nn.Module)", "class Stack"),
        "got None": ("self.levels", "self.maps"),
        "got {'c1'": ("stride=2, padding=1", "stride=4, padding=1"),
    },
}  # fmt: skip


def plain(text):
    """Without digits, the folder of images, and what depends on the processor."""
    return re.sub(r"\d+", "0", re.sub(r"\(\S*/images/", "(", text)).replace("bfloat", "float")


def test_the_messages_of_the_page_are_those_of_visionkit(page, capsys, monkeypatch):
    """All but numbers, which depend on the image that comes first."""
    name = PAGES[page]
    (messages,) = [text.splitlines() for text in blocks(page, "text")]
    assert len(messages) == len(FAULTS[page])
    for number, (part, (right, wrong)) in enumerate(FAULTS[page].items()):
        code = blocks(page, "python")[0]
        assert right in code
        with open(f"{name}{number}.py", "w") as file:
            file.write(code.replace(right, wrong))
        with open(f"{name}{number}.yaml", "w") as file:
            file.write(blocks(page, "yaml")[0].replace(f"{name}.", f"{name}{number}."))
        assert main(["check", f"{name}{number}.yaml"]) in (2, 3)
        told = capsys.readouterr().out.replace(f"{name}{number}.", f"{name}.")
        message = next(line for line in messages if part in line)
        assert plain(message) in plain(told), told
