import pytest
import torch
import torch.nn.functional as F

from visionkit.ops.layers import adaptive_mean


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
