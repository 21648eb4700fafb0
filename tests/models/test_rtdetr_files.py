"""Files of RT-DETR that transformers writes: they load through `weights:`, by class name, and the
model then finds the same objects."""

import json
import math

import pytest
import torch

from support.rtdetr import small_config, transformers_model
from visionkit.config import load_config
from visionkit.engine.torch_model import Predictor
from visionkit.errors import CheckpointError
from visionkit.models.build import build_model, build_published
from visionkit.models.published import find
from visionkit.models.rtdetr_files import our_names
from visionkit.models.weights import COCO_CLASSES
from visionkit.types import Classes

NAMES = ("a", "b", "c", "d", "e")
KINDS = {
    "v1": (1, {}, {}),
    "v2": (2, {}, {}),
    "v2 discrete": (2, {"decoder_method": "discrete"}, {"sampling": "nearest"}),
}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 96, 160), generator=generator, dtype=torch.uint8)


def save(model, folder, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: k for k, name in enumerate(names)}
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def ours_of(path, names=NAMES, words=(), **head):
    config = load_config(small_config(path, **head), words)
    classes = {"detection": Classes.numbered(names)}
    return config, classes, build_model(config, classes).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_queries_logits_and_boxes(kind, images, tmp_path):
    version, theirs, head = KINDS[kind]
    reference = transformers_model(version, len(NAMES), **theirs)
    path = save(reference, tmp_path, NAMES)
    _, _, ours = ours_of(path, score_threshold=0.0, **head)
    with torch.no_grad():
        expected = reference(images / 255)
        features = ours.neck(ours.backbone(images))
        detector = ours.head("detection")
        queries = detector.select(detector.memory(features))
        found = detector(features)
    assert expected.logits.std() > 0.1 and expected.pred_boxes.std() > 0.1
    torch.testing.assert_close(queries.logits, expected.enc_topk_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(queries.boxes, expected.enc_topk_bboxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["scores"].logit(), expected.logits, atol=1e-4, rtol=0)
    center, half = expected.pred_boxes[..., :2], expected.pred_boxes[..., 2:] / 2
    scale = torch.tensor([160.0, 96, 160, 96])
    corners = (torch.cat([center - half, center + half], 2) * scale).clamp(min=0)
    corners = torch.minimum(corners, scale)
    torch.testing.assert_close(found["boxes"] / scale, corners / scale, atol=1e-4, rtol=0)


def test_folded_it_predicts_what_transformers_predicts(tmp_path):
    reference = transformers_model(2, len(NAMES))
    path = save(reference, tmp_path, NAMES)
    config, classes, ours = ours_of(path, score_threshold=0.0, max_detections=20)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        out = reference(images / 255)
    scores, index = out.logits.sigmoid().flatten(1).topk(20, 1)
    found = Predictor(ours, config, classes).predict_batch([*images])
    for one, score, pair in zip(found, scores, index, strict=True):
        torch.testing.assert_close(one.scores, score, atol=1e-4, rtol=0)
        assert (one.labels == pair % len(NAMES)).float().mean() > 0.8  # ties may change places


def test_rows_go_by_the_names_in_its_config(tmp_path):
    reference = transformers_model(1, 4)
    path = save(reference, tmp_path, ("cat", "sofa", "dog", "owl"))
    _, _, ours = ours_of(path, ("owl", "new", "couch"))  # COCO's name of a sofa
    head, theirs = ours.head("detection"), reference.model
    for own, other in (
        (head.enc_score_head, theirs.enc_score_head),
        (head.decoder.class_embed[1], theirs.decoder.class_embed[1]),
        (head.denoising_class_embed, theirs.denoising_class_embed),
    ):
        assert torch.equal(own.weight[[0, 2]], other.weight[[3, 1]])
    assert torch.equal(head.enc_score_head.bias[[0, 2]], theirs.enc_score_head.bias[[3, 1]])


def test_without_a_config_80_outputs_are_cocos_classes(tmp_path):
    assert len(COCO_CLASSES) == 80 and COCO_CLASSES[0] == "person"
    reference = transformers_model(1, 80)
    path = save(reference, tmp_path, COCO_CLASSES)
    (tmp_path / "config.json").unlink()
    _, _, ours = ours_of(path, ("zebra", "person"))
    rows = reference.model.enc_score_head.weight[[COCO_CLASSES.index("zebra"), 0]]
    assert torch.equal(ours.head("detection").enc_score_head.weight, rows)


def test_a_config_of_another_model_is_refused(tmp_path):
    path = save(transformers_model(1, 4), tmp_path, ("a", "b", "c", "d"))
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "id2label": {"0": "a"}}))
    with pytest.raises(CheckpointError, match=r"names 1 classes, and .* has 4 outputs"):
        ours_of(path, ("a",))
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="names no classes"):
        ours_of(path, ("a",))


def test_another_architecture_is_named(tmp_path):
    path = save(transformers_model(1, 4), tmp_path, ("a", "b", "c", "d"))
    with pytest.raises(CheckpointError, match=r"looks like transformers' RT-DETR; this model"):
        ours_of(path, ("a",), layers=3)
    config = load_config("detection_small", [f"weights={path}"])
    with pytest.raises(CheckpointError, match=r"looks like transformers' RT-DETR"):
        build_model(config, {"detection": Classes.numbered(("a",))})


def test_names_of_older_and_newer_files():
    """Published files have the names of transformers 4."""
    tensor = torch.zeros(2, 3)
    block = "model.backbone.model.encoder.stages"
    older = {
        "model.encoder.encoder.0.layers.0.self_attn.out_proj.bias":
            "neck.layers.0.self_attn.o_proj.bias",
        "model.encoder.encoder.0.layers.0.fc1.weight": "neck.layers.0.mlp.fc1.weight",
        "model.decoder.layers.1.fc2.bias": "heads.x.decoder.layers.1.mlp.fc2.bias",
        "class_embed.1.bias": "heads.x.decoder.class_embed.1.bias",
        "model.encoder.aifi.0.layers.0.mlp.fc1.bias": "neck.layers.0.mlp.fc1.bias",
        f"{block}.3.layers.0.shortcut.1.normalization.bias":
            "backbone.body.layer4.0.downsample.2.bias",
        f"{block}.0.layers.0.shortcut.convolution.weight":
            "backbone.body.layer1.0.downsample.1.weight",
    }  # fmt: skip
    for theirs, ours in older.items():
        assert [*our_names({theirs: tensor}, "x")] == [ours]
    assert not our_names({"model.decoder.layers.0.encoder_attn.n_points_scale": tensor}, "x")
    assert len(our_names({"model.denoising_class_embed.weight": tensor}, "x").popitem()[1]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_the_published_architecture_predicts_cocos_classes_by_name(version, tmp_path, monkeypatch):
    """The whole ResNet-18 model, as in the published repository."""
    large = {"encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024}
    reference = transformers_model(version, 80, hidden=256, layers=3, queries=300, **large)
    name = f"rtdetr_{'v2_' if version == 2 else ''}r18vd"
    folder = tmp_path / "PekingU" / name
    save(reference, folder, COCO_CLASSES)
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(tmp_path))
    for given in (name, f"hf://PekingU/{name}"):
        words = ["train.precision=fp32", "train.device=cpu", "train.channels_last=false"]
        _, classes, ours = build_published(given, words)
        assert classes["detection"].names == COCO_CLASSES
        assert classes["detection"].ids[-1] == 90
    images = torch.randint(0, 256, (1, 3, 640, 640), dtype=torch.uint8)
    with torch.no_grad():
        expected = reference(images / 255)
        found = ours.eval().head("detection")(ours.neck(ours.backbone(images)))
    torch.testing.assert_close(found["scores"].logit(), expected.logits, atol=1e-4, rtol=0)


def test_entries_of_the_hub():
    one = find("rtdetr_v2_r18vd")
    assert (one.license, one.kind) == ("Apache-2.0", "model")
    assert find("hf://PekingU/rtdetr_v2_r18vd") == one
    assert one.file == "PekingU/rtdetr_v2_r18vd/model.safetensors"
    assert len(one.classes) == 91 and math.isclose(one.metrics["box AP"], 48.1)
