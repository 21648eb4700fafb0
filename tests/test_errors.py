"""Helpers for messages."""

import logging
import pickle
from pathlib import Path

import pytest

from visionkit import errors
from visionkit.cli.main import report
from visionkit.data.checks.findings import check_classes
from visionkit.errors import ConfigError, DataError, is_blank, listed, plural, printable, shorten


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


def test_an_error_is_its_lines_and_no_name_adds_one():
    error = ConfigError("a\nerror: forged", "  b\x07")
    assert str(error) == "a\\nerror: forged\n  b\\x07" and len(error.lines) == 2
    assert str(pickle.loads(pickle.dumps(DataError("a\n", "b", findings=[1])))) == "a\\n\nb"


def test_names_in_the_log_are_escaped(caplog):
    log = logging.getLogger("visionkit")
    log.error("%s: %s, %d of %.1f\n%s", Path("a\nb"), "c\x1b", 1, 2.0, DataError("d\ne", "  f"))
    assert caplog.messages == ["a\\nb: c\\x1b, 1 of 2.0\nd\\ne\n  f"]


@pytest.mark.parametrize("name", ["", "  ", "\n\t", "\u200b", "\u202e\x00", "\u3000"])
def test_a_name_of_which_nothing_is_seen_is_blank(name):
    assert is_blank(name) and not is_blank(f"{name}a")


def test_control_characters_are_escaped():
    assert printable("grün 猫") == "grün 猫"
    assert printable("a\nb\x1b[0m\u202e\udcff") == "a\\nb\\x1b[0m\\u202e\\udcff"
    assert printable(DataError("a\nb", "  c")) == "a\\nb\n  c"


def test_of_many_names_the_nearest_twenty_are_listed():
    names = [f"class {number}" for number in range(300)]
    text = errors.unknown("clas 123", names, "unknown class")
    assert text.startswith("unknown class; did you mean 'class 123'? valid: class 1")
    assert text.count("class ") == 21 and text.endswith(" and 280 more")
    assert errors.unknown("x", names[:20]).count("class ") == 20
    assert errors.unknown("x", names, limit=300).endswith("class 99")


def test_class_lists_that_do_not_agree_name_twenty_of_each():
    names = [f"n{number}" for number in range(1200)]
    with pytest.raises(errors.DataError) as caught:
        check_classes("file", names, names[1:], missing_ok=False, unknown_ok=False)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  expected (1199): 'n1', ") and lines[1].endswith("and 1179 more")
    assert max(map(len, lines)) < 250 and lines[-1] == "  not expected: 'n0'"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (MemoryError(), "ulimit -v"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "ulimit -v"),
        (OSError(12, "Cannot allocate memory"), "ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (RuntimeError("could not create a primitive"), "ulimit -v"),
        (RuntimeError("operator torchvision::nms does not exist"), "install the torchvision of"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to open shared memory object </torch_1_2>"), "--shm-size"),
        (DeprecationWarning("old"), "-W error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("old"), None),
    ],
)
def test_shortages_are_told_with_what_to_do(error, hint):
    found = errors.shortage(error)
    assert found is None if hint is None else hint in found


def test_the_command_line_names_a_shortage(capsys):
    assert report(ImportError("libtorch_cpu.so: failed to map segment from shared object")) == 1
    assert capsys.readouterr().err.startswith("error: ImportError: libtorch_cpu.so: failed")
    assert report(MemoryError()) == 1
    assert capsys.readouterr().err.startswith("error: MemoryError: allow more memory")


def test_a_name_in_another_unicode_form_is_told():
    one, two = "caf\u00e9", "cafe\u0301"
    assert "(NFD)" in errors.other_form(one, ["a", two]) and "(NFC)" in errors.other_form(
        two, [one]
    )
    assert errors.other_form(one, [one, "cafe"]) == errors.other_form("cafe", [one]) == ""
    text = errors.unknown(one, ["cafes", two], "unknown class")
    assert r"did you mean 'cafe\u0301', the same in another Unicode form?" in text
