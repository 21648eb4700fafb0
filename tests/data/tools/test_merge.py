"""Merged files: classes by name, ids, images in several files, labeled classes, bad input."""

import json

import numpy as np
import pytest
from PIL import Image

from visionkit.data.datasets.coco import Coco
from visionkit.data.tools.merge import merge_data as merge
from visionkit.errors import ArgumentError, ConfigError, DataError


def annotation(id_, image_id, category_id, box=(1, 1, 8, 6), **more):
    """The annotation of a box."""
    area = box[2] * box[3]
    record = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": list(box)}
    return {**record, "area": area, "iscrowd": 0, **more}


def write(path, images, annotations, categories, **more):
    """A file of `images` {id: name}; makes the image files in `images/` next to it."""
    records = []
    path.parent.mkdir(exist_ok=True)
    for id_, name in images.items():
        file = path.parent / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.new("RGB", (32, 24)).save(file)
        records.append({"id": id_, "file_name": name, "width": 32, "height": 24})
    for record in records:
        record.update(more.pop(f"image_{record['id']}", {}))
    categories = [{"id": id_, "name": name} for id_, name in categories.items()]
    content = {"images": records, "annotations": annotations, "categories": categories, **more}
    path.write_text(json.dumps(content))
    return path


def read(path):
    content = json.loads(path.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    objects = sorted(
        (files[o["image_id"]], names[o["category_id"]], tuple(o["bbox"]))
        for o in content["annotations"]
    )
    return content, objects


def notes(merged):
    return "\n".join(merged.lines())


def test_ids_stay_where_they_are_free(tmp_path):
    """B's image 1, object 1 and category 1 are taken; its 7, 8 and 9 are not."""
    a = write(tmp_path / "a/a.json", {1: "1.jpg"}, [annotation(1, 1, 1)], {1: "cat"})
    b = write(
        tmp_path / "b/b.json",
        {1: "1.jpg", 7: "2.jpg"},
        [annotation(1, 1, 1), annotation(8, 7, 9), annotation(9, 7, 2)],
        {1: "dog", 2: "cat", 9: "cow"},
    )
    merged = merge([a, b], tmp_path / "c.json")
    content, objects = read(tmp_path / "c.json")
    box = (1.0, 1.0, 8.0, 6.0)
    assert objects == [
        ("a/images/1.jpg", "cat", box),
        ("b/images/1.jpg", "dog", box),
        ("b/images/2.jpg", "cat", box),
        ("b/images/2.jpg", "cow", box),
    ]
    assert [one["id"] for one in content["images"]] == [1, 8, 7]
    assert sorted(one["id"] for one in content["annotations"]) == [1, 8, 9, 10]
    assert {o["name"]: o["id"] for o in content["categories"]} == {"cat": 1, "dog": 10, "cow": 9}
    assert "changed: 1 image id, 1 object id, 1 category id" in notes(merged)
    assert merged.images_folder == str(tmp_path)
    assert "a.json does not list dog, cow" in notes(merged)
    assert len(Coco(str(tmp_path), str(tmp_path / "c.json"))) == 3  # visionkit reads it


@pytest.fixture
def two(tmp_path):
    """Two files of the same folder that share the image 2.jpg: cats in one, dogs in the other."""
    a = write(
        tmp_path / "a.json",
        {1: "1.jpg", 2: "2.jpg"},
        [annotation(1, 1, 1), annotation(2, 2, 1)],
        {1: "cat"},
    )
    b = write(
        tmp_path / "b.json",
        {2: "2.jpg", 3: "3.jpg"},
        [annotation(1, 2, 5, (3, 3, 9, 9)), annotation(2, 3, 5)],
        {5: "dog"},
    )
    return a, b


def test_an_image_of_two_files_has_the_objects_of_both(two, tmp_path):
    merged = merge(two, tmp_path / "c.json")
    _, objects = read(tmp_path / "c.json")
    assert [one[:2] for one in objects] == [
        ("1.jpg", "cat"),
        ("2.jpg", "cat"),
        ("2.jpg", "dog"),
        ("3.jpg", "dog"),
    ]
    assert "joined: 1 image that several files have" in notes(merged)
    assert (merged.images, merged.objects, merged.categories) == (3, 4, 2)


def masks(path, images, step=1):
    """By file name, the classes that are labeled in its sample; None: all."""
    data = Coco(str(images), str(path))
    names = np.array(data.classes["labels"].names)
    found = {}
    for i, name in [*enumerate(data.file_names)][::step]:
        labeled = data[i].target().get("labeled")
        found[name] = None if labeled is None else set(names[labeled.numpy()].tolist())
    return found


def test_labeled_classes_are_those_of_the_files_of_an_image(two, tmp_path):
    """What training excludes from losses: the mask `labeled` of each sample."""
    merge(two, tmp_path / "c.json", labeled=True)
    assert masks(tmp_path / "c.json", tmp_path / "images") == {
        "1.jpg": {"cat"},
        "2.jpg": None,
        "3.jpg": {"dog"},
    }
    content, _ = read(tmp_path / "c.json")
    lists = [one.get("neg_category_ids") for one in content["images"]]
    assert lists == [[], None, []]  # the labeled class is there: none is absent
    merge(two, tmp_path / "d.json")
    assert set(masks(tmp_path / "d.json", tmp_path / "images").values()) == {None}


def test_a_labeled_class_that_is_absent_is_a_negative(tmp_path):
    write(tmp_path / "a.json", {1: "1.jpg"}, [annotation(1, 1, 1)], {1: "cat", 2: "cow"})
    write(tmp_path / "b.json", {2: "2.jpg"}, [annotation(1, 2, 1)], {1: "dog"})
    merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json", labeled=True)
    content, _ = read(tmp_path / "c.json")
    ids = {one["name"]: one["id"] for one in content["categories"]}
    assert content["images"][0]["neg_category_ids"] == [ids["cow"]]
    found = masks(tmp_path / "c.json", tmp_path / "images")
    assert found == {"1.jpg": {"cat", "cow"}, "2.jpg": {"dog"}}


def test_lists_of_labeled_classes_keep_their_meaning(tmp_path):
    """A is labeled as LVIS is: 1.jpg for cats and dogs, of which some dogs lack a label."""
    write(
        tmp_path / "a.json",
        {1: "1.jpg", 2: "2.jpg"},
        [annotation(1, 1, 2), annotation(2, 2, 2)],
        {1: "cat", 2: "dog", 3: "cow"},
        image_1={"neg_category_ids": [1], "not_exhaustive_category_ids": [2]},
        image_2={"neg_category_ids": [], "not_exhaustive_category_ids": []},
    )
    write(tmp_path / "b.json", {1: "3.jpg"}, [annotation(1, 1, 1)], {1: "dog", 3: "cow"})
    before = masks(tmp_path / "a.json", tmp_path / "images")
    assert before == {"1.jpg": {"cat"}, "2.jpg": {"dog"}}
    merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json", labeled=True)
    found = masks(tmp_path / "c.json", tmp_path / "images")
    assert found == {**before, "3.jpg": {"dog", "cow"}}
    content, _ = read(tmp_path / "c.json")
    assert content["images"][0]["not_exhaustive_category_ids"] == [2]
    merge([tmp_path / "b.json", tmp_path / "a.json"], tmp_path / "d.json")  # other ids
    found = masks(tmp_path / "d.json", tmp_path / "images")
    assert found == {**before, "3.jpg": None}


def test_objects_that_both_files_have_are_there_once(tmp_path):
    same = [annotation(1, 1, 1, attributes={"color": "red"}), annotation(2, 1, 1, (5, 5, 9, 9))]
    write(tmp_path / "a.json", {1: "1.jpg"}, same, {1: "cat"})
    write(tmp_path / "b.json", {1: "1.jpg"}, same[::-1], {1: "cat"})
    merged = merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")
    content, objects = read(tmp_path / "c.json")
    assert len(objects) == 2
    assert content["annotations"][0]["attributes"] == {"color": "red"}
    assert "dropped: 2 objects that an earlier file has exactly so" in notes(merged)


def test_a_class_that_both_label_differently_is_an_error(two, tmp_path):
    """All such images and classes at once."""
    b = json.loads(two[1].read_text())
    b["categories"][0]["name"] = "cat"
    two[1].write_text(json.dumps(b))
    with pytest.raises(DataError, match=r"2\.jpg: class 'cat' has 1 object in .*a\.json and 1 in"):
        merge(two, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_class_of_which_one_file_has_objects_is_joined_and_counted(tmp_path):
    write(tmp_path / "a.json", {1: "1.jpg"}, [annotation(1, 1, 1)], {1: "cat", 2: "dog"})
    write(tmp_path / "b.json", {1: "1.jpg"}, [annotation(1, 1, 2)], {1: "cat", 2: "dog"})
    merged = merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")
    assert merged.objects == 2
    assert "2 cases where two files list a class and one has objects of it" in notes(merged)


@pytest.mark.parametrize("by_file", [False, True])
def test_classes_are_renamed(two, tmp_path, by_file):
    names = {"dog": "cat2"}
    text = json.dumps({"b.json": names} if by_file else names)
    (tmp_path / "map.yaml").write_text(text)
    merge(two, tmp_path / "c.json", rename=tmp_path / "map.yaml")
    _, objects = read(tmp_path / "c.json")
    assert {one[1] for one in objects} == {"cat", "cat2"}


def test_two_classes_of_a_file_can_become_one(tmp_path):
    objects = [annotation(1, 1, 1), annotation(2, 1, 2, (4, 4, 9, 9))]
    write(tmp_path / "a.json", {1: "1.jpg"}, objects, {1: "car", 2: "van"})
    merge([tmp_path / "a.json"], tmp_path / "c.json", rename={"van": "car"})
    content, objects = read(tmp_path / "c.json")
    assert [one["name"] for one in content["categories"]] == ["car"]
    assert [one[1] for one in objects] == ["car", "car"]


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"dgo": "x"}, "unknown class 'dgo'; did you mean 'dog'"),
        ({"a.json": {"dog": "x"}}, "unknown class 'dog'"),
        ({"d.json": {"dog": "x"}}, r"unknown file 'd\.json'"),
        ({"dog": "x", "b.json": {"dog": "y"}}, "not both"),
        ({"dog": 3}, "the new name is 3"),
    ],
)
def test_a_wrong_map_is_an_error(two, tmp_path, rename, message):
    with pytest.raises(ConfigError, match=message):
        merge(two, tmp_path / "c.json", rename=rename)


def test_lists_at_the_top_are_merged(tmp_path):
    """Classes of images by name, licenses by content, info of the first file."""
    license_ = {"name": "MIT", "url": "u"}
    write(
        tmp_path / "a.json",
        {1: "1.jpg"},
        [],
        {1: "cat"},
        image_classes=["day", "night"],
        image_1={"class_id": 1, "license": 1},
        licenses=[{"id": 1, **license_}],
        info={"year": 1},
    )
    write(
        tmp_path / "b.json",
        {1: "2.jpg", 2: "3.jpg"},
        [annotation(1, 1, 1)],
        {1: "cat"},
        image_classes=["night", "dusk"],
        image_1={"class_id": 0, "license": 4},
        image_2={"class_id": 1, "license": 1},
        licenses=[{"id": 1, "name": "CC", "url": "u"}, {"id": 4, **license_}],
        info={"year": 2},
        more=[1],
    )
    merged = merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")
    content, _ = read(tmp_path / "c.json")
    assert content["image_classes"] == ["day", "night", "dusk"]
    assert [one["class_id"] for one in content["images"]] == [1, 1, 2]
    assert [one["license"] for one in content["images"]] == [1, 1, 2]
    assert [one["name"] for one in content["licenses"]] == ["MIT", "CC"]
    assert (content["info"], content["more"]) == ({"year": 1}, [1])
    assert "lost: 1 values at the top of files that differ" in notes(merged)


def test_several_classes_of_an_image(tmp_path):
    for name, classes, shown in (("a", ["x", "y"], [0, 1]), ("b", ["z", "x"], [1])):
        write(
            tmp_path / f"{name}.json",
            {1: f"{name}.jpg"},
            [annotation(1, 1, 1)],
            {1: "cat"},
            image_classes=classes,
            image_1={"class_id": shown},
        )
    merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")
    content, _ = read(tmp_path / "c.json")
    assert content["image_classes"] == ["x", "y", "z"]
    assert [one["class_id"] for one in content["images"]] == [[0, 1], [0]]


def test_images_that_are_not_found_are_asked_for(two, tmp_path):
    (tmp_path / "x").mkdir()
    moved = two[0].rename(tmp_path / "x/a.json")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.json: its images are not found .*--images DIR"):
        merge([moved, two[1]], tmp_path / "c.json")
    folder = tmp_path / "elsewhere"
    assert merge([moved, two[1]], tmp_path / "c.json", images=[folder]).images == 3
    with pytest.raises(ArgumentError, match="got 3 folders for 2 files"):
        merge([moved, two[1]], tmp_path / "d.json", images=[folder] * 3)
    with pytest.raises(ArgumentError, match="is not a folder"):
        merge([moved, two[1]], tmp_path / "d.json", images=[tmp_path / "no"])


def test_an_image_of_two_sizes_is_an_error(two, tmp_path):
    b = json.loads(two[1].read_text())
    b["images"][0]["width"] = 99
    two[1].write_text(json.dumps(b))
    with pytest.raises(DataError, match=r"2\.jpg: 'width' is 32, but 99 in"):
        merge(two, tmp_path / "c.json")


def test_nothing_is_overwritten(two, tmp_path):
    before = two[0].read_bytes()
    with pytest.raises(ConfigError, match="is the source"):
        merge(two, two[0])
    (tmp_path / "c.json").touch()
    with pytest.raises(ConfigError, match="already exists"):
        merge(two, tmp_path / "c.json")
    assert two[0].read_bytes() == before


def test_semantic_maps_of_other_classes_are_an_error(tmp_path):
    for name, classes in (("a", ["road", "sky"]), ("b", ["sky", "road"])):
        write(
            tmp_path / f"{name}.json", {1: f"{name}.jpg"}, [], {1: "cat"}, semantic_classes=classes
        )
    with pytest.raises(DataError, match="the numbers in the maps cannot be changed"):
        merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "c.json")


def test_twice_gives_the_same_bytes(two, tmp_path):
    merge(two, tmp_path / "c.json", labeled=True)
    merge(two, tmp_path / "d.json", labeled=True)
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "d.json").read_bytes()


def test_real_files_keep_every_object(real_data, tmp_path):
    """COCO's crowds and polygons, and the boxes of another dataset."""
    sources = [
        real_data / "coco_mini/annotations/instances_val2017.json",
        real_data / "bccd/annotations/val.json",
    ]
    merged = merge(sources, tmp_path / "c.json", labeled=True)
    content, _ = read(tmp_path / "c.json")
    old = [json.loads(path.read_text()) for path in sources]
    assert merged.losses == []
    assert merged.objects == sum(len(one["annotations"]) for one in old)
    assert len(old[0]["annotations"]) == 1121
    by_id = {one["id"]: one for one in content["annotations"]}
    for one in old[0]["annotations"]:
        new = by_id[one["id"]]
        assert new["bbox"] == one["bbox"]
        assert new["iscrowd"] == one["iscrowd"]
        if not one["iscrowd"]:
            assert new["segmentation"] == one["segmentation"]
    found = masks(tmp_path / "c.json", real_data, step=20)
    cells = {"WBC", "RBC", "Platelets"}
    assert all(labeled and labeled <= cells for name, labeled in found.items() if "bccd" in name)
    assert all(len(labeled) == 80 for name, labeled in found.items() if "coco" in name)
