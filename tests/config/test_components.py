"""Components by `type:`: inside the package, from outside, and in the listing."""

import sys

import pytest

from visionkit.config.components import components, describe, resolve, unknown
from visionkit.errors import ConfigError
from visionkit.types import Head


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("outside"):
            del sys.modules[name]


def test_types_of_the_package_resolve_to_the_classes_that_are_listed():
    for section in ("backbones", "necks", "heads", "datasets", "transforms"):
        for name, cls in components(section).items():
            assert resolve(section, name) is cls
    assert {"ResNet"} <= set(components("backbones"))
    assert set(components("data")) == {*components("datasets"), *components("transforms")}
    assert "backbone.Trunk" not in components("backbones")
    assert all(issubclass(cls, Head) for cls in components("heads").values())


def test_a_type_from_outside_needs_no_registration(here):
    (here / "outside").mkdir()
    (here / "outside/pose.py").write_text(
        "from visionkit.types import Head\nclass PoseHead(Head):\n"
        "    needs, main_metric = ('labels',), 'score'\n"
        "    def loss(self, features, batch): ...\n"
        "    predict = evaluator = loss\n"
    )
    assert resolve("heads", "outside.pose.PoseHead").__name__ == "PoseHead"
    with pytest.raises(ConfigError, match=r"did you mean 'outside.pose.PoseHead'\?"):
        resolve("heads", "outside.pose.PoseHed")


def test_the_current_directory_hides_no_installed_package(here):
    (here / "yaml.py").write_text("raise RuntimeError('hidden')\n")
    with pytest.raises(ConfigError, match="unknown type"):
        resolve("heads", "yaml.Nothing")
    assert sys.path[-1] == str(here)


def test_unknown_types_are_answered_with_the_valid_ones():
    with pytest.raises(ConfigError) as caught:
        resolve("backbones", "resnet.Resnet")
    assert "did you mean 'ResNet'?" in str(caught.value)
    assert all(name in str(caught.value) for name in components("backbones"))
    for bad in ("ResNet", "", None, 3, "a b.C", "..x", "os.system; x"):
        with pytest.raises(ConfigError, match=r"expected module.Class"):
            resolve("backbones", bad)


def test_reasons_of_failed_imports_are_told(here):
    (here / "outside_syntax.py").write_text("def (\n")
    (here / "outside_raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="cannot import outside_syntax: SyntaxError"):
        resolve("heads", "outside_syntax.A")
    with pytest.raises(ConfigError, match="outside_raises: ZeroDivisionError: division by zero"):
        resolve("heads", "outside_raises.A")


def test_scanning_survives_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    import visionkit.necks

    (tmp_path / "needs_more.py").write_text("import outside_not_installed\n")
    (tmp_path / "toy.py").write_text(
        "from visionkit.config.schema import Count\n"
        "from visionkit.types import Level\n"
        "class Toy:\n"
        '    """A toy of two\n    lines. And more.\n\n    Arguments: none of note."""\n'
        "    levels: dict[str, Level]\n"
        "    def __init__(self, levels, *, size: Count = 3): ...\n"
        "class _Hidden(Toy): ...\n"
        "class Other: ...\n"
    )
    (tmp_path / "shop.py").write_text("from visionkit.necks.toy import Toy\n__all__ = ['Toy']\n")
    monkeypatch.setattr(visionkit.necks, "__path__", [*visionkit.necks.__path__, str(tmp_path)])
    found = components("necks")
    assert "shop.Toy" in found and "FPN" in found
    assert not {"toy.Toy", "toy._Hidden", "toy.Other"} & set(found)
    text = describe("necks")
    assert "shop.Toy\n    A toy of two lines.\n    size: an integer >= 1 (default 3)" in text
    assert "needs_more.*: not available here: cannot import" in text
    assert "outside_not_installed" in text
    with pytest.raises(ConfigError, match="outside_not_installed"):
        resolve("necks", "needs_more.Neck")
    for name in ("toy", "shop"):
        sys.modules.pop(f"visionkit.necks.{name}", None)


def test_describe_lists_every_component():
    for section in ("backbones", "necks", "heads", "datasets", "transforms"):
        text = describe(section)
        assert all(f"{name}\n    " in text + "\n    " for name in components(section))
    assert "depth: 18 or 34 or 50 or 101 or 152 (default 18)" in describe("backbones")
    assert " levels:" not in describe("heads")


def test_nearest_name_ignores_case():
    assert unknown("LR", ["lr", "epochs"]) == "unknown key; did you mean 'lr'? valid: epochs, lr"
    assert unknown("zzz", ["lr"]) == "unknown key; valid: lr"
