"""Group normalization with a number of groups that fits any width."""

from __future__ import annotations

from math import gcd

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups (Wu and He 2018), or of the most that leave two channels to a group:
    a map of one cell has nothing else to normalize over."""
    groups = gcd(32, channels // 2) if channels % 2 == 0 else 1
    return nn.GroupNorm(groups, channels)
