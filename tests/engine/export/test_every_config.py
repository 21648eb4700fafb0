"""Every shipped config exports, and from one file batches of two sizes are as the model computes
them. Half a minute each, so the file is slow; `test_graph.py` has the heads, some in each run."""

import pytest
import torch
from torch import nn

from support.onnx_sessions import assert_same, eager, images, keep_few_objects, run, session
from visionkit.config import load_config
from visionkit.config.components import head_class
from visionkit.config.config import fixed_size
from visionkit.config.shipped import shipped_configs
from visionkit.engine.export.graph import exported_program, to_onnx
from visionkit.models.build import build_model
from visionkit.types import Classes

pytestmark = pytest.mark.slow
BATCHES = {(1, 96, 128): (0, 0), (3, 128, 64): (17, 9)}
GAIN = 0.25  # of the heads' layers: with much more, rounding moves proposals by whole pixels
ATTRIBUTES = ("color: red", "color: blue", "covered")


def random_model(config):
    """The model of a config with random weights, spread-out scores and norms that do something.

    Norms fit some images, and layers of heads have a small gain: without, torch's own convolutions
    with and without oneDNN gave boxes of a Faster R-CNN that differed by 3e-4.
    """
    torch.manual_seed(0)
    classes = {}
    for head in config.heads:
        key = head_class(config, head).class_key
        named = {None: (), "attributes": ATTRIBUTES}.get(key, [f"class {i}" for i in range(8)])
        classes[head] = Classes.numbered(named)
    model = build_model(config, classes, pretrained=False).eval()
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    hooks = [norm.register_forward_pre_hook(fit_norm) for norm in norms]
    side = next(fixed_size(source.image_size) or (128, 128) for source in config.data.values())
    eager(model, *images((2, *side), seed=1))
    for hook in hooks:
        hook.remove()
    for parameter in model.heads.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=min(0.05, GAIN / parameter[0].numel() ** 0.5))
    return model


def fit_norm(norm, inputs):
    (x,) = inputs
    x = x.transpose(0, 1).flatten(1)
    norm.running_mean.copy_(x.mean(1) + 0.1 * torch.randn(len(x)))
    norm.running_var.copy_(x.var(1, unbiased=False).clamp(min=0.01))


@pytest.mark.timeout(900)  # alone 10 to 60 s
@pytest.mark.parametrize("name", shipped_configs())
def test_it_exports_and_computes_the_same(name):
    config = load_config(name)
    (size,) = {fixed_size(source.image_size) for source in config.data.values()}
    model = random_model(config)
    given = [
        images(shape, smaller) if size is None else images((shape[0], *size))
        for shape, smaller in BATCHES.items()
    ]
    keep_few_objects(model, *given[0])
    run_session = session(to_onnx(exported_program(model, [*model.heads], size=size)))
    for pixels, sizes in given:
        found = run(run_session, images=pixels, sizes=sizes)
        expected = eager(model, pixels, sizes)
        for head in model.heads:
            assert_same(expected, found, head)
