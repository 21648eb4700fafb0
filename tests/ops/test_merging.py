"""Semantic maps, probabilities, boxes and embeddings of several views of an image."""

import numpy as np
import pytest

from visionkit.errors import ArgumentError
from visionkit.ops.merging import merge_maps, merged, refusal
from visionkit.ops.original import cells_at, semantic_map
from visionkit.ops.views import View, Views

SIZE = (90, 150)
WHOLE = View(SIZE, (0, 0, 150, 90))


def found(logits, padded, size=None):
    return {"logits": np.asarray(logits, np.float32), "size": size or padded, "padded": padded}


def softmax_at(places, row, column):
    """The probabilities (K,) at a pixel of a view."""
    cells, rows, columns = places
    upper, lower = cells[:, rows.cell[row]], cells[:, rows.next_cell[row]]
    line = upper + (lower - upper) * rows.share[row]
    left, right = line[:, columns.cell[column]], line[:, columns.next_cell[column]]
    logits = left + (right - left) * columns.share[column]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def naive(predictions, views, y, x):
    """The weighted sum of the probabilities at a pixel."""
    total = 0
    for one, view in zip(predictions, views, strict=True):
        left, top, right, bottom = view.window
        if not (left <= x < right and top <= y < bottom):
            continue
        column = right - 1 - x if view.flip else x - left
        weight = 1.0
        for place, start, stop, side in (
            (y, top, bottom, views[0].image[0]),
            (x, left, right, views[0].image[1]),
        ):
            near = [place - start + 0.5] if start > 0 else []
            near += [stop - place - 0.5] if stop < side else []
            weight *= min([1.0, *(n / ((stop - start) / 4) for n in near)])
        places = cells_at(one["logits"], one["size"], one["padded"], view.size)
        total = total + weight * softmax_at(places, y - top, column)
    return total


def test_maps_equal_a_naive_reference():
    """Mirrored views and tiles, of grids that do not divide the image."""
    views = Views.of("flip", 64, 0.3).plan(SIZE)
    rng = np.random.default_rng(0)
    predictions = [
        found(rng.normal(0, 2, (3, 8, 12)), (64, 96), (60, 90))
        if not view.is_tile
        else found(rng.normal(0, 2, (3, 8, 8)), (64, 64))
        for view in views
    ]
    semantic = merge_maps(predictions, views)["semantic"]
    assert semantic.dtype == np.uint8 and semantic.shape == SIZE
    for y, x in zip(rng.integers(0, 90, 300), rng.integers(0, 150, 300), strict=True):
        expected = naive(predictions, views, y, x)
        assert expected[semantic[y, x]] > expected.max() - 1e-4


def test_maps_do_not_depend_on_the_rows_at_a_time(monkeypatch):
    views = Views.of(tiles=64).plan(SIZE)
    rng = np.random.default_rng(1)
    predictions = [found(rng.normal(0, 2, (4, 8, 8)), (64, 64)) for _ in views]
    at_once = merge_maps(predictions, views)["semantic"]
    monkeypatch.setattr("visionkit.ops.merging.BAND", 4 * 150 * 7)
    assert np.array_equal(merge_maps(predictions, views)["semantic"], at_once)


def test_a_map_of_one_view_is_that_without_views():
    one = found(np.random.default_rng(2).normal(size=(5, 6, 10)), (96, 160), (90, 150))
    expected = semantic_map(one["logits"], one["size"], one["padded"], SIZE)
    assert np.array_equal(merge_maps([one], [WHOLE])["semantic"], expected)


def test_a_map_that_all_views_agree_on_stays():
    """A left half of class 0, a right half of class 1."""
    logits = np.zeros((2, 9, 15))
    logits[0, :, :7] = logits[1, :, 8:] = 8
    logits[:, :, 7] = 4
    views = [WHOLE, WHOLE._replace(flip=True), WHOLE._replace(scale=1.2)]
    one, mirrored = found(logits, SIZE), found(logits[..., ::-1], SIZE)
    semantic = merge_maps([one, mirrored, one], views)["semantic"]
    assert np.array_equal(semantic, np.tile(np.arange(150) >= 75, (90, 1)))


def test_probabilities_are_averaged():
    ones = [{"probs": np.array(p, np.float32)} for p in ([0.5, 0.3, 0.2], [0.1, 0.7, 0.2])]
    one = merged(ones, [WHOLE, WHOLE._replace(flip=True)])
    np.testing.assert_allclose(one["probs"], [0.3, 0.5, 0.2])
    assert one["label"] == 1 and one["score"] == pytest.approx(0.5)


def test_boxes_of_the_image_are_averaged_in_its_pixels():
    """20..60 and, mirrored, 86..126, which is 24..64."""
    probs = np.array([0.9, 0.1], np.float32)
    ones = [
        {"probs": probs, "label": 0, "score": 0.9, "box": np.array(box, np.float32)}
        for box in ([20, 10, 60, 30], [86, 12, 126, 30])
    ]
    one = merged(ones, [WHOLE, WHOLE._replace(flip=True)])
    assert one["box"].tolist() == [22, 11, 62, 30] and one["label"] == 0


def test_embeddings_keep_their_length():
    ones = [{"embedding": np.array(v, np.float32)} for v in ([1, 0], [0, 1])]
    one = merged(ones, [WHOLE, WHOLE._replace(scale=2.0)])
    np.testing.assert_allclose(one["embedding"], [0.5**0.5] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "tiles", "says"),
    [
        ({"probs": 0}, True, "it describes the whole image"),
        ({"probs": 0, "box": 0}, True, "it describes the whole image"),
        ({"embedding": 0}, True, "it describes the whole image"),
        ({"reconstruction": 0}, False, "it reconstructs the image"),
        ({"counts": 0}, False, "no rule to merge predictions of counts"),
        ({"boxes": 0, "scores": 0, "labels": 0, "depth": 0}, False, "boxes, depth, labels, scores"),
    ],
)
def test_what_cannot_be_merged(prediction, tiles, says):
    assert says in refusal(prediction, tiles=tiles)
    view = View((90, 150), (0, 0, 64, 64)) if tiles else WHOLE
    with pytest.raises(ArgumentError, match=says[:20]):
        merged([prediction] * 2, [WHOLE, view])
    assert refusal({"boxes": 0, "scores": 0, "labels": 0, "masks": 0}, tiles=tiles) == ""
