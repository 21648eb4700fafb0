"""Components by `type:`: inside the package, from outside, and in the listing."""

import sys

import pytest

from visionkit.config.components import build, components, describe, resolve
from visionkit.config.schema import Count
from visionkit.errors import ConfigError, unknown
from visionkit.models.head import Head


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
    assert {"Torchvision", "Timm"} <= set(components("backbones"))
    assert all(issubclass(cls, Head) for cls in components("heads").values())


def test_a_type_from_outside_needs_no_registration(here):
    (here / "outside").mkdir()
    (here / "outside/pose.py").write_text(
        "from visionkit.models.head import Head\nclass PoseHead(Head):\n"
        "    required_targets, main_metric = ('labels',), 'score'\n"
        "    def loss(self, features, batch): ...\n"
        "    forward = decode = evaluator = loss\n"
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
        resolve("backbones", "TorchVison")
    assert "did you mean 'Torchvision'?" in str(caught.value)
    assert all(name in str(caught.value) for name in components("backbones"))
    for bad in ("Net", "", None, 3, "a b.C", "..x", "os.system; x"):
        with pytest.raises(ConfigError, match="expected the name of a component or an import path"):
            resolve("backbones", bad)


def test_an_error_of_a_constructor_names_the_key():
    spec = {"type": "Torchvision", "name": "vgg11", "norm": "group"}
    with pytest.raises(ConfigError, match=r"^backbone: norm: got norm='group'"):
        build("backbones", spec, key="backbone")
    with pytest.raises(ConfigError, match=r"^norm: got norm='group'"):
        build("backbones", spec)


def test_reasons_of_failed_imports_are_told(here):
    (here / "outside_syntax.py").write_text("def (\n")
    (here / "outside_raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="cannot import outside_syntax: SyntaxError"):
        resolve("heads", "outside_syntax.A")
    with pytest.raises(ConfigError, match="outside_raises: ZeroDivisionError: division by zero"):
        resolve("heads", "outside_raises.A")


def test_the_listing_has_first_sentence_and_arguments(monkeypatch):
    import visionkit.models.necks

    class Toy:
        """A toy of two
        lines. And more.

        Arguments: none of note."""

        def __init__(self, levels, *, size: Count = 3): ...

    monkeypatch.setattr(visionkit.models.necks, "Toy", Toy, raising=False)
    monkeypatch.setattr(visionkit.models.necks, "__all__", ["FPN", "Toy"])
    assert list(components("necks")) == ["FPN", "Toy"]
    text = describe("necks")
    assert "Toy\n    A toy of two lines.\n    size: an integer >= 1 (default 3)" in text


def test_describe_lists_every_component():
    for section in ("backbones", "necks", "heads", "datasets", "transforms"):
        text = describe(section)
        assert all(f"{name}\n    " in text + "\n    " for name in components(section))
    listing = describe("backbones")
    assert "name: one of convnext_base, " in listing
    assert 'wide_resnet50_2 (default "resnet18")' in listing
    assert "out_indices: a list (each an integer >= 0) or null (default null)" in listing
    assert " levels:" not in describe("heads")


def test_nearest_name_ignores_case():
    assert unknown("LR", ["lr", "epochs"]) == "unknown key; did you mean 'lr'? valid: epochs, lr"
    assert unknown("zzz", ["lr"]) == "unknown key; valid: lr"
