"""The norms of a backbone, and what of it does not train."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from support.backbones import pixels, randomize_norms, saved_classifier
from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import FrozenBatchNorm, batch_statistics
from visionkit.models.backbones.torchvision import Torchvision

# --- norms ---


def test_frozen_norm_equals_that_of_torchvision():
    ours = randomize_norms(FrozenBatchNorm(8, eps=1e-3))
    theirs = FrozenBatchNorm2d(8, eps=1e-3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x.bfloat16()).dtype == torch.bfloat16


def test_a_training_step_leaves_frozen_norms_alone_but_not_the_convolutions():
    backbone = randomize_norms(Torchvision(norm="frozen")).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    backbone(pixels(2, 3, 64, 64))["c5"].mean().backward()
    optimizer.step()
    for key, value in backbone.state_dict().items():
        is_norm = key.rpartition(".")[0].endswith(("bn1", "bn2", "downsample.1"))
        assert torch.equal(value, before[key]) == is_norm, key


def test_norm_auto_follows_the_weights(tmp_path):
    _, path = saved_classifier(tmp_path, "resnet18")
    assert isinstance(Torchvision().body.bn1, nn.BatchNorm2d)
    assert isinstance(Torchvision(weights=path).body.bn1, FrozenBatchNorm)
    assert isinstance(Torchvision(weights=path, norm="batch").body.bn1, nn.BatchNorm2d)


def test_norm_eps_reaches_every_norm():
    default = Torchvision(name="mobilenet_v3_small", norm="frozen")
    changed = Torchvision(name="mobilenet_v3_small", norm="frozen", norm_eps=0.0)
    for backbone, eps in ((default, 1e-3), (changed, 0.0)):
        assert {m.eps for m in backbone.modules() if isinstance(m, FrozenBatchNorm)} == {eps}


def test_group_norm_replaces_every_batch_norm_and_needs_no_batch():
    backbone = Torchvision(
        name="shufflenet_v2_x1_0", norm="group"
    ).train()  # it has 58 channels, no multiple of 32
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.num_groups for m in backbone.modules() if isinstance(m, nn.GroupNorm)} == {
        2,
        4,
        8,
        32,
    }
    images = pixels(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images)["c5"][:1], backbone(images[:1])["c5"])


@pytest.mark.parametrize("wrong", [{"norm": "group"}, {"norm": "batch"}, {"norm_eps": 0.0}])
def test_changing_the_norm_of_a_backbone_without_any_is_an_error(wrong):
    with pytest.raises(ConfigError, match="no batch normalization"):
        Torchvision(name="vgg11", **wrong)
    assert Torchvision(name="vgg11", norm="frozen").levels["c5"].channels == 512


def test_residual_blocks_start_as_the_identity_unless_they_could_not_leave_it():
    assert not Torchvision().body.layer1[0].bn2.weight.any()
    assert not Torchvision(norm="group").body.layer1[0].bn2.weight.any()
    assert Torchvision(norm="frozen").body.layer1[0].bn2.weight.all()


def test_norms_of_all_ranks_keep_their_names_and_need_no_averaging():
    backbone = Torchvision(freeze_at=1).train()
    names = list(backbone.state_dict())
    assert len(batch_statistics(backbone)) == 2 * 19  # that of the frozen stem stands still
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    assert list(synchronized.state_dict()) == names
    assert batch_statistics(synchronized) == []


# --- freezing ---


@pytest.mark.parametrize(
    "name, freeze_at, trains_from",
    [
        ("resnet18", 0, "conv1"),
        ("resnet18", 1, "layer1"),
        ("resnet18", 2, "layer2"),
        ("mobilenet_v3_large", 3, "7"),  # as torchvision with trainable_layers=3
        ("convnext_tiny", 1, "2"),
    ],
)
def test_freeze_at_counts_leading_strides(name, freeze_at, trains_from):
    parameters = dict(Torchvision(name=name, freeze_at=freeze_at).named_parameters())
    names = [n.split(".")[1] for n in parameters]
    trained = [n.split(".")[1] for n, p in parameters.items() if p.requires_grad]
    assert trained[0] == trains_from
    assert trained == names[names.index(trains_from) :]


def test_frozen_layers_keep_their_statistics_in_training():
    backbone = Torchvision(freeze_at=2)
    for _ in range(2):  # right after construction, and after train()
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        backbone(pixels(2, 3, 64, 64))
        changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
        assert any(key.startswith("body.layer2") for key in changed)
        assert not any(key.startswith(("body.bn1", "body.layer1")) for key in changed)
        backbone.eval().train()


def test_freezing_more_strides_than_there_are_is_an_error():
    assert not [p for p in Torchvision(freeze_at=5).parameters() if p.requires_grad]
    with pytest.raises(ConfigError, match="5 strides"):
        Torchvision(freeze_at=6)
