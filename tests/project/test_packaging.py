"""What the package says that it needs."""

import re
import tomllib

from support.paths import ROOT
from visionkit.runs.checkpoint import SAFE_TORCH

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "torchvision", "pycocotools", "tqdm", "pyyaml", "numpy", "pillow"}


def lowest(requirements):
    """The lowest version of each package, as numbers."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in requirements]
    return {match[1]: tuple(map(int, match[2].split("."))) for match in found}


def test_the_core_packages_are_few_and_each_has_a_lowest_version():
    assert lowest(PROJECT["dependencies"]).keys() == CORE
    for name in ("plots", "timm", "fast"):
        assert lowest(PROJECT["optional-dependencies"][name])
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_lowest_torch_is_one_that_files_cannot_trick():
    assert lowest(PROJECT["dependencies"])["torch"] >= SAFE_TORCH
