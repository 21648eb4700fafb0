"""A `Prediction` from Python: its objects, values for JSON, supervision, and its `repr`."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import visionkit
from visionkit.engine.prediction import Prediction, to_records
from visionkit.errors import ArgumentError, ConfigError, DivergedError
from visionkit.types import Classes

IMAGE = torch.full((3, 40, 60), 128, dtype=torch.uint8)
THINGS = Classes(("cat", "dog"), (3, 7))
STUFF = Classes(("background", "road"), (0, 1))
LOOKS = Classes(("red", "open"), (0, 1))
NONE = Classes((), ())
BOXES = torch.tensor([[5.0, 5, 25, 30], [30, 8, 50, 35], [1, 2, 4, 6]])
SCORES = torch.tensor([0.9, 0.6, 0.1])


def square(x1, y1, x2, y2):
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return coco_mask.encode(mask)


def objects(**more):
    return {"boxes": BOXES, "scores": SCORES, "labels": torch.tensor([1, 0, 1]), **more}


def masked():
    return objects(masks=[square(5, 5, 25, 30), square(30, 8, 50, 35), square(1, 2, 4, 6)])


def looks():
    values = torch.tensor([[0.75, 0.25], [0.5, 1.0], [0.0, 0.0]])
    return {"boxes": BOXES, "scores": SCORES, "attributes": values}


WORDS = {
    "probs": torch.tensor([0.25, 0.75]),
    "label": torch.tensor(1),
    "score": torch.tensor(0.75),
}


def joint():
    semantic = torch.zeros(40, 60, dtype=torch.uint8)
    semantic[:, 45:] = 1
    heads = {
        "scene": WORDS,
        "things": masked(),
        "looks": looks(),
        "map": {"semantic": semantic},
        "vector": {"embedding": torch.tensor([0.6, 0.8])},
        "again": {"reconstruction": IMAGE[:, :20, :30]},
    }
    classes = {"scene": THINGS, "things": THINGS, "looks": LOOKS, "map": STUFF}
    return Prediction(heads, {**classes, "vector": NONE, "again": NONE}, IMAGE)


def alone(result, classes=THINGS, **more):
    return Prediction({"head": result}, {"head": classes}, IMAGE, **more)


def test_the_objects_of_a_joint_model_are_those_of_the_head_that_finds_them():
    found = joint()
    assert found.size == (40, 60) and len(found) == 3
    assert torch.equal(found.boxes, BOXES) and torch.equal(found.scores, SCORES)
    assert found.labels.tolist() == [1, 0, 1] and found.names == ["dog", "cat", "dog"]
    assert found.masks.shape == (3, 40, 60) and found.masks.dtype == bool
    assert found.masks.sum((1, 2)).tolist() == [20 * 25, 20 * 27, 3 * 4]
    assert found.probs.tolist() == [0.25, 0.75] and found.attributes.shape == (3, 2)
    assert found.reconstruction.shape == (3, 20, 30) and found.embedding.shape == (2,)
    first, second, third = found
    assert (first.box, first.score, first.label, first.name) == (
        (5.0, 5.0, 25.0, 30.0),
        pytest.approx(0.9),
        1,
        "dog",
    )
    assert np.array_equal(second.mask, found.masks[1])
    assert first.attributes == {"red": 0.75, "open": 0.25}
    assert third.attributes == {"red": 0.0, "open": 0.0}
    assert repr(first) == (
        "PredictedObject('dog', score=0.900, box=(5.0, 5.0, 25.0, 30.0), red=0.75, open=0.25, "
        "with a mask)"
    )


def test_a_class_of_the_whole_image_is_an_object_without_a_box():
    (one,) = found = alone(WORDS)
    assert (one.box, one.mask, one.label, one.name, one.score) == (None, None, 1, "dog", 0.75)
    assert repr(one) == "PredictedObject('dog', score=0.750)"
    assert found.names == ["dog"] and found.scores.tolist() == [0.75]
    with pytest.raises(AttributeError, match="'head' has no 'box'; it has probs, label, score"):
        _ = found.boxes
    several = alone({"probs": torch.tensor([0.6, 0.9]), "labels": torch.tensor([1, 0])})
    assert [(o.name, o.score) for o in several] == [
        ("dog", pytest.approx(0.9)),
        ("cat", pytest.approx(0.6)),
    ]


def test_localization_has_one_object_with_a_box():
    (one,) = found = alone({**WORDS, "box": torch.tensor([1.0, 2, 3, 4])})
    assert one.box == (1, 2, 3, 4) and one.name == "dog" and found.boxes.shape == (1, 4)


def test_attributes_alone_have_boxes_and_no_class():
    found = alone(looks(), LOOKS)
    assert len(found) == 3 and torch.equal(found.boxes, BOXES)
    one = next(iter(found))
    assert (one.label, one.name, one.attributes) == (None, None, {"red": 0.75, "open": 0.25})
    with pytest.raises(AttributeError, match="'head' has no 'labels'"):
        _ = found.names


def test_of_several_heads_with_objects_one_is_chosen():
    other = {**objects(), "boxes": BOXES + 1}
    found = Prediction(
        {"a": objects(), "b": other, "looks": {**looks(), "boxes": BOXES + 1}},
        {"a": THINGS, "b": THINGS, "looks": LOOKS},
        IMAGE,
    )
    for use in (len, list):
        with pytest.raises(AttributeError, match=r"several heads .* a, b; .*\.head\('a'\)"):
            use(found)
    for name in ("boxes", "scores", "labels", "names", "masks"):
        with pytest.raises(AttributeError, match=r"several heads have objects: a, b; choose one"):
            getattr(found, name)
    assert not next(iter(found.head("a"))).attributes
    chosen = found.head("b")
    assert torch.equal(chosen.boxes, BOXES + 1) and [*chosen.heads] == ["b", "looks"]
    assert next(iter(chosen)).attributes == {"red": 0.75, "open": 0.25}
    with pytest.raises(ConfigError, match="head: unknown head 'c'; valid: a, b, looks"):
        found.head("c")


def test_a_head_without_objects_says_what_there_is():
    found = alone({"embedding": torch.tensor([0.6, 0.8])}, NONE)
    for use in (len, list, lambda p: p.boxes):
        with pytest.raises(AttributeError, match="no head finds objects or classes"):
            use(found)
    with pytest.raises(AttributeError, match="no head has 'semantic'"):
        _ = found.semantic
    twice = Prediction({"a": WORDS, "b": WORDS}, {"a": THINGS, "b": THINGS}, IMAGE)
    with pytest.raises(AttributeError, match="several heads have 'probs': a, b; choose one"):
        _ = twice.probs


def test_above_keeps_objects_of_at_least_that_score():
    found = joint().above(0.6)
    assert len(found) == 2 and found.names == ["dog", "cat"] and found.masks.shape[0] == 2
    assert found.attributes.tolist() == [[0.75, 0.25], [0.5, 1.0]]
    assert next(iter(found)).attributes == {"red": 0.75, "open": 0.25}
    assert found.semantic.shape == (40, 60) and found.probs.tolist() == [0.25, 0.75]
    assert len(joint().above(1.0)) == 0 and joint().above(1.0).masks.shape == (0, 40, 60)
    assert len(joint()) == 3  # unchanged
    of_head = Prediction(
        {"a": objects(), "b": WORDS}, {"a": THINGS, "b": THINGS}, IMAGE, {"a": 0.7, "b": 0.5}
    )
    assert len(of_head.above()) == 1  # what draw() shows
    with pytest.raises(ArgumentError, match=r"threshold: got 50; expected None or a number"):
        joint().above(50)


def test_the_dict_is_what_predictions_json_has():
    found = joint()
    values = json.loads(json.dumps(found.to_dict()))
    assert (values["file_name"], values["height"], values["width"]) == (None, 40, 60)
    records = [{k: v for k, v in r.items() if k != "image_id"} for r in to_records(found, 5)]
    vectors = [record.pop("embedding", None) for record in values["predictions"]]
    assert values["predictions"] == json.loads(json.dumps(records))
    assert [v for v in vectors if v] == [pytest.approx([0.6, 0.8])]
    things = [record for record in records if record["head"] == "things"]
    assert things[0]["bbox"] == [5, 5, 20, 25] and things[0]["category_id"] == 7
    bad = alone(objects(scores=torch.tensor([0.5, float("nan"), 0.1])))
    with pytest.raises(DivergedError, match="head: 'scores' of image None is not finite"):
        bad.to_dict()


def test_the_repr_says_what_is_found():
    assert repr(joint()).splitlines() == [
        "Prediction (60x40 pixels)",
        "  scene: dog 0.75",
        "  things: 1 dog (0.90), 1 cat (0.60) with masks; 1 below 0.5",
        "  looks: red, open of 3 objects",
        "  map: background 75%, road 25%",
        "  vector: embedding (2,)",
        "  again: reconstruction (3, 20, 30)",
    ]
    many = {"boxes": BOXES[:1].repeat(7, 1), "scores": torch.linspace(0.9, 0.6, 7)}
    many["labels"] = torch.zeros(7, dtype=torch.long)
    text = repr(alone(many, path="a\nb.jpg"))
    assert text == (
        "Prediction of a\\nb.jpg (60x40 pixels)\n  head: 7 cat (0.90, 0.85, 0.80, 0.75, ...)"
    )
    empty = {key: value[:0] for key, value in objects().items()}
    assert "head: no objects" in repr(alone(empty))
    assert "head: no objects; 3 below 0.95" in repr(alone(objects(), draw_threshold=0.95))
    assert "head: counts (2,)" in repr(alone({"counts": torch.tensor([1.0, 2])}))
    box = {**WORDS, "box": torch.tensor([1.2, 2, 3, 4])}
    assert "head: dog 0.75; box [1, 2, 3, 4]" in repr(alone(box))
    assert repr(Prediction({}, {}, IMAGE)) == "Prediction (60x40 pixels)"


def empty_objects():
    return {key: value[:0] for key, value in masked().items()}


@pytest.mark.parametrize("result", [masked(), objects(), empty_objects()])
def test_supervision_gets_every_column(result):
    """With the real package where it is installed."""
    supervision = pytest.importorskip("supervision")
    found = alone(result)
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == len(found)
    assert detections.xyxy.tolist() == found.boxes.tolist()
    assert detections.confidence.tolist() == found.scores.tolist()
    assert detections.class_id.tolist() == found.labels.tolist()
    assert detections.data["class_name"].tolist() == found.names
    assert (detections.mask is not None) == ("masks" in result)
    if "masks" in result:
        assert np.array_equal(detections.mask, found.masks)
    assert len(detections[detections.confidence > 0.5]) == (2 if len(found) else 0)


def test_what_supervision_is_given(monkeypatch):
    module = ModuleType("supervision")
    module.Detections = lambda **columns: columns
    monkeypatch.setitem(sys.modules, "supervision", module)
    columns = joint().to_supervision()
    assert columns["xyxy"].dtype == np.float32 and columns["xyxy"].shape == (3, 4)
    assert columns["confidence"].dtype == np.float32 and columns["class_id"].tolist() == [1, 0, 1]
    assert columns["mask"].dtype == bool and columns["mask"].shape == (3, 40, 60)
    assert columns["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    assert alone(objects()).to_supervision()["mask"] is None
    of_looks = alone(looks(), LOOKS).to_supervision()
    assert of_looks["class_id"] is None and of_looks["data"] == {}


def test_without_supervision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"needs the package supervision, .*: install it for /"):
        joint().to_supervision()


def test_what_it_is_exported_as():
    assert visionkit.Prediction is Prediction
