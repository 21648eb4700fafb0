"""Polygons cut out of the text of annotations: only what `json` reads as polygons is taken."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visionkit.data.coco.annotation_text import KEY, cut_polygons

PLAIN = [
    "[[1,2,3,4,5,6]]",
    "[[1, 2.5, -3.25, 0, -0.5, 100], [0.0, 0, 0, -0, 10, 20.01]]",
    "[[1234.5, 99999, -123456789012345.125, 4, 5, 6,7,8]]",
]
BAD = [
    "01", "-01", "00", "-00.5", "1.", ".5", "-.5", "-", "--1", "1-", "1-2", "1.2.3", "1..2", "1 2",
    "1,,2", "1, ", " ,1", "1,  2", "1 , 2", "", "1.-5", "[1", "[[1", "1], [2", "1, 2", "a",
    "1e5", "NaN", "Infinity", "null", "+1", "1/2", "1:2", "1;2", "1\t", "1234567890123456", "\xb2",
]  # fmt: skip


def cut(polygons: str):
    return cut_polygons(f'{{"segmentation": {polygons}, "id": 1}}'.encode())


def are_polygons(value) -> bool:
    return all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(number) in (int, float) for number in polygon)
        for polygon in value
    )


@pytest.mark.parametrize("text", PLAIN)
def test_plain_polygons_are_taken_as_they_are(text):
    found = cut(text)
    assert json.loads(found.text) == {KEY: None, "id": 1}
    assert found.codes.decode() == text and found.sizes.tolist() == [len(text)]
    all_reduce_max = max(abs(number) for polygon in json.loads(text) for number in polygon)
    assert all_reduce_max < found.reach[0] <= max(1000, 10 * all_reduce_max)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_plain_is_left_to_json(bad):
    for numbers in ("{}, 2, 3, 4, 5, 6", "1, 2, {}, 4, 5, 6", "1,2,3,4,5,{}"):
        for around in ("[[{}]]", "[[{}], [1, 2, 3, 4, 5, 6]]", "[[1, 2, 3, 4, 5, 6], [{}]]"):
            assert cut(around.format(numbers.format(bad))) is None


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 9])
def test_too_few_numbers_or_an_odd_count_are_left_to_json(count):
    polygon = list(range(count))
    assert cut(json.dumps([polygon])) is None
    assert cut(json.dumps([[1, 2, 3, 4, 5, 6], polygon])) is None
    # The counts of two polygons add up.
    assert cut(json.dumps([polygon, list(range(12 - count)), [1] * 6])) is None


def test_each_record_has_its_text_and_reach():
    records = [{"segmentation": json.loads(text)} for text in PLAIN]
    found = cut_polygons(json.dumps(records)[1:-1].encode())
    assert [json.loads(code) for code, _ in found.outlines()] == [
        record["segmentation"] for record in records
    ]
    assert found.reach.tolist() == [1e3, 1e3, 1e15]


characters = st.text("0123456789.-,[] ", max_size=8)
number = st.sampled_from(["0", "7", "-1", "10", "0.5", "-0.25", "12.75", "1234", "640.01"])


@st.composite
def nearly_polygons(draw):
    """Polygons with a few characters changed, left out or added."""
    polygons = draw(st.lists(st.lists(number, min_size=5, max_size=8), min_size=1, max_size=3))
    comma = draw(st.sampled_from([",", ", "]))
    text = f"[{comma.join(f'[{comma.join(polygon)}]' for polygon in polygons)}]"
    for _ in range(draw(st.integers(0, 2))):
        at, gone = draw(st.integers(0, len(text))), draw(st.integers(0, 2))
        text = text[:at] + draw(st.text("0123456789.-,[] ", max_size=2)) + text[at + gone :]
    return text


@settings(max_examples=1000, deadline=None)
@given(nearly_polygons() | characters.map("[[{}, 1, 2, 3, 4, 5]]".format) | characters)
@example(" [[0,0,0,0,0,0]] ")
def test_only_what_json_reads_as_polygons_is_taken(text):
    found = cut(text)
    if found is None or not found.codes:
        return
    polygons = json.loads(found.codes)
    assert polygons and are_polygons(polygons)
    assert all(abs(number) < found.reach[0] for polygon in polygons for number in polygon)
    try:
        rest = json.loads(found.text)
    except ValueError:  # there was something behind the polygons
        with pytest.raises(ValueError):
            json.loads(text)
    else:
        assert rest == {KEY: None, "id": 1}
        assert found.codes.decode() == text.strip(" ")  # space around a value is not part of it


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(number, min_size=3, max_size=8), min_size=1, max_size=3), st.booleans())
def test_all_plain_polygons_are_taken(halves, spaced):
    comma = ", " if spaced else ","
    polygons = [comma.join(half + half) for half in halves]
    text = f"[[{f']{comma}['.join(polygons)}]]"
    assert cut(text).codes.decode() == text
