"""The index of a COCO file holds what the file says, however it is cut into chunks."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from visionkit.data.coco import index as index_module
from visionkit.data.coco import records as records_module
from visionkit.data.coco.index import CocoIndex, read_index
from visionkit.data.coco.reader import elements, read_list, read_members
from visionkit.data.coco.tables import flat
from visionkit.errors import DataError

RLE = coco_mask.encode(np.asfortranarray(np.eye(10, 20, dtype=np.uint8)))["counts"].decode()
TWO = [[1, 2, 3.5, 2, 3.25, 8], [2, 2, 8, 2, 8, 8.125, 2, 8]]
BASE = {"image_id": 70, "category_id": 3, "bbox": [2, 2, 6.5, 6]}
ODD = [
    {"id": 7, **BASE, "area": 33.123456789012345, "iscrowd": 0, "segmentation": TWO[:1]},
    {
        "id": 8,
        **BASE,
        "area": 1e-3,
        "iscrowd": 1,
        "segmentation": {"size": [10, 20], "counts": RLE},
    },
    {**BASE, "segmentation": {"size": [10, 20], "counts": [0, 10, 180, 0, 10]}},
    {"id": "text", **BASE, "segmentation": []},
    {"id": None, **BASE, "segmentation": None, "area": None, "iscrowd": None},
    {"id": 2**61, **BASE, "segmentation": TWO, "attributes": {"segmentation": TWO, "n": [1, {}]}},
    {"id": 2**80, **BASE, "note": 'a "segmentation": [[1, 2]]}, {"id": 3, \\" ]}', "track_id": 5},
    {"id": 5.0, **BASE, "image_id": 3.0, "note": "é 漢 😀 \x7f", "iscrowd": True},
    {"id": 6, **BASE, "segmentation": {"size": [10, 20], "counts": RLE, "order": "F"}},
    {"segmentation@": None, "id": 9, **BASE, "segmentation": TWO},
]  # fmt: skip
IMAGES = [
    {"id": 70, "file_name": "a.png", "width": 20, "height": 10, "license": 3},
    {"id": 3, "file_name": "ü/b c.png", "width": 20, "height": 10, "neg_category_ids": [3]},
    {"id": 4, "file_name": "c.d-e_f.png", "width": 20.0, "height": 10, "class_id": None,
     "identity": 5, "semantic": "maps/c.png", "flickr_url": "http://x/}, {"},
]  # fmt: skip
CATEGORIES = [{"id": 3, "name": "ox", "supercategory": "}, {"}]


def content(annotations):
    return {"info": {"a": [1]}, "images": IMAGES, "annotations": annotations,
            "categories": CATEGORIES, "licenses": [{"id": 1}, {"id": 2}]}  # fmt: skip


def index_of(tmp_path, text, **options):
    path = tmp_path / "a.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    index = read_index(path, **options)
    index.faults.raise_any()
    index.mask_faults.raise_any()
    return index


@pytest.fixture(params=["msgspec", "json"], autouse=True)
def decoder(request, monkeypatch):
    """Each test runs with the extra `fast` and without."""
    if request.param == "msgspec":
        pytest.importorskip("msgspec")
    else:
        monkeypatch.setattr(records_module, "fast_json", None)
    return request.param


def check(index: CocoIndex, data):
    assert [index.images.record(i) for i in range(len(index.images.ids))] == data["images"]
    records = [index.objects.record(i) for i in range(len(index.objects.ids))]
    assert records == list(map(compressed, data["annotations"]))
    assert index.categories == data["categories"]


def compressed(record):
    """With the run lengths of its RLE compressed, as an index returns them."""
    mask = record.get("segmentation")
    if not isinstance(mask, dict) or not isinstance(mask["counts"], list):
        return record
    counts = coco_mask.frPyObjects(mask, *mask["size"])["counts"].decode()
    return {**record, "segmentation": {**mask, "counts": counts}}


def test_every_record_comes_back(tmp_path):
    index = index_of(tmp_path, content(ODD))
    check(index, content(ODD))
    assert index.has_masks
    assert index.image_keys == ["class_id", "flickr_url", "license", "neg_category_ids"]
    assert {"attributes", "note", "track_id", "id", "area"} <= set(index.object_keys)
    assert index.objects.image.tolist() == [0] * 7 + [1] + [0] * 2
    assert index.images.extra_records()[1] == {"id": 3, "neg_category_ids": [3]}


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 1}])
@pytest.mark.parametrize(("step", "near"), [(29, 3), pytest.param(7, 1, marks=pytest.mark.slow)])
def test_chunks_may_end_anywhere(tmp_path, style, step, near):
    text = json.dumps(content(ODD), ensure_ascii=False, **style)
    for chunk in range(1, len(text), step):
        check(index_of(tmp_path, text, chunk=chunk), content(ODD))
    first = text.index('"annotations"')
    for chunk in range(1, 300, near):  # places around the first records
        check(index_of(tmp_path, text[:first] + text[first:], chunk=chunk), content(ODD))


def plain(count, seed=0):
    rng = random.Random(seed)
    records = []
    for i in range(count):
        polygons = [
            [round(rng.uniform(0, 20), rng.randint(0, 4)) for _ in range(2 * rng.randint(3, 9))]
            for _ in range(rng.randint(1, 3))
        ]
        box = [round(rng.uniform(0, 9), 2) for _ in range(4)]
        records.append({"id": i, "image_id": 70, "category_id": 3, "bbox": box, "iscrowd": i % 2,
                        "area": rng.uniform(0, 99), "segmentation": polygons})  # fmt: skip
    return records


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 1}])
@pytest.mark.parametrize("masks", [True, False])
def test_plain_annotations_are_decoded_by_msgspec(tmp_path, style, masks, decoder, monkeypatch):
    records = plain(40)
    if not masks:
        for record in records:
            del record["segmentation"]
    data = content(records)
    data["annotations"] = data.pop("annotations")  # so that the last chunk ends with the list
    if decoder == "msgspec":  # of all chunks but the last, which holds the end of the list
        found = []
        add = records_module.AnnotationReader.add
        monkeypatch.setattr(
            records_module.AnnotationReader,
            "add",
            lambda self, records: (found.extend(records), add(self, records)),
        )
    check(index_of(tmp_path, json.dumps(data, **style), chunk=3000), data)
    assert decoder == "json" or len(found) < 40


def test_a_file_and_a_dict_have_the_same_columns(tmp_path):
    for data in (content(plain(60)), content(plain(60) + ODD)):
        index = index_of(tmp_path, data, chunk=700)
        expected = index_of_dict(data)
        for table in ("images", "objects"):
            columns = flat(getattr(expected, table), table)
            for name, column in flat(getattr(index, table), table).items():
                assert column.dtype == columns[name].dtype
                np.testing.assert_array_equal(column, columns[name], name)


def index_of_dict(data):
    index = index_module.index_of(data, "a dict")
    index.faults.raise_any()
    index.mask_faults.raise_any()
    return index


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ('"iscrowd": 0', '"iscrowd": 0, "x": {"segmentation": [[1, 2, 3, 4, 5, 6]]}'),
        ('"iscrowd": 0', '"segmentation": [[9, 9, 9, 9, 9, 9]], "iscrowd": 0'),
        ('"iscrowd": 0', '"\\u0073egmentation@": null, "iscrowd": 0'),
        ('"iscrowd": 0', '"iscrowd": 0, "note": "1.5"'),
        ('"iscrowd": 0', '"iscrowd": 0, "key1": 2'),
        ('"iscrowd": 0', '"iscrowd": 1e0'),
        ('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 1'),
        ('"iscrowd": 0', '"iscrowd": 0, "area": 1.25E+1'),
        ("[[", "[[1.5e0, 2, "),
        ("[[", "[[-0, -0.0, "),
        ("[[", "[[1 , 2\t,\n"),
        ("]]", "], [1, 2, 3, 4, 5, 6]]"),
    ],
)
def test_what_differs_from_the_usual_is_read_as_json_does(tmp_path, find, replace):
    text = json.dumps(content(plain(6)))
    for which in range(1, 4):
        parts = text.split(find)
        changed = find.join(parts[:which]) + replace + find.join(parts[which:])
        check(index_of(tmp_path, changed), json.loads(changed))
    changed = text.replace(find, replace)
    check(index_of(tmp_path, changed), json.loads(changed))


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ("[[", "[[1,, 2"), ("[[", "[[1 2, "), ("[[", "[[,"), ("]]", ",]]"), ("]]", "]"),
        ("]]", "]]]"), ("]]", "], ]"), ("[[", "[[01, 2, "), ("[[", "[[1., 2, "), ("[[", "[[1"),
        ('"iscrowd": 0', '"iscrowd": 00'), ('"iscrowd": 0', '"iscrowd": 0,'), ("}, {", "} {"),
        ("}, {", "},, {"), ("}, {", "}, "), ("]]", "]] 1"), ('"iscrowd": 0', '"iscrowd": 0 1'),
    ],
)  # fmt: skip
def test_malformed_text_is_refused_wherever_it_stands(tmp_path, find, replace):
    records = json.dumps(plain(6))
    for changed in [records.replace(find, replace), records.replace(find, replace, 1)]:
        with pytest.raises((DataError, ValueError)):
            json.loads(changed)
            pytest.skip("this one is JSON")
        whole = json.dumps(content([])).replace('"annotations": []', f'"annotations": {changed}')
        for chunk in (1, 100, 1000, 1 << 20):
            with pytest.raises(DataError):
                index_of(tmp_path, whole, chunk=chunk)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 400])
def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path, value):
    text = json.dumps(content(plain(5))).replace("[[", f"[[1, {value}, ", 3)
    with pytest.raises(DataError, match=r"3 problems[\s\S]*annotations\[2\] \(id 2\): 'segm"):
        index_of(tmp_path, text)


def test_a_fault_in_a_later_chunk_has_its_place_in_the_file(tmp_path):
    records = plain(50)
    records[41] |= {"bbox": [1, 2, 3], "segmentation": [[1, 2, 3]]}
    with pytest.raises(DataError, match=r"annotations\[41\] \(id 41\): 'bbox'"):
        index_of(tmp_path, content(records), chunk=500)
    index = read_index(tmp_path / "a.json", chunk=500)
    assert index.faults.count == index.mask_faults.count == 1
    records[45:47] = [None, 3]
    with pytest.raises(DataError, match=r"annotations\[45\] is None, not an object"):
        index_of(tmp_path, content(records), chunk=500)


def test_numbers_of_outlines_lose_nothing(tmp_path):
    records = plain(3)
    for record in records:
        record["segmentation"] = [[0.1, 1 / 3, 5, -0.0, 1e-9, 12.00000000000001]]
    for records[1]["segmentation"][0][4] in (0.25, 1e-9):  # without and with an exponent
        index = index_of(tmp_path, content(records))
        for row, record in enumerate(records):
            found = index.objects.record(row)["segmentation"]
            assert repr(found) == repr([list(map(float, part)) for part in record["segmentation"]])
            points, (expected,) = index.objects.masks[row].points, record["segmentation"]
            assert points.dtype == np.float64 and points.ravel().tolist() == expected


@pytest.mark.parametrize(
    "value", [250, 199.99, 200, 200.01, 999, 1000, 1234.5, -200, -1000, 123456789012345]
)
def test_outlines_farther_than_ten_times_the_image_are_found(tmp_path, value):
    records = plain(4)
    for axis in (0, 1):  # x, y of an image of 20x10
        records[2]["segmentation"] = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8]]
        records[2]["segmentation"][1][axis + 2] = value
        (tmp_path / "a.json").write_text(json.dumps(content(records)))
        index = read_index(tmp_path / "a.json")
        assert index.mask_faults.count == (abs(value) > 200)


@pytest.mark.parametrize(("width", "is_far"), [(123, True), (124, False), (1000, False)])
def test_a_coordinate_of_four_digits_is_far_in_a_small_image_alone(tmp_path, width, is_far):
    data = content(plain(2))
    data["images"] = [{**IMAGES[0], "width": width, "height": 100}]
    data["annotations"][1]["segmentation"] = [[1, 2, 1234.5, 4, 5, 6]]
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert read_index(tmp_path / "a.json").mask_faults.count == is_far


@pytest.mark.parametrize("spread", [1, 10**6])
def test_objects_find_their_images_by_id_and_are_put_in_their_order(tmp_path, spread):
    rng, records = random.Random(0), plain(90)
    ids = rng.sample(range(-20, 20), 12)
    images = [{**IMAGES[0], "id": spread * id_, "file_name": f"{id_}.png"} for id_ in ids]
    for record in records:
        record["image_id"] = spread * rng.choice(ids)
    records[5]["image_id"], records[9]["image_id"] = 21 * spread, 10**12
    (tmp_path / "a.json").write_text(json.dumps(content(records) | {"images": images}))
    index = read_index(tmp_path / "a.json")
    assert np.flatnonzero(index.objects.image < 0).tolist() == [5, 9]
    where = {image["id"]: row for row, image in enumerate(images)}
    found = index.objects.image.tolist()
    assert found == [where.get(record["image_id"], -1) for record in records]
    order = sorted(range(len(records)), key=found.__getitem__)
    assert index.objects.rows_by_image().tolist() == order


def test_a_file_that_is_cut_short_has_the_byte_where_it_ends(tmp_path):
    content = {"categories": [], "images": [{"file_name": "ä" * 90, "id": 1}] * 9}
    text = json.dumps(content, ensure_ascii=False)
    cut = text.encode()[:701]
    (tmp_path / "a.json").write_bytes(cut)
    with pytest.raises(DataError, match=r"Unterminated string.*: byte (\d+)") as caught:
        read_index(tmp_path / "a.json", chunk=64)
    place = int(re.search(r"byte (\d+)", str(caught.value))[1])
    assert cut[place : place + 1] == b'"' and b'"' not in cut[place + 1 :]


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    text = json.dumps(content([]))
    with pytest.raises(DataError, match="'images' is there twice"):
        index_of(tmp_path, text[:-1] + ', "images": []}')


word = st.text('ab{}[]",: \\\u00e9\u6f22', max_size=5)
scalar = st.one_of(st.none(), st.booleans(), st.integers(), word, st.floats(-9, 9))
value = st.one_of(
    scalar, st.lists(scalar, max_size=3), st.lists(st.dictionaries(word, scalar), max_size=3)
)
member = st.dictionaries(word, value, max_size=4)


@settings(max_examples=150, deadline=None)
@given(member, st.lists(value | member, max_size=6), st.integers(1, 60), st.booleans())
def test_members_equal_those_of_json(others, listed, chunk, ascii_only):
    data = {**others, "list": listed, "end": "}, {"}
    text = json.dumps(data, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found = []

    def take(part):
        values, end = elements(part)
        found.extend(values)
        return end

    assert read_members(text, {"list": take}, chunk) | {"list": found} == data
    found.clear()
    whole = json.dumps(listed, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert read_list(whole + b", 1", 0, take, chunk) == len(whole) and found == listed
