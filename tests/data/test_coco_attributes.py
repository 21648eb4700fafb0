"""Attributes in a COCO file: what each kind of value means, which faults are found and where."""

import numpy as np
import pytest
import torch

from visionkit.data.attributes import describe, groups
from visionkit.data.checks.findings import Problems
from visionkit.data.coco.attributes import MOST_VALUES, read_attributes
from visionkit.errors import ConfigError, DataError

NAN = np.nan


def read(*attributes, **options):
    """The table of annotations with these `attributes`; `...` leaves the key out."""
    records = [{"id": 100 + i} for i in range(len(attributes))]
    for record, value in zip(records, attributes, strict=True):
        if value is not ...:
            record["attributes"] = value
    problems = Problems("file.json")
    table = read_attributes(records, problems, **options)
    problems.raise_any()
    return table


def fault(*attributes, **options):
    with pytest.raises(DataError) as caught:
        read(*attributes, **options)
    return str(caught.value)


def test_all_kinds_of_values():
    table = read(
        {"open": True, "color": "red", "holds": ["cup", "pen"]},
        {"open": False, "color": "blue"},
        {"holds": []},
        ...,
        {"color": None, "open": True, "holds": ["cup"]},
        {"color": ""},
    )
    assert table.classes.names == ("color=blue", "color=red", "holds:cup", "holds:pen", "open")
    assert table.classes.ids == (0, 1, 2, 3, 4)
    assert table.values.dtype == np.float32
    expected = [
        [0, 1, 1, 1, 1],
        [1, 0, NAN, NAN, 0],
        [NAN, NAN, 0, 0, NAN],
        [NAN] * 5,
        [NAN, NAN, 1, 0, 1],
        [NAN] * 5,
    ]
    np.testing.assert_array_equal(table.values, expected)


def test_whole_numbers_are_texts_and_a_value_may_hold_separators():
    table = read({"size": 3, "at": "12:30=noon"}, {"size": "3"}, {"size": 10.0})
    assert table.classes.names == ("at=12:30=noon", "size=10", "size=3")
    np.testing.assert_array_equal(table.values[:, 1:], [[0, 1], [0, 1], [1, 0]])
    assert groups(table.classes.names)["at"].values == ["12:30=noon"]
    assert read({"size": 10**400}).classes.names == (f"size={10**400}",)
    assert read({"marks": [1, "b"]}).classes.names == ("marks:1", "marks:b")


def test_an_attribute_that_is_never_true_is_still_a_class():
    table = read({"open": False}, ...)
    assert table.classes.names == ("open",)
    np.testing.assert_array_equal(table.values, [[0], [NAN]])


def test_a_file_without_attributes_has_no_table():
    assert read() is None
    assert read(..., {}, None, {"color": None}, {"holds": []}) is None


@pytest.mark.parametrize(
    ("second", "parts"),
    [
        ({"color": 0.5}, ["'color' is 0.5", "an integer"]),
        ({"color": {"hue": 3}}, ["'color' is {'hue': 3}"]),
        ({"color": float("nan")}, ["'color' is nan"]),
        ({"holds": ["cup", True]}, ["'holds' is ['cup', True]"]),
        ({"holds": [""]}, ["'holds' is ['']"]),
        ({"a=b": True}, ["'a=b'", "'=' or ':'"]),
        ({"a:b": "x"}, ["'a:b'", "'=' or ':'"]),
        ({"": "x"}, ["attribute ''"]),
        ({"color": True}, ["'color' is True", "annotations[0] (id 100) it is a string"]),
        ({"color": ["red"]}, ["'color' is ['red']", "a string"]),
        ({"open": 1}, ["'open' is 1", "true or false"]),
        ({"holds": "cup"}, ["'holds' is 'cup'", "a list"]),
        (["red"], ["'attributes' is ['red']", "{name: value}"]),
        ("red", ["'attributes' is 'red'"]),
    ],
)
def test_each_fault_has_a_place_and_a_reason(second, parts):
    message = fault({"color": "red", "open": True, "holds": ["cup"]}, second)
    assert "file.json: 1 problem\n" in message and "annotations[1] (id 101)" in message
    for part in parts:
        assert part in message


def test_numbers_of_tracks_are_no_attribute_but_can_be_left_out():
    tracks = [{"track": i, "color": "red"} for i in range(MOST_VALUES + 1)]
    assert read(*tracks[1:]).values.shape == (MOST_VALUES, MOST_VALUES + 1)
    message = fault(*tracks)
    assert f"'track' has {MOST_VALUES + 1} different values" in message
    assert "in `attributes` of the dataset" in message
    assert read(*tracks, wanted=["color"]).classes.names == ("color=red",)


def test_wanted_names_are_read_and_others_may_hold_anything():
    odd = [{"color": "red", "rotation": 12.5}, {"color": "blue", "rotation": "?"}]
    assert read(*odd, wanted=["color"]).classes.names == ("color=blue", "color=red")
    assert read("nonsense", wanted=[]) is None
    assert "none has the attribute 'shape'" in fault(*odd, wanted=["color", "shape"])


def test_listed_classes_are_fixed_in_their_order():
    listed = ["open", "color=red", "color=green", "color=blue", "holds:cup"]
    table = read({"color": "blue"}, {"open": True, "color": "red"}, listed=listed)
    assert table.classes.names == tuple(listed)
    expected = [[NAN, 0, 0, 1, NAN], [1, 1, 0, 0, NAN]]
    np.testing.assert_array_equal(table.values, expected)
    few = read({"color": "red", "open": 0.5}, listed=listed, wanted=["color"])
    assert few.classes.names == ("color=red", "color=green", "color=blue")
    assert "'color=pink'" in fault({"color": "pink"}, listed=listed)
    assert "attribute_classes" in fault({"color": "red"}, listed=["color=red", "color"])


def test_the_classes_of_other_data():
    """Absent columns: no where another value is known, else not known; others are an error."""
    train = ["color=blue", "color=green", "color=red", "holds:cup", "holds:pen", "lid", "open"]
    own = read(
        {"color": "red", "open": True, "holds": ["pen"]}, {"color": "green"}, {"holds": []}, ...
    )
    table = own.classes_from(train, "val.json")
    assert table.classes.names == tuple(train) and table.classes.ids == tuple(range(7))
    expected = [
        [0, 0, 1, 0, 1, NAN, 1],
        [0, 1, 0, NAN, NAN, NAN, NAN],
        [NAN, NAN, NAN, 0, 0, NAN, NAN],
        [NAN] * 7,
    ]
    np.testing.assert_array_equal(table.values, expected)
    with pytest.raises(DataError) as caught:
        own.classes_from(["color=red", "open", "holds=pen"], "val.json")
    message = str(caught.value)
    assert "val.json" in message and "'color=green', 'holds:pen'" in message


def test_names_form_groups():
    found = groups(["b=1", "a", "b=2", "c:x", "c:y=z"])
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == ("one_of", [0, 2], ["1", "2"])
    assert found["a"] == ("yes_no", [1], [""])
    assert found["c"] == ("any_of", [3, 4], ["x", "y=z"])
    assert groups([]) == {}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["a", "a=b"], "'a' has the classes 'a' and 'a=b'"),
        (["a=b", "a:b"], "'a=b' and 'a:b'"),
        (["a", "a"], "'a' is given twice"),
        (["a=b", "a=b"], "'a=b' is given twice"),
        ([""], "class ''"),
        (["=b"], "class '=b'"),
        (["a="], "class 'a='"),
    ],
)
def test_names_that_mean_nothing(names, part):
    with pytest.raises(ConfigError) as caught:
        groups(names)
    assert part in str(caught.value)


def test_one_object_in_words():
    names = ["color=blue", "color=red", "covered", "holds:cup", "holds:pen"]
    assert describe(names, torch.tensor([0.07, 0.93, 0.49, 0.5, 0.1])) == [
        "color red 93%",
        "holds cup 50%",
    ]
    assert describe(names, torch.tensor([0.4, 0.2, 0.71, 0.0, 0.9])) == [
        "color blue 40%",
        "covered 71%",
        "holds pen 90%",
    ]
