"""What the tests of backbones share: images, and torchvision models to compare with."""

import torch
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def randomize_norms(module):
    """Statistics and affine parts that make a difference, as after training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return module


def saved_classifier(tmp_path, arch):
    model = randomize_norms(models.get_model(arch)).eval()
    path = tmp_path / f"{arch}.pth"
    torch.save(model.state_dict(), path)
    return model, str(path)


def assert_same_features(ours, reference, images):
    """Levels in order against torchvision's maps in order, of the same pixels."""
    with torch.no_grad():
        got = ours(images)
        want = reference(ours.normalize(images, None, like=ours.body))
    for mine, theirs in zip(got.values(), want.values(), strict=True):
        assert_equal_but_for_rounding(mine, theirs)


def assert_equal_but_for_rounding(got, want):
    """To 1e-5 of the largest value: untrained networks give maps of any magnitude."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
