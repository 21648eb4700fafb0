"""The strict loader: what scalars mean, what is refused and where, and that dumps read back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionkit.config.yaml import dump, parse, read
from visionkit.errors import ConfigError, printable


def load(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


def refusal(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(str(tmp_path), "DIR")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("012", "012"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("${HOME}", "${HOME}"),
        ("<<", "<<"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: {b: no}}", {"a": {"b": "no"}}),
    ],
)
def test_scalars_mean_the_same_in_a_file_and_in_an_override(tmp_path, text, value):
    found, _ = load(tmp_path, f"key: {text}\n")
    for result in (found["key"], parse(text)):
        assert result == value and type(result) is type(value)


def test_plain_override_text_is_taken_as_it_is():
    for text in ("a: b", "my #1 dir", "*x", "&a", "- 1", "C:\\x", "a, b", "%d", "9" * 5000):
        assert parse(text) == text


@pytest.mark.parametrize("text", ["[1, 2", "{a: 1", "'x", "[1] [2]"])
def test_broken_override_values_raise(text):
    with pytest.raises(ValueError):
        parse(text)


def test_override_flow_values_are_as_strict_as_files():
    for text in ("{a: 1, a: 2}", "[!!python/name:os.system x]", "[&a [*a]]", "{1: 2}"):
        with pytest.raises(ValueError):
            parse(text)


def test_lines_of_keys_and_items(tmp_path):
    value, lines = load(tmp_path, "# top\na:\n  b: 1\n  c:\n    - {d: 1}\n    - 2\n")
    assert value == {"a": {"b": 1, "c": [{"d": 1}, 2]}}
    assert lines[("a",)] == 2
    assert lines[("a", "b")] == 3
    assert lines[("a", "c", "0", "d")] == 5
    assert lines[("a", "c", "1")] == 6


def test_bom_and_windows_line_ends_are_fine(tmp_path):
    value, lines = load(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: two\r\n")
    assert value == {"a": 1, "b": "two"}
    assert lines[("b",)] == 2


def test_aliases_are_refused_with_their_place(tmp_path):
    assert load(tmp_path, "a: &x {k: [1]}\n")[0] == {"a": {"k": [1]}}
    text = refusal(tmp_path, "a: &x {k: [1]}\nb: *x\nc: *x\n")
    assert text == (
        "DIR/c.yaml:2:4: the alias *x is not supported; write its value\n"
        "DIR/c.yaml:3:4: the alias *x is not supported; write its value"
    )


def test_duplicate_key_names_both_lines(tmp_path):
    text = refusal(tmp_path, "train:\n  lr: 1\n  epochs: 2\n  lr: 3\n")
    assert text == "DIR/c.yaml:4:3: duplicate key 'lr': on lines 2 and 4"


def test_all_faults_of_a_file_are_told_together(tmp_path):
    text = refusal(tmp_path, "a: !!binary x\nb: 1\nb: 2\n1: c\n")
    assert [line.split(":")[1] for line in text.splitlines()] == ["1", "3", "4"]


def test_tags_that_could_run_code_are_refused_and_do_not_run(tmp_path):
    marker = tmp_path / "ran"
    tagged = f"a: 1\nb: !!python/object/apply:os.system ['touch {marker}']\n"
    assert "DIR/c.yaml:2:4: unsupported tag !!python/object/apply:os.system" in refusal(
        tmp_path, tagged
    )
    assert not marker.exists()
    assert "unsupported tag !local" in refusal(tmp_path, "a: !local x\n")
    assert "unsupported tag !!int" in refusal(tmp_path, "a: !!int x\n")
    assert "unsupported tag !!str" in refusal(tmp_path, "a: !!str 1\n")
    assert "unsupported tag !!map" in refusal(tmp_path, "a: !!map {b: *x}\n")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x [*x]\n", "DIR/c.yaml:1:8: the alias *x is not supported"),
        ("a: &x {b: *x}\n", "the alias *x is not supported"),
        (BOMB, "DIR/c.yaml:2:10: the alias *a0 is not supported"),
        (BOMB, "DIR/c.yaml: and 70 more"),
        ("a:\n\tb: 1\n", "DIR/c.yaml:2:1: "),
        ("a:\n\tb: 1\n", "not tabs"),
        ("a: 1\nb: [1, 2\n", "flow sequence that begins on line 2"),
        (b"a: 1\nb: \xff\n", "DIR/c.yaml:2: is not UTF-8"),
        ("a: 1\nb: \0\n", "DIR/c.yaml:2:4: has a character"),
        ("", "DIR/c.yaml: is empty"),
        ("# only a comment\n", "DIR/c.yaml: is empty"),
        ("- a\n- b\n", "DIR/c.yaml:1: a config is a mapping"),
        ("just text\n", "a config is a mapping"),
        ("a: 1\n---\nb: 2\n", "DIR/c.yaml:2:1: "),
        ("? [a]\n: 1\n", "a key must be a string"),
        ("true: 1\n", "a key must be a string"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: *nothing\n", "the alias *nothing is not supported"),
        ("a" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path, text, expected):
    message = refusal(tmp_path, text)
    assert message.startswith("DIR/c.yaml")
    assert expected in message


def test_paths_that_are_no_config(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for path, reason in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path / "folder.yaml", "directory"),
        (tmp_path / "data.json", "a config is a .yaml file"),
        (f"{tmp_path}/a\0b.yaml", "null"),
        (f"{tmp_path}/{'x' * 300}.yaml", "too long"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{printable(path)}: ") and reason in str(caught.value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "1e-3", "012", "~", "", "true", "<<", "=", "12:30", "- a", "a: b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, database=None)
@given(value=st.dictionaries(st.text(), plain, min_size=1, max_size=4))
def test_whatever_is_dumped_reads_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(value), encoding="utf-8", newline="")
    assert read(path)[0] == value
