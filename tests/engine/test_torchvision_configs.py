"""The shipped configs of torchvision's models train without data, as the recipes do. At their own
size a step takes too long for a test; here it is one step on small images."""

import pytest
import torch

from support.paths import CONFIGS
from support.small_runs import quick_settings
from visionkit.config import load_config
from visionkit.engine.optim import build_optimizer
from visionkit.engine.setup import build_training

NAMES = sorted(  # a ResNet-101 is built as a ResNet-50 is, and takes twice as long
    path.stem for path in (CONFIGS / "torchvision").glob("*.yaml") if "resnet101" not in path.stem
)


HEAVY = ("maskrcnn", "v2", "deeplabv3_resnet50")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * any(h in n for h in HEAVY)) for n in NAMES],
)
def test_a_step_without_data(name):
    few = ["head.box_batch_size=16", "head.rpn_post_nms_train=50"] * ("rcnn" in name)
    words = [*quick_settings(f"torchvision/{name}.yaml"), "data.batch_size=2", *few]
    config = load_config(name, words)
    model, (source,), _ = build_training(config, device=torch.device("cpu"))
    optimizer = build_optimizer(model, config.train)
    batch = next(iter(source.val_batches(workers=0)))
    losses = model.train().losses(model.features(batch), batch, [*model.heads])
    (terms,) = losses.values()
    values = [loss.sum / loss.count.clamp(min=1) for loss in terms.values()]
    assert all(value.isfinite() for value in values)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    sum(values).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], p) for name, p in frozen.items())
    moved = [name for name, p in before.items() if not torch.equal(parameters[name], p)]
    assert len(moved) > 0.5 * len(before)
