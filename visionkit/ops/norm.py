"""Group normalization with a number of groups that fits any width."""

from __future__ import annotations

from math import gcd

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as divide both 32 and the channels (Wu and He 2018);
    never of single channels, which a map of one cell leaves nothing to normalize over."""
    groups = gcd(32, channels)
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels)
