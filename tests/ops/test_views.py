"""Where the views of an image are, and what they find in its pixels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from visionkit.errors import ArgumentError
from visionkit.ops.views import View, Views


def test_the_image_itself_is_the_first_view():
    views = Views.of("flip, 0.83,1.2").plan((30, 40))
    assert len(views) == 6 and views[0] == View((30, 40), (0, 0, 40, 30))
    ways = {(view.scale, view.flip) for view in views}
    assert ways == {(scale, flip) for scale in (1, 0.83, 1.2) for flip in (False, True)}
    assert Views.of([1.5]).plan((30, 40))[1:] == [View((30, 40), (0, 0, 40, 30), False, 1.5)]


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (641, 640), (1000, 300), (65, 70)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.85])
def test_tiles_cover_the_image_and_overlap(height, width, overlap):
    tile = 64 if height < 100 else 640
    views = Views.of(tiles=tile, overlap=overlap).plan((height, width))
    assert views[0].window == (0, 0, width, height)
    covered = np.zeros((height, width), bool)
    for view in views[1:]:
        left, top, right, bottom = view.window
        assert (bottom - top, right - left) == (min(tile, height), min(tile, width))
        covered[top:bottom, left:right] = True
    assert covered.all()
    for start, stop in ((0, 2), (1, 3)):
        spans = sorted({(view.window[start], view.window[stop]) for view in views[1:]})
        for (_, end), (begin, _) in pairwise(spans):
            assert end - begin >= int(overlap * tile)


def test_an_image_as_large_as_a_tile_has_none():
    assert len(Views.of(tiles=64).plan((64, 40))) == 1
    assert len(Views.of(tiles=64).plan((64, 65))) == 3


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_what_is_at_a_pixel_of_a_view_is_there_in_the_image(flip, kind):
    """A box around one bright pixel, and its mask, come back to it."""
    image = np.zeros((3, 20, 30), np.uint8)
    image[:, 7, 12] = 255
    view = View((20, 30), (10, 5, 26, 15), flip)
    part = np.asarray(view.cut(kind(image)))
    assert part.shape == (3, 10, 16)
    (row,), (column,) = np.nonzero(part[0])
    box = np.array([[column, row, column + 1, row + 1]], np.float32)
    assert view.boxes(box).tolist() == [[12, 7, 13, 8]]
    rle = coco_mask.encode(np.asfortranarray(part[0] > 0, np.uint8))
    found = coco_mask.decode(view.encoded(view.pixels(rle)))
    assert np.array_equal(found, image[0] > 0)


def test_an_empty_mask_stays_empty():
    view = View((20, 30), (10, 5, 26, 15))
    assert not coco_mask.decode(view.encoded(np.zeros((10, 16), np.uint8))).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tta": "flop"}, "tta: got flop; expected flip and scales"),
        ({"tta": "flip,flip"}, "tta: got flip twice"),
        ({"tta": "1"}, "tta: got 1;"),
        ({"tta": "0.5,0.5"}, "tta: got 0.5 twice"),
        ({"tta": "-1"}, "tta: got -1;"),
        ({"tta": "nan"}, "tta: got nan;"),
        ({"tta": ""}, "tta: got ''"),
        ({"tta": 0.5}, "tta: got 0.5;"),
        ({"tta": [True]}, "tta: got True;"),
        ({"tta": [9]}, "tta: got 9;"),
        ({"tiles": 63}, "tiles: got 63; expected the side of a tile in pixels, an integer >= 64"),
        ({"tiles": 640.0}, "tiles: got 640.0;"),
        ({"tiles": True}, "tiles: got True;"),
        ({"tiles": 640, "overlap": 0.9}, "overlap: got 0.9; expected 0 <= overlap < 0.9"),
        ({"tiles": 640, "overlap": -0.1}, "overlap: got -0.1;"),
        ({"tiles": 640, "overlap": float("nan")}, "overlap: got nan;"),
        ({"overlap": 0.3}, "overlap: got 0.3 without tiles"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(ArgumentError) as error:
        Views.of(**options)
    assert str(error.value).startswith(says)


def test_what_is_written_of_them():
    assert Views.of().is_plain and Views.of([]).record() == {}
    views = Views.of("flip,1.2", 640)
    assert views.record() == {"tta": ["flip", 1.2], "tiles": 640, "overlap": 0.2}
    assert str(views) == (
        "the image, mirrored, at 1.2 times its size, in tiles of 640 pixels that overlap by 0.2"
    )
