"""Counted randomness: a seed is a hash of *what* it is for, so it needs no state and nothing can disturb it.

Augmentation is drawn from (seed, epoch, position), an epoch's order from (seed, epoch), dropout from (seed, step,
rank).
The bits are therefore the same for any number of workers and after any interruption.
"""

import hashlib

import torch


def counted(*counters: int | str) -> int:
    """A seed in [0, 2**63) from any counters: the first eight bytes of their SHA-256."""
    text = "\0".join(f"{type(counter).__name__}:{counter}" for counter in counters)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*counters: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`counted`; the global one is left alone."""
    return torch.Generator().manual_seed(counted(*counters))
