"""Batches of inputs that fit the memory; they depend on inputs and settings alone, never on what is done already."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmtl.bundle import ModelSpec
from medmtl.inference.listing import Input
from medmtl.tasks.segmentation import Segmentation

_FLOAT = 4  # bytes
_COPIES = 3  # of an image while it is decoded, turned and resampled
_AT_ONCE = 3  # batches in memory: one is read, one is in the network, one is written
_UNKNOWN = 2**24  # numbers in an image whose header says nothing; reading it will fail


@dataclass(frozen=True)
class Batch:
    """Consecutive inputs, and the bytes that they and their results take at most."""

    inputs: tuple[Input, ...]
    cost: int


def batches(inputs: Sequence[Input], spec: ModelSpec, *, size: int, budget: int) -> list[Batch]:
    """Consecutive inputs, at most ``size`` and a third of ``budget`` bytes (but one input at least)."""
    found: list[Batch] = []
    part: list[Input] = []
    held = 0
    for item in inputs:
        cost = cost_of(item, spec)
        if part and (len(part) == size or held + cost > budget // _AT_ONCE):
            found.append(Batch(tuple(part), held))
            part, held = [], 0
        part.append(item)
        held += cost
    return [*found, Batch(tuple(part), held)] if part else found


def cost_of(item: Input, spec: ModelSpec) -> int:
    """Bytes that an input takes while it is read, predicted and written; the network's own maps are not in it."""
    if item.refused is not None:
        return 0
    preprocess = spec.preprocess
    native = math.prod(item.shape[:3] if preprocess.volume is not None else item.shape[:2]) if item.shape else _UNKNOWN
    grid = native
    if preprocess.volume is not None and preprocess.volume.spacing_mm is not None and item.voxel_mm3:
        grid = math.ceil(native * item.voxel_mm3 / math.prod(preprocess.volume.spacing_mm))
    grid = math.prod(preprocess.resize) if preprocess.resize else grid
    seen = math.prod(preprocess.window) if preprocess.window else grid
    classes = sum(len(task.classes) for task in spec.tasks.values() if isinstance(task, Segmentation))
    image = preprocess.channels * (_COPIES * native + grid + seen)
    return _FLOAT * (image + classes * (seen + (_COPIES * native if classes else 0)))


def default_budget() -> int:
    """Half of the memory that this machine, or the container, has: the same from one run to the next."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except (OSError, ValueError):  # no control group, or an older system
        pass
    return total // 2
