"""What counts as the same in a model and in its exported file."""

import itertools
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from visionkit.engine.export import compare
from visionkit.engine.export.compare import HeadComparison, agreement, match_rows


def objects(boxes, scores=None, labels=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.1, len(boxes)) if scores is None else scores
    labels = np.zeros(len(boxes), np.int64) if labels is None else labels
    return {"boxes": boxes, "scores": np.asarray(scores, np.float32), "labels": np.asarray(labels)}


def test_objects_match_in_any_order_and_each_once():
    one = objects([[0, 0, 9, 9], [20, 20, 30, 30], [0, 0, 9, 9]], [0.9, 0.8, 0.9])
    other = {key: value[[1, 2, 0]] for key, value in one.items()}
    other["boxes"] = other["boxes"] + 0.2
    assert match_rows(one, other).tolist() in ([1, 0, 2], [2, 0, 1])


@pytest.mark.parametrize(
    ("change", "matched"),
    [
        ({"boxes": 0.49}, 2),
        ({"boxes": 0.51}, 1),
        ({"scores": 0.0009}, 2),
        ({"scores": 0.0011}, 1),
        ({"labels": 1}, 1),
    ],
)
def test_the_same_object_has_the_same_class_a_near_box_and_a_near_score(change, matched):
    one = objects([[0, 0, 9, 9], [20, 20, 30, 30]], [0.9, 0.5])
    other = {key: value.copy() for key, value in one.items()}
    for key, by in change.items():
        other[key][1] += by
    assert (match_rows(one, other) >= 0).sum() == matched
    assert agreement(one, other) == ("object", matched, 2)


def test_matching_is_as_large_as_that_of_all_permutations():
    """On random crowds of near-duplicates, against a search of all pairings."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        count = int(rng.integers(1, 6))
        one = objects(rng.uniform(0, 0.6, (count, 4)), rng.uniform(0.5, 0.502, count))
        other = objects(rng.uniform(0, 0.6, (count, 4)), rng.uniform(0.5, 0.502, count))
        found = match_rows(one, other)
        assert len({*found[found >= 0]}) == (found >= 0).sum()
        same = (np.abs(one["boxes"][:, None] - other["boxes"]).max(2) <= compare.BOX) & (
            np.abs(one["scores"][:, None] - other["scores"]) <= compare.SCORE
        )
        assert all(same[row, column] for row, column in enumerate(found) if column >= 0)
        most = max(
            same[range(count), order].sum() for order in itertools.permutations(range(count))
        )
        # A pairing by distance is maximal: it has at least half of the largest one.
        assert 2 * (found >= 0).sum() >= most


def test_a_lost_or_added_object_is_no_match():
    one = objects([[0, 0, 9, 9], [20, 20, 30, 30]])
    fewer = {key: value[:1] for key, value in one.items()}
    assert agreement(one, fewer) == ("object", 1, 2) == agreement(fewer, one)
    nothing = {key: value[:0] for key, value in one.items()}
    assert agreement(nothing, nothing) == ("object", 0, 0)
    assert agreement(one, nothing) == ("object", 0, 2)


def test_nan_never_matches():
    one = objects([[0, 0, 9, 9]])
    assert agreement(one, objects([[0, 0, 9, math.nan]])) == ("object", 0, 1)
    assert agreement(one, objects([[0, 0, 9, 9]], [math.nan])) == ("object", 0, 1)


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def test_masks_may_differ_by_a_hundredth_of_their_pixels():
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = True  # 400 pixels
    for pixels, same in ((4, 1), (5, 0)):
        other = mask.copy()
        other[30, :pixels] = True
        pair = [{**objects([[0, 0, 20, 20]]), "masks": [rle(m)]} for m in (mask, other)]
        assert agreement(*pair) == ("object", same, 1)
    tiny = np.zeros((40, 40), bool)
    tiny[0, :3] = True
    gone = {**objects([[0, 0, 20, 20]]), "masks": [rle(tiny & False)]}
    assert agreement({**gone, "masks": [rle(tiny)]}, gone) == ("object", 0, 1)


def test_attributes_are_part_of_an_object():
    one = {**objects([[0, 0, 9, 9]]), "attributes": np.array([[0.2, 0.7]])}
    del one["labels"]
    near, far = ({**one, "attributes": one["attributes"] + by} for by in (0.001, 0.01))
    assert agreement(one, near)[1] == 1
    assert agreement(one, far)[1] == 0


def test_maps_and_reconstructions_are_counted_by_pixel():
    semantic = np.arange(12, dtype=np.uint8).reshape(3, 4)
    other = semantic.copy()
    other[0, 0] = 7
    assert agreement({"semantic": semantic}, {"semantic": other}) == ("pixel", 11, 12)
    assert agreement({"semantic": semantic}, {"semantic": other[:2]}) == ("pixel", 0, 12)
    image = np.full((3, 2, 2), 100, np.uint8)
    rounded, wrong = image + 1, image.copy()
    wrong[0, 0, 0] = 98
    assert agreement({"reconstruction": image}, {"reconstruction": rounded})[1] == 12
    assert agreement({"reconstruction": image}, {"reconstruction": wrong}) == ("value", 11, 12)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"probs": [0.6, 0.4], "label": 0}, {"probs": [0.6005, 0.3995], "label": 0}, True),
        ({"probs": [0.6, 0.4], "label": 0}, {"probs": [0.65, 0.35], "label": 0}, False),
        ({"probs": [0.5, 0.5], "label": 0}, {"probs": [0.5, 0.5], "label": 1}, False),
        ({"probs": [0.6, 0.4], "labels": [0]}, {"probs": [0.6, 0.4], "labels": [0, 1]}, False),
        ({"probs": [0.6, 0.4], "labels": [0]}, {"probs": [0.6, 0.4]}, False),
        ({"embedding": [0.6, 0.8]}, {"embedding": [0.6, 0.8]}, True),
        ({"embedding": [0.6, 0.8]}, {"embedding": [0.62, 0.7846]}, False),
        ({"probs": [1.0], "box": [0.0, 0, 5, 5]}, {"probs": [1.0], "box": [0.4, 0, 5, 5]}, True),
        ({"probs": [1.0], "box": [0.0, 0, 5, 5]}, {"probs": [1.0], "box": [0.6, 0, 5, 5]}, False),
    ],
)
def test_what_is_found_of_a_whole_image(one, other, same):
    arrays = [{key: np.asarray(value) for key, value in values.items()} for values in (one, other)]
    assert agreement(*arrays) == ("image", int(same), 1)
    tensors = {key: torch.as_tensor(value) for key, value in arrays[0].items()}
    assert agreement(tensors, arrays[1]) == ("image", int(same), 1)


def test_tensor_differences_are_relative_to_the_largest_value():
    one = {"logits": np.array([[10.0, -20.0]]), "probs": np.array([[0.5]])}
    other = {"logits": np.array([[10.0, -20.01]]), "probs": np.array([[0.501]])}
    found = compare.tensor_differences(one, other)
    assert found == {"logits": pytest.approx(0.0005), "probs": pytest.approx(0.001)}
    assert compare.tensor_differences(one, one) == {"logits": 0, "probs": 0}


def test_tensors_of_another_shape_or_with_nan_differ_infinitely():
    one = {"logits": np.zeros((1, 2))}
    for other in (np.zeros((1, 3)), np.array([[0.0, math.nan]]), np.array([[0.0, math.inf]])):
        assert compare.tensor_differences(one, {"logits": other}) == {"logits": math.inf}
    assert compare.tensor_differences(one, {}) == {"logits": math.inf}
    for same in (math.nan, -math.inf):
        logits = {"logits": np.array([[1.0, same]])}
        assert compare.tensor_differences(logits, logits) == {"logits": 0}


def test_rows_of_objects_may_change_places():
    def padded(order, masks):
        boxes = np.array([[0, 0, 9, 9], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)[order]
        scores = np.array([0.9, 0.9, 0], np.float32)[order]
        return {
            "boxes": boxes[None],
            "scores": scores[None],
            "labels": np.zeros((1, 3), np.int64),
            "count": np.array([2]),
            "masks": np.asarray(masks, np.float32)[order].reshape(1, 3, 1, 1),
        }

    one, other = padded([0, 1, 2], [0.2, 0.4, 7]), padded([1, 0, 2], [0.2, 0.4, 9])
    assert compare.tensor_differences(one, other) == {"boxes": 0, "scores": 0, "masks": 0}
    wrong = padded([1, 0, 2], [0.2, 0.5, 9])
    assert compare.tensor_differences(one, wrong)["masks"] == pytest.approx(0.1)


def test_a_head_is_out_of_bounds_below_995_objects_of_a_thousand():
    head = HeadComparison("objects")
    pair = objects(np.arange(4000).reshape(-1, 4))
    fewer = {key: value[:994] for key, value in pair.items()}
    head.add_predictions("a.jpg", pair, pair)
    assert head.problems() == []
    head.add_predictions("b.jpg", pair, fewer)
    assert head.problems() == [] and head.worst == ("b.jpg", 0.994)
    head.add_predictions("c.jpg", {k: v[:9] for k, v in pair.items()}, objects([]))
    (problem,) = head.problems()
    assert problem == (
        "objects: 1,994 of 2,009 objects are the same; expected at least 99.5%; "
        "worst image: c.jpg (0%)"
    )


def test_a_head_is_out_of_bounds_with_other_tensors():
    head = HeadComparison("scene")
    head.add_tensors({"probs": 2e-5})
    assert head.problems() == []
    head.add_tensors({"probs": 1.5e-4})
    head.add_tensors({"probs": 0.0})
    (problem,) = head.problems()
    assert problem.startswith("scene: output 'probs' differs by 0.00015")
    head.add_tensors({"probs": math.nan})
    assert HeadComparison("scene", tensors={"probs": math.nan}).problems()


def test_a_file_of_lower_precision_may_lose_some_of_the_metric_alone():
    head = HeadComparison("objects", {"boxes": 1.0}, "object", 5, 10, "bbox/AP", 0.5, 0.485)
    assert head.problems(0.02) == []
    assert head.problems(0.01) == [
        "objects: bbox/AP drops by 0.0150, from 0.5000 to 0.4850; at most 0.01 is allowed "
        "(--max-drop)"
    ]
    assert len(head.problems()) == 2
    better = HeadComparison("objects", metric="bbox/AP", expected=0.5, found=0.6)
    assert better.problems(0.0) == []
