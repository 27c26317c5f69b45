"""Group normalisation that works on a map of one pixel."""

from math import gcd

from torch import nn


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """At most 8 groups of at least 2 channels (Wu & He 2018): a lone value would normalise to zero, or raise."""
    groups = gcd(channels, 8)
    while groups > 1 and channels // groups < 2:
        groups //= 2
    return nn.GroupNorm(groups, channels, eps=eps)
