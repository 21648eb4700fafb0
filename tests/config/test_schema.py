"""Values against annotations: what fits, what it becomes, and how a misfit is described."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from support.paths import ROOT
from support.settings import settings
from visionkit.config import TrainConfig
from visionkit.config.schema import (
    ConfigProblems,
    Count,
    Fraction,
    InputPath,
    Natural,
    NonNegative,
    Positive,
    Range,
    check_arguments,
    convert,
    expected,
    paths_in,
    signature_arguments,
)
from visionkit.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        (True, bool, True),
        ("no", str, "no"),
        (Path("a/b"), str, "a/b"),
        (Path("a/b"), InputPath, "a/b"),
        (1, Count, 1),
        (0, Natural, 0),
        (1e-9, Positive, 1e-9),
        (0, NonNegative, 0.0),
        (1, Fraction, 1.0),
        ("sgd", Literal["sgd", "adamw"], "sgd"),
        (18, Literal[18, 50], 18),
        (None, int | None, None),
        (4, int | None, 4),
        (4, float | int, 4),
        (4, Count | tuple[Count, Count], 4),
        ([4, 5], Count | tuple[Count, Count], (4, 5)),
        (False, bool | Count, False),
        (2, bool | Count, 2),
        ([1, 2], list[float], [1.0, 2.0]),
        ((1, 2), list[int], [1, 2]),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([[1], [2, 3]], tuple[tuple[int, ...], ...], ((1,), (2, 3))),
        (["a"], Sequence[str], ["a"]),
        ({"a": 1}, dict[str, Positive], {"a": 1.0}),
        ({"a": {"b": None}}, Mapping[str, Any], {"a": {"b": None}}),
        ({"a": 1}, dict, {"a": 1}),
        (object, Any, object),
    ],
)
def test_fitting_values(value, annotation, result):
    converted = convert(value, annotation)
    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (True, int, "an integer"),
        (2.5, int, "an integer"),
        ("3", int, "an integer"),
        (True, float, "a number"),
        (float("nan"), float, "a number"),
        (float("inf"), Positive, "a number > 0"),
        (1, bool, "true or false"),
        (2026, str, "a string"),
        (None, str, "a string"),
        (0, Count, "an integer >= 1"),
        (-1, Natural, "an integer >= 0"),
        (0, Positive, "a number > 0"),
        (-0.1, NonNegative, "a number >= 0"),
        (1.1, Fraction, "a number >= 0 and <= 1"),
        (9, Annotated[int, Range(1, 8)], "an integer >= 1 and <= 8"),
        ("adam", Literal["sgd", "adamw"], "'sgd' or 'adamw'"),
        (True, Literal[1, 2], "1 or 2"),
        ("x", int | None, "an integer or null"),
        ([4], tuple[int, int], "a list of 2 (an integer, an integer)"),
        ([1, "a"], list[int], "a list (each an integer)"),
        ("abc", list[str], "a list (each a string)"),
        ([1], list, "a list"),
        ({"a": -1}, dict[str, Positive], "a mapping (each value a number > 0)"),
        ([], dict[str, Any], "a mapping"),
        (3, InputPath, "a path"),
    ],
)
def test_misfits_and_their_description(value, annotation, words):
    assert expected(annotation) == words
    if annotation is not list:
        with pytest.raises(ValueError):
            convert(value, annotation)


class Part:
    def __init__(
        self,
        levels: object,
        images: InputPath,
        *,
        size: Count = 3,
        mode: Literal["a", "b"] = "a",
        unannotated=None,
    ):
        pass


class Unreadable:
    def __init__(self, *, size: "NoSuchName" = 1):  # noqa: F821
        pass


def test_the_arguments_of_a_signature_without_the_injected_ones():
    found = signature_arguments(Part, ("levels",))
    assert list(found) == ["images", "size", "mode", "unannotated"]
    assert found["size"].default == 3
    with pytest.raises(ConfigError, match=r"Unreadable.*NoSuchName"):
        signature_arguments(Unreadable)


class Derived(Part):
    def __init__(self, levels, *, depth: Count = 1, size: Count = 5, **kwargs: Any) -> None:
        super().__init__(levels, size=size, **kwargs)


class Final(Derived):
    def __init__(self, levels, *, width: Count = 2) -> None:
        super().__init__(levels, images="a")


def test_kwargs_stand_for_the_arguments_of_the_base_class():
    found = signature_arguments(Derived, ("levels",))
    assert set(found) == {"images", "size", "mode", "unannotated", "depth"}
    assert found["size"].default == 5
    assert found["images"].annotation == InputPath
    assert list(signature_arguments(Final, ("levels",))) == ["width"]


def test_arguments_are_all_checked():
    problems = ConfigProblems("c.yaml", {("x",): 2, ("x", "size"): 3, ("x", "modus"): 4})
    fitting = check_arguments(
        {"size": 0, "modus": "b", "mode": "b"},
        signature_arguments(Part, ("levels",)),
        ("x",),
        problems,
    )
    assert fitting == {"mode": "b"}
    with pytest.raises(ConfigError) as caught:
        problems.raise_found()
    assert str(caught.value).splitlines() == [
        "c.yaml:2: x.images: missing; expected a path",
        "c.yaml:3: x.size: got 0; expected an integer >= 1",
        "c.yaml:4: x.modus: unknown key; did you mean 'mode'? valid: images, mode, size, "
        "unannotated",
    ]


def test_paths_among_values():
    assert paths_in("a", InputPath) == ["a"]
    assert paths_in("a", str) == []
    assert paths_in({"a": "b"}, dict | None) == paths_in(["a"], list) == []
    assert paths_in(None, InputPath | None) == []
    assert paths_in(["a", "b"], list[InputPath] | None) == ["a", "b"]
    assert paths_in({"k": "a"}, dict[str, InputPath]) == ["a"]
    assert paths_in("default", InputPath | Literal["default"]) == []


def test_every_training_setting_is_explained():
    rows = settings()
    assert [name for name, *_ in rows] == list(TrainConfig.__dataclass_fields__)
    assert rows[1][:3] == ("steps", "an integer >= 1 or null", None)
    assert all(len(help_text) > 5 for *_, help_text in rows)


def test_importing_the_config_imports_no_component():
    code = "import sys, visionkit.config; print([m for m in sys.modules if 'torchvision' in m])"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
