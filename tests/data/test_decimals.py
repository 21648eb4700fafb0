"""Numbers read with numpy against `float`."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionkit.data.coco.decimals import read_numbers

digits = st.text("0123456789", max_size=20)
decimal = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.builds("{}{}.{}{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**12), digits,
              st.integers(0, 9)),
    st.floats(-700, 700).map(lambda x: repr(round(x, 2))),
    st.floats(-1e6, 1e6).map(repr).filter(lambda text: "e" not in text),
    st.sampled_from(["0", "-0", "0.0", "-0.0", "0.000001", "9007199254740993", "0.1", "100"]),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(decimal, min_size=1, max_size=20), st.sampled_from([",", ", ", "] [", "x"]))
def test_numbers_equal_those_of_json(texts, between):
    numbers = read_numbers(between.join(texts).encode())
    assert numbers.values.tolist() == [float(value) for value in json.loads(f"[{','.join(texts)}]")]
    spans = zip(numbers.starts, numbers.ends, strict=True)
    assert [numbers.text[a:b].tobytes().decode() for a, b in spans] == texts


@pytest.mark.parametrize(
    "text",
    ["01", "00", "-01", "1.", "-", ".5", "-.5", "1.2.3", "1..2", "1-2", "--1", "1.-", "1/2",
     "1.1.1.1.1.1.1", "12345678901234567.1.2", "123456.123456.1", "1.5-", "."],
)  # fmt: skip
def test_what_is_no_number_in_json_is_refused(text):
    with pytest.raises(ValueError):
        json.loads(text)
    for around in ("{}", "3.5, {}, 4", "[{}]"):
        assert read_numbers(around.format(text).encode()) is None


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789.-", min_size=1, max_size=24))
def test_any_run_of_these_characters_is_a_number_or_refused(text):
    try:
        expected = float(json.loads(text))
    except ValueError:
        expected = None
    found = read_numbers(text.encode())
    assert (found is None) == (expected is None)
    assert found is None or found.values.tolist() == [expected]


def test_many_numbers_and_none():
    values = np.random.default_rng(0).normal(0, 300, 50_000).round(3)
    assert (read_numbers(json.dumps(values.tolist()).encode()).values == values).all()
    assert len(read_numbers(b"{}").values) == len(read_numbers(b"").values) == 0
