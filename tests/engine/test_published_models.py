"""Published models without training: `load`, `visionkit predict NAME` and `visionkit eval NAME`."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import visionkit
from support.published import empty_hub, publish, save_as_published
from visionkit.cli.main import main
from visionkit.data.image_io import read_image
from visionkit.errors import CheckpointError

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
SEGMENTER = "lraspp_mobilenet_v3_large"
PLAIN = ["train.precision=fp32", "train.device=cpu", "train.channels_last=false"]


def lively(name):
    """torchvision's model with random weights that finds many objects."""
    torch.manual_seed(1)
    weights = models.get_model_weights(name).DEFAULT
    names = weights.meta["categories"]
    model = models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(names)
    ).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # takes the statistics of the next pass
    with torch.no_grad():
        model.backbone.train()(torch.randn(4, 3, 256, 256))
        model.eval()
        for key, value in model.named_parameters():
            if key.endswith(("box_predictor.cls_score.weight", "rpn.head.cls_logits.weight")):
                value *= 6
            if key.endswith("box_predictor.cls_score.bias"):  # as trained: never found
                value[[label for label, one in enumerate(names) if one == "N/A"]] = -100
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """torchvision's models and their files, by name."""
    folder = tmp_path_factory.mktemp("published")
    found = {name: lively(name) for name in (DETECTOR, SEGMENTER)}
    return {n: (m, save_as_published(m.state_dict(), folder, n)) for n, m in found.items()}


@pytest.fixture
def at_hand(made, tmp_path, monkeypatch):
    empty_hub(monkeypatch, tmp_path / "hub")
    for name, (_, file) in made.items():
        publish(monkeypatch, name, file)
        monkeypatch.setenv("VISIONKIT_WEIGHTS", str(file.parent))
    monkeypatch.chdir(tmp_path)
    return {name: model for name, (model, _) in made.items()}


@pytest.fixture
def image(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (10, 8, 3), np.uint8))
    (tmp_path / "images").mkdir()
    coarse.resize((192, 256), Image.Resampling.BICUBIC).save(tmp_path / "images" / "a.png")
    return tmp_path / "images" / "a.png"


def test_load_finds_what_torchvision_finds(at_hand, image):
    predictor = visionkit.load(DETECTOR, [*PLAIN, "data.image_size=256"], fold=False)
    at_hand[DETECTOR].transform.min_size = (256,)
    at_hand[DETECTOR].transform.max_size = 256
    with torch.inference_mode():
        (expected,) = at_hand[DETECTOR]([read_image(image).float() / 255])
    found = predictor.predict(image)
    names = models.get_model_weights(DETECTOR).DEFAULT.meta["categories"]
    assert found.names == [names[label] for label in expected["labels"]] and len(found.names) > 5
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-2, rtol=1e-4)


def test_classes_are_the_published_ones_with_their_ids(at_hand):
    (classes,) = visionkit.load(DETECTOR).classes.values()
    assert len(classes.names) == 80 and "N/A" not in classes.names
    assert (classes.names[0], classes.ids[0]) == ("person", 1)
    assert (classes.names[-1], classes.ids[-1]) == ("toothbrush", 90)  # COCO's category ids
    (classes,) = visionkit.load(SEGMENTER).classes.values()
    assert classes.names[:2] == ("background", "aeroplane") and classes.ids == (*range(21),)


def test_the_segmenter_gives_torchvisions_map(at_hand, image):
    predictor = visionkit.load(SEGMENTER, [*PLAIN, "data.image_size=256"], fold=False)
    with torch.inference_mode():
        pixels = predictor.model.backbone.normalize(
            read_image(image)[None], None, like=predictor.model.backbone.body
        )
        expected = at_hand[SEGMENTER](pixels)["out"]
    found = predictor.predict(image).semantic
    first, second = expected[0].topk(2, dim=0).values
    clear = first - second > 1e-3
    assert clear.float().mean() > 0.5
    assert torch.equal(found.long()[clear], expected[0].argmax(0)[clear])


def test_predict_by_name(at_hand, image, tmp_path, capsys):
    words = [str(image.parent), "--out", "out", "data.image_size=256", "--offline"]
    assert main(["predict", DETECTOR, *words]) == 0
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {one["category_id"] for one in records} <= {*range(1, 91)}
    assert os.path.exists("out/a.jpg")
    assert main(["predict", DETECTOR, *words[:1], "--out", "other", "--heads", "semantic"]) == 2
    assert "the model has no head 'semantic'" in capsys.readouterr().err


def annotated(folder, categories, image):
    """A COCO file with one object of each of those (id, name)."""
    boxes = [[10 + 30 * k, 20, 25, 40] for k in range(len(categories))]
    content = {
        "images": [{"id": 7, "file_name": image.name, "width": 192, "height": 256}],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": k + 1, "image_id": 7, "category_id": number, "bbox": box, "area": 1000,
             "iscrowd": 0}
            for k, ((number, _), box) in enumerate(zip(categories, boxes, strict=True))
        ],
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(content))
    return [f"data.val.images={image.parent}", f"data.val.annotations={folder / 'a.json'}"]


def test_eval_by_name_on_some_of_the_classes(at_hand, image, tmp_path, capsys, caplog):
    """Category ids are those of the file; classes that it lacks are not scored."""
    words = annotated(tmp_path, [(3, "zebra"), (8, "person")], image)
    with caplog.at_level("INFO", "visionkit"):
        assert main(["eval", DETECTOR, "--json", "data.image_size=256", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["detection/bbox/AP"] <= 1
    assert {"detection/bbox/AP/zebra", "detection/bbox/AP/person"} <= found.keys()
    assert found["classes"]["detection/bbox/AP"]["scored"] == 2
    assert "not labeled here: bicycle" in caplog.text
    assert not (tmp_path / DETECTOR).exists()  # nothing is written, since there is no run


def test_eval_by_name_on_other_data(at_hand, image, tmp_path, capsys):
    words = annotated(tmp_path, [(1, "person"), (2, "unicorn")], image)
    assert main(["eval", DETECTOR, *words]) == 3
    told = capsys.readouterr().err
    assert "not expected: 'unicorn'" in told and "other_classes=ignore" in told
    more = ["data.val.other_classes=ignore", "data.image_size=256"]
    assert main(["eval", DETECTOR, *words, *more]) == 0
    assert main(["eval", DETECTOR]) == 2
    assert "give data.val.images=" in capsys.readouterr().err


def test_a_run_or_a_file_of_that_name_wins(at_hand, tmp_path, capsys):
    (tmp_path / DETECTOR).mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoints"):
        visionkit.load(DETECTOR)
    (tmp_path / DETECTOR).rmdir()
    (tmp_path / DETECTOR).write_text("no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        visionkit.load(DETECTOR)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maskrcnn_resnet", r"a published model; nearest: maskrcnn_resnet50_fpn, \w+, \w+;"),
        ("detection_small", r"is a config without published weights.*visionkit train detection_sm"),
        ("runs/none", "runs/none: not found"),
        ("resnet50", "resnet50: not found; expected a run directory"),
    ],
)
def test_other_names_are_errors(name, message, at_hand, image, capsys):
    with pytest.raises(CheckpointError, match=message):
        visionkit.load(name)
    assert main(["predict", name, str(image), "--out", "out"]) == 4
    assert not os.path.exists("out") and "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_cannot_be_fetched_end_predict_without_a_folder(
    at_hand, image, monkeypatch, capsys
):
    monkeypatch.delenv("VISIONKIT_WEIGHTS")
    assert main(["predict", DETECTOR, str(image), "--out", "out", "--offline"]) == 4
    assert not os.path.exists("out")
    said = capsys.readouterr().err
    assert "or give its path (weights=PATH)\n" in said and "null" not in said
    assert main(["weights", "fetch", DETECTOR, "--offline"]) == 4
    said = capsys.readouterr().err
    assert "VISIONKIT_WEIGHTS names\n" in said and "null" not in said
    words = ["weights=coco", "data.workers=0", "output=run", "--offline"]
    assert main(["train", DETECTOR, *words]) == 4
    assert "(weights=PATH), or start at random (weights: null)\n" in capsys.readouterr().err


def test_training_starts_from_coco_and_says_what_it_used(at_hand, tmp_path, monkeypatch):
    """RUN/config.yaml has the weights and the norms, and the run loads without the file."""
    words = ["weights=coco", "backbone.norm=auto", "train.steps=1", "train.validate=false"]
    words += ["data.image_size=64", "data.batch_size=1", "data.workers=0", "output=run"]
    words += ["data.train.num_images=2", "data.train.size=64", "data.val=null", "train.plots=false"]
    assert main(["train", SEGMENTER, *words]) == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1" in text
    assert "norm: frozen" in text
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(tmp_path))  # which has no weights
    assert main(["train", "--resume", "run", "train.steps=2", "--offline"]) == 0
    body = visionkit.load("run", fold=False).model.backbone.body.state_dict()
    theirs = at_hand[SEGMENTER].backbone.state_dict()
    assert torch.equal(body["0.1.running_mean"], theirs["0.1.running_mean"])


@pytest.mark.slow  # a graph of a whole segmenter
def test_export_by_name(at_hand, tmp_path, image, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", SEGMENTER, "data.image_size=128", "--check", "2", "--offline"]) == 0
    text = capsys.readouterr().out
    assert f"wrote {SEGMENTER}.onnx: " in text
    assert "generated images replace validation data: the config has no validation data" in text
    found = visionkit.load(f"{SEGMENTER}.onnx").predict(image).semantic
    expected = visionkit.load(SEGMENTER, [*PLAIN, "data.image_size=128"]).predict(image).semantic
    assert (np.asarray(found) == np.asarray(expected)).mean() > 0.99
