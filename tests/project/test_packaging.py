"""What the package needs and what it exports."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest

import visionkit
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
    for name in ("plots", "timm", "pretrained", "safetensors", "hub", "fast"):
        assert lowest(PROJECT["optional-dependencies"][name])
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_lowest_torch_is_one_that_files_cannot_trick():
    assert lowest(PROJECT["dependencies"])["torch"] >= SAFE_TORCH


def test_all_public_names_exist_and_type_checkers_see_them():
    tree = ast.parse((ROOT / "visionkit/__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    imports += [n for n in tree.body if getattr(n, "module", None) == "visionkit.errors"]
    typed = {
        alias.asname or alias.name: (i.module, alias.name) for i in imports for alias in i.names
    }
    assert visionkit.__all__ == sorted(typed)
    for name, (module, attribute) in typed.items():
        assert getattr(visionkit, name) is getattr(import_module(module), attribute)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        visionkit.trian  # noqa: B018


def test_the_package_is_imported_without_torch():
    code = "import sys, visionkit; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
