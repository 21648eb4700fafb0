"""JSON made to exhaust whoever reads it is a data error like any other."""

import json

import pytest

from support.coco_files import save, small
from visionkit.data.datasets.coco import Coco
from visionkit.errors import DataError

DIGITS = "9" * 5000  # Python converts at most 4300


@pytest.mark.parametrize(
    ("place", "instead", "message"),
    [
        ('"id": 70', f'"id": {DIGITS}', "4300 digits"),
        ('"width": 20', f'"width": {DIGITS}', "4300 digits"),
        ('"id": 90', f'"id": {DIGITS}', "4300 digits"),
        ('"bbox": [2', f'"bbox": [{DIGITS}', "4300 digits"),
        ("[[2, 2, 8", f"[[{DIGITS}, 2, 8", "4300 digits"),
        ("[[2, 2, 8", "[[1e99999, 2, 8", "not finite"),
        ('"area": 33.5', '"area": 1e99999', "'area' is inf"),
        ('"area": 33.5', f'"deep": {"[" * 50_000}{"]" * 50_000}', "recursion"),
        ('"area": 33.5', '"deep": ' + '{"a":' * 50_000 + "1" + "}" * 50_000, "recursion"),
    ],
    ids=range(9),
)
def test_huge_numbers_and_depth(tmp_path, place, instead, message):
    data, text = save(tmp_path, small()), json.dumps(small())
    assert place in text
    (tmp_path / "hostile.json").write_text(text.replace(place, instead, 1))
    with pytest.raises(DataError, match=message) as caught:
        Coco(str(data.images), str(tmp_path / "hostile.json"))
    assert "hostile.json" in str(caught.value) and len(str(caught.value)) < 500
