"""Helpers for messages."""

import pytest

from visionkit.errors import listed, plural, printable, shorten


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1000 images")]
)
def test_a_count_and_its_noun_agree(count, text):
    assert plural(count, "image") == text


def test_other_plurals_are_given():
    assert plural(1, "class", "classes") == "1 class"
    assert plural(3, "class", "classes") == "3 classes"


def test_long_values_are_shortened():
    assert shorten("a" * 60) == "a" * 60
    assert shorten("a" * 61) == "a" * 57 + "..."
    assert shorten([1, 2]) == "[1, 2]" and shorten("abcdef", 5) == "ab..."


def test_long_lists_end_with_the_number_of_the_others():
    assert listed([]) == "none" and listed(["a", 2]) == "a, 2"
    assert listed(range(5), 2) == "0, 1 and 3 more"


def test_control_characters_are_escaped():
    assert printable("grün 猫") == "grün 猫"
    assert printable("a\nb\x1b[0m\u202e\udcff") == "a\\nb\\x1b[0m\\u202e\\udcff"
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"
