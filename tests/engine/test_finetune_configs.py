"""The `*_finetune` configs: what trains, and at which rate."""

from importlib import metadata

import pytest
import torch

from support.paths import ROOT
from visionkit.config import load_config
from visionkit.config.shipped import list_configs, shipped_configs
from visionkit.config.tasks import TASKS
from visionkit.engine.optim import build_optimizer
from visionkit.models.backbones.efficientnet_lite import PACKAGE
from visionkit.models.backbones.norm import FrozenBatchNorm
from visionkit.models.build import build_model
from visionkit.types import Classes

NAMES = [name for name in shipped_configs() if name.endswith("_finetune")]


@pytest.fixture(params=NAMES)
def config(request):
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs {PACKAGE}")
    return load_config(request.param)


def test_every_task_has_one_and_the_page_names_it():
    page = (ROOT / "docs/guide/fine-tuning.md").read_text()
    assert all(f"`{name}`" in page for name in NAMES)
    tasks = {config.task for config in list_configs() if config.name in NAMES}
    assert tasks == {*TASKS} - {"embedding", "autoencoder"}


def test_pretrained_layers_are_frozen_or_learn_slowly(config):
    model = build_model(config, {head: Classes.numbered("ab") for head in config.heads})
    norms = {type(m) for m in model.backbone.modules() if "Norm" in type(m).__name__}
    assert FrozenBatchNorm in norms and torch.nn.BatchNorm2d not in norms
    parameters = dict(model.backbone.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    assert len(frozen) > 0 and "conv_stem.weight" in frozen
    groups = build_optimizer(model, config.train).param_groups
    rates = {id(p): group["scale"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in parameters.values() if p.requires_grad} <= {0.1}
    assert {rates[id(p)] for p in model.heads.parameters()} == {1.0}
