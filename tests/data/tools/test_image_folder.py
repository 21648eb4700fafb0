"""The folder of the images of an annotation file is found, or the user is asked."""

import pytest

from visionkit.data.tools.image_folder import find_images
from visionkit.errors import DataError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("a.json", "."),
        ("a.json", "images"),
        ("a.json", "photos"),
        ("annotations/a.json", "images"),
        ("annotations/a.json", "val2017"),
        ("annotations/a.json", "images/val2017"),
        ("annotations/a.json", "."),
    ],
)
def test_the_usual_places(tmp_path, file, folder):
    touch(tmp_path / file, tmp_path / folder / "x/1.jpg", tmp_path / folder / "2.jpg")
    found = find_images(tmp_path / file, ["x/1.jpg", "2.jpg", "missing.jpg"])
    assert found.resolve() == (tmp_path / folder).resolve()


def test_of_two_folders_that_of_more_images(tmp_path):
    touch(tmp_path / "train/1.jpg", tmp_path / "val/1.jpg", tmp_path / "val/2.jpg")
    assert find_images(tmp_path / "a.json", ["1.jpg", "2.jpg"]) == tmp_path / "val"


def test_of_two_folders_that_with_the_name(tmp_path):
    touch(tmp_path / "train/1.jpg", tmp_path / "val/1.jpg")
    assert find_images(tmp_path / "annotations/instances_val.json", ["1.jpg"]) == tmp_path / "val"
    with pytest.raises(DataError, match=r"train.*val.*--images DIR"):
        find_images(tmp_path / "annotations/all.json", ["1.jpg"])


def test_the_folder_of_another_dataset_is_not_taken(tmp_path):
    """The numbers that are its file names mean nothing; nor if it has more of them."""
    touch(tmp_path / "other/1.jpg", tmp_path / "other/images/1.jpg", tmp_path / "mine/a.json")
    assert find_images(tmp_path / "mine/a.json", ["1.jpg", "2.jpg"]) is None
    touch(tmp_path / "mine/images/1.jpg", tmp_path / "other/2.jpg")
    assert find_images(tmp_path / "mine/a.json", ["1.jpg", "2.jpg"]) == tmp_path / "mine/images"


def test_of_equal_folders_the_nearest(tmp_path):
    touch(tmp_path / "annotations/1.jpg", tmp_path / "1.jpg", tmp_path / "images/1.jpg")
    file = tmp_path / "annotations/a.json"
    assert find_images(file, ["1.jpg"]) == tmp_path / "annotations"


def test_absolute_names(tmp_path):
    touch(tmp_path / "a/b/1.jpg", tmp_path / "a/c/2.jpg")
    names = [str(tmp_path / "a/b/1.jpg"), str(tmp_path / "a/c/2.jpg")]
    assert find_images(tmp_path / "x/all.json", names) == tmp_path / "a"


def test_none_nearby(tmp_path):
    assert find_images(tmp_path / "a.json", ["1.jpg"]) is None
    assert find_images(tmp_path / "a.json", []) is None
