import pytest
import torch
import torch.nn.functional as F

from visionkit.ops.layers import BatchNorm, adaptive_mean, conv_block


@pytest.mark.parametrize("bins", [1, 3, 4, 7])
def test_adaptive_means_are_those_of_the_valid_part(bins):
    torch.manual_seed(0)
    features, sizes = torch.randn(4, 5, 6, 8), torch.tensor([[48, 64], [33, 64], [9, 17], [1, 1]])
    found = adaptive_mean(features, sizes, stride=8, bins=bins)
    for image, (h, w) in enumerate([(6, 8), (5, 8), (2, 3), (1, 1)]):
        expected = F.adaptive_avg_pool2d(features[image, :, :h, :w], bins)
        torch.testing.assert_close(found[image], expected)
    whole = adaptive_mean(features, None, stride=8, bins=bins)
    torch.testing.assert_close(whole[0], found[0])


def test_adaptive_means_keep_their_digits_under_autocast():
    features, sizes = torch.rand(1, 2, 3, 3), torch.tensor([[24, 24]])
    with torch.autocast("cpu", torch.bfloat16):
        found = adaptive_mean(features, sizes, stride=8, bins=1)
    torch.testing.assert_close(found, features.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("count, moves", [(0, False), (1, False), (2, True)])
def test_a_batch_norm_takes_no_statistics_of_one_value_or_none(count, moves):
    norm = BatchNorm(3).train()
    x = torch.randn(count, 3, 1, 1)
    assert norm(x).shape == x.shape
    assert (norm.running_mean != 0).any() == moves
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()


def test_a_block_has_a_bias_only_without_norm():
    for name, kind in (("none", None), ("batch", BatchNorm), ("group", torch.nn.GroupNorm)):
        conv, *others = conv_block(4, 8, name)
        assert (conv.bias is not None) == (kind is None)
        assert [type(layer) for layer in others] == [t for t in (kind, torch.nn.ReLU) if t]
