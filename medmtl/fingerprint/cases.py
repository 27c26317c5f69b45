"""A fingerprint from the cases of a study, and the encoder's features, which fingerprints of format 1 compare."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmtl.data.case import Case
from medmtl.data.preprocess import Preprocess
from medmtl.files import inside
from medmtl.fingerprint.facts import LABELS, Facts, look
from medmtl.fingerprint.known import Fingerprint, fingerprint
from medmtl.predictor import Predictor

_CASES = {"picture": 300, "volume": 120}  # that are looked at


def training_fingerprint(
    predictor: Predictor, cases: Sequence[Case], root: Path, *, held_out: Sequence[Case] = ()
) -> Fingerprint:
    """The fingerprint of a study's training cases and those that it was tuned on (``held_out``).

    Up to 300 (volumes: 120) are looked at, of as many groups as there are.
    """
    preprocess = predictor.spec.preprocess
    some = _some([*cases, *held_out], _CASES["picture" if preprocess.volume is None else "volume"])
    return fingerprint([facts_of(preprocess, case, root) for case in some], [case.group for case in some])


def facts_of(preprocess: Preprocess, case: Case, root: Path) -> Facts:
    """The facts of a case of a study."""
    pixels, volume = preprocess.read(inside(root, case.image))
    grid = preprocess.volume.place(volume) if preprocess.volume is not None and volume is not None else None
    labels = {name: case.meta.get(name, "") for name in LABELS}
    return look(pixels, volume=volume, grid=grid, preprocess=preprocess, labels=labels)


def _some(cases: Sequence[Case], most: int) -> list[Case]:
    """Up to ``most`` cases: the first of every group, then the second, ...; of the last of these, evenly spread."""
    rounds: dict[int, list[Case]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for case in cases:
        rounds[seen[case.group]].append(case)
        seen[case.group] += 1
    chosen: list[Case] = []
    for number in sorted(rounds):
        row, left = rounds[number], most - len(chosen)
        chosen += row if len(row) <= left else [row[i * len(row) // left] for i in range(left)]
    return chosen


@contextmanager
def pooled(predictor: Predictor) -> Iterator[list[Tensor]]:
    """Collects, while the block runs, the mean over space of the encoder's coarsest map: a tensor [B, F] per call."""
    calls: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, maps: Any) -> None:
        calls.append(maps[-1].detach().float().flatten(2).mean(2).cpu())

    handle = predictor.model.get_submodule("encoder").register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def features_of(calls: Sequence[Tensor], images: int, views: int) -> list[tuple[float, ...]] | None:
    """The features of each image from the calls of one decoding: of the first view, or the mean over an image's
    windows. None where windows of several images went through together."""
    if len(calls) == views and all(len(call) == images for call in calls):
        table = calls[0]
    elif images == 1 and calls:
        table = torch.cat(list(calls)).mean(0, keepdim=True)
    else:
        return None
    return [tuple(float(x) for x in row) for row in table]
