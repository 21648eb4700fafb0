"""Samples of images: size, order, class shares, the same for the same seed."""

import json

import pytest

from visionkit.data.tools.sample import sample_data as sample
from visionkit.errors import ArgumentError, ConfigError


@pytest.fixture
def file(tmp_path):
    """200 images: 120 with cats, 40 with dogs, 20 with both, 20 with nothing."""
    images, annotations = [], []
    for i in range(200):
        images.append({"id": 1000 - i, "file_name": f"{i}.jpg", "width": 32, "height": 24})
        kinds = [1] * (i % 10 < 6 or i % 10 == 8) + [2] * (i % 10 in (6, 7, 8))
        for kind in kinds:
            record = {"id": len(annotations), "image_id": 1000 - i, "category_id": kind}
            annotations.append({**record, "bbox": [1, 1, 8, 6], "area": 48, "iscrowd": 0})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "all.json"
    path.write_text(json.dumps({**content, "info": {"year": 1}}))
    return path


def counted(path):
    """Images, and how many have cats, dogs, nothing."""
    content = json.loads(path.read_text())
    has = {one["id"]: set() for one in content["images"]}
    for one in content["annotations"]:
        has[one["image_id"]].add(one["category_id"])
    kinds = [*has.values()]
    return len(kinds), sum(1 in k for k in kinds), sum(2 in k for k in kinds), kinds.count(set())


@pytest.mark.parametrize("by", [None, "class", "balanced"])
def test_as_many_images_as_wanted_in_the_order_of_the_file(file, tmp_path, by):
    before = json.loads(file.read_text())
    done = sample(file, 50, by=by)
    assert done.out == str(tmp_path / "all-50.json")
    content = json.loads((tmp_path / "all-50.json").read_text())
    ids = [one["id"] for one in content["images"]]
    assert len(set(ids)) == 50
    assert ids == sorted(ids, reverse=True)
    wanted = [one for one in before["annotations"] if one["image_id"] in ids]
    assert [one["id"] for one in content["annotations"]] == [one["id"] for one in wanted]
    assert content["categories"] == before["categories"]
    assert content["info"] == {"year": 1}
    assert done.objects == len(wanted)


def test_class_shares_are_kept(file, tmp_path):
    """Of 200 images 140 have a cat, 60 a dog, 20 nothing: of 50 then 35, 15 and 5."""
    for seed in range(5):
        out = tmp_path / f"{seed}.json"
        sample(file, 50, out, by="class", seed=seed)
        count, cats, dogs, none = counted(out)
        assert count == 50
        assert abs(cats - 35) <= 1
        assert abs(dogs - 15) <= 1
        assert abs(none - 5) <= 1


def test_balanced_samples_have_equally_many_of_each_class(file, tmp_path):
    sample(file, 50, tmp_path / "a.json", by="balanced")
    _, cats, dogs, none = counted(tmp_path / "a.json")
    assert abs(cats - dogs) <= 1
    assert none == 0
    sample(file, 195, tmp_path / "b.json", by="balanced")
    assert counted(tmp_path / "b.json")[3] == 15  # nothing else is left


def test_the_seed_decides(file, tmp_path):
    for by in (None, "class", "balanced"):
        outs = [tmp_path / f"{by}-{name}.json" for name in "abc"]
        for out, seed in zip(outs, (0, 0, 1), strict=True):
            sample(file, 20, out, by=by, seed=seed)
        texts = [out.read_bytes() for out in outs]
        assert texts[0] == texts[1] != texts[2]


def test_wrong_arguments(file, tmp_path):
    with pytest.raises(ArgumentError, match=r"got 201, but .* has 200 images"):
        sample(file, 201)
    with pytest.raises(ConfigError, match="is the source"):
        sample(file, 20, file)
    assert counted(file)[0] == 200
    sample(file, 20)
    with pytest.raises(ConfigError, match="already exists"):
        sample(file, 20)


def test_real_data(real_data, tmp_path):
    """BCCD, in which RBC are in 197 of 205 images and platelets in 117."""
    source = real_data / "bccd/annotations/train.json"
    done = sample(source, 41, tmp_path / "a.json", by="class")
    assert (done.images, done.of) == (41, 205)
    assert done.images_folder == str(real_data / "bccd/images")
    content = json.loads((tmp_path / "a.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    platelets = {
        o["image_id"] for o in content["annotations"] if names[o["category_id"]] == "Platelets"
    }
    assert abs(len(platelets) - 117 / 5) <= 1
