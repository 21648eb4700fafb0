"""Weights rounded once: the outputs under autocast stay as they were, bit by bit."""

import pytest
import torch

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.engine.predict import Predictor
from visionkit.models.build import build_model
from visionkit.ops.inference import LAYERS, cast_weights, fold_norms
from visionkit.types import Batch, Classes

CONFIGS = ROOT / "configs"
NAMES = ["detection", "detection_small", "instance_segmentation", "localization", "vae"]
NAMES += ["classification", "semantic_segmentation", "embedding"]


def model_of(name, precision="bf16"):
    config = load_config(CONFIGS / f"{name}.yaml", {"train.precision": precision})
    classes = {head: Classes(("one", "two"), (1, 2)) for head in config.heads}
    torch.manual_seed(0)
    return build_model(config, classes, pretrained=False).eval(), config, classes


@torch.inference_mode()
def predictions_of(model):
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    batch = Batch(images.to(torch.uint8), [{"size": (64, 64), "orig_size": (64, 64)}] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        return model.predictions(model.features(batch), batch, [*model.heads])


@pytest.mark.parametrize("name", NAMES)
def test_predictions_stay_the_same(name):
    model, _, _ = model_of(name)
    fold_norms(model)
    before = predictions_of(model)
    cast_weights(model, torch.bfloat16)
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())
    for head, expected in before.items():
        for one, other in zip(predictions_of(model)[head], expected, strict=True):
            assert one.keys() == other.keys()
            for key, value in other.items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(one[key], value), (head, key)


def test_a_model_to_predict_with_is_cast_and_one_in_float32_is_not():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model, config, classes = model_of("detection_small", precision)
        layers = [
            m for m in Predictor.of(model, config, classes).model.modules() if type(m) in LAYERS
        ]
        assert layers and {layer.weight.dtype for layer in layers} == {dtype}
