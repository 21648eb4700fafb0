"""Objects of a COCO file as images of their own."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from visionkit.data.datasets.coco import Crops
from visionkit.errors import DataError
from visionkit.types import Classes

WIDTH, HEIGHT = 80, 60
BOXES = [[10, 10, 20, 20], [60, 30, 20, 30], [5, 5, 40, 3], [30.5, 20.5, 16, 16], [0, 0, 80, 60]]


def write(folder, boxes=BOXES, categories=(7, 3, 3, 3, 3), crowds=(0, 0, 0, 0, 1), extra=None):
    """One image whose red is the column and green the row of a pixel."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    (folder / "images").mkdir()
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    annotations = [
        {"id": 50 - i, "image_id": 4, "category_id": category, "bbox": box, "iscrowd": crowd}
        for i, (box, category, crowd) in enumerate(zip(boxes, categories, crowds, strict=True))
    ]
    for annotation, more in zip(annotations, extra or [], strict=False):
        annotation |= more
    data = {
        "images": [{"id": 4, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return str(folder / "images"), str(folder / "a.json")


def window(sample):
    """Left, top, right and bottom of a crop, read off its pixels."""
    red, green = sample.image[0], sample.image[1]
    return [int(red[0, 0]), int(green[0, 0]), int(red[-1, -1]) + 1, int(green[-1, -1]) + 1]


def test_each_object_is_a_image(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "visionkit"):
        crops = Crops(*write(tmp_path))
    assert crops.keys == ("class_id", "identity")
    assert crops.classes == {"class_id": Classes(("dog", "cat"), (3, 7))}
    assert len(crops) == 3  # without the thin one and the crowd
    samples = list(crops)
    # Two pixels more at each side; three in height and clipped; 1.6 more, rounded outwards.
    assert [window(s) for s in samples] == [[8, 8, 32, 32], [58, 27, 80, 60], [28, 18, 49, 39]]
    assert (
        [s.orig_size for s in samples]
        == [s.size for s in samples]
        == [
            (24, 24),
            (33, 22),
            (21, 21),
        ]
    )
    assert [s.class_id for s in samples] == [s.identity for s in samples] == [1, 0, 0]
    assert crops.identities.tolist() == [1, 0, 0]
    assert [s.image_id for s in samples] == crops.image_ids == [0, 1, 3]
    assert crops.image_path(2) == tmp_path / "images" / "a.png"
    assert crops.dropped["objects smaller than min_size"] == 1
    assert "1 objects smaller than min_size dropped" in caplog.text
    with pytest.raises(IndexError):
        crops[3]


def test_margin_and_size_are_knobs(tmp_path):
    crops = Crops(*write(tmp_path), margin=0, min_size=3)
    assert [window(s) for s in crops] == [
        [10, 10, 30, 30],
        [60, 30, 80, 60],
        [5, 5, 45, 8],
        [30, 20, 47, 37],
    ]
    assert crops.dropped["objects smaller than min_size"] == 0


def test_classes_are_chosen_as_in_coco(tmp_path):
    files = write(tmp_path)
    crops = Crops(*files, classes=["cat"], other_classes="ignore")
    assert [s.class_id for s in crops] == [0]
    assert crops.classes["class_id"] == Classes(("cat",), (7,))
    with pytest.raises(DataError, match="'dog'"):
        Crops(*files, classes=["cat"])


def test_identity_may_be_a_number_or_a_text_of_the_annotation(tmp_path):
    tracks = [{"track": "b"}, {"track": 12}, {}, {"track": "b"}, {}]
    crops = Crops(*write(tmp_path, extra=tracks), identity="track", min_size=1)
    assert crops.identities.tolist() == [1, 0, -1, 1] and crops.identities.dtype == np.int64
    assert [s.identity for s in crops] == [1, 0, None, 1]
    assert [s.class_id for s in crops] == [1, 0, 0, 0]
    assert "identity" not in crops[2].target()


def test_faults_of_the_identity(tmp_path):
    extra = [{"track": 1.5}, {"track": ["a"]}, {}, {"track": True}]
    files = write(tmp_path, extra=extra)
    with pytest.raises(DataError, match="3 problems") as caught:
        Crops(*files, identity="track")
    assert "annotations[0] (id 50): 'track' is 1.5: must be an integer" in str(caught.value)
    with pytest.raises(DataError, match="no object has 'name'"):
        Crops(*files, identity="name")


def test_no_object_large_enough(tmp_path):
    with pytest.raises(DataError, match=r"none of 4 objects.*lower min_size"):
        Crops(*write(tmp_path), min_size=50)
