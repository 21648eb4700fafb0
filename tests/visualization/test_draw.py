"""Predictions and targets are drawn where they are, in the color of their class."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import encode

from visionkit.types import prediction_kinds
from visionkit.visualization.draw import GRAY, color_of, contact_sheet, draw, draw_all, draw_target

NAMES = ["cat", "dog", "fox"]
WHITE = torch.full((3, 480, 640), 255, dtype=torch.uint8)


def pixels(image):
    return np.asarray(image).astype(int)


def drawn_on(image, blank=255):
    """Where the image is not blank any more: (h, w) bool."""
    return (pixels(image) != blank).any(2)


def has_color(image, color):
    return (pixels(image) == np.array(color)).all(2)


def objects(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class():
    image = draw(WHITE, objects([[100, 200, 300, 400]], [1], [0.9]), NAMES)
    assert image.size == (640, 480)
    mine = has_color(image, color_of(1))
    assert mine[200, 100:300].all() and mine[399, 100:300].all()
    assert mine[200:400, 100].all() and mine[200:400, 299].all()
    assert not drawn_on(image)[220:390, 110:290].any()
    assert not drawn_on(image)[405:].any() and not drawn_on(image)[:, 305:].any()


def test_each_head_may_have_its_threshold():
    found = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "scores": torch.tensor([0.45])}
    low = {**found, "labels": torch.tensor([0])}
    high = {**found, "labels": torch.tensor([1])}
    names = {"low": NAMES, "high": NAMES}
    thresholds = {"low": 0.4, "high": 0.5}
    image = draw_all(WHITE, {"low": low, "high": high}, names, threshold=thresholds)
    assert has_color(image, color_of(0)).any() and not has_color(image, color_of(1)).any()


def test_objects_below_the_threshold_are_not_drawn():
    prediction = objects([[10, 10, 90, 90], [300, 300, 400, 400]], [0, 1], [0.9, 0.4])
    assert not has_color(draw(WHITE, prediction, NAMES), color_of(1)).any()
    assert has_color(draw(WHITE, prediction, NAMES, threshold=0.3), color_of(1)).any()


def letters(prediction):
    """How many pixels of the names, black or white on their backgrounds, can be seen."""
    gray = torch.full_like(WHITE, 128)
    image = pixels(draw(gray, prediction, NAMES))
    return ((image == 0).all(2) | (image == 255).all(2)).sum()


CORNERS = [[0, 0, 8, 8], [632, 0, 640, 8], [632, 472, 640, 480], [0, 472, 8, 480]]


@pytest.mark.parametrize("box", [*CORNERS, [0, 0, 640, 480]])
def test_names_are_whole_wherever_the_box_is(box):
    in_the_middle = objects([[300, 200, 308, 208]], [1], [0.99])
    assert letters(objects([box], [1], [0.99])) == letters(in_the_middle) > 20


def test_crowded_names_do_not_cover_each_other():
    boxes = [[300 + i, 200 + i, 340 + i, 240 + i] for i in range(30)]
    one = letters(objects(boxes[:1], [0], [0.9]))
    shown, rest = divmod(letters(objects(boxes, [0] * 30, [0.9] * 30)), one)
    assert rest == 0 and 1 < shown < 30  # whole names only
    # No room is left, but a class that has no name yet gets one all the same.
    late = objects([*boxes, [310, 210, 350, 250]], [0] * 30 + [1], [0.9] * 31)
    alone = objects([[310, 210, 350, 250]], [1], [0.9])
    tags = [has_color(draw(WHITE, p, NAMES), color_of(1)).sum() for p in (late, alone)]
    assert tags[0] > 0.5 * tags[1]


def test_masks_are_translucent_with_an_outline():
    mask = np.zeros((480, 640), np.uint8)
    mask[200:300, 200:400] = 1
    prediction = objects([[200, 200, 400, 300]], [2], [0.8])
    prediction["masks"] = [encode(np.asfortranarray(mask))]
    image = draw(torch.zeros(3, 480, 640, dtype=torch.uint8), prediction, NAMES)
    inside = pixels(image)[250, 300]
    color = np.array(color_of(2))
    assert (inside < color).all() and (inside > 0.2 * color).all()
    assert not drawn_on(image, blank=0)[320:, 420:].any()


def test_small_images_are_enlarged_and_their_boxes_with_them():
    small = torch.full((3, 120, 160), 255, dtype=torch.uint8)
    image = draw(small, objects([[40, 60, 80, 100]], [1], [0.9]), NAMES)
    assert image.size == (640, 480)
    mine = has_color(image, color_of(1))
    assert mine[240, 160:320].all() and mine[399, 160:320].all()


def test_several_heads_draw_on_the_same_image():
    small = torch.full((3, 120, 160), 255, dtype=torch.uint8)
    first = draw(small, {"probs": torch.tensor([0.9, 0.06, 0.04])}, NAMES)
    before = drawn_on(first)
    second = draw(first, {"probs": torch.tensor([0.0, 0.0, 1.0])}, NAMES)
    third = draw(second, objects([[40, 60, 80, 100]], [1], [0.9]), NAMES)
    assert first.size == third.size == (640, 480)
    below = before.any(1).nonzero()[0].max() + 1
    assert has_color(second, color_of(2))[below:].any()  # not over the text of the first
    assert (pixels(first)[:below] == pixels(second)[:below]).all()
    assert has_color(third, color_of(1))[240, 160:320].all()  # at the first scale


def test_the_best_classes_are_named_and_of_several_labels_those_present():
    probs = torch.tensor([0.6, 0.38, 0.02])
    single = draw(WHITE, {"probs": probs}, NAMES)
    assert [has_color(single, color_of(i)).any() for i in range(3)] == [True, True, False]
    several = draw(WHITE, {"probs": probs, "labels": torch.tensor([1])}, NAMES)
    assert [has_color(several, color_of(i)).any() for i in range(3)] == [False, True, False]


def test_one_box_with_its_class():
    prediction = {"probs": torch.tensor([0.1, 0.9]), "box": torch.tensor([100.0, 200, 300, 400])}
    mine = has_color(draw(WHITE, prediction, NAMES), color_of(1))
    assert mine[200, 100:300].all() and mine[200:400, 299].all()


def test_classes_that_are_not_labeled_are_not_drawn():
    classes = torch.zeros(480, 640, dtype=torch.uint8)
    classes[:, 320:] = 1
    target = {"semantic": classes, "semantic_labeled": torch.tensor([True, False])}
    names = {"semantic": ["ox", "cat"]}
    black = torch.zeros(3, 480, 640, dtype=torch.uint8)
    image = np.array(draw_target(black, target, names))
    everything = np.array(draw_target(black, {"semantic": classes}, names))
    assert image[400, 100].any() and everything[400, 500].any()
    assert not image[400, 500].any()


def test_semantic_maps_are_colored_except_for_what_is_ignored():
    classes = torch.full((480, 640), 255, dtype=torch.uint8)
    classes[300:, :] = 1
    image = draw(torch.zeros(3, 480, 640, dtype=torch.uint8), {"semantic": classes}, NAMES)
    assert not drawn_on(image, blank=0)[100:300].any()
    assert drawn_on(image, blank=0)[300:].all()
    assert has_color(image, color_of(1))[:50].any()  # the name in full color


def test_nothing_found_leaves_the_image_and_the_input_as_they_are():
    image = WHITE.clone()
    assert not drawn_on(draw(image, {**objects([], [], []), "masks": []}, NAMES)).any()
    assert not drawn_on(draw_all(image, {}, {})).any()
    draw(image, objects([[100, 200, 300, 400]], [1], [0.9]), NAMES)
    assert torch.equal(image, WHITE)
    source = Image.new("RGB", (640, 480), "white")
    draw(source, objects([[100, 200, 300, 400]], [1], [0.9]), NAMES)
    assert not drawn_on(source).any()


def test_classes_differ_in_color():
    colors = np.array([color_of(i) for i in range(80)])
    distance = np.abs(colors[:, None] - colors[None]).sum(2)
    neighbors = [distance[i, i + k] for i in range(70) for k in range(1, 6)]
    assert min(neighbors) > 60
    assert len({tuple(color) for color in colors}) == 80


def test_targets_show_objects_crowds_masks_and_the_class_of_the_image():
    masks = torch.zeros(2, 480, 640, dtype=torch.bool)
    masks[0, 210:390, 110:290] = True
    target = {
        "size": (480, 640),
        "boxes": torch.tensor([[100.0, 200, 300, 400], [400, 200, 600, 400]]),
        "labels": torch.tensor([1, 2]),
        "iscrowd": torch.tensor([False, True]),
        "masks": masks,
        "class_id": torch.tensor(0),
    }
    image = draw_target(WHITE, target, {"labels": NAMES, "class_id": ["indoors"]})
    assert has_color(image, color_of(1))[200, 100:300].all()
    assert has_color(image, GRAY)[200, 400:600].all()
    assert not has_color(image, color_of(2)).any()
    assert drawn_on(image)[300, 200]
    assert has_color(image, color_of(0))[:30, :60].any()


@pytest.mark.parametrize("class_id", [torch.tensor(1), torch.tensor([0.0, 1.0, 0.0])])
def test_targets_of_classification_show_the_class(class_id):
    image = draw_target(WHITE, {"class_id": class_id}, {"class_id": NAMES})
    assert [has_color(image, color_of(i)).any() for i in range(3)] == [False, True, False]


def test_contact_sheet_lays_images_out_in_rows():
    images = [Image.new("RGB", (100, 60), color) for color in ("red", "green", "blue")]
    sheet = contact_sheet(images, columns=2)
    assert sheet.size == (8 + 2 * 108, 8 + 2 * 68)
    assert sheet.getpixel((20, 20)) == (255, 0, 0)
    assert sheet.getpixel((128, 20)) == (0, 128, 0)
    assert sheet.getpixel((20, 88)) == (0, 0, 255)
    assert sheet.getpixel((128, 88)) == (255, 255, 255)
    assert contact_sheet([Image.new("RGB", (3000, 2000))], columns=3).size == (816, 549)


@pytest.mark.skipif("VISIONKIT_TEST_DATA" not in os.environ, reason="needs the real test data")
def test_real_annotations_are_drawn():
    folder = Path(os.environ["VISIONKIT_TEST_DATA"]) / "coco_mini"
    truth = json.loads((folder / "annotations/instances_val2017.json").read_text())
    for image in truth["images"][:3]:
        boxes = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        with Image.open(folder / "val2017" / image["file_name"]) as image:
            drawn = draw(image, objects(boxes, [0] * len(boxes), [1.0] * len(boxes)), NAMES)
            assert max(drawn.size) == 640 > max(image.size)
            assert has_color(drawn, color_of(0)).any() == bool(boxes)


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        (("boxes", "scores", "labels", "masks"), ["objects"]),
        (("boxes", "scores", "attributes"), ["attributes"]),
        (("probs", "label", "score", "box"), ["box"]),
        (("probs", "labels"), ["classes"]),
        (("reconstruction", "latent_mean", "kl"), ["reconstruction"]),
        (("semantic", "boxes"), ["semantic", "objects"]),
        (("counts",), []),
    ],
)
def test_kinds_of_predictions_in_drawing_order(keys, kinds):
    assert prediction_kinds(dict.fromkeys(keys)) == kinds


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "\u202eb", "\ud800", "tür 猫"])
def test_names_of_any_characters_are_drawn(name):
    """Also with line breaks, of which the font cannot measure the width, and half characters."""
    attributes = [f"{name}={name}", f"{name}=b"]
    looks = objects([[0, 0, 90, 90]], [0], [0.9]) | {"attributes": torch.tensor([[0.9, 0.1]])}
    target = {
        "boxes": torch.tensor([[0.0, 0, 90, 90]]),
        "labels": torch.tensor([0]),
        "attributes": torch.tensor([[1.0, 0]]),
        "class_id": torch.tensor(0),
    }
    names = {"labels": [name], "attributes": attributes, "class_id": [name]}
    assert drawn_on(draw(WHITE, objects([[0, 0, 90, 90]], [0], [0.9]), [name])).any()
    assert drawn_on(draw(WHITE, looks, attributes)).any()
    assert drawn_on(draw_target(WHITE, target, names)).any()
