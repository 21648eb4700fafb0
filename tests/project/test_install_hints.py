"""Every hint to install this package has its name on the index and extras that it has."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest

from support.paths import ROOT
from visionkit.cli.main import main
from visionkit.errors import DISTRIBUTION, install_hint

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].keys()
PLACES = ["README.md", "CONTRIBUTING.md", "pyproject.toml", "docs", "configs", "scripts"]
PLACES += ["visionkit", "tests"]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for place in PLACES
    for path in [ROOT / place, *(ROOT / place).rglob("*")]
    if path.is_file() and path.suffix in ("", ".md", ".py", ".toml", ".yaml", ".ipynb")
}
SELF = "tests/project/test_install_hints.py"


def problems(text):
    """What is wrong with the requirements in a text."""
    requirement = r"([\w-]*visionkit[\w-]*|(?<=[ \"'])\.)\\?\[([a-z][a-z, ]*)\\?\]"
    for name, extras in re.findall(requirement, text):
        if name not in (DISTRIBUTION, "."):
            yield f"{name}[{extras}] is another package"
        yield from (f"no extra {extra}" for extra in {*re.split(", *", extras)} - EXTRAS)
    for words in re.findall(r"pip install ([^\n`]*)", text):
        for word in re.split(r"[\s\"']+", words.split("#")[0]):
            if re.fullmatch(r"visionkit[\w-]*", word) and word != DISTRIBUTION:
                yield f"pip install {word} is another package"
    for extra in re.findall(r"install_hint\([\"']([^\"']*)", text):
        if extra not in EXTRAS:
            yield f"install_hint of no extra: {extra}"


def test_requirements_name_this_package_and_its_extras():
    assert PROJECT["name"] == DISTRIBUTION
    found = {name: [*problems(text)] for name, text in TEXTS.items() if name != SELF}
    assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    "text",
    [
        'pip install "visionkit[timm]"',
        "pip install visionkit-torch[tim]",
        'pip install "visionkit-pytorch[timm,fast]"',
        "pip install -U visionkit",
        'run: pip install -e ".[plot]"',
        r"visionkit\[timm\]",
        'install_hint("tim")',
    ],
)
def test_a_wrong_requirement_is_found(text):
    assert [*problems(text)]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_hint_has_nothing_wrong(extra):
    assert install_hint(extra) == f'pip install "{DISTRIBUTION}[{extra}]"'
    assert not [*problems(f'{install_hint(extra)}; install_hint("{extra}"); visionkit[0]')]


def test_hints_in_code_are_made_in_one_place():
    code = {name: text for name, text in TEXTS.items() if name.startswith("visionkit/")}
    hints = [name for name, text in code.items() if "pip install" in text or DISTRIBUTION in text]
    assert hints == ["visionkit/errors.py"]


@pytest.mark.parametrize(("installed", "said"), [(DISTRIBUTION, "9.8.7"), ("visionkit", "unknown")])
def test_the_version_is_that_of_the_distribution(installed, said, monkeypatch, capsys):
    def version(name):
        if name != installed:
            raise PackageNotFoundError(name)
        return "9.8.7"

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"visionkit {said}\n"
