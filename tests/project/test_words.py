"""Package, docs, configs and help texts use the field's words and American spelling."""

import argparse
import re

import pytest

from support.paths import ROOT
from visionkit.cli import main

# A pattern that must not occur, and what to write instead. A space also matches a line break.
WORDS = {
    r"picture": "image",
    r"\bknobs?\b": "argument, option",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"trunk": "backbone",
    r"labell": "label, labeled",
    r"colour|behaviour|favour|neighbour|\bhonour": "-or",
    r"(normal|initial|optim|organ|visual|real|quant|serial)is(ed?|es|ing|ation)\b": "-ize",
    r"\bcentred?\b|\bgrey\b|\bmetres?\b|\bcatalogue": "center, gray, meter, catalog",
    r"cancell(ed|ing)|modell(ed|ing)|travell|signall(ed|ing)": "one l",
    r"data sets?\b": "dataset",
    r"\bno such\b(?! file or directory)": "not found",
    r"\bprocess 0\b|\bfirst process\b": "rank 0",
    r"\bseveral processes\b": "multiple ranks",
    r"\bverbs?\b": "command",
    r"\btold\b|\btells?\b": "reported",
    r"\bsaid\b": "reported",
    r"\bleft out\b": "dropped, skipped",
    r"\btaken over\b|\btakes? over\b": "reused",
    r"\bgo(es)? on\b": "continues",
    r"\bstands? in\b": "replaces",
    r"\blook(s|ed)? at\b": "inspect, check",
    r"remed(y|ies)": "hint",
    r"\bwhole numbers?\b": "integer",
    r"\bas ever\b": "as before",
    r"\bby lot\b": "at random",
    r"\bof (one's|your) own\b": "custom",
    r"\b(class|label) maps?\b": "semantic map",
    r"(?<!there\s)\b(is|are) no\b(?! (longer|more))": "is not a, does not",
    r"\bbeside\b": "next to",
    r"\bbroken\b(?! pipe)": "unreadable, corrupt",
    r"\bfigures\b": "metrics, numbers",
    r"\bdoors?\b": "validation",
    r"\bstrangers?\b": "unknown",
    r"\bwhat it gives\b": "returns",
    r"\bthat is there already\b|\bis there already\b": "already exists",
    r"\bobituary\b|\blast words\b": "plain words",
}
# (place, pattern of the line) -> why the line may use a word of the list
ALLOWED: dict[tuple[str, str], str] = {
    ("visionkit/config", r'"on_broken_picture"|"check_pictures"|"labelled"'): "old keys",
    ("visionkit/config", r'mobilenet pictures regnet|"Pictures": "Images"'): "old types",
    ("visionkit/data", r'"person, earth, door|"pool table, .* screen door'): "classes of ADE20K",
    ("visionkit/models", r"trunk_output"): "torchvision's module",
    ("visionkit/runs", r"trunk_output"): "torchvision's module",
}

PLACES = {
    **{
        f"visionkit/{p.name}": sorted(p.rglob("*.py")) if p.is_dir() else [p]
        for p in sorted((ROOT / "visionkit").iterdir())
        if (p.is_dir() and p.name != "__pycache__") or p.suffix == ".py"
    },
    **{
        f"docs/{p.name}": sorted(p.rglob("*.md"))
        for p in sorted((ROOT / "docs").iterdir())
        if p.is_dir() and p.name != "images"
    },
    "configs": sorted((ROOT / "configs").rglob("*.yaml")),
    "scripts": sorted(
        p for p in (ROOT / "scripts").rglob("*") if p.is_file() and p.suffix != ".pyc"
    ),
    "README.md": [ROOT / "README.md"],
    "CONTRIBUTING.md": [ROOT / "CONTRIBUTING.md"],
    "pyproject.toml": [ROOT / "pyproject.toml"],
}


def pattern(words):
    return re.compile(words.replace(" ", r"\s+(?:# *)?"), re.IGNORECASE)


def offenses(text, place=""):
    found = []
    for words, instead in WORDS.items():
        for match in pattern(words).finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            line = text.splitlines()[number - 1]
            if not any(p == place and re.search(ok, line) for p, ok in ALLOWED):
                found.append(f"{number}: {match[0]!r} -> {instead}: {line.strip()[:80]}")
    return found


@pytest.mark.parametrize("place", PLACES)
def test_words_of_the_field(place):
    found = [
        f"{path.relative_to(ROOT)}:{offense}"
        for path in PLACES[place]
        for offense in offenses(path.read_text(errors="replace"), place)
    ]
    assert not found, "\n".join(found)


def test_words_of_the_changelog():
    """Of the newest version; its tables and code name the old words."""
    newest = re.split(r"(?m)^## ", (ROOT / "CHANGELOG.md").read_text())[1]
    prose = "\n".join(line for line in newest.splitlines() if not line.startswith("|"))
    assert not offenses(re.sub(r"`[^`]*`", "", prose))


def parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_words_of_the_help_texts():
    found = {sub.prog: offenses(sub.format_help()) for sub in parsers(main._parser()[0])}
    assert len(found) > 10 and not any(found.values()), found


@pytest.mark.parametrize("text", ["the Picture", "left\n    # out", "it is no list", "grey"])
def test_a_wrong_word_is_found(text):
    assert offenses(text)


@pytest.mark.parametrize("text", ["a truncated image", "there is no GPU", "it is no longer read"])
def test_a_right_word_is_not_found(text):
    assert not offenses(text)
